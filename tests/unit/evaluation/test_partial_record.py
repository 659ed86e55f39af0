"""Tests of partial records, which are read back bit for bit or ignored."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from patch.evaluation.metric import Measurement
from patch.evaluation.partial_record import PartialRecord
from patch.files.io import write_checked_json, write_json

PERPLEXITY = Measurement(value=math.pi * 11, stderr=1 / 3, samples=40, values=(math.pi, 1 / 3, 1e-17))
ACCURACY = Measurement(value=0.1 + 0.2, samples=1, chance=0.25, values=(1.0, 0.0))


def filled(path: Path) -> PartialRecord:
    record = PartialRecord(path, "digest")
    record.add("perplexity", {"perplexity": PERPLEXITY}, {"seconds": 1.25, "peak_memory_mb": 300.0})
    record.add("cloze", {"cloze": ACCURACY, "cloze/acc_norm": ACCURACY}, {"seconds": 0.5, "peak_memory_mb": 400.0})
    return record


def test_parts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "sub/run.json"
    record = filled(path)
    again = PartialRecord(path, "digest")
    assert again.parts == record.parts
    assert again.parts["perplexity"].metrics == {"perplexity": PERPLEXITY}
    assert again.parts["cloze"].metrics == {"cloze": ACCURACY, "cloze/acc_norm": ACCURACY}
    assert again.cost() == {"seconds": 1.75, "peak_memory_mb": 400.0}
    assert isinstance(again.parts["cloze"].metrics["cloze"].values, tuple)
    again.remove()
    assert list(path.parent.iterdir()) == []
    again.remove()


def test_parts_of_other_settings_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path / "run.json")
    assert PartialRecord(tmp_path / "run.json", "another").parts == {}
    assert "other settings" in caplog.text


METRIC = {"value": 0.5, "stderr": None, "samples": 1, "chance": 0.5, "values": [1.0]}
COST = {"seconds": 1.0, "peak_memory_mb": 1.0}
DAMAGES = {
    "no-checksum": {"digest": "digest", "parts": {}},
    "no-parts": {"digest": "digest"},
    "parts-as-list": {"digest": "digest", "parts": []},
    "no-digest": {"parts": {}},
    "cost-missing": {"cost": {}},
    "cost-negative": {"cost": COST | {"seconds": -1.0}},
    "cost-as-text": {"cost": COST | {"seconds": "1"}},
    "value-unknown": {"metrics": {"a": METRIC | {"valu": 1}}},
    "value-over-one": {"metrics": {"a": METRIC | {"value": 1.5}}},
    "value-as-text": {"metrics": {"a": METRIC | {"value": "0.5"}}},
    "value-true": {"metrics": {"a": METRIC | {"value": True}}},
    "stderr-negative": {"metrics": {"a": METRIC | {"stderr": -0.1}}},
    "values-missing": {"metrics": {"a": {key: METRIC[key] for key in METRIC if key != "values"}}},
    "values-of-text": {"metrics": {"a": METRIC | {"values": ["1"]}}},
    "samples-none": {"metrics": {"a": METRIC | {"samples": None}}},
}


@pytest.mark.parametrize("damage", ["", "{", "[]", "3", "cut", "nan", *DAMAGES])
def test_a_broken_file_is_ignored(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run.json"
    filled(path)
    text = path.read_text()
    if damage in DAMAGES:
        part = {"metrics": {"a": METRIC}, "cost": COST} | DAMAGES[damage]
        content = DAMAGES[damage] if set(DAMAGES[damage]) & {"digest", "parts"} else None
        write = write_json if damage == "no-checksum" else write_checked_json
        write(path, content or {"digest": "digest", "parts": {"a": part}})
    else:
        path.write_text({"cut": text[:-20], "nan": text.replace("0.25", "NaN")}.get(damage, damage))
    record = PartialRecord(path, "digest")
    assert record.parts == {} and "cannot be read" in caplog.text
    record.add("cloze", {"cloze": ACCURACY, "cloze/acc_norm": ACCURACY}, {"seconds": 1.0, "peak_memory_mb": 1.0})
    assert set(PartialRecord(path, "digest").parts) == {"cloze"}


def test_a_perplexity_below_one_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_checked_json(
        tmp_path / "a.json",
        {"digest": "digest", "parts": {"perplexity": {"metrics": {"perplexity": METRIC}, "cost": COST}}},
    )
    assert PartialRecord(tmp_path / "a.json", "digest").parts == {}
    assert "`perplexity` is 0.5; expected 1 or more" in caplog.text


def test_without_a_file_all_is_in_memory() -> None:
    record = filled(None)
    assert set(record.parts) == {"perplexity", "cloze"}
    record.remove()
