"""Walk a model block by block over calibration windows, with the statistics of each layer's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from patch.calibration.blocks import BlockCall, first_inputs, record_calls
from patch.calibration.statistics import Accumulator, InputStatistics
from patch.calibration.stream import HiddenStates
from patch.errors import InputError
from patch.models import decoder_blocks, is_linear

VisitBlock = Callable[[dict[str, nn.Module], dict[str, InputStatistics]], None]


@torch.no_grad()
def walk_blocks(
    model: nn.Module,
    windows: np.ndarray,
    visit: VisitBlock,
    batch_size: int = 8,
    gram: bool = False,
    propagate: Literal["pruned", "dense"] = "pruned",
    device: torch.device | str | None = None,
    on_block: Callable[[int, int], None] = lambda index, total: None,
) -> None:
    """Visit block after block with the statistics of its layers' inputs, the block itself still as it was.

    On the device are one block and one batch of activations at a time, and the block's statistics; the hidden states
    stream through a temporary file. So memory grows neither with the number of blocks nor with that of windows.

    Args:
        model: causal language model; ``visit`` may change its blocks in place.
        windows: `[samples, seqlen]` token ids.
        visit: called with the block's linear layers and their statistics, by their names in ``model``.
        batch_size: sequences per forward pass; the last batch may be smaller.
        gram: whether the Gram matrix of the inputs is needed, or only its diagonal.
        propagate: `pruned`: a block sees what the visited blocks before it make, which costs a second forward pass;
            `dense`: what they made before.
        device: where blocks run; each moves there and back. By default where the model is.
        on_block: called after each block with its number, from 1, and their count.

    Raises:
        InputError: there are no windows, or a linear layer of a block takes no part in its forward pass.
    """
    if not len(windows):
        raise InputError("there are no calibration windows; give at least one")
    home = next(model.parameters()).device
    device = torch.device(device) if device is not None else home
    prefix, blocks = decoder_blocks(model)
    tokens = _Batches(windows, batch_size, home)
    with HiddenStates() as hidden:
        for states in first_inputs(model, blocks, tokens):
            hidden.append(states)
        calls = {
            len(batch): record_calls(model, blocks, batch, device) for batch in {len(b): b for b in tokens}.values()
        }
        for index, block in enumerate(blocks):
            of_block = {size: recorded[index] for size, recorded in calls.items()}
            block.to(device)
            linears = {f"{prefix}.{index}.{name}": m for name, m in block.named_modules() if is_linear(m)}
            with Accumulator(linears, gram) as accumulator:
                _pass(block, hidden, of_block, device, accumulator, keep=propagate == "dense")
                statistics = accumulator.statistics()
            if idle := linears.keys() - statistics.keys():
                raise InputError(f"layer {min(idle)} takes no part in the forward pass, so it cannot be calibrated")
            visit(linears, statistics)
            del accumulator, statistics  # before the next block's
            # The last block's output enters no other.
            if propagate == "pruned" and index + 1 < len(blocks):
                _pass(block, hidden, of_block, device, None, keep=True)
            block.to(home)
            on_block(index + 1, len(blocks))


class _Batches:
    """Token batches, made when they are asked for."""

    def __init__(self, windows: np.ndarray, batch_size: int, device: torch.device) -> None:
        self._windows, self._size, self._device = windows, batch_size, device

    def __iter__(self):  # noqa: ANN204
        for start in range(0, len(self._windows), self._size):
            part = self._windows[start : start + self._size]
            yield torch.as_tensor(part.astype(np.int64), device=self._device)


def _pass(
    block: nn.Module,
    hidden: HiddenStates,
    calls: dict[int, BlockCall],
    device: torch.device,
    accumulator: Accumulator | None,
    keep: bool,
) -> None:
    """Run all batches through ``block``; with ``keep`` its outputs take the place of the inputs."""
    for position in range(len(hidden)):
        states: Tensor = hidden.read(position, device)
        if accumulator:
            accumulator.start_batch(len(states))
        output = calls[len(states)].run(block, states)
        if keep:
            hidden.write(position, output)
