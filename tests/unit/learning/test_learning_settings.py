"""Tests of the settings of mask learning: recipes, and combinations that are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from patch.errors import InputError
from patch.learning.learning_settings import METHOD_DEFAULTS, RECIPES, Learning, method_defaults, used_by
from patch.settings import validate


@pytest.mark.parametrize("method", METHOD_DEFAULTS)
def test_the_paper_is_the_default(method: str) -> None:
    assert method_defaults(method, "paper") == METHOD_DEFAULTS[method]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("method", METHOD_DEFAULTS)
def test_every_key_of_a_recipe_is_read_by_its_method_and_changes_it(method: str, recipe: str) -> None:
    chosen, paper = (used_by(method, Learning(**method_defaults(method, name))) for name in (recipe, "paper"))
    changed = {key for key in Learning.model_fields if getattr(chosen, key) != getattr(paper, key)}
    unread = {"pattern_std", "pattern_noise"} if method == "patch-tile" else {"tile_temperature"}
    always = {"weight_reg_decay"} if method == "maskllm" else set()
    expected = set(RECIPES[recipe].get(method, {})) - always
    assert changed == expected - (unread if method != "patch-joint" else set())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"target": "model"}, "`target` is 'model'.*'global', 'block' or 'layer'"),
        ({"target_reduction": "mean"}, "target_reduction is mean, but target is global.*make target block or layer"),
        ({"target": "block", "target_reduction": "max"}, "`target_reduction` is 'max'.*'sum' or 'mean'"),
        ({"pattern_noise": "none"}, "`pattern_noise` is 'none'.*'add' or 'replace'"),
        ({"weight_reg_form": "norm"}, "`weight_reg_form` is 'norm'.*'squared_ratio', 'norm_ratio'"),
        ({"keep": "first"}, "`keep` is 'first'.*'last' or 'best'"),
        ({"keep": "best", "held_out_sequences": 0}, "keep is best, but held_out_sequences is 0.*or keep last"),
        ({"max_grad_norm": 0}, "`max_grad_norm` is 0.*greater than 0"),
        (
            {"append_eos": False, "cut_attention": True},
            "append_eos is false, but cut_attention is true.*make append_eos true",
        ),
    ],
)
def test_what_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        validate(Learning, values)


def test_a_reduction_of_blocks_is_accepted() -> None:
    assert validate(Learning, {"target": "block", "target_reduction": "mean"}).target_reduction == "mean"


def test_the_page_has_a_row_for_every_key_of_a_recipe() -> None:
    page = (Path(__file__).parents[3] / "docs/deviations.md").read_text(encoding="utf-8")
    table = page.split("## Recipes")[1].split("The same in both recipes")[0]
    named = {
        key
        for line in table.splitlines()
        if line.startswith("| `")
        for key in re.findall("`(.*?)`", line.split("|")[1])
    }
    keys = {key for recipe in RECIPES.values() for values in recipe.values() for key in values}
    assert named == keys | {"target", "target_reduction", "weight_reg"}


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"steps": 300}, [29, 59, 89, 119, 149, 179, 209, 239, 269, 299]),
        ({"steps": 7, "held_out_measurements": 3}, [1, 3, 6]),
        ({"steps": 3}, [0, 1, 2]),
        ({"steps": 100, "log_every": 20, "held_out_measurements": 4}, [40, 60, 80, 99]),
    ],
)
def test_measurements_are_evenly_spaced_and_have_lines_in_the_curve(values: dict[str, Any], steps: list[int]) -> None:
    settings = validate(Learning, values)
    assert sorted(settings.measured_steps()) == steps
    assert all(step % settings.log_every == 0 or step == settings.steps - 1 for step in steps)


def test_at_most_a_tenth_of_a_text_is_held_out() -> None:
    assert [Learning(held_out_sequences=4).held_out_count(count) for count in (9, 10, 39, 40, 1000)] == [0, 1, 3, 4, 4]
