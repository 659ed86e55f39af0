"""Tests of damaged model folders, whose error names the folder and, if known, the file."""

from __future__ import annotations

import importlib.util
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from patch.data.tokenizer import train_tokenizer
from patch.errors import InputError
from patch.models.loading import load_config, load_model, load_skeleton, load_tokenizer
from patch.models.model_settings import LocalModel, Model
from patch.models.shapes import model_shape

DEEP, LONG = "[" * 100_000, "9" * 5000


@pytest.fixture
def folder(tiny_model: Callable, tmp_path: Path) -> Path:
    """Return the folder of a tiny model with a tokenizer."""
    tiny_model().save_pretrained(tmp_path)
    train_tokenizer(["In the beginning"], 300).save_pretrained(tmp_path)
    return tmp_path


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(load: Callable, folder: Path) -> str:
    """Return the one-line message with which a loader refuses a folder."""
    with pytest.raises(InputError) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message and len(message) < 1000
    return message


@pytest.mark.parametrize("value", ["x", None, [16], {}, -24, 1.5, True, 2**63])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers"])
def test_sizes_of_a_wrong_type(key: str, value: Any, folder: Path) -> None:
    change(folder / "config.json", **{key: value})
    refusal(load_model, folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("[]", "holds list; expected a JSON object"),
        ("null", "holds NoneType; expected a JSON object"),
        (DEEP, "nested too deeply"),
        (f'{{"rope_theta": {LONG}}}', "not valid JSON"),
        ('{"rope_theta": Infinity}', "Infinity is not a number"),
        ('{"rope_theta": [NaN]}', "NaN is not a number"),
        ('{"rope_theta": 1e999}', "1e999 is too large"),
        ("\ud800", "not valid JSON"),
    ],
    ids=["empty", "list", "null", "deep", "long", "infinity", "nan", "large", "no UTF-8"],
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_file_that_is_no_json_object(name: str, text: str, words: str, folder: Path) -> None:
    (folder / name).write_bytes(text.encode(errors="surrogatepass"))
    for load in (load_tokenizer,) if name.startswith("tokenizer") else (load_model, load_skeleton, load_config):
        message = refusal(load, folder)
        assert message.startswith(f"{folder / name}: ") and words in message


def test_more_layers_than_fit_into_memory(tiny_model: Callable, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    change(tmp_path / "config.json", num_hidden_layers=10**9)
    for load in (load_model, load_skeleton):
        assert "config.json: num_hidden_layers is 1000000000; expected 1 to 10000" in refusal(load, tmp_path)


def test_the_sizes_of_a_local_model(folder: Path) -> None:
    model = Model(title="m", source=LocalModel(path=str(folder)))
    (folder / "config.json").write_text("[]")
    with pytest.raises(InputError, match="config.json: it holds list"):
        model_shape("m", model)
    (folder / "config.json").write_text('{"model_type": []}')
    with pytest.raises(InputError, match=r"config.json.model_type` is \[\]; it must be the name of a family"):
        model_shape("m", model)


@pytest.mark.parametrize("value", [1, True, 2.5, {"__float__": "Infinity"}])
def test_a_way_of_attention_that_is_no_name(value: object, folder: Path) -> None:
    change(folder / "config.json", attn_implementation=value)
    for load in (load_model, load_skeleton, load_config):
        assert "config.json" in refusal(load, folder)


def test_a_generation_configuration_of_wrong_types(folder: Path) -> None:
    change(folder / "generation_config.json", cache_implementation="x", watermarking_config=7, max_new_tokens=-1)
    for load in (load_model, load_skeleton):
        assert refusal(load, folder).startswith(f"{folder}/generation_config.json cannot be loaded: ")


@pytest.mark.parametrize("changes", [{"model": None}, {"model": {"type": "BPE", "vocab": 3}}, {"added_tokens": 3}])
def test_a_tokenizer_of_wrong_types(changes: dict[str, Any], folder: Path) -> None:
    change(folder / "tokenizer.json", **changes)
    assert refusal(load_tokenizer, folder).startswith(f"tokenizer folder {folder} cannot be loaded: ")


def test_pickles_are_never_read(folder: Path, tmp_path: Path) -> None:
    class Run:
        def __reduce__(self) -> tuple:
            return open, (str(tmp_path / "executed"), "w")

    (folder / "model.safetensors").unlink()
    for content in (pickle.dumps(Run()), b"", b"\x80\x02"):
        (folder / "pytorch_model.bin").write_bytes(content)
        assert "no .safetensors file in it; other weights, such as pickles" in refusal(load_model, folder)
    assert not (tmp_path / "executed").exists()


def test_weights_that_are_stored_as_integers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.norm.weight"
    save_file(tensors | {name: tensors[name].view(torch.int32)}, folder / "model.safetensors", {"format": "pt"})
    assert f"model.safetensors: {name} has the type I32; expected floating-point" in refusal(load_model, folder)


def test_damaged_folders_are_refused_or_the_same(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "fuzz/models.py"
    specification = importlib.util.spec_from_file_location("fuzz_models", path)
    fuzz = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(fuzz)
    fuzz.prepare(tmp_path / "good")
    # So many that each file is damaged in several ways; a slow machine stops after some of them.
    rng, ends, until = Random(0), [], monotonic() + 10
    while len(ends) < 60 and (monotonic() < until or len(ends) < 20):
        ends.append(fuzz.attack(rng, tmp_path / "good"))
    assert {end.partition(": ")[2] for end in ends} == {"refused", "accepted"}
