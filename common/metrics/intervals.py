"""How sure a number is: bootstrap over samples, Student's t over splits or seeds, paired differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

from common.errors import UserError
from common.metrics.checks import scores, sides


class Interval(NamedTuple):
    """An estimate with the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays,
    groups=None,
    repeats: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    r"""Percentile bootstrap: the \((1 \mp level)/2\) quantiles of `statistic` on resampled samples.

    Parameters
    ----------
    statistic : callable
        Takes the arrays in the order given and returns a float, for example `common.metrics.auroc`.
    *arrays : arrays (N, ...)
        Resampled together along the first axis, so a difference of two scores on the same images is paired.
    groups : int array (N,), optional
        Samples are drawn within each group, so its size stays fixed; default: `arrays[0] >= 0` when that is
        an integer array (known and unknown), else one group.
    repeats, level, seed
        Number of resamples, coverage, and seed of the draws; the same seed gives the same interval.

    Returns
    -------
    Interval
        (estimate on all samples, low, high); bounds are NaN where the statistic is NaN.

    Notes
    -----
    It covers the chance of the test images only, not of training: for that use `mean_interval` over seeds.
    Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.

    Examples
    --------
    >>> from common.metrics import auroc
    >>> target = np.repeat([0, -1], 50)
    >>> score = np.r_[np.linspace(0, 1, 50), np.linspace(0.5, 1.5, 50)]
    >>> interval = bootstrap_interval(auroc, target, score, repeats=200)
    >>> interval.low < interval.estimate < interval.high
    True
    >>> weaker = np.r_[np.linspace(0, 1, 50), np.linspace(0.2, 1.2, 50)]
    >>> gain = lambda t, a, b: auroc(t, a) - auroc(t, b)
    >>> paired = bootstrap_interval(gain, target, score, weaker, repeats=200)
    >>> paired.low > 0
    True
    """
    arrays = tuple(np.asarray(array) for array in arrays)
    if not arrays or len({len(array) for array in arrays}) != 1:
        raise UserError(f"bootstrap: arrays must have one length, got {[len(array) for array in arrays]}")
    _check_level(level)
    if groups is None:
        groups = arrays[0] >= 0 if np.issubdtype(arrays[0].dtype, np.integer) else np.zeros(len(arrays[0]))
    members = [np.flatnonzero(np.asarray(groups) == group) for group in np.unique(groups)]
    generator = np.random.default_rng(seed)
    values = np.empty(repeats)
    for repeat in range(repeats):  # the statistic is any function, so resamples come one at a time
        drawn = np.concatenate([generator.choice(member, len(member)) for member in members])
        values[repeat] = statistic(*(array[drawn] for array in arrays))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(*arrays)), float(low), float(high))


def mean_interval(values, level: float = 0.95, groups=None) -> Interval:
    r"""Mean over splits or seeds with Student's interval: \(\bar x \pm t_{n-1}\, s / \sqrt n\).

    Parameters
    ----------
    values : float array (n,)
        One value per split or seed.
    level : float, default 0.95
        Coverage.
    groups : sequence (n,), optional
        Values of one group are one and the same experiment (a published list of splits may hold a split twice): they
        count in the mean as often as they come, with share w_g, but are one observation of the spread. With G groups
        the half width is \(t_{G-1}\, s \sqrt{\sum_g w_g^2}\), s the deviation of the G values.

    Returns
    -------
    Interval
        (mean, low, high); bounds are NaN for a single value or group, all NaN for none.

    Examples
    --------
    >>> tuple(round(value, 3) for value in mean_interval([0.90, 0.92, 0.91, 0.93, 0.89]))
    (0.91, 0.89, 0.93)
    """
    values = scores(values, "values")
    _check_level(level)
    if len(values) < 2:
        mean = float(values[0]) if len(values) else float("nan")
        return Interval(mean, float("nan"), float("nan"))
    mean = float(values.mean())
    share_of_variance = 1 / len(values)
    if groups is not None:
        _, first, sizes = np.unique([repr(group) for group in groups], return_index=True, return_counts=True)
        share_of_variance = float(((sizes / sizes.sum()) ** 2).sum())
        values = values[first]
        if len(values) < 2:
            return Interval(mean, float("nan"), float("nan"))
    half = special.stdtrit(len(values) - 1, (1 + level) / 2) * values.std(ddof=1) * np.sqrt(share_of_variance)
    return Interval(mean, float(mean - half), float(mean + half))


def paired_difference(first, second, level: float = 0.95, groups=None) -> Interval:
    """Mean of first - second over the same splits or seeds, with Student's interval of the differences.

    Parameters
    ----------
    first, second : float arrays (n,)
        Values of two methods; entry i of both belongs to the same split and seed.
    level : float, default 0.95
        Coverage.
    groups : sequence (n,), optional
        As of `mean_interval`.

    Returns
    -------
    Interval
        (mean difference, low, high); an interval without 0 is a difference at this level.

    Notes
    -----
    Splits differ more among each other than methods do, so the differences have a much narrower interval than
    the two means.

    Examples
    --------
    >>> difference = paired_difference([0.95, 0.85, 0.75], [0.94, 0.83, 0.74])
    >>> round(difference.estimate, 4), round(difference.low, 4), round(difference.high, 4)
    (0.0133, -0.001, 0.0277)
    """
    first = scores(first, "first")
    return mean_interval(first - scores(second, "second", length=len(first)), level, groups)


def auroc_difference(target, first, second, level: float = 0.95) -> Interval:
    r"""AUROC of `first` minus AUROC of `second` on the same images, with DeLong's interval of paired areas.

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown.
    first, second : float arrays (N,)
        Unknown scores of two methods for the same images.
    level : float, default 0.95
        Coverage.

    Returns
    -------
    Interval
        (difference, low, high); NaN where either side is empty, NaN bounds where a side has a single image.

    Notes
    -----
    It covers the chance of the test images only, not of training; over splits or seeds take `paired_difference`.
    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves", Biometrics 1988;
    an image's placement is the share of the other side that it beats, ties one half.

    Examples
    --------
    >>> target = np.repeat([0, -1], 100)
    >>> better, worse = np.r_[0:100, 80:180], np.r_[0:100, 30:130]
    >>> difference = auroc_difference(target, better, worse)
    >>> difference.low > 0
    True
    """
    _check_level(level)
    on_known, on_unknown = _placements(target, first)
    other_known, other_unknown = _placements(target, second)
    on_known, on_unknown = on_known - other_known, on_unknown - other_unknown
    if not len(on_known) or not len(on_unknown):
        return Interval(*[float("nan")] * 3)
    estimate = float(on_unknown.mean())
    if min(len(on_known), len(on_unknown)) < 2:
        return Interval(estimate, float("nan"), float("nan"))
    variance = on_known.var(ddof=1) / len(on_known) + on_unknown.var(ddof=1) / len(on_unknown)
    half = special.ndtri((1 + level) / 2) * np.sqrt(variance)
    return Interval(estimate, float(estimate - half), float(estimate + half))


def _placements(target, unknown_score) -> tuple[np.ndarray, np.ndarray]:
    """Share of unknowns above each known image, and of knowns below each unknown one, in the images' order."""
    target, unknown_score = np.asarray(target), scores(unknown_score)
    known, unknown = sides(target, unknown_score)
    shares = []
    for values, others, below in ((unknown_score[target >= 0], unknown, False), (unknown_score[target < 0], known, True)):
        share = (np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")) / (2 * len(others) or 1)
        shares.append(share if below else 1 - share)
    return shares[0], shares[1]


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"the level of an interval must lie between 0 and 1, got {level}")
