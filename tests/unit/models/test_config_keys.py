"""Tests of the keys of a model's configuration against the classes of transformers."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from patch.errors import InputError
from patch.models.config_keys import SPECIAL, check_config_keys, config_keys
from patch.models.model_settings import TrainedModel

ARCHITECTURES = get_args(TrainedModel.model_fields["architecture"].annotation)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_keys_are_the_fields_of_the_class(architecture: str) -> None:
    from transformers import CONFIG_MAPPING

    own, common = config_keys(architecture)
    fields = {field.name for field in dataclasses.fields(CONFIG_MAPPING[architecture])}
    assert {*own, *common} == fields and "tie_word_embeddings" in own


@pytest.mark.parametrize(
    ("architecture", "key", "message"),
    [
        ("qwen2", "hiden_size", "unknown key `c.hiden_size` of a qwen2 model; did you mean `hidden_size`? known: "),
        ("gpt2", "n_layers", "unknown key `c.n_layers` of a gpt2 model; did you mean `n_layer`? known: "),
        ("llama", "eos_token_id", "`c.eos_token_id`: leave it out"),
    ],
)
def test_a_wrong_key_is_named(architecture: str, key: str, message: str) -> None:
    own, common = config_keys(architecture)
    right = [name for name in (*own, *common) if name not in SPECIAL]
    check_config_keys("c", architecture, right)
    with pytest.raises(InputError) as error:
        check_config_keys("c", architecture, [*right, key])
    assert str(error.value).startswith(message)
