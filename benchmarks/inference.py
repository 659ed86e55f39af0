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
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import seconds_in_turn, table  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from patch.masks.packed import MaskSet

SHAPES = ("4096x4096", "11008x4096")
SPARSITIES = (25, 35, 45, 50)
TILE = GROUP_SIZE = 128
# Names of the candidates -> sparsity, and whether they are quantized.
CANDIDATES = {f"{sparsity}%{end}": (sparsity, bool(end)) for end in ("", " 4-bit") for sparsity in SPARSITIES}
# Least number of bytes read between two uses of a copy: more than the caches of a server's processor.
BETWEEN = 2_000_000_000
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
# Hidden size, MLP, blocks, vocabulary of the whole model.
MODEL = (2048, 5632, 4, 4096)


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
    from patch.inference.timing import quartiles

    weight = torch.randn(shape, device=options.device).to(dtype)
    packed = {name: _packed(weight, *candidate) for name, candidate in CANDIDATES.items()}
    copies = max(2, math.ceil(BETWEEN / (weight.nbytes + sum(one.nbytes for one in packed.values()))))
    dense = [weight.clone() for _ in range(copies)]
    others = {name: [_copy(one) for _ in range(copies)] for name, one in packed.items()}
    formula = {
        name: packed_bytes(shape, TILE, int(one.dense.sum()), one.values.itemsize, one.group_size)
        for name, one in packed.items()
    }
    lines = []
    for rows in options.rows:
        inputs = torch.randn(rows, shape[1], device=options.device).to(dtype)
        repeats = math.ceil(options.repeats / (1 if rows == 1 else 3 if rows <= 128 else 12))
        candidates = _candidates(dense, others, inputs)
        seconds = seconds_in_turn(candidates, repeats, copies if rows == 1 else 2, options.device)
        times = {name: quartiles(values) for name, values in seconds.items()}
        for name, (sparsity, quantized) in CANDIDATES.items():
            speedup, limit = times["dense"]["median"] / times[name]["median"], weight.nbytes / packed[name].nbytes
            reached = f"{speedup / limit:.0%}" if rows == 1 else ""
            measured = _milliseconds(times["dense"]), _milliseconds(times[name])
            lines.append([f"{shape[0]}x{shape[1]}", rows, name, *measured, f"{speedup:.2f}", f"{limit:.2f}", reached])
            line = {"dtype": str(dtype).removeprefix("torch."), "shape": shape, "rows": rows}
            line |= {"sparsity": sparsity, "quantized": quantized}
            memory = _bytes(others[name][0]) / formula[name]
            print(json.dumps(line | {"speedup": speedup, "memory_over_formula": memory}), flush=True)
    headers = ("layer", "rows", "candidate", "dense ms", "ms", "speedup", "limit", "of limit")
    print("\n" + table(headers, lines), flush=True)


