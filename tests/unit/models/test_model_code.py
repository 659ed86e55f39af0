"""Tests that a model's own code never runs, for any input on stdin."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from patch.errors import InputError
from patch.files.io import json_checksum
from patch.models.loading import load_model, load_skeleton

ROOT = Path(__file__).parents[3]
# Functions and classes that could run code of a model or a data set.
READERS = {"from_pretrained", "from_config", "load_dataset", "AlignedLM", "HFLM"}
# Classes that never run code of a model.
PLAIN = {"GenerationConfig"}
LOAD = """
import sys
from patch.errors import InputError
from patch.models.loading import load_model, load_skeleton, load_tokenizer

for load in (load_model, load_skeleton, load_tokenizer):
    try:
        load(sys.argv[1])
    except InputError as error:
        print(f"{load.__name__}: {error}")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a model type that only its own module defines; importing the module creates a file."""
    folder = tmp_path / "model"
    folder.mkdir()
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    tokenizer = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    return folder


def answer_yes(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with `yes` on stdin."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder.parent / "hf")}
    environment.pop("PATCH_WARM_SOCKET", None)
    return subprocess.run(
        [sys.executable, *arguments], input="yes\n" * 99, env=environment, capture_output=True, text=True, cwd=ROOT
    )


def test_no_code_of_a_model_runs_when_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    ended = answer_yes(folder, "-c", LOAD, str(folder))
    assert not (tmp_path / "executed").exists()
    assert ended.returncode == 0, ended.stderr
    for line, name in zip(ended.stdout.splitlines(), ("load_model", "load_skeleton", "load_tokenizer"), strict=True):
        assert line.startswith(f"{name}: ") and str(folder) in line
        assert "needs its own code, which this software never runs" in line


def test_a_model_with_code_is_not_fetched(folder: Path, tmp_path: Path) -> None:
    settings = {"upstream": "", "source": {"kind": "local", "path": str(folder)}}
    file = tmp_path / f"fetch_model-{json_checksum(settings)[:16]}.json"
    file.write_text(json.dumps(settings))
    ended = answer_yes(
        folder, "-m", "patch.pipeline.stages", "fetch_model", "--settings", str(file), "--out", f"{tmp_path}/out"
    )
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()
    assert ended.returncode == 2 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ") and "needs its own code, which this software never runs" in line


@pytest.mark.parametrize("path", sorted((ROOT / "patch").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_reader_disables_remote_code(path: Path) -> None:
    for call in ast.walk(ast.parse(path.read_text())):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", None))
        owner = getattr(getattr(call.func, "value", None), "id", None)
        flags = [key.value for key in call.keywords if key.arg == "trust_remote_code"]
        if name in READERS and owner not in PLAIN or flags:
            trusted = [getattr(flag, "value", None) for flag in flags]
            assert trusted == [False], f"{path}:{call.lineno}: {name}(...) without `trust_remote_code=False`"


def test_a_configuration_cannot_name_a_kernel_of_a_hub(tiny_model: Callable, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"attn_implementation": "owner/kernel"}))
    for load in (load_model, load_skeleton):
        with pytest.raises(InputError, match=r"config.json names the attention kernel 'owner/kernel': .* never runs"):
            load(tmp_path)
