"""Paired differences against closed forms, within a Monte-Carlo error of 1.6 % of each standard error."""

from __future__ import annotations

import math
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from patch.errors import InputError
from patch.evaluation.metric import LARGEST_LOSS
from patch.pipeline.results.differences import COLUMNS, Differences, paired_differences
from patch.pipeline.results.samples import Samples
from patch.pipeline.runs.run import Run

DENSE = Run(model="qwen", method="dense", pattern="dense", sparsity=0.0)
WANDA = Run(model="qwen", method="wanda", pattern="2:4", sparsity=0.5)
SPARSEGPT = Run(model="qwen", method="sparsegpt", pattern="2:4", sparsity=0.5)
PATCH = Run(model="qwen", method="patch-joint", pattern="hybrid", sparsity=0.45, tile=16)


def of(run: Run, **values: np.ndarray) -> Samples:
    samples = {name: np.asarray(found, dtype=np.float64) for name, found in values.items()}
    return Samples.model_construct(run=run, samples=samples, config_digest="abcd")


def losses(seed: int, count: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 0.5, count)


def answers(seed: int, count: int = 500, share: float = 0.6) -> np.ndarray:
    return (np.random.default_rng(seed).random(count) < share).astype(float)


def compare(*samples: Samples) -> Differences:
    return Differences(paired_differences(list(samples)))


def sd_of_mean(values: np.ndarray) -> float:
    return values.std(ddof=1) / math.sqrt(len(values))


def test_perfectly_correlated_rows_differ_by_a_certain_amount() -> None:
    found = compare(of(WANDA, cloze=answers(0)), of(SPARSEGPT, cloze=answers(0)))
    key = ("qwen", "cloze", WANDA.row, SPARSEGPT.row)
    assert found.difference(*key) == 0
    assert found.stderr(*key) == pytest.approx(0, abs=1e-12)


def test_independent_rows_have_the_quadrature() -> None:
    a, b = answers(1, 4000), answers(2, 4000, 0.7)
    found = compare(of(WANDA, cloze=a), of(SPARSEGPT, cloze=b))
    key = ("qwen", "cloze", WANDA.row, SPARSEGPT.row)
    assert found.difference(*key) == pytest.approx(100 * (a.mean() - b.mean()))
    assert found.stderr(*key) == pytest.approx(100 * math.hypot(sd_of_mean(a), sd_of_mean(b)), rel=0.08)


def test_a_task_has_the_paired_error_of_a_mean() -> None:
    a = answers(1)
    b = np.where(np.random.default_rng(3).random(500) < 0.1, 1 - a, a)
    found = compare(of(WANDA, cloze=a), of(SPARSEGPT, cloze=b))
    error = found.stderr("qwen", "cloze", WANDA.row, SPARSEGPT.row)
    assert error == pytest.approx(100 * sd_of_mean(a - b), rel=0.06)
    assert error < 0.6 * 100 * math.hypot(sd_of_mean(a), sd_of_mean(b))


def test_perplexity_has_the_paired_error_of_the_delta_method() -> None:
    a = losses(0)
    b = a + np.random.default_rng(1).normal(0.2, 0.05, 400)
    found = compare(of(WANDA, perplexity=a), of(SPARSEGPT, perplexity=b))
    key = ("qwen", "perplexity", WANDA.row, SPARSEGPT.row)
    value_a, value_b = math.exp(a.mean()), math.exp(b.mean())
    assert found.difference(*key) == pytest.approx(value_a - value_b)
    assert found.stderr(*key) == pytest.approx(sd_of_mean(value_a * a - value_b * b), rel=0.06)


def test_the_mean_over_tasks() -> None:
    a = {"cloze": answers(1), "order": answers(2, 100)}
    b = {"cloze": answers(3), "order": answers(4, 100)}
    found = compare(of(WANDA, **a), of(SPARSEGPT, **b))
    key = ("qwen", "accuracy", WANDA.row, SPARSEGPT.row)
    by_task = [a[task].mean() - b[task].mean() for task in a]
    errors = [sd_of_mean(a[task] - b[task]) for task in a]
    assert found.difference(*key) == pytest.approx(100 * sum(by_task) / 2)
    assert found.stderr(*key) == pytest.approx(100 * math.hypot(*errors) / 2, rel=0.06)


