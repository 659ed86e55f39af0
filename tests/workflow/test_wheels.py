"""Wheels of the project and of the executor: built, and installed in fresh environments without this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import patch

ROOT = Path(__file__).parents[2]
PLUGIN = "snakemake_executor_plugin_submitit"


def run(command: list[str | Path], folder: Path) -> str:
    """Run a command that sees neither this repository nor the environment of the tests."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "SNAKEMAKE_PROFILE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PATH"] = os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]])
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def install(source: Path, folder: Path) -> tuple[Path, Path]:
    """Build a wheel and install it in a new environment; return the wheel and the environment's interpreter."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "environment", symlinks=True)
    python = folder / "environment/bin/python"
    # Dependencies come from the environment of the tests. Editable installs in it stay invisible: a path in a `.pth`
    # file is not searched for further `.pth` files.
    (packages,) = (folder / "environment").glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    run([*pip, "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed", wheel], folder)
    return wheel, python


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the wheel of the project and the interpreter of an environment with it."""
    return install(ROOT, tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the wheel of the executor and the interpreter of an environment with it."""
    return install(ROOT / "workflow/executor", tmp_path_factory.mktemp("executor"))


def test_the_projects_wheel_has_every_file_of_its_packages(project: tuple[Path, Path]) -> None:
    tracked = subprocess.run(["git", "ls-files", "patch", "slim_local"], cwd=ROOT, capture_output=True, text=True)
    assert tracked.returncode == 0, tracked.stderr
    assert set(tracked.stdout.splitlines()) <= set(zipfile.ZipFile(project[0]).namelist())


def test_the_projects_wheel_plans_the_demo_from_a_copy_of_the_workflow(
    project: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in ("workflow/rules", "workflow/report", "workflow/tasks", "config", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, tmp_path)
    _, python = project
    assert "environment" in run([python, "-c", "import patch; print(patch.__file__)"], tmp_path)
    # With the executor, which this wheel contains too.
    options = ["--profile", "profiles/slurm", "--configfile", "config/demo.yaml"]
    assert "train_model" in run([python, "-m", "snakemake", "-n", "--quiet", "rules", *options], tmp_path)


def test_the_executors_wheel_is_a_plugin_of_snakemake(executor: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, python = executor
    (tmp_path / "Snakefile").write_text('rule a:\n    output: "a.txt"\n    shell: "touch {output}"\n')
    about = f"import {PLUGIN} as plugin, importlib.metadata as m; print(plugin.__file__, m.version('{PLUGIN}'))"
    place, version = run([python, "-c", about], tmp_path).split()
    assert "environment" in place and f"-{version}-" in wheel.name
    options = ["--executor", "submitit", "--jobs", "2", "--submitit-signal-delay", "60"]
    assert "Job stats" in run([python, "-m", "snakemake", "-n", *options], tmp_path)


def test_the_executors_wheel_can_be_published(executor: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(executor[0]) as wheel:
        top = {name.partition("/")[0] for name in wheel.namelist()}
        (metadata,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
        licences = [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]
    assert {name for name in top if not name.endswith(".dist-info")} == {PLUGIN}
    assert "License-Expression: MIT" in metadata and licences
    # Relative links lead nowhere on a package index.
    assert "](../" not in metadata and patch.__name__ not in top
