"""Block-by-block calibration of a model, with the input statistics of each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from patch.calibration.blocks import first_inputs, record_calls
from patch.calibration.hidden_states import HiddenStates
from patch.calibration.input_statistics import Accumulator, InputStatistics
from patch.errors import InputError
from patch.models.loading import blocks_on, decoder_blocks

VisitBlock = Callable[[dict[str, nn.Module], dict[str, InputStatistics]], None]


@torch.no_grad()
def walk_blocks(
    model: nn.Module,
    sequences: np.ndarray,
    visit: VisitBlock,
    batch_size: int = 8,
    gram: bool = False,
    propagate: Literal["pruned", "dense"] = "pruned",
    device: torch.device | str | None = None,
    on_block: Callable[[int, int], None] = lambda index, total: None,
) -> None:
    """Visit each block with the input statistics of its layers, computed before the visit changes the block.

    The device holds one block, its statistics and one batch of activations at a time. The hidden states stream through
    a temporary file. Memory therefore does not grow with the number of blocks or sequences.

    Args:
        model: causal language model; ``visit`` may change its blocks in place.
        sequences: `[samples, seqlen]` token ids.
        visit: function of the block's linear layers and their statistics, by their names in ``model``.
        batch_size: sequences per forward pass; the last batch may be smaller.
        gram: whether the Gram matrix of the inputs is needed, or only its diagonal.
        propagate: `pruned`: a block reads the outputs of the visited blocks, which costs a second forward pass;
            `dense`: it reads their outputs before the visit.
        device: device that runs the blocks, each of which moves there and back; by default the model's device.
        on_block: function called after each block with its number, from 1, and the number of blocks.

    Raises:
        InputError: there are no sequences, or the forward pass of a block skips one of its linear layers.
    """
    if not len(sequences):
        raise InputError("there are no calibration sequences; give at least one")
    home = next(model.parameters()).device
    device = torch.device(device) if device is not None else home
    _, blocks = decoder_blocks(model)
    starts = range(0, len(sequences), batch_size)

    def batch_at(start: int) -> Tensor:
        batch = torch.from_numpy(sequences[start : start + batch_size].astype(np.int64))
        return batch.to(home, non_blocking=True)

    with HiddenStates() as hidden:
        for states in first_inputs(model, blocks, map(batch_at, starts)):
            hidden.append(states)
        # Only the last batch may have another size.
        kinds = {len(batch): batch for batch in map(batch_at, (starts[0], starts[-1]))}
        calls = {size: record_calls(model, blocks, batch, device) for size, batch in kinds.items()}

        def run_block(index: int, block: nn.Module, start_batch: Callable[[int], None] | None, keep: bool) -> None:
            """Run all batches through a block; with ``keep`` its outputs replace the inputs."""
            for position in range(len(hidden)):
                states: Tensor = hidden.read(position, device)
                if start_batch:
                    start_batch(len(states))
                output = calls[len(states)][index].run(block, states)
                if keep:
                    hidden.write(position, output)

        for index, (block, linears) in enumerate(blocks_on(model, device)):
            with Accumulator(linears, gram) as accumulator:
                run_block(index, block, accumulator.start_batch, keep=propagate == "dense")
                statistics = accumulator.statistics()
            if idle := linears.keys() - statistics.keys():
                raise InputError(f"layer {min(idle)} is not part of the forward pass, so it cannot be calibrated")
            visit(linears, statistics)
            del accumulator, statistics  # free memory for the next block
            # No block reads the last block's output.
            if propagate == "pruned" and index + 1 < len(blocks):
                run_block(index, block, None, keep=True)
            on_block(index + 1, len(blocks))
