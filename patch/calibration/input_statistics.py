"""Input statistics of linear layers: accumulation by hooks, and files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from patch.errors import InputError
from patch.files.schema import Name, Positive, Schema, check
from patch.files.tensors import load_tensors, save_tensors

FORMAT = "patch-statistics-2"
_SQUARES, _GRAM = ".squares", ".gram"


class _Header(Schema):
    """Header: the layer that holds the sums of each layer, and the number of calibration sequences."""

    shared: dict[Name, Name]
    sequences: Positive


@dataclass(eq=False)
class InputStatistics:
    """Input statistics of a layer in fp32. Layers with the same input tensor share one object.

    Attributes:
        squares: `[in]`, sum over all tokens of `x_j^2`.
        gram: `[in, in]`, sum over all tokens of `x x^T`, or None.
        sequences: number of calibration sequences.
    """

    squares: Tensor
    gram: Tensor | None
    sequences: int

    @property
    def norms(self) -> Tensor:
        """Input norms `[in]`: the root of the mean over sequences of `sum_t x_tj^2`."""
        return (self.squares / self.sequences).sqrt()


class Accumulator:
    """Accumulator of input statistics by forward hooks, until the context ends.

    Layers with the same input tensor share their sums. Sums are accumulated by sequence, so that they do not depend
    on the batch size.
    """

    def __init__(self, linears: dict[str, nn.Module], gram: bool) -> None:
        self._gram = gram
        self._statistics: dict[str, InputStatistics] = {}
        self._leader: dict[str, str] = {}
        self._sequences = self._total = 0
        # Keeps the tensors alive, since a later tensor of the same pass could reuse an id.
        self._seen: dict[int, tuple[Tensor, str]] = {}
        self._handles = [linear.register_forward_pre_hook(self._hook(name)) for name, linear in linears.items()]

    def start_batch(self, sequences: int) -> None:
        """Set the number of sequences in the next inputs."""
        self._seen.clear()
        self._sequences = sequences
        self._total += sequences

    def _hook(self, name: str) -> Callable:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            _, leader = self._seen.setdefault(id(x), (x, name))
            self._leader[name] = leader
            if leader == name:
                # Some families flatten batch and tokens before a layer; the sequences stay contiguous.
                for sequence in x.reshape(self._sequences, -1, x.shape[-1]):
                    self._add(name, sequence.float())

        return hook

    def _add(self, name: str, x: Tensor) -> None:
        if name not in self._statistics:
            width = x.shape[1]
            gram = x.new_zeros(width, width) if self._gram else None
            self._statistics[name] = InputStatistics(x.new_zeros(width), gram, 0)
        sums = self._statistics[name]
        sums.squares += x.square().sum(0)
        if sums.gram is not None:
            sums.gram.addmm_(x.T, x)

    def __enter__(self) -> Accumulator:
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._seen.clear()

    def statistics(self) -> dict[str, InputStatistics]:
        """Return the accumulated statistics by layer."""
        for statistics in self._statistics.values():
            statistics.sequences = self._total
        return {name: self._statistics[leader] for name, leader in self._leader.items()}


def save_statistics(path: Path | str, statistics: dict[str, InputStatistics]) -> None:
    """Write the statistics of a block's layers atomically; shared statistics are written once."""
    leaders: dict[int, str] = {}
    shared = {name: leaders.setdefault(id(values), name) for name, values in statistics.items()}
    tensors: dict[str, Tensor] = {}
    for name in set(shared.values()):
        tensors[f"{name}{_SQUARES}"] = statistics[name].squares
        if (gram := statistics[name].gram) is not None:
            tensors[f"{name}{_GRAM}"] = gram
    sequences = next(iter(statistics.values())).sequences
    save_tensors(path, FORMAT, {"shared": shared, "sequences": sequences}, tensors)


def load_statistics(
    path: Path | str, device: torch.device | str = "cpu", gram: bool = True
) -> dict[str, InputStatistics]:
    """Read and verify a file of `save_statistics`; without ``gram``, only the squares.

    Raises:
        InputError: the file is missing, damaged or of another format, lacks the Gram matrices, or has invalid sums.
    """
    endings = (_SQUARES, _GRAM) if gram else (_SQUARES,)
    values, tensors = load_tensors(path, FORMAT, "statistics", lambda name: name.endswith(endings))
    header = check(_Header, values, f"statistics {path}: invalid header")
    found = {}
    for name in dict.fromkeys(header.shared.values()):
        squares, matrix = tensors.get(f"{name}{_SQUARES}"), tensors.get(f"{name}{_GRAM}")
        if squares is None or gram and (matrix is None or matrix.shape != (len(squares), len(squares))):
            raise InputError(f"statistics {path}: without squares or without Gram matrices of {name}; make them again")
        # An fp64 sum of finite fp32 values is finite, and is cheaper than a mask of the matrix.
        sums = [value.sum(dtype=torch.float64) for value in (squares, matrix) if value is not None]
        if not all(map(torch.isfinite, sums)) or (squares < 0).any():
            raise InputError(f"statistics {path}: invalid sums of {name}; the model may be broken")
        on_device = matrix.to(device) if gram else None
        found[name] = InputStatistics(squares.to(device), on_device, header.sequences)
    return {name: found[leader] for name, leader in header.shared.items()}


def block_files(folder: Path | str) -> Iterator[Path]:
    """Yield the file paths of a folder of statistics, one per block, in order and without end."""
    return (Path(folder) / f"block-{index:04d}.safetensors" for index in count())
