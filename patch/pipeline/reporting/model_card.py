"""Model card of an exported model, in the format of the Hugging Face hub."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from patch import __version__
from patch.evaluation.metric import Metric, accuracy_names
from patch.files.io import read_json_object
from patch.hub.errors import library_errors
from patch.pipeline.reporting.escape import escape_markdown
from patch.pipeline.reporting.table import DASH
from patch.pipeline.reporting.units import count, metric_value, size
from patch.pipeline.results.environment import git_commit
from patch.pipeline.results.order import QUANTIZATIONS, method_title, percent, run_title, tile_title, variant_title
from patch.pipeline.results.record import Record
from patch.pipeline.runs.stage_settings import ExportSettings

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from patch.inference.export import Sizes
    from patch.masks.packed import MaskSet
    from patch.quantization.model import QuantizedLayer

TEMPLATE = Path(__file__).with_suffix(".md")
UNKNOWN = "unknown"
LICENCE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class CardFacts:
    """Facts about an exported model, from its run or from the files that it was made of.

    Attributes:
        name: repository or folder of the exported model, as its user names it.
        form: `packed`, `dense` or `compressed-tensors`.
        base: name of the dense model.
        repo: repository of the dense model on the hub, or None.
        licence: `license`, `license_name` and `license_link` of the dense model, as in a model card.
        method: printed name of the method that made the masks.
        pattern: description of the zeros.
        sparsity: fraction of zeros in the linear layers of the decoder blocks.
        quantization: description of the low-bit weights; empty without them.
        digest: digest of the settings that the model was made with, or None.
        record: the evaluation of the model, or None.
        text: name and type of the data set of the perplexity, and its split.
    """

    name: str
    form: str
    base: str
    repo: str | None
    licence: Mapping[str, str]
    method: str
    pattern: str
    sparsity: float
    quantization: str = ""
    digest: str | None = None
    record: Record | None = None
    text: tuple[str, str, str] = ("", "", "")


def base_licence(folder: Path | str, repo: str | None = None) -> dict[str, str]:
    """Return the licence of a model by the card in its folder, else by its configuration.

    Args:
        folder: folder of the model.
        repo: its repository on the hub, where a file that the card names is.

    Raises:
        InputError: the card or the configuration is damaged.
    """
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard import metadata_load

    card, found = Path(folder) / "README.md", {}
    if card.is_file():
        with library_errors(f"model card {card} cannot be read"):
            found = ModelCardData(**(metadata_load(card) or {}), ignore_metadata_errors=True).to_dict()
    if not found.get("license"):
        found = read_json_object(Path(folder) / "config.json")
    licence = {key: found[key] for key in LICENCE_KEYS if isinstance(found.get(key), str)}
    if "://" not in licence.get("license_link", "://"):
        file = licence.pop("license_link")
        if repo:
            licence["license_link"] = f"https://huggingface.co/{repo}/blob/main/{file}"
    return licence


def describe_pattern(masks: MaskSet | None) -> str:
    """Return a description of the zeros of masks; None if no weight is pruned."""
    if masks is None:
        return "dense"
    if masks.pattern != "hybrid":
        return masks.pattern
    dense = sum(int(tiles.sum()) for tiles in masks.tiles.values())
    total = sum(tiles.numel() for tiles in masks.tiles.values())
    side = tile_title(masks.tile)
    return f"hybrid: 2:4 in {total - dense} of {total} tiles of {side}, all others are dense"


def describe_quantization(layers: Mapping[str, QuantizedLayer] | None) -> str:
    """Return a description of quantized layers, which have equal settings; empty without them."""
    if not layers:
        return ""
    first = next(iter(layers.values()))
    name = QUANTIZATIONS["slim-lora" if any(layer.adapter for layer in layers.values()) else "absmax"]
    return f"{first.weight.bits} bits ({name}), a scale for {first.weight.group_size} weights"


def run_facts(
    settings: ExportSettings,
    name: str,
    model: Path,
    masks: MaskSet | None,
    layers: Mapping[str, QuantizedLayer] | None,
    record: Record | None,
) -> CardFacts:
    """Return the facts about a run.

    Args:
        settings: settings of its export.
        name: repository or folder of the exported model.
        model: folder of the dense model.
        masks: its masks, or None.
        layers: its quantized layers, or None.
        record: its evaluation, or None.
    """
    run, source, use, corpus = settings.run, settings.source, settings.perplexity.use, settings.text.source
    repo = source.repo if source.kind == "hub" else None
    variant = f" ({variant_title(run.variant)})" if run.variant else ""
    return CardFacts(
        name=name,
        form=settings.form,
        base=repo or (source.distribution if source.kind == "gguf" else run.model),
        repo=repo,
        licence=base_licence(model, repo),
        method=f"{run_title(run)}{variant}",
        pattern=describe_pattern(masks),
        sparsity=masks.sparsity if masks else 0.0,
        quantization=describe_quantization(layers),
        digest=settings.record,
        record=record,
        text=(
            f"{use.corpus} ({use.split}), sequences of {settings.perplexity.seqlen} tokens",
            corpus.repo if corpus.kind == "hub" else use.corpus,
            use.split,
        ),
    )


def file_facts(name: str, form: str, model: Path, masks: MaskSet) -> CardFacts:
    """Return the facts about a model that was exported from a mask file without a run, see `run_facts`."""
    settings = masks.header.get("settings", {})
    method = settings.get("method") if isinstance(settings, dict) else None
    return CardFacts(
        name=name,
        form=form,
        base=model.resolve().name,
        repo=None,
        licence=base_licence(model),
        method=method_title(method) if isinstance(method, str) else UNKNOWN,
        pattern=describe_pattern(masks),
        sparsity=masks.sparsity,
        digest=masks.header.get("digest"),
    )


def model_card(facts: CardFacts, sizes: Sizes) -> str:
    """Return the text of a model card: metadata with the metrics as `model-index`, properties, results, use, citation.

    Values from users are escaped, so that a title or path is shown literally.
    """
    from huggingface_hub import ModelCard, ModelCardData

    rows, results = _results(facts)
    data = ModelCardData(
        model_name=Path(facts.name).name,
        base_model=facts.repo,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["patch", "sparsity", facts.pattern.partition(": ")[0]],
        eval_results=results or None,
        **({"license": UNKNOWN} | facts.licence),
    )
    pruned = f"pruned by {facts.method} to {percent(facts.sparsity)} % zeros in the linear layers of its decoder blocks"
    steps = [*([pruned] if facts.sparsity else []), *(["quantized"] if facts.quantization else [])]
    return str(
        ModelCard.from_template(
            data,
            str(TEMPLATE),
            title=escape_markdown(Path(facts.name).name),
            summary=escape_markdown(f"{facts.base}, {' and '.join(steps)}"),
            properties=_properties(facts, sizes),
            results=[[escape_markdown(cell) for cell in row] for row in rows],
            form=facts.form,
            path=facts.name,
            command_path=shlex.quote(facts.name),
        )
    )


def _properties(facts: CardFacts, sizes: Sizes) -> dict[str, str]:
    """Return the properties of the model, escaped: name -> value."""
    licence = facts.licence.get("license_name") or facts.licence.get("license") or UNKNOWN
    whole, linear = sizes.stored / sizes.dense, sizes.stored_linear / sizes.dense_linear
    weights = f"{size(sizes.stored / 1e6)}, {100 * whole:.1f} % of the dense model's {size(sizes.dense / 1e6)}"
    properties = {
        "Base model": _link(facts.base, facts.repo and f"https://huggingface.co/{facts.repo}"),
        "Licence of the base model": _link(licence, facts.licence.get("license_link")),
        "Method": escape_markdown(facts.method),
        "Pattern": escape_markdown(facts.pattern),
        "Sparsity": f"{100 * facts.sparsity:.2f} %",
        "Quantization": escape_markdown(facts.quantization),
        "Form": facts.form,
        "Weights": f"{weights}; {100 * linear:.1f} % in the linear layers of the decoder blocks",
        "Digest of the settings": escape_markdown(facts.digest or UNKNOWN),
        "Software": f"patch-sparsity {__version__}, commit {git_commit()}",
    }
    return {name: text for name, text in properties.items() if text}


def _link(text: str, address: str | None) -> str:
    """Return escaped text, linked if the address is that of a web page."""
    shown = escape_markdown(text)
    return f"[{shown}](<{address}>)" if address and re.fullmatch(r"https?://[^\s<>|]+", address) else shown


def _results(facts: CardFacts) -> tuple[list[list[str]], list[EvalResult]]:
    """Return the metrics of the record as rows of the card's table, and as entries of its `model-index`."""
    from huggingface_hub import EvalResult

    metrics = facts.record.metrics if facts.record else {}
    rows, results = [], []
    for name, metric in metrics.items():
        data, kind, split, title = _data(facts, name, len(accuracy_names(metrics)))
        shots = f" ({metric.fewshot}-shot)" if metric.fewshot else ""
        rows.append([data, f"{title}{shots}", *_cells(title, metric)])
        details = {"stderr": metric.stderr, "samples": metric.samples, "num_fewshot": metric.fewshot}
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_name=data,
                dataset_type=kind,
                dataset_split=split,
                metric_type=title,
                metric_value=metric.value,
                metric_args={key: value for key, value in details.items() if value is not None} or None,
            )
        )
    return rows, results


def _data(facts: CardFacts, metric: str, tasks: int) -> tuple[str, str, str | None, str]:
    """Return the printed name, type and split of a metric's data, and the metric's name without that of its task."""
    if metric == "perplexity":
        return *facts.text, metric
    if metric == "accuracy":
        return f"mean of {count(tasks, 'task')}", "mean", None, metric
    task, _, name = metric.partition("/")
    return task, task, None, name or "accuracy"


def _cells(title: str, metric: Metric) -> list[str]:
    """Return the printed value, standard error and number of samples of a metric."""
    scale, unit = (1, "") if title == "perplexity" else (100, " %")
    value = f"{metric_value(scale * metric.value, title)}{unit}"
    error = DASH if metric.stderr is None else f"{metric_value(scale * metric.stderr, title)}{unit}"
    return [value, error, f"{metric.samples or DASH}"]
