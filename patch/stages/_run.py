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
        several = "list" in str(parameter.annotation)
        required = parameter.default is inspect.Parameter.empty
        parser.add_argument(option, required=required, type=Path, nargs="*" if several else None, metavar="PATH")
    return parser


def run_stage(arguments: Sequence[str]) -> int:
    """Run one stage; a user's mistake prints one message and gives 2."""
    from patch.config.load import validate  # late: a stage that a server runs never needs it here

    stage = arguments[0]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        run = importlib.import_module(f"patch.stages.{stage}").run
        options = vars(_parser(stage, run).parse_args(arguments[1:]))
        spec = validate(typing.get_type_hints(run)["spec"], _json(options.pop("spec")), where="spec")
        run(spec, **{name: value for name, value in options.items() if value is not None})
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def _json(text: str) -> dict:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--spec is not JSON: {error}") from None
