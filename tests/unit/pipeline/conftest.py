"""Fixture: a folder with the workflow and a small configuration, whose outputs can be fabricated."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml

from patch.pipeline.cli.workflow import read_graph
from patch.pipeline.resources.jobs import Job, JobGraph

ROOT = Path(__file__).parents[3]


class Project:
    """A project folder; ``raw`` is the configuration, which every call of `graph` writes anew."""

    def __init__(self, folder: Path, raw: dict[str, Any]) -> None:
        self.folder, self.raw, self.configfile = folder, raw, folder / "tiny.yaml"
        # Modification time of all fabricated outputs, so that none is newer than another.
        self._made = time.time()

    def write(self) -> None:
        self.configfile.write_text(yaml.safe_dump(self.raw))

    def graph(self, *changes: str) -> JobGraph:
        self.write()
        return read_graph(Namespace(configfile=[str(self.configfile)], config=list(changes)))

    def make(self, *jobs: Job) -> None:
        """Fabricate the outputs of jobs and of all that they need."""
        for job in jobs:
            self.make(*job.needs)
            for path in map(Path, job.outputs):
                path.parent.mkdir(parents=True, exist_ok=True)
                folder = job.rule in ("fetch_corpus", "make_tokenizer", "make_tasks", "fetch_model", "train_model")
                path.mkdir(exist_ok=True) if folder else path.touch()
                os.utime(path, (self._made, self._made))

    def finish(self, graph: JobGraph) -> None:
        """Fabricate the outputs of all jobs."""
        self.make(*graph.jobs)
        for path in (path for job in graph.jobs if job.temporary for path in job.outputs):
            Path(path).unlink()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw_config: dict[str, Any]) -> Project:
    """Return a project in the current folder; fabricated outputs count as made with its settings."""
    for name in ("Snakefile", "workflow", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    raw_config["published"] = str(ROOT / "config/published.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("patch.pipeline.runs.stale.stale_outputs", lambda plan: [])
    return Project(tmp_path, raw_config)


def find(graph: JobGraph, rule: str, name: str = "") -> Job:
    """Return the first job of a rule with ``name`` in `<model>/<name>`."""
    return next(job for job in graph.jobs if job.rule == rule and name in f"{job.model}/{job.name}")
