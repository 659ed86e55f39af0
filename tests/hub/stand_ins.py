"""Small stand-ins of the hub's repositories that a configuration names, in the file layout of the real ones.

Each repository needs an entry in `MODELS`, `CORPORA`, `TASKS` or `MASKS`. One without an entry is an error, so that
a test notices a repository that was added to a configuration.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from patch.data.corpus_settings import HubSource
from patch.data.tokenizer import train_tokenizer
from patch.evaluation.task_index import built_in_tasks
from patch.files.plain import read_plain
from patch.masks.nm import NM, nm_mask
from patch.models.loading import prunable_linears
from patch.models.model_settings import HubModel
from patch.pipeline.config.experiment import Experiment
from patch.pipeline.config.imports import HubMask, Import

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of repositories whose commit no configuration names
SYLLABLES = ("ba", "do", "fi", "ge", "ku", "la", "mo", "ne", "pi", "ro", "su", "ta")
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"head_dim": 32, "max_position_embeddings": 4096}
TILE = 128


class ModelLayout(NamedTuple):
    """Files of a model's repository, besides those that `save_pretrained` writes into one or several weight files."""

    architecture: str
    sharded: bool
    files: tuple[str, ...]


class CorpusLayout(NamedTuple):
    """Files of a text data set, by split, and its columns besides `text`."""

    files: dict[str, list[str]]
    config: str
    columns: dict[str, Any] = {}


