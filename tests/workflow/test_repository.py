"""Consistency of the repository's own files: hooks, hosted checks, citation and licence."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import patch

ROOT = Path(__file__).parents[2]
PROJECTS = [ROOT / "pyproject.toml", ROOT / "workflow/executor/pyproject.toml"]


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def test_hooks_are_the_linters_of_make() -> None:
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    linters = [line.removeprefix("\t@$(RUN) ") for line in recipe.splitlines()]
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]]
    # Snakemake's own linter and the documentation take seconds.
    assert [*hooks, "snakemake --lint", "$(SITE)"] == linters


def test_hosted_checks_run_nothing_of_their_own() -> None:
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_citation_names_this_version_and_the_paper() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == patch.__version__
    paper = citation["preferred-citation"]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    readme = (ROOT / "README.md").read_text()
    for text in (paper["title"], authors, paper["journal"], str(paper["year"])):
        assert f"{{{text}}}" in readme


def test_licences_agree() -> None:
    for path in PROJECTS:
        project = tomllib.loads(path.read_text())["project"]
        text = (path.parent / "LICENSE").read_text()
        assert project["license"] == read("CITATION.cff")["license"] == "MIT" and text.startswith("MIT License")
        assert project["authors"][0]["name"] in text
