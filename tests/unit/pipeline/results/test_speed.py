"""Speed records and the paper's speedups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patch.errors import InputError
from patch.files.io import write_checked_json
from patch.pipeline.results.published import Published
from patch.pipeline.results.speed import (
    PAPER_MODEL,
    Quartiles,
    SpeedRecord,
    paper_new_tokens,
    published_devices,
    published_speedup,
)


@pytest.fixture
def written(tmp_path: Path, speed_record: Callable) -> Callable[..., Path]:
    """Return a function that writes a record with some keys changed, or a text instead, and returns its path."""

    def write(text: str | None = None, **changes: Any) -> Path:
        path = tmp_path / "speed.json"
        write_checked_json(path, speed_record() | changes) if text is None else path.write_text(text)
        return path

    return write


def test_a_record_is_read(written: Callable) -> None:
    record = SpeedRecord.read(written())
    assert record.dense.run.method == "dense" and [timed.run.sparsity for timed in record.timed] == [
        0,
        0.5,
        0.45,
        0.25,
    ]
    assert record.timed[1].speedup.spread == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "`schema`"),
        ({"timed": []}, "`timed`"),
        ({"hardware": None}, "`hardware`"),
        ({"settings": {"batch_size": 4}}, "`settings.prompt`"),
        ({"settings": {"batch_size": 4, "prompt": 0, "new_tokens": [1], "repeats": 1}}, "`settings.prompt`"),
        ({"settings": {"batch_size": 4, "prompt": 1, "new_tokens": 128, "repeats": 1}}, "`settings.new_tokens`"),
        ({"model": "llama"}, "`timed` must contain only the model 'llama'"),
        ({"cost": {"seconds": -1.0, "peak_memory_mb": 1.0}}, "`cost.seconds`"),
        ({"cost": {"seconds": "1", "peak_memory_mb": 1.0}}, "`cost.seconds`"),
        ({"more": 1}, "`more`"),
    ],
)
def test_a_wrong_record_is_named(changes: dict, words: str, written: Callable) -> None:
    with pytest.raises(InputError, match=r"speed\.json: not a record of speed: ") as error:
        SpeedRecord.read(written(**changes))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_dense_model_stands_first(written: Callable, speed_record: Callable) -> None:
    timed = speed_record()["timed"]
    for wrong in (timed[1:], timed[::-1], [timed[0], *timed]):
        with pytest.raises(InputError, match="must begin with the dense model"):
            SpeedRecord.read(written(timed=wrong))


def test_quartiles_out_of_order_and_runs_there_twice(written: Callable, speed_record: Callable) -> None:
    timed = speed_record()["timed"]
    with pytest.raises(InputError, match="`timed` must contain each run once"):
        SpeedRecord.read(written(timed=[*timed, timed[1]]))
    timed[1]["speedup"] = {"median": 1.0, "low": 1.1, "high": 1.2}
    with pytest.raises(InputError, match=r"`timed.1.speedup`: the quartiles 1.1, 1.0, 1.2 are not in order"):
        SpeedRecord.read(written(timed=timed))


def test_noise_is_part_of_a_record(written: Callable, speed_record: Callable) -> None:
    timed = speed_record()["timed"]
    timed[1] |= {"rounds": 3, "noisy": ["speedup"]}
    assert SpeedRecord.read(written(timed=timed)).timed[1].noisy == ["speedup"]
    timed[1]["noisy"] = ["perplexity"]
    with pytest.raises(InputError, match=r"`timed.1.noisy.0`"):
        SpeedRecord.read(written(timed=timed))
    del timed[1]["noisy"]
    with pytest.raises(InputError, match=r"`timed.1.noisy`"):
        SpeedRecord.read(written(timed=timed))


def test_each_number_of_new_tokens_has_every_run(written: Callable, speed_record: Callable) -> None:
    raw = speed_record(new_tokens=(128, 1024))
    record = SpeedRecord.read(written(**raw))
    for new in (128, 1024):
        assert [timed.run.sparsity for timed in record.timed_with(new)] == [0, 0.5, 0.45, 0.25]
    with pytest.raises(InputError, match="must begin with the dense model"):
        SpeedRecord.read(written(**raw | {"timed": raw["timed"][:4]}))
    with pytest.raises(InputError, match=r"must have the new tokens of `settings`, \[128\]"):
        SpeedRecord.read(written(timed=raw["timed"]))


def test_what_is_written_is_checked(speed_record: Callable, tmp_path: Path) -> None:
    SpeedRecord.write(tmp_path / "speed.json", speed_record())
    assert SpeedRecord.read(tmp_path / "speed.json") == SpeedRecord.model_validate(speed_record())
    with pytest.raises(InputError, match=r"none\.json: not a record of speed: `dtype`"):
        SpeedRecord.write(tmp_path / "none.json", speed_record(dtype=None))
    assert not (tmp_path / "none.json").exists()


def test_a_truncated_or_missing_file_is_named(written: Callable, tmp_path: Path) -> None:
    whole = written().read_text()
    with pytest.raises(InputError, match=r"speed\.json: not valid JSON"):
        SpeedRecord.read(written(whole[: len(whole) // 2]))
    with pytest.raises(InputError, match=r"nowhere\.json: no such file"):
        SpeedRecord.read(tmp_path / "nowhere.json")


def test_spread_is_half_of_what_lies_between_the_quartiles() -> None:
    assert Quartiles(median=5.0, low=4.0, high=7.0).spread == 1.5


def test_the_papers_speedups(published: Published) -> None:
    assert published_devices(published) == ["A6000", "A100"]
    rounded = {
        device: [
            round(published_speedup(published, PAPER_MODEL, device, level), 2) for level in (0.0, 0.25, 0.35, 0.45)
        ]
        for device in ("A6000", "A100")
    }
    assert rounded == {"A6000": [1.0, 1.18, 1.27, 1.38], "A100": [1.0, 1.07, 1.11, 1.16]}
    assert round(published_speedup(published, PAPER_MODEL, "A6000", 0.45, 1024), 2) == 1.25
    assert published_speedup(published, PAPER_MODEL, "A100", 0.5) is None
    assert published_speedup(published, "Qwen/Qwen2.5-0.5B", "A100", 0.45) is None
    assert published_speedup(published, None, "A100", 0.45) is None


def test_the_part_of_the_papers_table_that_stands_beside(published: Published) -> None:
    assert [paper_new_tokens(new, published) for new in (16, 128, 1024)] == [128, 128, 1024]
