"""Tests of the sizes from a configuration against those of the real models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch.errors import InputError
from patch.models.loading import prunable_linears
from patch.models.model_settings import Shape
from patch.models.shapes import check_groups, check_tile, linear_shapes, model_shape, parameters, prunable_parameters
from patch.pipeline.config.load import validate_experiment

FAMILIES = ("qwen2", "llama", "gemma3_text")


def shape_of(raw: dict, family: str, config: dict) -> Shape:
    source = raw["models"]["qwen"]["source"] | {"architecture": family, "config": config}
    source["tokenizer"] = {"vocab_size": 300}
    raw["models"]["qwen"]["source"] = source
    return model_shape("qwen", validate_experiment(raw).models["qwen"])


@pytest.mark.parametrize("family", FAMILIES)
def test_same_as_the_model(family: str, tiny_model: Callable, raw_config: dict) -> None:
    model = tiny_model(family, vocab_size=300)
    own = {key: value for key, value in model.config.to_dict().items() if value is not None}
    shape = shape_of(raw_config, family, own)
    linears = prunable_linears(model)
    for name, linear in linears.items():
        assert linear_shapes(shape)[name.split(".")[-1]] == tuple(linear.weight.shape)
    assert prunable_parameters(shape) == sum(linear.weight.numel() for linear in linears.values())
    matrices = {id(p): p.numel() for p in model.parameters() if p.dim() > 1}
    assert parameters(shape) == sum(matrices.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_configuration_leaves_out(family: str, tiny_model: Callable, raw_config: dict) -> None:
    """Each family has its own defaults: head size 256 in Gemma 3, as many key heads as query heads in Llama."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {"hidden_size": 128, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=300, **config))
    shape = shape_of(raw_config, family, config)
    for name, linear in prunable_linears(model).items():
        assert linear_shapes(shape)[name.split(".")[-1]] == tuple(linear.weight.shape), name
    assert shape.tie_word_embeddings == model.config.tie_word_embeddings


def test_local_folder(tiny_model: Callable, raw_config: dict, tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    raw_config["models"]["qwen"]["source"] = {"kind": "local", "path": str(tmp_path)}
    shape = model_shape("qwen", validate_experiment(raw_config).models["qwen"])
    assert shape.vocab_size == 50 and shape.num_key_value_heads == 2 and shape.head_dim == 6
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json: not valid JSON"):
        model_shape("qwen", validate_experiment(raw_config).models["qwen"])
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 24}))
    with pytest.raises(InputError, match="config.json: `intermediate_size` is missing"):
        model_shape("qwen", validate_experiment(raw_config).models["qwen"])


QWEN = Shape(
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=151936,
    tie_word_embeddings=True,
)


def test_published_size_of_qwen() -> None:
    assert parameters(QWEN) == pytest.approx(494e6, rel=0.01)
    assert prunable_parameters(QWEN) == pytest.approx(358e6, rel=0.01)


def test_tile_of_the_paper_fits_and_a_larger_one_does_not() -> None:
    check_tile("qwen", QWEN, 128)
    with pytest.raises(InputError) as error:
        check_tile("qwen", QWEN, 256)
    assert all(part in str(error.value) for part in ("tile 256", "`qwen`", "896", "128"))


@given(st.integers(1, 130))
def test_a_tile_is_refused_exactly_when_it_does_not_divide(tile: int) -> None:
    fits = tile % 4 == 0 and all(length % tile == 0 for length in (896, 4864, 128))
    if fits:
        check_tile("qwen", QWEN, tile)
        return
    with pytest.raises(InputError) as error:
        check_tile("qwen", QWEN, tile)
    for good in map(int, str(error.value).split("use one of ")[1].split(", ")):
        check_tile("qwen", QWEN, good)


def test_groups() -> None:
    check_groups("qwen", QWEN, 4)
    check_groups("qwen", QWEN, 8)
    with pytest.raises(InputError, match="groups of 5 do not divide the 896 inputs of q_proj .* whose M divides 128$"):
        check_groups("qwen", QWEN, 5)
