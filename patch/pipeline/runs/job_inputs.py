"""Named input files of the jobs of an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patch.pipeline.runs.run import Run
from patch.pipeline.runs.store import calibrated

if TYPE_CHECKING:
    from patch.pipeline.runs.plan import Plan


class JobInputs:
    """Named input files of the jobs of a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._store = plan, plan.store

    @property
    def self_test(self) -> list[str]:
        """Input file of all jobs that compute on a GPU, which wait for it and do not read it; empty on a CPU."""
        return [self._plan.layout.self_test] if self._plan.experiment.resources.device == "cuda" else []

    def prune(self, run: Run) -> dict[str, str]:
        """Return the named input files of a one-shot pruning job."""
        inputs = {"model": self._store.model_path(run.model)}
        if statistics := self._plan.dense_statistics(run):
            inputs["statistics"] = statistics.path
        elif calibrated(run):
            inputs["sequences"] = self._store.calibration_sequences(run.model, run.seed).path
        return inputs

    def import_mask(self, run: Run) -> dict[str, str]:
        """Return the named input files of a job that checks an imported mask."""
        return {"model": self._store.model_path(run.model), "source": self._store.mask_source(run.imported)}

    def quantize(self, run: Run) -> dict[str, str]:
        """Return the named input files of a quantization job."""
        inputs = {"model": self._store.model_path(run.model)} | self._pruned(run)
        if calibrated(run):
            inputs["sequences"] = self._store.calibration_sequences(run.model, run.seed).path
        return inputs

    def finetune(self, run: Run) -> dict[str, str]:
        """Return the named input files of a job that fine-tunes a pruned run."""
        inputs = {"mask": self._plan.masks.mask(run), "sequences": self._plan.finetuning_sequences(run).path}
        pruned = self.prune(run.pruned) if run.definition.updates_weights else {}
        names = {"sequences": "calibration"}
        inputs |= {names.get(name, name): path for name, path in pruned.items()}
        return inputs | {"model": self._store.model_path(run.model)}

    def export(self, run: Run) -> dict[str, str]:
        """Return the named input files of a job that exports the model of a run."""
        return {"model": self._store.model_path(run.model)} | self._compressed(run)

    def _compressed(self, run: Run) -> dict[str, str]:
        """Return the named files that compress the model of a run: its mask, and updated or quantized weights."""
        inputs = self._pruned(run)
        if run.quantization:
            inputs.pop("weights", None)
            inputs["quantized"] = self._plan.layout.quantized(run)
        return inputs

    def _pruned(self, run: Run) -> dict[str, str]:
        inputs = {}
        if run.definition.stage != "none":
            inputs["mask"] = self._plan.masks.mask(run)
        if run.finetune:
            inputs["weights"] = self._plan.layout.finetuned(run)
        elif run.definition.updates_weights:
            inputs["weights"] = self._plan.layout.weights(run)
        return inputs

    def speedup(self, model: str) -> dict[str, str | list[str]]:
        """Return the named input files of the job that measures speed."""
        masks = [self._plan.masks.mask(run) for run in self._plan.timed_runs(model)]
        return {"model": self._store.model_path(model), "masks": masks}

    def learn(self, run: Run) -> dict[str, str]:
        """Return the named input files of a learning job, without its initial masks."""
        return {"model": self._store.model_path(run.model), "sequences": self._plan.learning_sequences(run).path}

    def prior(self, run: Run) -> dict[str, str]:
        """Return the named mask files that initialize a learning job."""
        return {f"{name}_mask": self._plan.masks.mask(prior) for name, prior in self._plan.grid.priors(run).items()}

    def evaluate(self, run: Run) -> dict[str, str]:
        """Return the named input files of an evaluation job."""
        inputs = {
            "model": self._store.model_path(run.model),
            "sequences": self._store.perplexity_sequences(run.model).path,
        }
        if self._plan.experiment.evaluation.tasks:
            inputs["tasks"] = self._store.tasks_path()
        return inputs | self._compressed(run)
