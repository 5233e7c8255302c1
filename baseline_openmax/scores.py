"""Scores beyond `common.scores`: GEN, KL matching, distance to mean activations (simple OpenMax), K+1; all larger = unknown.

Pure NumPy in float64. What is fitted is fitted on known images only.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from common.errors import UserError


def log_softmax(logits) -> np.ndarray:
    """Log-probabilities `(N, K)`, exact where the softmax itself would round to 0 or 1."""
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def gen(logits, gamma: float = 0.1, top: int | None = None) -> np.ndarray:
    r"""Generalised entropy: \(u = \frac1M \sum_{k \le M} p_k^\gamma (1 - p_k)^\gamma\) over the M largest probabilities.

    Parameters
    ----------
    logits : array of shape (N, K)
    gamma : float, default .1
        In (0, 1]: small values listen to the small probabilities.
    top : int, optional
        M; default all classes (the paper: 100 of 1,000).

    Returns
    -------
    float64 array of shape (N,)
        Larger = more likely unknown. The paper sums; the mean over M differs by a constant factor.

    References
    ----------
    Liu, Lochman and Zach, "GEN: pushing the limits of softmax-based out-of-distribution detection", CVPR 2023, equation 3.
    """
    if not 0 < gamma <= 1:
        raise UserError(f"gen: gamma must lie in (0, 1], got {gamma}")
    every = -np.sort(-log_softmax(logits), axis=1)
    log_p = every[:, :top]
    with np.errstate(divide="ignore"):
        log_rest = np.log(-np.expm1(log_p))  # log(1 - p) without cancellation for small p
    # Of the largest p, 1 - p is the sum of the others: exact also where p rounds to 1.
    log_rest[:, 0] = _log_sum(every[:, 1:]) if every.shape[1] > 1 else -np.inf
    return np.exp(gamma * (log_p + log_rest)).mean(axis=1)


def _log_sum(values: np.ndarray) -> np.ndarray:
    top = values.max(axis=1, keepdims=True)
    return top[:, 0] + np.log(np.exp(values - top).sum(axis=1))


class KLMatching:
    """Divergence to the nearest mean posterior: u = min_k KL(p || d_k), d_k the mean softmax of images *predicted* as k.

    References
    ----------
    Hendrycks et al., "Scaling out-of-distribution detection for real-world settings", ICML 2022, section 4.
    """

    def fit(self, logits) -> KLMatching:
        """Take the mean posteriors from held-out known images' logits `(N, K)`; labels are not used."""
        log_p = log_softmax(logits)
        if not len(log_p):
            raise UserError("kl: needs logits of held-out known images to fit its mean posteriors")
        predicted, member = np.unique(log_p.argmax(axis=1), return_inverse=True)
        sums = np.zeros((len(predicted), log_p.shape[1]))
        np.add.at(sums, member, np.exp(log_p))
        self.posteriors = sums / np.bincount(member)[:, None]  # (classes predicted at least once, K)
        return self

    def score(self, logits) -> np.ndarray:
        """Unknown score `(N,)` in nats; at least 0, larger = more likely unknown."""
        log_p = log_softmax(logits)
        p = np.exp(log_p)
        # A posterior that rounds to 0 counts as the smallest number: the divergence is then large and finite.
        log_d = np.log(np.maximum(self.posteriors, np.finfo(np.float64).tiny))
        negative_entropy = np.where(p > 0, p * log_p, 0.0).sum(axis=1)
        return (negative_entropy[:, None] - p @ log_d.T).min(axis=1)


class MeanActivation:
    """Simple OpenMax: distance to the nearest class mean of the correctly classified training images' features.

    Parameters
    ----------
    distance : {"euclidean", "cosine"}
        u = min_c |phi - mu_c|, or 1 - max_c cos(phi, mu_c).
    """

    def __init__(self, distance: str = "euclidean"):
        if distance not in ("euclidean", "cosine"):
            raise UserError(f"openmax-simple: distance must be euclidean or cosine, got {distance!r}")
        self.distance = distance

    def fit(self, features, labels, logits, class_names=None, correct_only: bool = True) -> MeanActivation:
        """Means of features `(N, D)` over the images whose logits `(N, K)` are right, or over all (a dry run has few).

        Raises
        ------
        UserError
            A class without a correctly classified image.
        """
        from common.openmax import OpenMax

        found = OpenMax(correct_only=correct_only).calibrate(features, labels, logits, largest=1)
        if not found.used.all():
            empty = int(np.flatnonzero(found.used == 0)[0])
            name = empty if class_names is None else class_names[empty]
            raise UserError(f"openmax-simple: no training image of class {name} is classified correctly, so it has no mean")
        self.means = found.means
        return self

    def score(self, features) -> np.ndarray:
        """Unknown score `(N,)`, larger = more likely unknown."""
        return cdist(np.asarray(features, dtype=np.float64), self.means, metric=self.distance).min(axis=1)


def kplus1(logits, dummy) -> np.ndarray:
    r"""Log-odds of the class "unknown": \(u = d - \log \sum_k e^{z_k}\), a monotone map of its probability p_{K+1}.

    Parameters
    ----------
    logits : array (N, K)
    dummy : array (N,)
        Largest dummy logit d.

    Returns
    -------
    float64 array (N,)
        1 / (1 + exp(-u)) is p_{K+1}; u itself makes no ties where that rounds to 0 or 1. The raw logit d alone is not
        comparable between images.
    """
    logits, dummy = np.asarray(logits, dtype=np.float64), np.asarray(dummy, dtype=np.float64)
    return dummy - _log_sum(logits)


def kplus1_probabilities(logits, dummy, bias: float = 0.0) -> np.ndarray:
    """Probabilities `(N, K + 1)`, unknown last; `bias` is added to the dummy logit."""
    both = np.column_stack((np.asarray(logits, dtype=np.float64), np.asarray(dummy, dtype=np.float64) + bias))
    return np.exp(log_softmax(both))


def dummy_bias(logits, dummy, share: float = 0.95) -> float:
    """Bias of the dummy logit at which the share `share` of held-out known images keeps a known class as arg max (PROSER)."""
    surplus = np.asarray(dummy, dtype=np.float64) - np.asarray(logits, dtype=np.float64).max(axis=1)
    if not len(surplus):
        return 0.0
    from common.metrics.operating import threshold_accepting

    return -float(threshold_accepting(surplus, share))
