"""GPU memory of mask learning for every model of a configuration: joint learning on 1 and 4 GPUs, and tile learning."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from patch.errors import InputError, print_result
from patch.learning.learning_settings import METHOD_DEFAULTS, Learning
from patch.models.shapes import Shape, model_shape
from patch.pipeline.cli.workflow import add_config_options, read_plan
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.reporting.units import aligned_lines
from patch.pipeline.resources.cost import BYTES, GPU_SLACK, learning_mb
from patch.settings import validate

DEFAULT_CONFIG = "config/paper.yaml"
GPUS = (1, 4)


def table(experiment: Experiment, gpus: Sequence[int] = GPUS) -> list[list[str]]:
    """Return the rows of the table, header first: GB of a learning step on each GPU, with a star if it does not fit.

    Each model is learned in its own dtype, with the configuration's micro-batch size and sequence length. A step fits
    if `GPU_SLACK` times its memory is at most `resources.gpu_memory_gb`, as in
    `patch.pipeline.resources.cost.too_large`.
    """
    rows = [["model", *(f"joint, {count}" for count in gpus), "tile, 1"]]
    for name, model in experiment.models.items():
        shape, size = model_shape(name, model), BYTES[model.dtype]
        needs = [_need(experiment, shape, "patch-joint", size, count) for count in gpus]
        needs.append(_need(experiment, shape, "patch-tile", size, 1))
        limit = experiment.resources.gpu_memory_gb
        runs = [f"{need:.0f}{'*' if GPU_SLACK * need > limit else ' '}" for need in needs]
        rows.append([model.title, *runs])
    return rows


def _need(experiment: Experiment, shape: Shape, method: str, size: int, gpus: int) -> float:
    """Return the memory of a learning step on each GPU, in GB."""
    settings = validate(Learning, METHOD_DEFAULTS[method] | experiment.learning.common, where="learning.common")
    tokens = settings.micro_batch_size * settings.seqlen
    checkpointed = settings.gradient_checkpointing
    return learning_mb(shape, method, size, tokens, checkpointed, "cuda", gpus) / 1000


def to_text(experiment: Experiment, gpus: Sequence[int] = GPUS) -> str:
    """Return the table as plain text with a heading and a note."""
    rows = table(experiment, gpus)
    lines = [
        *("GB on each GPU at the peak of a learning step, by number of GPUs:", ""),
        *(aligned_lines(rows)),
        "",
    ]
    limit = experiment.resources.gpu_memory_gb
    lines.append(f"*: does not fit in {limit:g} GB (`resources.gpu_memory_gb`) with a tenth to spare.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m patch memory` and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m patch memory", description=__doc__)
    add_config_options(parser, DEFAULT_CONFIG)
    parser.add_argument("--gpus", metavar="N", type=int, nargs="+", default=GPUS, help="GPUs that share joint learning")
    options = parser.parse_args(arguments)
    return print_result(lambda: _report(options))


def _report(options: argparse.Namespace) -> str:
    if min(options.gpus) < 1:
        raise InputError(f"--gpus is {min(options.gpus)}; it must be 1 or more")
    return to_text(read_plan(options).experiment, options.gpus)
