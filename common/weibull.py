r"""Weibull fit of the largest values of a sample: libmr's estimator, for many classes at once, in float64.

The k largest values d are moved so that the smallest becomes T (`translation`), x = d - small + T, and a
two-parameter Weibull distribution is fitted to x by maximum likelihood. With y = ln x and u = (y - max y) /
(max y - min y) one equation in one unknown is left,

    g(s) = s + mean(u) - sum(u e^(u/s)) / sum(e^(u/s)) = 0,

whose root gives shape = 1 / (range s) and ln scale = range s ln(mean e^(u/s)) + max y. g increases strictly
(slope at least 1), so Newton's iteration finds the only root, to the last digits; libmr stops earlier and
differs from the exact optimum by up to 5e-6 relative.

The translation is part of the model: libmr has used 1 since 2017 and 10000 before; the fits are not alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from common.errors import UserError

BACKENDS = ("newton", "libmr")
_SMALLEST_RANGE = 1e-12  # of y; below it the tail is constant up to rounding and its shape is noise
_ITERATIONS = 100


@dataclass(frozen=True)
class Weibull:
    """Fitted tails of C classes: arrays (C,) of scale, shape and smallest tail value, with one translation.

    `sign` is +1 for a tail of large values and -1 for a tail of small ones (values are negated first).
    """

    scale: np.ndarray
    shape: np.ndarray
    small: np.ndarray
    translation: float = 1.0
    sign: int = 1

    def cdf(self, values) -> np.ndarray:
        r"""Share of the tail distribution below each value: \(1 - \exp(-(z / scale)^{shape})\), z = d -
        small + T.

        Parameters
        ----------
        values : float array (..., C)
            One column per class.

        Returns
        -------
        float64 array (..., C)
            In [0, 1], never falls with larger values; 0 where z <= 0, 1 at infinity, NaN stays NaN.

        Notes
        -----
        libmr's `w_score`. Written with expm1, so small probabilities keep their relative precision.

        Examples
        --------
        >>> fitted = Weibull(np.array([3.0]), np.array([2.0]), np.array([4.0]))
        >>> fitted.cdf([[3.0], [4.0], [6.0]]).round(6).ravel().tolist()
        [0.0, 0.105161, 0.632121]
        """
        power = self._log_power(values)
        with np.errstate(over="ignore"):
            np.exp(power, out=power)
        np.negative(power, out=power)
        np.expm1(power, out=power)
        return np.negative(power, out=power)

    def pdf(self, values) -> np.ndarray:
        """Density of the tail distribution at each value; shapes as in `cdf`, 0 where z <= 0.

        Examples
        --------
        >>> fitted = Weibull(np.array([3.0]), np.array([2.0]), np.array([4.0]))
        >>> fitted.pdf([[2.0], [6.0]]).round(6).ravel().tolist()
        [0.0, 0.245253]
        """
        distance = self._distance(values)
        log_power = self._log_power(values)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            density = np.exp(log_power - np.exp(log_power)) * self.shape / distance
        # At infinity the formula is 0 * infinity; the density there is 0.
        return np.where((distance <= 0) | np.isposinf(distance), 0.0, density)

    def inverse(self, probability) -> np.ndarray:
        """Value with the given `cdf`, per class: probability (..., C) or scalar in [0, 1].

        Examples
        --------
        >>> fitted = Weibull(np.array([3.0]), np.array([2.0]), np.array([4.0]))
        >>> fitted.inverse(0.632121).round(4).tolist()
        [6.0]
        """
        probability = np.asarray(probability, dtype=np.float64)
        if not np.all((probability >= 0) & (probability <= 1)):
            raise UserError("weibull: a probability must lie between 0 and 1")
        with np.errstate(divide="ignore"):
            distance = self.scale * (-np.log1p(-probability)) ** (1 / self.shape)
        return self.sign * (distance - self.translation + self.small)

    def _distance(self, values) -> np.ndarray:
        return self.sign * np.asarray(values, dtype=np.float64) - self.small + self.translation

    def _log_power(self, values) -> np.ndarray:
        """Return ln((z / scale)^shape), a new array; -inf where z <= 0."""
        power = np.atleast_1d(self._distance(values))
        np.maximum(power, 0.0, out=power)
        with np.errstate(divide="ignore"):
            np.log(power, out=power)
        power -= np.log(self.scale)
        power *= self.shape
        return power


def fit_tails(
    tails, counts=None, translation: float = 1.0, backend: str = "newton", names: Sequence[str] | None = None
) -> Weibull:
    """Fit one Weibull distribution per row.

    Parameters
    ----------
    tails : float array (C, k)
        The largest values of each class, in any order.
    counts : int array (C,), optional
        Row c has counts[c] values in its first columns; the rest of the row is ignored. Default: all k.
    translation : float, default 1
        T > 0, where the smallest value of a tail is moved to.
    backend : {"newton", "libmr"}
        Own iteration, or the library where it is installed (whole-numbered translation only).
    names : sequence of str, optional
        Class names for error messages.

    Returns
    -------
    Weibull
        Arrays (C,).

    Raises
    ------
    UserError
        For a tail that is constant (up to 1e-12 of ln x), shorter than 2, or not finite: it names the
        classes.

    Examples
    --------
    >>> fitted = fit_tails([[0.25, 0.4, 0.5, 0.75], [1.0, 2.0, 2.5, 4.0]])
    >>> fitted.scale.round(4).tolist(), fitted.shape.round(4).tolist()
    ([1.3055, 2.6899], [7.213, 2.38])
    """
    names = [f"class {index}" for index in range(len(tails))] if names is None else names
    tails, counts = _checked(tails, counts, translation, backend, names)
    used = np.arange(tails.shape[1]) < counts[:, None]
    small = np.where(used, tails, np.inf).min(axis=1)
    moved = np.where(used, tails - small[:, None] + translation, translation)
    log_moved = np.log(moved)
    top = log_moved.max(axis=1)
    spread = top - np.log(translation)
    _refuse(
        spread < _SMALLEST_RANGE, names, "all values of the tail are equal; take a larger tail size", small
    )
    if backend == "libmr":
        scale, shape = _fit_libmr(tails, counts, translation, names)
    else:
        scaled = np.where(used, (log_moved - top[:, None]) / spread[:, None], 0.0)
        root = _root(scaled, used, counts, names)
        mean_weight = np.where(used, np.exp(scaled / root[:, None]), 0.0).sum(axis=1) / counts
        scale, shape = np.exp(spread * root * np.log(mean_weight) + top), 1 / (spread * root)
    return Weibull(scale, shape, small, float(translation))


def fit_high(
    values, tail_size: int, translation: float = 1.0, drop: int = 0, backend: str = "newton"
) -> Weibull:
    """Fit the `tail_size` largest of `values` (N,) without the `drop` largest: libmr's `fit_high`.

    Examples
    --------
    >>> fitted = fit_high([0.1, 0.9, 0.25, 0.4, 0.5, 0.75], tail_size=4, drop=1)
    >>> fitted.small.tolist(), fitted.scale.round(4).tolist()
    ([0.25], [1.3055])
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise UserError(
            f"weibull: values must be one row of finite numbers (no NaN, no inf), got shape {values.shape}"
        )
    if tail_size < 2 or drop < 0:
        raise UserError(f"weibull: tail size must be at least 2, drop at least 0; got {tail_size}, {drop}")
    if tail_size + drop > len(values):
        raise UserError(f"weibull: tail size {tail_size} + drop {drop} exceed the {len(values)} values")
    tail = np.sort(values)[::-1][drop : drop + tail_size]
    return fit_tails(tail[None], translation=translation, backend=backend)


