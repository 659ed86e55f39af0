"""The inverse of a layer's Hessian, as a Cholesky factor: what SparseGPT and Thanos make up for errors with."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from patch.calibration.statistics import InputStatistics
from patch.errors import InputError

_ROWS, _COLUMNS = 128, 256


# The factor that was made last, while its statistics are there: layers of one input come one after the other.
_latest: WeakKeyDictionary[InputStatistics, tuple[float, tuple[Tensor, Tensor]]] = WeakKeyDictionary()


def shared_factor(statistics: InputStatistics, damp: float, method: str) -> tuple[Tensor, Tensor]:
    """`inverse_factor`, made once for layers that follow each other and have the same statistics object."""
    found = _latest.get(statistics)
    if found is None or found[0] != damp:
        _latest.clear()
        found = _latest[statistics] = (damp, inverse_factor(statistics, damp, method))
    return found[1]


def inverse_factor(statistics: InputStatistics, damp: float, method: str) -> tuple[Tensor, Tensor]:
    """Upper Cholesky factor of the inverse of the damped Hessian `H = 2 / N * X^T X`.

    With `H = R R^T` and R upper triangular, `U = inverse(R)`: then `inverse(H) = U^T U`, and for any column i
    `inverse(H[i:, i:]) = U[i:, i:]^T U[i:, i:]`. That is one factorization and one triangular inverse. The usual way
    over `inverse(H)` takes a factorization and an inverse more, and loses twice as many digits.

    Args:
        statistics: of the layer's input, with the Gram matrix; not changed.
        damp: share of the mean diagonal of H that is added to its diagonal.
        method: whose setting the error names.

    Returns:
        U `[in, in]` fp32, and the dead columns `[in]` bool: their input was always zero. H has a one on their
        diagonal, and whoever prunes sets their weights to zero.

    Raises:
        InputError: H is not positive definite even with the damping, or not finite; says what to raise.
    """
    assert statistics.gram is not None
    hessian = _reversed(statistics.gram, torch.float64).mul_(2 / statistics.sequences)
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal.masked_fill_(dead, 1)
    mean = diagonal.mean()
    diagonal.add_(damp * mean)
    # LAPACK works in place on matrices in the order of columns; transposed, a symmetric matrix is one.
    lower = hessian.mT
    failed = torch.empty((), dtype=torch.int32, device=hessian.device)
    torch.linalg.cholesky_ex(lower, out=(lower, failed))
    # Single precision is enough from here: R is as far from singular as the root of H is.
    factor = _reversed(hessian, torch.float32)
    del hessian, lower, diagonal
    _invert_lower(factor)
    # An infinite H has a finite inverse: zero.
    if failed or not mean.isfinite() or not _is_finite(factor):
        raise not_positive_definite(method, len(factor), damp)
    return factor.mT, dead.flip(0)


def not_positive_definite(method: str, inputs: int, damp: float) -> InputError:
    """What ``method`` says where the damped Hessian of a layer with so many inputs cannot be worked with."""
    return InputError(
        f"{method}: the Hessian of {inputs} inputs is not positive definite with damp {damp}; "
        f"raise `pruning.{method}.damp`"
    )


def _reversed(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy with rows and columns in reverse. Cholesky's lower factor becomes upper by it."""
    size = len(matrix)
    result = torch.empty(size, size, dtype=dtype, device=matrix.device)
    for start in range(0, size, _ROWS):
        rows = matrix[start : start + _ROWS].flip(0, 1)
        result[size - start - len(rows) : size - start] = rows
    return result


def _invert_lower(lower: Tensor) -> None:
    """Invert a lower triangular matrix `[n, n]` in place, a block of rows after the other from the top."""
    for start in range(0, len(lower), _ROWS):
        stop = min(start + _ROWS, len(lower))
        corner = lower[start:stop, start:stop]
        unit = torch.eye(stop - start, dtype=lower.dtype, device=lower.device)
        corner.copy_(torch.linalg.solve_triangular(corner, unit, upper=False))
        # Left of the corner `-inverse(corner) @ left @ inverse(above)`, where the inverse above is there already.
        left = torch.mm(corner, lower[start:stop, :start]).neg_()
        for column in range(0, start, _COLUMNS):
            columns = slice(column, min(column + _COLUMNS, start))
            torch.mm(left[:, column:], lower[column:start, columns], out=lower[start:stop, columns])


def _is_finite(matrix: Tensor) -> bool:
    return all(bool(rows.isfinite().all()) for rows in matrix.split(_ROWS))
