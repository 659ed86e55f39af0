"""The file of a cell's samples, written and read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from patch.cell import Cell
from patch.errors import InputError
from patch.results.samples import read_samples, write_samples

CELL = Cell("qwen", "patch-joint", "hybrid", 0.45, 16, 2, "absmax", "lr=0.1")


def raw_cell(cell: Cell = CELL) -> dict:
    return {"id": cell.id} | {name: getattr(cell, name) for name in cell.__dataclass_fields__}


def write(path: Path) -> Path:
    values = {"perplexity": (math.pi, 10.123456789, 2e-9), "cloze": (1.0, 0.0, 1.0), "group": ()}
    write_samples(path, "demo", raw_cell(), values)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    found = read_samples(write(tmp_path / "sub/s.json"))
    assert (found.experiment, found.cell) == ("demo", CELL)
    assert list(found.samples) == ["perplexity", "cloze", "group"]
    assert found.samples["perplexity"].tolist() == [3.141593, 10.12346, 2e-9]
    assert found.samples["cloze"].tolist() == [1, 0, 1] and found.samples["group"].shape == (0,)
    assert all(values.dtype == np.float64 for values in found.samples.values())


def test_the_file_is_small(tmp_path: Path) -> None:
    text = write(tmp_path / "s.json").read_text()
    assert '"cloze":[1,0,1]' in text and "[3.141593,10.12346,2e-09]" in text
    assert json.loads(text) | {"samples": None} == {
        "schema": 1,
        "experiment": "demo",
        "cell": raw_cell(),
        "samples": None,
    }


def test_a_broken_models_losses_survive(tmp_path: Path) -> None:
    write_samples(tmp_path / "s.json", "demo", raw_cell(), {"perplexity": (math.nan, math.inf)})
    values = read_samples(tmp_path / "s.json").samples["perplexity"]
    assert math.isnan(values[0]) and values[1] == math.inf


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"schema": 2}, "`schema`: Input should be 1"),
        ({"samples": {"cloze": ["yes"]}}, r"`samples\.cloze\.0`"),
        ({"samples": [1]}, "`samples`"),
        ({"cell": {"id": "x"}}, r"`cell\.model`: Field required \(and"),
        ({"cell": raw_cell() | {"id": "other"}}, f"`cell.id` is 'other'; expected '{CELL.id}'"),
        ({"metrics": {}}, "`metrics`: Extra inputs"),
    ],
)
def test_names_the_fault_in_one_line(change: dict, fault: str, tmp_path: Path) -> None:
    path = write(tmp_path / "s.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=rf"s\.json: not the samples of a cell: {fault}") as caught:
        read_samples(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_missing_or_broken_file(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"s\.json"):
        read_samples(path)
