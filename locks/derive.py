"""Derivation of `locks/cpu.txt`, `constraints.txt` and `environment.yml` from `locks/cuda.txt`: `make lock`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = Path(__file__).with_name("cuda.txt")
PROJECT = "patch-sparsity"
# Packages of CUDA, which PyTorch's builds for the CPU do not ask for.
CUDA = re.compile(r"(nvidia|cuda)-.*")
# Their versions depend on the machine's GPU, and those of what only they ask for depend on theirs.
GPU = re.compile(r"torch|triton|(nvidia|cuda)-.*")

CPU_HEADER = """\
# Exact versions of the whole environment with PyTorch's build for the CPU. Made by `make lock` from cuda.txt.
#   pip install --no-deps --extra-index-url https://download.pytorch.org/whl/cpu -r locks/cpu.txt
# cuda.txt has the hashes: one file cannot list those of a build that is not on the package index.
"""
CONSTRAINTS_HEADER = """\
# Exact versions for `pip install -c`, for any build of PyTorch: torch, triton and what only they ask for are missing,
# since their versions depend on the machine's GPU. Made by `make lock` from locks/cuda.txt.
"""
ENVIRONMENT = """\
# conda env create -f environment.yml && conda activate patch
# Made by `make lock`. Versions are set only in pyproject.toml (ranges) and locks/cuda.txt (exact).
name: patch
channels:
  - conda-forge
dependencies:
  - python={python}
  - pip
  - pip:
      - -c constraints.txt
      - -e .
"""


def read_lock(path: Path = LOCK) -> dict[str, tuple[str, set[str]]]:
    """Return the packages of uv's output: name -> (`name==version ; marker`, the names of those that ask for it)."""
    entry = re.compile(r"^([a-z0-9.-]+)(==[^\\\n]*?) *\\\n(?:    --hash=.*\n)+(?:    # via (.*)\n)?", re.MULTILINE)
    packages = {}
    for name, version, parents in entry.findall(path.read_text()):
        packages[name] = (name + version, {parent.split(" ")[0] for parent in parents.split(", ") if parent})
    return packages


def depending_on_the_gpu(packages: dict[str, tuple[str, set[str]]]) -> set[str]:
    """Return the packages of PyTorch's build, and those that no other package asks for."""
    found = {name for name in packages if GPU.fullmatch(name)}
    while more := {name for name, (_, parents) in packages.items() if parents and parents <= found} - found:
        found |= more
    return found


def derive() -> dict[str, str]:
    """Return the contents of the derived files by their paths in the repository."""
    packages = read_lock()
    open_versions = depending_on_the_gpu(packages)
    cpu = "".join(f"{line}\n" for name, (line, _) in packages.items() if not CUDA.fullmatch(name))
    pins = [line.partition(" ;")[0] for name, (line, _) in packages.items() if name not in open_versions]
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    return {
        "locks/cpu.txt": CPU_HEADER + cpu,
        "constraints.txt": CONSTRAINTS_HEADER + "".join(f"{pin}\n" for pin in pins),
        "environment.yml": ENVIRONMENT.format(python=python),
    }


if __name__ == "__main__":
    for path, text in derive().items():
        # An unchanged constraints.txt keeps its time, so that `make` installs nothing.
        if (ROOT / path).read_text() != text:
            (ROOT / path).write_text(text)