def fit_low(
    values, tail_size: int, translation: float = 1.0, drop: int = 0, backend: str = "newton"
) -> Weibull:
    """Fit the `tail_size` smallest of `values` (N,): `fit_high` of the negated values, with sign -1.

    Examples
    --------
    >>> fitted = fit_low([3.0, 1.0, 2.0, 5.0], tail_size=3)
    >>> fitted.sign, fitted.cdf([[0.0], [9.0]]).round(4).ravel().tolist()
    (-1, [0.9916, 0.0])
    """
    fitted = fit_high(-np.asarray(values, dtype=np.float64), tail_size, translation, drop, backend)
    return Weibull(fitted.scale, fitted.shape, fitted.small, fitted.translation, sign=-1)


def parameter_intervals(tail, fitted: Weibull, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Confidence intervals of scale and shape of one fitted tail, each (low, high).

    Normal approximation on ln(scale) and ln(1 / shape) from the observed information at the optimum. libmr
    uses the same approximation, but its default alpha of 5.0 (meant: .05) makes its intervals 2.6 times as
    wide.

    Examples
    --------
    >>> tail = [0.25, 0.4, 0.5, 0.75]
    >>> scale, shape = parameter_intervals(tail, fit_tails([tail]))
    >>> scale.round(4).tolist(), shape.round(4).tolist()
    ([1.1303, 1.5079], [3.406, 15.2752])
    """
    standard = fitted._log_power(tail)  # (y - ln scale) / (1 / shape), as in the literature on extreme values
    power = np.exp(standard)
    information = np.array(
        [
            [power.sum(), (standard * power).sum()],
            [(standard * power).sum(), len(standard) + (standard**2 * power).sum()],
        ]
    )
    # Rows: ln scale in units of 1 / shape, and ln(1 / shape).
    error = np.sqrt(np.linalg.inv(information).diagonal()) * np.array([1 / fitted.shape[0], 1.0])
    half = np.exp(special.ndtri((1 + level) / 2) * error[:, None] * [-1, 1])
    return fitted.scale * half[0], fitted.shape * half[1]


def _checked(tails, counts, translation: float, backend: str, names: Sequence[str]):
    """Return tails (C, k) and counts (C,) as arrays, or raise what `fit_tails` promises."""
    tails = np.array(tails, dtype=np.float64, ndmin=2)
    counts = np.full(len(tails), tails.shape[1]) if counts is None else np.asarray(counts, dtype=np.int64)
    if backend not in BACKENDS:
        raise UserError(f"weibull: backend must be {' or '.join(BACKENDS)}, got {backend!r}")
    if not (np.isfinite(translation) and translation > 0):
        raise UserError(f"weibull: the translation must be above 0 and finite, got {translation}")
    if counts.shape != (len(tails),) or (counts > tails.shape[1]).any():
        raise UserError(f"weibull: counts must be {len(tails)} numbers up to {tails.shape[1]}")
    _refuse(counts < 2, names, "a tail needs at least 2 values", counts)
    used = np.where(np.arange(tails.shape[1]) < counts[:, None], tails, 0.0)
    _refuse(~np.isfinite(used).all(axis=1), names, "the tail holds NaN or infinity")
    return tails, counts


def _root(scaled: np.ndarray, used: np.ndarray, counts: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the root of g for every row of `scaled` (C, k), whose unused entries are 0."""
    mean = scaled.sum(axis=1) / counts
    variance = np.where(used, (scaled - mean[:, None]) ** 2, 0.0).sum(axis=1) / (counts - 1)
    root = np.sqrt(6.0 * variance) / np.pi  # the moment estimate of a Gumbel scale
    active = np.arange(len(root))
    for _ in range(_ITERATIONS):
        rows, current = scaled[active], root[active]
        weight = np.where(used[active], np.exp(rows / current[:, None]), 0.0)
        weight /= weight.sum(axis=1, keepdims=True)
        centre = (weight * rows).sum(axis=1)
        spread = (weight * (rows - centre[:, None]) ** 2).sum(axis=1)
        step = (current + mean[active] - centre) / (1 + spread / current**2)
        moved = np.where(step < current, current - step, current / 2)
        root[active] = moved
        # Convergence is quadratic: after a step this small the rest is rounding.
        active = active[np.abs(moved - current) > 1e-10 * moved]
        if not len(active):
            break
    _refuse(np.isin(np.arange(len(root)), active), names, "the fit does not converge")
    return root


def _fit_libmr(tails, counts, translation, names) -> tuple[np.ndarray, np.ndarray]:
    try:
        import libmr
    except ImportError as error:
        raise UserError(
            "weibull: backend libmr is not installed: pip install numpy cython setuptools wheel, then"
            " pip install --no-build-isolation libmr"
        ) from error
    if translation != int(translation):
        raise UserError(f"weibull: backend libmr takes whole-numbered translations, got {translation}")
    scale, shape = np.empty(len(tails)), np.empty(len(tails))
    for row, (tail, count) in enumerate(zip(tails, counts)):  # the library takes one class at a time
        model = libmr.MR(translate_amount=int(translation))
        model.fit_high(np.ascontiguousarray(tail[:count]), int(count))
        if not model.is_valid:
            raise UserError(f"weibull: libmr finds no fit for {names[row]}")
        scale[row], shape[row] = model.get_params()[:2]
    return scale, shape


def _refuse(bad: np.ndarray, names: Sequence[str], reason: str, shown=None) -> None:
    if bad.any():
        listed = [f"{names[i]}" + ("" if shown is None else f" ({shown[i]:g})") for i in np.flatnonzero(bad)]
        more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
        raise UserError(f"weibull: {reason}: {', '.join(listed[:5])}{more}")
