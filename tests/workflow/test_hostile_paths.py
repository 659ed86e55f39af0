"""Paths with characters that a shell, Snakemake or argparse interprets, in every rule that takes a path."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from patch.pipeline.results.collect import read_results

ODD = '-it\'s $(touch PWNED); `touch PWNED` "x" & | %'


@pytest.fixture(scope="module")
def hostile(finished: Path, snakemake: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished experiment that sets every path: text, tasks, model, mask, published numbers."""
    folder = tmp_path_factory.mktemp("hostile") / ODD
    folder.mkdir()
    settings = yaml.safe_load((finished / "tiny.yaml").read_text())
    odd = {name: f"{ODD}/{name}{ODD}" for name in ("text", "tasks", "model", "masks")}
    for name, source in (("text", finished / "text"), ("model", finished / "local-model")):
        shutil.copytree(source, folder / odd[name])
    shutil.copytree(settings["evaluation"]["include_path"], folder / odd["tasks"])
    shutil.copy(settings["published"], folder / f"{ODD}.json")
    (folder / odd["masks"]).mkdir()
    kept = {"c_attn": (96, 32), "attn.c_proj": (32, 32), "c_fc": (48, 32), "mlp.c_proj": (32, 48)}
    layers = {f"transformer.h.{block}.{name}.weight.mask": shape for block in range(2) for name, shape in kept.items()}
    layers = {name.replace(".c_attn", ".attn.c_attn").replace(".c_fc", ".mlp.c_fc"): s for name, s in layers.items()}
    # GPT-2 stores its weights as [in, out].
    masks = {name: np.packbits(np.tile([1, 1, 0, 0], (out, width // 4)).T) for name, (out, width) in layers.items()}
    np.savez_compressed(folder / odd["masks"] / f"{ODD}.npz", **masks)
    settings["corpora"]["made"]["source"]["files"] = [f"{odd['text']}/*.txt"]
    settings["models"] = {"local": settings["models"]["local"]}
    settings["models"]["local"]["source"]["path"] = odd["model"]
    settings["evaluation"]["include_path"] = odd["tasks"]
    settings["published"] = f"{ODD}.json"
    mask = {"kind": "file", "path": f"{odd['masks']}/{ODD}.npz"}
    settings["imports"] = {"odd": {"model": "local", "method": "maskllm", "source": mask}}
    settings["grid"] = [{"methods": ["dense", "wanda"]}, {"methods": ["import"]}]
    (folder / f"{ODD}.yaml").write_text(yaml.safe_dump(settings))
    run = snakemake(folder, config=f"{ODD}.yaml")
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_every_rule_has_its_own_path(hostile: Path) -> None:
    results = read_results(hostile / "results/tiny/results.csv")
    assert set(results.method) == {"dense", "wanda", "maskllm"}


def test_nothing_is_executed(hostile: Path) -> None:
    assert not [path for path in hostile.parent.rglob("*PWNED") if path.name == "PWNED"]


def test_no_rule_hands_an_unquoted_path_to_the_shell() -> None:
    """Check that every path in a shell command is quoted by `:q`."""
    rules = (Path(__file__).parents[2] / "workflow/rules").glob("*.smk")
    for path in rules:
        for place in re.findall(r"\{\{?((?:input|output|log|params|resources|wildcards)[^{}]*)\}", path.read_text()):
            name, _, how = place.partition(":")
            # Numbers need no quotes.
            assert how == "q" or name in ("resources.processes", "resources.nodes"), (path.name, place)


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("published", "a{b}.json"),
        ("corpora", {"made": {"source": {"kind": "files", "files": ["{text}/made.txt"]}}}),
        ("imports", {"odd": {"model": "local", "method": "maskllm", "source": {"kind": "file", "path": "{m}.npz"}}}),
    ],
)
def test_braces_in_an_input_are_refused(section: str, value: object, copied: Path, snakemake: Callable) -> None:
    settings = yaml.safe_load((copied / "tiny.yaml").read_text()) | {section: value}
    settings["grid"] += [{"methods": ["import"]}] if section == "imports" else []
    (copied / "{text}").mkdir()
    shutil.copy(copied / "text/made.txt", copied / "{text}/made.txt")
    (copied / "tiny.yaml").write_text(yaml.safe_dump(settings))
    run = snakemake(copied, "--dry-run")
    assert run.returncode != 0
    assert "Snakemake takes names in braces for wildcards; rename the file or folder" in run.stdout + run.stderr
