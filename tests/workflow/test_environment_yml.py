"""Consistency of environment.yml, pyproject.toml and constraints.txt."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
CONDA = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)]
PIP = [line for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict) for line in entry["pip"]]

# Packages that must not be pinned, since their build depends on the machine's GPU.
GPU = re.compile(r"torch.*|triton.*|nvidia-.*|cuda-.*")


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pins = {canonicalize_name(requirement.name): requirement for requirement in requirements}
    assert len(pins) == len(requirements), "a package is pinned twice"
    return pins


def version(pin: Requirement) -> Version:
    [specifier] = pin.specifier
    assert specifier.operator == "==" and pin.url is None and pin.marker is None, f"{pin} is not an exact version"
    return Version(specifier.version)


def dependencies(*extras: str) -> list[Requirement]:
    optional = PROJECT["optional-dependencies"]
    return [Requirement(line) for line in sum((optional[extra] for extra in extras), PROJECT["dependencies"])]


def test_conda_brings_python_and_pip_and_pip_brings_the_project():
    assert ENVIRONMENT["name"] == "patch"
    assert ENVIRONMENT["channels"] == ["conda-forge"]
    assert CONDA == ["python=3.11", "pip"]
    assert PIP == ["-c constraints.txt", "-e ."]


def test_the_environments_python_is_one_that_the_project_runs_on():
    python = next(entry.partition("=")[2] for entry in CONDA if entry.startswith("python="))
    assert python in SpecifierSet(PROJECT["requires-python"])


def test_the_distribution_is_not_called_patch():
    assert canonicalize_name(PROJECT["name"]) == "patch-sparsity"
    assert "patch" not in PROJECT.get("scripts", {})


@pytest.mark.parametrize("requirement", dependencies("test", "docs"), ids=str)
def test_each_range_contains_the_pinned_version(requirement):
    assert requirement.specifier, "give a range"
    if not GPU.fullmatch(requirement.name):
        assert version(constraints()[canonicalize_name(requirement.name)]) in requirement.specifier


def test_a_dependency_is_stated_once():
    names = [canonicalize_name(requirement.name) for requirement in dependencies("gguf", "test", "docs")]
    assert len(names) == len(set(names))


def test_what_depends_on_the_gpu_is_not_pinned():
    pins = constraints()
    assert all(version(pin) for pin in pins.values())
    assert not [name for name in pins if GPU.fullmatch(name)]


def test_the_executor_alone_asks_for_the_same_versions():
    alone = tomllib.loads((ROOT / "workflow/executor/pyproject.toml").read_text())["project"]["dependencies"]
    assert {str(Requirement(line)) for line in alone} < set(map(str, dependencies()))
