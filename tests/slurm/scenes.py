"""Scenes of about a minute, which mostly wait: several run at the same time, each on its own cluster.

    @scene(50, SNAKEFILE)
    def preemption(project: Project) -> None:
        run = project.start()
        ...

    def test_a_preempted_job_runs_again(preemption: Project) -> None: ...

A scene is a fixture of its name, the project after the script has run. The first requested scene starts all scenes of
the selected tests, the longest ones first. Clusters and files remain until the session's end.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from .cluster import Cluster
from .harness import SECONDS, Project

# More would wait for a processor at their start, and some have a time limit of a minute.
AT_ONCE = 5

Script = Callable[[Project], object]
_scenes: dict[str, tuple[int, Script, str]] = {}
_started = pytest.StashKey[dict[str, "Future[Project]"]]()


def scene(seconds: int, snakefile: str) -> Callable[[Script], Any]:
    """Make a fixture of a script that runs on a project with this Snakefile for about this number of seconds."""

    def make(script: Script) -> Any:
        name = script.__name__
        _scenes[name] = (seconds, script, snakefile)

        # The fixture `cluster` ensures that SLURM is installed.
        @pytest.fixture(scope="module", name=name)
        def project(
            request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
        ) -> Project:
            stash = request.session.stash
            if _started not in stash:
                stash[_started] = _start(request.session, tmp_path_factory)
            return stash[_started][name].result()

        return project

    return make


def _start(session: pytest.Session, folders: pytest.TempPathFactory) -> dict[str, Future[Project]]:
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())} & _scenes.keys()
    pool, stack = ThreadPoolExecutor(AT_ONCE), ExitStack()
    session.addfinalizer(stack.close)
    futures = {}
    for name in sorted(wanted, key=lambda name: -_scenes[name][0]):
        _, script, snakefile = _scenes[name]
        cluster = stack.enter_context(Cluster())
        project = stack.enter_context(Project(cluster, folders.mktemp(name) / "project", snakefile))
        futures[name] = pool.submit(_play, script, project)
    return futures


def _play(script: Script, project: Project) -> Project:
    script(project)
    # Snakemake may see the end of a job before SLURM does.
    project.cluster.wait_idle(SECONDS)
    return project
