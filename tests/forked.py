"""Programs in a fork of the test process, which has imported most of what they import."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, NoReturn

from patch.__main__ import main as patch_main
from patch.evaluation.task_index import built_in_tasks

# What Snakemake, and the Snakefile, import when they plan.
PRELOADED = (
    "snakemake.cli",
    "snakemake.report",
    "snakemake.workflow",
    "smart_open",
    "patch.pipeline.cli.preflight",
    "patch.pipeline.reporting.experiment",
    "patch.pipeline.resources.forecast",
    "patch.pipeline.stages.server",
)


def run_patch(folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    """Run `python -m patch` with its modules as they are imported: not for variables that are read at an import."""
    return run(["patch", *arguments], lambda: patch_main(arguments), folder, environment)


def run_snakemake(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `python -m snakemake`; its jobs are processes of their own."""
    main = _snakemake()
    return run(["snakemake", *arguments], lambda: main(list(arguments)), folder, environment)


@cache
def _snakemake() -> Callable[[list[str]], int | None]:
    """Return the program, after what each run would import, and read, once again."""
    for name in PRELOADED:
        import_module(name)
    built_in_tasks()
    return import_module("snakemake.cli").main


def run(
    command: list[str], main: Callable[[], int | None], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder; ``command`` is its ``sys.argv``."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if not pid:
            _become(command, main, folder, environment, (out, err))
        _, status = os.waitpid(pid, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), *texts)


def _become(
    command: list[str],
    main: Callable[[], int | None],
    folder: Path,
    environment: Mapping[str, str],
    streams: tuple[IO[str], IO[str]],
) -> NoReturn:
    """Run a program in this new process, which must never return to the tests."""
    code = 1
    # A collection here would copy the memory that this process shares with that of the tests.
    gc.freeze()
    try:
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        sys.argv, tempfile.tempdir = list(command), None
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        try:
            code = main() or 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - as an uncaught exception of a program
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
