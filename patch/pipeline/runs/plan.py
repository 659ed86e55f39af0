"""Settings and input files of all jobs of an experiment, as used by the Snakemake rules."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from patch.errors import InputError, suggest
from patch.files.io import read_json
from patch.learning.finetuning_settings import Finetuning
from patch.learning.learning_settings import Learning
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.runs.grid import Grid
from patch.pipeline.runs.layout import Layout, digest, input_path, settings_digest
from patch.pipeline.runs.run import ModelInfo, Run
from patch.pipeline.runs.shared_masks import SharedMasks
from patch.pipeline.runs.stage_settings import (
    CompareSettings,
    EvaluateSettings,
    ExpectedMask,
    ExportSettings,
    FigureSettings,
    FinetuneSettings,
    Form,
    ImportSettings,
    LearnSettings,
    PruneSettings,
    QuantizeSettings,
    SpeedupSettings,
    TabulateSettings,
    default_form,
)
from patch.pipeline.runs.store import Sequences, Statistics, Store, calibrated
from patch.pruning.pruning_settings import Pruning

STANDARD_TABLES = ("joint", "tile", "unstructured", "quantized", "tasks", "density", "seeds", "speedup", "published")


class Plan:
    """Plan of all jobs of an experiment.

    Args:
        experiment: Validated configuration.

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
        masked = [run for run in self.grid.closure if run.definition.stage != "none" and not run.derived]
        self.masks = SharedMasks(masked, self.mask_digest, self.layout, experiment.reuse)
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

    # -- settings of jobs ---------------------------------------------------------------------

    def _run(self, run: Run) -> dict[str, Any]:
        """Return the settings that identify a run, with its dtype and device."""
        names = ("model", "method", "pattern", "sparsity", "seed")
        return {name: getattr(run, name) for name in names} | self._machine(run)

    def _machine(self, run: Run) -> dict[str, str]:
        return {"dtype": self.experiment.models[run.model].dtype, "device": self.experiment.resources.device}

    def prune_settings(self, run: Run) -> PruneSettings:
        """Return the settings of a one-shot pruning job."""
        inputs = self.prune_inputs(run)
        own = getattr(self.experiment.pruning, run.method, None)
        return PruneSettings(
            upstream=" ".join(inputs.values()),
            batch_size=self.experiment.calibration.batch_size if "sequences" in inputs else 1,
            pruning=Pruning(**{run.method: own}) if own else Pruning(),
            **self._run(run),
        )

    def quantize_settings(self, run: Run) -> QuantizeSettings:
        """Return the settings of a job that quantizes a pruned run."""
        calibration = self.store.calibration_sequences(run.model, run.seed).path if calibrated(run) else ""
        sources = [self.store.model_path(run.model), self.mask_digest(run.pruned), calibration]
        return QuantizeSettings(
            upstream=digest(sources),
            method=run.quantization,
            mask=self._expected_mask(run),
            batch_size=self.experiment.calibration.batch_size if calibration else 1,
            quantization=self.experiment.quantization,
            **self._machine(run),
        )

    def finetune_settings(self, run: Run) -> FinetuneSettings:
        """Return the settings of a job that fine-tunes a pruned run."""
        sources = [self.store.model_path(run.model), self.mask_digest(run.pruned), self.finetuning_sequences(run).path]
        return FinetuneSettings(
            upstream=digest(sources),
            kind=run.finetune,
            mask=self._expected_mask(run),
            pruning=self.prune_settings(run.pruned) if run.definition.updates_weights else None,
            seed=run.seed,
            finetuning=self.grid.finetuning(run),
            **self._machine(run),
        )

    def learn_settings(self, run: Run) -> LearnSettings:
        """Return the settings of a learning job."""
        priors = {name: self.mask_digest(prior) for name, prior in self.grid.priors(run).items()}
        sources = [self.store.model_path(run.model), self.learning_sequences(run).path, priors]
        expected = {f"{name}_mask": self._expected_mask(prior) for name, prior in self.grid.priors(run).items()}
        settings = self.grid.learning(run)
        return LearnSettings(
            upstream=digest(sources), tile=run.tile, masks=expected, learning=settings, **self._run(run)
        )

    def export_settings(self, run: Run, form: Form | None = None) -> ExportSettings:
        """Return the settings of a job that exports the model of a run, by default in the form of `default_form`."""
        experiment = self.experiment
        model, perplexity = experiment.models[run.model], experiment.evaluation.perplexity
        return ExportSettings(
            upstream=digest([self.store.model_path(run.model), self.mask_digest(run)]),
            run=run,
            form=form or default_form(run.pattern, bool(run.quantization)),
            mask=self._expected_mask(run),
            quantized=self.mask_digest(run) if run.quantization else None,
            finetuned=self.mask_digest(run) if run.finetune else None,
            source=model.source,
            perplexity=perplexity,
            text=experiment.corpora[perplexity.use.corpus],
            record=self.record_digest(run),
            dtype=model.dtype,
        )

    def _expected_mask(self, run: Run) -> ExpectedMask | None:
        """Return the description that a job checks a run's mask against, or None for a dense run."""
        if run.pruned.definition.stage == "none":
            return None
        names = ("method", "pattern", "sparsity", "tile")
        return ExpectedMask(digest=self.mask_digest(run.pruned), **{name: getattr(run, name) for name in names})

    @cache  # noqa: B019 - one plan a process
    def mask_digest(self, run: Run) -> str:
        """Return the digest of all that the mask or the derived weights of a run depend on; empty for a dense run."""
        if run.quantization:
            return settings_digest(self.quantize_settings(run))
        if run.finetune:
            return settings_digest(self.finetune_settings(run))
        by_stage = {"prune": self.prune_settings, "learn": self.learn_settings, "import": self.import_settings}
        return settings_digest(by_stage[run.definition.stage](run)) if run.definition.stage in by_stage else ""

    def import_settings(self, run: Run) -> ImportSettings:
        """Return the settings of a job that checks an imported mask."""
        sources = [self.store.model_path(run.model), self.store.mask_contents(run.imported)]
        source = self.experiment.imports[run.imported].source
        return ImportSettings(
            upstream=digest(sources), source=source, method=run.method, pattern=run.pattern, tile=run.tile
        )

    def evaluate_settings(self, run: Run) -> EvaluateSettings:
        """Return the settings of an evaluation job."""
        store = self.store
        sources = [
            store.model_path(run.model),
            self.mask_digest(run),
            store.perplexity_sequences(run.model).path,
            *([store.tasks_path()] if self.experiment.evaluation.tasks else []),
        ]
        return EvaluateSettings(
            upstream=digest(sources),
            experiment=self.experiment.experiment,
            run=run,
            mask=self._expected_mask(run),
            quantized=self.mask_digest(run) if run.quantization else None,
            finetuned=self.mask_digest(run) if run.finetune else None,
            evaluation=self.experiment.evaluation,
            **self._machine(run),
        )

    def speedup_settings(self, model: str) -> SpeedupSettings:
        """Return the settings of the job that measures the speed of a model's runs."""
        runs = self.timed_runs(model)
        return SpeedupSettings(
            upstream=digest([self.store.model_path(model), *(self.mask_digest(run) for run in runs)]),
            experiment=self.experiment.experiment,
            model=model,
            runs=runs,
            masks=[self._expected_mask(run) for run in runs],
            # Other measured models do not change this one's speed.
            speedup=self.experiment.speedup.model_copy(update={"models": None}),
            **self._machine(runs[0]),
        )

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

    def tabulate_settings(self, speed: bool = False) -> TabulateSettings:
        """Return the settings of tables.

        With ``speed`` they include the digests of the speed measurements, which only the speed table depends on.
        """
        tables = {
            name: list(dict.fromkeys(f"{run.model}/{run.row}" for run in runs))
            for name, runs in self.grid.tables.items()
        }
        return TabulateSettings(
            digests=self.digests(self.grid.runs, self.timed_models if speed else ()),
            models=[self.model_info(name) for name in self.models],
            runs=self.grid.runs,
            standard=tables.pop(None, []),
            tables=tables,
            published=self.experiment.published,
            fewshot=self.experiment.evaluation.fewshot,
        )

    def compare_settings(self) -> CompareSettings:
        """Return the settings of the job that computes differences from the samples."""
        return CompareSettings(digests=self.digests(self.grid.runs))

    @cache  # noqa: B019 - one plan a process
    def record_digest(self, run: Run) -> str:
        """Return the digest of the settings of a run's evaluation."""
        return settings_digest(self.evaluate_settings(run))

    def speed_digest(self, model: str) -> str:
        """Return the digest of the settings of a model's speed measurement."""
        return settings_digest(self.speedup_settings(model))

    def digests(self, runs: Iterable[Run], speeds: Iterable[str] = ()) -> dict[str, str]:
        """Return settings digests: of evaluations by `model/run`, and of speed measurements by `speedup/model`."""
        found = {f"{run.model}/{run.id}": self.record_digest(run) for run in runs}
        return found | {f"speedup/{model}": self.speed_digest(model) for model in speeds}

    def density_settings(self, model: str) -> FigureSettings:
        """Return the settings of the density figure."""
        return FigureSettings(model=self.model_info(model), digests=self.digests(self.hybrid_runs(model)))

    def pareto_settings(self, model: str) -> FigureSettings:
        """Return the settings of the Pareto figure, whose points are the rows of the standard tables."""
        rows = dict.fromkeys(f"{model}/{run.row}" for run in self.grid.standard if run.model == model)
        digests = self.digests(self.grid.runs)
        return FigureSettings(model=self.model_info(model), digests=digests, rows=list(rows))

    def speedup_figure_settings(self, model: str) -> FigureSettings:
        """Return the settings of the figure of the same points against their measured speed."""
        settings = self.pareto_settings(model)
        return settings.model_copy(update={"digests": settings.digests | self.digests([], [model])})

    def curves_settings(self, model: str) -> FigureSettings:
        """Return the settings of the figure of training curves."""
        return FigureSettings(model=self.model_info(model), runs=self.learned_runs(model))

    def learned_runs(self, model: str) -> list[Run]:
        """Return the learned runs whose curves are drawn: the first seed of each row of the standard tables."""
        first: dict[str, Run] = {}
        for run in self.grid.standard:
            if run.model == model and run.definition.stage == "learn" and not run.derived:
                first.setdefault(run.row, run)
        return list(first.values())

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

    # -- input files of jobs ------------------------------------------------------------------

    def prune_inputs(self, run: Run) -> dict[str, str]:
        """Return the named input files of a one-shot pruning job."""
        inputs = {"model": self.store.model_path(run.model)}
        if statistics := self.dense_statistics(run):
            inputs["statistics"] = statistics.path
        elif calibrated(run):
            inputs["sequences"] = self.store.calibration_sequences(run.model, run.seed).path
        return inputs

    @cached_property
    def updated_runs(self) -> dict[Run, None]:
        """Pruned runs whose updated weights an evaluation or a quantization reads."""
        runs = (run for run in self.grid.runs if run.definition.updates_weights and not run.finetune)
        return dict.fromkeys(run.pruned for run in runs)

    def cached_weights(self, run: Run) -> str | None:
        """Return the path of a pruned run's cached updated weights, or None if no job reads them."""
        return self.layout.cached_weights(run) if run in self.updated_runs else None

    def import_inputs(self, run: Run) -> dict[str, str]:
        """Return the named input files of a job that checks an imported mask."""
        return {"model": self.store.model_path(run.model), "source": self.store.mask_source(run.imported)}

    def quantize_inputs(self, run: Run) -> dict[str, str]:
        """Return the named input files of a quantization job."""
        inputs = {"model": self.store.model_path(run.model)} | self._pruned_inputs(run)
        if calibrated(run):
            inputs["sequences"] = self.store.calibration_sequences(run.model, run.seed).path
        return inputs

    def finetune_inputs(self, run: Run) -> dict[str, str]:
        """Return the named input files of a job that fine-tunes a pruned run."""
        inputs = {"mask": self.masks.mask(run), "sequences": self.finetuning_sequences(run).path}
        pruned = self.prune_inputs(run.pruned) if run.definition.updates_weights else {}
        names = {"sequences": "calibration"}
        inputs |= {names.get(name, name): path for name, path in pruned.items()}
        return inputs | {"model": self.store.model_path(run.model)}

    def export_inputs(self, run: Run) -> dict[str, str]:
        """Return the named input files of a job that exports the model of a run."""
        return {"model": self.store.model_path(run.model)} | self._compressed_inputs(run)

    def _compressed_inputs(self, run: Run) -> dict[str, str]:
        """Return the named files that compress the model of a run: its mask, and updated or quantized weights."""
        inputs = self._pruned_inputs(run)
        if run.quantization:
            inputs.pop("weights", None)
            inputs["quantized"] = self.layout.quantized(run)
        return inputs

    def _pruned_inputs(self, run: Run) -> dict[str, str]:
        inputs = {}
        if run.definition.stage != "none":
            inputs["mask"] = self.masks.mask(run)
        if run.finetune:
            inputs["weights"] = self.layout.finetuned(run)
        elif run.definition.updates_weights:
            inputs["weights"] = self.layout.weights(run)
        return inputs

    def speedup_inputs(self, model: str) -> dict[str, str | list[str]]:
        """Return the named input files of the job that measures speed."""
        masks = [self.masks.mask(run) for run in self.timed_runs(model)]
        return {"model": self.store.model_path(model), "masks": masks}

    def learn_inputs(self, run: Run) -> dict[str, str]:
        """Return the named input files of a learning job, without its initial masks."""
        return {"model": self.store.model_path(run.model), "sequences": self.learning_sequences(run).path}

    def prior_inputs(self, run: Run) -> dict[str, str]:
        """Return the named mask files that initialize a learning job."""
        return {f"{name}_mask": self.masks.mask(prior) for name, prior in self.grid.priors(run).items()}

    def evaluate_inputs(self, run: Run) -> dict[str, str]:
        """Return the named input files of an evaluation job."""
        inputs = {
            "model": self.store.model_path(run.model),
            "sequences": self.store.perplexity_sequences(run.model).path,
        }
        if self.experiment.evaluation.tasks:
            inputs["tasks"] = self.store.tasks_path()
        return inputs | self._compressed_inputs(run)