# Pickles, and folders in other formats, must not be downloaded.
META = ("README.md", "LICENSE.txt", "USE_POLICY.md", "original/params.json", "original/consolidated.00.pth")
PICKLES = ("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "tokenizer.model", "LICENSE.txt")
MODELS = {
    "Qwen/Qwen2.5-0.5B": ModelLayout("qwen2", False, ("README.md", "LICENSE", "merges.txt", "vocab.json")),
    "meta-llama/Llama-3.2-1B": ModelLayout("llama", False, META),
    "meta-llama/Llama-3.1-8B": ModelLayout("llama", True, META),
    "meta-llama/Llama-2-7b-hf": ModelLayout("llama", True, PICKLES),
    "meta-llama/Llama-2-13b-hf": ModelLayout("llama", True, PICKLES),
    "google/gemma-3-1b-pt": ModelLayout("gemma3_text", False, ("README.md", "added_tokens.json", "tokenizer.model")),
}
GATED = ("meta-llama/", "google/")
CORPORA = {
    "DKYoon/SlimPajama-6B": CorpusLayout(
        {
            "train": [f"data/train-0000{n}-of-00002-ab2b35705f029d94.parquet" for n in range(2)],
            "test": ["data/test-00000-of-00001-3e4a7a5d2b7e1b3b.parquet"],
            "validation": ["data/validation-00000-of-00001-8a1d1a6a6d2b7f0c.parquet"],
        },
        "default",
        {"meta": {"redpajama_set_name": "RedPajamaC4"}, "__index_level_0__": 0},
    ),
    "allenai/c4": CorpusLayout(
        {
            "train": [f"en/c4-train.0000{n}-of-01024.json.gz" for n in range(3)],
            "validation": ["en/c4-validation.00000-of-00008.json.gz"],
        },
        "en",
        {"timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org/"},
    ),
    "Salesforce/wikitext": CorpusLayout(
        {split: [f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet"] for split in ("test", "train", "validation")},
        "wikitext-2-raw-v1",
    ),
}
FOUR = {"text": ["one", "two", "three", "four"], "label": ["A", "B", "C", "D"]}
# Row number n of the data sets of lm-eval's tasks.
TASKS: dict[str, Callable[[int], dict[str, Any]]] = {
    "baber/piqa": lambda n: {"goal": f"do {n}", "sol1": "use it", "sol2": "lose it", "label": n % 2},
    "allenai/ai2_arc": lambda n: {"id": str(n), "question": f"{n}?", "choices": FOUR, "answerKey": "ABCD"[n % 4]},
    "allenai/winogrande": lambda n: {
        "sentence": f"The {n} is good, so the _ wins.",
        "option1": "cat",
        "option2": "dog",
        "answer": str(1 + n % 2),
    },
    "allenai/openbookqa": lambda n: {
        "id": str(n),
        "question_stem": f"{n} is",
        "choices": FOUR,
        "answerKey": "ABCD"[n % 4],
    },
    "EleutherAI/race": lambda n: {
        "article": f"It was {n}.",
        "problems": str([{"question": "What was it?", "answer": "ABCD"[n % 4], "options": FOUR["text"]}]),
    },
    "Rowan/hellaswag": lambda n: {
        "ind": n,
        "activity_label": "Running",
        "ctx_a": f"Number {n} runs.",
        "ctx_b": "then it",
        "ctx": f"Number {n} runs. then it",
        "endings": FOUR["text"],
        "source_id": str(n),
        "split": "val",
        "split_type": "indomain",
        "label": str(n % 4),
    },
    "cais/mmlu": lambda n: {"question": f"{n}?", "subject": "all", "choices": FOUR["text"], "answer": n % 4},
}
PATCH, MASKLLM = "mask.npz", "mask_compressed.npz"


def write_repositories(root: Path, experiment: Experiment) -> set[str]:
    """Write a stand-in of each repository that an experiment names, and return the ids of those that are gated."""
    for model in experiment.models.values():
        if isinstance(model.source, HubModel):
            write_model(root, model.source)
    for corpus in experiment.corpora.values():
        if isinstance(corpus.source, HubSource):
            write_corpus(root, corpus.source)
    for mask in experiment.imports.values():
        if isinstance(mask.source, HubMask):
            write_mask(root, mask, experiment.models[mask.model].source)
    if experiment.evaluation.include_path is None:
        write_tasks(root, experiment.evaluation.tasks)
    ids = (f"{path.parent.name}/{path.name}" for path in root.glob("models/*/*"))
    return {one for one in ids if one.startswith(GATED)}


def make_commit(root: Path, kind: str, repo: str, commit: str = COMMIT) -> Path:
    """Make the folder of a commit, to which the branch `main` points, and return it."""
    folder = root / kind / repo / commit
    folder.mkdir(parents=True)
    (folder.parent / "main").symlink_to(commit)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    return folder


def write_model(root: Path, source: HubModel) -> None:
    """Write a model of the same architecture, with random weights."""
    layout = MODELS[source.repo]
    folder = make_commit(root, "models", source.repo, source.revision)
    network = _network(layout.architecture, source)
    network.to(torch.bfloat16).save_pretrained(folder, max_shard_size="200KB" if layout.sharded else "1GB")
    assert len(list(folder.glob("*.safetensors"))) == 1 or layout.sharded
    _tokenizer().save_pretrained(folder)
    for name in layout.files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}" if name.endswith(".json") else f"stand-in of {name}\n")


def write_corpus(root: Path, source: HubSource) -> None:
    """Write a text data set in JSON lines or parquet files, with the description that the data set's card has."""
    layout = CORPORA[source.repo]
    folder = make_commit(root, "datasets", source.repo, source.revision)
    for files in layout.files.values():
        for name in files:
            rows = pd.DataFrame({"text": list(_documents(name))})
            _write_rows(
                folder / name, rows.assign(**{key: [value] * len(rows) for key, value in layout.columns.items()})
            )
    patterns = {split: files[0].replace("00000", "*", 1) for split, files in layout.files.items()}
    # The sizes of the real data set, which a part of its files does not have.
    sizes = [{"name": split, "num_bytes": 828589180707, "num_examples": 364868892} for split in layout.files]
    write_card(folder, {layout.config: patterns}, sizes if source.data_files else [])


def write_card(folder: Path, patterns: dict[str, dict[str, str]], sizes: Sequence[dict[str, Any]] = ()) -> None:
    """Write the README of a data set, which declares the files of the splits of each configuration."""
    configs = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in paths.items()]}
        for name, paths in patterns.items()
    ]
    info = {"dataset_info": [{"config_name": name, "splits": list(sizes)} for name in patterns]} if sizes else {}
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs} | info)}---\n# Stand-in\n")


