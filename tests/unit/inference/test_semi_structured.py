"""Sparse tensor cores through PyTorch: conditions, and products on a GPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patch.inference.backends import semi_structured
from patch.inference.packed import PackedWeight, pack, unpack


def packed_weight(out: int, columns: int, fraction: float = 0.0, dtype: torch.dtype = torch.float16) -> PackedWeight:
    """Return a random weight with tiles of 32, about a fraction of them dense."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(out // 32, columns // 32, generator=generator) < fraction
    kept = torch.rand(out, columns // 4, 4, generator=generator).argsort(-1) < 2
    mask = kept.view(out, columns) | dense.repeat_interleave(32, 0).repeat_interleave(32, 1)
    return pack(torch.randn(out, columns, generator=generator).to(dtype), mask, dense, 32)


def test_a_cpu_has_none() -> None:
    assert "not on cpu" in (semi_structured.supports(packed_weight(64, 64), torch.zeros(1, 64).half()) or "")


# Changes of a GPU, a weight and inputs that fit, and the expected reason.
REASONS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"there": torch.device("cpu")}, "inputs on cpu"),
    ({"capability": (7, 5)}, "no sparse tensor cores"),
    ({"dtype": torch.float32}, "a weight in torch.float32"),
    ({"inputs": torch.float32}, "inputs in torch.float32"),
    ({"scales": torch.ones(64, 1)}, "a quantized weight"),
    ({"shape": (48, 64)}, "[48, 64]"),
    ({"shape": (64, 96)}, "[64, 96]"),
    ({"stored": 64 * 64 // 2 + 512}, "dense tiles"),
    ({"grad": True}, "backward"),
    ({"missing": "nothing works"}, "nothing works"),
]


@pytest.mark.parametrize(("changes", "reason"), REASONS)
def test_the_reason_is_named(changes: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, half, shape = torch.device("cuda", 0), torch.float16, changes.get("shape", (64, 64))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: changes.get("capability", (9, 0)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(semi_structured, "_format", lambda _: (None, changes.get("missing")))
    stored = changes.get("stored", shape[0] * shape[1] // 2)
    values = SimpleNamespace(device=gpu, dtype=changes.get("dtype", half), numel=lambda: stored)
    packed = SimpleNamespace(shape=shape, values=values, scales=changes.get("scales"))
    inputs = SimpleNamespace(device=changes.get("there", gpu), dtype=changes.get("inputs", values.dtype))
    inputs.requires_grad = changes.get("grad", False)
    found = semi_structured.supports(packed, inputs)  # type: ignore[arg-type]
    assert found is None if reason is None else reason in (found or ""), found


def test_a_weight_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []
    monkeypatch.setattr(semi_structured, "_format", lambda _: (None, None))
    monkeypatch.setattr(semi_structured, "_converted", lambda weight, _: converted.append(weight) or weight)
    packed = packed_weight(64, 128, dtype=torch.float32)
    whole = torch.randn(6, 128)
    for inputs in (whole, whole[::2], whole[:0]):
        expected = inputs @ unpack(packed).T
        torch.testing.assert_close(semi_structured.multiply(packed, inputs), expected)
    assert len(converted) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 130])
def test_a_gpu_multiplies_by_the_unpacked_weight(dtype: torch.dtype, rows: int) -> None:
    packed = packed_weight(256, 512, dtype=dtype).to("cuda")
    inputs = torch.randn(rows, 512, device="cuda").to(dtype)
    reason = semi_structured.supports(packed, inputs)
    if reason:
        pytest.skip(reason)
    expected = inputs.double() @ unpack(packed).double().T
    actual = semi_structured.multiply(packed, inputs)
    tolerance = 1e-2 * float(expected.abs().max())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)
