"""Execution of a stage.

A stage is a function `run_STAGE(settings, *, name: Path, ...)`. Job files provide its settings and inputs.
Options of the command line, named like the function's keyword arguments, provide its outputs and the other arguments.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patch.distributed.launch import is_launched, launch, report_end
from patch.distributed.signals import EXIT_RESUMABLE, hold_signals, ignore_signals
from patch.errors import InputError
from patch.pipeline.runs.job_files import read_inputs, read_settings
from patch.pipeline.stages import _progress
from patch.settings import validate

# Module -> its stages. A module is imported when one of its stages runs, since most modules import torch.
MODULES = {
    "fetch": ("fetch_corpus", "fetch_mask", "fetch_model", "fetch_tasks", "tasks", "tokenizer"),
    "train": ("train",),
    "sequences": ("sequences",),
    "self_test": ("self_test",),
    "prune": ("statistics", "prune", "update", "import_mask"),
    "learn": ("learn",),
    "finetune": ("finetune",),
    "quantize": ("quantize",),
    "export": ("export",),
    "evaluate": ("evaluate",),
    "speedup": ("speedup",),
    "tabulate": ("collect", "compare", "table", "overview", "summary"),
    "explore": ("explore",),
    "figures": ("pareto", "density", "curves", "speedup_figure"),
}
STAGES = {stage: module for module, stages in MODULES.items() for stage in stages}


def _parameters(run: typing.Callable) -> dict[str, inspect.Parameter]:
    """Return the parameters of a stage without its settings."""
    parameters = dict(inspect.signature(run).parameters)
    del parameters["settings"]
    return parameters


def _parser(stage: str, run: typing.Callable) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m patch.pipeline.stages {stage}", description=inspect.getdoc(run))
    about = "that `snakemake` writes to work/jobs/ when a run starts"
    parser.add_argument(
        "--settings", required=True, type=Path, metavar="FILE", help=f"job file with the settings, {about}"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="log of the job, beside which its progress is written")
    parser.add_argument("--inputs", type=Path, metavar="FILE", help=f"job file with inputs and options, {about}")
    for name, parameter in _parameters(run).items():
        option = _option(name)
        kind = _kind(parameter)
        if kind is int:
            parser.add_argument(option, type=_positive, metavar="NUMBER")
        else:
            several = "*" if _is_list(parameter) else None
            parser.add_argument(option, type=kind, nargs=several, metavar="PATH" if kind is Path else "TEXT")
    return parser


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _kind(parameter: inspect.Parameter) -> type[Path] | type[str] | type[int]:
    if parameter.annotation in ("int", int):
        return int
    return Path if "Path" in str(parameter.annotation) else str


def _is_list(parameter: inspect.Parameter) -> bool:
    return "list" in str(parameter.annotation)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def run_stage(arguments: Sequence[str]) -> int:
    """Run one stage and return the exit code, which is 2 for invalid input.

    With `--processes` or `--nodes` the stage runs in several processes. SIGUSR1 and SIGUSR2 are held until the stage
    can save its progress.
    """
    hold_signals()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = _run_stage(*arguments)
        _end("done" if code == 0 else "stopped" if code == EXIT_RESUMABLE else "failed", f"exit code {code}")
        return code
    except InputError as error:
        _end("failed", str(error))
        if not report_end(2, str(error)):
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except SystemExit as stop:
        _end("stopped" if stop.code == EXIT_RESUMABLE else "failed", f"exit code {stop.code}")
        if stop.code == EXIT_RESUMABLE:
            ignore_signals()
            # A failing process ends the others, on other nodes too, so each process exits with 0 after its report.
            if report_end(EXIT_RESUMABLE):
                return 0
        raise
    except BaseException as error:
        _end("stopped" if isinstance(error, KeyboardInterrupt) else "failed", f"{type(error).__name__}: {error}")
        raise


def _end(state: str, error: str) -> None:
    """Report how the job ends; of several processes, only the one that launched the others knows."""
    if not is_launched():
        _progress.report_end(state, error if state == "failed" else "")


def _run_stage(stage: str, *arguments: str) -> int:
    run = getattr(importlib.import_module(f"patch.pipeline.stages.{STAGES[stage]}"), f"run_{stage}")
    parser, parameters = _parser(stage, run), _parameters(run)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    log, first = given.pop("log", None), os.environ.get("RANK", "0") == "0"
    _progress.start_reports(log if first else None, begun=is_launched())
    content, inputs = read_settings(given.pop("settings"), stage), given.pop("inputs", None)
    options = (_inputs(inputs, parameters) if inputs else {}) | given
    required = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    if missing := [_option(name) for name in required if name not in options]:
        parser.error(f"neither among the inputs nor on the command line: {', '.join(missing)}")
    settings = validate(typing.get_type_hints(run)["settings"], content, where="settings")
    processes, nodes = options.get("processes", 1), options.get("nodes", 1)
    if processes * nodes > 1 and not is_launched():
        return launch([stage, *arguments], processes, nodes)
    run(settings, **options)
    return 0


def _inputs(file: Path, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the inputs and options in a job file as arguments of the stage.

    Raises:
        InputError: The stage has no such argument, or it takes one value in the place of a list or the reverse.
    """
    found: dict[str, Any] = {}
    for name, value in read_inputs(file).items():
        several = isinstance(value, list)
        if name not in parameters or several != _is_list(parameters[name]):
            raise InputError(f"{file}: `{name}` is {value!r}, which does not match the inputs of this stage")
        kind = _kind(parameters[name])
        found[name] = [kind(one) for one in value] if several else kind(value)
    return found
