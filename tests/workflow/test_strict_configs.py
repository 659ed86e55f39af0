"""Faults in a configuration that Snakemake's own parser accepts, and unknown targets, are refused in one sentence."""

import re
from pathlib import Path

import pytest

from .test_dry_runs import ROOT, snakemake

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
FAULTS = {
    "same-key": ("tile: 8\n", r"mine.yaml, line \d+: the key `tile` appears twice"),
    "bomb": (BOMB, "mine.yaml, line .*more than .* values"),
    "huge": (f"seeds: [{10**400}]\n", "mine.yaml, line .*the key `seeds`|`seeds.0` is an integer of"),
    "import": (
        "extends: config/demo.yaml\ngrid: [{methods: [import]}]\n"
        "imports: {a: {model: qwen, method: maskllm, source: {kind: file, path: none.npz}}}\n",
        "^error: `imports.a.source.path` is 'none.npz': no such file$",
    ),
    "template": ("__use_yte__: true\n", "mine.yaml.*`__use_yte__`"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_snakemake_takes(fault: str, tmp_path: Path) -> None:
    text, message = FAULTS[fault]
    base = "" if text.startswith("extends") else (ROOT / "config/demo.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(base + text)
    run = snakemake(tmp_path, "-n", "--quiet", "--configfile", "mine.yaml")
    output = run.stdout + run.stderr
    assert run.returncode == 1 and "Traceback" not in output, output
    assert re.search(message, output, re.MULTILINE), output
    assert re.search("^error: ", output, re.MULTILINE) and 'File "' not in output, output


def test_a_target_that_does_not_exist(tmp_path: Path) -> None:
    run = snakemake(tmp_path, "-n", "results/demo/export/qwen/patch-joint_hybrid_0.40_t16_s0")
    lines = (run.stdout + run.stderr).splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("error: no rule makes results/demo/"))
    assert run.returncode == 1 and lines[first + 1].strip().startswith("results/demo/export/qwen/patch-joint_hybrid_0.")
