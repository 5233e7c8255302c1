"""Open-set classification rate: is a known sample accepted *and* put into the right class?

Arguments: `target` (N,) with -1 for unknown, `prediction` (N,) known class ignoring rejection,
`unknown_score` (N,) larger = more likely unknown. A sample is accepted where its score is below the
threshold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from common.metrics.checks import UNKNOWN, labels, scores
from common.metrics.ranking import pair_count


class OscrCurve(NamedTuple):
    """Points of the curve from "accept nothing" to "accept everything"."""

    fpr: np.ndarray
    ccr: np.ndarray
    threshold: np.ndarray


def oscr(target, prediction, unknown_score) -> float:
    r"""Area under the curve of correct classification rate (CCR) against false positive rate (FPR).

    \(P(\hat y = y,\ u_{known} < u_{unknown}) + \tfrac12 P(\hat y = y,\ u_{known} = u_{unknown})\).
    CCR is the share of known samples that are accepted and correctly classified, FPR the share of unknown
    samples accepted. The area by the trapezoid rule over all distinct thresholds, from (0, 0) to (1, closed
    accuracy), equals the pair probability above, which is what is counted: exact and O(n log n).

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown.
    prediction : int array (N,)
        Predicted known class, ignoring rejection; the entries of unknown samples are not used.
    unknown_score : float array (N,)
        Larger = more likely unknown.

    Returns
    -------
    float
        At most the closed accuracy; NaN when either side is empty.

    Notes
    -----
    Ties count one half, so constant scores give half the closed accuracy. The area starts at the
    accept-nothing point, which no threshold inside the data may reach; `ccr_at_fpr` names attainable
    points. With every prediction correct this is `auroc`. Published tables mostly use `oscr_arpl`.

    References
    ----------
    Dhamija, Guenther and Boult, "Reducing network agnostophobia", NeurIPS 2018.

    Examples
    --------
    >>> oscr([0, 1, -1, -1], [0, 0, 0, 1], [0.1, 0.2, 0.3, 0.4])
    0.5
    >>> oscr([0, 1, -1, -1], [0, 1, 0, 1], [7, 7, 7, 7])
    0.5
    """
    correct, known, unknown = _parts(target, prediction, unknown_score)
    if not known or not len(unknown):
        return float("nan")
    return pair_count(np.sort(correct), np.sort(unknown)) / (2 * known * len(unknown))


def oscr_curve(target, prediction, unknown_score) -> OscrCurve:
    """CCR and FPR at every distinct threshold, for plots.

    Parameters
    ----------
    target, prediction, unknown_score : arrays (N,)
        As in `oscr`.

    Returns
    -------
    OscrCurve
        (fpr, ccr, threshold), ascending. Point i accepts all scores up to and including threshold[i]; the
        first point is (0, 0) at -inf. Empty arrays when either side is empty. Ties form one point.

    Examples
    --------
    >>> curve = oscr_curve([0, 1, -1, -1], [0, 1, 0, 1], [0.1, 0.3, 0.3, 0.4])
    >>> curve.fpr.tolist(), curve.ccr.tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    correct, known, unknown = _parts(target, prediction, unknown_score)
    if not known or not len(unknown):
        return OscrCurve(np.empty(0), np.empty(0), np.empty(0))
    unknown_score = scores(unknown_score)
    threshold = np.unique(unknown_score)
    fpr = np.searchsorted(np.sort(unknown), threshold, side="right") / len(unknown)
    ccr = np.searchsorted(np.sort(correct), threshold, side="right") / known
    return OscrCurve(np.r_[0.0, fpr], np.r_[0.0, ccr], np.r_[-np.inf, threshold])


