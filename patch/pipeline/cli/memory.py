"""GPU memory of mask learning for every model of a configuration, on one GPU and divided among several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from patch.errors import InputError, print_result
from patch.learning.learning_settings import Learning, method_defaults
from patch.models.shapes import model_shape
from patch.pipeline.cli.workflow import command_parser, read_plan
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.reporting.units import aligned_lines
from patch.pipeline.resources.cost import GPU_SLACK
from patch.pipeline.resources.memory import BYTES, learning_mb
from patch.settings import validate

DEFAULT_CONFIG = "config/paper.yaml"
GPUS = (1, 4)


def table(experiment: Experiment, gpus: Sequence[int] = GPUS) -> list[list[str]]:
    """Return the rows of the table, header first: GB of a learning step on each GPU, with a star if it does not fit.

    Each model is learned in its own dtype, with the configuration's micro-batch size and sequence length. A step fits
    if `GPU_SLACK` times its memory is at most that of a GPU, as in `patch.pipeline.resources.cost.too_large`.
    """
    learning = [*(("patch-joint", count) for count in gpus), ("patch-tile", 1)]
    learning += [("proxsparse", count) for count in gpus]
    rows = [["model", *(f"{method.removeprefix('patch-')}, {count}" for method, count in learning)]]
    for name, model in experiment.models.items():
        shape, row = model_shape(name, model), [model.title]
        for method, count in learning:
            defaults = method_defaults(method, experiment.learning.recipe)
            settings = validate(Learning, defaults | experiment.learning.common, "learning.common")
            tokens, checkpointed = settings.micro_batch_size * settings.seqlen, settings.gradient_checkpointing
            need = learning_mb(shape, method, BYTES[model.dtype], tokens, checkpointed, "cuda", count) / 1000
            row.append(f"{need:.0f}{'*' if GPU_SLACK * need > experiment.resources.memory_gb else ' '}")
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m patch memory` and return the exit code."""
    parser = command_parser("memory", __doc__, DEFAULT_CONFIG)
    about = "numbers of GPUs that share joint learning or ProxSparse (default: 1 4)"
    parser.add_argument("--gpus", metavar="N", type=int, nargs="+", default=GPUS, help=about)
    options = parser.parse_args(arguments)
    return print_result(lambda: _report(options))


def _report(options: argparse.Namespace) -> str:
    if min(options.gpus) < 1:
        raise InputError(f"--gpus is {min(options.gpus)}; it must be 1 or more")
    experiment = read_plan(options).experiment
    heading = "GB on each GPU at the peak of a learning step, by number of GPUs:"
    limit = f"{experiment.resources.memory_gb:g} GB (`resources.gpu`, `resources.gpu_memory_gb`)"
    note = f"*: does not fit in {limit} with a margin of one tenth."
    return "\n".join([heading, "", *aligned_lines(table(experiment, options.gpus)), "", note])
