"""Tests of scalars that stand for lists of one element, in sections and in their JSON schema."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import Field

from patch.errors import InputError
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.runs.plan import Plan
from patch.settings import Section, validate

SCHEMA = Draft202012Validator(Experiment.model_json_schema())


class Item(Section):
    """Element that is a section."""

    name: str


class Lists(Section):
    """Keys of all kinds of lists."""

    words: list[str] = Field(["a"], min_length=1)
    numbers: Annotated[list[int], Field(max_length=3)] | None = None
    by_name: dict[str, list[float]] = {}
    files: list[str] | dict[str, list[str]] = []
    either: str | list[str] = "a"
    pair: tuple[float, float] = (0.0, 1.0)
    items: list[Item] = []


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ({"words": "train"}, {"words": ["train"]}),
        ({"numbers": 3}, {"numbers": [3]}),
        ({"numbers": None}, {"numbers": None}),
        ({"by_name": {"a": 0.5, "b": [1.0, 2.0]}}, {"by_name": {"a": [0.5], "b": [1.0, 2.0]}}),
        ({"files": "*.txt"}, {"files": ["*.txt"]}),
        ({"files": {"train": "*.txt"}}, {"files": {"train": ["*.txt"]}}),
        ({"either": "word"}, {"either": "word"}),
    ],
)
def test_a_scalar_is_a_list_of_one_element(raw: dict, wanted: dict) -> None:
    assert validate(Lists, raw).model_dump(exclude_unset=True) == wanted
    schema = Lists.model_json_schema()
    assert Draft202012Validator(schema).is_valid(raw)
    assert schema["properties"]["either"]["anyOf"] == [
        {"type": "string"},
        {"items": {"type": "string"}, "type": "array"},
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"words": 1}, "`words` is 1: Input should be a valid string"),
        ({"numbers": "many"}, "`numbers` is 'many': Input should be a valid integer"),
        ({"by_name": {"a": "x"}}, "`by_name.a` is 'x': Input should be a valid number"),
        ({"words": ["a", 1]}, "`words.1` is 1"),
        ({"words": {"a": 1}}, "`words` is {'a': 1}: Input should be a valid list"),
        ({"pair": 4}, "`pair` is 4: Input should be a valid tuple"),
        ({"items": "a"}, "`items` is 'a': Input should be a valid list"),
    ],
)
def test_messages_name_the_key_of_the_file(raw: dict, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("{", r"\{")):
        validate(Lists, raw)
    assert not Draft202012Validator(Lists.model_json_schema()).is_valid(raw)


WHOLE = """
reuse: [other]
seeds: [1]
grid:
  - {methods: [wanda], pattern: unstructured, sparsity: [0.45], models: [qwen]}
  - {methods: [patch-joint], sparsity: [0.4], tiles: [matrix], models: [qwen], vary: {target: [layer]}, seeds: [2]}
evaluation: {tasks: [cloze]}
resources: {report_to: [tensorboard]}
"""


def test_a_configuration_without_brackets_is_the_same(raw_config: dict) -> None:
    def merged(text: str) -> dict[str, Any]:
        raw, changes = copy.deepcopy(raw_config), yaml.safe_load(text)
        raw["evaluation"] |= changes.pop("evaluation")
        return raw | changes

    raw = merged(WHOLE.replace("[", "").replace("]", ""))
    assert raw["seeds"] == 1 and raw["grid"][0]["methods"] == "wanda"
    lists, scalars = validate_experiment(merged(WHOLE)), validate_experiment(raw)
    assert lists == scalars
    assert [run.id for run in Plan(scalars).grid.runs] == [
        "wanda_unstructured_0.45_s1",
        "patch-joint_hybrid_0.4_tmatrix_target=layer_s2",
    ]
    assert SCHEMA.is_valid(raw) and SCHEMA.is_valid(merged(WHOLE))


def test_every_list_of_scalars_in_the_schema_takes_a_scalar() -> None:
    def lists(value: Any, options: list) -> int:
        found = 0
        if isinstance(value, dict):
            if "items" in value and "$ref" not in value["items"]:
                # A varied value may be a list itself, of at most 8 numbers.
                assert value["items"] in options or value.get("maxItems") == 8, value
                found = 1
            children = [(v, v if k == "anyOf" else []) for k, v in value.items() if k not in ("default", "items")]
        else:
            children = [(v, options) for v in value] if isinstance(value, list) else []
        return found + sum(lists(child, beside) for child, beside in children)

    assert lists(SCHEMA.schema, []) > 8
