import json

import pytest

from patch.errors import InputError
from patch.files.io import write_checked_json
from patch.pipeline.results.environment import describe_environment, hardware
from patch.pipeline.results.record import Record


def test_reads_a_record(tmp_path, raw):
    Record.write(tmp_path / "r.json", raw())
    record = Record.read(tmp_path / "r.json")
    assert record == Record.model_validate(raw())
    assert record.run.method == "wanda"
    assert record.metrics["order"].stderr is None
    assert record.stages["prune"].seconds == 2.0


def test_round_trips_through_json(raw):
    record = Record.model_validate(raw())
    assert Record.model_validate(record.model_dump(by_alias=True)) == record


def changed(record, key, value):
    """Return the record with one value changed; slashes in the key separate nested keys."""
    *parents, last = key.split("/")
    place = record
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return record


FAULTS = [
    ("extra", 1, "`extra`"),
    ("schema", 2, "`schema`"),
    ("experiment", "", "`experiment`"),
    ("achieved_sparsity", 1.5, "`achieved_sparsity`"),
    ("achieved_sparsity", -0.1, "`achieved_sparsity`"),
    ("achieved_sparsity", 0.6, "`achieved_sparsity` is 0.6; `density` gives 0.5 to 0.5"),
    ("density/model.layers.0.self_attn.q_proj", 1.5, "`density.model.layers.0.self_attn.q_proj`"),
    ("density/", 0.5, r"`density\.\.\[key\]`"),
    ("config_digest", 3, "`config_digest`"),
    ("metrics/a\nb", {"value": 0.5}, "a name has no control characters"),
    ("experiment", "\ud800", "`experiment`"),
    ("metrics/\ud800", {"value": 0.5}, "valid string, unable to parse"),
    ("environment/threads", 10**400, "`environment.threads`"),
    ("metrics/accuracy/value", "high", "`metrics.accuracy.value`"),
    ("metrics/accuracy/value", "0.5", "`metrics.accuracy.value`"),
    ("metrics/accuracy/value", True, "`metrics.accuracy.value`"),
    ("metrics/accuracy/value", -0.5, "`metrics.accuracy.value`"),
    ("metrics/accuracy/value", 55.0, "`accuracy` is 55.0; expected 0 to 1"),
    ("metrics/perplexity/value", 0.5, "`perplexity` is 0.5; expected 1 or more"),
    ("metrics/perplexity/value", -28.5, "`metrics.perplexity.value`"),
    ("metrics/perplexity/stderr", -0.2, "`metrics.perplexity.stderr`"),
    ("metrics/next_verse/samples", 0, "`metrics.next_verse.samples`"),
    ("metrics/next_verse/samples", 2.5, "`metrics.next_verse.samples`"),
    ("metrics/next_verse/chance", 25, "`metrics.next_verse.chance`"),
    ("metrics/perplexity", None, "`metrics` has no perplexity"),
    ("metrics/accuracy", None, "`metrics` has no accuracy, the mean of next_verse, order"),
    ("metrics/next_verse/fewshot", -1, "`metrics.next_verse.fewshot`"),
    ("stages/sleep", {"seconds": 1, "peak_memory_mb": 1}, "`stages.sleep"),
    ("stages/prune/seconds", -1, "`stages.prune.seconds`"),
    ("stages/prune/peak_memory_mb", "900", "`stages.prune.peak_memory_mb`"),
    ("environment/threads", 0, "`environment.threads`"),
    ("run/id", "wanda_2of4_0.5_s0", "`run.id`"),
    ("run/seed", -1, "`run.seed`"),
    ("run/seed", "0", "`run.seed`"),
    ("run/tile", 16, "`run`: `tile` is 16 for the pattern '2:4'"),
    ("run/sparsity", 0.25, "`sparsity` is 0.25; the pattern '2:4' has 0.5"),
    ("run/model", "", "`run.model`"),
]


@pytest.mark.parametrize(("key", "value", "fault"), FAULTS)
def test_names_the_fault_in_one_line(tmp_path, raw, key, value, fault):
    path, record = tmp_path / "r.json", changed(raw(), key, value)
    with pytest.raises(InputError, match=r"r\.json: not a record: "):
        Record.write(path, record)
    assert not path.exists()
    write_checked_json(path, record)
    with pytest.raises(InputError, match=rf"r\.json: not a record: .*{fault}") as caught:
        Record.read(path)
    assert "\n" not in str(caught.value)


def test_perplexity_alone_and_other_metrics_need_no_mean(tmp_path, raw):
    record = raw()
    perplexity = record["metrics"]["perplexity"]
    for metrics in ({}, {"gsm8k/strict-match": {"value": 0.125, "fewshot": 5}}):
        Record.write(tmp_path / "r.json", record | {"metrics": {"perplexity": perplexity} | metrics})
        assert set(Record.read(tmp_path / "r.json").metrics) == {"perplexity", *metrics}


@pytest.mark.parametrize(
    "pattern", ["2:4:8", "sparse", "two:four", "", "2:0", "0:4", "4:2", "2:4\n", "9" * 5000 + ":4"]
)
def test_refuses_an_unknown_pattern(tmp_path, raw, pattern):
    path = tmp_path / "r.json"
    write_checked_json(path, raw(pattern=pattern))
    with pytest.raises(InputError, match="`run`: pattern .* is not N:M with 0 < N <= M") as caught:
        Record.read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_missing_or_broken_file(tmp_path, text):
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"r\.json"):
        Record.read(path)


def test_an_edited_record_is_refused(tmp_path, raw):
    path = tmp_path / "r.json"
    Record.write(path, raw())
    text = path.read_text()
    assert "28.5" in text
    path.write_text(text.replace("28.5", "18.5"))
    with pytest.raises(InputError, match="do not match its checksum"):
        Record.read(path)
    path.write_text(text.replace("28.5", "NaN"))
    with pytest.raises(InputError, match="NaN is not a number"):
        Record.read(path)
    path.write_text(json.dumps(raw()))
    with pytest.raises(InputError, match="it has no checksum"):
        Record.read(path)


def test_the_machine_is_named_by_its_processor_and_its_gpu(tmp_path, raw):
    old = Record.model_validate(raw())
    assert old.environment.machine == {"device": "cpu"}
    for device, machine in (("A CPU", {"processor": "A CPU"}), ("H100", {"processor": "A CPU", "GPU": "H100"})):
        record = raw()
        record["environment"] |= {"processor": "A CPU", "device": device}
        Record.write(tmp_path / "r.json", record)
        assert Record.read(tmp_path / "r.json").environment.machine == machine


def test_the_environment_of_this_machine_is_part_of_a_record(raw):
    environment = describe_environment("cpu")
    record = Record.model_validate(raw() | {"environment": environment})
    assert record.environment.machine == {"processor": hardware("cpu")}
