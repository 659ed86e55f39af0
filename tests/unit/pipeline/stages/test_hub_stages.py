"""Stages that access a hub report each error in one line without the token."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from patch.pipeline.stages.__main__ import ONLINE

ROOT = Path(__file__).parents[4]
SHAPE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
SHAPE |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 8}
HUB = {"kind": "hub", "repo": "owner/name", "revision": "0123456"}
SETTINGS: dict[str, dict[str, Any]] = {
    "fetch_corpus": {"corpus": {"source": HUB | {"splits": {"train": "train"}}}},
    "fetch_mask": {"source": HUB},
    "fetch_model": {"upstream": "", "source": HUB | {"shape": SHAPE}},
    "fetch_tasks": {"upstream": "", "tasks": ["piqa"], "include_path": None, "split": None, "samples": 10},
}
WHOLE = "hf_wholesecret"
# One process for all cases, since importing takes most of its time.
SCRIPT = """
import os, sys
from pathlib import Path
from patch.pipeline.stages.__main__ import main

stage, settings, folder = sys.argv[1:]

def run(where, token):
    if where == "file":
        Path(os.environ["HF_TOKEN_PATH"]).write_text(token)
    else:
        os.environ[where] = token
    print("code", main([stage, "--settings", settings, "--out", f"{folder}/out"]), flush=True)
    os.environ.pop(where, None)

if stage == "fetch_tasks":  # reading lm-eval's 14,000 task files once is enough
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager()
    lm_eval.tasks.TaskManager = lambda **_: manager

run("HF_TOKEN", "hf_firstpart\\x0bsecondpart")
run("HUGGING_FACE_HUB_TOKEN", "hf_firstpart secondpart")
run("file", "hf_firstpart\\xe9secondpart")
print("refused", flush=True)
run("HF_TOKEN", "hf_wholesecret")
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
run("HF_TOKEN", "hf_wholesecret")
"""


class Echo(BaseHTTPRequestHandler):
    """Answer every request with status 403 and an error message that holds the token."""

    seen: list[str]

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        authorization = self.headers.get("Authorization", "")
        self.seen.append(authorization)
        self.send_response(403)
        self.send_header("X-Error-Message", f"no access with {authorization}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    """Start a hub that refuses all requests and records their tokens."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Echo,), {"seen": []}))
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("stage", ONLINE)
def test_no_message_holds_a_token(stage: str, job_file: Callable, tmp_path: Path, hub: ThreadingHTTPServer) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE", "PATCH_"))}
    kept |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN_PATH": str(tmp_path / "token")}
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, stage, str(job_file(stage, SETTINGS[stage])), str(tmp_path)],
        env=kept | {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    said = ended.stdout + ended.stderr
    for piece in ("firstpart", "secondpart", "wholesecret"):
        assert piece not in said, said
    assert "Traceback" not in said, said
    assert ended.stdout.split() == [*["code", "2"] * 3, "refused", *["code", "2"] * 2], said
    *malformed, refused, offline = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    for line, source in zip(malformed, ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", f"{tmp_path}/token"), strict=True):
        assert f"cannot be fetched: the token in {source} holds a character that a token cannot have" in line
    # Malformed tokens were not sent anywhere; the whole one was, and came back in the hub's answer.
    assert set(hub.RequestHandlerClass.seen) - {""} == {f"Bearer {WHOLE}"}
    assert "cannot be fetched" in refused
    assert "cannot be fetched: the Hugging Face hub cannot be reached" in offline
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["fetch_mask", "fetch_model"])
def test_a_hub_that_cannot_be_reached(stage: str, job_file: Callable, tmp_path: Path) -> None:
    file = job_file(stage, SETTINGS[stage])
    ended = subprocess.run(
        [sys.executable, "-m", "patch.pipeline.stages", stage, "--settings", file, "--out", tmp_path / "out"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "owner/name" in line and "cannot be fetched: the Hugging Face hub cannot be reached" in line