def write_tasks(root: Path, names: list[str]) -> None:
    """Write the data sets of tasks and groups of lm-eval, with the splits that the tasks' files declare."""
    wanted: dict[str, dict[str, set[str]]] = {}
    for task in _leaves(names):
        keys = ("training_split", "validation_split", "test_split", "fewshot_split")
        splits = {task[key] for key in keys if task.get(key)}
        wanted.setdefault(task["dataset_path"], {}).setdefault(task.get("dataset_name") or "default", set()).update(
            splits
        )
    for repo, configs in wanted.items():
        folder = make_commit(root, "datasets", repo)
        rows = pd.DataFrame([TASKS[repo](number) for number in range(8)])
        patterns: dict[str, dict[str, str]] = {}
        for config, splits in configs.items():
            place = "data" if config == "default" else config
            patterns[config] = {split: f"{place}/{split}-*" for split in sorted(splits)}
            for split in splits:
                _write_rows(folder / f"{place}/{split}-00000-of-00001.parquet", rows)
        write_card(folder, patterns)


def write_mask(root: Path, mask: Import, model: HubModel) -> None:
    """Write a mask in the format that the name of its file stands for."""
    assert isinstance(mask.source, HubMask)
    folder = make_commit(root, "models", mask.source.repo)
    np.savez_compressed(folder / mask.source.file, **MASKS[mask.source.file](mask, model))
    (folder / "README.md").write_text("# Stand-in\n")


def _patch_entries(mask: Import, model: HubModel) -> dict[str, np.ndarray]:
    entries = {"__meta__": np.array(json.dumps({"tile": TILE, "sparsity": mask.sparsity}))}
    for name, bits in _masks(mask, model).items():
        entries |= {f"{name}.weight": np.packbits(bits), f"{name}.weight.__shape__": np.array(bits.shape)}
    return entries


def _maskllm_entries(mask: Import, model: HubModel) -> dict[str, np.ndarray]:
    return {f"{name}.weight.mask": np.packbits(bits) for name, bits in _masks(mask, model).items()}


MASKS = {PATCH: _patch_entries, MASKLLM: _maskllm_entries}


def _masks(mask: Import, model: HubModel) -> dict[str, np.ndarray]:
    """Return the 2:4 mask of each layer; the first rows of tiles are dense if the mask has a sparsity."""
    layers, found = prunable_linears(_network(MODELS[model.repo].architecture, model)), {}
    dense = 0.0 if mask.sparsity is None else 1 - 2 * mask.sparsity
    kept, total = 0, sum(layer.weight.numel() for layer in layers.values())
    for name, layer in layers.items():
        bits = nm_mask(torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)), NM(2, 4))
        if kept < dense * total:
            bits[:TILE] = True
            kept += bits[:TILE].numel()
        found[name] = bits.numpy()
    return found


@cache
def _tokenizer() -> Any:
    return train_tokenizer(_documents("tokenizer"), 400)


def _network(architecture: str, source: HubModel) -> nn.Module:
    grouped = source.shape.num_key_value_heads < source.shape.num_attention_heads
    changes = {"num_key_value_heads": 2 if grouped else 4, "tie_word_embeddings": source.shape.tie_word_embeddings}
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **SIZES, **changes, vocab_size=len(_tokenizer()))
    return AutoModelForCausalLM.from_config(config)


def _documents(seed: str) -> Iterator[str]:
    """Yield documents of made-up words; one is empty, as in WikiText."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(200)]
    yield ""
    for _ in range(60):
        yield " ".join(rng.choices(words, k=rng.randint(50, 150)))


def _write_rows(path: Path, rows: pd.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        rows.to_parquet(path)
    else:
        with gzip.open(path, "wt") as file:
            rows.to_json(file, orient="records", lines=True)


def _leaves(names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the declarations of tasks, of groups' members and of the tasks with a tag."""
    index = built_in_tasks()
    for name in names:
        if name not in index.paths:
            yield from _leaves(sorted(index.tags[name]))
            continue
        declared = _declaration(Path(index.paths[name]))
        if "group" in declared:
            yield from _leaves(declared["task"])
        else:
            yield declared


def _declaration(file: Path) -> dict[str, Any]:
    own = read_plain(file, "task file", drop_tags=True)
    base = _declaration(file.parent / own["include"]) if "include" in own else {}
    return base | own
