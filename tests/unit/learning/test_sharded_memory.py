"""Tests that the planned memory and exchange of sharded learning are those of passes, at the sizes of 70B weights too.

A pass runs on tensors without data: every operation allocates what it would on a GPU, and nothing is computed. What
cannot run so has stand-ins that allocate the same: the mask kernels, flash attention, and the noise of the tiles.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patch.learning import loss_chunks
from patch.learning.model_masks import attached
from patch.learning.objective import cross_entropy, frozen_output_layer, recomputed_blocks
from patch.learning.offloaded_adamw import OffloadedAdamW
from patch.masks import exchange, learnable, linear
from patch.masks.exchange import Exchanges
from patch.masks.host_memory import HostSink
from patch.masks.learnable import LearnableMask, Sampling, begin_pass
from patch.masks.pattern import block_size
from patch.masks.row_sharding import WeightRows, shard_rows
from patch.models.loading import prunable_linears
from patch.models.shapes import Shape
from patch.pipeline.resources.memory import exchanged_gb, learning_mb

TILE, TOKENS = 128, 4096
BLOCKS = 80


def shape_of(blocks: int) -> Shape:
    """Return the shape of Llama-3.1-70B with another number of blocks."""
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}
    return Shape(hidden_size=8192, intermediate_size=28672, num_hidden_layers=blocks, vocab_size=128256, **heads)


class HostBytes:
    """Host memory without data, whose bytes are not those of a GPU."""

    def __init__(self) -> None:
        self.storages: dict[int, torch.UntypedStorage] = {}

    def empty(self, shape: torch.Size) -> Tensor:
        with torch.utils._python_dispatch._disable_current_modes():
            found = torch.empty(shape, device="meta")
        self.storages[found.untyped_storage()._cdata] = found.untyped_storage()
        return found


class PeakMemory(TorchDispatchMode):
    """Recorder of the largest number of bytes of tensors alive at once, with those of ``held`` tensors."""

    def __init__(self, held: Iterable[Tensor], host: HostBytes) -> None:
        super().__init__()
        self._host = host
        self._alive: dict[int, tuple[Any, int]] = {}
        self._add(held)
        self.bytes = self._total()

    def _add(self, tensors: Iterable[Tensor]) -> bool:
        known = len(self._alive)
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if storage._cdata not in self._alive and storage._cdata not in self._host.storages:
                self._alive[storage._cdata] = storage._weak_ref(), storage.nbytes()
        return len(self._alive) > known

    def _total(self) -> int:
        for key, (weak, _) in list(self._alive.items()):
            if torch.UntypedStorage._new_with_weak_ptr(weak) is None:
                torch.UntypedStorage._free_weak_ref(weak)
                del self._alive[key]
        return sum(size for _, size in self._alive.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._add(tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor) and tensor.is_meta):
            self.bytes = max(self.bytes, self._total())
        return result


class FlashAttention(torch.autograd.Function):
    """Allocations of flash attention: the output, and what its backward pass reads and writes."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output, sums = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def make_rows(layer: Any, first: int, masked: Tensor) -> Tensor:
    return torch.empty(masked.numel() // 1024, device=masked.device).sum(dtype=torch.float64)


def differentiate_rows(layer: Any, first: int, gradient: Tensor, *rest: Any) -> None:
    torch.empty(gradient.numel() // TILE, device=gradient.device).view(len(gradient), -1, 1).sum(2)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace what needs data; return the list of the bytes sent to other processes by each exchange."""
    found: list[int] = []

    def start_exchange(received: Tensor, sent: Tensor, counts: list[int], sent_counts: list[int]) -> Any:
        found.append(sent.nbytes - sent_counts[0] * sent[:1].nbytes)
        return SimpleNamespace(wait=lambda: None)

    def draw(masks: list[LearnableMask], *rest: Any) -> list[Tensor]:
        return [torch.sigmoid(mask.tile_logits) for mask in masks]

    kernel = SimpleNamespace(forward=make_rows, backward=differentiate_rows)
    attention = lambda query, key, value, **rest: FlashAttention.apply(query, key, value)  # noqa: E731
    monkeypatch.setattr(exchange, "start_exchange", start_exchange)
    monkeypatch.setattr(exchange, "kernel_for", lambda *of: kernel)
    monkeypatch.setattr(learnable, "_draw", draw)
    monkeypatch.setattr(linear, "block_size", lambda device, learned: block_size("cuda", learned))
    monkeypatch.setitem(loss_chunks.CHUNK, "meta", loss_chunks.CHUNK["cuda"])
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *of, **options: None)
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)
    return found


