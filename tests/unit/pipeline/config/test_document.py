"""Tests of config/README.md and config/schema.json: generated parts, links and snippets."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from patch.pipeline.config.document import readme, schema
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.config.load import validate_experiment
from patch.pipeline.runs.plan import Plan

ROOT = Path(__file__).parents[4]
README = (ROOT / "config/README.md").read_text(encoding="utf-8")
DEMO = yaml.safe_load((ROOT / "config/demo.yaml").read_text())
SNIPPETS = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
REMAKE = "run `python -m patch.pipeline.config.document`"


def test_readme_is_up_to_date():
    assert readme(README) == README, REMAKE


def test_schema_is_up_to_date():
    assert (ROOT / "config/schema.json").read_text(encoding="utf-8") == schema(), REMAKE


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


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_each_snippet_is_a_change_of_the_demo_that_can_be_planned(snippet, tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/novel.txt").write_text("Text.")
    monkeypatch.chdir(tmp_path)  # the corpus snippet names local files
    changed = copy.deepcopy(DEMO)
    changed["evaluation"]["include_path"] = str(ROOT / "workflow/tasks")
    update_config(changed, yaml.safe_load(snippet))  # what Snakemake does with a second --configfile
    changed["published"] = str(ROOT / "config/published.json")
    assert changed != DEMO
    assert Plan(validate_experiment(changed)).grid.runs
