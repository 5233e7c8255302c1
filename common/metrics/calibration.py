"""How far the probabilities of the known classes can be believed."""

from __future__ import annotations

import numpy as np

from common.errors import UserError
from common.metrics.checks import labels, matrix

_BINS = 15


def nll(target, logits) -> float:
    r"""Mean negative log-likelihood of the known samples: \(-\tfrac1N \sum_i \log p_i(y_i)\), p = softmax(z).

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown; unknown samples are left out.
    logits : float array (N, K)
        Before the softmax; log-probabilities serve as well.

    Returns
    -------
    float
        In nats, 0 = sure and right, log K = uniform; NaN without known samples. Lower is better; no ties.

    Examples
    --------
    >>> round(nll([0, -1], [[0.0, 0.0], [9.0, 0.0]]), 6)
    0.693147
    """
    target, logits = _known_rows(target, logits)
    if not len(target):
        return float("nan")
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    return float(np.mean(log_total - shifted[np.arange(len(target)), target]))


def ece(target, logits, bins: int = _BINS) -> float:
    r"""Expected calibration error: \(\sum_b \tfrac{n_b}{N} |\mathrm{accuracy}_b - \mathrm{confidence}_b|\).

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown; unknown samples are left out.
    logits : float array (N, K)
        Before the softmax. Confidence is the largest softmax probability, the prediction its class.
    bins : int, default 15
        Equal-width bins of (0, 1]; a confidence on a border belongs to the lower bin.

    Returns
    -------
    float
        0 = calibrated, at most 1; NaN without known samples. Of tied logits the first class is the
        prediction.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017.

    Examples
    --------
    >>> ece([0, 1, 1, -1], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [9.0, 0.0]])
    0.16666666666666666
    """
    if bins < 1:
        raise UserError(f"ece: bins must be at least 1, got {bins}")
    target, logits = _known_rows(target, logits)
    if not len(target):
        return float("nan")
    best = logits.argmax(axis=1)
    confidence = 1.0 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    surplus = np.bincount(index, weights=(best == target) - confidence, minlength=bins)
    return float(np.abs(surplus).sum() / len(target))


def known_log_probabilities(probabilities) -> np.ndarray:
    """Return log-probabilities (N, K) of the known columns of `probabilities` (N, K + 1, unknown last).

    They are renormalised by `nll` and `ece` like any logits, so what the unknown class took is left out. A
    probability of exactly 0 counts as the smallest positive float64, which keeps the result finite.

    Examples
    --------
    >>> known_log_probabilities([[0.5, 0.25, 0.25]]).round(4).tolist()
    [[-0.6931, -1.3863]]
    """
    probabilities = matrix(probabilities, "probabilities", length=len(probabilities))
    return np.log(np.maximum(probabilities[:, :-1], np.finfo(np.float64).tiny))


def _known_rows(target, logits) -> tuple[np.ndarray, np.ndarray]:
    target = labels(target, "target")
    logits = matrix(logits, "logits", length=len(target))
    target = labels(target, "target", classes=logits.shape[1])
    known = target >= 0
    return target[known], logits[known]
