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
from patch.models.loading import blocks_on, decoder_blocks

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
    _, blocks = decoder_blocks(model)
    starts = range(0, len(windows), batch_size)

    def batch_at(start: int) -> Tensor:
        return torch.as_tensor(windows[start : start + batch_size].astype(np.int64), device=home)

    with HiddenStates() as hidden:
        for states in first_inputs(model, blocks, map(batch_at, starts)):
            hidden.append(states)
        # Only the last batch may be of another size.
        kinds = {len(batch): batch for batch in map(batch_at, (starts[0], starts[-1]))}
        calls = {size: record_calls(model, blocks, batch, device) for size, batch in kinds.items()}
        for index, (block, linears) in enumerate(blocks_on(model, device)):
            of_block = {size: recorded[index] for size, recorded in calls.items()}
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
            on_block(index + 1, len(blocks))


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
