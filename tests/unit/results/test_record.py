import json

import pytest

from patch.errors import InputError
from patch.results.record import Record, read_record


def test_reads_a_record(tmp_path, raw):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(raw()))
    record = read_record(path)
    assert record.cell.method == "wanda"
    assert record.metrics["order"].stderr is None
    assert record.stages["prune"].seconds == 2.0


def test_round_trips_through_json(raw):
    record = Record.model_validate(raw())
    assert Record.model_validate(record.model_dump(by_alias=True)) == record


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"extra": 1}, "extra"),
        ({"schema": 2}, "schema"),
        ({"achieved_sparsity": 1.5}, "achieved_sparsity"),
        ({"metrics": {"accuracy": {"value": "high"}}}, "metrics.accuracy.value"),
        ({"stages": {"sleep": {"seconds": 1, "peak_memory_mb": 1}}}, "stages.sleep"),
    ],
)
def test_names_the_fault_in_one_line(tmp_path, raw, change, key):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(raw() | change))
    with pytest.raises(InputError, match=rf"r\.json: not a record: `{key}") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["2:4:8", "sparse", "two:four", ""])
def test_refuses_an_unknown_pattern(tmp_path, raw, pattern):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(raw(pattern=pattern)))
    with pytest.raises(InputError, match="cell.pattern"):
        read_record(path)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_missing_or_broken_file(tmp_path, text):
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"r\.json"):
        read_record(path)