def test_other_metrics_of_a_task_are_compared_but_not_averaged() -> None:
    a = {"cloze": answers(1), "order": answers(2, 100)}
    b = {"cloze": answers(3), "order": answers(4, 100)}
    norm = answers(5), answers(6)
    plain = compare(of(WANDA, **a), of(SPARSEGPT, **b))
    found = compare(of(WANDA, **a, **{"cloze/acc_norm": norm[0]}), of(SPARSEGPT, **b, **{"cloze/acc_norm": norm[1]}))
    key = ("qwen", "cloze/acc_norm", WANDA.row, SPARSEGPT.row)
    assert found.difference(*key) == pytest.approx(100 * (norm[0].mean() - norm[1].mean()))
    assert found.stderr(*key) == pytest.approx(100 * sd_of_mean(norm[0] - norm[1]), rel=0.06)
    others = found.frame[found.frame["metric"] != "cloze/acc_norm"].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, plain.frame)


def test_tasks_of_one_size_are_resampled_apart() -> None:
    """If tasks shared resamples, equal answers in both tasks would have the error of one task."""
    a, b = answers(1), answers(2)
    found = compare(of(WANDA, cloze=a, order=a), of(SPARSEGPT, cloze=b, order=b))
    error = found.stderr("qwen", "accuracy", WANDA.row, SPARSEGPT.row)
    assert error == pytest.approx(100 * sd_of_mean(a - b) / math.sqrt(2), rel=0.06)


def seeds(run: Run, values: list[np.ndarray], metric: str) -> list[Samples]:
    return [of(run.model_copy(update={"seed": seed}), **{metric: found}) for seed, found in enumerate(values)]


def test_several_seeds_of_an_accuracy() -> None:
    a, b = [answers(seed, share=0.5 + 0.05 * seed) for seed in range(3)], [answers(seed) for seed in (7, 8)]
    found = compare(*seeds(WANDA, a, "cloze"), *seeds(PATCH, b, "cloze"), *seeds(DENSE, [answers(9)], "cloze"))
    key = ("qwen", "cloze", PATCH.row, DENSE.row)
    assert found.difference(*key) == pytest.approx(100 * (np.mean(b) - answers(9).mean()))
    test_set = sd_of_mean(np.mean(b, axis=0) - answers(9))
    of_seeds = np.var([x.mean() for x in b], ddof=1) / 2
    assert found.stderr(*key) == pytest.approx(100 * math.sqrt(test_set**2 + of_seeds), rel=0.06)
    assert set(found.frame["seeds"]) == {2, 3}


def test_several_seeds_of_a_perplexity() -> None:
    a, b = [losses(seed) + 0.1 * seed for seed in range(3)], [losses(seed) for seed in (7, 8)]
    found = compare(*seeds(WANDA, a, "perplexity"), *seeds(SPARSEGPT, b, "perplexity"))
    key = ("qwen", "perplexity", WANDA.row, SPARSEGPT.row)
    values_a, values_b = ([math.exp(x.mean()) for x in found] for found in (a, b))
    assert found.difference(*key) == pytest.approx(np.mean(values_a) - np.mean(values_b))
    influence = np.mean([v * x for v, x in zip(values_a, a, strict=True)], axis=0)
    influence -= np.mean([v * x for v, x in zip(values_b, b, strict=True)], axis=0)
    of_seeds = np.var(values_a, ddof=1) / 3 + np.var(values_b, ddof=1) / 2
    assert found.stderr(*key) == pytest.approx(math.sqrt(sd_of_mean(influence) ** 2 + of_seeds), rel=0.06)


def test_which_rows_are_compared() -> None:
    runs = [
        DENSE,
        WANDA,
        SPARSEGPT,
        PATCH,
        PATCH.model_copy(update={"variant": "lr=1.0"}),
        PATCH.model_copy(update={"quantization": "absmax"}),
        PATCH.model_copy(update={"sparsity": 0.25}),
        WANDA.model_copy(update={"quantization": "absmax"}),
        PATCH.model_copy(update={"sparsity": 0.35, "variant": "lr=1.0"}),
        PATCH.model_copy(update={"sparsity": 0.35, "tile": 32}),
        Run(model="qwen", method="wanda", pattern="unstructured", sparsity=0.35),
        Run(model="qwen", method="wanda", pattern="unstructured", sparsity=0.25),
    ]
    other = [run.model_copy(update={"model": "llama"}) for run in (DENSE, WANDA)]
    frame = paired_differences([of(run, cloze=answers(0), perplexity=losses(0)) for run in [*runs, *other]][::-1])
    assert list(frame.columns) == COLUMNS
    assert set(frame["metric"]) == {"perplexity", "accuracy", "cloze"}
    pairs = {(m, frozenset((a, b))): s for m, a, b, s in frame[["model", "a", "b", "sparsity"]].itertuples(index=False)}
    alike = [pair for pair in combinations(runs[1:], 2) if pair[0].sparsity == pair[1].sparsity]
    hybrids = [run for run in runs if run.pattern == "hybrid" and not run.quantization]
    unequal = [*product((WANDA, SPARSEGPT), hybrids), (runs[7], runs[5])]
    only_sparsity = [(PATCH, runs[6]), (runs[4], runs[8]), (runs[10], runs[11])]
    expected = {("qwen", frozenset((a.row, b.row))): a.sparsity for a, b in [*alike, *unequal, *only_sparsity]}
    expected |= {("qwen", frozenset((run.row, DENSE.row))): run.sparsity for run in runs[1:]}
    assert pairs == expected | {("llama", frozenset((WANDA.row, DENSE.row))): 0.5}
    sparsities = {run.row: run.sparsity for run in runs}
    assert all(sparsities[line.a] == line.sparsity >= sparsities[line.b] for line in frame.itertuples())
    assert len(frame) == 3 * len(pairs)
    assert DENSE.row not in set(frame["a"])
    assert set(frame.loc[frame["metric"] == "cloze", "samples"]) == {500}


