"""Numbers published in the paper, used for comparison only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from patch.files.io import read_json
from patch.files.schema import Name, Schema, check
from patch.pipeline.results.order import PAPER_METHODS, pattern_kind, percent
from patch.pipeline.runs.run import IMPORT

Percent = Annotated[float, Field(ge=0, le=100)]
Perplexity = Annotated[float, Field(ge=1)]
PAPER_TILE = 128
# The paper reports its ablations for this model alone, in perplexity.
ABLATED = "Qwen/Qwen2.5-0.5B"
FROZEN_MASKS = {
    "maskllm": "MaskLLM",
    "sparsegpt": "SparseGPT w/o update",
    "wanda": "Wanda",
    "magnitude": "Magnitude",
}
TILE_PRIORS = {
    "none": "none",
    "sparsegpt": "SparseGPT",
    "wanda": "Wanda",
    "magnitude": "Magnitude",
    "random": "Random",
}
# The paper's "layer" is a transformer block.
TARGETS = {"global": "global", "block": "layer"}


class PublishedModel(Schema):
    """Model of the paper and the PATCH variant that its rows show."""

    title: Name
    variant: Literal["joint", "tile"]


class PublishedRow(Schema):
    """Row of a per-task table: accuracies in percent, their mean, and the perplexity."""

    method: Name
    acc: dict[Name, Percent]
    avg: Percent
    ppl: Perplexity


class _Table(Schema):
    """Table with named rows and one value for each of ``cols``."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, list] = Field(init=False)

    cols: list[Name]

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for name, values in self.__pydantic_extra__.items():
            if len(values) != len(self.cols):
                raise ValueError(f"the row {name[:80]!r} has {len(values)} values; expected {len(self.cols)}")
        return self


class PairTable(_Table):
    """Table with rows such as `Wanda45`, or `PATCH45+SLiM-LoRA` for quantized weights.

    Each row has the accuracy in percent and the perplexity for each model of ``cols``.
    """

    # JSON has no tuples. Lists are accepted, but their values stay strict.
    __pydantic_extra__: dict[str, list[Annotated[tuple[Percent, Perplexity], Field(strict=False)]]] = Field(init=False)


class ColumnTable(_Table):
    """Table of perplexities; rows are sparsities in percent, such as `45`."""

    __pydantic_extra__: dict[str, list[Perplexity]] = Field(init=False)


class Published(Schema):
    """Content of `config/published.json`; tables that no lookup needs are kept unchecked."""

    model_config = ConfigDict(extra="allow")

    source: str
    models: dict[Name, PublishedModel]
    per_task: dict[Name, list[PublishedRow]]
    unstructured_acc_ppl: PairTable
    quantized_acc_ppl: PairTable
    tile_size_ppl_qwen_joint: dict[str, dict[str, Perplexity]] = {}
    global_vs_layer_ppl_qwen: ColumnTable | None = None
    fixed_mask_ppl_qwen: ColumnTable | None = None
    tile_prior_ppl_qwen: ColumnTable | None = None
    # Keys: GPU, `gen<new tokens>`, sparsity in percent. Values: tokens per second.
    throughput_tok_s_bs16_prompt128: dict[str, dict[str, dict[str, Annotated[float, Field(gt=0)]]]] = {}


def load_published(path: Path | str) -> Published:
    """Read the paper's numbers.

    Raises:
        InputError: the file is missing, is not JSON, lacks a table, or has a number out of range.
    """
    return check(Published, read_json(path), f"{path}: not the paper's numbers")


def published_value(
    published: Published,
    model_id: str,
    method: str,
    pattern: str,
    sparsity: float,
    metric: str,
    tile: int | None = None,
    quantization: str | None = None,
    variant: str | None = None,
) -> float | None:
    """Return the paper's number for a run, or None if the paper has none.

    Args:
        published: the paper's numbers.
        model_id: key of ``published.models``, such as `Qwen/Qwen2.5-0.5B`.
        method, pattern, sparsity: fields of the run, as in the configuration.
        metric: `accuracy` (mean over the paper's tasks), `perplexity`, or one of the paper's tasks.
        tile: tile size of a hybrid run. All tables of the paper but one use 128. None skips the comparison of sizes.
        quantization: quantization of the run.
        variant: variant of the run. An imported mask is compared with the method that made it.

    Returns:
        The published value; accuracies are in percent.
    """
    name, level, kind = PAPER_METHODS.get(method), percent(sparsity), pattern_kind(pattern)
    ablated = (model_id, metric, quantization) == (ABLATED, "perplexity", None) and kind == "hybrid"
    if variant and not variant.startswith(IMPORT):
        return _of_variant(published, method, level, variant) if ablated and tile in (None, PAPER_TILE) else None
    if tile not in (None, PAPER_TILE):
        sizes = published.tile_size_ppl_qwen_joint.get(level, {})
        return sizes.get(str(tile)) if ablated and method == "patch-joint" else None
    if name is None:
        return None
    if kind == "hybrid" and method not in ("patch", f"patch-{_variant(published, model_id)}"):
        return None
    if quantization:
        adapters = "+SLiM-LoRA" if quantization == "slim-lora" else ""
        return _pair(published, published.quantized_acc_ppl, model_id, f"{name}{level}{adapters}", metric)
    if kind == "unstructured":
        return _pair(published, published.unstructured_acc_ppl, model_id, f"{name}{level}", metric)
    if kind == "hybrid":
        name = f"PATCH-{level}"
    elif kind == "n:m" and pattern != "2:4":
        return None
    row = next((row for row in published.per_task.get(model_id, []) if row.method == name), None)
    if row is None:
        return None
    return {"accuracy": row.avg, "perplexity": row.ppl}.get(metric, row.acc.get(metric))


def _of_variant(published: Published, method: str, level: str, variant: str) -> float | None:
    key, _, value = variant.partition("=")
    places = {
        "frozen_mask": ("patch-tile", published.fixed_mask_ppl_qwen, FROZEN_MASKS),
        "tile_prior": ("patch-joint", published.tile_prior_ppl_qwen, TILE_PRIORS),
        "target": ("patch-joint", published.global_vs_layer_ppl_qwen, TARGETS),
    }
    of, table, names = places.get(key, (None, None, {}))
    values = table.__pydantic_extra__.get(level) if table else None
    if of != method or values is None or value not in names:
        return None
    return values[table.cols.index(names[value])]


def _variant(published: Published, model_id: str) -> str | None:
    model = published.models.get(model_id)
    return model.variant if model else None


def _pair(published: Published, table: PairTable, model_id: str, row: str, metric: str) -> float | None:
    model = published.models.get(model_id)
    values = table.__pydantic_extra__.get(row)
    if model is None or values is None or model.title not in table.cols:
        return None
    accuracy, perplexity = values[table.cols.index(model.title)]
    return {"accuracy": accuracy, "perplexity": perplexity}.get(metric)
