"""C++ sources of this package, compiled on first use by the machine's compiler and cached."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from patch.native.library_cache import Cache, default_folder

FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
# Headers that several sources include.
INCLUDE = Path(__file__).parent
# A function of the C library: Python lacks it where it was built for older systems.
MEMORY_FILE = "memfd_create"
CLOSE_ON_EXEC = 1
_loads = itertools.count(1)


class NoCompiler(Exception):
    """Error that no working C++ compiler was found for a source."""


@cache
def processor() -> frozenset[str]:
    """Return the processor's features as `/proc/cpuinfo` names them; on other systems its name alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return frozenset(next(line for line in lines if line.startswith(("flags", "Features"))).split())
    except (OSError, StopIteration):
        return frozenset([platform.processor() or platform.machine()])


def _run(*command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a compiler; its output is bytes, as its encoding is unknown."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:  # for example a program of another architecture
        return subprocess.CompletedProcess(command, 1, b"", str(error.strerror).encode())


def _name(source: Path, compiler: str, flags: tuple[str, ...]) -> str:
    """Return a library's file name, which depends on everything that the library is made from."""
    headers = sorted(header for folder in (source.parent, INCLUDE) for header in folder.glob("*.h"))
    texts = [file.read_bytes() for file in (source, *headers)]
    words = map(os.fsencode, (compiler, *flags, *sorted(processor())))
    made_of = b"\n".join([*texts, _run(compiler, "--version").stdout, *words])
    return f"{source.stem}-{hashlib.sha256(made_of).hexdigest()[:16]}.so"


def _compile(source: Path, compiler: str, flags: tuple[str, ...]) -> bytes:
    """Return the compiled library.

    Raises:
        NoCompiler: the compiler fails, or makes nothing.
    """
    with tempfile.TemporaryDirectory(prefix="patch-kernels-") as scratch:
        made = Path(scratch) / f"{source.stem}.so"
        run = _run(compiler, *flags, str(source), f"-I{INCLUDE}", "-o", str(made))
        if run.returncode == 0 and made.is_file():
            return made.read_bytes()
    if run.returncode == 0:
        raise NoCompiler("made no library")
    lines = run.stderr.decode(errors="replace").strip().splitlines() or ["failed"]
    raise NoCompiler(next((line for line in lines if "error" in line), lines[0]))


def _load(content: bytes) -> ctypes.CDLL:
    """Load a library from memory: the verified bytes are loaded, even if the file changes or is removed meanwhile."""
    create = getattr(ctypes.CDLL(None, use_errno=True), MEMORY_FILE, None)
    if create is None:
        raise OSError("only Linux loads libraries from memory")
    descriptor = create(b"patch-kernel", CLOSE_ON_EXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), MEMORY_FILE)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        # The loader treats equal paths as the same library, but descriptors are reused, so each path must differ.
        return ctypes.CDLL(f"/proc/self{'/.' * next(_loads)}/fd/{descriptor}")


def _prepare(source: Path, flags: tuple[str, ...]) -> tuple[Path, ctypes.CDLL]:
    """Return the library's file and the library, loaded; see `build`."""
    reasons, flags = [], (*FLAGS, *flags)
    for compiler in dict.fromkeys(filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))):
        path = shutil.which(compiler)
        if path is None:
            continue
        name = _name(source, path, flags)
        with Cache(default_folder()) as folder:
            kept = folder.read(name)
            try:
                made = kept or _compile(source, path, flags)
                loaded = _load(made)
            except (NoCompiler, OSError) as error:
                reasons.append(f"{compiler}: {error}")
                continue
            if kept is None:
                folder.keep(name, made)
            return folder.path / name, loaded
    raise NoCompiler("; ".join(reasons) or "no C++ compiler (c++, g++ or clang++)")


def build(source: Path, flags: tuple[str, ...] = ()) -> Path:
    """Return the library's file; compile it unless one of the same inputs is cached.

    The inputs are the source, headers, flags, compiler and processor.

    Raises:
        NoCompiler: none of `$CXX`, `c++`, `g++`, `clang++` makes a library that loads.
        OSError: the library cannot be cached.
        InputError: others can write the folder of cached libraries.
    """
    return _prepare(source, flags)[0]


def library(source: Path, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Return the library, loaded; otherwise like `build`."""
    return _prepare(source, flags)[1]
