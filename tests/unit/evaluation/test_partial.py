"""What an evaluation has measured is read back bit for bit, or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from patch.evaluation.metric import Metric
from patch.evaluation.partial import PartialRecord

PERPLEXITY = Metric(math.pi * 11, 1 / 3, 40, values=(math.pi, 1 / 3, 1e-17))
ACCURACY = Metric(0.1 + 0.2, None, 1, 0.25, (1.0, 0.0))


def filled(path: Path) -> PartialRecord:
    record = PartialRecord(path, "digest")
    record.add("perplexity", PERPLEXITY, {"seconds": 1.25, "peak_memory_mb": 300.0})
    record.add("cloze", ACCURACY, {"seconds": 0.5, "peak_memory_mb": 400.0})
    return record


def test_parts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "sub/cell.json"
    record = filled(path)
    again = PartialRecord(path, "digest")
    assert again.parts == record.parts
    assert [part.metric for part in again.parts.values()] == [PERPLEXITY, ACCURACY]
    assert again.cost() == {"seconds": 1.75, "peak_memory_mb": 400.0}
    assert all(isinstance(part.metric.values, tuple) for part in again.parts.values())
    again.remove()
    assert list(path.parent.iterdir()) == []
    again.remove()


def test_parts_of_other_settings_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path / "cell.json")
    assert PartialRecord(tmp_path / "cell.json", "another").parts == {}
    assert "other settings" in caplog.text


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "3", '{"digest": "digest"}', '{"digest": "digest", "parts": []}', '{"parts": {"a": 1}}', "cut"]
    + [
        json.dumps({"digest": "digest", "parts": {"a": {"metric": metric, "cost": {}}}})
        for metric in ({"valu": 1}, {"valu": 1, "values": []}, {"value": 1, "stderr": None, "samples": 1})
    ],
)
def test_a_broken_file_is_passed_over(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cell.json"
    filled(path)
    path.write_text(path.read_text()[:-20] if damage == "cut" else damage)
    record = PartialRecord(path, "digest")
    assert record.parts == {} and "cannot be read" in caplog.text
    record.add("cloze", ACCURACY, {"seconds": 1.0, "peak_memory_mb": 1.0})
    assert set(PartialRecord(path, "digest").parts) == {"cloze"}


def test_without_a_file_all_is_in_memory() -> None:
    record = filled(None)
    assert set(record.parts) == {"perplexity", "cloze"}
    record.remove()
