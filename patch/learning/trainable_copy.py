"""Trainable fp32 copy of a model, whose parameters several processes shard with PyTorch's FSDP2.

A process holds its rows of every weight, with their gradients and moments. All weights of a decoder block are in memory
while the block computes, and those outside the blocks (embedding, output layer, last norm) during a whole micro-batch.
The rows of a matrix hold whole groups of four weights, so the processes exchange nothing to shrink groups or to choose
masks.

The gradient of a step is the sum over the processes, without a division, and a process that repeats the micro-batch of
another adds zeros. Everything else is computed for each weight alone or, as the norm of the gradient, on whole tensors.
The weights therefore equal those of one process but for the order in which gradients of micro-batches are added.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from patch.distributed.collectives import rank, world_size
from patch.learning.sharded_state import StateShard
from patch.models.loading import decoder_blocks, is_transposed, prunable_linears


@contextmanager
def trainable_copy(model: nn.Module) -> Iterator[TrainableCopy]:
    """Yield a trainable copy; within the block the model's own weights are in host memory, afterwards frozen in place.

    Each process must have the whole model, in its own dtype, on the device that it computes on.
    """
    model.eval()
    devices = [parameter.device for parameter in model.parameters()]
    made: list[TrainableCopy] = []
    try:
        made.append(TrainableCopy(model))
        yield made[0]
    finally:
        for trained in made:
            trained.zero_grad()
        model.requires_grad_(False)
        for parameter, device in zip(model.parameters(), devices, strict=True):
            parameter.data = parameter.data.to(device)


class TrainableCopy:
    """Copy of a model with trainable fp32 parameters.

    Attributes:
        model: the copy; its forward and backward passes use whole parameters.
        shards: this process' part of each parameter as a plain tensor, by name; in one process, the parameter itself.
        ranges: positions of these parts, by the keys of the states of the copy and of an optimizer of ``shards``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._device, self._original = next(model.parameters()).device, model
        self.model = _sharded_copy(model) if world_size() > 1 else _whole_copy(model)
        self._parameters = dict(self.model.named_parameters())
        self.shards = {
            name: nn.Parameter(own_part(parameter.detach())) if world_size() > 1 else parameter
            for name, parameter in self._parameters.items()
        }
        self.ranges = self._ranges()

    def _ranges(self) -> dict[Hashable, StateShard]:
        transposed = _transposed_weights(self.model)
        numbers = {parameter: number for number, parameter in enumerate(self._parameters.values())}
        ranges: dict[Hashable, StateShard] = {}
        # States have a parameter with two names twice.
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            dim = int(parameter in transposed)
            bounds = row_bounds(parameter.shape[dim])
            first, last = bounds[rank() : rank() + 2]
            shard = StateShard(first, last - first, parameter.shape[dim], dim)
            ranges |= dict.fromkeys((name, numbers[parameter]), shard)
        return ranges

    @contextmanager
    def original(self) -> Iterator[nn.Module]:
        """Yield the model that was copied, on the device of the copy within the block; the gradients are removed."""
        self.zero_grad()
        held = [parameter.data for parameter in self._original.parameters()]
        try:
            for parameter, data in zip(self._original.parameters(), held, strict=True):
                parameter.data = data.to(self._device)
            yield self._original
        finally:
            for parameter, data in zip(self._original.parameters(), held, strict=True):
                parameter.data = data

    def zero_grad(self) -> None:
        """Remove the gradients."""
        for parameter in (*self._parameters.values(), *self.shards.values()):
            parameter.grad = None

    def clip_gradients(self, limit: float) -> None:
        """Give ``shards`` the gradients of the copy, scaled so that the norm of all together is at most ``limit``.

        The norm of a tensor is that of the whole tensor in every process: a sum over shards would be rounded otherwise.
        """
        norms = []
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                norms.append(torch.linalg.vector_norm(_whole(parameter.grad)))
                self.shards[name].grad = own_part(parameter.grad)
        nn.utils.clip_grads_with_norm_(self.shards.values(), limit, torch.linalg.vector_norm(torch.stack(norms)))

    def state_dict(self) -> dict[str, Any]:
        """Return the copy's state with this process' part of each parameter."""
        return {
            name: own_part(value) if name in self.ranges else value for name, value in self.model.state_dict().items()
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a state of `state_dict` into the copy."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])


def row_bounds(rows: int) -> list[int]:
    """Return the first row of each process and the end of the last: equal chunks but for the last ones, as FSDP2."""
    chunk = -(-rows // world_size())
    return [min(rows, number * chunk) for number in range(world_size() + 1)]


def own_part(tensor: Tensor) -> Tensor:
    """Return this process' part of a parameter, or of a tensor made from one: itself in one process."""
    return tensor.to_local() if world_size() > 1 else tensor


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if world_size() > 1 else tensor


def _transposed_weights(model: nn.Module) -> set[nn.Parameter]:
    return {linear.weight for linear in prunable_linears(model).values() if is_transposed(linear)}


def _whole_copy(model: nn.Module) -> nn.Module:
    copies: dict[int, Any] = {}
    for parameter in model.parameters():
        copies[id(parameter)] = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
        parameter.data = parameter.data.cpu()
    return copy.deepcopy(model, copies)


def _sharded_copy(model: nn.Module) -> nn.Module:
    """Return an FSDP2 module with fp32 shards; no parameter is in memory as a whole in fp32."""
    # Late: it takes half a second, and one process does not need it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    blank = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, dtype=torch.float32, device="meta"))
        for parameter in model.parameters()
    }
    sharded = copy.deepcopy(model, dict(blank))
    mesh = init_device_mesh(next(model.parameters()).device.type, (world_size(),))
    # The rows of GPT-2's `[in, out]` weights are columns.
    transposed = _transposed_weights(sharded)

    def placement(parameter: nn.Parameter) -> Shard:
        return Shard(int(parameter in transposed))

    for part in (*decoder_blocks(sharded)[1], sharded):
        fully_shard(part, mesh=mesh, shard_placement_fn=placement)
        # Gradients are added, not averaged; gloo can only add.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    shards: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        shard = distribute_tensor(parameter.detach(), mesh, [placement(blank[id(parameter)])], src_data_rank=None)
        shards[id(parameter)] = nn.Parameter(shard.to(torch.float32, copy=True))
        parameter.data = parameter.data.cpu()
    state = {name: shards[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}
    sharded.load_state_dict(state, strict=False, assign=True)
    return sharded
