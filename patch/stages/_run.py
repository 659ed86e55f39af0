"""Run a stage in this process.

A stage is a module with a function `run(spec, *, name: Path, ...)`. Its settings and inputs come from a job file, its
outputs and the rest from options of the command line, which are named like the function's keyword arguments.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import pkgutil
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import patch.stages
from patch.errors import InputError
from patch.job_files import JobFile, read_job_file
from patch.launch import is_launched, launch, report_end
from patch.signals import EXIT_RESUMABLE, hold_signals, ignore_signals

SETTINGS = "settings"


def stage_names() -> list[str]:
    """Names of all stages."""
    return sorted(
        module.name for module in pkgutil.iter_modules(patch.stages.__path__) if not module.name.startswith("_")
    )


def _parameters(run: typing.Callable) -> dict[str, inspect.Parameter]:
    """The parameters of a stage that are not its settings."""
    parameters = dict(inspect.signature(run).parameters)
    del parameters["spec"]
    return parameters


def _parser(stage: str, run: typing.Callable) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m patch.stages {stage}", description=inspect.getdoc(run))
    about = "job file with the settings and inputs, which a workflow writes to work/jobs/ when it starts"
    parser.add_argument(f"--{SETTINGS}", required=True, type=Path, metavar="FILE", help=about)
    for name, parameter in _parameters(run).items():
        option = _option(name)
        if parameter.annotation in ("int", int):
            parser.add_argument(option, type=_positive, metavar="NUMBER")
        elif parameter.annotation in ("str", str):
            parser.add_argument(option, metavar="TEXT")
        else:
            parser.add_argument(option, type=Path, nargs="*" if _is_list(parameter) else None, metavar="PATH")
    return parser


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _is_list(parameter: inspect.Parameter) -> bool:
    return "list" in str(parameter.annotation)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def run_stage(arguments: Sequence[str]) -> int:
    """Run one stage, in several processes if it has `--processes` or `--nodes`; a user's mistake is one message and 2.

    SIGUSR1 and SIGUSR2 wait until the stage can save what it has done.
    """
    hold_signals()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return _run_stage(*arguments)
    except InputError as error:
        if not report_end(2, str(error)):
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except SystemExit as stop:
        if stop.code == EXIT_RESUMABLE:
            ignore_signals()
            # A process that fails is the end of the others, on other nodes too: all of them leave in peace.
            if report_end(EXIT_RESUMABLE):
                return 0
        raise


def _run_stage(stage: str, *arguments: str) -> int:
    from patch.config.load import validate  # late: with the libraries of a configuration

    run = importlib.import_module(f"patch.stages.{stage}").run
    parser = _parser(stage, run)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    file = given.pop(SETTINGS)
    job = read_job_file(file)
    if job.stage != stage:
        raise InputError(f"{file} is a job of the stage `{job.stage}`, not of `{stage}`")
    parameters = _parameters(run)
    options = _inputs(file, job, parameters) | given
    required = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    if missing := [_option(name) for name in required if name not in options]:
        parser.error(f"missing, in the job file and on the command line: {', '.join(missing)}")
    spec = validate(typing.get_type_hints(run)["spec"], job.settings, where=SETTINGS)
    processes, nodes = options.get("processes", 1), options.get("nodes", 1)
    if processes * nodes > 1 and not is_launched():
        return launch([stage, *arguments], processes, nodes)
    run(spec, **options)
    return 0


def _inputs(file: Path, job: JobFile, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The inputs of a job file as arguments of the stage.

    Raises:
        InputError: the stage has no such input, or takes one path instead of several.
    """
    found: dict[str, Any] = {}
    for name, value in job.inputs.items():
        several = isinstance(value, list)
        if name not in parameters or several != _is_list(parameters[name]):
            raise InputError(f"{file}: `inputs.{name}` is {value!r}, which the stage `{job.stage}` does not read")
        found[name] = [Path(path) for path in value] if several else Path(value)
    return found
