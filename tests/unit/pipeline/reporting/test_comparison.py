import math

import pytest

from patch.pipeline.reporting.comparison import compare_with_paper
from patch.pipeline.reporting.table import Heading, Measure, Row, Table
from patch.pipeline.runs.run import ModelInfo

NAN = float("nan")
SAME = ModelInfo(name="same", title="Same-1B", variant="joint", published="org/same")
OTHER = ModelInfo(name="other", title="Mini", variant="joint", published="org/large", comparable=False)


def row(method, *measures, sparsity=0.5, pattern="2:4"):
    measures = tuple(m and Measure(m[0], m[1], NAN, 1, m[2]) for m in measures)
    return Row(None, sparsity, method, pattern, {}, measures)


def table(model, *rows, deviation=False):
    header = (Heading("accuracy", model), Heading("perplexity", model))
    return Table("joint", "A caption.", header, rows, (), deviation)


def test_numbers_within_two_errors_are_counted():
    rows = [
        row("Dense", (46.0, 1.0, 46.0), (12.0, 0.1, 12.2), sparsity=0.0, pattern="dense"),
        row("Wanda", (30.0, 1.0, 33.0), (80.0, 1.0, 72.5)),
        row("MaskLLM", (39.0, NAN, 39.3), (15.5, 0.1, NAN)),
        row("PATCH", None, (14.6, 0.05, 14.5), sparsity=0.45, pattern="hybrid"),
    ]
    near = count = 0
    for line in rows:
        for measure in line.measures:
            if measure and not math.isnan(measure.published) and not math.isnan(measure.stderr):
                count += 1
                near += abs(measure.value - measure.published) <= 2 * measure.stderr
    (line,) = compare_with_paper(table(SAME, *rows), [SAME])
    assert (near, count) == (3, 5)
    assert line == (
        f"Same-1B, table `joint`: {near} of {count} numbers are within two standard errors of the published ones; "
        "largest difference: accuracy −3.00 points (Wanda 2:4 at 50 %: 30.00 measured, 33.00 published), "
        "perplexity +10.3 % (Wanda 2:4 at 50 %: 80.00 measured, 72.50 published)."
    )


def test_the_order_of_another_model_is_compared_by_perplexity():
    rows = [
        row("MaskLLM", (1.0, 1.0, 99.0), (20.0, 0.1, 7.0)),
        row("SparseGPT", (1.0, 1.0, 99.0), (25.0, 0.1, 9.0)),
        row("Thanos", (1.0, 1.0, 99.0), (24.0, 0.1, 10.0)),
        row("Magnitude", (1.0, 1.0, 99.0), (40.0, 0.1, 50.0)),
    ]
    (line,) = compare_with_paper(table(OTHER, *rows), [OTHER, SAME])
    assert line == (
        "Mini and org/large, table `joint`: Kendall's tau of 0.67 between measured and published perplexity over 4 "
        "rows; swapped neighbours: SparseGPT 2:4 at 50 % and Thanos 2:4 at 50 %."
    )
    (line,) = compare_with_paper(table(OTHER, *rows[:2]), [OTHER])
    assert "tau of 1.00" in line and line.endswith("no swapped neighbours.")


@pytest.mark.parametrize("rows", [[], [row("Wanda", (1.0, 1.0, NAN), (2.0, 1.0, NAN))], [row("Wanda", None, None)]])
def test_nothing_is_said_without_published_numbers(rows):
    for model in (SAME, OTHER):
        assert list(compare_with_paper(table(model, *rows), [model])) == []


def test_the_table_of_seeds_repeats_others():
    rows = [row("Wanda", (30.0, 1.0, 33.0), (80.0, 1.0, 72.5))]
    assert list(compare_with_paper(table(SAME, *rows, deviation=True), [SAME])) == []


@pytest.mark.parametrize("perplexities", [[], [(2.0, 1.0)], [(2.0, 1.0), (3.0, 1.0)]])
def test_an_undefined_order_is_not_compared(perplexities):
    rows = [row("Wanda", None, (value, 1.0, published)) for value, published in perplexities]
    assert list(compare_with_paper(table(OTHER, *rows), [OTHER])) == []
