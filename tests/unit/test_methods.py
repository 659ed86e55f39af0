"""Tests of the discovery of methods by their files, and of the documented example."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import patch.__main__
import patch.pruning
from patch.errors import InputError
from patch.learning.learning_settings import METHOD_DEFAULTS
from patch.masks.nm import NM, nm_mask
from patch.methods import METHODS, PAPER_ORDER, Method, get_method, one_shot_methods
from patch.models.loading import prunable_linears
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.results.order import run_order
from patch.pipeline.runs.grid import Grid
from patch.pipeline.runs.run import Run
from patch.pruning.prune import prune

GUIDE = Path(__file__).parents[2] / "docs/adding-a-method.md"


def test_methods_in_the_order_of_the_paper() -> None:
    assert [name for name in METHODS if name in PAPER_ORDER] == [name for name in PAPER_ORDER if name != "patch"]
    for name, method in METHODS.items():
        assert method.name == name and method.patterns
    assert {name for name, method in METHODS.items() if method.stage == "learn"} == set(METHOD_DEFAULTS)


def test_what_depends_on_a_seed() -> None:
    assert {name for name in PAPER_ORDER if name in METHODS and not METHODS[name].seeded} == {"dense", "magnitude"}


def test_methods_that_update_weights() -> None:
    updating = [name for name in PAPER_ORDER if name in METHODS and METHODS[name].updates_weights]
    assert updating == ["sparsegpt", "thanos"]


@pytest.mark.parametrize(
    ("name", "close"), [("sparsgpt", "sparsegpt"), ("patch-jont", "patch-joint"), ("Wanda", "wanda"), ("pach", "patch")]
)
def test_misspelt_methods(name: str, close: str) -> None:
    with pytest.raises(InputError) as error:
        get_method(name)
    assert f"unknown method `{name}`" in str(error.value) and f"did you mean `{close}`?" in str(error.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('METHOD = Method("other", "X", "prune", ("n:m",))', "is named 'other'.*use the file's name, 'mine'"),
        ('METHOD = Method("mine", "X", "learn", ("n:m",))', "with stage 'learn'"),
        ('METHOD = Method("mine", TITLE, "prune", ("n:m",))', "literal arguments"),
        ('METHOD = Method("mine", "X", "prune", ("n:m",), tsatistics="norm")', "tsatistics"),
        ("METHOD = make()", "literal arguments|missing"),
        ("METHOD = 3", "must be Method"),
        ('METHOD = Method("mine", "X", "prune", ("n:m",)\n', "line 1: '\\(' was never closed"),
        ("WIDTH = 3\ndef mine(:\n", "line 2: invalid syntax"),
        ('METHD = Method("mine", "X", "prune", ("n:m",))', "line 1: a method is assigned to METHD; name it METHOD"),
        ('METHOD = Method("mine", "X", "prune", ("n:n",))', r"`patterns` of METHOD is \('n:n',\); give a tuple"),
        (
            'METHOD = Method("mine", "X", "prune", ("unstructured",), sparsities=(50.0,))',
            r"`sparsities` of METHOD is \(50.0,\); give a tuple of numbers between 0 and 1",
        ),
        ('METHOD = Method("mine", "X", "prune", ("unstructured",), sparsities=(0.5))', "`sparsities` of METHOD is 0.5"),
        ('METHOD = Method("mine", "X", "prune", ("n:m"))', "`patterns` of METHOD is 'n:m'; give a tuple"),
        ('METHOD = Method("mine", "X", "prune", ("2:4",), statistics="nrom")', "is 'nrom'; did you mean `norm`"),
        (
            'METHOD = Method("mine", "X", "prune", ("2:4",))\ndef mien(): ...\n',
            "`mine` is missing; did you mean `mien`",
        ),
    ],
)
def test_an_invalid_file_is_named(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(line)
    with pytest.raises(InputError, match=words) as error:
        one_shot_methods(tmp_path)
    assert str(tmp_path / "mine.py") in str(error.value)


def test_the_command_line_prints_a_mistake_that_an_import_finds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(_: str) -> None:
        raise InputError("mine.py, line 3: invalid syntax")

    monkeypatch.setattr(patch.__main__, "import_module", refuse)
    assert patch.__main__.main(["plan"]) == 2
    assert capsys.readouterr().err == "error: mine.py, line 3: invalid syntax\n"


def test_files_without_the_line_are_no_methods(tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text("WIDTH = 3\n")
    (tmp_path / "mine.py").write_text('METHOD = Method("mine", "Mine", "prune", ("2:4",))\ndef mine(): ...\n')
    assert one_shot_methods(tmp_path) == [Method("mine", "Mine", "prune", ("2:4",))]


MINE = """
from patch.masks.nm import nm_mask
from patch.methods import Method

METHOD = Method("mine", "Mine", "prune", ("n:m", "unstructured"), statistics="norm")


def mine(weight, statistics, pattern):
    return nm_mask(-weight, pattern)
"""


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a method whose file is in a folder of methods."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setattr(patch.pruning, "__path__", [*patch.pruning.__path__, str(tmp_path)])
    (method,) = one_shot_methods(tmp_path)
    monkeypatch.setitem(METHODS, method.name, method)
    return method.name


def test_the_guide_shows_a_method_as_it_is() -> None:
    code = re.search(r"```python\n(\"\"\"RIA.*?)```", GUIDE.read_text(), re.DOTALL)[1]
    assert code == (Path(patch.pruning.__file__).parent / "ria.py").read_text()


def test_a_file_prunes(example: str, tiny_model: Callable, sequences: Callable) -> None:
    masks = prune(tiny_model(), example, NM(2, 4), sequences())
    masks.verify()
    for name, linear in prunable_linears(tiny_model()).items():
        assert torch.equal(masks.masks[name], nm_mask(-linear.weight, NM(2, 4)))


def test_one_line_of_configuration_brings_it_into_the_grid(example: str, raw_config: dict) -> None:
    raw_config["grid"].append({"methods": ["wanda", example]})
    raw_config["learning"]["common"] |= {"tile_prior": example}
    grid = Grid(validate_experiment(raw_config))
    runs = [run for run in grid.runs if run.method == example]
    assert {(run.model, run.pattern, run.sparsity) for run in runs} == {
        ("qwen", "2:4", 0.5),
        ("llama", "2:4", 0.5),
    }
    assert any(run.method == example and run.pattern == "unstructured" for run in grid.closure), "a prior"
    ours, paper = (
        run_order(Run(model="qwen", method=name, pattern="2:4", sparsity=0.5)) for name in (example, "maskllm")
    )
    assert ours > paper, "after the paper's methods"
