"""Benchmark of a learning step against the straightforward formulation and a lower bound.

    python benchmarks/learn_step.py

The reference is the straightforward formulation: a Gumbel-softmax over `[groups, 6]` times the patterns, tiles by
`repeat_interleave`, the masks of all layers alive from forward to backward, density and kept-norm regularizer as sums
over full-size masks. Both sides have the same random model, tokens, threads, dtype and optimizer, each in its own
process, and run their steps in turn. A ratio is the median over turns: of the reference to ours for joint learning, and
to the dense step for tiles.

The lower bound of memory is the weights, logits, their gradients, the optimizer's state, and the activations of a dense
forward and backward pass with recomputed blocks. The dense step and our tile step recompute their blocks in the
backward pass; joint learning and both references do not. The dense step includes the gradients of the weights, since
tiles cannot be learned without their product. `plan` is the memory that `patch/pipeline/resources/cost.py` plans.

The last line is one JSON object with the worst case over sizes and threads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.candidates import random_llama  # noqa: E402
from benchmarks.learning_steps import WAYS, make_step, planned_mb  # noqa: E402
from benchmarks.measure import paired_ratio, reset_peak, resident_mb, table  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor, nn

    from patch.models.shapes import Shape

# Keeps objects alive until the process ends.
held = ExitStack()
# Hidden size, MLP, blocks, vocabulary; the large model has four times the weights of the small one.
SIZES = {"small": (512, 1536, 4, 2048), "large": (1024, 2816, 4, 2048), "warm-up": (128, 128, 1, 256)}
SEQLEN, TILE = 128, 128
# Number of steps for the peak memory.
WATCHED = 3
HEADERS = ("way", "size", "threads", "weights", "s/step", "ratio", "MB", "floor", "of floor", "plan")


def main() -> int:
    """Run the command line, or one measurement in a child process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "large"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each (15)")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "SIZE", "TIMED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, size, timed = options.one
        measure(way, size, options.threads[0], options.dtype, timed == "timed")
        return 0
    return compare(options)


def compare(options: argparse.Namespace) -> int:
    """Run all measurements, print them and the worst cases."""
    print(f"dtype {options.dtype}, batch 1, sequence {SEQLEN}, tile {TILE}; peak MB beside the libraries")
    worst = {"joint_speedup": [], "joint_peak_over_floor": [], "tile_step_over_dense": [], "tile_peak_over_floor": []}
    for size in options.sizes:
        for threads in options.threads:
            times = _times(size, threads, options)
            found = {way: _memory(way, size, threads, options) for way in WAYS}
            ratios = {
                "joint": paired_ratio(times["joint-reference"], times["joint"]),
                "tile": paired_ratio(times["tile"], times["dense"]),
                "tile-reference": paired_ratio(times["tile-reference"], times["dense"]),
            }
            lines = []
            for way, numbers in found.items():
                floor = numbers["state_mb"] + found["dense"]["activations_mb"]
                numbers["over_floor"] = numbers["peak_mb"] / floor
                line = [way, size, threads, f"{numbers['weights'] / 1e6:.1f}M", f"{median(times[way]):.3f}"]
                line += [f"{ratios[way]:.2f}" if way in ratios else "", f"{numbers['peak_mb']:.0f}", f"{floor:.0f}"]
                lines.append([*line, f"{numbers['over_floor']:.2f}", numbers["plan_mb"] or ""])
            print("\n" + table(HEADERS, lines), flush=True)
            worst["joint_speedup"].append(ratios["joint"])
            worst["joint_peak_over_floor"].append(found["joint"]["over_floor"])
            worst["tile_step_over_dense"].append(ratios["tile"])
            worst["tile_peak_over_floor"].append(found["tile"]["over_floor"])
    pick = {name: min if name == "joint_speedup" else max for name in worst}
    print(json.dumps({name: round(pick[name](values), 3) for name, values in worst.items()}))
    return 0


