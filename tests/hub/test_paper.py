"""Every download of the paper's experiment by the real client, from stand-ins of all repositories that it names."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest

from patch.pipeline.config.experiment import Experiment

from .server import MEMBER, Hub
from .stand_ins import COMMIT, write_corpus, write_mask, write_model, write_tasks

FETCH = ("fetch_corpus", "fetch_mask", "fetch_model", "fetch_tasks")


def test_all_downloads_of_the_paper(
    hub: Hub, paper: Experiment, snakemake: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": MEMBER}
    run = snakemake("--configfile", "config/paper.yaml", "--until", *FETCH, **variables)
    assert run.returncode == 0, run.stdout + run.stderr
    work = tmp_path / "run/work"
    fetched = {
        path.name.rpartition("-")[0]: path
        for folder in ("models", "corpora", "imports")
        for path in (work / folder).iterdir()
    }
    hub_masks = [name for name, mask in paper.imports.items() if mask.source.kind == "hub"]
    assert set(fetched) == {*paper.models, *paper.corpora, *hub_masks}
    for name, model in paper.models.items():
        source = hub.root / "models" / model.source.repo / model.source.revision
        weights = sorted(path.name for path in source.glob("*.safetensors"))
        assert sorted(path.name for path in fetched[name].glob("*.safetensors")) == weights
        assert all((fetched[name] / file).read_bytes() == (source / file).read_bytes() for file in weights)
    for name, corpus in paper.corpora.items():
        for split in corpus.source.splits:
            texts = pyarrow.parquet.read_table(fetched[name] / f"{split}.parquet").column("text").to_pylist()
            # Documents are kept as they are, with the empty one of each file.
            assert (
                len(texts) == {"slimpajama": 122, "c4": 61, "wikitext": 61}[name]
                and texts.count("") == len(texts) // 61
            )
    for name in hub_masks:
        assert json.loads((fetched[name] / "receipt.json").read_text())["commit"] == COMMIT
    (receipt,) = (work / "tasks").glob("*/receipt.json")
    found = json.loads(receipt.read_text())
    assert set(paper.evaluation.tasks) - set(found) == {"mmlu"}
    assert sum(name.startswith("mmlu_") for name in found) == 57
    assert all(task["questions"] == 8 for task in found.values())


def test_a_repository_without_a_stand_in_is_noticed(paper: Experiment, tmp_path: Path) -> None:
    model, corpus = paper.models["qwen2.5-0.5b"].source, paper.corpora["wikitext"].source
    mask = next(iter(paper.imports.values()))
    changed = {"repo": "owner/new"}
    with pytest.raises(KeyError, match="owner/new"):
        write_model(tmp_path, model.model_copy(update=changed))
    with pytest.raises(KeyError, match="owner/new"):
        write_corpus(tmp_path, corpus.model_copy(update=changed))
    with pytest.raises(KeyError, match="new.npz"):
        source = mask.source.model_copy(update={"file": "new.npz"})
        write_mask(tmp_path, mask.model_copy(update={"source": source}), model)
    with pytest.raises(KeyError, match="super_glue"):
        write_tasks(tmp_path, ["boolq"])