def sharded(
    shape: Shape, method: str, processes: int, host: HostBytes | None
) -> tuple[nn.Module, dict[str, LearnableMask], dict[str, WeightRows]]:
    """Return a model without data, with the masks and rows of the first of several processes; see `build_masks`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = shape.model_dump(exclude={"gated_mlp", "fused_attention"})
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes), dtype=torch.bfloat16)
    masks, weights, exchanges = {}, {}, Exchanges()
    for number, (name, layer) in enumerate(prunable_linears(model).items()):
        (rows, columns), learned = layer.weight.shape, method == "patch-joint"
        sharding = shard_rows(rows, TILE, processes, 0, number)
        own = len(sharding.own)
        weights[name] = WeightRows(torch.empty(own, columns, dtype=torch.bfloat16), sharding)
        logits = torch.empty(6, own * columns // 4) if learned else None
        frozen = None if learned else torch.empty(rows, columns, dtype=torch.bool)
        tiles = torch.empty(rows // TILE, columns // TILE)
        sink = HostSink(host) if host else None
        masks[name] = LearnableMask(layer.weight.shape, logits, frozen, tiles, TILE, sharding, exchanges, sink)
    return model.eval().requires_grad_(False), masks, weights


def measured(
    shape: Shape, method: str, processes: int, sent: list[int], checkpointed: bool = True, offload: bool = False
) -> tuple[int, int]:
    """Return the peak bytes of a step, and those that a micro-batch sends, when the order of the layers is known."""
    host = HostBytes()
    with torch.device("meta"):
        model, masks, weights = sharded(shape, method, processes, host if offload else None)
        container = nn.ModuleList(masks.values())
        logits = [*container.parameters()]
        moments = [torch.empty_like(parameter) for parameter in logits if not offload for _ in range(2)]
        bits = [mask.bits for mask in masks.values() if mask.bits is not None]
        rows = [row.own for row in weights.values()]
        tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
    frozen = {id(layer.weight) for layer in prunable_linears(model).values()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in frozen]
    counters, sampling = [[(layer,) for layer in range(len(masks))]], Sampling(1.0, 1.0)
    begin = partial(begin_pass, [*masks.values()], sampling, sampling, *counters, processes * counters)
    held = [*rest, *model.buffers(), *logits, *moments, *bits, *rows]
    with attached(model, masks, weights), recomputed_blocks(model, checkpointed), PeakMemory(held, host) as memory:
        begin()
        frozen_output_layer(model, tokens)
        for _ in range(2):
            sent.clear()
            begin()
            loss = cross_entropy(model, tokens)
            loss = loss - sum(mask.density() - mask.kept_norm for mask in masks.values())
            loss.backward()
            del loss
        if offload:
            OffloadedAdamW(container, host).step()
    return memory.bytes, sum(sent)


@pytest.mark.parametrize(
    ("method", "processes", "offload"),
    [("patch-tile", 8, False), ("patch-joint", 16, False), ("patch-joint", 16, True)],
)
def test_plan_of_a_model_of_70b_weights(method: str, processes: int, offload: bool, sent: list[int]) -> None:
    """Every block after the second adds the same, so two sizes give that of all blocks."""
    few, more = (measured(shape_of(blocks), method, processes, sent, offload=offload)[0] for blocks in (2, 3))
    peak = few + (BLOCKS - 2) * (more - few)
    planned = learning_mb(shape_of(BLOCKS), method, 2, TOKENS, True, "cuda", processes, True, offload)
    assert planned == pytest.approx(peak / 1e6, rel=0.05)
    assert sum(sent) / 1e9 == pytest.approx(exchanged_gb(shape_of(3), 2, True, processes), rel=0.001)


def test_planned_exchange_without_recomputed_blocks(sent: list[int]) -> None:
    _, found = measured(shape_of(2), "patch-tile", 4, sent, checkpointed=False)
    assert found / 1e9 == pytest.approx(exchanged_gb(shape_of(2), 2, False, 4), rel=0.001)
