"""Access of GPU kernels to groups of four neighbouring weights."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_four(values, index, inside):  # noqa: ANN001, ANN202
    """Load the four neighbours of each group with one access, and return them position by position, as fp32."""
    pointers = values + 4 * index[:, None] + tl.arange(0, 4)[None, :]
    four = tl.load(pointers, mask=inside[:, None], other=0).to(tl.float32)
    even, odd = tl.split(tl.reshape(four, (index.shape[0], 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def store_four(values, index, inside, x0, x1, x2, x3):  # noqa: ANN001, ANN202
    """Store the four neighbours of each group with one access."""
    four = tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (index.shape[0], 4))
    pointers = values + 4 * index[:, None] + tl.arange(0, 4)[None, :]
    tl.store(pointers, four.to(values.dtype.element_ty), mask=inside[:, None])
