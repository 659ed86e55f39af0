"""Evaluation of one run: perplexity, accuracy on tasks, and the achieved sparsity of the model."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patch.data.sequences import load_sequences
from patch.distributed.signals import leave_when_asked
from patch.evaluation.harness import TaskEvaluator, mean_accuracy
from patch.evaluation.metric import Metric, accuracy_names
from patch.evaluation.partial_record import PartialRecord
from patch.evaluation.perplexity import perplexity
from patch.masks.packed import apply_masks
from patch.models.dispatch import dispatch_blocks
from patch.models.loading import load_model, load_tokenizer, prunable_linears
from patch.pipeline.results.environment import describe_environment
from patch.pipeline.results.record import Record
from patch.pipeline.results.samples import write_samples
from patch.pipeline.runs.layout import settings_digest
from patch.pipeline.runs.stage_settings import EvaluateSettings
from patch.pipeline.stages._common import load_expected, load_updated, measured, prepare_device
from patch.pipeline.stages._progress import report
from patch.pruning.weights_header import read_weights_header
from patch.quantization.model import apply_layers
from patch.quantization.quantized_files import load_layers


def run_evaluate(
    settings: EvaluateSettings,
    *,
    model: Path,
    sequences: Path,
    record: Path,
    samples: Path,
    tasks: Path | None = None,
    mask: Path | None = None,
    weights: Path | None = None,
    quantized: Path | None = None,
    partial: Path | None = None,
    gpus: int = 1,
) -> None:
    """Evaluate a run; write the results of each sequence and question, then the record.

    ``tasks`` is the folder of the tasks' data. With the file ``partial``, an interrupted evaluation resumes after its
    last finished task. On `cuda`, the blocks of the model are on the first ``gpus`` GPUs.
    """
    device = prepare_device(settings.device, gpus)
    several = device == "cuda" and gpus > 1
    masks = load_expected(mask, settings.mask)
    network = load_model(model, settings.dtype, "cpu" if several else device)
    stages: dict[str, Any] = {}
    optional: dict[str, Any] = {}
    if weights:
        load_updated(weights, network, masks, settings.mask, settings.finetuned)
    if weights and settings.finetuned:
        stages["finetune"] = read_weights_header(weights).cost
    if quantized:
        layers, stages["quantize"] = load_layers(quantized, settings.quantized)
        apply_layers(network, layers)
    if masks:
        apply_masks(network, masks)
        stages[settings.run.definition.stage] = masks.header["cost"]
        if "held_out" in masks.header and not settings.run.derived:
            optional["held_out"] = masks.header["held_out"]
    if several:
        dispatch_blocks(network, [torch.device(device, index) for index in range(gpus)])
    done = PartialRecord(partial, settings_digest(settings))
    if done.parts:
        print(f"resumed: {', '.join(done.parts)}", flush=True)
    with leave_when_asked("stopped by a signal; run again to resume") if partial else nullcontext():
        _measure(settings, network, model, sequences, tasks, done, gpus)
    found = _ordered(done.parts[name].metrics for name in ("perplexity", *settings.evaluation.tasks))
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
            **optional,
        },
    )
    done.remove()
    accuracy = f"accuracy {100 * found['accuracy'].value:.2f} %, " if "accuracy" in found else ""
    print(
        f"{settings.run.model} {settings.run.id}: perplexity {found['perplexity'].value:.3f}, "
        f"{accuracy}sparsity {sparsity:.4f}"
    )


def _ordered(parts: Iterable[dict[str, Metric]]) -> dict[str, Metric]:
    """Return all metrics, perplexity first and then the mean accuracy, if a task has an accuracy."""
    perplexity_metric, *others = parts
    metrics = {name: metric for part in others for name, metric in part.items()}
    accuracies = {name: metrics[name] for name in accuracy_names(metrics)}
    mean = {"accuracy": mean_accuracy(accuracies)} if accuracies else {}
    return perplexity_metric | mean | metrics


def _summary(metric: Metric) -> dict[str, Any]:
    """Return a metric for the record, without its samples, which are large and in a separate file."""
    return metric.model_dump(exclude={"values"})


def _values(found: dict[str, Metric]) -> dict[str, tuple[float, ...]]:
    """Return the samples of each metric; the mean accuracy over tasks has no samples."""
    return {name: metric.values for name, metric in found.items() if name != "accuracy"}


def _measure(
    settings: EvaluateSettings,
    network: nn.Module,
    model: Path,
    sequences: Path,
    tasks: Path | None,
    partial: PartialRecord,
    gpus: int,
) -> None:
    """Measure perplexity and the tasks that ``partial`` does not have yet, and add each one to it."""
    evaluation = settings.evaluation
    include_path = Path(evaluation.include_path) if evaluation.include_path else None
    todo = [name for name in evaluation.tasks if name not in partial.parts]

    @cache
    def evaluator() -> TaskEvaluator:
        return TaskEvaluator(
            network,
            load_tokenizer(model),
            todo,
            include_path,
            data_dir=tasks if include_path else None,
            batch_size=evaluation.batch_size,
            limit=evaluation.limit,
            acc_norm=evaluation.acc_norm,
        )

    if "perplexity" not in partial.parts:
        with measured(settings.device, gpus) as cost:
            metric = perplexity(network, load_sequences(sequences), evaluation.perplexity.batch_size)
        partial.add("perplexity", {"perplexity": metric}, cost)
        print(f"perplexity {metric.value:.3f}", flush=True)
    count = len(evaluation.tasks)
    for name in todo:
        position = evaluation.tasks.index(name)
        number = f"task {position + 1} of {count}"
        print(f"{number}: {name}", flush=True)
        report(position, count)
        with measured(settings.device, gpus) as cost:
            metrics = evaluator().measure(name, evaluation.fewshot.get(name, 0))
        partial.add(name, metrics, cost)
        values = ", ".join(f"{title} {100 * metric.value:.2f} %" for title, metric in metrics.items())
        print(f"{number}: {values}, in {cost['seconds']:.1f} s", flush=True)
        report(position + 1, count)
