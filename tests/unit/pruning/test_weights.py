"""Tests of the files of updated weights: round trips and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.files.tensors import load_tensors, save_tensors
from patch.pruning.weights import load_weights, read_weights, save_weights
from patch.pruning.weights_header import FORMAT, weights_digest


@pytest.fixture
def linears() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"a": nn.Linear(4, 3, bias=False), "b": nn.Linear(3, 2, bias=False)}


def test_round_trip(linears: dict[str, nn.Module], tmp_path: Path) -> None:
    save_weights(tmp_path / "w", linears, "abc")
    assert weights_digest(tmp_path / "w") == "abc"
    others = {name: nn.Linear(linear.in_features, linear.out_features) for name, linear in linears.items()}
    load_weights(tmp_path / "w", others)
    assert all(torch.equal(others[name].weight, linear.weight) for name, linear in linears.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(
    value: float, linears: dict[str, nn.Module], tmp_path: Path
) -> None:
    save_weights(tmp_path / "w", linears, "abc")
    header, tensors = load_tensors(tmp_path / "w", FORMAT, "weights")
    tensors["b"][1, 2] = linears["b"].weight.data[1, 2] = value
    with pytest.raises(InputError, match="weights .*w: b has weights that are not finite"):
        save_weights(tmp_path / "w", linears, "abc")
    save_tensors(tmp_path / "w", FORMAT, header, tensors)
    with pytest.raises(InputError, match="weights .*w: b has weights that are not finite"):
        read_weights(tmp_path / "w", linears)


CHANGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "missing": lambda tensors: tensors.pop("a"),
    "more": lambda tensors: tensors.update(c=tensors["a"].clone()),
    "transposed": lambda tensors: tensors.update(a=tensors["a"].T.contiguous()),
    "of integers": lambda tensors: tensors.update(a=tensors["a"].long()),
    "of half": lambda tensors: tensors.update(a=tensors["a"].half()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_of_another_model(change: str, linears: dict[str, nn.Module], tmp_path: Path) -> None:
    save_weights(tmp_path / "w", linears, "abc")
    header, tensors = load_tensors(tmp_path / "w", FORMAT, "weights")
    CHANGES[change](tensors)
    save_tensors(tmp_path / "w", FORMAT, header, tensors)
    with pytest.raises(InputError, match="the layers are not those of the model"):
        load_weights(tmp_path / "w", linears)


def test_damage_is_noticed(linears: dict[str, nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "w"
    assert weights_digest(path) is None
    with pytest.raises(InputError, match="no such file"):
        read_weights(path, linears)
    save_weights(path, linears, "abc")
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="do not match its checksum"):
        read_weights(path, linears)
    path.write_bytes(content[:-1])
    assert weights_digest(path) is None
