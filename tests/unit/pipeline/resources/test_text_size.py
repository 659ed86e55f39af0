"""Tests of the size of a corpus' text and of its splits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pydantic.main
import pytest

from patch.data.corpus_settings import Use
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.resources.text_size import MB, corpus_mb, split_mb
from patch.pipeline.runs.store import Store

HUB = {"kind": "hub", "repo": "a/b", "revision": "1234567", "splits": {"test": "test"}, "size_gb": 2}
WIKITEXT = HUB | {"repo": "Salesforce/wikitext", "name": "wikitext-2-raw-v1", "splits": {"test": "test"}}


def sizes(raw: dict, source: dict[str, Any], split: str = "test") -> tuple[float | None, float | None]:
    """Return the size of a corpus and that of one split."""
    raw = copy.deepcopy(raw)
    raw["corpora"]["other"] = {"source": source}
    store = Store(validate_experiment(raw))
    return corpus_mb(store, "other"), split_mb(store, Use(corpus="other", split=split))


def test_text_of_an_installed_package(raw_config: dict) -> None:
    source = {"kind": "package", "distribution": "pydantic", "text": "pydantic.main:text"}
    whole = Path(pydantic.main.__file__).stat().st_size / MB
    assert sizes(raw_config, source) == (whole, pytest.approx(0.06 * whole))
    assert sizes(raw_config, source | {"distribution": "none"}) == (None, None)


def test_files_by_split_or_by_fraction(raw_config: dict, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 1000)
    (tmp_path / "b.txt").write_text("x" * 250)
    source = {"kind": "files", "files": str(tmp_path / "*.txt"), "split": {"train": 0.5, "test": 0.44}}
    assert sizes(raw_config, source) == (1250 / MB, pytest.approx(0.44 * 1250 / MB))
    source = {"kind": "files", "files": {"train": str(tmp_path / "a.txt"), "test": str(tmp_path / "b.txt")}}
    assert sizes(raw_config, source) == (1250 / MB, 250 / MB)


def test_data_sets_of_the_hub(raw_config: dict) -> None:
    assert sizes(raw_config, HUB) == (2000 * 2.8, 2000 * 2.8)
    assert sizes(raw_config, WIKITEXT)[1] == 1.31
    assert sizes(raw_config, WIKITEXT | {"splits": {"test": "validation"}})[1] == 1.16
    assert sizes(raw_config, WIKITEXT | {"name": "other"})[1] == 2000 * 2.8
