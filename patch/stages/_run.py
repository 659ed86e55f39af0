"""Run a stage in this process.

A stage is a module with a function `run(spec, *, name: Path, ...)`; its options are the function's
keyword arguments, so that a rule's shell line reads like the call.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import pkgutil
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

import patch.stages
from patch.errors import InputError
from patch.launch import is_launched, launch, report_end
from patch.signals import EXIT_RESUMABLE, hold_signals, ignore_signals


def stage_names() -> list[str]:
    """Names of all stages."""
    return sorted(
        module.name for module in pkgutil.iter_modules(patch.stages.__path__) if not module.name.startswith("_")
    )


def _parser(stage: str, run: typing.Callable) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m patch.stages {stage}", description=inspect.getdoc(run))
    for name, parameter in inspect.signature(run).parameters.items():
        option = f"--{name.replace('_', '-')}"
        if name == "spec":
            parser.add_argument(option, required=True, metavar="JSON", help="the job's settings")
            continue
        required = parameter.default is inspect.Parameter.empty
        if parameter.annotation in ("int", int):
            parser.add_argument(option, required=required, type=_positive, metavar="NUMBER")
            continue
        if parameter.annotation in ("str", str):
            parser.add_argument(option, required=required, metavar="TEXT")
            continue
        several = "list" in str(parameter.annotation)
        parser.add_argument(option, required=required, type=Path, nargs="*" if several else None, metavar="PATH")
    return parser


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
    from patch.config.load import validate  # late: a stage that a server runs never needs it here

    run = importlib.import_module(f"patch.stages.{stage}").run
    options = {
        name: value for name, value in vars(_parser(stage, run).parse_args(arguments)).items() if value is not None
    }
    spec = validate(typing.get_type_hints(run)["spec"], _json(options.pop("spec")), where="spec")
    processes, nodes = options.get("processes", 1), options.get("nodes", 1)
    if processes * nodes > 1 and not is_launched():
        return launch([stage, *arguments], processes, nodes)
    run(spec, **options)
    return 0


def _json(text: str) -> dict:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--spec is not JSON: {error}") from None
