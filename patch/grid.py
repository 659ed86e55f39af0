"""Which runs exist, what they are called, and which other runs they need."""

from __future__ import annotations

from functools import cached_property

from patch.cell import NM, Cell, format_sparsity, nm_sparsity
from patch.config import Experiment, GridEntry, Learning, Use
from patch.config.learning import METHOD_DEFAULTS, used_by
from patch.config.load import suggest, validate
from patch.errors import InputError
from patch.methods import METHODS, get_method
from patch.shapes import check_groups, check_tile, model_shape


class Grid:
    """All cells of an experiment and their dependencies.

    Args:
        experiment: the checked configuration.

    Raises:
        InputError: a name that does not exist, a sparsity that a pattern cannot have, a tile that
            does not divide a layer.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._check_names()
        self.cells: list[Cell] = list(dict.fromkeys(cell for entry in experiment.grid for cell in self._expand(entry)))
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

    def _expand(self, entry: GridEntry) -> list[Cell]:
        models = entry.models if entry.models is not None else list(self.experiment.models)
        for name in models:
            if name not in self.experiment.models:
                raise InputError(f"grid: unknown model `{name}`; {suggest(name, list(self.experiment.models))}")
        return [
            cell for method in entry.methods for name in models for cell in self._expand_method(entry, method, name)
        ]

    def _expand_method(self, entry: GridEntry, method_name: str, model: str) -> list[Cell]:
        if method_name == "patch":
            method_name = f"patch-{self.experiment.models[model].variant}"
        method = get_method(method_name)
        pattern = entry.pattern or {"n:m": "2:4"}.get(method.patterns[0], method.patterns[0])
        kind = "n:m" if NM.match(pattern) else pattern
        if not method.makes(pattern):
            raise InputError(
                f"grid: `{method_name}` cannot make pattern `{pattern}`; it makes: {', '.join(method.patterns)}"
            )
        tiles = (entry.tiles or [self.experiment.tile]) if kind == "hybrid" else [None]
        for tile in filter(None, tiles):
            check_tile(model, model_shape(model, self.experiment.models[model]), tile)
        if kind == "n:m":
            nm_sparsity(pattern)
            check_groups(model, model_shape(model, self.experiment.models[model]), int(pattern.split(":")[1]))
        # SLiM-LoRA looks at calibration text.
        seeded = method.seeded or entry.quantization == "slim-lora"
        seeds = self.experiment.seeds if seeded else [0]
        return [
            Cell(model, method_name, pattern, sparsity, tile, seed, entry.quantization)
            for sparsity in _sparsities(entry, method_name, pattern, kind)
            for tile in tiles
            for seed in seeds
        ]

    @cached_property
    def closure(self) -> list[Cell]:
        """The cells and all that they need, each once, dependencies first."""
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
    def requested(self) -> frozenset[Cell]:
        """The cells of the tables, without those that only others need."""
        return frozenset(self.cells)

    @cached_property
    def _by_id(self) -> dict[tuple[str, str], Cell]:
        return {(cell.model, cell.id): cell for cell in self.closure}

    def cell(self, model: str, cell_id: str) -> Cell:
        """The cell of that name.

        Raises:
            InputError: the grid has no such cell.
        """
        try:
            return self._by_id[model, cell_id]
        except KeyError:
            known = [identifier for name, identifier in self._by_id if name == model]
            raise InputError(
                f"the grid has no cell `{cell_id}` of model `{model}`; {suggest(cell_id, known)}"
            ) from None

    def learning(self, cell: Cell) -> Learning:
        """Settings of a learned cell: method defaults, `common`, the method's, matching overrides, as it uses them."""
        config = self.experiment.learning
        values = METHOD_DEFAULTS[cell.method] | config.common | config.methods.get(cell.method, {})
        for override in config.overrides:
            wanted = {"method": override.method, "model": override.model, "sparsity": override.sparsity}
            if all(value is None or value == getattr(cell, key) for key, value in wanted.items()):
                values = values | override.set
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
        """Processes on each node, and nodes, of a learning run; ProxSparse's batch of one cannot be shared."""
        resources = self.experiment.resources
        return (1, 1) if cell.method == "proxsparse" else (resources.learn_gpus, resources.learn_nodes)

    def _check_priors(self, learning: Learning) -> None:
        one_shot = {name: method for name, method in METHODS.items() if method.stage == "prune"}
        semi = [name for name, method in one_shot.items() if method.makes("2:4")]
        known = {
            "pattern_prior": [*semi, "none"],
            "tile_prior": [*(name for name, m in one_shot.items() if m.makes("unstructured")), "random", "none"],
            "frozen_mask": [*semi, *(name for name, m in METHODS.items() if m.patterns == ("2:4",))],
        }
        for key, names in known.items():
            value = getattr(learning, key)
            if value not in names:
                raise InputError(f"`learning.{key}` is {value!r}; {suggest(value, names)}")

    def priors(self, cell: Cell) -> dict[str, Cell]:
        """Masks that a learned cell starts from: `pattern` or `frozen`, and `tile`."""
        if cell.spec.stage != "learn":
            return {}
        learning = self.learning(cell)
        priors: dict[str, Cell] = {}
        if cell.method == "patch-tile":
            priors["frozen"] = self._prior(cell, learning.frozen_mask, "2:4", 0.5)
        elif cell.method != "proxsparse" and learning.pattern_prior != "none":
            pattern = cell.pattern if NM.match(cell.pattern) else "2:4"
            priors["pattern"] = self._prior(cell, learning.pattern_prior, pattern, nm_sparsity(pattern))
        if cell.pattern == "hybrid" and learning.tile_prior not in ("none", "random"):
            priors["tile"] = self._prior(cell, learning.tile_prior, "unstructured", cell.sparsity)
        return priors

    def _prior(self, cell: Cell, method: str, pattern: str, sparsity: float) -> Cell:
        seed = cell.seed if get_method(method).seeded else 0
        return Cell(cell.model, method, pattern, sparsity, None, seed)


def _sparsities(entry: GridEntry, method: str, pattern: str, kind: str) -> list[float]:
    if kind == "dense":
        fixed = 0.0
    elif kind == "n:m":
        fixed = nm_sparsity(pattern)
    else:
        upper = 0.5 if kind == "hybrid" else 1.0
        for value in entry.sparsity or []:
            if not 0 <= value <= upper or (upper == 1.0 and value == 1.0):
                allowed = "[0, 0.5]: a 2:4 tile is half zeros" if kind == "hybrid" else "[0, 1)"
                raise InputError(f"grid: sparsity {value} of `{method}` is outside {allowed}")
        if not entry.sparsity:
            raise InputError(f"grid: `{method}` with pattern `{pattern}` needs `sparsity`, a list such as [0.45, 0.25]")
        return [float(format_sparsity(value)) for value in entry.sparsity]
    if entry.sparsity is not None and entry.sparsity != [fixed]:
        raise InputError(
            f"grid: pattern `{pattern}` of `{method}` has sparsity {fixed:g}, not {entry.sparsity}; leave the key out"
        )
    return [fixed]
