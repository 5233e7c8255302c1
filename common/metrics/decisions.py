"""Metrics of decisions: which class, or unknown, at a threshold.

`target` (N,) holds known classes 0..K-1 and -1 for unknown; a *decision* (N,) uses the same labels.
`decide` makes decisions from predictions and scores. Classes are counted, never looped over.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.metrics.checks import UNKNOWN, labels, matrix, scores


def decide(prediction, unknown_score, threshold: float) -> np.ndarray:
    """Return the predicted class where the unknown score is below the threshold, else -1.

    Parameters
    ----------
    prediction : int array (N,)
        Predicted known class, ignoring rejection.
    unknown_score : float array (N,)
        Larger = more likely unknown. A score equal to the threshold is rejected.
    threshold : float
        For example from `common.metrics.threshold_accepting`.

    Returns
    -------
    int64 array (N,)

    Examples
    --------
    >>> decide([0, 1, 1], [0.1, 0.5, 0.9], threshold=0.5).tolist()
    [0, -1, -1]
    """
    prediction = labels(prediction, "prediction")
    return np.where(scores(unknown_score, length=len(prediction)) < threshold, prediction, UNKNOWN)


def decide_argmax(probabilities) -> np.ndarray:
    """Return the class of largest probability among K known ones and unknown (last column), as labels with
    -1.

    Parameters
    ----------
    probabilities : float array (N, K + 1)
        Unknown last. Of equal largest values the first column is taken.

    Returns
    -------
    int64 array (N,)

    Examples
    --------
    >>> decide_argmax([[0.6, 0.1, 0.3], [0.2, 0.2, 0.6]]).tolist()
    [0, -1]
    """
    probabilities = matrix(probabilities, "probabilities", length=len(probabilities))
    best = probabilities.argmax(axis=1)
    return np.where(best == probabilities.shape[1] - 1, UNKNOWN, best)


def confusion(target, decision, classes: int) -> np.ndarray:
    """Return counts (K + 1, K + 1): rows are true classes, columns decisions, unknown last in both.

    Examples
    --------
    >>> confusion([0, 1, -1], [0, -1, 1], classes=2).tolist()
    [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    """
    target = labels(target, "target", classes=classes)
    decision = labels(decision, "decision", length=len(target), classes=classes)
    row, column = np.where(target < 0, classes, target), np.where(decision < 0, classes, decision)
    return np.bincount(row * (classes + 1) + column, minlength=(classes + 1) ** 2).reshape(
        classes + 1, classes + 1
    )


def macro_f1(target, decision, classes: int) -> float:
    r"""Mean F1 over the K known classes and "unknown": \(F_k = 2 TP_k / (\text{true}_k + \text{decided}_k)\).

    Parameters
    ----------
    target, decision : int arrays (N,)
        Known class, or -1 for unknown.
    classes : int
        K, the number of known classes.

    Returns
    -------
    float
        1 = perfect; NaN when there is no known or no unknown sample.

    Notes
    -----
    The mean is over unknown and the known classes that have samples: the set does not depend on the
    decisions, unlike scikit-learn's default, which adds a class once it is decided. With a sample of every
    class both are equal. No polarity: decisions are already made.

    Examples
    --------
    >>> round(macro_f1([0, 0, 1, -1], [0, -1, 1, -1], classes=2), 6)
    0.777778
    """
    target = labels(target, "target", classes=classes)
    decision = labels(decision, "decision", length=len(target), classes=classes)
    hits, true, decided = _counts(target, decision, classes)
    return float(_f1(hits, true, decided)[..., true > 0].mean()) if _both_sides(true) else float("nan")


class F1AtThresholds(NamedTuple):
    """F1 values at T thresholds, each float64 (T,)."""

    macro: np.ndarray
    unknown: np.ndarray
    open_f: np.ndarray


def f1_at_thresholds(target, prediction, unknown_score, thresholds, classes: int) -> F1AtThresholds:
    """Return `macro_f1`, the F1 of "unknown" alone and the macro `open_f` at every threshold.

    Parameters
    ----------
    target, prediction : int arrays (N,)
        Known class (-1 = unknown in `target`); prediction ignores rejection.
    unknown_score : float array (N,)
        Larger = more likely unknown.
    thresholds : float array (T,)
        In any order; accepted where the score is below the threshold.
    classes : int
        K, the number of known classes.

    Returns
    -------
    F1AtThresholds
        NaN throughout when there is no known or no unknown sample.

    Notes
    -----
    Samples are counted between neighbouring thresholds and the counts summed up: O(N log T + T K), whatever T is.

    Examples
    --------
    >>> found = f1_at_thresholds([0, 1, -1], [0, 1, 0], [0.1, 0.2, 0.9], thresholds=[0.5, 1.0], classes=2)
    >>> found.macro.round(3).tolist(), found.unknown.tolist()
    ([1.0, 0.556], [1.0, 0.0])
    """
    target, prediction, unknown_score, true = _samples(target, prediction, unknown_score, classes)
    thresholds = np.asarray(thresholds, np.float64)
    if not _both_sides(true):
        return F1AtThresholds(*np.full((3, len(thresholds)), np.nan))
    order = np.argsort(thresholds)
    # A sample is accepted at the sorted thresholds from `first` on.
    first = np.searchsorted(thresholds[order], unknown_score, side="right")

    def accepted(chosen: np.ndarray) -> np.ndarray:
        cells = first[chosen] * classes + prediction[chosen]
        counts = np.bincount(cells, minlength=(len(thresholds) + 1) * classes).reshape(-1, classes)
        return counts.cumsum(axis=0)[:-1]

    decided, hits = accepted(target >= UNKNOWN), accepted(target == prediction)
    rejected, found = len(target) - decided.sum(axis=1), true[-1] - accepted(target == UNKNOWN).sum(axis=1)
    decided, hits = np.column_stack((decided, rejected)), np.column_stack((hits, found))
    f1 = _f1(hits, true, decided)
    result = np.empty((3, len(thresholds)))
    result[:, order] = f1[:, true > 0].mean(axis=1), f1[:, -1], _open_f(hits, true, decided).macro
    return F1AtThresholds(*result)


class OracleF1(NamedTuple):
    """Largest macro-F1 over all thresholds, and a threshold that attains it."""

    value: float
    threshold: float


def macro_f1_oracle(target, prediction, unknown_score, classes: int) -> OracleF1:
    """Largest `macro_f1` over every distinct threshold of the unknown score, chosen with the test labels.

    Parameters
    ----------
    target, prediction : int arrays (N,)
        Known class (-1 = unknown in `target`); prediction ignores rejection.
    unknown_score : float array (N,)
        Larger = more likely unknown.
    classes : int
        K, the number of known classes.

    Returns
    -------
    OracleF1
        (value, threshold); accept where the score is below the threshold. (NaN, NaN) without known or
        unknown samples.

    Notes
    -----
    An upper bound, not a result: no method knows this threshold. Accepting one more sample changes the F1
    of its predicted class and of "unknown" alone, so all thresholds cost one sort: O(n log n), independent
    of K. Tied scores are accepted together; of equal values the smallest threshold is returned.

    Examples
    --------
    >>> best = macro_f1_oracle([0, 1, -1, -1], [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], classes=2)
    >>> best.value, 0.2 < best.threshold < 0.3
    (1.0, True)
    """
    target, prediction, unknown_score, true = _samples(target, prediction, unknown_score, classes)
    if not _both_sides(true):
        return OracleF1(float("nan"), float("nan"))
    order = np.argsort(unknown_score, kind="stable")
    ranked_score, ranked_target = unknown_score[order], target[order]
    known_part = _known_f1_gain(ranked_target, prediction[order], true).cumsum()

    rejected = np.arange(len(order), -1, -1)
    rejected_unknown = true[-1] - np.r_[0, np.cumsum(ranked_target == UNKNOWN)]
    total = np.r_[0.0, known_part] + 2 * rejected_unknown / (rejected + true[-1])
    # A threshold exists only before the first sample, after the last, and between different scores.
    possible = np.r_[True, ranked_score[1:] != ranked_score[:-1], True]
    accepted = int(np.where(possible, total, -np.inf).argmax())
    threshold = float(np.nextafter(ranked_score[accepted - 1], np.inf)) if accepted else float("-inf")
    # The running sum carries rounding of 1e-13; the value is computed anew at the threshold it chose.
    return OracleF1(macro_f1(target, decide(prediction, unknown_score, threshold), classes), threshold)


def _known_f1_gain(ranked_target, ranked_prediction, true) -> np.ndarray:
    """Return the change of the sum of known classes' F1 as each sample, in score order, is accepted."""
    by_class = np.argsort(ranked_prediction, kind="stable")  # score order is kept within a predicted class
    predicted = ranked_prediction[by_class]
    hit = (ranked_target == ranked_prediction)[by_class]
    start = np.searchsorted(
        predicted, predicted, side="left"
    )  # first position of the sample's predicted class
    decided = np.arange(len(predicted)) - start + 1
    running = np.cumsum(hit)
    hits = running - (running[start] - hit[start])
    present = true[predicted] > 0
    support = np.where(present, true[predicted], 1)
    gain = 2 * hits / (support + decided) - 2 * (hits - hit) / (support + decided - 1)
    result = np.empty(len(predicted))
    result[by_class] = np.where(present, gain, 0.0)  # classes without samples are not part of the mean
    return result


class OpenF(NamedTuple):
    """Open-set F-measure over the known classes."""

    micro: float
    macro: float


def open_f(target, decision, classes: int) -> OpenF:
    r"""Open-set F-measure: precision and recall of the **known classes only**, summed (micro) or averaged
    (macro).

    An unknown sample accepted as class k is a false positive of k; a known sample of k that is rejected or
    put into another class is a false negative of k. "Unknown" itself is no class here, which is the
    difference to `macro_f1`. \(F = 2 P R / (P + R)\).

    Parameters
    ----------
    target, decision : int arrays (N,)
        Known class, or -1 for unknown.
    classes : int
        K, the number of known classes.

    Returns
    -------
    OpenF
        (micro, macro); 1 = perfect. NaN when there is no known or no unknown sample.

    Notes
    -----
    Micro: P and R of the counts summed over classes. Macro: P and R averaged over the known classes that
    have samples, then combined; a class into which nothing is decided has precision 0 (its recall is 0 as
    well).

    References
    ----------
    Mendes Junior et al., "Nearest neighbors distance ratio open-set classifier", Machine Learning 106, 2017.

    Examples
    --------
    >>> open_f([0, 0, 1, -1], [0, -1, 1, 1], classes=2)
    OpenF(micro=0.6666666666666666, macro=0.75)
    """
    target = labels(target, "target", classes=classes)
    decision = labels(decision, "decision", length=len(target), classes=classes)
    hits, true, decided = _counts(target, decision, classes)
    return OpenF(*map(float, _open_f(hits, true, decided))) if _both_sides(true) else OpenF(float("nan"), float("nan"))


def _samples(target, prediction, unknown_score, classes: int):
    """Checked arrays (N,), and how many samples each label has (unknown last, as K)."""
    target = labels(target, "target", classes=classes)
    prediction = labels(prediction, "prediction", length=len(target), lowest=0, classes=classes)
    unknown_score = scores(unknown_score, length=len(target))
    return target, prediction, unknown_score, np.bincount(np.where(target < 0, classes, target), minlength=classes + 1)


def _both_sides(true: np.ndarray) -> bool:
    """Whether there are samples of known classes and of unknown ones."""
    return bool(true[-1] and true[:-1].any())


def _f1(hits, true, decided) -> np.ndarray:
    """F1 of each label from counts `(..., K + 1)`; 0 where a label has neither samples nor decisions."""
    return 2 * hits / np.maximum(true + decided, 1)


def _open_f(hits, true, decided) -> OpenF:
    """Micro and macro open-set F-measure from counts `(..., K + 1)`, over the last axis."""
    known = np.flatnonzero(true[:-1])
    precision = (hits[..., known] / np.maximum(decided[..., known], 1)).mean(axis=-1)
    recall = (hits[..., known] / true[known]).mean(axis=-1)
    micro = 2 * hits[..., :-1].sum(axis=-1) / (true[:-1].sum() + decided[..., :-1].sum(axis=-1))
    both = precision + recall
    return OpenF(micro, 2 * precision * recall / np.where(both > 0, both, 1))


def _counts(target, decision, classes: int):
    """Return per label (unknown last, as K): hits, true samples, decisions."""
    true_label = np.where(target < 0, classes, target)
    decided_label = np.where(decision < 0, classes, decision)
    true = np.bincount(true_label, minlength=classes + 1)
    decided = np.bincount(decided_label, minlength=classes + 1)
    hits = np.bincount(true_label[true_label == decided_label], minlength=classes + 1)
    return hits, true, decided


def number_of_classes(target, prediction, logits=None, probabilities=None) -> int:
    """Return K: the columns of logits or probabilities (less one), else the largest label plus one."""
    if logits is not None:
        return np.shape(logits)[1]
    if probabilities is not None:
        return np.shape(probabilities)[1] - 1
    largest = max((int(np.max(array)) for array in (target, prediction) if len(array)), default=-1)
    if largest < 0:
        raise UserError(
            "there is no known class in target or prediction, so the number of classes is not known"
        )
    return largest + 1
