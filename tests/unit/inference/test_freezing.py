"""Products of the frozen output layer with slices of hidden states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from patch.inference.freezing import freeze

from ...conftest import VOCABULARY


class Products(TorchDispatchMode):
    """Recorder of the products whose result has a number for each token of the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "linear") and result.shape[-1] == VOCABULARY:
            self.names.append(func.overloadpacket.__name__)
        return result


@pytest.mark.parametrize("batch", [1, 3])
def test_the_weight_of_the_output_layer_is_not_copied_for_each_sequence(batch: int, tiny_model: Callable) -> None:
    model, tokens = tiny_model(), torch.arange(batch * 8).view(batch, 8)
    with torch.no_grad():
        with Products() as before:
            expected = model(tokens, logits_to_keep=2).logits
        with Products() as after:
            found = freeze(model)(tokens, logits_to_keep=2).logits
    # PyTorch's choice for a slice and a frozen weight, which is slow if the vocabulary is large.
    assert before.names == ["bmm"]
    assert after.names == ["mm"]
    torch.testing.assert_close(found, expected)


def test_freezing_again_changes_nothing(tiny_model: Callable) -> None:
    model = freeze(freeze(tiny_model()))
    assert len(model.get_output_embeddings()._forward_pre_hooks) == 1
    assert not any(parameter.requires_grad for parameter in model.parameters())
