"""Methods of the result tables, with their capabilities and requirements.

This module does not import torch, because Snakemake loads it while it parses the workflow.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from patch.errors import InputError, suggest

# Entry points `NAME = "MODULE:FUNCTION"` of packages with pruning methods.
ENTRY_POINTS = "patch.pruning_methods"
# Name of a method of another package, which becomes a part of paths.
NAME = r"[a-z0-9][a-z0-9_-]*"
# Order of the rows in the paper's tables. In a grid, `patch` selects the variant that the model's configuration names.
PAPER_ORDER = (
    "dense",
    "magnitude",
    "wanda",
    "sparsegpt",
    "thanos",
    "proxsparse",
    "maskllm",
    "patch",
    "patch-joint",
    "patch-tile",
)

Statistics = Literal["none", "norm", "gram"]
# Patterns of one-shot methods.
_ONE_SHOT = re.compile(r"n:m|\d+:\d+|unstructured")


@dataclass(frozen=True)
class Method:
    """A pruning or mask-learning method, which is one row of the result tables.

    Attributes:
        name: Name in the configuration and in the results.
        title: Name in printed tables.
        stage: Stage that makes the mask.
        patterns: Supported kinds of patterns: `dense`, `n:m` (any N:M), `2:4` (only 2:4), `unstructured`, `hybrid`.
        statistics: Required statistics of a layer's input: none, `||x_j||^2` per column, or the Gram matrix.
        updates_weights: True if the method also changes the kept weights.
        sparsities: Supported sparsities of unstructured masks; all if empty.
        function: `MODULE:FUNCTION` of a method of another package; empty for those of this project.
        package: Name and version of that package.
    """

    name: str
    title: str
    stage: Literal["none", "prune", "learn", "import"]
    patterns: tuple[str, ...]
    statistics: Statistics = "none"
    updates_weights: bool = False
    sparsities: tuple[float, ...] = ()
    function: str = ""
    package: str = ""

    @property
    def seeded(self) -> bool:
        """Return whether the result depends on the seed of calibration or learning."""
        return self.stage == "learn" or self.statistics != "none"

    def makes(self, pattern: str) -> bool:
        """Return whether the method supports a pattern such as `2:4` or `unstructured`."""
        return pattern in self.patterns or (":" in pattern and "n:m" in self.patterns)


def one_shot_methods(folder: Path) -> list[Method]:
    """Return the one-shot methods of a folder: one for each file that assigns `METHOD = Method(...)`.

    The files are parsed and not imported, because importing them would import torch.

    Raises:
        InputError: A file is not Python, or its line `METHOD` or its function is invalid or missing; the message names
            the file.
    """
    paths = sorted(folder.glob("*.py"))
    return [one for path in paths for one in _methods_of_file(path, path.stem, path.stem, "the file's name")]


def _methods_of_file(path: Path, name: str, function: str, what: str) -> list[Method]:
    """Return the method that a file declares, if any.

    Args:
        path: The file.
        name: Name that the method must have.
        function: Name of the function that the file must have.
        what: Kind of ``name``, for messages.
    """
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from None
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    found = []
    for node in (node for node in body if isinstance(node, ast.Assign)):
        names = [ast.unparse(target) for target in node.targets]
        if names != ["METHOD"]:
            if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "Method":
                raise InputError(f"{path}, line {node.lineno}: a method is assigned to {names[0]}; name it METHOD")
            continue
        found.append(_method(path, node.value, name, what))
        if function not in functions:
            raise InputError(f"{path}: the function `{function}` is missing; {suggest(function, functions)}")
    return found


def _method(path: Path, value: ast.expr, name: str, what: str) -> Method:
    try:
        assert isinstance(value, ast.Call)
        arguments = [ast.literal_eval(argument) for argument in value.args]
        method = Method(*arguments, **{keyword.arg: ast.literal_eval(keyword.value) for keyword in value.keywords})
    except (AssertionError, ValueError, TypeError) as error:
        raise InputError(f"{path}: METHOD must be Method(...) with literal arguments ({error})") from None
    if method.name != name or method.stage != "prune":
        raise InputError(
            f"{path}: METHOD is named {method.name!r} with stage {method.stage!r}; use {what}, {name!r}, and 'prune'"
        )
    if method.statistics not in get_args(Statistics):
        hint = suggest(str(method.statistics), list(get_args(Statistics)))
        raise InputError(f"{path}: `statistics` of METHOD is {method.statistics!r}; {hint}")
    if not isinstance(method.patterns, tuple) or not all(map(_ONE_SHOT.fullmatch, map(str, method.patterns))):
        right = 'give a tuple such as ("n:m", "unstructured") or ("2:4",)'
        raise InputError(f"{path}: `patterns` of METHOD is {method.patterns!r}; {right}")
    numbers = isinstance(method.sparsities, tuple) and all(isinstance(one, float) for one in method.sparsities)
    if not numbers or not all(0 < one < 1 for one in method.sparsities):
        right = "give a tuple of numbers between 0 and 1 such as (0.25, 0.5)"
        raise InputError(f"{path}: `sparsities` of METHOD is {method.sparsities!r}; {right}")
    return method


def installed_methods(taken: Collection[str]) -> tuple[list[Method], dict[str, str]]:
    """Return the one-shot methods of other packages, which name them in the entry points `patch.pruning_methods`.

    Their files are parsed and not imported, as those of this project.

    Args:
        taken: Names that a method of another package cannot have.

    Returns:
        The methods, and by name the reason why one cannot be used.
    """
    found: dict[str, Method] = {}
    faults: dict[str, str] = {}
    for point in entry_points(group=ENTRY_POINTS):
        package = f"{point.dist.name} {point.dist.version}"
        where = f"method `{point.name}` of package {package}"
        other = found[point.name].package if point.name in found else "this project" if point.name in taken else None
        try:
            if other:
                raise InputError(f"{where}: {other} has a method of this name; rename one, or uninstall the package")
            found[point.name] = replace(_installed_method(point, where), function=point.value, package=package)
        except InputError as error:
            faults[point.name] = str(error)
    return [method for name, method in found.items() if name not in faults], faults


def _installed_method(point: EntryPoint, where: str) -> Method:
    if not re.fullmatch(NAME, point.name):
        raise InputError(f"{where}: a method's name has small letters, digits, `_` and `-` alone")
    parts = re.fullmatch(r"(\w+(?:\.\w+)*):(\w+)", point.value)
    path = _module_file(parts[1]) if parts else None
    if path is None:
        fault = f"there is no module {parts[1]}" if parts else "expected MODULE:FUNCTION"
        raise InputError(f"{where}: its entry point is {point.value!r}, but {fault}; correct and reinstall the package")
    try:
        found = _methods_of_file(path, point.name, parts[2], "the name of the entry point")
    except (InputError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{where}: {error}") from None
    if not found:
        raise InputError(f"{where}: {path} has no line METHOD = Method(...) (docs/adding-a-method.md)")
    return found[0]


def _module_file(module: str) -> Path | None:
    """Return the source file of a module, without importing the packages that contain it."""
    top, *inside = module.split(".")
    spec = find_spec(top)
    if spec is None:
        return None
    if not inside:
        return Path(spec.origin) if spec.has_location else None
    places = [Path(folder, *inside) for folder in spec.submodule_search_locations or ()]
    files = [file for place in places for file in (place.with_name(f"{place.name}.py"), place / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def paper_rank(name: str) -> int:
    """Return the position of a method among the paper's rows; methods that the paper does not have come last."""
    return PAPER_ORDER.index(name) if name in PAPER_ORDER else len(PAPER_ORDER)


_KNOWN = [
    Method("dense", "Dense", "none", ("dense",)),
    *one_shot_methods(Path(__file__).parent / "pruning"),
    Method("proxsparse", "ProxSparse", "learn", ("2:4",)),
    Method("maskllm", "MaskLLM", "learn", ("2:4",)),
    Method("patch-joint", "PATCH (joint)", "learn", ("hybrid",)),
    Method("patch-tile", "PATCH (tile)", "learn", ("hybrid",)),
    Method("maskpro", "MaskPro", "learn", ("2:4",)),
]
_INSTALLED, FAULTS = installed_methods([*PAPER_ORDER, *(method.name for method in _KNOWN), "import", "none", "random"])
METHODS = {method.name: method for method in sorted(_KNOWN + _INSTALLED, key=lambda method: paper_rank(method.name))}


def get_method(name: str) -> Method:
    """Return the method of a name.

    Raises:
        InputError: No method has this name, or its package is broken; the message lists the known names or the fault.
    """
    if name in FAULTS:
        raise InputError(FAULTS[name])
    if name not in METHODS:
        raise InputError(f"unknown method `{name}`; {suggest(name, [*METHODS, 'patch'])}")
    return METHODS[name]
