"""Tests of the comparison of two folders of results; they need no cluster."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .comparison import MEASURED, SPEEDS, different_results

FILES = {
    "results.csv": "model,metric,value,seconds,peak_memory_mb\nllama,perplexity,36.6376,7.3,606.2\n",
    "differences.csv": "model,difference,stderr\nllama,10.99,0.19\n",
    "tables/joint.csv": "method,llama_perplexity\nDense,36.64\nWanda,47.5\n",
    "tables/speedup.csv": (
        "method,achieved_percent,tokens_per_second,tokens_per_second_spread,tokens_per_second_noisy,"
        "speedup,speedup_spread,speedup_noisy,linears_percent_of_dense\n"
        "Dense,0,3824,109,false,1,,false,100\nany,50,3361,73,false,0.88,0.02,false,53.13\n"
    ),
    "samples/llama/dense.json": '{"perplexity": [3.25, 3.5]}',
}


@pytest.fixture(autouse=True)
def _reset_cluster() -> None:
    """Replace the fixture of this folder, which needs a cluster."""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return two folders of equal results."""
    first, second = tmp_path / "first", tmp_path / "second"
    for name, text in FILES.items():
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).write_text(text)
    shutil.copytree(first, second)
    return first, second


@pytest.fixture
def edited(folders: tuple[Path, Path]) -> Callable[[str, str, str], list[str]]:
    """Return a function that replaces a text in a file of the second folder and compares the folders."""

    def edit(name: str, old: str, new: str) -> list[str]:
        path = folders[1] / name
        assert path.read_text().count(old) == 1
        path.write_bytes(path.read_text().replace(old, new).encode())
        return different_results(*folders)

    return edit


def test_equal_results(folders: tuple[Path, Path]) -> None:
    assert different_results(*folders) == []


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("results.csv", "7.3,606.2", "12.9,598.0"),
        ("tables/speedup.csv", "3824,109,false,1,,false", "12.5,60.1,true,1,,false"),
        ("tables/speedup.csv", "0.88,0.02,false", "0.97,0.31,true"),
    ],
)
def test_measured_times_memory_and_speeds_may_differ(name: str, old: str, new: str, edited: Callable) -> None:
    assert edited(name, old, new) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "line"),
    [
        ("results.csv", "36.6376", "36.6377", "results.csv: line 2, value: '36.6376' and '36.6377'"),
        ("results.csv", "7.3,", ",", "results.csv: line 2, seconds: '7.3' and ''"),
        ("differences.csv", "10.99", "10.98", "differences.csv: line 2, difference: '10.99' and '10.98'"),
        ("tables/joint.csv", "47.5", "47.50", "tables/joint.csv: line 3, llama_perplexity: '47.5' and '47.50'"),
        ("tables/joint.csv", "\nWanda,47.5", "", "tables/joint.csv: 2 and 1 lines"),
        ("tables/joint.csv", "Wanda,47.5", "Wanda", "tables/joint.csv: line 3 has 2 and 1 values"),
        ("tables/joint.csv", "47.5\n", "47.5\r\n", "tables/joint.csv: the contents differ"),
        ("tables/joint.csv", "llama_", "qwen_", "tables/joint.csv: the columns are ['method', 'llama_perplexity'] and"),
        ("tables/speedup.csv", "53.13", "53.14", "tables/speedup.csv: line 3, linears_percent_of_dense: '53.13' and"),
        ("tables/speedup.csv", "any,50", "any,49.99", "tables/speedup.csv: line 3, achieved_percent: '50' and '49.99'"),
        ("samples/llama/dense.json", "3.25", "3.26", "samples/llama/dense.json: the contents differ"),
    ],
)
def test_any_other_difference_is_named(name: str, old: str, new: str, line: str, edited: Callable) -> None:
    (found,) = edited(name, old, new)
    assert found.startswith(line)


def test_a_missing_file_is_named(folders: tuple[Path, Path]) -> None:
    first, second = folders
    (second / "tables/joint.csv").unlink()
    (first / "samples/llama/dense.json").unlink()
    assert different_results(first, second) == [
        f"tables/joint.csv: {second}/tables/joint.csv is missing",
        f"samples/llama/dense.json: {first}/samples/llama/dense.json is missing",
    ]
    assert len(different_results(first / "none", second / "none")) == 4


def test_the_measured_columns_are_those_of_the_written_files() -> None:
    from patch.pipeline.reporting.speeds import MEASURED as PARTS
    from patch.pipeline.results.collect import COLUMNS

    assert set(MEASURED["results.csv"]) <= set(COLUMNS)
    assert MEASURED["tables/speedup.csv"] == tuple(name + part for name in SPEEDS for part in PARTS)