def metrics_of(*samples: Samples) -> list[str]:
    return list(paired_differences(list(samples))["metric"])


def test_metrics_without_the_same_samples_are_left_out() -> None:
    whole = {"perplexity": losses(0), "cloze": answers(0), "order": answers(1)}
    assert metrics_of(of(WANDA, **whole), of(DENSE, **whole)) == ["perplexity", "accuracy", "cloze", "order"]
    shorter = whole | {"perplexity": losses(0, 20)}
    assert metrics_of(of(WANDA, **whole), of(DENSE, **shorter)) == ["accuracy", "cloze", "order"]
    for order in (answers(0, 20), []):
        assert metrics_of(of(WANDA, **whole), of(DENSE, **whole | {"order": order})) == ["perplexity", "cloze"]
    missing = {name: values for name, values in whole.items() if name != "order"}
    assert metrics_of(of(WANDA, **whole), of(DENSE, **missing)) == ["perplexity", "cloze"]
    assert metrics_of(of(WANDA, **missing), of(DENSE, **missing)) == ["perplexity", "accuracy", "cloze"]
    # If a seed lacks a task, the row's mean covers other questions than its value in the table.
    seed = of(WANDA.model_copy(update={"seed": 1}), **missing)
    assert metrics_of(of(WANDA, **whole), seed, of(DENSE, **whole)) == ["perplexity", "cloze"]


def test_one_sample_has_no_error(tmp_path: Path) -> None:
    found = compare(of(WANDA, perplexity=[3.5], cloze=[1.0]), of(DENSE, perplexity=[3.0], cloze=[0.0]))
    assert found.difference("qwen", "cloze", WANDA.row, DENSE.row) == 100
    assert all(found.stderr("qwen", metric, WANDA.row, DENSE.row) is None for metric in ("perplexity", "cloze"))
    found.frame.to_csv(tmp_path / "d.csv", index=False)
    assert Differences.read(tmp_path / "d.csv").stderr("qwen", "cloze", WANDA.row, DENSE.row) is None


def test_the_largest_losses_can_be_read_again(tmp_path: Path) -> None:
    a, b = of(WANDA, perplexity=[600.0, 0.0]), of(DENSE, perplexity=[LARGEST_LOSS, LARGEST_LOSS])
    found = compare(a, b).frame
    found.to_csv(tmp_path / "d.csv", index=False)
    pd.testing.assert_frame_equal(Differences.read(tmp_path / "d.csv").frame, found)


def test_the_same_again_in_any_order() -> None:
    samples = [of(run, cloze=answers(i), perplexity=losses(i)) for i, run in enumerate((DENSE, WANDA, PATCH))]
    samples.append(of(PATCH.model_copy(update={"seed": 1}), cloze=answers(5), perplexity=losses(5)))
    frame = paired_differences(samples)
    assert frame.equals(paired_differences(samples))
    again = paired_differences(samples[::-1])
    assert frame.drop(columns="stderr").equals(again.drop(columns="stderr"))
    assert list(again["stderr"]) == pytest.approx(list(frame["stderr"]), rel=1e-9)
    # The other rows of the comparison do not change the result either.
    alone = compare(samples[0], samples[1]).stderr("qwen", "cloze", WANDA.row, DENSE.row)
    assert Differences(frame).stderr("qwen", "cloze", WANDA.row, DENSE.row) == pytest.approx(alone, rel=1e-9)


