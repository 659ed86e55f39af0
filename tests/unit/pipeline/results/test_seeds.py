import math

import numpy as np
import pandas as pd
import pytest

from patch.pipeline.results.collect import ROW, summarize


def rows(values, stderrs, method="wanda", tile=None):
    frame = pd.DataFrame({"value": values, "stderr": stderrs, "seed": range(len(values))})
    fixed = {"model": "m", "method": method, "pattern": "2:4", "sparsity": 0.5, "metric": "accuracy"}
    fixed |= {
        "quantization": None,
        "finetune": None,
        "variant": None,
        "published": 40.0,
        "achieved_sparsity": 0.5,
        "seconds": 2.0,
        "peak_memory_mb": 10.0,
        "held_out_loss": 3.5,
        "initial_held_out_loss": 3.75,
    }
    return frame.assign(**fixed, tile=pd.array([tile] * len(values), dtype="Int64"))


def test_one_seed_keeps_its_own_error():
    (row,) = summarize(rows([61.0], [1.25])).itertuples()
    assert (row.value, row.stderr, row.seeds) == (61.0, 1.25, 1)
    assert math.isnan(row.spread)


def test_several_seeds_against_numpy():
    rng = np.random.default_rng(0)
    values, errors = rng.normal(60, 2, 5), rng.uniform(0.5, 1.5, 5)
    (row,) = summarize(rows(values, errors)).itertuples()
    assert row.value == pytest.approx(values.mean())
    assert row.spread == pytest.approx(values.std(ddof=1))
    assert row.stderr == pytest.approx(np.sqrt((errors**2).mean() + values.var(ddof=1) / 5))
    assert row.seeds == 5


def stderr(values, stderrs):
    (row,) = summarize(rows(values, stderrs)).itertuples()
    return row.stderr


def test_seeds_do_not_shrink_the_error_of_the_test_set():
    assert stderr([5.0] * 100, [2.0] * 100) == pytest.approx(2.0)


def test_unknown_errors():
    assert math.isnan(stderr([5.0], [np.nan]))
    assert stderr([4.0, 6.0], [np.nan, np.nan]) == pytest.approx(1.0)
    assert stderr([4.0, 6.0], [np.nan, 2.0]) == pytest.approx(np.sqrt(5.0))


def test_groups_stay_apart_and_in_order():
    frame = pd.concat([rows([1.0, 3.0], [0, 0], "z"), rows([5.0], [1], "a", 16), rows([7.0], [1], "a", 32)])
    summary = summarize(frame)
    assert list(summary.columns[: len(ROW)]) == ROW
    assert list(summary["value"]) == [2.0, 5.0, 7.0]
    assert list(summary["stderr"]) == pytest.approx([1.0, 1.0, 1.0])
