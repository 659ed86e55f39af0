"""The self-test of the kernels on a GPU."""

from __future__ import annotations

import pytest

from patch.pipeline.stages.self_test import self_test


@pytest.mark.gpu
def test_the_kernels_of_a_gpu_agree_with_plain_pytorch() -> None:
    found = self_test("cuda")
    assert {"patch.masks.kernels.fused.forward", "patch.inference.backends.fused.multiply"} <= set(
        found["largest_errors"]
    )
