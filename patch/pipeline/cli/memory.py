"""GPU memory of mask learning and one-shot pruning for each model of a configuration, and exchanges between GPUs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product

from patch.errors import InputError, print_result
from patch.learning.learning_settings import Learning, method_defaults
from patch.models.shapes import model_shape
from patch.pipeline.cli.workflow import command_parser, read_plan
from patch.pipeline.config.experiment import Experiment, Resources
from patch.pipeline.config.gpus import GPUS as PRESETS
from patch.pipeline.config.gpus import INFINIBAND_GB_S
from patch.pipeline.reporting.units import aligned_lines
from patch.pipeline.resources.memory import BYTES, GPU_SLACK, pruning_mb
from patch.pipeline.resources.sharding import Placement, host_copy_seconds, place, step_exchange
from patch.pipeline.resources.throughput import EFFICIENCY
from patch.settings import validate

DEFAULT_CONFIG = "config/paper.yaml"
GPUS = (1, 4)
LEARNED = ("patch-joint", "patch-tile", "proxsparse")


def table(experiment: Experiment, gpus: Sequence[int] = GPUS) -> list[list[str]]:
    """Return the rows of the memory table, header first: GB of each GPU, with marks.

    Each model is learned in its own dtype, with the configuration's micro-batch size and sequence length. A step fits
    if `GPU_SLACK` times its memory is at most that of a GPU, as in `patch.pipeline.resources.limits.too_large`. A plus
    marks sharded weights, and an o offloaded gradients and moments. SparseGPT needs most of the one-shot methods.
    """
    learning = [(method, count) for method in LEARNED for count in gpus]
    rows = [["model", "sparsegpt", *(f"{method.removeprefix('patch-')}, {count}" for method, count in learning)]]
    resources, calibration = _on_gpu(experiment), experiment.calibration
    for name, model in experiment.models.items():
        shape, size = model_shape(name, model), BYTES[model.dtype]
        pruning = pruning_mb(shape, size, calibration.batch_size * calibration.seqlen, gram=True)
        cells = [_cell(Placement(pruning, False, False), resources.memory_gb)]
        for method, count in learning:
            placement = place(shape, method, size, _settings(experiment, method), resources, count)
            cells.append(_cell(placement, resources.memory_gb))
        rows.append([model.title, *cells])
    return rows


def _on_gpu(experiment: Experiment) -> Resources:
    """Return the resources of a configuration, which may be for another device, on its GPU."""
    return experiment.resources.model_copy(update={"device": "cuda"})


def _settings(experiment: Experiment, method: str) -> Learning:
    defaults = method_defaults(method, experiment.learning.recipe)
    return validate(Learning, defaults | experiment.learning.common, "learning.common")


def _cell(placement: Placement, memory_gb: float) -> str:
    too_large = GPU_SLACK * placement.mb > 1000 * memory_gb
    marks = "+" * placement.shard_weights + "o" * placement.offload + "*" * too_large
    # Marks have one width, so that the numbers are flush.
    return f"{placement.mb / 1000:.0f}{marks.ljust(3)}"


def exchange_table(experiment: Experiment, gpus: Sequence[int] = GPUS) -> list[list[str]]:
    """Return the rows of the table of copies in a step, header first; without rows if there are none.

    They are the exchanges between GPUs, with the fraction that is hidden at the bandwidth within a node and between
    nodes, and the copies of offloaded gradients and moments between each GPU and its host.
    """
    rows = [["model", "method, GPUs", "GB", "link (s)", "InfiniBand (s)", "arithmetic (s)", "hidden", "host (s)"]]
    resources = _on_gpu(experiment)
    for (name, model), method, count in product(experiment.models.items(), LEARNED[:2], gpus):
        shape, size, settings = model_shape(name, model), BYTES[model.dtype], _settings(experiment, method)
        placement = place(shape, method, size, settings, resources, count)
        exchanged = count > 1 and (method != "patch-tile" or placement.shard_weights)
        if not exchanged and not placement.offload:
            continue
        found = step_exchange(shape, size, settings, resources, count, EFFICIENCY[method])
        copies = host_copy_seconds(shape, method, settings, resources, count) if placement.offload else 0.0
        link, network = found.link_seconds, found.network_seconds
        hidden = f"{found.hidden(link):.0%}, {found.hidden(network):.0%}" if exchanged else "-"
        seconds = [f"{value:.1f}" for value in (link, network, found.compute_seconds)]
        names = model.title, f"{method.removeprefix('patch-')}, {count}"
        rows.append([*names, f"{found.gb:,.0f}", *seconds, hidden, f"{copies:.1f}"])
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
        "o: gradients and moments of the pattern logits are in the host's memory (`resources.offload`).",
    ]
    exchanges = exchange_table(experiment, options.gpus)
    if len(exchanges) > 1:
        gpu, size = PRESETS[experiment.resources.gpu], _settings(experiment, "patch-joint").batch_size
        heading = f"GB that each GPU sends to others, and receives, in a step of {size} sequences:"
        lines += ["", heading, "", *aligned_lines(exchanges), ""]
        lines.append(
            f"link: {gpu.link_gb_s:g} GB/s in one direction, between GPUs of a node; InfiniBand: {INFINIBAND_GB_S:g} "
            "GB/s for each GPU. Arithmetic by the cost model. hidden: at the first, at the second. host: copies to and "
            f"from the host's memory at {gpu.host_gb_s:g} GB/s, which nothing hides."
        )
    return "\n".join(lines)
