"""Writing and reading of a run's sample file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from patch.errors import InputError
from patch.files.io import read_checked_json, write_checked_json
from patch.pipeline.results.samples import Samples, write_samples
from patch.pipeline.runs.run import Run

RUN = Run(
    model="qwen",
    method="patch-joint",
    pattern="hybrid",
    sparsity=0.45,
    tile=16,
    seed=2,
    quantization="absmax",
    variant="lr=0.1",
)


def write(path: Path) -> Path:
    values = {"perplexity": (math.pi, 10.123456789, 2e-9), "cloze": (1.0, 0.0, 1.0), "group": ()}
    write_samples(path, "demo", RUN, values, "abcd")
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    found = Samples.read(write(tmp_path / "sub/s.json"))
    assert (found.experiment, found.run) == ("demo", RUN)
    assert list(found.samples) == ["perplexity", "cloze", "group"]
    assert found.samples["perplexity"].tolist() == [3.141593, 10.12346, 2e-9]
    assert found.samples["cloze"].tolist() == [1, 0, 1] and found.samples["group"].shape == (0,)
    assert all(values.dtype == np.float64 for values in found.samples.values())


def test_the_file_is_small(tmp_path: Path) -> None:
    text = write(tmp_path / "s.json").read_text()
    assert '"cloze":[1,0,1]' in text and "[3.141593,10.12346,2e-09]" in text
    assert read_checked_json(tmp_path / "s.json") | {"samples": None} == {
        "schema": 1,
        "experiment": "demo",
        "run": RUN.model_dump(),
        "samples": None,
        "config_digest": "abcd",
    }


@pytest.mark.parametrize(
    ("samples", "fault"),
    [
        ({"perplexity": (math.nan, 3.0)}, r"`samples\.perplexity\.0`: Input should be a finite number"),
        ({"perplexity": (3.0, math.inf)}, r"`samples\.perplexity\.1`: Input should be a finite number"),
        ({"perplexity": (-1.0, 3.0)}, r"`samples\.perplexity\.0`: Input should be greater than or equal to 0"),
        ({"perplexity": (900.0, 900.0)}, "the mean loss is 900.0 nats, expected 0 to 300"),
        ({"perplexity": ()}, r"`samples\.perplexity` is missing or empty"),
        ({"cloze": (1.0,)}, r"`samples\.perplexity` is missing or empty"),
        ({"perplexity": (3.0,), "cloze": (2.0,)}, r"`samples\.cloze` has 2.0; expected 0 to 1"),
    ],
)
def test_what_cannot_be_is_not_written(samples: dict, fault: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"s\.json: not the samples of a run: .*{fault}"):
        write_samples(tmp_path / "s.json", "demo", RUN, samples, "abcd")
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"schema": 2}, "`schema`: Input should be 1"),
        ({"samples": {"perplexity": [3], "cloze": ["yes"]}}, r"`samples\.cloze\.0`"),
        ({"samples": {"perplexity": [3], "cloze": ["1"]}}, r"`samples\.cloze\.0`"),
        ({"samples": {"perplexity": [3], "cloze": [True]}}, r"`samples\.cloze\.0`"),
        ({"samples": [1]}, "`samples`"),
        ({"run": {"method": "x"}}, r"`run\.model`: .* \(and"),
        ({"run": RUN.model_dump() | {"tile": None}}, "`run`: `tile` is None for the pattern 'hybrid'"),
        ({"metrics": {}}, "`metrics`: Extra inputs"),
    ],
)
def test_names_the_fault_in_one_line(change: dict, fault: str, tmp_path: Path) -> None:
    path = write(tmp_path / "s.json")
    write_checked_json(path, read_checked_json(path) | change)
    with pytest.raises(InputError, match=rf"s\.json: not the samples of a run: {fault}") as caught:
        Samples.read(path)
    assert "\n" not in str(caught.value)


def test_an_edited_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.json")
    path.write_text(path.read_text().replace("[1,0,1]", "[1,1,1]"))
    with pytest.raises(InputError, match="do not match its checksum"):
        Samples.read(path)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_missing_or_broken_file(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"s\.json"):
        Samples.read(path)
