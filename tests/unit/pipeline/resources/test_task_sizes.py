"""Tests of the number of tokens that the tasks of an evaluation are planned with."""

from __future__ import annotations

from typing import Any

import pytest

from patch.pipeline.config.load import validate_experiment
from patch.pipeline.resources.task_sizes import GENERATED, SIZES, UNKNOWN, TaskSize, task_tokens
from patch.pipeline.resources.throughput import EFFICIENCY

PAPER = ["mmlu", "piqa", "arc_easy", "arc_challenge", "winogrande", "openbookqa", "race", "hellaswag"]


def tokens(raw: dict, **evaluation: Any) -> float:
    raw["evaluation"] |= {"include_path": None, "task_use": None} | evaluation
    return task_tokens(validate_experiment(raw).evaluation)


def test_tokens_by_hand(raw_config: dict) -> None:
    assert tokens(raw_config, tasks=["arc_easy"]) == 2376 * 4 * 37
    assert tokens(raw_config, tasks=["arc_easy"], limit=200) == 200 * 4 * 37
    assert tokens(raw_config, tasks=["openbookqa"], limit=1000) == 500 * 4 * 18
    assert tokens(raw_config, tasks=["piqa", "winogrande"], limit=10) == 10 * 2 * (36 + 26)


def test_a_limit_applies_to_each_subtask_of_a_group(raw_config: dict) -> None:
    assert tokens(raw_config, tasks=["mmlu"], limit=10) == 57 * 10 * 130
    assert tokens(raw_config, tasks=["mmlu"], limit=10_000) == 14_042 * 130


def test_all_tasks_of_the_paper(raw_config: dict) -> None:
    assert tokens(raw_config, tasks=PAPER) == pytest.approx(8.6e6, rel=0.01)
    assert tokens(raw_config, tasks=PAPER) == sum(tokens(raw_config, tasks=[name]) for name in PAPER)


def test_an_unknown_task_counts_as_a_large_one(raw_config: dict) -> None:
    assert tokens(raw_config, tasks=["logiqa"]) == 10_000 * 4 * 100
    assert UNKNOWN.work() >= max(SIZES[name].work() for name in PAPER)


def test_made_tasks(raw_config: dict) -> None:
    folder = raw_config["evaluation"]["include_path"]
    own = {"include_path": folder, "task_use": {"corpus": "text", "split": "test"}, "tasks": ["cloze", "continuation"]}
    assert tokens(raw_config, **own, task_samples=30) == 2 * 30 * 160
    assert tokens(raw_config, **own, task_samples=30, limit=5) == 2 * 5 * 160


def test_few_shot_examples_of_a_configuration(raw_config: dict) -> None:
    once = {name: tokens(raw_config, tasks=[name]) for name in ("arc_easy", "piqa")}
    assert tokens(raw_config, tasks=list(once), num_fewshot={"piqa": 5}) == once["arc_easy"] + 6 * once["piqa"]


def test_few_shot_examples_and_generated_tokens() -> None:
    size = TaskSize(10, passes=3, tokens=20, generated=7)
    read, generated = 10 * 3 * 20, 10 * 7
    assert size.work() == read + GENERATED * generated
    assert size.work(fewshot=5) == 6 * read + GENERATED * generated
    assert EFFICIENCY["evaluate"] / EFFICIENCY["speedup"] == GENERATED
