"""Settings and input files of all jobs of an experiment, as used by the Snakemake rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from patch.errors import InputError, suggest
from patch.files.io import read_json
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.runs.cell import Cell, format_tile
from patch.pipeline.runs.grid import Grid
from patch.pipeline.runs.layout import Layout, digest, input_path, spec_digest
from patch.pipeline.runs.shared_masks import SharedMasks
from patch.pipeline.runs.specs import (
    CellInfo,
    CompareSpec,
    EvaluateSpec,
    ExpectedMask,
    ExportSpec,
    FigureSpec,
    ImportSpec,
    LearnSpec,
    PruneSpec,
    QuantizeSpec,
    SpeedupSpec,
    TabulateSpec,
)
from patch.pipeline.runs.store import Statistics, Store, Windows, calibrated
from patch.pruning.settings import Pruning

STANDARD_TABLES = ("joint", "tile", "unstructured", "quantized", "tasks", "density", "seeds", "speedup")


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
        self._mask_digests: dict[Cell, str] = {}
        self._record_digests: dict[Cell, str] = {}
        masked = [cell for cell in self.grid.closure if cell.spec.stage != "none" and not cell.quantization]
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
    def windows(self) -> dict[str, Windows]:
        """Token sequence files that the experiment needs, by name."""
        trained = [name for name, model in self.experiment.models.items() if model.source.kind == "train"]
        needed = [self.store.training_windows(name) for name in trained]
        needed += [self.store.perplexity_windows(name) for name in self.experiment.models]
        needed += [
            self.store.calibration_windows(cell.model, cell.seed) for cell in self.grid.closure if calibrated(cell)
        ]
        learned = [cell for cell in self.grid.closure if cell.spec.stage == "learn" and not cell.quantization]
        needed += [self.learning_windows(cell) for cell in learned]
        return {windows.key: windows for windows in needed}

    @cached_property
    def statistics(self) -> dict[str, Statistics]:
        """Folders of dense-model statistics that the experiment needs, by name."""
        needed = [self.dense_statistics(cell) for cell in self.grid.closure]
        return {statistics.key: statistics for statistics in needed if statistics}

    @cached_property
    def _needing_gram(self) -> set[tuple[str, int]]:
        return {(cell.model, cell.seed) for cell in self.grid.closure if cell.spec.statistics == "gram"}

    def dense_statistics(self, cell: Cell) -> Statistics | None:
        """Return the dense-model statistics that a run reads with `propagate: dense`, else None.

        All runs of a model and seed share one folder. It has Gram matrices if one of these runs needs them.
        """
        if cell.quantization or not calibrated(cell) or self.experiment.calibration.propagate == "pruned":
            return None
        return self.store.statistics(cell.model, cell.seed, (cell.model, cell.seed) in self._needing_gram)

    def learning_windows(self, cell: Cell) -> Windows:
        """Return the sequences that a run learns its masks on, limited to the number that the run can read."""
        settings = self.grid.learning(cell)
        trained_on = self.experiment.models[cell.model].source.kind == "train"
        limit = None if trained_on else settings.steps * settings.batch_size
        return self.store.windows(cell.model, settings.use, "packed", settings.seqlen, limit)

    # -- settings of jobs ---------------------------------------------------------------------

    def _run(self, cell: Cell) -> dict[str, Any]:
        """Return the settings that identify a run, with its dtype and device."""
        names = ("model", "method", "pattern", "sparsity", "seed")
        return {name: getattr(cell, name) for name in names} | self._machine(cell)

    def _machine(self, cell: Cell) -> dict[str, str]:
        return {"dtype": self.experiment.models[cell.model].dtype, "device": self.experiment.resources.device}

    def prune_spec(self, cell: Cell) -> PruneSpec:
        """Return the settings of a one-shot pruning job."""
        inputs = self.prune_inputs(cell)
        own = getattr(self.experiment.pruning, cell.method, None)
        return PruneSpec(
            upstream=" ".join(inputs.values()),
            batch_size=self.experiment.calibration.batch_size if "windows" in inputs else 1,
            settings=Pruning(**{cell.method: own}) if own else Pruning(),
            **self._run(cell),
        )

    def quantize_spec(self, cell: Cell) -> QuantizeSpec:
        """Return the settings of a job that quantizes a pruned run."""
        calibration = self.store.calibration_windows(cell.model, cell.seed).path if calibrated(cell) else ""
        sources = [self.store.model_path(cell.model), self.mask_digest(cell.pruned), calibration]
        return QuantizeSpec(
            upstream=digest(sources),
            method=cell.quantization,
            mask=self._expected_mask(cell),
            batch_size=self.experiment.calibration.batch_size if calibration else 1,
            settings=self.experiment.quantization,
            **self._machine(cell),
        )

    def learn_spec(self, cell: Cell) -> LearnSpec:
        """Return the settings of a learning job."""
        priors = {name: self.mask_digest(prior) for name, prior in self.grid.priors(cell).items()}
        sources = [self.store.model_path(cell.model), self.learning_windows(cell).path, priors]
        expected = {f"{name}_mask": self._expected_mask(prior) for name, prior in self.grid.priors(cell).items()}
        settings = self.grid.learning(cell)
        return LearnSpec(upstream=digest(sources), tile=cell.tile, masks=expected, settings=settings, **self._run(cell))

    def export_spec(self, cell: Cell) -> ExportSpec:
        """Return the settings of a job that exports the model of a run."""
        sources = [self.store.model_path(cell.model), self.mask_digest(cell)]
        mask, dtype = self._expected_mask(cell), self.experiment.models[cell.model].dtype
        return ExportSpec(upstream=digest(sources), mask=mask, dtype=dtype)

    def _expected_mask(self, cell: Cell) -> ExpectedMask | None:
        """Return the description that a job checks a run's mask against, or None for a dense run."""
        if cell.pruned.spec.stage == "none":
            return None
        names = ("method", "pattern", "sparsity", "tile")
        return ExpectedMask(digest=self.mask_digest(cell.pruned), **{name: getattr(cell, name) for name in names})

    def mask_digest(self, cell: Cell) -> str:
        """Return the digest of everything that a run's mask or low-bit weights depend on; empty for a dense run."""
        if cell not in self._mask_digests:
            self._mask_digests[cell] = self._mask_digest(cell)
        return self._mask_digests[cell]

    def _mask_digest(self, cell: Cell) -> str:
        if cell.quantization:
            return spec_digest(self.quantize_spec(cell))
        specs = {"prune": self.prune_spec, "learn": self.learn_spec, "import": self.import_spec}
        return spec_digest(specs[cell.spec.stage](cell)) if cell.spec.stage in specs else ""

    def import_spec(self, cell: Cell) -> ImportSpec:
        """Return the settings of a job that checks an imported mask."""
        sources = [self.store.model_path(cell.model), self.store.mask_contents(cell.imported)]
        source = self.experiment.imports[cell.imported].source
        return ImportSpec(
            upstream=digest(sources), source=source, method=cell.method, pattern=cell.pattern, tile=cell.tile
        )

    def evaluate_spec(self, cell: Cell) -> EvaluateSpec:
        """Return the settings of an evaluation job."""
        store = self.store
        sources = [
            store.model_path(cell.model),
            self.mask_digest(cell),
            store.perplexity_windows(cell.model).path,
            store.tasks_path(),
        ]
        return EvaluateSpec(
            upstream=digest(sources),
            experiment=self.experiment.experiment,
            cell=_info(cell),
            mask=self._expected_mask(cell),
            quantized=self.mask_digest(cell) if cell.quantization else None,
            evaluation=self.experiment.evaluation,
            **self._machine(cell),
        )

    def speedup_spec(self, model: str) -> SpeedupSpec:
        """Return the settings of the job that measures the speed of a model's runs."""
        cells = self.timed_cells(model)
        return SpeedupSpec(
            upstream=digest([self.store.model_path(model), *(self.mask_digest(cell) for cell in cells)]),
            experiment=self.experiment.experiment,
            model=model,
            cells=[_info(cell) for cell in cells],
            masks=[self._expected_mask(cell) for cell in cells],
            settings=self.experiment.speedup,
            **self._machine(cells[0]),
        )

    @cached_property
    def models(self) -> list[str]:
        """Names of the models that have a run, in the order of the configuration."""
        used = {cell.model for cell in self.grid.cells}
        return [name for name in self.experiment.models if name in used]

    def _model_info(self, name: str) -> dict[str, str | int | bool | None]:
        shown = {"title", "variant", "published", "comparable"}
        return {"name": name, **self.experiment.models[name].model_dump(include=shown), "tile": self.experiment.tile}

    def tabulate_spec(self, speed: bool = False) -> TabulateSpec:
        """Return the settings of tables.

        With ``speed`` they include the digests of the speed measurements, which only the speed table depends on.
        """
        tables = {
            name: list(dict.fromkeys(f"{cell.model}/{cell.row}" for cell in cells))
            for name, cells in self.grid.tables.items()
        }
        return TabulateSpec(
            digests=self.digests(self.grid.cells, self.timed_models if speed else ()),
            models=[self._model_info(name) for name in self.models],
            cells=[_info(cell) for cell in self.grid.cells],
            standard=tables.pop(None, []),
            tables=tables,
            published=self.experiment.published,
        )

    def compare_spec(self) -> CompareSpec:
        """Return the settings of the job that computes differences from the samples."""
        return CompareSpec(digests=self.digests(self.grid.cells))

    def record_digest(self, cell: Cell) -> str:
        """Return the digest of the settings of a run's evaluation."""
        if cell not in self._record_digests:
            self._record_digests[cell] = spec_digest(self.evaluate_spec(cell))
        return self._record_digests[cell]

    def speed_digest(self, model: str) -> str:
        """Return the digest of the settings of a model's speed measurement."""
        return spec_digest(self.speedup_spec(model))

    def digests(self, cells: Iterable[Cell], speeds: Iterable[str] = ()) -> dict[str, str]:
        """Return settings digests: of evaluations by `model/cell`, and of speed measurements by `speedup/model`."""
        found = {f"{cell.model}/{cell.id}": self.record_digest(cell) for cell in cells}
        return found | {f"speedup/{model}": self.speed_digest(model) for model in speeds}

    def density_spec(self, model: str) -> FigureSpec:
        """Return the settings of the density figure."""
        return FigureSpec(model=self._model_info(model), digests=self.digests(self.hybrid_cells(model)))

    def pareto_spec(self, model: str) -> FigureSpec:
        """Return the settings of the Pareto figure, whose points are the rows of the standard tables."""
        rows = dict.fromkeys(f"{model}/{cell.row}" for cell in self.grid.standard if cell.model == model)
        digests = self.digests(self.grid.cells)
        return FigureSpec(model=self._model_info(model), digests=digests, rows=list(rows))

    def speedup_figure_spec(self, model: str) -> FigureSpec:
        """Return the settings of the figure of the same points against their measured speed."""
        spec = self.pareto_spec(model)
        return spec.model_copy(update={"digests": spec.digests | self.digests([], [model])})

    def curves_spec(self, model: str) -> FigureSpec:
        """Return the settings of the figure of training curves, with a label for each curve."""
        return FigureSpec(model=self._model_info(model), labels=[_label(cell) for cell in self.learned_cells(model)])

    def learned_cells(self, model: str) -> list[Cell]:
        """Return the learned runs whose curves are drawn: the first seed of each row of the standard tables."""
        first: dict[str, Cell] = {}
        for cell in self.grid.standard:
            if cell.model == model and cell.spec.stage == "learn" and not cell.quantization:
                first.setdefault(cell.row, cell)
        return list(first.values())

    def hybrid_cells(self, model: str) -> list[Cell]:
        """Return the hybrid runs of a model in the standard tables, without quantized ones."""
        cells = (cell for cell in self.grid.standard if cell.model == model)
        return [cell for cell in cells if cell.pattern == "hybrid" and not cell.quantization]

    def timed_cells(self, model: str) -> list[Cell]:
        """Return the runs of a model whose speed is measured: the first 2:4 run, and the first run of each hybrid row.

        The speed does not depend on which weights of a group are kept, nor on the seed. It may depend on the positions
        of the dense tiles. The list is empty if the configuration has no section `speedup`.
        """
        first: dict[str, Cell] = {}
        for cell in self.grid.standard:
            plain = cell.model == model and not cell.quantization and not cell.variant
            if plain and cell.pattern in ("2:4", "hybrid"):
                first.setdefault(cell.row if cell.pattern == "hybrid" else "2:4", cell)
        return list(first.values()) if self.experiment.speedup else []

    @cached_property
    def timed_models(self) -> list[str]:
        """Names of the models whose speed is measured."""
        return [name for name in self.models if self.timed_cells(name)]

    def tables(self) -> list[str]:
        """Return the names of the tables that have at least one row: standard tables, then those of the grid."""
        sparse = [cell for cell in self.grid.standard if cell.pattern != "dense"]
        variants = {self.experiment.models[cell.model].variant for cell in sparse if not cell.quantization}
        wanted = {
            "joint": "joint" in variants,
            "tile": "tile" in variants,
            "unstructured": any(cell.pattern == "unstructured" for cell in sparse),
            "quantized": any(cell.quantization for cell in sparse),
            "tasks": bool(self.grid.standard),
            "density": any(cell.pattern == "hybrid" and not cell.quantization for cell in sparse),
            "seeds": len({(cell.model, cell.row) for cell in sparse}) < len(sparse),
            "speedup": bool(self.timed_models),
        }
        assert tuple(wanted) == STANDARD_TABLES
        return [name for name, there in wanted.items() if there] + [name for name in self.grid.tables if name]

    def figures(self, model: str) -> list[str]:
        """Return the names of the figures of a model that have data."""
        sparse = any(cell.model == model and cell.pattern != "dense" for cell in self.grid.standard)
        wanted = {
            "pareto": sparse,
            "density": self.hybrid_cells(model),
            "curves": self.learned_cells(model),
            "speedup": self.timed_cells(model),
        }
        return [name for name, there in wanted.items() if there]

    # -- input files of jobs ------------------------------------------------------------------

    def prune_inputs(self, cell: Cell) -> dict[str, str]:
        """Return the named input files of a one-shot pruning job."""
        inputs = {"model": self.store.model_path(cell.model)}
        if statistics := self.dense_statistics(cell):
            inputs["statistics"] = statistics.path
        elif calibrated(cell):
            inputs["windows"] = self.store.calibration_windows(cell.model, cell.seed).path
        return inputs

    @cached_property
    def updated_cells(self) -> dict[Cell, None]:
        """Pruned runs whose updated weights an evaluation or a quantization reads."""
        return dict.fromkeys(cell.pruned for cell in self.grid.cells if cell.spec.updates_weights)

    def import_inputs(self, cell: Cell) -> dict[str, str]:
        """Return the named input files of a job that checks an imported mask."""
        return {"model": self.store.model_path(cell.model), "source": self.store.mask_source(cell.imported)}

    def quantize_inputs(self, cell: Cell) -> dict[str, str]:
        """Return the named input files of a quantization job."""
        inputs = {"model": self.store.model_path(cell.model)} | self._pruned_inputs(cell)
        if calibrated(cell):
            inputs["windows"] = self.store.calibration_windows(cell.model, cell.seed).path
        return inputs

    def export_inputs(self, cell: Cell) -> dict[str, str]:
        """Return the named input files of a job that exports the model of a run."""
        return {"model": self.store.model_path(cell.model)} | self._pruned_inputs(cell)

    def _pruned_inputs(self, cell: Cell) -> dict[str, str]:
        inputs = {}
        if cell.spec.stage != "none":
            inputs["mask"] = self.masks.mask(cell)
        if cell.spec.updates_weights:
            inputs["weights"] = self.layout.weights(cell)
        return inputs

    def speedup_inputs(self, model: str) -> dict[str, str | list[str]]:
        """Return the named input files of the job that measures speed."""
        masks = [self.masks.mask(cell) for cell in self.timed_cells(model)]
        return {"model": self.store.model_path(model), "masks": masks}

    def learn_inputs(self, cell: Cell) -> dict[str, str]:
        """Return the named input files of a learning job, without its initial masks."""
        return {"model": self.store.model_path(cell.model), "windows": self.learning_windows(cell).path}

    def prior_inputs(self, cell: Cell) -> dict[str, str]:
        """Return the named mask files that initialize a learning job."""
        return {f"{name}_mask": self.masks.mask(prior) for name, prior in self.grid.priors(cell).items()}

    def evaluate_inputs(self, cell: Cell) -> dict[str, str]:
        """Return the named input files of an evaluation job."""
        inputs = {
            "model": self.store.model_path(cell.model),
            "windows": self.store.perplexity_windows(cell.model).path,
            "tasks": self.store.tasks_path(),
        }
        inputs |= self._pruned_inputs(cell)
        if cell.quantization:
            inputs.pop("weights", None)
            inputs["quantized"] = self.layout.quantized(cell)
        return inputs


def _info(cell: Cell) -> CellInfo:
    return CellInfo(id=cell.id, **asdict(cell))


def _label(cell: Cell) -> str:
    tile = f", tile {format_tile(cell.tile)}" if cell.tile else ""
    return f"{cell.spec.title} {100 * cell.sparsity:g} %{tile}"
