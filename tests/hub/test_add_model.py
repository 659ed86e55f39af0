"""Tests of `python -m patch add-model` on models of a hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, environment
from .repositories import add_commit
from .server import MEMBER, STRANGER, Hub, serve

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 64,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
SHAPE = {key: CONFIG[key] for key in list(CONFIG)[1:9]}
WEIGHTS = {"model.safetensors": b"no weights are read"}
# One process for all cases, since imports take most of its time.
SCRIPT = """
import contextlib, io, json, os, sys, time
import huggingface_hub
from patch.pipeline.cli.add_model import main

time.sleep = lambda seconds: None
for line in sys.stdin:
    huggingface_hub.close_session()
    arguments, token = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(arguments)
    print(json.dumps([code, out.getvalue(), errors.getvalue()]), flush=True)
"""
MISSING = "no such repository, or a private one; correct the name, or log in"
# Arguments, token, and words of the message; without words, the block is printed.
CASES: dict[str, tuple[list[str], str | None, str]] = {
    "newest": (["Org/Tiny-0.1B"], None, ""),
    "tag": (["Org/Tiny-0.1B", "--revision", "v1", "--name", "older"], None, ""),
    "gated": (["Org/Gated"], None, "config.json of Org/Gated cannot be fetched: it is gated: accept its licence at"),
    "gated for me": (["Org/Gated"], STRANGER, "it is gated"),
    "accepted": (["Org/Gated"], MEMBER, ""),
    "absent": (["Org/None"], None, f"config.json of Org/None cannot be fetched: {MISSING}"),
    "no revision": (
        ["Org/Tiny-0.1B", "--revision", "v9"],
        None,
        "config.json of Org/Tiny-0.1B at v9 cannot be fetched",
    ),
    "no config": (["Org/Adapter"], None, "config.json of Org/Adapter cannot be fetched: the hub has no such file"),
    "unknown": (["Org/Unknown"], None, "Org/Unknown/config.json: transformers 5"),
    "pickles": (["Org/Pickles"], None, "no .safetensors file; other weights can run code and are not read"),
    "no name": (["Org/a b"], None, "it must be `owner/name`"),
}


def write_repositories(root: Path) -> dict[str, str]:
    """Write the repositories of the cases, and return the commits of some."""

    def commit(repo: str, files: dict[str, bytes], config: dict[str, Any] | None = None) -> str:
        description = {"config.json": json.dumps(config).encode()} if config else {}
        return add_commit(root / "models/Org" / repo, files | description)

    older = commit("Tiny-0.1B", WEIGHTS, CONFIG | {"head_dim": 24})
    newest = commit("Tiny-0.1B", WEIGHTS, CONFIG)
    (root / "models/Org/Tiny-0.1B/v1").symlink_to(older)
    commit("Gated", WEIGHTS, CONFIG)
    commit("Adapter", WEIGHTS)
    commit("Unknown", WEIGHTS, CONFIG | {"model_type": "nothing"})
    commit("Pickles", {"pytorch_model.bin": b"x"}, CONFIG)
    return {"newest": newest, "tag": older}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list], dict[str, str], Hub, list]:
    """Run all cases on a hub, and one after its end."""
    folder = tmp_path_factory.mktemp("add_model")
    commits = write_repositories(folder / "repositories")

    with serve(folder / "repositories") as hub:
        hub.gated = {"Org/Gated"}
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=environment(folder / "hf", HF_ENDPOINT=hub.endpoint),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def run(name: str) -> list:
            process.stdin.write(json.dumps(CASES[name][:2]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        with process:
            ends = {name: run(name) for name in CASES}
            hub.close()
            gone = run("newest")
            process.stdin.close()
    return ends, commits, hub, gone


def test_each_failure_names_its_cause(ended: tuple) -> None:
    for name, (_, _, words) in CASES.items():
        code, out, errors = ended[0][name]
        assert (code, bool(out)) == ((2, False) if words else (0, True)), (name, errors)
        assert words in errors and (not words or errors.splitlines()[-1].startswith("error: ")), (name, errors)
    assert "'nothing'" in ended[0]["unknown"][2] and MEMBER not in str(ended[0])
    code, _, errors = ended[3]
    assert code == 2 and "config.json of Org/Tiny-0.1B cannot be fetched: the Hugging Face hub cannot be re" in errors


def test_the_block_has_the_commit_and_the_sizes(ended: tuple) -> None:
    ends, commits, *_ = ended
    source = {"kind": "hub", "repo": "Org/Tiny-0.1B", "revision": commits["newest"], "shape": SHAPE}
    model = {"title": "Tiny-0.1B", "dtype": "bfloat16", "source": source}
    assert yaml.safe_load(ends["newest"][1]) == {"models": {"tiny-0.1b": model}, "tile": 32}
    older = yaml.safe_load(ends["tag"][1])["models"]["older"]["source"]
    assert older == source | {"revision": commits["tag"], "shape": SHAPE | {"head_dim": 24}}


def test_nothing_but_the_configuration_is_fetched(ended: tuple) -> None:
    paths = {one.path.rpartition("/")[2] for one in ended[2].requests if "/resolve" in one.path or "/cdn/" in one.path}
    assert paths == {"config.json"}