def test_lookup_and_file(tmp_path: Path) -> None:
    samples = [
        of(run.model_copy(update={"model": "7"}), cloze=answers(i)) for i, run in enumerate((DENSE, WANDA, PATCH))
    ]
    frame = paired_differences(samples)
    frame.to_csv(tmp_path / "d.csv", index=False)
    found = Differences.read(tmp_path / "d.csv")
    key, turned = ("7", "cloze", WANDA.row, DENSE.row), ("7", "cloze", DENSE.row, WANDA.row)
    assert found.difference(*key) == -found.difference(*turned) == pytest.approx(Differences(frame).difference(*key))
    assert found.stderr(*key) == found.stderr(*turned) > 0
    unknown = ("7", "order", WANDA.row, PATCH.row)
    assert found.difference(*unknown) is None and found.stderr(*unknown) is None


def test_nothing_to_compare(tmp_path: Path) -> None:
    frame = paired_differences([of(WANDA, cloze=answers(0))])
    assert frame.empty and list(frame.columns) == COLUMNS
    frame.to_csv(tmp_path / "d.csv", index=False)
    assert Differences.read(tmp_path / "d.csv").frame.empty
    assert paired_differences([]).empty


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two sets of samples of run `wanda_2of4_0.5_s0` of model `qwen`"):
        paired_differences([of(WANDA), of(WANDA)])
    with pytest.raises(InputError, match=r"none\.csv: cannot be read as differences"):
        Differences.read(tmp_path / "none.csv")
    (tmp_path / "d.csv").write_text("")
    with pytest.raises(InputError, match=r"d\.csv: cannot be read as differences"):
        Differences.read(tmp_path / "d.csv")
    (tmp_path / "d.csv").write_text("model,a\nqwen,b\n")
    with pytest.raises(InputError, match=r"d\.csv: columns are model, a; expected model, metric, sparsity"):
        Differences.read(tmp_path / "d.csv")


LINES = [
    "model,metric,sparsity,a,b,difference,stderr,samples,seeds,config_digest",
    "qwen,cloze,0.5,wanda_2of4_0.5,dense_dense_0,-10.5,1.25,500,1,abcd",
    "qwen,order,0.5,wanda_2of4_0.5,dense_dense_0,3e-1,,500,1,abcd",
]


def test_an_edited_file_with_sound_values_is_read(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("\r\n".join(LINES) + "\r\n", newline="")
    found = Differences.read(tmp_path / "d.csv")
    assert found.difference("qwen", "cloze", "wanda_2of4_0.5", "dense_dense_0") == -10.5
    assert found.stderr("qwen", "order", "wanda_2of4_0.5", "dense_dense_0") is None


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("-10.5", "nan", "line 2: `difference`"),
        ("-10.5", "inf", "line 2: `difference`"),
        ("-10.5", "1e999", "line 2: `difference`"),
        ("-10.5", "", "line 2: `difference`"),
        ("-10.5", "ten", "line 2: `difference`"),
        ("-10.5,1.25", "-10.5", "line 2 has 9 values; expected 10"),
        ("-10.5,1.25", "-10.5,1.25,1", "line 2 has 11 values; expected 10"),
        ("1.25", "-1.25", "line 2: `stderr`"),
        ("500", "0", "line 2: `samples`"),
        ("500", "500.5", "line 2: `samples`"),
        ("500", "-500", "line 2: `samples`"),
        ("0.5,", "1.5,", "line 2: `sparsity`"),
        ("qwen", "", "line 2: `model`"),
        ("qwen", "q\0en", "line 2: `model`: a name has no control characters"),
        ("order", "cloze", "difference of qwen cloze dense_dense_0 wanda_2of4_0.5 occurs 2 times; expected once"),
        ("500,1,abcd\n", "500,1,abcd", "truncated: the last line has no newline"),
        ("\nqwen,order", "\n\nqwen,order", "line 3 has 0 values; expected 10"),
        ("cloze", '"cloze', "cannot be read as differences"),
    ],
)
def test_what_is_damaged_is_refused(old: str, new: str, fault: str, tmp_path: Path) -> None:
    text = "\n".join(LINES) + "\n"
    whole = text[: text.rindex(old)] + new + text[text.rindex(old) + len(old) :] if fault[0] == "t" else None
    (tmp_path / "d.csv").write_text(whole or text.replace(old, new, 1))
    with pytest.raises(InputError, match=rf"d\.csv: .*{fault}") as error:
        Differences.read(tmp_path / "d.csv")
    assert "\n" not in str(error.value)
