"""Grid of an experiment: its runs, their names and their dependencies."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from patch.data.corpus_settings import Use
from patch.errors import InputError, suggest
from patch.learning.finetuning_settings import Finetuning
from patch.learning.learning_settings import Learning, method_defaults, used_by
from patch.masks.pattern import NM_TEXT
from patch.methods import FAULTS, METHODS, get_method
from patch.models.config_keys import check_config_keys
from patch.models.shapes import check_sharding, model_shape
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.runs.expand import expand, import_runs, variants
from patch.pipeline.runs.run import Run, nm_sparsity
from patch.settings import validate


class Grid:
    """All runs of an experiment and their dependencies.

    Args:
        experiment: Validated configuration.

    Attributes:
        runs: Runs that appear in the tables, each once.
        tables: Mapping of the name of an additional table to its runs. The key None has the runs of the standard
            tables.

    Raises:
        InputError: A name does not exist, a pattern cannot have a sparsity, or a tile does not divide a layer.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._check_names()
        for name in experiment.imports:
            import_runs(experiment, name)
        self.tables: dict[str | None, list[Run]] = {}
        self._variants: dict[str | None, dict[str, Any]] = {}
        for entry in experiment.grid:
            self._variants |= variants(entry)
            self.tables.setdefault(entry.table, []).extend(expand(experiment, entry))
        self.runs = list(dict.fromkeys(run for runs in self.tables.values() for run in runs))
        for run in self.closure:
            allowed = run.definition.sparsities
            if allowed and run.sparsity not in allowed:
                right = ", ".join(f"{value:g}" for value in allowed)
                raise InputError(f"sparsity {run.sparsity:g} of `{run.method}` for `{run.model}`; it makes: {right}")
            if run.definition.stage == "learn":
                self.learning(run)
            if run.method == "proxsparse":
                shape = model_shape(run.model, experiment.models[run.model])
                check_sharding(run.model, shape, self.processes)
            if run.finetune:
                self.finetuning(run)

    def _check_names(self) -> None:
        experiment, corpora = self.experiment, list(self.experiment.corpora)
        uses = {
            "calibration.use": experiment.calibration.use,
            "evaluation.perplexity.use": experiment.evaluation.perplexity.use,
            "evaluation.task_use": experiment.evaluation.task_use,
            "finetuning.use": experiment.finetuning and experiment.finetuning.use,
        }
        named = {f"{key}.corpus": use.corpus for key, use in uses.items() if use}
        trained = {name: model.source for name, model in experiment.models.items() if model.source.kind == "train"}
        named |= {f"models.{name}.source.corpus": source.corpus for name, source in trained.items()}
        for name, source in trained.items():
            check_config_keys(f"models.{name}.source.config", source.architecture, source.config)
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
        for name in (experiment.speedup and experiment.speedup.models) or []:
            if name not in experiment.models:
                raise InputError(f"`speedup.models` names {name!r}; {suggest(name, list(experiment.models))}")
        if experiment.evaluation.include_path and not experiment.evaluation.task_use:
            raise InputError(
                "`evaluation.include_path` is given but `evaluation.task_use` is missing: name the held-out text"
            )

    def _check_split(self, key: str, use: Use) -> None:
        parts = self.experiment.corpora[use.corpus].split_names
        if use.split not in parts:
            hint = suggest(use.split, parts)
            raise InputError(f"`{key}.split` is {use.split!r}, of which corpus `{use.corpus}` has no text; {hint}")

    @cached_property
    def closure(self) -> list[Run]:
        """Runs of the tables and all runs that they depend on, each once, dependencies first."""
        ordered: dict[Run, None] = {}

        def visit(run: Run) -> None:
            needed = [run.pruned] if run.derived else self.priors(run).values()
            for other in needed:
                visit(other)
            ordered.setdefault(run)

        for run in self.runs:
            visit(run)
        return list(ordered)

    @cached_property
    def standard(self) -> list[Run]:
        """Runs of the standard tables, each once."""
        return list(dict.fromkeys(self.tables.get(None, [])))

    @cached_property
    def requested(self) -> frozenset[Run]:
        """Runs of the tables, without runs that are only dependencies."""
        return frozenset(self.runs)

    @cached_property
    def _by_id(self) -> dict[tuple[str, str], Run]:
        return {(run.model, run.id): run for run in self.closure}

    def run(self, model: str, run_id: str) -> Run:
        """Return the run of a model that has the given id.

        Raises:
            InputError: The grid has no such run.
        """
        try:
            return self._by_id[model, run_id]
        except KeyError:
            known = [identifier for name, identifier in self._by_id if name == model]
            raise InputError(f"the grid has no run `{run_id}` of model `{model}`; {suggest(run_id, known)}") from None

    def learning(self, run: Run) -> Learning:
        """Return the learning settings of a run, without those that its method does not use.

        Later settings replace earlier ones, in this order: the method's defaults under the recipe, `common`, the
        method's settings, each matching override, and the values of an ablation.

        Raises:
            InputError: A setting is invalid, or names a corpus, split or prior that does not exist.
        """
        config = self.experiment.learning
        varied = dict(self._variants.get(run.variant, {}))
        recipe = varied.pop("recipe", config.recipe)
        own = f"learning.methods.{run.method}"
        sections = [("learning.common", config.common), (own, config.methods.get(run.method, {}))]
        for index, override in enumerate(config.overrides):
            wanted = {"method": override.method, "model": override.model, "sparsity": override.sparsity}
            if all(value is None or value == getattr(run, key) for key, value in wanted.items()):
                sections.append((f"learning.overrides.{index}.set", override.set))
        # The value that an ablation varies replaces all others.
        sections.append(("grid.vary", varied))
        values = method_defaults(run.method, recipe)
        places = {"": own if run.method in config.methods else "learning.common"}
        for place, keys in sections:
            values, places = values | keys, places | dict.fromkeys(keys, place)
        learning = validate(Learning, values, where=places)
        if learning.use is None:
            raise InputError("`learning.common.use` is missing: name the corpus and split that masks are learned on")
        if learning.use.corpus not in self.experiment.corpora:
            corpus = learning.use.corpus
            hint = suggest(corpus, list(self.experiment.corpora))
            raise InputError(f"`{places['use']}.use.corpus` is {corpus!r}; {hint}")
        self._check_split(f"{places['use']}.use", learning.use)
        learning = used_by(run.method, learning)
        if run.method == "maskpro" and learning.pattern_prior == "none":
            where = places.get("pattern_prior", own)
            hint = "name the method whose 2:4 mask it starts from"
            raise InputError(f"`{where}.pattern_prior` of maskpro is 'none'; {hint}")
        self._check_priors(learning, places)
        if run.method != "proxsparse":
            learning.micro_batches(processes=self.processes)
        return learning

    def finetuning(self, run: Run) -> Finetuning:
        """Return the fine-tuning settings of a run, without those that its kind does not use.

        Raises:
            InputError: The processes cannot divide a batch evenly.
        """
        settings = self.experiment.finetuning.used_by(run.finetune)
        settings.micro_batches(processes=self.processes)
        return settings

    @property
    def processes(self) -> int:
        """Number of processes of a learning or fine-tuning run on all nodes."""
        return self.experiment.resources.learn_gpus * self.experiment.resources.learn_nodes

    def _check_priors(self, learning: Learning, places: dict[str, str]) -> None:
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
                raise InputError(f"`{places[key]}.{key}` is {value!r}; {FAULTS.get(value) or suggest(value, names)}")

    def priors(self, run: Run) -> dict[str, Run]:
        """Return the runs whose masks initialize a learning run, with the keys `pattern` or `frozen`, and `tile`."""
        if run.definition.stage != "learn":
            return {}
        learning = self.learning(run)
        priors: dict[str, Run] = {}
        if run.method == "patch-tile":
            priors["frozen"] = self._prior(run, learning.frozen_mask, "2:4", 0.5)
        elif run.method != "proxsparse" and learning.pattern_prior != "none":
            pattern = run.pattern if NM_TEXT.match(run.pattern) else "2:4"
            priors["pattern"] = self._prior(run, learning.pattern_prior, pattern, nm_sparsity(pattern))
        if run.pattern == "hybrid" and learning.tile_prior not in ("none", "random"):
            priors["tile"] = self._prior(run, learning.tile_prior, "unstructured", run.sparsity)
        return priors

    def _prior(self, run: Run, method: str, pattern: str, sparsity: float) -> Run:
        if method == "import":
            return self._imported_prior(run.model, pattern)
        seed = run.seed if get_method(method).seeded else 0
        return Run(model=run.model, method=method, pattern=pattern, sparsity=sparsity, seed=seed)

    def _imported_prior(self, model: str, pattern: str) -> Run:
        imports = self.experiment.imports
        runs = [run for name in imports if imports[name].model == model for run in import_runs(self.experiment, name)]
        found = [run for run in runs if run.pattern == pattern]
        if len(found) != 1:
            names = ", ".join(run.imported for run in found) or "none"
            raise InputError(
                f"a prior of model `{model}` is `import`, for which `imports` must have one {pattern} mask of it; "
                f"it has: {names}"
            )
        return found[0]
