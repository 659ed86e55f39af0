"""Memory safety: after any change of a packed layer from Python, products are right or an error is raised."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from patch.errors import InputError
from patch.inference.linear import HybridLinear
from patch.inference.packed import PackedWeight

# End of the names of the cases that are multiplied by the operator instead of the layer.
OPERATOR = "by the operator"
# Writes of wrong bits that PyTorch does not count: any products, but no signal.
UNSEEN = {"numpy_bits", "numpy_no_bits", "numpy_some_bits", "data_bits", "storage_bits"}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, str]]:
    """Return the outcomes by attack and kind of weight."""
    script = Path(__file__).with_name("attacks.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_no_attack_ends_by_a_signal_or_a_wrong_product(outcomes: dict) -> None:
    # The last two messages come from `load_state_dict` and `tensor.data = `.
    good = ("right", "refused InputError: ", *(f"refused RuntimeError: {start}" for start in ("Error(s)", "Attempted")))
    bad = {
        (name, kind): outcome
        for name, found in outcomes.items()
        for kind, outcome in found.items()
        # PyTorch itself refuses arguments of the operator that are no tensors.
        if not outcome.startswith("refused " if kind.endswith(OPERATOR) else good)
        and outcome != "right"
        and not (outcome == "finished" and name in UNSEEN)
    }
    assert not bad
    assert len(outcomes) > 150 and {len(found) for found in outcomes.values()} == {6}


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        *((f"{way}_wrong_bits", "refused RuntimeError") for way in ("load", "load_strict", "load_assign")),
        *((f"{way}_all_dense", "refused RuntimeError") for way in ("load", "load_strict", "load_assign")),
        *((f"{way}_other_order", "right") for way in ("load", "load_strict", "load_assign")),
        ("load_partly", "refused RuntimeError"),
        ("load_assign_from_a_file_that_is_cut", "right"),
        ("load_assign_then_change_what_was_given", "right"),
        *((name, "refused InputError: bits are damaged") for name in ("fill_bits", "one_bit", "make_wrong_bits")),
        *((name, "refused InputError: values have the shape") for name in ("all_dense", "weight_all_dense")),
        ("other_values", "right"),
        ("other_bits", "right"),
        ("share_with_processes", "right"),
        ("there_and_back", "right"),
        ("copied_then_changed", "right"),
        ("cut_the_storage_of_values", "refused InputError: values need"),
        ("made_under_inference_mode", "refused InputError: bits are damaged"),
    ],
)
def test_what_is_seen_is_named(name: str, outcome: str, outcomes: dict) -> None:
    found = {kind: one for kind, one in outcomes[name].items() if not kind.endswith(OPERATOR)}
    assert len(found) == 3 and all(one.startswith(outcome) for one in found.values()), found


def test_a_refused_state_changes_nothing(hybrid_weight: Callable) -> None:
    made = hybrid_weight((64, 96), 32)
    model = nn.Sequential(HybridLinear(made.packed, torch.ones(64)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    state["0.dense"].fill_(True)
    for options in ({}, {"strict": False}, {"assign": True}):
        with pytest.raises(RuntimeError, match=r"0\.values have the shape \[\d+\], not \[6144\] as the tiles require"):
            model.load_state_dict(state, **options)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_bias_of_another_layer(hybrid_weight: Callable) -> None:
    packed = hybrid_weight((64, 96), 32).packed
    for bias in (torch.ones(1), torch.ones(96), torch.ones(1, 64)):
        with pytest.raises(InputError, match=r"the bias has the shape .*; expected \[64\]"):
            HybridLinear(packed, bias)


def test_parts_are_checked_once_while_they_stay(hybrid_weight: Callable) -> None:
    packed = hybrid_weight((64, 96), 32).packed
    checked = packed.checked
    packed.values.mul_(2)
    assert packed.checked is checked, "any number is a value"
    packed.bits.copy_(packed.bits.clone())
    assert packed.checked is not checked


def test_writes_to_inference_tensors_are_seen(hybrid_weight: Callable) -> None:
    made = hybrid_weight((64, 96), 32)
    with torch.inference_mode():
        parts = [part.clone() for part in (made.packed.dense, made.packed.values, made.packed.bits)]
        packed = PackedWeight((64, 96), 32, *parts)
        assert not packed.bits.is_inference()
        packed.bits.zero_()
    with pytest.raises(InputError, match="bits are damaged"):
        _ = packed.checked
