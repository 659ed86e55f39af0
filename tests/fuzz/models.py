"""Attacks on model folders: one file is damaged, and the folder is loaded by each loader.

A driver calls `prepare(folder)` once and then `attack(rng, folder)` as often as its time allows:

- `prepare` writes a tiny model with its tokenizer; `attack` never changes it.
- `attack` makes one damaged copy and returns the outcome, such as `config.json: refused` or `config.json: accepted`.
  It raises `AssertionError`, with the damage in the message, if a loader raises anything but an `InputError` of one
  line, takes longer than `SECONDS`, or accepts weights that differ from those of the valid folder.
- All randomness comes from `rng`, a `random.Random`: equal seeds give equal attacks.

Everything runs in the caller's process, so that a crash by a signal ends the driver too.
"""

from __future__ import annotations

import copy
import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch

from patch.errors import InputError
from patch.models.loading import load_model, load_skeleton, load_tokenizer
from patch.models.model_settings import LocalModel, Model
from patch.models.shapes import model_shape

SECONDS = 30
WEIGHTS = "model.safetensors"
JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "nan", "../../etc/passwd", "\ud800", [], [None], [[]], {}, {"x": None}, {"": [1]}),
    *(-1, 0, 1, 3, 1.5, -0.0, 1e308, 5e-324, 2**31, 2**63, -(2**63), 10**30),
    *(["x"] * 3, [-1, 2.5], {"rope_type": "yarn"}, {"__float__": "Infinity"}, {"quant_method": "gptq"}),
)
# Keys that transformers may read beside those of a saved file.
KEYS = (
    *("auto_map", "architectures", "model_type", "dtype", "torch_dtype", "attn_implementation", "quantization_config"),
    *("head_dim", "text_config", "num_labels", "id2label", "sub_configs", "pruned_heads", "is_encoder_decoder"),
    *("tokenizer_class", "added_tokens_decoder", "extra_special_tokens", "chat_template", "transformers_weights"),
    *("cache_implementation", "stop_strings", "max_length", "temperature", "watermarking_config", "compile_config"),
)
TEXTS = (b"", b"null", b"[]", b'"x"', b"NaN", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000)


def prepare(folder: Path) -> None:
    """Write a tiny model and its tokenizer into an empty folder."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    from patch.data.tokenizer import train_tokenizer

    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2", **sizes, num_hidden_layers=2, vocab_size=300)
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(folder)
    train_tokenizer(["In the beginning God created the heaven and the earth."], 300).save_pretrained(folder)


def attack(rng: Random, folder: Path) -> str:
    """Damage a copy of the folder that `prepare` wrote, load it, and return the outcome."""
    name = rng.choice((*JSON_FILES, WEIGHTS))
    with tempfile.TemporaryDirectory() as temporary:
        damaged = Path(temporary) / "model"
        shutil.copytree(folder, damaged)
        content = (damaged / name).read_bytes()
        new = _damage_weights(rng, content) if name == WEIGHTS else _damage_json(rng, content)
        (damaged / name).write_bytes(new)
        loaders: dict[str, Callable[[], Any]] = {
            "load_model": lambda: load_model(damaged),
            "load_skeleton": lambda: load_skeleton(damaged),
            "load_tokenizer": lambda: load_tokenizer(damaged),
            "model_shape": lambda: model_shape("m", Model(title="m", source=LocalModel(path=str(damaged)))),
        }
        refused = False
        for loader, load in loaders.items():
            try:
                with _time_limit():
                    result = load()
            except InputError as error:
                assert "\n" not in str(error) or loader == "model_shape", f"{loader}: several lines: {error}"
                refused = True
            except BaseException as error:
                raise AssertionError(f"{loader} raised {error!r} for {name}: {_difference(content, new)}") from error
            else:
                if loader == "load_model" and name == WEIGHTS:
                    assert _same(result, load_model(folder)), f"other weights accepted: {_difference(content, new)}"
    return f"{name}: {'refused' if refused else 'accepted'}"


def _damage_json(rng: Random, content: bytes) -> bytes:
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return _damage_bytes(rng, content)
    tree = copy.deepcopy(json.loads(content))
    if kind == 2:
        tree[rng.choice(KEYS)] = rng.choice(VALUES)
    else:
        parent, key = rng.choice(list(_places(tree)))
        if kind == 3:
            del parent[key]
        else:
            parent[key] = rng.choice(VALUES)
    text = json.dumps(tree, indent=2)
    if kind == 4:
        text = text.replace("null", rng.choice(("Infinity", "NaN", "1e999", "9" * 5000, "[" * 5000)), 1)
    return text.encode()


def _places(tree: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield the containers of a JSON value with their keys; only some for long lists and vocabularies."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    for key in keys if depth == 0 else keys[:8]:
        yield tree, key
        yield from _places(tree[key], depth + 1)


def _damage_weights(rng: Random, content: bytes) -> bytes:
    end = 8 + int.from_bytes(content[:8], "little")
    kind = rng.randrange(4)
    if kind == 0:
        return content[: rng.choice((0, 4, 8, end // 2, end, end + 10, len(content) - 1))]
    if kind == 1:
        return rng.choice((0, 1, end - 9, end - 7, 2**63, 2**64 - 1)).to_bytes(8, "little") + content[8:]
    if kind == 2:
        return _damage_bytes(rng, content[:end]) + content[end:]
    header = json.loads(content[8:end])
    entry = header[rng.choice([key for key in header if key != "__metadata__"])]
    key = rng.choice(list(entry))
    entry[key] = rng.choice((*VALUES, "I32", "U32", "F16", "BF16", "F8_E4M3", [2**62, 2**62], [0, 0], [-4, -4]))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[end:]


def _damage_bytes(rng: Random, content: bytes) -> bytes:
    place = rng.randrange(len(content))
    return rng.choice(
        (
            content[:place],
            content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :],
            content[:place] + rng.randbytes(3) + content[place:],
            content[:place] + content[place + rng.randrange(1, 9) :],
        )
    )


def _same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def _difference(old: bytes, new: bytes) -> str:
    place = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return f"from byte {place} on {new[max(0, place - 40) : place + 80]!r} in the place of {old[place : place + 80]!r}"


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
