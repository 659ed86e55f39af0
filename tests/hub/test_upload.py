"""Uploads of a model folder by the real client: what is on the hub afterwards, and how they fail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import environment
from .server import MEMBER, STRANGER, Hub, serve

REPO = "member/sparse"
SCRIPT = """
import json, sys
from patch.errors import InputError
from patch.hub.upload import check_upload, upload_model

answers = []
for folder, repo in json.loads(sys.argv[1]):
    try:
        check_upload(repo)
        answers.append(upload_model(folder, repo))
    except InputError as error:
        answers.append(f"error: {error}")
print(json.dumps(answers))
"""
Upload = Callable[..., list[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Serve a hub without repositories."""
    with serve(tmp_path / "repositories") as hub:
        yield hub


@pytest.fixture
def upload(hub: Hub, tmp_path: Path) -> Upload:
    """Return a function that uploads folders in one process, each to a repository, and returns addresses or errors."""

    def run(*uploads: tuple[str, str], **variables: str) -> list[str]:
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"} | variables
        command = [sys.executable, "-c", SCRIPT, json.dumps(uploads)]
        variables = environment(tmp_path / "hf", **variables)
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert not any(token in done.stdout + done.stderr for token in (MEMBER, STRANGER))
        return json.loads(done.stdout)

    return run


def write(folder: Path, **files: bytes) -> str:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return str(folder)


def on_hub(hub: Hub) -> dict[str, bytes]:
    folder = hub.root / "models" / REPO / "main"
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".gitattributes"}


def test_the_newest_upload_replaces_the_weights_of_earlier_ones(hub: Hub, tmp_path: Path, upload: Upload) -> None:
    card = b"---\nlicense: mit\n---\n# Card\n"
    one = {"README__md": card, "config__json": b"{}", "model__safetensors": b"all", "mask__npz": b"mask"}
    two = {"README__md": card, "model-1__safetensors": b"first", "model-2__safetensors": b"second"}
    first, second = write(tmp_path / "one", **one), write(tmp_path / "two", **two)
    (address,) = upload((first, REPO), HF_TOKEN=MEMBER)
    assert address == f"{hub.endpoint}/{REPO}"
    assert on_hub(hub) == {name.replace("__", "."): content for name, content in one.items()}
    upload((second, REPO), HF_TOKEN=MEMBER)
    assert on_hub(hub) == {name.replace("__", "."): content for name, content in two.items()} | {"config.json": b"{}"}
    # The host of the contents does not get the token.
    stores = [one for one in hub.requests if one.method == "PUT"]
    assert len(stores) == 4 and all(one.host.startswith("localhost") and not one.authorization for one in stores)


def test_each_refusal_names_its_cause(hub: Hub, tmp_path: Path, upload: Upload) -> None:
    folder = write(tmp_path / "one", config__json=b"{}", model__safetensors=b"all")
    bad = write(tmp_path / "bad", README__md=b"---\nlicense: [\n---\n")
    (no_token,) = upload((folder, REPO))
    cause = "there is no token; log in with `hf auth login` or set HF_TOKEN in the environment"
    assert no_token == f"error: nothing can be pushed to {REPO}: {cause}"
    assert not hub.requests
    (unknown,) = upload((folder, REPO), HF_TOKEN="hf_unknown")
    assert "nothing can be pushed" in unknown and "status 401; log in again" in unknown
    hub.faults = {f"{REPO}/upload": [403]}
    foreign, name, short, card, denied = upload(
        (folder, "stranger/sparse"), (folder, "a//b"), (folder, "sparse"), (bad, REPO), (folder, REPO), HF_TOKEN=MEMBER
    )
    assert f"{folder} cannot be pushed to stranger/sparse: the hub answers with status 403" in foreign
    assert "it is not the name of a repository; it must be `owner/name`" in name
    assert "it must be `owner/name`, such as your-name/sparse" in short
    assert "the hub refuses it: while parsing a flow" in card
    assert "status 403" in denied
    assert not (hub.root / "models/stranger").exists() and on_hub(hub) == {}
    hub.close()
    (gone,) = upload((folder, REPO), HF_TOKEN=MEMBER)
    assert "the Hugging Face hub cannot be reached (" in gone
