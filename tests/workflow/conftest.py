"""A finished experiment with a tiny trained and a tiny local model, by all rules that need no network."""

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from ..apt import NotInstalled
from ..forked import run_patch, run_snakemake
from ..stage_server import stage_server
from .browser import require_chromium

ROOT = Path(__file__).parents[2]
VOWELS, CONSONANTS = "aeiou", "bdfgklmnprst"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def _text(seed: int) -> str:
    """Return paragraphs of sentences of random words with a skewed frequency."""
    rng = random.Random(seed)
    words = ["".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.randint(1, 3))) for _ in range(400)]
    weights = [1 / (rank + 3) for rank in range(len(words))]

    def sentence() -> str:
        return " ".join(rng.choices(words, weights, k=rng.randint(8, 20))).capitalize() + "."

    return "\n\n".join(" ".join(sentence() for _ in range(rng.randint(2, 6))) for _ in range(1500))


def _experiment(folder: Path) -> dict:
    use = {split: {"corpus": "made", "split": split} for split in ("train", "calibration", "test")}
    source = {
        "kind": "train",
        "architecture": "qwen2",
        "corpus": "made",
        "tokenizer": {"vocab_size": 400},
        "config": SIZES,
        "training": {"steps": 30, "batch_size": 4, "seqlen": 32},
    }
    return {
        "experiment": "tiny",
        "corpora": {
            "made": {
                "source": {
                    "kind": "files",
                    "files": ["text/*.txt"],
                    "split": {"train": 0.5, "calibration": 0.1, "validation": 0.1, "test": 0.3},
                }
            }
        },
        "models": {
            "trained": {"title": "Trained", "variant": "tile", "source": source},
            "local": {"title": "Local", "variant": "joint", "source": {"kind": "local", "path": "local-model"}},
        },
        "calibration": {"use": use["calibration"], "samples": 8, "seqlen": 32, "batch_size": 4},
        "learning": {
            "common": {"use": use["train"], "steps": 3, "batch_size": 2, "micro_batch_size": 1, "seqlen": 32},
            "methods": {"maskllm": {"lr": 0.001}},
        },
        "finetuning": {"use": use["train"], "steps": 3, "batch_size": 2, "seqlen": 32},
        "evaluation": {
            "perplexity": {"use": use["test"], "seqlen": 32, "batch_size": 8},
            "tasks": ["continuation", "word_order", "next_word", "cloze"],
            "include_path": str(ROOT / "workflow/tasks"),
            "task_use": use["test"],
            "task_samples": 12,
        },
        "speedup": {"batch_size": 2, "prompt": 6, "new_tokens": 3, "repeats": 4},
        "grid": [
            {"methods": ["dense"]},
            {"methods": ["magnitude", "sparsegpt", "thanos", "proxsparse", "maskllm"]},
            {"methods": ["patch"], "sparsity": [0.45]},
            {"methods": ["wanda"], "pattern": "unstructured", "sparsity": [0.45]},
            {"methods": ["maskllm"], "models": ["trained"], "quantization": "absmax"},
            {"methods": ["patch"], "models": ["trained"], "sparsity": [0.45], "quantization": "slim-lora"},
            {"methods": ["sparsegpt"], "models": ["trained"], "finetune": "lora"},
            {"methods": ["patch"], "models": ["local"], "sparsity": [0.45], "finetune": "full"},
        ],
        "tile": 16,
        "published": str(ROOT / "config/published.json"),
    }


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def _arguments(folder: Path, *arguments: str, config: str = "tiny.yaml") -> list[str]:
    where = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), "--configfile", str(folder / config)]
    return [*where, "--workflow-profile", str(ROOT / "profiles/default"), "--cores", "2", *arguments]


def _planned(folder: Path, config: str = "tiny.yaml") -> Counter:
    """Return the number of jobs of a dry run by rule."""
    run = run_snakemake(ROOT, _arguments(folder, "--dry-run", "--quiet", "rules", config=config), _environment())
    assert run.returncode == 0, run.stdout + run.stderr
    table = re.search(r"^job +count\n[- ]+\n(.*?)^total", run.stdout + run.stderr, re.MULTILINE | re.DOTALL)
    rows = [line.split() for line in table[1].splitlines()] if table else []
    return Counter({rule: int(count) for rule, count in rows})


def _patch(folder: Path, command: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    line = [command, *arguments, "--configfile", "tiny.yaml"]
    if not variables:
        return run_patch(folder, line, os.environ)
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    line = [sys.executable, "-m", "patch", *line]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="session")
def patch_command() -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs `python -m patch COMMAND` in a folder with the tiny configuration."""
    return _patch


@pytest.fixture(scope="session")
def environment() -> Iterator[dict[str, str]]:
    """Return the variables of Snakemakes whose jobs run in one server."""
    with stage_server(_environment()) as environment:
        yield environment


@pytest.fixture(scope="session")
def snakemake(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs Snakemake in a folder, with the tiny configuration or another one."""
    return lambda *arguments, **options: run_snakemake(ROOT, _arguments(*arguments, **options), environment)


@pytest.fixture(scope="session")
def planned() -> Callable[..., Counter]:
    """Return a function that returns the number of jobs of a dry run by rule."""
    return _planned


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """Return a folder with the finished tiny experiment."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from patch.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("workflow")
    (folder / "text").mkdir()
    (folder / "text/made.txt").write_text(_text(0))
    tokenizer = train_tokenizer(_text(0).split("\n\n"), 400)
    # Unlike the trained model, GPT-2 has transposed weights, a joint layer for query, key and value, and biases.
    sizes = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 2, "n_positions": 128}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes))
    model.save_pretrained(folder / "local-model")
    tokenizer.save_pretrained(folder / "local-model")
    for name in ("Snakefile", "workflow", "profiles"):  # for `python -m patch`
        (folder / name).symlink_to(ROOT / name)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(_experiment(folder)))
    command = [sys.executable, "-m", "snakemake", *_arguments(folder)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="session")
def chromium(request: pytest.FixtureRequest) -> str:
    """Return the path of Chromium, installed if possible."""
    # Show the output of an installation while it runs.
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        try:
            return require_chromium()
        except NotInstalled as missing:
            pytest.skip(str(missing))


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished experiment that keeps the files' times."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, copy_function=shutil.copy2, symlinks=True)
    return folder
