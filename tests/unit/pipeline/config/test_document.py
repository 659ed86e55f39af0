"""Tests of config/README.md and config/schema.json: generated parts, links and snippets."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from patch.pipeline.config.document import readme, schema
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.config.load import read_configuration, validate_experiment
from patch.pipeline.runs.plan import Plan

ROOT = Path(__file__).parents[4]
README = (ROOT / "config/README.md").read_text(encoding="utf-8")
# Title, configuration that the text names ("on top of ..."), and snippet of each recipe.
RECIPES = [
    (title, base[0] if base else "config/demo.yaml", snippet)
    for title, text in re.findall(r"^\*\*(.*?)\*\*(.*?)(?=^\*\*|^## |^<!--)", README, flags=re.DOTALL | re.MULTILINE)
    for base in [re.findall(r"on top of `(config/[\w./-]+)`", text)]
    for snippet in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
]
REMAKE = "run `python -m patch.pipeline.config.document`"


def test_readme_is_up_to_date():
    assert readme(README) == README, REMAKE


def test_schema_is_up_to_date():
    assert (ROOT / "config/schema.json").read_text(encoding="utf-8") == schema(), REMAKE


def test_keys_that_append_are_valid() -> None:
    schema = Draft202012Validator(json.loads((ROOT / "config/schema.json").read_text()))
    whole = read_configuration([ROOT / "config/demo.yaml"])
    assert schema.is_valid(whole | {"grid+": [{"methods": ["wanda"]}], "seeds+": 1})
    assert not schema.is_valid(whole | {"grid+": [{"method": ["wanda"]}]})
    assert not schema.is_valid(whole | {"tile+": [4]})
    # A list in a list is replaced.
    assert not schema.is_valid(whole | {"grid": [{"methods": ["wanda"], "seeds+": [1]}]})


def test_every_key_of_every_section_is_described():
    sections = Experiment.model_json_schema()["$defs"]
    missing = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, field in section.get("properties", {}).items()
        if key != "kind" and not field.get("description")
    ]
    assert not missing


def test_links_lead_somewhere():
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", README, flags=re.MULTILINE)}
    assert set(re.findall(r"\(#(\w+)\)", README)) <= headings
    assert all((ROOT / "config" / path).exists() for path in re.findall(r"\]\(([\w./-]+)", README))


def test_every_section_has_a_table():
    sections = {*Experiment.model_json_schema()["$defs"], "Experiment", "Learning"}
    assert sections == set(re.findall(r"^### (\w+)$", README, flags=re.MULTILINE))


def plan_with(base: str, change: dict[str, Any]) -> Plan:
    """Return the plan of a configuration with a change merged on top."""
    return Plan(validate_experiment(read_configuration([base], change)))


def results_of(plan: Plan) -> dict[str, Any]:
    """Return the digests of everything that an experiment measures, its tables, and the resources of its jobs."""
    tables = {name: [f"{run.model}/{run.id}" for run in runs] for name, runs in plan.grid.tables.items()}
    digests = plan.settings.digests(plan.grid.runs, plan.timed_models)
    return {"digests": digests, "tables": tables, "resources": plan.experiment.resources}


def test_each_snippet_belongs_to_a_recipe() -> None:
    assert [snippet for _, _, snippet in RECIPES] == re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    assert all((ROOT / base).exists() for _, base, _ in RECIPES)


@pytest.mark.parametrize(("base", "snippet"), [recipe[1:] for recipe in RECIPES], ids=[title for title, *_ in RECIPES])
def test_each_recipe_changes_what_its_configuration_measures(
    base: str, snippet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    change = yaml.safe_load(snippet)
    # The name alone changes digests.
    renamed = {"experiment": change["experiment"]} if "experiment" in change else {}
    changed = plan_with(base, change)
    assert changed.grid.runs and changed.tables()
    assert results_of(changed) != results_of(plan_with(base, renamed))
