"""The table of methods."""

from __future__ import annotations

import pytest

from patch.config.learning import METHOD_DEFAULTS
from patch.errors import InputError
from patch.methods import METHODS, get_method


def test_names_and_learned_methods() -> None:
    assert all(name == method.name for name, method in METHODS.items())
    assert {name for name, method in METHODS.items() if method.stage == "learn"} == set(METHOD_DEFAULTS)


def test_what_depends_on_a_seed() -> None:
    assert {name for name, method in METHODS.items() if not method.seeded} == {"dense", "magnitude"}


def test_only_sparsegpt_updates_weights() -> None:
    assert [name for name, method in METHODS.items() if method.updates_weights] == ["sparsegpt"]


@pytest.mark.parametrize(
    ("name", "close"), [("sparsgpt", "sparsegpt"), ("patch-jont", "patch-joint"), ("Wanda", "wanda"), ("pach", "patch")]
)
def test_misspelt_methods(name: str, close: str) -> None:
    with pytest.raises(InputError) as error:
        get_method(name)
    assert f"unknown method `{name}`" in str(error.value) and f"did you mean `{close}`?" in str(error.value)
