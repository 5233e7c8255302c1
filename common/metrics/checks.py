"""What every metric asks of its input; a violation is a `UserError` of one line."""

from __future__ import annotations

import numpy as np

from common.errors import UserError

UNKNOWN = -1


def labels(
    values, name: str, *, length: int | None = None, lowest: int = UNKNOWN, classes: int | None = None
):
    """Return `values` as an int64 array (N,), or raise when they are not labels in lowest..classes - 1."""
    array = np.asarray(values)
    if array.ndim != 1 or (length is not None and len(array) != length):
        expected = "one dimension" if length is None else f"shape ({length},)"
        raise UserError(f"{name} must have {expected}, got shape {array.shape}")
    whole = np.issubdtype(array.dtype, np.integer) or (
        np.issubdtype(array.dtype, np.floating) and bool(np.all(np.mod(array, 1) == 0))
    )
    if array.size and not whole:
        raise UserError(f"{name} must hold whole numbers, got {array.dtype}")
    array = array.astype(np.int64)
    if array.size and (array.min() < lowest or (classes is not None and array.max() >= classes)):
        highest = "" if classes is None else f"..{classes - 1}"
        raise UserError(
            f"{name} must lie in {lowest}{highest} (-1 = unknown), got {int(array.min())}..{int(array.max())}"
        )
    return array


def scores(values, name: str = "unknown_score", *, length: int | None = None) -> np.ndarray:
    """Return `values` as a finite float64 array (N,)."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or (length is not None and len(array) != length):
        expected = "one dimension" if length is None else f"shape ({length},)"
        raise UserError(f"{name} must have {expected}, got shape {array.shape}")
    bad = ~np.isfinite(array)
    if bad.any():
        raise UserError(
            f"{name}: {bad.sum()} of {len(array)} values are NaN or infinite (first: {bad.argmax()})"
        )
    return array


def matrix(values, name: str, *, length: int, columns: int | None = None) -> np.ndarray:
    """Return `values` as a finite float64 array (length, columns)."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or len(array) != length or (columns is not None and array.shape[1] != columns):
        raise UserError(f"{name} must have shape ({length}, {columns or 'K'}), got {array.shape}")
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise UserError(
            f"{name}: {int(bad.sum())} of {length} rows hold NaN or infinity (first: row {int(bad.argmax())})"
        )
    return array


def sides(target, unknown_score) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of the known and of the unknown samples, each sorted ascending."""
    target = labels(target, "target")
    unknown_score = scores(unknown_score, length=len(target))
    return np.sort(unknown_score[target >= 0]), np.sort(unknown_score[target == UNKNOWN])
