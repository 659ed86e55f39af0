"""Settings of the jobs of an experiment, and their digests."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from patch.pipeline.runs.layout import digest, settings_digest
from patch.pipeline.runs.run import Run
from patch.pipeline.runs.stage_settings import (
    CompareSettings,
    EvaluateSettings,
    ExpectedMask,
    ExploreSettings,
    ExportSettings,
    FigureSettings,
    FinetuneSettings,
    Form,
    ImportSettings,
    LearnSettings,
    PruneSettings,
    QuantizeSettings,
    SelfTestSettings,
    SpeedupSettings,
    TabulateSettings,
    default_form,
)
from patch.pipeline.runs.store import calibrated
from patch.pruning.pruning_settings import Pruning

if TYPE_CHECKING:
    from patch.pipeline.runs.plan import Plan


class JobSettings:
    """Settings of the jobs of a plan, and the digests by which results of other settings are recognized."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._experiment, self._store, self._grid = plan, plan.experiment, plan.store, plan.grid

    def _run(self, run: Run) -> dict[str, Any]:
        """Return the settings that identify a run, with its dtype and device."""
        names = ("model", "method", "pattern", "sparsity", "seed")
        return {name: getattr(run, name) for name in names} | self._machine(run)

    def _machine(self, run: Run) -> dict[str, str]:
        return {"dtype": self._experiment.models[run.model].dtype, "device": self._experiment.resources.device}

    def self_test(self) -> SelfTestSettings:
        """Return the settings of the job that tests the kernels."""
        return SelfTestSettings(device=self._experiment.resources.device)

    def prune(self, run: Run) -> PruneSettings:
        """Return the settings of a one-shot pruning job."""
        inputs = self._plan.inputs.prune(run)
        own = getattr(self._experiment.pruning, run.method, None)
        return PruneSettings(
            upstream=" ".join(inputs.values()),
            batch_size=self._experiment.calibration.batch_size if "sequences" in inputs else 1,
            pruning=Pruning(**{run.method: own}) if own else Pruning(),
            package=run.definition.package,
            **self._run(run),
        )

    def quantize(self, run: Run) -> QuantizeSettings:
        """Return the settings of a job that quantizes a pruned run."""
        calibration = self._store.calibration_sequences(run.model, run.seed).path if calibrated(run) else ""
        sources = [self._store.model_path(run.model), self.mask_digest(run.pruned), calibration]
        return QuantizeSettings(
            upstream=digest(sources),
            method=run.quantization,
            mask=self._expected_mask(run),
            batch_size=self._experiment.calibration.batch_size if calibration else 1,
            quantization=self._experiment.quantization,
            **self._machine(run),
        )

    def finetune(self, run: Run) -> FinetuneSettings:
        """Return the settings of a job that fine-tunes a pruned run."""
        sources = [
            self._store.model_path(run.model),
            self.mask_digest(run.pruned),
            self._plan.finetuning_sequences(run).path,
        ]
        return FinetuneSettings(
            upstream=digest(sources),
            kind=run.finetune,
            mask=self._expected_mask(run),
            pruning=self.prune(run.pruned) if run.definition.updates_weights else None,
            seed=run.seed,
            finetuning=self._grid.finetuning(run),
            **self._machine(run),
        )

    def learn(self, run: Run) -> LearnSettings:
        """Return the settings of a learning job."""
        priors = {name: self.mask_digest(prior) for name, prior in self._grid.priors(run).items()}
        sources = [self._store.model_path(run.model), self._plan.learning_sequences(run).path, priors]
        expected = {f"{name}_mask": self._expected_mask(prior) for name, prior in self._grid.priors(run).items()}
        settings = self._grid.learning(run)
        return LearnSettings(
            upstream=digest(sources), tile=run.tile, masks=expected, learning=settings, **self._run(run)
        )

    def export(self, run: Run, form: Form | None = None) -> ExportSettings:
        """Return the settings of a job that exports the model of a run, by default in the form of `default_form`."""
        experiment = self._experiment
        model, perplexity = experiment.models[run.model], experiment.evaluation.perplexity
        return ExportSettings(
            upstream=digest([self._store.model_path(run.model), self.mask_digest(run)]),
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

    def import_mask(self, run: Run) -> ImportSettings:
        """Return the settings of a job that checks an imported mask."""
        sources = [self._store.model_path(run.model), self._store.mask_contents(run.imported)]
        source = self._experiment.imports[run.imported].source
        return ImportSettings(
            upstream=digest(sources), source=source, method=run.method, pattern=run.pattern, tile=run.tile
        )

    def evaluate(self, run: Run) -> EvaluateSettings:
        """Return the settings of an evaluation job."""
        store = self._store
        sources = [
            store.model_path(run.model),
            self.mask_digest(run),
            store.perplexity_sequences(run.model).path,
            *([store.tasks_path()] if self._experiment.evaluation.tasks else []),
        ]
        return EvaluateSettings(
            upstream=digest(sources),
            experiment=self._experiment.experiment,
            run=run,
            mask=self._expected_mask(run),
            quantized=self.mask_digest(run) if run.quantization else None,
            finetuned=self.mask_digest(run) if run.finetune else None,
            evaluation=self._experiment.evaluation,
            **self._machine(run),
        )

    def speedup(self, model: str) -> SpeedupSettings:
        """Return the settings of the job that measures the speed of a model's runs."""
        runs = self._plan.timed_runs(model)
        return SpeedupSettings(
            upstream=digest([self._store.model_path(model), *(self.mask_digest(run) for run in runs)]),
            experiment=self._experiment.experiment,
            model=model,
            runs=runs,
            masks=[self._expected_mask(run) for run in runs],
            # Other measured models do not change this one's speed.
            speedup=self._experiment.speedup.model_copy(update={"models": None}),
            **self._machine(runs[0]),
        )

    def tabulate(self, speed: bool = False) -> TabulateSettings:
        """Return the settings of tables.

        With ``speed`` they include the digests of the speed measurements, which only the speed table depends on.
        """
        tables = {
            name: list(dict.fromkeys(f"{run.model}/{run.row}" for run in runs))
            for name, runs in self._grid.tables.items()
        }
        return TabulateSettings(
            digests=self.digests(self._grid.runs, self._plan.timed_models if speed else ()),
            models=[self._plan.model_info(name) for name in self._plan.models],
            runs=self._grid.runs,
            standard=tables.pop(None, []),
            tables=tables,
            published=self._experiment.published,
            fewshot=self._experiment.evaluation.fewshot,
        )

    def compare(self) -> CompareSettings:
        """Return the settings of the job that computes differences from the samples."""
        return CompareSettings(digests=self.digests(self._grid.runs))

    def density(self, model: str) -> FigureSettings:
        """Return the settings of the density figure."""
        return FigureSettings(model=self._plan.model_info(model), digests=self.digests(self._plan.hybrid_runs(model)))

    def pareto(self, model: str) -> FigureSettings:
        """Return the settings of the Pareto figure, whose points are the rows of the standard tables."""
        rows = dict.fromkeys(f"{model}/{run.row}" for run in self._grid.standard if run.model == model)
        digests = self.digests(self._grid.runs)
        return FigureSettings(model=self._plan.model_info(model), digests=digests, rows=list(rows))

    def speedup_figure(self, model: str) -> FigureSettings:
        """Return the settings of the figure of the same points against their measured speed."""
        settings = self.pareto(model)
        return settings.model_copy(update={"digests": settings.digests | self.digests([], [model])})

    def curves(self, model: str) -> FigureSettings:
        """Return the settings of the figure of training curves."""
        return FigureSettings(model=self._plan.model_info(model), runs=self._plan.learned_runs(model))

    def explore(self) -> ExploreSettings:
        """Return the settings of the interactive page."""
        return ExploreSettings(
            experiment=self._experiment.experiment,
            digests=self.digests(self._grid.runs),
            models=[self._plan.model_info(name) for name in self._plan.models],
            curves=self._plan.explored_curves,
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
            return settings_digest(self.quantize(run))
        if run.finetune:
            return settings_digest(self.finetune(run))
        by_stage = {"prune": self.prune, "learn": self.learn, "import": self.import_mask}
        return settings_digest(by_stage[run.definition.stage](run)) if run.definition.stage in by_stage else ""

    @cache  # noqa: B019 - one plan a process
    def record_digest(self, run: Run) -> str:
        """Return the digest of the settings of a run's evaluation."""
        return settings_digest(self.evaluate(run))

    def speed_digest(self, model: str) -> str:
        """Return the digest of the settings of a model's speed measurement."""
        return settings_digest(self.speedup(model))

    def digests(self, runs: Iterable[Run], speeds: Iterable[str] = ()) -> dict[str, str]:
        """Return settings digests: of evaluations by `model/run`, and of speed measurements by `speedup/model`."""
        found = {f"{run.model}/{run.id}": self.record_digest(run) for run in runs}
        return found | {f"speedup/{model}": self.speed_digest(model) for model in speeds}
