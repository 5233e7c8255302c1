"""Tables with one row per class, "unknown" last: report of decisions and one-vs-rest ranking."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from common.metrics.checks import labels, matrix
from common.metrics.decisions import confusion, decide_argmax
from common.metrics.ranking import average_precision, pair_count


class ClassReport(NamedTuple):
    """Precision, recall, F1 and support per class (K + 1,), unknown last, and their averages."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    accuracy: float
    macro: tuple[float, float, float]
    weighted: tuple[float, float, float]


def class_report(target, decision, classes: int) -> ClassReport:
    """Precision, recall and F1 of each known class and of "unknown", with macro and weighted means.

    Parameters
    ----------
    target, decision : int arrays (N,)
        Known class, or -1 for unknown.
    classes : int
        K, the number of known classes.

    Returns
    -------
    ClassReport
        Arrays (K + 1,), unknown last. `accuracy` is the share of right decisions among all samples; `macro`
        and `weighted` hold the mean precision, recall and F1 over all K + 1 rows, plain and weighted by
        support.

    Notes
    -----
    NaN marks what is undefined: recall and F1 of a class without samples, precision of a class that is never
    decided. The means take such a precision as 0, as scikit-learn does, and leave out classes without
    samples.

    Examples
    --------
    >>> report = class_report([0, 0, 1, -1], [0, -1, 1, -1], classes=2)
    >>> report.precision.tolist(), report.recall.tolist(), report.accuracy
    ([1.0, 1.0, 0.5], [0.5, 1.0, 1.0], 0.75)
    """
    counts = confusion(target, decision, classes)
    hits, support, decided = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = hits / decided, hits / support
        f1 = np.where(support > 0, 2 * hits / (support + decided), np.nan)
    present = support > 0
    columns = np.stack([np.nan_to_num(precision), recall, f1])[:, present]
    if not present.any():
        return ClassReport(precision, recall, f1, support, np.nan, (np.nan,) * 3, (np.nan,) * 3)
    macro = tuple(columns.mean(axis=1).tolist())
    weighted = tuple((columns @ support[present] / support.sum()).tolist())
    return ClassReport(precision, recall, f1, support, float(hits.sum() / support.sum()), macro, weighted)


class OneVsRest(NamedTuple):
    """One-vs-rest figures per class (K + 1,), unknown last."""

    accuracy: np.ndarray
    f1_argmax: np.ndarray
    auroc: np.ndarray
    average_precision: np.ndarray
    youden_cut: np.ndarray
    tpr_at_cut: np.ndarray
    fpr_at_cut: np.ndarray
    f1_at_cut: np.ndarray


def one_vs_rest(target, probabilities) -> OneVsRest:
    """Rank every sample by each column of `probabilities` in turn: the table that crosr_bda prints.

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown.
    probabilities : float array (N, K + 1)
        Unknown last; a larger value of a column means more likely its class.

    Returns
    -------
    OneVsRest
        Arrays (K + 1,). `accuracy` and `f1_argmax` are binary, of the decision by argmax; `auroc` and
        `average_precision` of the column as a score; `youden_cut` is the largest threshold that maximises
        TPR - FPR, with its TPR, FPR and the F1 of "column >= cut". NaN for a class without samples or without
        others.

    Notes
    -----
    The cut is chosen on the test labels. Ties share a threshold; TPR - FPR is compared in whole numbers.

    Examples
    --------
    >>> table = one_vs_rest([0, 1, -1], [[0.7, 0.2, 0.1], [0.3, 0.5, 0.2], [0.4, 0.3, 0.3]])
    >>> table.auroc.tolist(), table.youden_cut.tolist()
    ([1.0, 1.0, 1.0], [0.7, 0.5, 0.3])
    """
    target = labels(target, "target")
    probabilities = matrix(probabilities, "probabilities", length=len(target))
    classes = probabilities.shape[1] - 1
    target = labels(target, "target", classes=classes)
    decision = decide_argmax(probabilities)
    # One sort per column is what a ranking costs; the samples are never looped over.
    rows = [
        _column(target == label, decision == label, probabilities[:, label])
        for label in (*range(classes), -1)
    ]
    return OneVsRest(*np.array(rows).T)


def _column(positive: np.ndarray, decided: np.ndarray, score: np.ndarray) -> tuple[float, ...]:
    """Return the figures of one class in the order of `OneVsRest`."""
    ours, others = np.sort(score[positive]), np.sort(score[~positive])
    if not len(ours) or not len(others):
        return (np.nan,) * len(OneVsRest._fields)
    # Only a threshold at the score of a positive can be best.
    found = len(ours) - np.searchsorted(ours, ours, side="left")
    alarms = len(others) - np.searchsorted(others, ours, side="left")
    gain = found * len(others) - alarms * len(ours)
    best = len(gain) - 1 - int(gain[::-1].argmax())
    hits = int((positive & decided).sum())
    return (
        float(np.mean(positive == decided)),
        2 * hits / (len(ours) + int(decided.sum())),
        pair_count(others, ours) / (2 * len(ours) * len(others)),
        average_precision(ours, others),
        float(ours[best]),
        found[best] / len(ours),
        alarms[best] / len(others),
        2 * found[best] / (len(ours) + found[best] + alarms[best]),
    )
