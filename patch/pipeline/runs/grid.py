"""Grid of an experiment: its runs, their names and their dependencies."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from patch.data.settings import Use
from patch.errors import InputError, suggest
from patch.learning.settings import METHOD_DEFAULTS, Learning, used_by
from patch.masks.pattern import NM_TEXT
from patch.methods import METHODS, get_method
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.runs.cell import Cell, nm_sparsity
from patch.pipeline.runs.expand import expand, import_cells, variants
from patch.settings import validate


class Grid:
    """All runs of an experiment and their dependencies.

    Args:
        experiment: Validated configuration.

    Attributes:
        cells: Runs that appear in the tables, each once.
        tables: Mapping of the name of an additional table to its runs. The key None has the runs of the standard
            tables.

    Raises:
        InputError: A name does not exist, a pattern cannot have a sparsity, or a tile does not divide a layer.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._check_names()
        for name in experiment.imports:
            import_cells(experiment, name)
        self.tables: dict[str | None, list[Cell]] = {}
        self._variants: dict[str | None, dict[str, Any]] = {}
        for entry in experiment.grid:
            self._variants |= variants(entry)
            self.tables.setdefault(entry.table, []).extend(expand(experiment, entry))
        self.cells = list(dict.fromkeys(cell for cells in self.tables.values() for cell in cells))
        for cell in self.closure:
            if cell.spec.stage == "learn":
                self.learning(cell)

    def _check_names(self) -> None:
        experiment, corpora = self.experiment, list(self.experiment.corpora)
        uses = {
            "calibration.use": experiment.calibration.use,
            "evaluation.perplexity.use": experiment.evaluation.perplexity.use,
            "evaluation.task_use": experiment.evaluation.task_use,
        }
        named = {f"{key}.corpus": use.corpus for key, use in uses.items() if use}
        named |= {
            f"models.{name}.source.corpus": model.source.corpus
            for name, model in experiment.models.items()
            if model.source.kind == "train"
        }
        for key, corpus in named.items():
            if corpus not in corpora:
                raise InputError(f"`{key}` is {corpus!r}; {suggest(corpus, corpora)}")
        for key, use in uses.items():
            if use:
                self._check_split(key, use)
        learned = [name for name, method in METHODS.items() if method.stage == "learn"]
        learning = experiment.learning
        given = {"common": learning.common} | {f"methods.{name}": keys for name, keys in learning.methods.items()}
        given |= {f"overrides.{index}.set": override.set for index, override in enumerate(learning.overrides)}
        for where, keys in given.items():
            for key in keys:
                if key not in Learning.model_fields:
                    raise InputError(
                        f"unknown key `learning.{where}.{key}`; {suggest(key, sorted(Learning.model_fields))}"
                    )
        for name in experiment.learning.methods:
            if name not in learned:
                raise InputError(f"unknown key `learning.methods.{name}`; {suggest(name, learned)}")
        for index, override in enumerate(experiment.learning.overrides):
            for key, known in (("method", learned), ("model", list(experiment.models))):
                value = getattr(override, key)
                if value is not None and value not in known:
                    raise InputError(f"`learning.overrides.{index}.{key}` is {value!r}; {suggest(value, known)}")
        if experiment.evaluation.include_path and not experiment.evaluation.task_use:
            raise InputError(
                "`evaluation.include_path` is given but `evaluation.task_use` is missing: name the held-out text"
            )

    def _check_split(self, key: str, use: Use) -> None:
        parts = self.experiment.corpora[use.corpus].parts
        if use.split not in parts:
            hint = suggest(use.split, parts)
            raise InputError(f"`{key}.split` is {use.split!r}, of which corpus `{use.corpus}` has no text; {hint}")

    @cached_property
    def closure(self) -> list[Cell]:
        """Runs of the tables and all runs that they depend on, each once, dependencies first."""
        ordered: dict[Cell, None] = {}

        def visit(cell: Cell) -> None:
            needed = [cell.pruned] if cell.quantization else self.priors(cell).values()
            for other in needed:
                visit(other)
            ordered.setdefault(cell)

        for cell in self.cells:
            visit(cell)
        return list(ordered)

    @cached_property
    def standard(self) -> list[Cell]:
        """Runs of the standard tables, each once."""
        return list(dict.fromkeys(self.tables.get(None, [])))

    @cached_property
    def requested(self) -> frozenset[Cell]:
        """Runs of the tables, without runs that are only dependencies."""
        return frozenset(self.cells)

    @cached_property
    def _by_id(self) -> dict[tuple[str, str], Cell]:
        return {(cell.model, cell.id): cell for cell in self.closure}

    def cell(self, model: str, cell_id: str) -> Cell:
        """Return the run of a model that has the given id.

        Raises:
            InputError: The grid has no such run.
        """
        try:
            return self._by_id[model, cell_id]
        except KeyError:
            known = [identifier for name, identifier in self._by_id if name == model]
            raise InputError(
                f"the grid has no cell `{cell_id}` of model `{model}`; {suggest(cell_id, known)}"
            ) from None

    def learning(self, cell: Cell) -> Learning:
        """Return the learning settings of a run, without those that its method does not use.

        Later settings replace earlier ones, in this order: the method's defaults, `common`, the method's settings,
        each matching override, and the values of an ablation.

        Raises:
            InputError: A setting is invalid, or names a corpus, split or prior that does not exist.
        """
        config = self.experiment.learning
        values = METHOD_DEFAULTS[cell.method] | config.common | config.methods.get(cell.method, {})
        for override in config.overrides:
            wanted = {"method": override.method, "model": override.model, "sparsity": override.sparsity}
            if all(value is None or value == getattr(cell, key) for key, value in wanted.items()):
                values = values | override.set
        # The value that an ablation varies replaces all others.
        values = values | self._variants.get(cell.variant, {})
        learning = validate(Learning, values, where=f"learning.methods.{cell.method}")
        if learning.use is None:
            raise InputError("`learning.common.use` is missing: name the corpus and part that masks are learned on")
        if learning.use.corpus not in self.experiment.corpora:
            corpus = learning.use.corpus
            raise InputError(
                f"`learning.common.use.corpus` is {corpus!r}; {suggest(corpus, list(self.experiment.corpora))}"
            )
        self._check_split("learning.common.use", learning.use)
        learning = used_by(cell.method, learning)
        self._check_priors(learning)
        learning.micro_batches(processes=self.processes(cell)[0] * self.processes(cell)[1])
        return learning

    def processes(self, cell: Cell) -> tuple[int, int]:
        """Return the processes on each node and the nodes of a learning run.

        ProxSparse has a batch size of one, which cannot be divided, so it always uses one process.
        """
        resources = self.experiment.resources
        return (1, 1) if cell.method == "proxsparse" else (resources.learn_gpus, resources.learn_nodes)

    def _check_priors(self, learning: Learning) -> None:
        one_shot = {name: method for name, method in METHODS.items() if method.stage == "prune"}
        semi = [name for name, method in one_shot.items() if method.makes("2:4")]
        known = {
            "pattern_prior": [*semi, "import", "none"],
            "tile_prior": [*(name for name, m in one_shot.items() if m.makes("unstructured")), "random", "none"],
            "frozen_mask": [*semi, *(name for name, m in METHODS.items() if m.patterns == ("2:4",)), "import"],
        }
        for key, names in known.items():
            value = getattr(learning, key)
            if value not in names:
                raise InputError(f"`learning.{key}` is {value!r}; {suggest(value, names)}")

    def priors(self, cell: Cell) -> dict[str, Cell]:
        """Return the runs whose masks initialize a learning run, with the keys `pattern` or `frozen`, and `tile`."""
        if cell.spec.stage != "learn":
            return {}
        learning = self.learning(cell)
        priors: dict[str, Cell] = {}
        if cell.method == "patch-tile":
            priors["frozen"] = self._prior(cell, learning.frozen_mask, "2:4", 0.5)
        elif cell.method != "proxsparse" and learning.pattern_prior != "none":
            pattern = cell.pattern if NM_TEXT.match(cell.pattern) else "2:4"
            priors["pattern"] = self._prior(cell, learning.pattern_prior, pattern, nm_sparsity(pattern))
        if cell.pattern == "hybrid" and learning.tile_prior not in ("none", "random"):
            priors["tile"] = self._prior(cell, learning.tile_prior, "unstructured", cell.sparsity)
        return priors

    def _prior(self, cell: Cell, method: str, pattern: str, sparsity: float) -> Cell:
        if method == "import":
            return self._imported_prior(cell.model, pattern)
        seed = cell.seed if get_method(method).seeded else 0
        return Cell(cell.model, method, pattern, sparsity, None, seed)

    def _imported_prior(self, model: str, pattern: str) -> Cell:
        imports = self.experiment.imports
        cells = [
            cell for name in imports if imports[name].model == model for cell in import_cells(self.experiment, name)
        ]
        found = [cell for cell in cells if cell.pattern == pattern]
        if len(found) != 1:
            names = ", ".join(cell.imported for cell in found) or "none"
            raise InputError(
                f"a prior of model `{model}` is `import`, for which `imports` must have one {pattern} mask of it; "
                f"it has: {names}"
            )
        return found[0]
