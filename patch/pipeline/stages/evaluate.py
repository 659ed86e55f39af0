"""Evaluation of one run: perplexity, zero-shot accuracy, and the achieved sparsity of the model."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from patch.data.sequences import load_sequences
from patch.distributed.signals import leave_when_asked
from patch.evaluation.harness import TaskEvaluator, mean_accuracy
from patch.evaluation.metric import Metric
from patch.evaluation.partial_record import PartialRecord
from patch.evaluation.perplexity import perplexity
from patch.masks.packed import apply_masks
from patch.models.loading import load_model, load_tokenizer, prunable_linears
from patch.pipeline.results.environment import describe_environment
from patch.pipeline.results.record import Record
from patch.pipeline.results.samples import write_samples
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.stage_settings import EvaluateSettings
from patch.pipeline.stages._common import load_expected, measured, prepare_device
from patch.pipeline.stages._progress import report
from patch.pruning.weights import load_weights
from patch.quantization.model import apply_layers
from patch.quantization.quantized_files import load_layers


def run_evaluate(
    settings: EvaluateSettings,
    *,
    model: Path,
    sequences: Path,
    tasks: Path,
    record: Path,
    samples: Path,
    mask: Path | None = None,
    weights: Path | None = None,
    quantized: Path | None = None,
    partial: Path | None = None,
) -> None:
    """Evaluate a run; write the results of each sequence and question, then the record.

    With the file ``partial``, an interrupted evaluation resumes after its last finished metric.
    """
    device = prepare_device(settings.device)
    masks = load_expected(mask, settings.mask)
    network = load_model(model, settings.dtype, device)
    stages: dict[str, Any] = {}
    if weights:
        load_weights(weights, prunable_linears(network), settings.mask.digest if settings.mask else "")
    if quantized:
        layers, stages["quantize"] = load_layers(quantized, settings.quantized)
        apply_layers(network, layers)
    if masks:
        apply_masks(network, masks)
        stages[settings.run.definition.stage] = masks.header["cost"]
    done = PartialRecord(partial, settings_digest(settings))
    if done.parts:
        print(f"resumed: {', '.join(done.parts)}", flush=True)
    with leave_when_asked("stopped by a signal; run again to resume") if partial else nullcontext():
        _measure(settings, network, model, sequences, tasks, done)
    accuracies = {name: done.parts[name].metric for name in settings.evaluation.tasks}
    found = {"perplexity": done.parts["perplexity"].metric, "accuracy": mean_accuracy(accuracies), **accuracies}
    linears = prunable_linears(network)
    sizes = {name: linear.weight.numel() for name, linear in linears.items()}
    if not quantized:
        weights_left = {name: int((linear.weight != 0).sum()) for name, linear in linears.items()}
    else:
        # Quantization rounds some weights to zero, which do not count as pruned.
        weights_left = {name: int(masks.masks[name].sum()) for name in sizes} if masks else sizes
    sparsity = 1 - sum(weights_left.values()) / sum(sizes.values())
    write_samples(samples, settings.experiment, settings.run, _values(found), settings_digest(settings))
    Record.write(
        record,
        {
            "schema": 1,
            "experiment": settings.experiment,
            "run": settings.run.model_dump(),
            "metrics": {name: _summary(metric) for name, metric in found.items()},
            "achieved_sparsity": sparsity,
            "density": {name: weights_left[name] / size for name, size in sizes.items()},
            "config_digest": settings_digest(settings),
            "stages": {**stages, "evaluate": done.cost()},
            "environment": describe_environment(device),
        },
    )
    done.remove()
    print(
        f"{settings.run.model} {settings.run.id}: perplexity {found['perplexity'].value:.3f}, "
        f"accuracy {100 * found['accuracy'].value:.2f} %, sparsity {sparsity:.4f}"
    )


def _summary(metric: Metric) -> dict[str, Any]:
    """Return a metric for the record, without its samples, which are large and in a separate file."""
    return metric.model_dump(exclude={"values"})


def _values(found: dict[str, Metric]) -> dict[str, tuple[float, ...]]:
    """Return the samples of each metric; the mean accuracy over tasks has no samples."""
    return {name: metric.values for name, metric in found.items() if name != "accuracy"}


def _measure(
    settings: EvaluateSettings, network: nn.Module, model: Path, sequences: Path, tasks: Path, partial: PartialRecord
) -> None:
    """Measure the metrics that ``partial`` does not have yet, and add each one to it."""
    evaluation = settings.evaluation
    include_path = Path(evaluation.include_path) if evaluation.include_path else None
    todo = [name for name in evaluation.tasks if name not in partial.parts]

    @cache
    def evaluator() -> TaskEvaluator:
        data, limit = tasks if include_path else None, evaluation.limit
        return TaskEvaluator(network, load_tokenizer(model), todo, include_path, data, evaluation.batch_size, limit)

    if "perplexity" not in partial.parts:
        with measured(settings.device) as cost:
            metric = perplexity(network, load_sequences(sequences), evaluation.perplexity.batch_size)
        partial.add("perplexity", metric, cost)
        print(f"perplexity {metric.value:.3f}", flush=True)
    count = len(evaluation.tasks)
    for name in todo:
        position = evaluation.tasks.index(name)
        number = f"task {position + 1} of {count}"
        print(f"{number}: {name}", flush=True)
        report(position, count)
        with measured(settings.device) as cost:
            metric = evaluator().measure(name)
        partial.add(name, metric, cost)
        print(f"{number}: {name} {100 * metric.value:.2f} %, in {cost['seconds']:.1f} s", flush=True)
        report(position + 1, count)
