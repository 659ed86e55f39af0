"""Attacks on result files: records, samples, speed records, unfinished evaluations and CSV files.

`attack(rng, folder)` writes one valid file into ``folder``, damages it, reads it, and returns the kind of file and the
outcome, such as `record: refused`. All randomness comes from ``rng``, a `random.Random`. The outcomes are

- `refused`: an `InputError` of one line, or no part of an unfinished evaluation;
- `same`: the damage has no effect, and the written facts are read;
- `sound`: the file holds other facts that are finite, in range and complete. This is possible after a change with a
  correct checksum, and in a CSV file, which has no checksum.

It raises `AssertionError` for any other outcome: another exception, or other facts that are not allowed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd

from patch.errors import InputError
from patch.evaluation.metric import Measurement
from patch.evaluation.partial_record import PartialRecord
from patch.files.io import CHECKSUM
from patch.pipeline.results.collect import collect, read_results
from patch.pipeline.results.differences import Differences, paired_differences
from patch.pipeline.results.published import load_published
from patch.pipeline.results.record import Record
from patch.pipeline.results.samples import Samples, write_samples
from patch.pipeline.results.speed import SpeedRecord
from patch.pipeline.runs.run import ModelInfo, Run

from ._damage import checked_text, damaged_bytes, damaged_json, hostile_text, outcome

RUNS = (
    Run(model="qwen", method="wanda", pattern="2:4", sparsity=0.5),
    Run(model="qwen", method="patch-joint", pattern="hybrid", sparsity=0.45, tile=16, seed=1),
    Run(
        model="qwen",
        method="patch-joint",
        pattern="hybrid",
        sparsity=0.45,
        tile=16,
        seed=1,
        quantization="absmax",
        variant="tile_prior=none",
    ),
    Run(model="qwen", method="dense", pattern="dense", sparsity=0.0),
)
COST = {"seconds": 12.5, "peak_memory_mb": 800.0}
ENVIRONMENT = {"git_commit": None, "python": "3.11", "packages": {"torch": "2"}, "device": "cpu", "threads": 1}
ENVIRONMENT |= {"time": "2026-01-01T00:00:00+00:00"}
PUBLISHED = Path(__file__).parents[2] / "config/published.json"


@dataclass(frozen=True)
class Kind:
    """File format with functions that write a valid file, read one into comparable facts, and check other facts."""

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    sound: Callable[[Any], None]
    checksum: bool = True


def attack(rng: Random, folder: Path) -> str:
    """Write, damage and read one file, and return the outcome; see above."""
    name = rng.choice(list(KINDS))
    kind, path = KINDS[name], folder / "attacked"
    kind.write(path)
    original = kind.read(path)
    ways = (_change_bytes, _change_text, _swap) + ((_change_values,) * 3 if kind.checksum else (_change_line,) * 3)
    sound = rng.choice(ways)(rng, path, kind)
    return f"{name}: {outcome(lambda: kind.read(path), original, sound if kind.checksum else kind.sound)}"


def _change_bytes(rng: Random, path: Path, kind: Kind) -> None:
    path.write_bytes(damaged_bytes(rng, path.read_bytes()))


def _change_text(rng: Random, path: Path, kind: Kind) -> None:
    path.write_text(hostile_text(rng, path.read_text()))


def _change_values(rng: Random, path: Path, kind: Kind) -> Callable[[Any], None]:
    """Change a value, with a correct checksum."""
    value = json.loads(path.read_text())
    value.pop(CHECKSUM)
    path.write_text(checked_text(damaged_json(rng, value)))
    return kind.sound


def _change_line(rng: Random, path: Path, kind: Kind) -> None:
    """Remove, repeat, cut or change a line of a CSV file."""
    lines = path.read_text().splitlines(keepends=True)
    place = rng.randrange(len(lines))
    values = lines[place].rstrip("\n").split(",")
    match rng.randrange(5):
        case 0:
            del lines[place]
        case 1:
            lines.insert(rng.randrange(len(lines)), lines[place])
        case 2:
            lines[place] = lines[place][: rng.randrange(len(lines[place]))]
        case _:
            odd = (
                "",
                "nan",
                "inf",
                "-1",
                "1e999",
                "0",
                "x",
                "1_0",
                " 1",
                '"',
                "2:0",
                "9" * 5000,
                "9" * 30,
                "\x00",
                "\x85",
            )
            values[rng.randrange(len(values))] = rng.choice(odd)
            lines[place] = ",".join(values) + "\n"
    path.write_text("".join(lines))


def _swap(rng: Random, path: Path, kind: Kind) -> None:
    """Replace the file by a valid file of another format."""
    rng.choice([other for other in KINDS.values() if other is not kind]).write(path)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _check_numbers(value: Any) -> None:
    assert all(math.isfinite(number) and number >= 0 for number in _numbers(value)), value


def _check_run(run: dict[str, Any]) -> None:
    found = Run(**run)
    assert found.model and (found.tile is not None) == (found.pattern == "hybrid")
    if found.pattern not in ("dense", "hybrid", "unstructured"):
        n, m = map(int, found.pattern.split(":"))
        assert 0 < n <= m and abs(found.sparsity - (1 - n / m)) < 1e-5


def _check_metrics(metrics: dict[str, dict[str, Any]]) -> None:
    for name, metric in metrics.items():
        assert metric["value"] >= 1 if name == "perplexity" else 0 <= metric["value"] <= 1
        assert metric["chance"] is None or 0 <= metric["chance"] <= 1


def _raw_record(run: Run = RUNS[1]) -> dict[str, Any]:
    return {
        "schema": 1,
        "experiment": "demo",
        "run": run.model_dump(),
        "metrics": {
            "perplexity": {"value": 28.5, "stderr": 0.2, "chance": None, "samples": 400},
            "accuracy": {"value": 0.5, "stderr": 0.01, "chance": 0.25, "samples": 1},
            "cloze": {"value": 0.5, "stderr": None, "chance": 0.25, "samples": 200},
        },
        "achieved_sparsity": 0.45,
        "density": {"model.layers.0.q_proj": 0.5, "model.layers.0.v_proj": 0.75},
        "config_digest": "abcd",
        "stages": {"learn": COST, "evaluate": COST},
        "environment": ENVIRONMENT,
    }


def _sound_record(facts: dict[str, Any]) -> None:
    _check_numbers(facts)
    _check_run(facts["run"])
    _check_metrics(facts["metrics"])
    assert {"perplexity", "accuracy"} <= set(facts["metrics"]) and facts["achieved_sparsity"] <= 1
    assert all(density <= 1 for density in facts["density"].values())


def _write_samples(path: Path) -> None:
    write_samples(
        path, "demo", RUNS[1], {"perplexity": (3.25, 4.5, 2.125), "cloze": (1.0, 0.0, 1.0), "group": ()}, "abcd"
    )


def _read_samples(path: Path) -> dict[str, Any]:
    found = Samples.read(path)
    samples = {name: values.tolist() for name, values in found.samples.items()}
    return {"experiment": found.experiment, "run": found.run.model_dump(), "samples": samples}


def _sound_samples(facts: dict[str, Any]) -> None:
    _check_numbers(facts)
    _check_run(facts["run"])
    assert math.isfinite(math.exp(np.mean(facts["samples"].pop("perplexity"))))
    assert all(value <= 1 for values in facts["samples"].values() for value in values)


def _raw_speed() -> dict[str, Any]:
    def timed(run: Run) -> dict[str, Any]:
        quartiles = {"median": 1.5, "low": 1.25, "high": 2.0}
        names = ("tokens_per_second", "prefill_seconds", "decode_seconds", "speedup")
        backends = {"prefill": {"dense": 14}, "decode": {"dense": 14}}
        facts = {"run": run.model_dump(), "new_tokens": 128, "achieved_sparsity": run.sparsity, "backends": backends}
        facts |= {"linear_bytes": {"dense": 80, "measured": 40, "expected": 40}, "peak_memory_mb": 10.0}
        facts |= {"rounds": 3, "noisy": list(names)}
        return facts | dict.fromkeys(names, quartiles) | {"logits_difference": 1e-5, "largest_logit": 12.0}

    settings = {"batch_size": 16, "prompt": 128, "new_tokens": [128], "repeats": 20}
    texts = {"experiment": "demo", "model": "qwen", "dtype": "float32", "device": "cpu", "hardware": "A CPU"}
    made = {"config_digest": "abcd", "cost": COST, "environment": ENVIRONMENT}
    return {"schema": 1, "settings": settings, "timed": [timed(RUNS[3]), timed(RUNS[0])]} | texts | made


def _sound_speed(facts: dict[str, Any]) -> None:
    _check_numbers(facts)
    assert [timed["run"]["pattern"] == "dense" for timed in facts["timed"]] == [True] + [False] * (
        len(facts["timed"]) - 1
    )
    for timed in facts["timed"]:
        _check_run(timed["run"])
        assert timed["run"]["model"] == facts["model"]
        assert timed["speedup"]["low"] <= timed["speedup"]["median"] <= timed["speedup"]["high"]


def _write_partial(path: Path) -> None:
    record = PartialRecord(path, "digest")
    record.parts.clear()
    perplexity = Measurement(value=28.5, stderr=0.2, samples=3, values=(3.25, 3.5, 3.25))
    record.add("perplexity", {"perplexity": perplexity}, COST)
    record.add("cloze", {"cloze": Measurement(value=0.5, samples=2, chance=0.25, values=(1.0, 0.0))}, COST)


def _read_partial(path: Path) -> dict[str, Any]:
    logger = logging.getLogger("patch.evaluation.partial_record")
    # Each damaged file is ignored with a warning, and there are thousands.
    logger.disabled = True
    try:
        parts = PartialRecord(path, "digest").parts
    finally:
        logger.disabled = False
    if not parts:
        raise InputError("passed over")
    return {name: part.model_dump() for name, part in parts.items()}


def _sound_partial(facts: dict[str, Any]) -> None:
    _check_numbers([part["cost"] for part in facts.values()])
    for part in facts.values():
        _check_metrics(part["metrics"])
    assert all(math.isfinite(number) for number in _numbers(facts))


def _write_results(path: Path) -> None:
    runs = [*RUNS, RUNS[0].model_copy(update={"seed": 1})]
    records = [Record.model_validate(_raw_record(run)) for run in runs]
    models = [ModelInfo(name="qwen", title="Qwen", variant="joint")]
    collect(records, models, load_published(PUBLISHED)).to_csv(path, index=False)


def _lines(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(name): None if pd.isna(value) else value for name, value in line.items()}
        for line in frame.to_dict("records")
    ]


def _sound_results(facts: list[dict[str, Any]]) -> None:
    _check_numbers(facts)
    for line in facts:
        assert line["value"] >= 1 if line["metric"] == "perplexity" else line["value"] <= 100 + 1e-6
        assert line["sparsity"] < 1 and line["achieved_sparsity"] <= 1 and line["model"] and line["metric"]


def _write_differences(path: Path) -> None:
    rng = np.random.default_rng(0)
    samples = []
    for run in RUNS:
        values = {"perplexity": rng.random(5) + 3, "cloze": rng.random(5)}
        samples.append(Samples.model_construct(run=run, samples=values, config_digest="abcd"))
    paired_differences(samples).to_csv(path, index=False)


def _sound_differences(facts: list[dict[str, Any]]) -> None:
    _check_numbers([{**line, "difference": abs(line["difference"])} for line in facts])
    assert all(line["model"] and line["a"] and line["b"] and line["samples"] >= 1 for line in facts)


KINDS = {
    "record": Kind(
        lambda path: Record.write(path, _raw_record()),
        lambda path: Record.read(path).model_dump(by_alias=True),
        _sound_record,
    ),
    "samples": Kind(_write_samples, _read_samples, _sound_samples),
    "speed": Kind(
        lambda path: SpeedRecord.write(path, _raw_speed()),
        lambda path: SpeedRecord.read(path).model_dump(by_alias=True),
        _sound_speed,
    ),
    "partial": Kind(_write_partial, _read_partial, _sound_partial),
    "results.csv": Kind(_write_results, lambda path: _lines(read_results(path)), _sound_results, checksum=False),
    "differences.csv": Kind(
        _write_differences, lambda path: _lines(Differences.read(path).frame), _sound_differences, checksum=False
    ),
}
