"""Tests of statistics files: they return the same bits, and invalid ones are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from patch.calibration.input_statistics import FORMAT, InputStatistics, block_files, load_statistics, save_statistics
from patch.calibration.walk import walk_blocks
from patch.errors import InputError
from patch.files.tensors import load_tensors, save_tensors
from patch.masks.nm import NM, Unstructured
from patch.pruning.prune import prune


def take(model: nn.Module, sequences: Callable, folder: Path, gram: bool = True) -> list[dict[str, InputStatistics]]:
    paths, seen = block_files(folder), []

    def save(linears: dict[str, nn.Module], statistics: dict[str, InputStatistics]) -> None:
        save_statistics(next(paths), statistics)
        seen.append(statistics)

    walk_blocks(model, sequences(), save, gram=gram, propagate="dense")
    return seen


def test_round_trip(tiny_model: Callable, sequences: Callable, tmp_path: Path) -> None:
    for expected, path in zip(take(tiny_model(), sequences, tmp_path), block_files(tmp_path), strict=False):
        found = load_statistics(path)
        assert found.keys() == expected.keys()
        for name, statistics in expected.items():
            assert torch.equal(found[name].squares, statistics.squares)
            assert torch.equal(found[name].gram, statistics.gram)
            assert found[name].sequences == 6
        q, k = (found[next(name for name in found if part in name)] for part in ("q_proj", "k_proj"))
        assert q is k, "shared statistics are read once"
        assert load_statistics(path, gram=False)[next(iter(found))].gram is None


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "opt"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "thanos"])
@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.4)])
def test_pruning_from_files_is_pruning_with_dense_inputs(
    family: str, method: str, pattern: NM | Unstructured, tiny_model: Callable, sequences: Callable, tmp_path: Path
) -> None:
    take(tiny_model(family), sequences, tmp_path)
    from_files, at_once = tiny_model(family), tiny_model(family)
    masks = prune(from_files, method, pattern, statistics=tmp_path)
    expected = prune(at_once, method, pattern, sequences(), propagate="dense")
    for name, mask in expected.masks.items():
        assert torch.equal(masks.masks[name], mask), name
    for mine, theirs in zip(from_files.parameters(), at_once.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_norms_alone_have_no_gram_matrices(tiny_model: Callable, sequences: Callable, tmp_path: Path) -> None:
    take(tiny_model(), sequences, tmp_path, gram=False)
    assert prune(tiny_model(), "wanda", NM(2, 4), statistics=tmp_path).sparsity == 0.5
    with pytest.raises(InputError, match="without squares or without Gram matrices"):
        prune(tiny_model(), "sparsegpt", NM(2, 4), statistics=tmp_path)


def test_what_is_not_there_or_of_another_model(tiny_model: Callable, sequences: Callable, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        prune(tiny_model(), "wanda", NM(2, 4), statistics=tmp_path)
    take(tiny_model("opt"), sequences, tmp_path)
    with pytest.raises(InputError, match="other layers than the model's"):
        prune(tiny_model(), "wanda", NM(2, 4), statistics=tmp_path)
    path = next(block_files(tmp_path))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="truncated"):
        load_statistics(path)


def test_a_foreign_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="not written by this version"):
        load_statistics(tmp_path / "a.safetensors")


def small(path: Path) -> dict[str, InputStatistics]:
    x = torch.arange(12.0).reshape(3, 4)
    statistics = {"a": InputStatistics(x.square().sum(0), x.T @ x, 2)}
    save_statistics(path, statistics | {"b": statistics["a"]})
    return statistics


def test_damage_is_noticed_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s"
    squares = small(path)["a"].squares.numpy().tobytes()
    whole = path.read_bytes()
    # The squares are the diagonal of the Gram matrix too, but nowhere else one after another.
    assert whole.count(squares) == 1
    path.write_bytes(whole.replace(squares, squares[:-1] + b"\0"))
    with pytest.raises(InputError, match="do not match its checksum"):
        load_statistics(path, gram=False)
    path.write_bytes(whole.replace(squares, squares[::-1]))
    with pytest.raises(InputError, match="do not match its checksum"):
        load_statistics(path)


CHANGES: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "nan": (lambda h, t: t["a.squares"][0].fill_(float("nan")), "invalid sums of a"),
    "negative": (lambda h, t: t["a.squares"][0].fill_(-1.0), "invalid sums of a"),
    "inf": (lambda h, t: t["a.gram"][0].fill_(float("inf")), "invalid sums of a"),
    "gram of another width": (lambda h, t: t.update({"a.gram": t["a.gram"][:2].clone()}), "without Gram matrices of a"),
    "no squares": (lambda h, t: t.pop("a.squares"), "without squares"),
    "sequences 0": (lambda h, t: h.update(sequences=0), "`sequences`"),
    "sequences as text": (lambda h, t: h.update(sequences="2"), "`sequences`"),
    "shared with none": (lambda h, t: h.update(shared={"a": "c"}), "without squares"),
    "shared no mapping": (lambda h, t: h.update(shared=[1]), "`shared`"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    small(path)
    header, tensors = load_tensors(path, FORMAT, "file")
    apply, message = CHANGES[change]
    apply(header, tensors)
    save_tensors(path, FORMAT, header, tensors)
    with pytest.raises(InputError, match=message) as error:
        load_statistics(path)
    assert str(path) in str(error.value)
