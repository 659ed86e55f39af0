"""Fixtures: stand-ins of the paper's repositories, a hub that serves them, and runs of Snakemake against a hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from patch.pipeline.config.experiment import Experiment
from patch.pipeline.config.load import load_experiment

from ..stage_server import stage_server
from .server import Hub, serve
from .stand_ins import write_repositories

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def paper() -> Experiment:
    """Return the paper's configuration."""
    return load_experiment(ROOT / "config/paper.yaml")


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory, paper: Experiment) -> tuple[Path, set[str]]:
    """Return the folder of the stand-ins of the paper's repositories, and the ids of the gated ones."""
    root = tmp_path_factory.mktemp("repositories")
    return root, write_repositories(root, paper)


@pytest.fixture
def hub(repositories: tuple[Path, set[str]], tmp_path: Path) -> Iterator[Hub]:
    """Serve a copy of the stand-ins, which a test may change."""
    root, gated = repositories
    shutil.copytree(root, tmp_path / "repositories", symlinks=True)
    with serve(tmp_path / "repositories") as hub:
        hub.gated = set(gated)
        yield hub


def environment(home: Path, **variables: str) -> dict[str, str]:
    """Return the variables of this process, but for those of the hub's libraries, which use an empty folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE", "PATCH_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost"}
    return kept | own | variables


@pytest.fixture
def snakemake(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs Snakemake in an empty folder with the repository's files and a cache of its own."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("Snakefile", "workflow", "config", "profiles"):
        (folder / name).symlink_to(ROOT / name)

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
        variables = environment(folder / "hf", **variables)
        options = {"cwd": folder, "capture_output": True, "text": True, "timeout": 1200}
        if "HF_HUB_OFFLINE" not in variables:
            return subprocess.run(command, env=variables, **options)
        with stage_server(variables) as variables:
            return subprocess.run(command, env=variables, **options)

    return run
