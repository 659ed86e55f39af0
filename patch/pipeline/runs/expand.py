"""Expansion of the blocks of a grid into runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from patch.errors import InputError, suggest
from patch.files.plain import shown
from patch.learning.learning_settings import RECIPES, Learning
from patch.masks.pattern import NM_TEXT
from patch.methods import get_method
from patch.models.shapes import check_groups, check_tile, model_shape
from patch.pipeline.config.experiment import Experiment, GridEntry
from patch.pipeline.runs.run import IMPORT, Run, format_sparsity, nm_sparsity

# Limit of the runs of a block. A larger block is probably a mistake, and planning it would take hours.
MOST_RUNS = 10_000
# Limit of the characters of a variant, because it becomes part of file names.
LONGEST_VARIANT = 120


def expand(experiment: Experiment, entry: GridEntry) -> list[Run]:
    """Return the runs of a block, in the order of its methods and models.

    Raises:
        InputError: A name does not exist, a pattern cannot have a sparsity, a tile does not divide a layer, or the
            block has a key that its methods do not read.
    """
    models = entry.models if entry.models is not None else list(experiment.models)
    for name in models:
        if name not in experiment.models:
            raise InputError(f"grid: unknown model `{name}`; {suggest(name, list(experiment.models))}")
    if entry.imports and "import" not in entry.methods:
        raise InputError(f"grid: `imports` is {entry.imports}, which only the method `import` reads")
    if entry.finetune:
        _check_finetuning(experiment, entry)
    combined = (entry.methods, models, entry.sparsity, entry.tiles, entry.seeds or experiment.seeds)
    _check_count(math.prod(len(values) for values in combined if values) * len(variants(entry)))
    runs = []
    for method in entry.methods:
        if method == "import":
            runs += _imported(experiment, entry, models)
        else:
            runs += [run for model in models for run in _of_method(experiment, entry, method, model)]
    return runs


def _check_finetuning(experiment: Experiment, entry: GridEntry) -> None:
    """Check a block with ``finetune``.

    Raises:
        InputError: The configuration has no section `finetuning`, or the block is quantized or has the dense model.
    """
    if experiment.finetuning is None:
        raise InputError(
            f"grid: `finetune` is {entry.finetune!r} but the section `finetuning` is missing; write "
            "`finetuning: {use: {corpus: NAME, split: train}}` with a corpus to train on"
        )
    if entry.quantization:
        raise InputError(
            f"grid: `finetune` is {entry.finetune!r} with `quantization` {entry.quantization!r}, and quantized weights "
            "cannot be fine-tuned; use two blocks"
        )
    if "dense" in entry.methods:
        raise InputError(
            f"grid: `finetune` is {entry.finetune!r} for the method `dense`, which has no mask to keep; put `dense` "
            "in a block of its own"
        )


def variants(entry: GridEntry) -> dict[str | None, dict[str, Any]]:
    """Return a mapping of variant name to settings for each combination of varied values; {None: {}} without `vary`."""
    if not entry.vary:
        return {None: {}}
    known = sorted([*Learning.model_fields, "recipe"])
    for key in entry.vary:
        if key not in known:
            raise InputError(f"unknown key `grid.vary.{key}`; {suggest(key, known)}")
    for recipe in entry.vary.get("recipe", []):
        if recipe not in RECIPES:
            raise InputError(f"`grid.vary.recipe` is {recipe!r}; {suggest(str(recipe), list(RECIPES))}")
    _check_count(math.prod(map(len, entry.vary.values())))
    for key, values in entry.vary.items():
        if key != "recipe":
            _check_values(key, values)
    combinations = [dict(zip(entry.vary, values, strict=True)) for values in itertools.product(*entry.vary.values())]
    found = {",".join(f"{key}={_value(value)}" for key, value in chosen.items()): chosen for chosen in combinations}
    if too_long := next((name for name in found if len(name) > LONGEST_VARIANT), None):
        raise InputError(
            f"grid: `vary` makes the name {too_long!r}, which is too long for a file; vary fewer settings at a time"
        )
    return found


def _check_values(key: str, values: list[Any]) -> None:
    """Check each value of a varied key alone; `Grid.learning` checks it with the other settings of a run."""
    field = Learning.model_fields[key]
    adapter = TypeAdapter(Annotated[field.annotation, field])
    for value in values:
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            (fault, *_) = error.errors()
            paired = isinstance(field.default, tuple)
            hint = f"; list pairs, such as [{list(field.default)}]" if paired else ""
            raise InputError(f"`grid.vary.{key}` has {shown(value)}: {fault['msg']}{hint}") from None


def _check_count(runs: int) -> None:
    if runs > MOST_RUNS:
        raise InputError(f"grid: a block combines its lists to {runs:,} runs; use at most {MOST_RUNS:,}")


def _value(value: bool | float | str | list[float]) -> str:
    """Return a varied value as part of a name: [4, 0.05] as `4-0.05`. Different values have different names."""
    if isinstance(value, list):
        return "-".join(map(_value, value))
    if isinstance(value, bool):
        return str(value).lower()
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return repr(value) if isinstance(value, float) and float(short) != value else short


def _imported(experiment: Experiment, entry: GridEntry, models: list[str]) -> list[Run]:
    known = list(experiment.imports)
    for name in entry.imports or []:
        if name not in known:
            raise InputError(f"grid: unknown import `{name}`; {suggest(name, known)}")
    for key in ("pattern", "sparsity", "tiles", "vary"):
        if value := getattr(entry, key):
            raise InputError(
                f"grid: `{key}` of the method `import` is {value}; say it under `imports`, where the mask is"
            )
    chosen = [n for n in entry.imports or known if experiment.imports[n].model in models]
    if not chosen:
        raise InputError(f"grid: the method `import` has no mask of {', '.join(models)}; name one under `imports`")
    return [run for name in chosen for run in import_runs(experiment, name, entry)]


def import_runs(experiment: Experiment, name: str, entry: GridEntry | None = None) -> list[Run]:
    """Return the runs of an imported mask, with the seeds and the stages after pruning of a block of the grid.

    It is one run, or one for each seed if a stage after pruning depends on the seed.
    """
    one = experiment.imports[name]
    if one.model not in experiment.models:
        raise InputError(f"`imports.{name}.model` is {one.model!r}; {suggest(one.model, list(experiment.models))}")
    block = GridEntry(
        methods=[one.method],
        pattern=one.pattern,
        sparsity=None if one.sparsity is None else [one.sparsity],
        tiles=None if one.tile is None else [one.tile],
        quantization=entry and entry.quantization,
        finetune=entry and entry.finetune,
        seeds=entry and entry.seeds,
    )
    try:
        found = _of_method(experiment, block, one.method, one.model)
    except InputError as error:
        raise InputError(f"`imports.{name}`: {str(error).removeprefix('grid: ')}") from None
    return _distinct(run.model_copy(update={"variant": f"{IMPORT}{name}"}) for run in found)


def _of_method(experiment: Experiment, entry: GridEntry, method_name: str, model: str) -> list[Run]:
    if method_name == "patch":
        method_name = f"patch-{experiment.models[model].variant}"
    method = get_method(method_name)
    if entry.vary and method.stage != "learn":
        raise InputError(f"grid: `vary` has settings of learning, which `{method_name}` does not read")
    pattern = entry.pattern or {"n:m": "2:4"}.get(method.patterns[0], method.patterns[0])
    kind = "n:m" if NM_TEXT.match(pattern) else pattern
    if not method.makes(pattern):
        raise InputError(
            f"grid: `{method_name}` cannot make pattern `{pattern}`; it makes: {', '.join(method.patterns)}"
        )
    tiles = (entry.tiles or [experiment.tile]) if kind == "hybrid" else [None]
    shape = model_shape(model, experiment.models[model])
    for tile in filter(None, tiles):
        check_tile(model, shape, tile)
    if kind == "n:m":
        nm_sparsity(pattern)
        try:
            check_groups(model, shape, int(pattern.split(":")[1]))
        except InputError as error:
            raise InputError(f"grid: `pattern` is `{pattern}`: {error}") from None
    runs = [
        Run(
            model=model,
            method=method_name,
            pattern=pattern,
            sparsity=sparsity,
            tile=tile,
            seed=seed,
            quantization=entry.quantization,
            finetune=entry.finetune,
            variant=variant,
        )
        for sparsity in _sparsities(entry, method_name, pattern, kind)
        for tile in tiles
        for variant in variants(entry)
        for seed in entry.seeds or experiment.seeds
    ]
    return _distinct(runs)


def _distinct(runs: Iterable[Run]) -> list[Run]:
    """Return each run once, with the seed 0 if the result does not depend on the seed."""
    return list(dict.fromkeys(run if run.seeded else run.model_copy(update={"seed": 0}) for run in runs))


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
