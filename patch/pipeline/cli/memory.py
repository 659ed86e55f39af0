"""GPU memory of mask learning and one-shot pruning for each model of a configuration, and exchanges between GPUs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from patch.errors import InputError, print_result
from patch.learning.learning_settings import Learning, method_defaults
from patch.models.shapes import model_shape
from patch.pipeline.cli.workflow import command_parser, read_plan
from patch.pipeline.config.experiment import Experiment, Resources
from patch.pipeline.config.gpus import GPUS as PRESETS
from patch.pipeline.config.gpus import INFINIBAND_GB_S
from patch.pipeline.reporting.units import aligned_lines
from patch.pipeline.resources.cost import EFFICIENCY
from patch.pipeline.resources.memory import BYTES, GPU_SLACK, pruning_mb
from patch.pipeline.resources.sharding import learning_need, step_exchange
from patch.settings import validate

DEFAULT_CONFIG = "config/paper.yaml"
GPUS = (1, 4)
LEARNED = ("patch-joint", "patch-tile", "proxsparse")


def table(experiment: Experiment, gpus: Sequence[int] = GPUS) -> list[list[str]]:
    """Return the rows of the memory table, header first: GB of each GPU, with a star if it does not fit.

    Each model is learned in its own dtype, with the configuration's micro-batch size and sequence length. A step fits
    if `GPU_SLACK` times its memory is at most that of a GPU, as in `patch.pipeline.resources.cost.too_large`. A plus
    marks sharded weights. SparseGPT needs most of the one-shot methods.
    """
    learning = [(method, count) for method in LEARNED for count in gpus]
    rows = [["model", "sparsegpt", *(f"{method.removeprefix('patch-')}, {count}" for method, count in learning)]]
    resources, calibration = _on_gpu(experiment), experiment.calibration
    for name, model in experiment.models.items():
        shape, size = model_shape(name, model), BYTES[model.dtype]
        pruning = pruning_mb(shape, size, calibration.batch_size * calibration.seqlen, gram=True)
        cells = [_cell(pruning, False, resources.memory_gb)]
        for method, count in learning:
            need, sharded = learning_need(shape, method, size, _settings(experiment, method), resources, count)
            cells.append(_cell(need, sharded, resources.memory_gb))
        rows.append([model.title, *cells])
    return rows


def _on_gpu(experiment: Experiment) -> Resources:
    """Return the resources of a configuration, which may be for another device, on its GPU."""
    return experiment.resources.model_copy(update={"device": "cuda"})


def _settings(experiment: Experiment, method: str) -> Learning:
    defaults = method_defaults(method, experiment.learning.recipe)
    return validate(Learning, defaults | experiment.learning.common, "learning.common")


def _cell(need_mb: float, sharded: bool, memory_gb: float) -> str:
    too_large = GPU_SLACK * need_mb > 1000 * memory_gb
    # Marks have one width, so that the numbers are flush.
    return f"{need_mb / 1000:.0f}" + f"{'+' if sharded else ''}{'*' if too_large else ''}".ljust(2)


def exchange_table(experiment: Experiment, gpus: Sequence[int] = GPUS) -> list[list[str]]:
    """Return the rows of the table of exchanges between GPUs in a step, header first; without rows if there are none.

    The hidden fraction is at the bandwidth within a node and between nodes.
    """
    rows = [["model", "method, GPUs", "GB", "link (s)", "InfiniBand (s)", "arithmetic (s)", "hidden"]]
    for name, model in experiment.models.items():
        shape, size = model_shape(name, model), BYTES[model.dtype]
        for method, count in ((method, count) for method in LEARNED[:2] for count in gpus if count > 1):
            settings = _settings(experiment, method)
            sharded = learning_need(shape, method, size, settings, _on_gpu(experiment), count)[1]
            if method == "patch-tile" and not sharded:
                continue
            found = step_exchange(shape, size, settings, experiment.resources, count, EFFICIENCY[method])
            link, network = found.link_seconds, found.network_seconds
            hidden = f"{found.hidden(link):.0%}, {found.hidden(network):.0%}"
            seconds = [f"{value:.1f}" for value in (link, network, found.compute_seconds)]
            names = model.title, f"{method.removeprefix('patch-')}, {count}"
            rows.append([*names, f"{found.gb:,.0f}", *seconds, hidden])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m patch memory` and return the exit code."""
    parser = command_parser("memory", __doc__, DEFAULT_CONFIG)
    about = "numbers of GPUs that share a learning run (default: 1 4)"
    parser.add_argument("--gpus", metavar="N", type=int, nargs="+", default=GPUS, help=about)
    options = parser.parse_args(arguments)
    return print_result(lambda: _report(options))


def _report(options: argparse.Namespace) -> str:
    if min(options.gpus) < 1:
        raise InputError(f"--gpus is {min(options.gpus)}; it must be 1 or more")
    experiment = read_plan(options).experiment
    heading = "GB on each GPU at the peak of one-shot pruning and of a learning step, by number of GPUs:"
    limit = f"{experiment.resources.memory_gb:g} GB (`resources.gpu`, `resources.gpu_memory_gb`)"
    lines = [heading, "", *aligned_lines(table(experiment, options.gpus)), ""]
    lines += [
        f"*: does not fit in {limit} with a margin of one tenth.",
        "+: the frozen weights are sharded, too (`resources.shard_weights`).",
    ]
    exchanges = exchange_table(experiment, options.gpus)
    if len(exchanges) > 1:
        link, size = PRESETS[experiment.resources.gpu].link_gb_s, _settings(experiment, "patch-joint").batch_size
        heading = f"GB that each GPU sends and receives in a step of {size} sequences, beside the arithmetic:"
        lines += ["", heading, "", *aligned_lines(exchanges), ""]
        lines.append(
            f"link: {link:g} GB/s in one direction, between GPUs of a node; InfiniBand: {INFINIBAND_GB_S:g} GB/s for "
            "each GPU. Arithmetic by the cost model. hidden: at the first, at the second."
        )
    return "\n".join(lines)
