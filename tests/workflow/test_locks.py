"""Consistency of pyproject.toml, the locks, constraints.txt and environment.yml."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from locks import derive

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
CONDA = [entry for entry in ENVIRONMENT["dependencies"] if isinstance(entry, str)]
PIP = [line for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict) for line in entry["pip"]]

# Extras in the lock; `gemma` contains `gguf`, and `watch` contradicts it.
LOCKED = ("test", "docs", "serving", "gemma", "dev")


def pins(name: str) -> dict[str, Requirement]:
    lines = (line.rstrip("\\\n") for line in (ROOT / name).open() if re.match(r"[\w.-]+==", line))
    requirements = [Requirement(line) for line in lines]
    named = {canonicalize_name(requirement.name): requirement for requirement in requirements}
    assert len(named) == len(requirements), "a package is pinned twice"
    return named


def version(pin: Requirement) -> Version:
    [specifier] = pin.specifier
    assert specifier.operator == "==" and pin.url is None, f"{pin} is not an exact version"
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


@pytest.mark.parametrize("requirement", dependencies(*LOCKED), ids=str)
def test_each_range_contains_the_locked_version(requirement):
    assert requirement.specifier, "give a range"
    assert version(pins("locks/cuda.txt")[canonicalize_name(requirement.name)]) in requirement.specifier


def test_the_lock_is_that_of_the_stated_dependencies():
    asked = {name for name, (_, parents) in derive.read_lock().items() if derive.PROJECT in parents}
    assert asked == {canonicalize_name(requirement.name) for requirement in dependencies(*LOCKED)}


def test_each_version_of_the_lock_is_exact_and_has_hashes():
    text = derive.LOCK.read_text()
    assert len(derive.read_lock()) == len(re.findall("^[a-z0-9]", text, re.MULTILINE)) > 100
    assert all(version(pin) for pin in pins("locks/cuda.txt").values())


def test_derived_files_are_in_step_with_the_lock():
    changed = [path for path, text in derive.derive().items() if (ROOT / path).read_text() != text]
    assert not changed, "run `make lock`"


def test_the_locks_differ_by_what_is_cudas():
    cpu, cuda = pins("locks/cpu.txt"), pins("locks/cuda.txt")
    assert {"torch", "triton", "sympy"} < cpu.keys() < cuda.keys()
    assert all(name.startswith(("nvidia-", "cuda-")) for name in cuda.keys() - cpu.keys())
    assert all(cuda[name] == pin for name, pin in cpu.items())


def test_constraints_leave_the_build_of_pytorch_open():
    cpu, constraints = pins("locks/cpu.txt"), pins("constraints.txt")
    assert cpu.keys() - constraints.keys() == {"torch", "triton", "sympy", "mpmath", "networkx"}
    assert {name: version(pin) for name, pin in constraints.items()}.items() < {
        name: version(pin) for name, pin in cpu.items()
    }.items()


def test_a_dependency_is_stated_once():
    names = [canonicalize_name(requirement.name) for requirement in dependencies("test", "docs", "dev")]
    assert len(names) == len(set(names))


def test_the_executor_alone_asks_for_the_same_versions():
    alone = tomllib.loads((ROOT / "workflow/executor/pyproject.toml").read_text())["project"]["dependencies"]
    assert {str(Requirement(line)) for line in alone} < set(map(str, dependencies()))
