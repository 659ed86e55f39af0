"""Settings of the summary and overview pages. Imports are light because the workflow reads this module when parsed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from patch.data.corpus_settings import Use
from patch.learning.finetuning_settings import Finetuning
from patch.learning.learning_settings import Learning
from patch.pipeline.config.experiment import Evaluation
from patch.pipeline.config.load import DEFAULT_CONFIG
from patch.pipeline.reporting.units import count
from patch.pipeline.results.order import method_title, percent, run_title
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import Run, format_tile
from patch.pipeline.runs.stage_settings import OverviewSettings, SummarySettings


def overview_settings(plan: Plan) -> OverviewSettings:
    """Return the settings of the cost and environment pages."""
    return OverviewSettings(experiment=plan.experiment.experiment, digests=plan.settings.digests(plan.grid.runs))


def summary_settings(plan: Plan) -> SummarySettings:
    """Return the settings of the summary."""
    return SummarySettings(
        experiment=plan.experiment.experiment,
        tabulate=plan.settings.tabulate(speed=True),
        shown=plan.tables(),
        figures={
            plan.experiment.models[name].title: {
                figure: f"figures/{name}/{figure}.png" for figure in plan.figures(name)
            }
            for name in plan.models
        },
        explore="explore.html",
        run=describe_experiment(plan),
    )


def describe_experiment(plan: Plan) -> dict[str, str]:
    """Return the configuration in a few lines: heading -> text."""
    experiment, runs = plan.experiment, plan.grid.runs
    perplexity, calibration = experiment.evaluation.perplexity, experiment.calibration
    lines = {
        "Models": _listed(f"{experiment.models[name].title} ({_source(plan, name)})" for name in plan.models),
        "Methods": _listed(run_title(run) for run in runs),
        "Target sparsities": _listed(f"{percent(level)} %" for level in sorted({run.sparsity for run in runs})),
        "Tiles": _listed(format_tile(tile) for tile in sorted({run.tile for run in runs if run.tile})),
        "Seeds": _listed(f"{seed}" for seed in sorted({run.seed for run in runs if run.seeded})),
        "Perplexity": f"{_corpus(perplexity.use)}, sequences of {perplexity.seqlen} tokens",
        "Tasks": _tasks(experiment.evaluation),
        "Speed": _speed(plan),
        "Calibration": f"{_corpus(calibration.use)}, {calibration.samples} sequences of {calibration.seqlen} tokens",
        "Learning": "; ".join(_learning(plan, [run for run in plan.grid.closure if not run.derived])),
        "Fine-tuning": _finetuning(plan),
    }
    return {name: text for name, text in lines.items() if text}


def _tasks(evaluation: Evaluation) -> str:
    """Return the tasks with their few-shot examples, empty without tasks."""
    if not evaluation.tasks:
        return ""
    shots = dict.fromkeys(evaluation.tasks, "") | {
        name: f" ({number}-shot)" for name, number in evaluation.fewshot.items()
    }
    questions = f" (at most {evaluation.limit} questions each)" if evaluation.limit else ""
    norm = ", with acc_norm" if evaluation.acc_norm else ""
    return f"{_listed(f'{name}{shot}' for name, shot in shots.items())}{questions}{norm}"


def _speed(plan: Plan) -> str:
    """Return a description of the speed benchmark, empty if speed is not measured."""
    sizes = plan.experiment.speedup
    if sizes is None or not plan.timed_models:
        return ""
    batch = f"batch of {count(sizes.batch_size, 'sequence')}"
    new = " and ".join(map(str, sizes.new_tokens))
    return f"{batch}, prompt of {sizes.prompt} tokens, {new} new tokens, {sizes.repeats} repeats"


def _source(plan: Plan, model: str) -> str:
    source = plan.experiment.models[model].source
    kinds = {"train": "trained by the workflow", "hub": "hub", "local": "local folder", "gguf": "package"}
    names = {"hub": "repo", "local": "path", "gguf": "distribution"}
    return kinds[source.kind] + (f" {getattr(source, names[source.kind])}" if source.kind in names else "")


def _learning(plan: Plan, runs: Sequence[Run]) -> Iterable[str]:
    """Return a line for each distinct learning setup, with the methods that use it."""
    methods: dict[str, dict[str, None]] = {}
    for run in runs:
        if run.definition.stage == "learn":
            methods.setdefault(_size(plan.grid.learning(run)), {})[method_title(run.method)] = None
    return (f"{', '.join(names)}: {size}" for size, names in methods.items())


def _finetuning(plan: Plan) -> str:
    """Return a description of the fine-tuning setup, empty if no run is fine-tuned."""
    settings = plan.experiment.finetuning
    if settings is None or not any(run.finetune for run in plan.grid.runs):
        return ""
    return _size(settings)


def _size(settings: Learning | Finetuning) -> str:
    batch = f"{count(settings.batch_size, 'sequence')} of {settings.seqlen} tokens"
    return f"{settings.steps} steps of {batch} from {_corpus(settings.use)}"


def _corpus(use: Use) -> str:
    return f"{use.corpus} ({use.split})"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def read_findings(plan: Plan) -> list[str]:
    """Return the findings that the summary has written, none before it has run."""
    path = Path(plan.layout.findings)
    # Titles may contain characters at which `splitlines` splits.
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []


def command(configfiles: Sequence[str], changes: Sequence[str] = (), targets: Sequence[str] = ()) -> str:
    """Return the shell command that reproduces an experiment or its ``targets``, relative to the current folder."""
    files = [path for path in map(os.path.relpath, configfiles) if path != DEFAULT_CONFIG]
    options = [*(["--configfile", *files] if files else []), *(["--config", *changes] if changes else [])]
    return shlex.join(["snakemake", *targets, *options])