def ccr_at_fpr(target, prediction, unknown_score, fpr: float) -> float:
    """Correct classification rate where at most the share `fpr` of unknown samples is accepted.

    Parameters
    ----------
    target, prediction, unknown_score : arrays (N,)
        As in `oscr`.
    fpr : float
        Largest share of unknown samples accepted, in [0, 1].

    Returns
    -------
    float
        Largest share of known samples accepted and correct over the thresholds whose FPR is at most `fpr`;
        NaN when either side is empty.

    Notes
    -----
    A step function, no interpolation: with fewer than 1 / fpr unknown samples it is the value at FPR 0.
    Tied unknown samples are accepted all or not at all. Correct known samples tied with the first rejected
    unknown are rejected.

    Examples
    --------
    >>> ccr_at_fpr([0, 1, 2, -1, -1], [0, 1, 2, 0, 1], [0.1, 0.2, 0.5, 0.3, 0.6], fpr=0.0)
    0.6666666666666666
    >>> ccr_at_fpr([0, 1, 2, -1, -1], [0, 1, 2, 0, 1], [0.1, 0.2, 0.5, 0.3, 0.6], fpr=0.5)
    1.0
    """
    correct, known, unknown = _parts(target, prediction, unknown_score)
    if not known or not len(unknown):
        return float("nan")
    allowed = int(np.floor(fpr * len(unknown)))
    # fpr * n may fall just below a whole number that fpr reaches when it is compared as k / n.
    allowed += int(allowed < len(unknown) and (allowed + 1) / len(unknown) <= fpr)
    if allowed >= len(unknown):
        return len(correct) / known
    first_rejected = np.partition(unknown, allowed)[allowed]
    return float(np.count_nonzero(correct < first_rejected) / known)


def oscr_arpl(target, prediction, unknown_score) -> float:
    """OSCR as the widely copied ARPL code computes it, for comparison with published tables only.

    Samples are sorted by confidence (-unknown_score) ascending. Point k = 0..n-2 counts the correct known
    samples *after* position k but the unknown samples *from* position k (the two counts are shifted by
    one); the points (1, 1) and (0, 0) are added, and the trapezoids are summed in this order, which makes
    the result equal bit for bit.

    Parameters
    ----------
    target, prediction, unknown_score : arrays (N,)
        As in `oscr`; known samples before unknown ones is the order in which the original concatenates them.

    Returns
    -------
    float
        NaN when either side is empty.

    Notes
    -----
    Ties are *not* handled: the value depends on the order of tied samples (a stable sort with the known
    samples first is used here; constant scores give 0). Deviation from `oscr`: -2e-5 at 10,000 samples,
    -9e-3 at 40.

    References
    ----------
    Chen, Peng, Wang and Tian, "Adversarial reciprocal points learning", TPAMI 2021; the objections of the
    curve's inventor are issue 28 of sgvaze/osr_closed_set_all_you_need.

    Examples
    --------
    >>> oscr_arpl([0, 1, -1, -1], [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4])
    0.875
    >>> oscr_arpl([0, 1, -1, -1], [0, 1, 0, 1], [7, 7, 7, 7])
    0.0
    """
    target, prediction, unknown_score = _checked(target, prediction, unknown_score)
    order = np.concatenate([np.flatnonzero(target >= 0), np.flatnonzero(target == UNKNOWN)])
    known = int((target >= 0).sum())
    unknown = len(order) - known
    if not known or not unknown:
        return float("nan")
    order = order[np.argsort(-unknown_score[order], kind="stable")]
    is_correct = ((prediction == target) & (target >= 0))[order]
    is_unknown = (target == UNKNOWN)[order]
    correct_after = is_correct[::-1].cumsum()[::-1] - is_correct
    unknown_from = is_unknown[::-1].cumsum()[::-1]
    ccr = np.r_[1.0, correct_after[:-1] / known, 0.0]
    fpr = np.r_[1.0, unknown_from[:-1] / unknown, 0.0]
    # cumsum adds one term after the other, as the original's loop does; np.sum adds pairwise and differs in
    # last bits.
    return float(np.cumsum((fpr[:-1] - fpr[1:]) * ((ccr[:-1] + ccr[1:]) / 2.0))[-1])


def _checked(target, prediction, unknown_score):
    target = labels(target, "target")
    return (
        target,
        labels(prediction, "prediction", length=len(target)),
        scores(unknown_score, length=len(target)),
    )


def _parts(target, prediction, unknown_score) -> tuple[np.ndarray, int, np.ndarray]:
    """Return the scores of correct known samples, the number of known samples, the scores of unknown ones."""
    target, prediction, unknown_score = _checked(target, prediction, unknown_score)
    correct = (prediction == target) & (target >= 0)
    return unknown_score[correct], int((target >= 0).sum()), unknown_score[target == UNKNOWN]
