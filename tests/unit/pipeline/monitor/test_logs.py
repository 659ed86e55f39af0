"""Logs are where the rules put them: against the dry run of the demo."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from patch.pipeline.config.load import DEFAULT_CONFIG, load_experiment
from patch.pipeline.monitor.logs import rule_log
from patch.pipeline.resources.graph import JobGraph
from patch.pipeline.runs.plan import Plan

ROOT = Path(__file__).parents[4]


def test_logs_are_those_of_the_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Snakefile", "workflow", "config", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    pattern = r"^(?:local)?rule (?P<rule>\w+):\n(?:    .*\n)*?    output: (.*)\n    log: (.*)\n"
    printed = {
        (rule, frozenset(outputs.split(", "))): log
        for rule, outputs, log in re.findall(pattern, run.stdout + run.stderr, flags=re.MULTILINE)
    }
    monkeypatch.chdir(tmp_path)
    plan = Plan(load_experiment(DEFAULT_CONFIG))
    nodes = JobGraph(plan).nodes
    assert printed == {(node.rule, frozenset(node.outputs)): rule_log(node, plan.layout.root) for node in nodes}
