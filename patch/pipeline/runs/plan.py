"""Runs, shared files, tables and figures of an experiment, as used by the Snakemake rules."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from patch.errors import InputError, suggest
from patch.files.io import read_json
from patch.learning.finetuning_settings import Finetuning
from patch.learning.learning_settings import Learning
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.runs.grid import Grid
from patch.pipeline.runs.job_inputs import JobInputs
from patch.pipeline.runs.job_settings import JobSettings
from patch.pipeline.runs.layout import Layout, input_path
from patch.pipeline.runs.run import ModelInfo, Run
from patch.pipeline.runs.shared_masks import SharedMasks
from patch.pipeline.runs.store import Sequences, Statistics, Store, calibrated

STANDARD_TABLES = ("joint", "tile", "unstructured", "quantized", "tasks", "density", "seeds", "speedup", "published")


class Plan:
    """Plan of all jobs of an experiment.

    Args:
        experiment: Validated configuration.

    Attributes:
        settings: Settings of each job.
        inputs: Named input files of each job.

    Raises:
        InputError: The configuration names something that does not exist, or has values that exclude each other.
    """

    def __init__(self, experiment: Experiment) -> None:
        if experiment.experiment in experiment.reuse:
            raise InputError(f"`reuse` names {experiment.experiment!r}, this very experiment; name others")
        self.experiment = experiment
        self.store = Store(experiment)
        self.grid = Grid(experiment)
        self.layout = Layout(experiment.experiment)
        self.settings, self.inputs = JobSettings(self), JobInputs(self)
        masked = [run for run in self.grid.closure if run.definition.stage != "none" and not run.derived]
        self.masks = SharedMasks(masked, self.settings.mask_digest, self.layout, experiment.reuse)
        self._check_published()
        self._check_tables()

    def _check_published(self) -> None:
        path = Path(input_path(self.experiment.published, "published"))
        if not path.is_file():
            raise InputError(
                f"`published` is {str(path)!r}: no such file; config/published.json has the paper's numbers"
            )
        known = list(read_json(path).get("models", {}))
        for name, model in self.experiment.models.items():
            if model.published is not None and model.published not in known:
                hint = suggest(model.published, known)
                raise InputError(f"`models.{name}.published` is {model.published!r}; {hint}")

    def _check_tables(self) -> None:
        for name in self.grid.tables:
            if name in STANDARD_TABLES:
                raise InputError(
                    f"grid: `table` is {name!r}, a standard one; choose another name than {', '.join(STANDARD_TABLES)}"
                )

    @cached_property
    def sequences(self) -> dict[str, Sequences]:
        """Token sequence files that the experiment needs, by name."""
        trained = [name for name, model in self.experiment.models.items() if model.source.kind == "train"]
        needed = [self.store.training_sequences(name) for name in trained]
        needed += [self.store.perplexity_sequences(name) for name in self.experiment.models]
        runs = self.grid.closure
        needed += [self.store.calibration_sequences(run.model, run.seed) for run in runs if calibrated(run)]
        learned = [run for run in self.grid.closure if run.definition.stage == "learn" and not run.derived]
        needed += [self.learning_sequences(run) for run in learned]
        needed += [self.finetuning_sequences(run) for run in runs if run.finetune]
        return {sequences.key: sequences for sequences in needed}

    @cached_property
    def statistics(self) -> dict[str, Statistics]:
        """Folders of dense-model statistics that the experiment needs, by name."""
        needed = [self.dense_statistics(run) for run in self.grid.closure]
        return {statistics.key: statistics for statistics in needed if statistics}

    @cached_property
    def _needing_gram(self) -> set[tuple[str, int]]:
        return {(run.model, run.seed) for run in self.grid.closure if run.definition.statistics == "gram"}

    def dense_statistics(self, run: Run) -> Statistics | None:
        """Return the dense-model statistics that a run reads with `propagate: dense`, else None.

        All runs of a model and seed share one folder. It has Gram matrices if one of these runs needs them.
        """
        if run.derived or not calibrated(run) or self.experiment.calibration.propagate == "pruned":
            return None
        return self.store.statistics(run.model, run.seed, (run.model, run.seed) in self._needing_gram)

    def learning_sequences(self, run: Run) -> Sequences:
        """Return the sequences that a run learns its masks on, limited to the number that the run can read."""
        return self._training_sequences(run.model, self.grid.learning(run))

    def finetuning_sequences(self, run: Run) -> Sequences:
        """Return the sequences that a run is fine-tuned on, limited to the number that the run can read."""
        return self._training_sequences(run.model, self.experiment.finetuning)

    def _training_sequences(self, model: str, settings: Learning | Finetuning) -> Sequences:
        trained_on = self.experiment.models[model].source.kind == "train"
        limit = None if trained_on else settings.text_sequences
        without_eos = isinstance(settings, Learning) and not settings.append_eos
        kind = "packed-without-eos" if without_eos else "packed"
        return self.store.sequences(model, settings.use, kind, settings.seqlen, limit)

    @cached_property
    def models(self) -> list[str]:
        """Names of the models that have a run, in the order of the configuration."""
        used = {run.model for run in self.grid.runs}
        return [name for name in self.experiment.models if name in used]

    @cached_property
    def model_folders(self) -> dict[str, str]:
        """Models of those folders in the store that belong to one model."""
        folders = {self.store.model_path(name): name for name in self.experiment.models}
        return folders | {statistics.path: statistics.model for statistics in self.statistics.values()}

    def model_info(self, name: str) -> ModelInfo:
        """Return the description of a model for tables and figures."""
        model = self.experiment.models[name]
        shown = {key: getattr(model, key) for key in ("title", "variant", "published", "comparable")}
        return ModelInfo(name=name, tile=self.experiment.tile, **shown)

    def learned_runs(self, model: str) -> list[Run]:
        """Return the learned runs whose curves are drawn: the first seed of each row of the standard tables."""
        return [run for run in _first_learned(self.grid.standard) if run.model == model]

    @cached_property
    def explored_curves(self) -> list[Run]:
        """Learned runs whose curves the interactive page shows: the first seed of each row of all tables."""
        return _first_learned(self.grid.runs)

    @cached_property
    def exported_runs(self) -> list[Run]:
        """Runs whose model can be exported: all that are pruned or quantized."""
        return [run for run in self.grid.runs if run.definition.stage != "none" or run.quantization]

    def hybrid_runs(self, model: str) -> list[Run]:
        """Return the hybrid runs of a model in the standard tables, without derived ones, which have their masks."""
        runs = (run for run in self.grid.standard if run.model == model)
        return [run for run in runs if run.pattern == "hybrid" and not run.derived]

    def timed_runs(self, model: str) -> list[Run]:
        """Return the runs of a model whose speed is measured: the first 2:4 run, and the first run of each hybrid row.

        The speed does not depend on which weights of a group are kept, nor on the seed. It may depend on the positions
        of the dense tiles. The list is empty if the configuration has no section `speedup`, or one without the model.
        """
        speedup = self.experiment.speedup
        if speedup is None or (speedup.models is not None and model not in speedup.models):
            return []
        first: dict[str, Run] = {}
        for run in self.grid.standard:
            plain = run.model == model and not run.derived and not run.variant
            if plain and run.pattern in ("2:4", "hybrid"):
                first.setdefault(run.row if run.pattern == "hybrid" else "2:4", run)
        return list(first.values())

    @cached_property
    def timed_models(self) -> list[str]:
        """Names of the models whose speed is measured."""
        return [name for name in self.models if self.timed_runs(name)]

    @property
    def short_jobs(self) -> bool:
        """Return whether most jobs take less time than a process needs to import torch.

        These are jobs on a CPU for models that the workflow trains itself, which are small.
        """
        trained = all(self.experiment.models[name].source.kind == "train" for name in self.models)
        return trained and self.experiment.resources.device == "cpu"

    def tables(self) -> list[str]:
        """Return the names of the tables that have at least one row: standard tables, then those of the grid."""
        sparse = [run for run in self.grid.standard if run.pattern != "dense"]
        variants = {self.experiment.models[run.model].variant for run in sparse if not run.quantization}
        shown = [self.experiment.models[name] for name in self.models]
        wanted = {
            "joint": "joint" in variants,
            "tile": "tile" in variants,
            "unstructured": any(run.pattern == "unstructured" for run in sparse),
            "quantized": any(run.quantization for run in sparse),
            "tasks": bool(self.grid.standard and self.experiment.evaluation.tasks),
            "density": any(run.pattern == "hybrid" and not run.derived for run in sparse),
            "seeds": len({(run.model, run.row) for run in sparse}) < len(sparse),
            "speedup": bool(self.timed_models),
            "published": any(model.published and not model.comparable for model in shown),
        }
        assert tuple(wanted) == STANDARD_TABLES
        return [name for name, there in wanted.items() if there] + [name for name in self.grid.tables if name]

    def figures(self, model: str) -> list[str]:
        """Return the names of the figures of a model that have data."""
        sparse = any(run.model == model and run.pattern != "dense" for run in self.grid.standard)
        wanted = {
            "pareto": sparse,
            "density": self.hybrid_runs(model),
            "curves": self.learned_runs(model),
            "speedup": self.timed_runs(model),
        }
        return [name for name, there in wanted.items() if there]

    @cached_property
    def updated_runs(self) -> dict[Run, None]:
        """Pruned runs whose updated weights an evaluation or a quantization reads."""
        runs = (run for run in self.grid.runs if run.definition.updates_weights and not run.finetune)
        return dict.fromkeys(run.pruned for run in runs)

    def cached_weights(self, run: Run) -> str | None:
        """Return the path of a pruned run's cached updated weights, or None if no job reads them."""
        return self.layout.cached_weights(run) if run in self.updated_runs else None


def _first_learned(runs: Iterable[Run]) -> list[Run]:
    """Return the learned run of the first seed of each row."""
    first: dict[tuple[str, str], Run] = {}
    for run in runs:
        if run.definition.stage == "learn" and not run.derived:
            first.setdefault((run.model, run.row), run)
    return list(first.values())
