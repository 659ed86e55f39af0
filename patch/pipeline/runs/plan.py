"""An experiment as jobs: what each is told, what it reads, what it needs. The rules ask here."""

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
    """All jobs of an experiment.

    Args:
        experiment: the checked configuration.

    Raises:
        InputError: the configuration names something that does not exist or cannot be.
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
        """Every file of token windows that the experiment needs, by name."""
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
        """Every folder of dense statistics that the experiment needs, by name."""
        needed = [self.dense_statistics(cell) for cell in self.grid.closure]
        return {statistics.key: statistics for statistics in needed if statistics}

    @cached_property
    def _needing_gram(self) -> set[tuple[str, int]]:
        return {(cell.model, cell.seed) for cell in self.grid.closure if cell.spec.statistics == "gram"}

    def dense_statistics(self, cell: Cell) -> Statistics | None:
        """What a one-shot cell is given of the dense model's inputs with `propagate: dense`, else None.

        One folder for all cells of a model and seed: with Gram matrices if one of them needs these.
        """
        if cell.quantization or not calibrated(cell) or self.experiment.calibration.propagate == "pruned":
            return None
        return self.store.statistics(cell.model, cell.seed, (cell.model, cell.seed) in self._needing_gram)

    def learning_windows(self, cell: Cell) -> Windows:
        """What the masks of a cell are learned on: as many windows as the run can see, at most."""
        settings = self.grid.learning(cell)
        trained_on = self.experiment.models[cell.model].source.kind == "train"
        limit = None if trained_on else settings.steps * settings.batch_size
        return self.store.windows(cell.model, settings.use, "packed", settings.seqlen, limit)

    # -- what a job is told -------------------------------------------------------------------

    def _run(self, cell: Cell) -> dict[str, Any]:
        """What says which run a job is, and where it computes."""
        names = ("model", "method", "pattern", "sparsity", "seed")
        return {name: getattr(cell, name) for name in names} | self._machine(cell)

    def _machine(self, cell: Cell) -> dict[str, str]:
        return {"dtype": self.experiment.models[cell.model].dtype, "device": self.experiment.resources.device}

    def prune_spec(self, cell: Cell) -> PruneSpec:
        """Settings of a one-shot job."""
        inputs = self.prune_inputs(cell)
        own = getattr(self.experiment.pruning, cell.method, None)
        return PruneSpec(
            upstream=" ".join(inputs.values()),
            batch_size=self.experiment.calibration.batch_size if "windows" in inputs else 1,
            settings=Pruning(**{cell.method: own}) if own else Pruning(),
            **self._run(cell),
        )

    def quantize_spec(self, cell: Cell) -> QuantizeSpec:
        """Settings of a job that quantises a pruned cell."""
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
        """Settings of a learning job."""
        priors = {name: self.mask_digest(prior) for name, prior in self.grid.priors(cell).items()}
        sources = [self.store.model_path(cell.model), self.learning_windows(cell).path, priors]
        expected = {f"{name}_mask": self._expected_mask(prior) for name, prior in self.grid.priors(cell).items()}
        settings = self.grid.learning(cell)
        return LearnSpec(upstream=digest(sources), tile=cell.tile, masks=expected, settings=settings, **self._run(cell))

    def export_spec(self, cell: Cell) -> ExportSpec:
        """Settings of a job that exports a cell."""
        sources = [self.store.model_path(cell.model), self.mask_digest(cell)]
        mask, dtype = self._expected_mask(cell), self.experiment.models[cell.model].dtype
        return ExportSpec(upstream=digest(sources), mask=mask, dtype=dtype)

    def _expected_mask(self, cell: Cell) -> ExpectedMask | None:
        """The mask of a cell as the jobs that read it expect it; None for a dense one."""
        if cell.pruned.spec.stage == "none":
            return None
        names = ("method", "pattern", "sparsity", "tile")
        return ExpectedMask(digest=self.mask_digest(cell.pruned), **{name: getattr(cell, name) for name in names})

    def mask_digest(self, cell: Cell) -> str:
        """Digest of all that a cell's mask, and low-bit weights, depend on; empty for dense."""
        if cell not in self._mask_digests:
            self._mask_digests[cell] = self._mask_digest(cell)
        return self._mask_digests[cell]

    def _mask_digest(self, cell: Cell) -> str:
        if cell.quantization:
            return spec_digest(self.quantize_spec(cell))
        specs = {"prune": self.prune_spec, "learn": self.learn_spec, "import": self.import_spec}
        return spec_digest(specs[cell.spec.stage](cell)) if cell.spec.stage in specs else ""

    def import_spec(self, cell: Cell) -> ImportSpec:
        """Settings of a job that checks an imported mask."""
        sources = [self.store.model_path(cell.model), self.store.mask_contents(cell.imported)]
        source = self.experiment.imports[cell.imported].source
        return ImportSpec(
            upstream=digest(sources), source=source, method=cell.method, pattern=cell.pattern, tile=cell.tile
        )

    def evaluate_spec(self, cell: Cell) -> EvaluateSpec:
        """Settings of an evaluation job."""
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
        """Settings of the job that measures the speed of a model's cells."""
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
        """Names of the models that have a cell, in the order of the configuration."""
        used = {cell.model for cell in self.grid.cells}
        return [name for name in self.experiment.models if name in used]

    def _model_info(self, name: str) -> dict[str, str | int | bool | None]:
        shown = {"title", "variant", "published", "comparable"}
        return {"name": name, **self.experiment.models[name].model_dump(include=shown), "tile": self.experiment.tile}

    def tabulate_spec(self, speed: bool = False) -> TabulateSpec:
        """Settings of tables; ``speed``: those of the table of speed, which other tables do not depend on."""
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
        """What differences need besides the samples."""
        return CompareSpec(digests=self.digests(self.grid.cells))

    def record_digest(self, cell: Cell) -> str:
        """Digest of the settings of a cell's evaluation."""
        if cell not in self._record_digests:
            self._record_digests[cell] = spec_digest(self.evaluate_spec(cell))
        return self._record_digests[cell]

    def speed_digest(self, model: str) -> str:
        """Digest of the settings of the measurement of a model's speed."""
        return spec_digest(self.speedup_spec(model))

    def digests(self, cells: Iterable[Cell], speeds: Iterable[str] = ()) -> dict[str, str]:
        """Digests of the settings of evaluations by `model/cell`, and of measurements of speed by `speedup/model`."""
        found = {f"{cell.model}/{cell.id}": self.record_digest(cell) for cell in cells}
        return found | {f"speedup/{model}": self.speed_digest(model) for model in speeds}

    def density_spec(self, model: str) -> FigureSpec:
        """Settings of the figure of densities."""
        return FigureSpec(model=self._model_info(model), digests=self.digests(self.hybrid_cells(model)))

    def pareto_spec(self, model: str) -> FigureSpec:
        """Settings of a figure whose points are the rows of the standard tables."""
        rows = dict.fromkeys(f"{model}/{cell.row}" for cell in self.grid.standard if cell.model == model)
        digests = self.digests(self.grid.cells)
        return FigureSpec(model=self._model_info(model), digests=digests, rows=list(rows))

    def speedup_figure_spec(self, model: str) -> FigureSpec:
        """The same, for points at a measured speed."""
        spec = self.pareto_spec(model)
        return spec.model_copy(update={"digests": spec.digests | self.digests([], [model])})

    def curves_spec(self, model: str) -> FigureSpec:
        """Settings of the figure of training curves, with the names of the learned cells' curves."""
        return FigureSpec(model=self._model_info(model), labels=[_label(cell) for cell in self.learned_cells(model)])

    def learned_cells(self, model: str) -> list[Cell]:
        """The model's learned cells in the standard tables, of the first seed each, whose curves are drawn."""
        first: dict[str, Cell] = {}
        for cell in self.grid.standard:
            if cell.model == model and cell.spec.stage == "learn" and not cell.quantization:
                first.setdefault(cell.row, cell)
        return list(first.values())

    def hybrid_cells(self, model: str) -> list[Cell]:
        """The model's cells with dense tiles."""
        cells = (cell for cell in self.grid.standard if cell.model == model)
        return [cell for cell in cells if cell.pattern == "hybrid" and not cell.quantization]

    def timed_cells(self, model: str) -> list[Cell]:
        """The model's cells whose speed is measured: of 2:4 ones the first, and of each row of hybrid ones.

        The others do not differ: speed does not depend on which weights of a group stay, nor on the seed. Where the
        dense tiles stand it may. Empty where the configuration has no section `speedup`.
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
        """Names of the tables that have at least one row: the standard ones, then the grid's own."""
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
        """Names of the figures of a model that have something to show."""
        sparse = any(cell.model == model and cell.pattern != "dense" for cell in self.grid.standard)
        wanted = {
            "pareto": sparse,
            "density": self.hybrid_cells(model),
            "curves": self.learned_cells(model),
            "speedup": self.timed_cells(model),
        }
        return [name for name, there in wanted.items() if there]

    # -- what a job reads ---------------------------------------------------------------------

    def prune_inputs(self, cell: Cell) -> dict[str, str]:
        """Named input files of a one-shot job."""
        inputs = {"model": self.store.model_path(cell.model)}
        if statistics := self.dense_statistics(cell):
            inputs["statistics"] = statistics.path
        elif calibrated(cell):
            inputs["windows"] = self.store.calibration_windows(cell.model, cell.seed).path
        return inputs

    @cached_property
    def updated_cells(self) -> dict[Cell, None]:
        """The pruned cells whose updated weights an evaluation or a quantisation reads."""
        return dict.fromkeys(cell.pruned for cell in self.grid.cells if cell.spec.updates_weights)

    def import_inputs(self, cell: Cell) -> dict[str, str]:
        """Named input files of a job that checks an imported mask."""
        return {"model": self.store.model_path(cell.model), "source": self.store.mask_source(cell.imported)}

    def quantize_inputs(self, cell: Cell) -> dict[str, str]:
        """Named input files of a job that quantises."""
        inputs = {"model": self.store.model_path(cell.model)} | self._pruned_inputs(cell)
        if calibrated(cell):
            inputs["windows"] = self.store.calibration_windows(cell.model, cell.seed).path
        return inputs

    def export_inputs(self, cell: Cell) -> dict[str, str]:
        """Named input files of a job that exports a cell."""
        return {"model": self.store.model_path(cell.model)} | self._pruned_inputs(cell)

    def _pruned_inputs(self, cell: Cell) -> dict[str, str]:
        inputs = {}
        if cell.spec.stage != "none":
            inputs["mask"] = self.masks.mask(cell)
        if cell.spec.updates_weights:
            inputs["weights"] = self.layout.weights(cell)
        return inputs

    def speedup_inputs(self, model: str) -> dict[str, str | list[str]]:
        """Named input files of the job that measures speed."""
        masks = [self.masks.mask(cell) for cell in self.timed_cells(model)]
        return {"model": self.store.model_path(model), "masks": masks}

    def learn_inputs(self, cell: Cell) -> dict[str, str]:
        """Named input files of a learning job, priors aside."""
        return {"model": self.store.model_path(cell.model), "windows": self.learning_windows(cell).path}

    def prior_inputs(self, cell: Cell) -> dict[str, str]:
        """Named masks that a learning job starts from."""
        return {f"{name}_mask": self.masks.mask(prior) for name, prior in self.grid.priors(cell).items()}

    def evaluate_inputs(self, cell: Cell) -> dict[str, str]:
        """Named input files of an evaluation job."""
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
