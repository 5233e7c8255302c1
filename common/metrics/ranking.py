"""Metrics of known against unknown that depend on the order of the unknown scores only.

All take `target` (N,) with -1 for unknown and `unknown_score` (N,), larger = more likely unknown. A sample
is accepted as known where its score is below the threshold. Equal scores always fall on the same side. A
metric that needs both known and unknown samples is NaN where one of them is missing.
"""

from __future__ import annotations

import numpy as np

from common.metrics.checks import sides


def pair_count(lower: np.ndarray, upper: np.ndarray) -> int:
    """Return twice the pairs with lower < upper plus the pairs with equality; both arrays sorted ascending.

    Whole numbers keep ties exact; sorted queries keep the binary searches in the cache, which makes this
    faster than one sort of both together.
    """
    below = np.searchsorted(lower, upper, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(lower, upper, side="right").sum(dtype=np.int64)
    return int(below) + int(not_above)


def auroc(target, unknown_score) -> float:
    r"""Area under the ROC curve: \(P(u_{unknown} > u_{known}) + \tfrac12 P(u_{unknown} = u_{known})\).

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown.
    unknown_score : float array (N,)
        Larger = more likely unknown.

    Returns
    -------
    float
        1 = every unknown above every known; .5 = chance; NaN when either side is empty.

    Notes
    -----
    Polarity: the value is the same whichever side is called positive, so a value below .5 means that the
    score points the wrong way; it is reported as it is. Ties count one half, exactly.

    Examples
    --------
    >>> auroc([0, 1, -1, -1], [0.1, 0.4, 0.4, 0.9])
    0.875
    """
    known, unknown = sides(target, unknown_score)
    if not len(known) or not len(unknown):
        return float("nan")
    return pair_count(known, unknown) / (2 * len(known) * len(unknown))


def average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """Average precision of sorted scores, larger = positive; NaN when either side is empty."""
    if not len(positive) or not len(negative):
        return float("nan")
    thresholds, gained = np.unique(positive, return_counts=True)
    found = len(positive) - np.searchsorted(positive, thresholds, side="left")
    false_alarms = len(negative) - np.searchsorted(negative, thresholds, side="left")
    return float(np.sum(gained / len(positive) * (found / (found + false_alarms))))


def aupr_known(target, unknown_score) -> float:
    r"""Average precision with **known** as positive: \(\sum_t (R_t - R_{t-1}) P_t\), thresholds on \(-u\).

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown.
    unknown_score : float array (N,)
        Larger = more likely unknown.

    Returns
    -------
    float
        1 = perfect; the share of known samples = chance; NaN when either side is empty.

    Notes
    -----
    Called AUPR-in (OpenOOD, CSSR). The step form, as `sklearn.metrics.average_precision_score`; the
    trapezoid used by OpenOOD, pytorch-ood and CSSR interpolates between points that no threshold reaches.
    Ties form one threshold.

    Examples
    --------
    >>> round(aupr_known([0, 1, -1, -1], [0.1, 0.4, 0.4, 0.9]), 6)
    0.833333
    """
    known, unknown = sides(target, unknown_score)
    return average_precision(-known[::-1], -unknown[::-1])


def aupr_unknown(target, unknown_score) -> float:
    r"""Average precision with **unknown** as positive: \(\sum_t (R_t - R_{t-1}) P_t\), thresholds on \(u\).

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown.
    unknown_score : float array (N,)
        Larger = more likely unknown.

    Returns
    -------
    float
        1 = perfect; the share of unknown samples = chance; NaN when either side is empty.

    Notes
    -----
    Called AUPR-out (OpenOOD, CSSR). Step form and ties as in `aupr_known`.

    Examples
    --------
    >>> round(aupr_unknown([0, 1, -1, -1], [0.1, 0.4, 0.4, 0.9]), 6)
    0.833333
    """
    known, unknown = sides(target, unknown_score)
    return average_precision(unknown, known)


def detection_accuracy(target, unknown_score) -> float:
    r"""Best balanced accuracy over thresholds: \(\max_\tau \tfrac12 (TPR_\tau + TNR_\tau)\).

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown.
    unknown_score : float array (N,)
        Larger = more likely unknown.

    Returns
    -------
    float
        1 = perfect, .5 = the worst possible (accept everything); NaN when either side is empty.

    Notes
    -----
    DTACC of ARPL and CSSR. The threshold is chosen on the test labels. Symmetric in the polarity of
    "positive". Ties fall on one side together; the best difference is found in whole numbers.

    Examples
    --------
    >>> detection_accuracy([0, 1, -1, -1], [0.1, 0.4, 0.4, 0.9])
    0.75
    """
    known, unknown = sides(target, unknown_score)
    if not len(known) or not len(unknown):
        return float("nan")
    accepted_known = np.arange(1, len(known) + 1, dtype=np.int64)
    # Only thresholds just above a known score can be best; within a run of ties the last entry counts them
    # all.
    accepted_unknown = np.searchsorted(unknown, known, side="right")
    gain = accepted_known * len(unknown) - accepted_unknown * len(known)
    return 0.5 + 0.5 * max(int(gain.max()), 0) / (len(known) * len(unknown))
