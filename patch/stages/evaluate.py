"""Evaluation of one cell: perplexity, zero-shot tasks, and the sparsity of the model that was measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from patch.data.windows import load_windows
from patch.evaluation.harness import evaluate_tasks, mean_accuracy
from patch.evaluation.perplexity import perplexity
from patch.io import write_json
from patch.layout import spec_digest
from patch.masks.packed import apply_masks, load_masks
from patch.methods import get_method
from patch.models import load_model, load_tokenizer, prunable_linears
from patch.pruning.weights import load_weights
from patch.results.environment import describe_environment
from patch.specs import EvaluateSpec
from patch.stages._common import measured, prepare_device


def run(
    spec: EvaluateSpec,
    *,
    model: Path,
    windows: Path,
    tasks: Path,
    record: Path,
    mask: Path | None = None,
    weights: Path | None = None,
) -> None:
    """Measure a cell and write its record."""
    device = prepare_device(spec.device)
    network = load_model(model, spec.dtype, device)
    stages: dict[str, Any] = {}
    if weights:
        load_weights(weights, prunable_linears(network))
    if mask:
        masks = load_masks(mask)
        apply_masks(network, masks)
        stages[get_method(spec.cell.method).stage] = masks.header["cost"]
    cost: dict[str, float] = {}
    with measured(cost, device):
        metrics = _metrics(spec, network, model, windows, tasks)
    weights_left = {name: int((linear.weight != 0).sum()) for name, linear in prunable_linears(network).items()}
    sizes = {name: linear.weight.numel() for name, linear in prunable_linears(network).items()}
    sparsity = 1 - sum(weights_left.values()) / sum(sizes.values())
    write_json(
        record,
        {
            "schema": 1,
            "experiment": spec.experiment,
            "cell": spec.cell.model_dump(),
            "metrics": metrics,
            "achieved_sparsity": sparsity,
            "density": {name: weights_left[name] / size for name, size in sizes.items()},
            "config_digest": spec_digest(spec),
            "stages": {**stages, "evaluate": cost},
            "environment": describe_environment(device),
        },
    )
    accuracy, ppl = metrics["accuracy"]["value"], metrics["perplexity"]["value"]
    print(
        f"{spec.cell.model} {spec.cell.id}: perplexity {ppl:.3f}, accuracy {100 * accuracy:.2f} %, "
        f"sparsity {sparsity:.4f}"
    )


def _metrics(spec: EvaluateSpec, network: nn.Module, model: Path, windows: Path, tasks: Path) -> dict[str, Any]:
    evaluation = spec.evaluation
    metrics = {"perplexity": perplexity(network, load_windows(windows), evaluation.perplexity.batch_size)}
    print(f"perplexity {metrics['perplexity'].value:.3f}; now {', '.join(evaluation.tasks)}", flush=True)
    include_path = Path(evaluation.include_path) if evaluation.include_path else None
    accuracies = evaluate_tasks(
        network,
        load_tokenizer(model),
        evaluation.tasks,
        include_path,
        tasks if include_path else None,
        evaluation.batch_size,
        evaluation.limit,
    )
    metrics |= {"accuracy": mean_accuracy(accuracies), **accuracies}
    return {name: asdict(metric) for name, metric in metrics.items()}
