"""Operating points: thresholds that accept a stated share, and the error rates there.

Arguments and ties as in `common.metrics.ranking`: a sample is accepted as known where its unknown score is
below the threshold, equal scores fall on the same side, and a value that needs both sides is NaN where one
is empty.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from common.metrics.checks import sides


def rank_for_share(share, total: int):
    """Return the smallest k >= 1 with k / total >= share (an array for several), compared as points of a curve would be."""
    k = np.maximum(1, np.ceil(np.asarray(share) * total).astype(int))
    return k - ((k > 1) & ((k - 1) / total >= share))


def threshold_accepting(known_score, share=0.95):
    """Return the smallest threshold under which at least `share` of `known_score` is accepted.

    A sample is accepted where its unknown score is **below** the threshold.

    Parameters
    ----------
    known_score : float array (N,)
        Unknown scores of known samples (held-out ones for an honest threshold).
    share : float or float array (T,), default 0.95
        Share to accept, in (0, 1].

    Returns
    -------
    float, or float64 array (T,) for several shares
        The next float64 above the k-th smallest score, k = ceil(share N), so that samples tied with it are
        accepted too; NaN without samples.

    Examples
    --------
    >>> threshold = threshold_accepting([1.0, 2.0, 3.0, 4.0], share=0.75)
    >>> [u < threshold for u in (2.9, 3.0, 3.1)]
    [True, True, False]
    """
    known = np.sort(np.asarray(known_score, dtype=np.float64))
    if not len(known):
        found = np.full(np.shape(share), np.nan)
    else:
        found = np.nextafter(known[rank_for_share(share, len(known)) - 1], np.inf)
    return found if np.ndim(share) else float(found)


def fpr95_known_positive(target, unknown_score, share: float = 0.95) -> float:
    """Share of **unknown** samples accepted at the threshold that accepts 95 % of the **known** ones.

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown.
    unknown_score : float array (N,)
        Larger = more likely unknown.
    share : float, default 0.95
        True-positive rate; known is positive.

    Returns
    -------
    float
        0 = perfect; NaN when either side is empty.

    Notes
    -----
    The convention of ODIN, ARPL and CSSR (its complement is their TNR@TPR95). OpenOOD and pytorch-ood report
    `fpr95_unknown_positive` under the same name. The threshold is the smallest that accepts at least 95 %;
    samples tied with it are accepted, known and unknown alike. No interpolation.

    Examples
    --------
    >>> fpr95_known_positive([0, 1, 2, -1, -1], [0.1, 0.2, 0.5, 0.5, 0.9])
    0.5
    """
    known, unknown = sides(target, unknown_score)
    if not len(known) or not len(unknown):
        return float("nan")
    cut = known[rank_for_share(share, len(known)) - 1]
    return float(np.searchsorted(unknown, cut, side="right") / len(unknown))


def fpr95_unknown_positive(target, unknown_score, share: float = 0.95) -> float:
    """Share of **known** samples rejected at the threshold that rejects 95 % of the **unknown** ones.

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown.
    unknown_score : float array (N,)
        Larger = more likely unknown.
    share : float, default 0.95
        True-positive rate; unknown is positive.

    Returns
    -------
    float
        0 = perfect; NaN when either side is empty.

    Notes
    -----
    The convention of OpenOOD and pytorch-ood. Ties as in `fpr95_known_positive`.

    Examples
    --------
    >>> fpr95_unknown_positive([0, 1, 2, -1, -1], [0.1, 0.2, 0.6, 0.5, 0.9])
    0.3333333333333333
    """
    known, unknown = sides(target, unknown_score)
    if not len(known) or not len(unknown):
        return float("nan")
    cut = unknown[len(unknown) - rank_for_share(share, len(unknown))]
    return float((len(known) - np.searchsorted(known, cut, side="left")) / len(known))


def tnr95_known_positive(target, unknown_score, share: float = 0.95) -> float:
    """Share of **unknown** samples rejected at the threshold that accepts 95 % of the **known** ones.

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown.
    unknown_score : float array (N,)
        Larger = more likely unknown.
    share : float, default 0.95
        True-positive rate; known is positive.

    Returns
    -------
    float
        1 = perfect; 1 - `fpr95_known_positive`; NaN when either side is empty.

    Notes
    -----
    TNR@TPR95 of ARPL, CSSR and VMDLS. The same number is `unknown_recall_at_95_seen_recall`, its name beside
    `unknown_recall_at_95_seen_precision`.

    Examples
    --------
    >>> tnr95_known_positive([0, 1, 2, -1, -1], [0.1, 0.2, 0.5, 0.5, 0.9])
    0.5
    """
    return 1.0 - fpr95_known_positive(target, unknown_score, share)


unknown_recall_at_95_seen_recall = tnr95_known_positive


class SeenPrecision(NamedTuple):
    """Operating point at a required precision of the accepted samples."""

    unknown_recall: float
    known_recall: float
    seen_precision: float


def seen_precision_point(target, unknown_score, precision: float = 0.95) -> SeenPrecision:
    r"""Operating point with the largest known recall among thresholds whose seen-precision is at least 95 %.

    Seen-precision is the share of known samples among the accepted ones.

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown.
    unknown_score : float array (N,)
        Larger = more likely unknown.
    precision : float, default 0.95
        Required seen-precision.

    Returns
    -------
    SeenPrecision
        (unknown_recall, known_recall, seen_precision): share of unknown samples rejected, share of known
        samples accepted, and the precision attained. All NaN when no threshold attains it or a side is
        empty.

    Notes
    -----
    The first value alone misleads: it *falls* as a detector improves, down to the floor
    \(1 - N_k (1/.95 - 1) / N_u\) that prevalence forces, so read the triple, or
    `unknown_recall_at_95_seen_recall`. A threshold must accept at least one known sample (the empty end of
    a precision-recall curve is no operating point). Ties are accepted together; of equal known recall the
    threshold with fewer accepted unknowns is taken.

    Examples
    --------
    >>> seen_precision_point([0, 0, 0, -1, -1], [0.1, 0.2, 0.3, 0.3, 0.4])
    SeenPrecision(unknown_recall=1.0, known_recall=0.6666666666666666, seen_precision=1.0)
    """
    known, unknown = sides(target, unknown_score)
    nothing = SeenPrecision(float("nan"), float("nan"), float("nan"))
    if not len(known) or not len(unknown):
        return nothing
    accepted_known = np.searchsorted(known, known, side="right")
    accepted_unknown = np.searchsorted(unknown, known, side="right")
    attained = accepted_known / (accepted_known + accepted_unknown)
    allowed = np.flatnonzero(attained >= precision)
    if not len(allowed):
        return nothing
    best = allowed[-1]  # scores ascend, so the last allowed threshold accepts the most known samples
    return SeenPrecision(
        float((len(unknown) - accepted_unknown[best]) / len(unknown)),
        float(accepted_known[best] / len(known)),
        float(attained[best]),
    )


def unknown_recall_at_95_seen_precision(target, unknown_score) -> float:
    """Share of unknown samples rejected where 95 % of the accepted samples are known; see
    `seen_precision_point`.

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown.
    unknown_score : float array (N,)
        Larger = more likely unknown.

    Returns
    -------
    float
        NaN when no threshold attains the precision or a side is empty. Kept for comparison with published
        values; it is not monotone in the quality of a detector. Ties are accepted together.

    Examples
    --------
    >>> unknown_recall_at_95_seen_precision([0, 0, 0, -1, -1], [0.1, 0.2, 0.3, 0.3, 0.4])
    1.0
    """
    return seen_precision_point(target, unknown_score).unknown_recall
