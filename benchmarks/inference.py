"""Benchmark of packed hybrid layers against dense ones: single layers, and generation by a whole model.

    python benchmarks/inference.py                       # the numbers of docs/performance.md for a CPU
    python benchmarks/inference.py --models              # layers of the paper's models, rows 1, 16, 128, 2048
    python benchmarks/inference.py --device cuda --dtypes bfloat16 --rows 16 2048 --models

The reference is PyTorch's dense linear layer. Weights are random, tiles have side 128, and the fraction of sparse tiles
gives the sparsity; 50 is 2:4 everywhere. Candidates with `4-bit` are quantized too, with groups of 128. Candidates are
called in turn, each time with another copy of their weight, so that no cache holds it. Both sides have large pages and
the same inputs, threads and dtype. Times are medians with half the distance of the quartiles; `limit` is the dense
weight's bytes over the packed weight's, and `of limit` is the fraction of it that the speedup reaches. Noisy values are
marked with †: the distance of their quartiles exceeds a fifth of the median. Noisy generations are measured again, up
to twice.

The last line is one JSON object: the smallest speedup for one row by dtype, sparsity and bits, over shapes and threads,
and the largest ratio of a packed layer's memory to its formula.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.candidates import (  # noqa: E402
    GROUP_SIZE,
    SPARSITIES,
    TILE,
    copied,
    copies_between,
    dense_calls,
    generation_speeds,
    in_turn,
    packed_calls,
    random_llama,
    random_mask_set,
    random_packed,
)
from benchmarks.measure import seconds_in_turn, shown, table  # noqa: E402

if TYPE_CHECKING:
    from patch.masks.packed import MaskSet

SHAPES = ("4096x4096", "11008x4096")
# Names of the candidates -> sparsity, and whether they are quantized.
CANDIDATES = {f"{sparsity}%{end}": (sparsity, bool(end)) for end in ("", " 4-bit") for sparsity in SPARSITIES}
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
# The whole model.
MODEL = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
}


def main() -> int:
    """Run the measurements of each dtype and number of threads, and print the worst cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtypes", nargs="+", choices=SHORT, default=["float32", "bfloat16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="numbers of CPU threads (1 2)")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--shapes", nargs="+", metavar="OUTxIN", default=list(SHAPES))
    parser.add_argument(
        "--models", action="store_true", help="layers of all models of config/paper.yaml, rows 1 16 128 2048"
    )
    parser.add_argument("--repeats", type=int, default=60, help="calls for one row; more rows have fewer (60)")
    parser.add_argument("--no-generation", action="store_true", help="measure only layers")
    parser.add_argument("--one", nargs=2, metavar=("DTYPE", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.models:
        options.shapes, options.rows = _shapes_of_models(), [1, 16, 128, 2048]
    if options.one:
        run(options.one[0], int(options.one[1]), options)
        return 0
    found: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        for threads in options.threads if options.device == "cpu" else [1]:
            found += _in_process(dtype, threads)
    print(json.dumps(_worst(found)))
    return 0


def _in_process(dtype: str, threads: int) -> list[dict[str, Any]]:
    """Run the measurements in a new process, which has its number of threads from the start."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one", dtype, str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "THP_MEM_ALLOC_ENABLE": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout:
            if line.startswith("{"):
                lines.append(json.loads(line))
            else:
                print(line, end="", flush=True)
    if process.returncode:
        raise SystemExit(process.returncode)
    return lines


def _worst(found: list[dict[str, Any]]) -> dict[str, float]:
    """Return the worst case of every dtype and sparsity over shapes and threads, for one row."""
    worst: dict[str, float] = {}
    for one in found:
        if one.get("rows") == 1:
            name = f"{SHORT[one['dtype']]}_{one['sparsity']}{'_4bit' * one['quantized']}"
            worst[name] = min(worst.get(name, math.inf), one["speedup"])
    worst["memory_over_formula"] = max(one["memory_over_formula"] for one in found)
    return {name: round(value, 4 if "memory" in name else 3) for name, value in worst.items()}


def _shapes_of_models() -> list[str]:
    from patch.models.shapes import linear_shapes, model_shape
    from patch.pipeline.config.load import load_experiment

    models = load_experiment("config/paper.yaml").models
    shapes = {shape for name, model in models.items() for shape in linear_shapes(model_shape(name, model)).values()}
    return [f"{rows}x{columns}" for rows, columns in sorted(shapes, key=math.prod)]


def run(dtype: str, threads: int, options: argparse.Namespace) -> None:
    """Print the results of one dtype and number of threads: tables, and JSON lines for the parent process."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{threads} thread{'s' * (threads > 1)}"
    print(f"\n{dtype}, {device}, tile {TILE}, torch {torch.__version__}")
    with torch.inference_mode():
        for shape in options.shapes:
            layers(tuple(map(int, shape.split("x"))), getattr(torch, dtype), options)
    if not options.no_generation:
        generation(getattr(torch, dtype), options)


def layers(shape: tuple[int, int], dtype: Any, options: argparse.Namespace) -> None:
    """Measure one layer for all numbers of rows."""
    import torch

    from patch.inference.packed import packed_bytes
    from patch.inference.timing import is_noisy, quartiles

    weight = torch.randn(shape, device=options.device).to(dtype)
    packed = {name: random_packed(weight, *candidate) for name, candidate in CANDIDATES.items()}
    count = copies_between({"dense": weight} | packed)
    dense = [weight.clone() for _ in range(count)]
    others = {name: [copied(one) for _ in range(count)] for name, one in packed.items()}
    formula = {
        name: packed_bytes(shape, TILE, int(one.dense.sum()), one.values.itemsize, one.group_size)
        for name, one in packed.items()
    }
    lines = []
    for rows in options.rows:
        inputs = torch.randn(rows, shape[1], device=options.device).to(dtype)
        repeats = math.ceil(options.repeats / (1 if rows == 1 else 3 if rows <= 128 else 12))
        turns = {"dense": in_turn(dense_calls(dense, inputs), options.device)}
        turns |= {name: in_turn(packed_calls(copies, inputs), options.device) for name, copies in others.items()}
        warmup = count if rows == 1 and options.device == "cpu" else 2
        seconds = seconds_in_turn({name: one.call for name, one in turns.items()}, repeats, warmup, options.device)
        times = {name: quartiles([one / turns[name].products for one in values]) for name, values in seconds.items()}
        for name, (sparsity, quantized) in CANDIDATES.items():
            speedup, limit = times["dense"]["median"] / times[name]["median"], weight.nbytes / packed[name].nbytes
            reached = f"{speedup / limit:.0%}" if rows == 1 else ""
            measured = (shown(times[one], is_noisy(times[one]), 2, 1e3) for one in ("dense", name))
            lines.append([f"{shape[0]}x{shape[1]}", rows, name, *measured, f"{speedup:.2f}", f"{limit:.2f}", reached])
            line = {"dtype": str(dtype).removeprefix("torch."), "shape": shape, "rows": rows}
            line |= {"sparsity": sparsity, "quantized": quantized}
            memory = _bytes(others[name][0]) / formula[name]
            print(json.dumps(line | {"speedup": speedup, "memory_over_formula": memory}), flush=True)
    headers = ("layer", "rows", "candidate", "dense ms", "ms", "speedup", "limit", "of limit")
    print("\n" + table(headers, lines), flush=True)


def _bytes(packed: Any) -> int:
    """Return the bytes of a packed layer in memory, including the offsets of its tiles."""
    return sum(part.untyped_storage().nbytes() for part in (*packed.parts.values(), packed.checked.offsets))


def generation(dtype: Any, options: argparse.Namespace) -> None:
    """Measure a whole model with batches of one and sixteen."""
    from patch.inference import convert
    from patch.inference.comparison import share_tensors, weight_bytes
    from patch.models.shapes import Shape

    model = random_llama(Shape(**MODEL), dtype, options.device)
    models = {"dense": model}
    for name, (sparsity, quantized) in CANDIDATES.items():
        masks = random_mask_set(model, sparsity)
        models[name] = convert(share_tensors(model), masks, _quantized(model, masks) if quantized else None)
    print(f"\ngeneration by {model.num_parameters() / 1e6:.0f}M parameters, prompt 32, 32 new tokens")
    lines, decimals = [], {"tokens_per_second": 1, "speedup": 2}
    for batch in (1, 16):
        found, _ = generation_speeds(models, batch, 32, 32, math.ceil(options.repeats / 12))
        for name, measurement in found.items():
            size = weight_bytes(model, models[name])
            lines.append(
                [
                    name,
                    batch,
                    *(shown(measurement.quantities[q], q in measurement.noisy, d) for q, d in decimals.items()),
                    f"{size['measured'] / size['dense']:.3f}",
                ]
            )
    print(table(("candidate", "batch", "tokens/s", "speedup", "bytes of layers"), lines), flush=True)


def _quantized(model: Any, masks: MaskSet) -> dict[str, Any]:
    from patch.models.loading import prunable_linears
    from patch.quantization.absmax import quantize
    from patch.quantization.model import QuantizedLayer

    linears = prunable_linears(model).items()
    return {n: QuantizedLayer(quantize(linear.weight * masks.masks[n], 4, GROUP_SIZE)) for n, linear in linears}


if __name__ == "__main__":
    sys.exit(main())