def _times(size: str, threads: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each variant's steps in turn, each variant in its own process."""
    processes = {way: _start(way, size, threads, options, "timed", {}) for way in WAYS}
    try:
        turns = range(options.steps + 1)
        times = [{way: float(_ask(process, way)) for way, process in processes.items()} for _ in turns]
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    # The first turn includes setup.
    return {way: [taken[way] for taken in times[1:]] for way in WAYS}


def _memory(way: str, size: str, threads: int, options: argparse.Namespace) -> dict[str, float]:
    """Return the peak memory of a process that frees memory at once, so that the peak counts live memory."""
    process = _start(way, size, threads, options, "watched", {"MALLOC_MMAP_THRESHOLD_": "65536"})
    found = json.loads(_ask(process, way))
    process.communicate()
    return found


def _start(
    way: str, size: str, threads: int, options: argparse.Namespace, timed: str, changes: dict[str, str]
) -> subprocess.Popen:
    command = [sys.executable, __file__, "--one", way, size, timed, "--threads", f"{threads}"]
    command += ["--dtype", options.dtype]
    environment = os.environ | {"OMP_NUM_THREADS": f"{threads}"} | changes
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process: subprocess.Popen, way: str) -> str:
    process.stdin.write("go\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"{way} failed")
    return answer


def measure(way: str, size: str, threads: int, dtype: str, timed: bool) -> None:
    """Print the seconds of a step for each line of the input, or once the peak memory beside the libraries."""
    import torch

    from patch.models.loading import prunable_linears

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    # Excludes memory that libraries allocate on first use.
    with ExitStack() as briefly:
        make_step(way, *_model_and_tokens(_shape("warm-up"), dtype), briefly, TILE, False)[0](0)
    base = resident_mb()
    shape = _shape(size)
    model, tokens = _model_and_tokens(shape, dtype)
    weights = sum(linear.weight.numel() for linear in prunable_linears(model).values())
    step, state = make_step(way, model, tokens, held, TILE, False)
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if timed:
        for number, _ in enumerate(sys.stdin):
            started = time.perf_counter()
            step(number)
            print(time.perf_counter() - started, flush=True)
        return
    reset_peak()
    for number in range(WATCHED):
        step(number)
    plan = planned_mb(way, shape, next(model.parameters()).element_size(), SEQLEN, False, "cpu")
    found = {
        "peak_mb": resident_mb("VmHWM") - base,
        "weights": weights,
        "state_mb": (total + state()) / 1e6,
        # Without the gradients of the weights, which the dense step frees.
        "activations_mb": _activations(model, tokens) if way == "dense" else 0.0,
        "plan_mb": plan and round(plan),
    }
    print(json.dumps(found))


def _shape(size: str) -> Shape:
    from patch.models.shapes import Shape

    hidden, mlp, blocks, vocabulary = SIZES[size]
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": hidden // 8}
    sizes = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": blocks, "vocab_size": vocabulary}
    return Shape(**sizes, **heads, tie_word_embeddings=True)


def _model_and_tokens(shape: Shape, dtype: str) -> tuple[nn.Module, Tensor]:
    import torch

    torch.manual_seed(0)
    model = random_llama(shape, getattr(torch, dtype))
    return model, torch.randint(0, shape.vocab_size, (1, SEQLEN), generator=torch.Generator().manual_seed(1))


def _activations(model, tokens) -> float:  # noqa: ANN001
    """Return the memory of a forward and backward pass with recomputed blocks beside the weights, in MB."""
    from patch.learning.objective import cross_entropy, recomputed_blocks

    embedding = model.get_input_embeddings()
    embedding.weight.requires_grad_(False)
    hook = embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    with recomputed_blocks(model, True):
        cross_entropy(model, tokens).backward()
        before = resident_mb()
        reset_peak()
        cross_entropy(model, tokens).backward()
    hook.remove()
    return resident_mb("VmHWM") - before


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
