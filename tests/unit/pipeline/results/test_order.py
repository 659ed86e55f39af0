"""Tests of the printed names and the row order of variants."""

import pytest

from patch.pipeline.results.order import run_order, variant_title
from patch.pipeline.runs.run import Run


@pytest.mark.parametrize(
    ("variant", "title"),
    [
        ("frozen_mask=wanda", "frozen mask: Wanda"),
        ("tile_temperature=4-0.05", "tile temperature: 4 to 0.05"),
        ("pattern_scale=100-1e-05,betas=0.9-0.999", "pattern scale: 100 to 1e-05, betas: 0.9 and 0.999"),
        ("lr=1e-05,hard=true", "lr: 1e-05, hard: true"),
        ("import=llama-2-7b", "imported: llama-2-7b"),
    ],
)
def test_titles_of_variants(variant, title):
    assert variant_title(variant) == title


def test_numbers_of_variants_are_sorted_by_value():
    ordered = [
        None,
        "import=a-0.5",
        "import=a-0.50",
        "lr=5e-05",
        "lr=0.001",
        "lr=1",
        "lr=10",
        "tile_scale=25-350",
        "tile_scale=100-50",
        "tile_scale=100-500",
        "tile_scale=100-500,hard=true",
        "tile_scale=" + "9" * 400,
    ]
    runs = [Run(model="m", method="maskllm", pattern="2:4", sparsity=0.5, variant=variant) for variant in ordered[:-1]]
    runs.append(runs[0].model_copy(update={"variant": ordered[-1]}))
    assert [run.variant for run in sorted(reversed(runs), key=run_order)] == ordered
    assert len(set(map(run_order, runs))) == len(runs)
