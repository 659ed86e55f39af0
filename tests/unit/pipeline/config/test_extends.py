"""Tests of configurations that extend another one, and of lists that are appended to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from patch.errors import InputError
from patch.pipeline.config.load import load_experiment, read_configuration, validate_experiment


@pytest.fixture
def base(raw_config: dict[str, Any], tmp_path: Path) -> Path:
    """Return a configuration in a folder of its own."""
    path = tmp_path / "shared/base.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(raw_config))
    return path


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_base_lies_beside_the_file_that_names_it(base: Path, raw_config: dict, tmp_path: Path) -> None:
    write(base.parent / "middle.yaml", "extends: base.yaml\nexperiment: middle\nlearning: {common: {steps: 7}}\n")
    text = "extends: shared/middle.yaml\nreuse: [middle]\ngrid: [{methods: [dense]}]\n"
    top, whole = load_experiment(write(tmp_path / "top.yaml", text)), validate_experiment(raw_config)
    assert (top.experiment, top.reuse, top.extends) == ("middle", ["middle"], None)
    assert top.learning.common == whole.learning.common | {"steps": 7}
    assert (top.models, [entry.methods for entry in top.grid]) == (whole.models, [["dense"]])


@pytest.mark.parametrize("name", ["shared/base.yaml", "{}/shared/base.yaml"])
def test_relative_and_absolute_bases(name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    top = write(tmp_path / "top.yaml", f"extends: {name.format(tmp_path)}\nexperiment: top\n")
    assert load_experiment(top).models == load_experiment(base).models


def test_three_lines_add_a_method(base: Path, tmp_path: Path) -> None:
    text = "extends: shared/base.yaml\ngrid+:\n  - {methods: [thanos], pattern: '2:4'}\n"
    top, whole = load_experiment(write(tmp_path / "top.yaml", text)), load_experiment(base)
    assert top.grid[:-1] == whole.grid and top.grid[-1].methods == ["thanos"]
    above = write(tmp_path / "above.yaml", "extends: top.yaml\ngrid+: [{methods: magnitude}]\nseeds+: [1, 2]\n")
    assert [entry.methods for entry in load_experiment(above).grid[-2:]] == [["thanos"], ["magnitude"]]
    assert load_experiment(above).seeds == [*whole.seeds, 1, 2]


def test_several_files(base: Path, tmp_path: Path) -> None:
    """A file on top appends to the list of those below, and a base of two files counts once."""
    first = write(tmp_path / "a.yaml", "extends: shared/base.yaml\nseeds: 3\nevaluation: {tasks+: piqa}\n")
    second = write(tmp_path / "b.yaml", "extends: shared/base.yaml\nseeds+: 4\n")
    raw = read_configuration([first, second], {"tile": 4})
    assert (raw["seeds"], raw["tile"]) == ([3, 4], 4)
    whole = read_configuration([base])
    assert raw["evaluation"] == whole["evaluation"] | {"tasks": [*whole["evaluation"]["tasks"], "piqa"]}
    assert read_configuration([second])["seeds"] == [*whole["seeds"], 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: none.yaml", "top.yaml: `extends` is 'none.yaml', but .*/none.yaml: no such file; the path starts"),
        ("extends: [a]", r"top.yaml: `extends` is \['a'\]; give the path of a configuration"),
        ("extends: top.yaml", "forms a cycle: .*top.yaml -> .*top.yaml"),
        ("extends: shared", "shared: cannot be read"),
        ("grid+: [{methods: [dense]}]", r"`grid\+` appends one list to another, but `grid` is missing in the base"),
        ("extends: shared/base.yaml\nmodels+: [a]", r"`models\+` appends .*, but `models` is no list but \{"),
        ("extends: shared/base.yaml\nevaluation: {tasks+: {a: 1}}", r"`evaluation.tasks\+` is no list but \{'a': 1\}"),
        ("extends: shared/base.yaml\nseeds: 1\nseeds+: 2", r"one file has `seeds\+` and `seeds`; leave one"),
        ("extends: shared/base.yaml\nnodes+: 2", r"`nodes\+` .* `nodes` is missing in the base"),
    ],
)
def test_what_cannot_be_merged(base: Path, tmp_path: Path, text: str, message: str) -> None:
    top = write(tmp_path / "top.yaml", text)
    with pytest.raises(InputError, match=message):
        load_experiment(top)


def test_values_of_the_command_line_extend_nothing(base: Path) -> None:
    with pytest.raises(InputError, match="`extends` belongs into a file; give several files"):
        validate_experiment(read_configuration([base], {"extends": "other.yaml"}))
