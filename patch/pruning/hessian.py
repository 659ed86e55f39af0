"""Cholesky factor of the inverse Hessian of a layer, for SparseGPT and Thanos, and the cache of a layer's factors."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from patch.calibration.input_statistics import InputStatistics
from patch.errors import InputError

_ROWS, _COLUMNS = 128, 256


# Cache of the last factor, since layers with one input follow each other; it lives as long as its statistics.
_latest: WeakKeyDictionary[InputStatistics, tuple[Hashable, tuple[Tensor, Tensor]]] = WeakKeyDictionary()


def cached(
    statistics: InputStatistics, key: Hashable, make: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return ``make()`` from a cache for successive layers with the same statistics object and ``key``."""
    found = _latest.get(statistics)
    if found is None or found[0] != key:
        _latest.clear()
        found = _latest[statistics] = (key, make())
    return found[1]


def shared_factor(statistics: InputStatistics, damp: float, method: str) -> tuple[Tensor, Tensor]:
    """Return `inverse_factor` from a cache for successive layers with the same statistics object."""
    return cached(statistics, damp, lambda: inverse_factor(statistics, damp, method))


def inverse_factor(statistics: InputStatistics, damp: float, method: str) -> tuple[Tensor, Tensor]:
    """Return the upper Cholesky factor of the inverse of the damped Hessian `H = 2 / N * X^T X`.

    With `H = R R^T` and R upper triangular, let `U = inverse(R)`. Then `inverse(H) = U^T U`, and for any column i
    `inverse(H[i:, i:]) = U[i:, i:]^T U[i:, i:]`. This takes one factorization and one triangular inverse. The usual way
    through `inverse(H)` takes one more of each and loses twice as many digits.

    Args:
        statistics: statistics of the layer's input, with the Gram matrix; not changed.
        damp: fraction of the mean diagonal of H that is added to its diagonal.
        method: method whose setting the error names.

    Returns:
        U `[in, in]` fp32, and the dead columns `[in]` bool, whose input was always zero. H gets a one on their
        diagonal, and the pruning method sets their weights to zero.

    Raises:
        InputError: H is not finite, or not positive definite with damping; the message names the setting to raise.
    """
    assert statistics.gram is not None
    hessian = _reversed(statistics.gram, torch.float64).mul_(2 / statistics.sequences)
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal.masked_fill_(dead, 1)
    mean = diagonal.mean()
    diagonal.add_(damp * mean)
    # LAPACK works in place on column-major matrices; a transposed symmetric matrix is one.
    lower = hessian.mT
    failed = torch.empty((), dtype=torch.int32, device=hessian.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    # Single precision suffices from here, since R has the square root of H's condition number.
    factor = _reversed(hessian, torch.float32)
    del hessian, lower, diagonal
    _invert_lower(factor)
    finite = [rows.isfinite().all() for rows in factor.split(_ROWS)]
    # An infinite H has the finite inverse zero. The host waits for a GPU once to read all conditions.
    if not torch.stack([*finite, mean.isfinite(), failed == 0]).all():
        raise not_positive_definite(method, len(factor), damp)
    return factor.mT, dead.flip(0)


def not_positive_definite(method: str, inputs: int, damp: float) -> InputError:
    """Return the error of ``method`` for a damped Hessian that is not positive definite."""
    return InputError(
        f"{method}: the Hessian of {inputs} inputs is not positive definite with damp {damp}; "
        f"raise `pruning.{method}.damp`"
    )


def _reversed(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy with reversed rows and columns, which turns Cholesky's lower factor into an upper one."""
    size = len(matrix)
    result = torch.empty(size, size, dtype=dtype, device=matrix.device)
    for start in range(0, size, _ROWS):
        rows = matrix[start : start + _ROWS].flip(0, 1)
        result[size - start - len(rows) : size - start] = rows
    return result


def _invert_lower(lower: Tensor) -> None:
    """Invert a lower triangular matrix `[n, n]` in place, by blocks of rows from the top."""
    for start in range(0, len(lower), _ROWS):
        stop = min(start + _ROWS, len(lower))
        corner = lower[start:stop, start:stop]
        unit = torch.eye(stop - start, dtype=lower.dtype, device=lower.device)
        corner.copy_(torch.linalg.solve_triangular(corner, unit, upper=False))
        # The part left of the corner is `-inverse(corner) @ left @ inverse(above)`; the inverse above is complete.
        left = torch.mm(corner, lower[start:stop, :start]).neg_()
        for column in range(0, start, _COLUMNS):
            columns = slice(column, min(column + _COLUMNS, start))
            torch.mm(left[:, column:], lower[column:start, columns], out=lower[start:stop, columns])
