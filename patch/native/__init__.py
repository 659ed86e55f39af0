"""C++ of this package, compiled on first use by the machine's compiler and kept for the next time."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
CACHE = "PATCH_KERNEL_CACHE"
# Of headers that several sources share.
INCLUDE = Path(__file__).parent


class NoCompiler(Exception):
    """There is none, or it does not know a source."""


def _folder() -> Path:
    chosen = os.environ.get(CACHE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patch-kernels"


@cache
def processor() -> frozenset[str]:
    """What the processor can do, in the words of `/proc/cpuinfo`; elsewhere its name alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return frozenset(next(line for line in lines if line.startswith(("flags", "Features"))).split())
    except (OSError, StopIteration):
        return frozenset([platform.processor() or platform.machine()])


def build(source: Path, flags: tuple[str, ...] = (), folder: Path | None = None) -> Path:
    """The library, compiled if it is not there for this source, its headers, flags, compiler and processor.

    Raises:
        NoCompiler: none of `$CXX`, `c++`, `g++`, `clang++` compiles the source.
    """
    reasons, flags = [], (*FLAGS, *flags)
    headers = sorted(header for folder in (source.parent, INCLUDE) for header in folder.glob("*.h"))
    for compiler in dict.fromkeys(filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))):
        path = shutil.which(compiler)
        if path is None:
            continue
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        texts = [file.read_text() for file in (source, *headers)]
        made_of = "\n".join([*texts, path, version, *flags, *sorted(processor())])
        library = (folder or _folder()) / f"{source.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
        if library.exists():
            return library
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            made = Path(scratch) / library.name
            run = subprocess.run(
                [path, *flags, str(source), f"-I{INCLUDE}", "-o", str(made)],
                capture_output=True,
                text=True,
                check=False,
            )
            if run.returncode == 0:
                made.replace(library)  # at once: other processes may build it too
                return library
        said = run.stderr.strip().splitlines() or ["failed"]
        reasons.append(f"{compiler}: {next((line for line in said if 'error' in line), said[0])}")
    raise NoCompiler("; ".join(reasons) or "no C++ compiler (c++, g++ or clang++)")


def library(source: Path, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The library, loaded.

    Raises:
        NoCompiler, OSError: it cannot be built, kept or read.
    """
    return ctypes.CDLL(str(build(source, flags)))
