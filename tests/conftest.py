"""Tiny random models of the families, token sequences, and a small configuration to vary."""

from __future__ import annotations

import copy
import os
import signal
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

settings.register_profile(
    "patch",
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("patch")

SLURM = "tests/slurm/"
SHARED = ("tests/workflow/", "tests/hub/", SLURM)

# What a script runs in the background ignores interrupts, and so would all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tensors are tiny here: a second thread costs more than it brings, and much more beside other work.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


WAITS = "needs a GPU"


def pytest_runtest_protocol() -> None:
    """Keep denormals in each test, also in those outside this folder, for which pytest calls no other hook of here."""
    # Stages flush them to zero, and so do libraries that GCC links with -ffast-math, as torch.compile does.
    torch.set_flush_denormal(False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the tests that need a GPU where there is none; `make gpu` runs them alone."""
    # A SLURM that waits for a processor takes its nodes for dead, so tests in other processes give way to it.
    if "PYTEST_XDIST_WORKER" in os.environ and not item.nodeid.startswith(SLURM):
        _give_way()
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip(WAITS)


@cache
def _give_way() -> None:
    os.nice(10)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests of a file in one process, and all tests of a folder if they share a slow setup."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((folder for folder in SHARED if nodeid.startswith(folder)), super()._split_scope(nodeid))

    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print in one line which tests wait for a GPU, and which others were skipped for which reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    reasons: dict[str, Counter[str]] = {WAITS: Counter()}
    for report in skipped:
        reason = report.longrepr[2].removeprefix("Skipped: ")
        reasons.setdefault(reason, Counter())[report.nodeid.partition("[")[0]] += 1
    waiting = reasons.pop(WAITS)
    others = sum(names.total() for names in reasons.values()) or "no"
    parts = [f"{waiting.total()} tests wait for a GPU: {_listed(waiting)}", f"{others} others were skipped"]
    parts += [f"{reason}: {_listed(names)}" for reason, names in sorted(reasons.items())]
    terminalreporter.write_line("; ".join(parts))


def _listed(names: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(names.items())) or "none"


VOCABULARY = 50
# Head sizes, grouped heads and widths that are no powers of two; a tile of 4 divides every layer.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "llama": {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
    },
    "gemma3_text": {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
    # Biases everywhere, learned positions, an MLP without a gate.
    "opt": {
        "hidden_size": 24,
        "ffn_dim": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "word_embed_proj_dim": 12,
    },
    # Weights as `[in, out]`, one layer for query, key and value.
    "gpt2": {"n_embd": 24, "n_inner": 40, "n_layer": 2, "n_head": 3},
}


@pytest.fixture
def tiny_model() -> Callable[..., torch.nn.Module]:
    """Return a function that makes a frozen random fp32 model of a family; equal arguments give equal weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(family: str = "qwen2", seed: int = 0, **changes: Any) -> torch.nn.Module:
        torch.manual_seed(seed)
        sizes = FAMILIES[family] | {"vocab_size": VOCABULARY, "max_position_embeddings": 64} | changes
        names = {"opt": {"init_std": 0.2}}.get(family, {"initializer_range": 0.2})
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **names))
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and family in ("opt", "gpt2"):  # they start at zero
                nn.init.normal_(parameter, std=0.1)
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture
def sequences() -> Callable[..., np.ndarray]:
    """Return a function that makes random token sequences `[count, seqlen]`."""

    def make(count: int = 6, seqlen: int = 12, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, VOCABULARY, (count, seqlen)).astype(np.uint16)

    return make


CONFIG: dict[str, Any] = {
    "experiment": "tiny",
    "corpora": {"text": {"source": {"kind": "package", "distribution": "none", "text": "none:none"}}},
    "models": {
        "qwen": {
            "title": "Qwen",
            "variant": "joint",
            "source": {
                "kind": "train",
                "architecture": "qwen2",
                "corpus": "text",
                "tokenizer": {"vocab_size": 300},
                "config": FAMILIES["qwen2"],
            },
        },
        "llama": {
            "title": "Llama",
            "variant": "tile",
            "source": {
                "kind": "train",
                "architecture": "llama",
                "corpus": "text",
                "tokenizer": {"vocab_size": 300},
                "config": FAMILIES["llama"],
            },
        },
    },
    "calibration": {"use": {"corpus": "text", "split": "calibration"}, "samples": 4, "seqlen": 12},
    "learning": {
        "common": {
            "use": {"corpus": "text", "split": "train"},
            "steps": 5,
            "batch_size": 4,
            "seqlen": 12,
        },
    },
    "evaluation": {
        "perplexity": {"use": {"corpus": "text", "split": "test"}, "seqlen": 12},
        "tasks": ["cloze"],
        "include_path": str(Path(__file__).parents[1] / "workflow/tasks"),
        "task_use": {"corpus": "text", "split": "test"},
    },
    "tile": 4,
    "seeds": [0],
    "grid": [
        {"methods": ["dense", "magnitude", "wanda", "sparsegpt", "maskllm"]},
        {"methods": ["patch"], "sparsity": [0.45, 0.25]},
        {"methods": ["wanda"], "pattern": "unstructured", "sparsity": [0.25]},
    ],
}


@pytest.fixture
def raw_config() -> dict[str, Any]:
    """Return a small valid configuration as read from YAML, which a test may change."""
    return copy.deepcopy(CONFIG)
