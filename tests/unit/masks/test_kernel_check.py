"""The self-test of the mask kernels: right kernels agree, and wrong ones are named."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patch.errors import InputError
from patch.masks.kernels import check, eager, kernel_for

CPU = torch.device("cpu")


def broken(**functions: Any) -> SimpleNamespace:
    """Return the kernel in plain PyTorch with other functions."""
    return SimpleNamespace(**{"__name__": "broken", "forward": eager.forward, "backward": eager.backward} | functions)


@pytest.mark.parametrize("kernel", [None, eager], ids=["chosen", "eager"])
def test_right_kernels_agree(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel:
        monkeypatch.setattr(check, "kernel_for", lambda device, dtype: kernel)
    name = (kernel or kernel_for(CPU, torch.float32)).__name__
    found = list(check.check_mask_kernels(CPU))
    assert not [one for one in found if one.failed]
    # Four layers with learned patterns and one with frozen ones in each dtype; two of the former have no tiles.
    assert Counter(one.kernel for one in found) == {
        f"{name}.forward": 2 * 10,
        f"{name}.backward": 2 * (2 * 3 + 2 * 2 + 2),
    }
    assert all(0 < one.error < one.tolerance / 5 for one in found if "float32" in one.case)


def test_another_seed_makes_other_layers() -> None:
    shapes = [{one.case.partition(",")[0] for one in check.check_mask_kernels(CPU, seed)} for seed in (0, 0, 1)]
    assert shapes[0] == shapes[1] != shapes[2]


def _forgets_a_row(layer: Any, first: int, masked: torch.Tensor) -> Any:
    norm = eager.forward(layer, first, masked)
    masked[-1] = layer.weight[-1]
    return norm


def _counts_nothing(layer: Any, first: int, masked: torch.Tensor) -> float:
    eager.forward(layer, first, masked)
    return 0.0


def _makes_no_number(layer: Any, first: int, masked: torch.Tensor) -> Any:
    norm = eager.forward(layer, first, masked)
    masked[0, 0] = float("nan")
    return norm


def _forgets_the_norm(layer: Any, first: int, gradient: Any, masked: Any, norm_gradient: Any, *others: Any) -> None:
    eager.backward(layer, first, gradient, masked, 0 * norm_gradient, *others)


@pytest.mark.parametrize(
    ("functions", "kernel", "output"),
    [
        ({"forward": _forgets_a_row}, "broken.forward", "masked weights"),
        ({"forward": _counts_nothing}, "broken.forward", "squared norm"),
        ({"forward": _makes_no_number}, "broken.forward", "masked weights"),
        ({"backward": _forgets_the_norm}, "broken.backward", "gradient of the logits"),
        ({"backward": lambda *arguments: None}, "broken.backward", "gradient of the tiles"),
    ],
)
def test_a_wrong_kernel_is_named(
    functions: dict[str, Any], kernel: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "kernel_for", lambda device, dtype: broken(**functions))
    failed = [one for one in check.check_mask_kernels(CPU) if one.failed]
    assert {one.kernel for one in failed} == {kernel}
    assert {one.case.rpartition(": ")[2] for one in failed} >= {output}


def test_a_kernel_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(check, "kernel_for", lambda device, dtype: broken(backward=fails))
    with pytest.raises(
        InputError, match=r"broken\.backward fails: \d+x\d+, float32, .*RuntimeError: an illegal memory"
    ):
        list(check.check_mask_kernels(CPU))