def _candidates(dense: list[Tensor], others: dict[str, list[Any]], inputs: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return dense and packed products; each call uses the next copy of the weight."""
    from torch.nn.functional import linear

    from patch.inference.backends import backend_for

    def in_turn(multiply: Callable[[Any], Tensor], copies: list[Any]) -> Callable[[], Tensor]:
        turn = cycle(copies)
        return lambda: multiply(next(turn))

    found: dict[str, Callable[[], Tensor]] = {"dense": in_turn(lambda weight: linear(inputs, weight), dense)}
    for name, copies in others.items():
        multiply = backend_for(copies[0], inputs)
        found[name] = in_turn(lambda packed, multiply=multiply: multiply(packed, inputs), copies)
    return found


def _milliseconds(seconds: dict[str, float]) -> str:
    return _median({name: 1e3 * value for name, value in seconds.items()}, 2)


def _median(found: dict[str, float], decimals: int) -> str:
    """Return the median with half the interquartile range; a noisy one is marked."""
    from patch.inference.timing import is_noisy

    half = (found["high"] - found["low"]) / 2
    return f"{found['median']:.{decimals}f} ± {half:.{decimals}f}{' †' * is_noisy(found)}"


def random_masks(weight: Tensor, sparsity: int) -> tuple[Tensor, Tensor]:
    """Return a random hybrid mask of a sparsity, and its map of dense tiles."""
    import torch

    from patch.masks.tile import expand_tiles, tile_grid

    grid = tile_grid(weight.shape, TILE)
    tiles = torch.zeros(math.prod(grid), dtype=torch.bool)
    tiles[torch.randperm(len(tiles))[: round((1 - sparsity / 50) * len(tiles))]] = True
    kept = torch.rand(weight.numel() // 4, 4).argsort(1) < 2
    tiles = tiles.view(grid)
    return kept.view(weight.shape) | expand_tiles(tiles, weight.shape), tiles


def _packed(weight: Tensor, sparsity: int, quantized: bool) -> Any:
    from patch.inference.packed import pack
    from patch.quantization.absmax import quantize

    mask, tiles = random_masks(weight, sparsity)
    return pack(quantize(weight, 4, GROUP_SIZE) if quantized else weight, mask, tiles, TILE)


def _copy(packed: Any) -> Any:
    from patch.inference.packed import PackedWeight

    parts = {name: part.clone() for name, part in packed.parts.items()}
    return PackedWeight(packed.shape, packed.tile, **parts, group_size=packed.group_size)


def _bytes(packed: Any) -> int:
    """Return the bytes of a packed layer in memory, including the offsets of its tiles."""
    return sum(part.untyped_storage().nbytes() for part in (*packed.parts.values(), packed.checked.offsets))


def generation(dtype: Any, options: argparse.Namespace) -> None:
    """Measure a whole model with batches of one and sixteen."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from patch.inference import convert
    from patch.inference.comparison import share_tensors, weight_bytes
    from patch.inference.generation import Generation, random_prompt, speed_quantities
    from patch.inference.timing import measure_in_rounds

    hidden, mlp, blocks, vocabulary = MODEL
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 128,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(options.device, dtype).eval().requires_grad_(False)
    models = {"dense": model}
    for name, (sparsity, quantized) in CANDIDATES.items():
        masks = _masks_of(model, sparsity)
        models[name] = convert(share_tensors(model), masks, _quantized(model, masks) if quantized else None)
    print(f"\ngeneration by {model.num_parameters() / 1e6:.0f}M parameters, prompt 32, 32 new tokens")
    lines = []
    for batch in (1, 16):
        tokens = random_prompt(model, batch, 32)
        runs = {name: Generation(one, tokens, 32, name) for name, one in models.items()}
        quantities = partial(speed_quantities, batch * 32)
        found = measure_in_rounds(runs, "dense", quantities, math.ceil(options.repeats / 12), rounds=3)
        for name, measurement in found.items():
            size = weight_bytes(model, models[name])
            lines.append(
                [
                    name,
                    batch,
                    _median(measurement.quantities["tokens_per_second"], 1),
                    _median(measurement.quantities["speedup"], 2),
                    f"{size['measured'] / size['dense']:.3f}",
                ]
            )
    print(table(("candidate", "batch", "tokens/s", "speedup", "bytes of layers"), lines), flush=True)


def _masks_of(model: Any, sparsity: int) -> MaskSet:
    from patch.masks.packed import MaskSet
    from patch.models.loading import prunable_linears

    found = {name: random_masks(linear.weight, sparsity) for name, linear in prunable_linears(model).items()}
    return MaskSet({n: mask for n, (mask, _) in found.items()}, "hybrid", {n: t for n, (_, t) in found.items()}, TILE)


def _quantized(model: Any, masks: MaskSet) -> dict[str, Any]:
    from patch.models.loading import prunable_linears
    from patch.quantization.absmax import quantize
    from patch.quantization.model import QuantizedLayer

    linears = prunable_linears(model).items()
    return {n: QuantizedLayer(quantize(linear.weight * masks.masks[n], 4, GROUP_SIZE)) for n, linear in linears}


if __name__ == "__main__":
    sys.exit(main())
