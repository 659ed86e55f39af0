"""The self-test of the packed products: right products agree, and wrong ones are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from patch.errors import InputError
from patch.inference.backends import check, unpacked
from patch.inference.packed import PackedWeight

CPU = torch.device("cpu")


@pytest.mark.parametrize("backend", [None, unpacked], ids=["chosen", "unpacked"])
def test_right_products_agree(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend:
        monkeypatch.setattr(check, "backend_for", lambda packed, inputs: backend.multiply)
    found = list(check.check_packed_products(CPU))
    assert not [one for one in found if one.failed]
    cases = {tuple(one.case.split(", ")[1:]) for one in found}
    assert len(cases) == len(found) == 3 * 3 * 3
    assert ("2:4", "bfloat16", "200 rows") in cases and ("hybrid", "4 bits", "float16", "1 rows") in cases


@pytest.mark.parametrize(
    ("where", "case"),
    [
        (lambda packed, inputs: len(inputs) > 64, "200 rows"),
        (lambda packed, inputs: inputs.dtype == torch.float16, "float16"),
        (lambda packed, inputs: packed.scales is not None, "4 bits"),
        (lambda packed, inputs: not packed.dense.any(), "2:4"),
    ],
)
def test_a_wrong_product_is_named(where: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def multiply(packed: PackedWeight, inputs: Tensor) -> Tensor:
        output = unpacked.multiply(packed, inputs)
        output[0, 0] += 30 * where(packed, inputs)
        return output

    monkeypatch.setattr(check, "backend_for", lambda packed, inputs: multiply)
    failed = [one for one in check.check_packed_products(CPU) if one.failed]
    assert len(failed) == 9 and all(case in one.case for one in failed)
    assert {one.kernel for one in failed} == {f"{__name__}.multiply"}


def test_a_product_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(packed: PackedWeight, inputs: Tensor) -> Tensor:
        raise RuntimeError("out of registers")

    monkeypatch.setattr(check, "backend_for", lambda packed, inputs: fails)
    with pytest.raises(InputError, match=r"\.fails fails: \d+x\d+, hybrid, float32, 1 rows: .*out of registers"):
        list(check.check_packed_products(CPU))
