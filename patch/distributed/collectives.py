"""Collectives over the processes of one job. In a single process, everything is local.

`patch.distributed.launch` or `torchrun` starts the processes. Tensors on the CPU use gloo, those on a GPU NCCL.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from patch.distributed.launch import launcher_store
from patch.distributed.signals import EXIT_RESUMABLE, ignore_signals
from patch.errors import InputError

# Timeout of a collective: one process may load a model or write a checkpoint on a slow disk while the others wait.
TIMEOUT = timedelta(minutes=30)
# Numbers that are summed at a time, 64 MiB in fp32, which bounds the memory that a sum needs.
PIECE = 1 << 24

Value = TypeVar("Value")


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this is the process that writes and prints."""
    return rank() == 0


@contextmanager
def process_group(device: str, processes: int) -> Iterator[None]:
    """Join the group of ``processes`` that were started together, within the block; with 1, do nothing.

    Args:
        device: `cpu` or `cuda`; on `cuda` each process of a node uses its own GPU.
        processes: the number of processes that must have been started.

    Raises:
        InputError: another number was started, or this node has fewer GPUs than processes.
    """
    if processes == 1:
        yield
        return
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != processes:
        raise InputError(f"this is one of {started} processes, not of {processes} (`--processes` times `--nodes`)")
    if device == "cuda":
        _take_gpu()
    backend, store = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", launcher_store(TIMEOUT)
    # Without a store, torch reads the address of the processes from the environment, as after `torchrun`.
    place = {"store": store, "rank": int(os.environ["RANK"]), "world_size": processes} if store else {}
    dist.init_process_group(backend, timeout=TIMEOUT, **place)
    # After an error the other processes may be at any point: waiting for them could hang.
    together = False
    try:
        yield
        together = True
    except SystemExit as stop:
        together = stop.code == EXIT_RESUMABLE
        if together:
            ignore_signals()
        raise
    finally:
        if together:
            # The launcher ends the others as soon as one fails, so none leaves before all are done.
            any_of(False)
            dist.destroy_process_group()


def _take_gpu() -> None:
    local, needed, found = int(os.environ["LOCAL_RANK"]), os.environ["LOCAL_WORLD_SIZE"], torch.cuda.device_count()
    if local >= found:
        raise InputError(
            f"`resources.learn_gpus` is {needed} but torch finds {found} GPUs on {socket.gethostname()}; "
            f"set it to {found} or ask for more"
        )
    torch.cuda.set_device(local)


def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace each contiguous tensor by its sum over all processes; all get the same bits."""
    if world_size() == 1:
        return
    for tensor in tensors:
        for piece in tensor.view(-1).split(PIECE):
            dist.all_reduce(piece)


def gathered(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all processes, which have one shape, in order of the processes."""
    if world_size() == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return parts


def start_exchange(received: Tensor, sent: Tensor, received_counts: list[int], sent_counts: list[int]) -> dist.Work:
    """Start to send rows of a contiguous tensor to every process and to fill another with the rows received, in order.

    Args:
        received: has as many rows as ``received_counts`` sums to; a row has the same size in all processes.
        sent: has as many rows as ``sent_counts`` sums to; not to be changed before the end.
        received_counts: number of rows received from each process.
        sent_counts: number of rows sent to each process.

    Returns:
        The exchange, whose `wait` returns when ``received`` is complete, on a GPU for the work that follows.
    """
    # As bytes: not every version of gloo and NCCL sends all types.
    return dist.all_to_all_single(_bytes(received), _bytes(sent), received_counts, sent_counts, async_op=True)


def _bytes(tensor: Tensor) -> Tensor:
    return (tensor[:, None] if tensor.dim() == 1 else tensor).view(torch.uint8)


def broadcast_rows(tensor: Tensor, bounds: Sequence[int]) -> None:
    """Broadcast a tensor of which each process has its own rows, from one of ``bounds`` to the next."""
    for source, (first, last) in enumerate(pairwise(bounds)):
        if first < last:
            dist.broadcast(tensor[first:last], src=source)


def any_of(*flags: bool) -> Sequence[bool]:
    """Return, for each flag, whether it is set in any process."""
    if world_size() == 1:
        return flags
    values = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return [bool(value) for value in values]


def from_first(value: Value) -> Value:
    """Return the value of the first process, which must be picklable."""
    if world_size() == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def on_all(action: Callable[[], Any]) -> None:
    """Run each process' part of an action, and wait for the others.

    Raises:
        InputError: in all processes, if the action raised one in any: the error of the first of them.
    """
    failure = None
    try:
        action()
    except InputError as error:
        failure = error
    failures: list[InputError | None] = [failure]
    if world_size() > 1:
        failures = [None] * world_size()
        dist.all_gather_object(failures, failure)
    for failure in failures:
        if failure is not None:
            raise failure


def on_first(action: Callable[[], Any]) -> None:
    """Run an action in the first process while the others wait.

    Raises:
        InputError: in all processes, if the action raised one.
    """
    on_all(action if is_first() else lambda: None)
