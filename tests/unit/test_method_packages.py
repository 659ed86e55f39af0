"""Tests of pruning methods in other packages, which name them in an entry point."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patch.errors import InputError
from patch.masks.nm import NM, nm_mask
from patch.methods import FAULTS, METHODS, Method, get_method, installed_methods
from patch.models.loading import prunable_linears
from patch.pipeline.config.document import README, readme
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.runs.plan import Plan
from patch.pipeline.runs.run import Run
from patch.pruning.prune import prune

ROOT = Path(__file__).parents[2]
CODE = """
from patch.masks.nm import nm_mask
from patch.methods import Method

METHOD = Method("least-first", "Least first", "prune", ("n:m", "unstructured"))


def least(weight, pattern):
    return nm_mask(-weight.abs(), pattern)
"""
FOUND = Method(
    "least-first",
    "Least first",
    "prune",
    ("n:m", "unstructured"),
    function="own_methods.inside.least:least",
    package="own-methods 0.1.0",
)


def install(folder: Path, entry: str = f"{FOUND.name} = {FOUND.function}", code: str = CODE, name: str = "own") -> Path:
    """Write a package with one module and the metadata of its installation."""
    module = folder / f"{name}_methods/inside/least.py"
    module.parent.mkdir(parents=True)
    # Dry runs must not import the packages that contain the module.
    (folder / f"{name}_methods/__init__.py").write_text("import torch\n")
    module.write_text(code)
    metadata = folder / f"{name}_methods-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-methods\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text(f"[patch.pruning_methods]\n{entry}\n")
    return module


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in which Python looks for packages first."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_methods")]:
        del sys.modules[name]


@pytest.fixture
def installed(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a method that is known as if its package had been installed before."""
    module = install(path)
    monkeypatch.setitem(METHODS, FOUND.name, FOUND)
    return module


def run_python(path: Path, code: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(path)])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout


def test_a_dry_run_knows_the_method_and_imports_nothing_of_its_package(path: Path) -> None:
    install(path)
    assert installed_methods([]) == ([FOUND], {})
    code = "import sys; from patch.methods import *; print(get_method('least-first'), list(METHODS)[-1], 'torch' in "
    assert run_python(path, f"{code} sys.modules)") == f"{FOUND} least-first False\n"


def test_it_prunes(installed: Path, tiny_model: Callable) -> None:
    masks, dense = prune(tiny_model(), FOUND.name, NM(2, 4)), prunable_linears(tiny_model())
    masks.verify()
    assert masks.masks.keys() == dense.keys()
    assert all(torch.equal(mask, nm_mask(-dense[name].weight.abs(), NM(2, 4))) for name, mask in masks.masks.items())


def test_it_is_planned_initializes_learning_and_reruns_with_a_new_version(
    installed: Path, raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw_config["grid"].append({"methods": [FOUND.name]})
    raw_config["learning"]["common"] |= {"pattern_prior": FOUND.name, "tile_prior": FOUND.name}
    run = Run(model="qwen", method=FOUND.name, pattern="2:4", sparsity=0.5)
    learned = Run(model="qwen", method="patch-joint", pattern="hybrid", sparsity=0.45, tile=4)

    def settings() -> tuple[Any, list[str]]:
        plan = Plan(validate_experiment(copy.deepcopy(raw_config)))
        assert run in plan.grid.runs
        priors = plan.grid.priors(learned)
        assert {prior.method for prior in priors.values()} == {FOUND.name} and priors.keys() == {"pattern", "tile"}
        runs = [run, learned, run.model_copy(update={"method": "magnitude"})]
        return plan.settings.prune(run), [plan.settings.mask_digest(one) for one in runs]

    before, (pruned, prior, other) = settings()
    assert before.package == "own-methods 0.1.0"
    newer = Method(**vars(FOUND) | {"package": "own-methods 0.2.0"})
    monkeypatch.setitem(METHODS, FOUND.name, newer)
    _, after = settings()
    assert after[0] != pruned and after[1] != prior and after[2] == other


def test_the_reference_lists_the_methods_of_this_project_alone(installed: Path) -> None:
    text = (ROOT / README).read_text(encoding="utf-8")
    assert readme(text) == text


@pytest.mark.parametrize(
    ("entry", "code", "message"),
    [
        ("a = own_methods.inside.least", CODE, "'own_methods.inside.least', but expected MODULE:FUNCTION"),
        ("a = own_methods.other:least", CODE, "'own_methods.other:least', but there is no module own_methods.other"),
        ("a = nowhere.least:least", CODE, "there is no module nowhere.least; correct and reinstall the package"),
        ("least-first = own_methods.inside.least:most", CODE, "least.py: the function `most` is missing; known: least"),
        ("a = own_methods.inside.least:least", CODE, "METHOD is named 'least-first' .*use the name of the entry point"),
        ("a = own_methods.inside.least:least", "def least(): ...", r"has no line METHOD = Method\(...\)"),
        ("a = own_methods.inside.least:least", "def least(:", "least.py, line 1: invalid syntax"),
        ("a/b = own_methods.inside.least:least", CODE, "small letters, digits"),
        ("wanda = own_methods.inside.least:least", CODE, "this project has a method of this name; rename one"),
    ],
)
def test_a_broken_package_is_named_where_its_method_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, code: str, message: str
) -> None:
    install(path, entry, code)
    name = entry.partition(" ")[0]
    methods, faults = installed_methods(["wanda"])
    assert (methods, list(faults)) == ([], [name])
    monkeypatch.setitem(FAULTS, name, faults[name])
    with pytest.raises(InputError, match=f"^method `{name}` of package own-methods 0.1.0: .*{message}"):
        get_method(name)
    assert get_method("magnitude")


def test_two_packages_with_one_name(path: Path) -> None:
    install(path)
    install(path, f"{FOUND.name} = his_methods.inside.least:least", name="his")
    methods, faults = installed_methods([])
    assert not methods and "his-methods 0.1.0" in faults[FOUND.name] and "own-methods 0.1.0" in faults[FOUND.name]


def test_a_prior_of_a_broken_package(raw_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "mine", "method `mine` of package p 1: broken")
    raw_config["learning"]["common"] |= {"tile_prior": "mine"}
    with pytest.raises(InputError, match="tile_prior` is 'mine'; method `mine` of package p 1: broken"):
        Plan(validate_experiment(raw_config))


def test_a_module_that_cannot_be_imported(installed: Path, tiny_model: Callable) -> None:
    installed.write_text(f"import nothing_of_this_name\n{CODE}")
    with pytest.raises(InputError, match="`least-first` of package own-methods 0.1.0: .* ModuleNotFoundError: No mod"):
        prune(tiny_model(), FOUND.name, NM(2, 4))
