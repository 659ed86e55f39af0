"""Faults in a configuration that Snakemake's own parser accepts are refused."""

import re
from pathlib import Path

import pytest

from .test_dry_runs import ROOT, snakemake

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
FAULTS = {
    "same-key": ("tile: 8\n", r"mine.yaml, line \d+: the key `tile` appears twice"),
    "bomb": (BOMB, "mine.yaml, line .*more than .* values"),
    "huge": (f"seeds: [{10**400}]\n", "mine.yaml, line .*the key `seeds`|`seeds.0` is an integer of"),
    "template": ("__use_yte__: true\n", "mine.yaml.*`__use_yte__`"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_snakemake_takes(fault: str, tmp_path: Path) -> None:
    text, message = FAULTS[fault]
    (tmp_path / "mine.yaml").write_text((ROOT / "config/demo.yaml").read_text() + text)
    run = snakemake(tmp_path, "-n", "--quiet", "--configfile", "mine.yaml")
    output = run.stdout + run.stderr
    assert run.returncode == 1 and "Traceback" not in output, output
    assert re.search(message, output), output
