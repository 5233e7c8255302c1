"""Scores that need no training: logits in, unknown score out (pure NumPy, float64).

Every function takes logits `(N, K)` and returns an unknown score `(N,)`: **larger = more likely unknown**,
the sign of `pytorch-ood`. They are computed without cancellation, so that a very sure network does not make
ties: in float32 the maximum softmax probability of most images of a well trained network is exactly 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from common.errors import UserError


def msp(logits) -> np.ndarray:
    r"""Maximum softmax probability, on a logarithmic scale: \(u = -\log \max_k p_k\).

    The published score is \(1 - \max_k p_k\); the logarithm is a monotone map of it, so every metric that
    depends on the order of scores is the same. `1 - exp(-msp(logits))` is the published scale.

    Parameters
    ----------
    logits : array of shape (N, K)
        Outputs of the classifier before the softmax.

    Returns
    -------
    float64 array of shape (N,)
        In [0, log K]; larger = more likely unknown.

    Notes
    -----
    Computed as log(1 + sum of exp(z_k - z_max) over the other classes): a sample at logit margin 50 still
    differs from one at margin 51, where float32 (from margin 17) and even float64 (from 37) would round
    both probabilities to 1.

    References
    ----------
    Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution examples", ICLR
    2017.

    Examples
    --------
    >>> u = msp([[2.0, 0.0], [0.0, 0.0], [60.0, 0.0], [61.0, 0.0]])
    >>> np.round(1 - np.exp(-u), 6).tolist()
    [0.119203, 0.5, 0.0, 0.0]
    >>> bool(u[2] > u[3])
    True
    """
    return np.log1p(_other_mass(_checked(logits))[1])


def mls(logits) -> np.ndarray:
    r"""Maximum logit score: \(u = -\max_k z_k\).

    Parameters
    ----------
    logits : array of shape (N, K)
        Outputs of the classifier before the softmax.

    Returns
    -------
    float64 array of shape (N,)
        Larger = more likely unknown.

    References
    ----------
    Vaze, Han, Vedaldi and Zisserman, "Open-set recognition: a good closed-set classifier is all you need?",
    ICLR 2022.

    Examples
    --------
    >>> mls([[2.0, 0.5], [-1.0, -3.0]]).tolist()
    [-2.0, 1.0]
    """
    return -_checked(logits).max(axis=1)


def energy(logits, temperature: float = 1.0) -> np.ndarray:
    r"""Free energy of the logits: \(u = -T \log \sum_k \exp(z_k / T)\).

    Parameters
    ----------
    logits : array of shape (N, K)
        Outputs of the classifier before the softmax.
    temperature : float, default 1
        T > 0; towards 0 the score becomes `mls`.

    Returns
    -------
    float64 array of shape (N,)
        Larger = more likely unknown.

    References
    ----------
    Liu, Wang, Owens and Li, "Energy-based out-of-distribution detection", NeurIPS 2020.

    Examples
    --------
    >>> energy([[0.0, 0.0], [3.0, 0.0]]).round(6).tolist()
    [-0.693147, -3.048587]
    """
    if not temperature > 0:
        raise UserError(f"energy: the temperature must be above 0, got {temperature}")
    scaled = _checked(logits) / temperature
    top, others = _other_mass(scaled)
    return -temperature * (top + np.log1p(others))


def entropy(logits) -> np.ndarray:
    r"""Entropy of the softmax in nats: \(u = -\sum_k p_k \log p_k\).

    Parameters
    ----------
    logits : array of shape (N, K)
        Outputs of the classifier before the softmax.

    Returns
    -------
    float64 array of shape (N,)
        In [0, log K]; larger = more likely unknown.

    Notes
    -----
    Written as \(\log \sum_k e^{z_k - z_{max}} + \sum_k p_k (z_{max} - z_k)\): all terms are non-negative,
    so nothing cancels and sure samples keep distinct scores.

    Examples
    --------
    >>> entropy([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]]).round(6).tolist()
    [1.386294, 0.003701]
    """
    logits = _checked(logits)
    log_total = np.log1p(_other_mass(logits)[1])
    gap = logits.max(axis=1, keepdims=True) - logits  # (N, K), >= 0
    return log_total + (np.exp(-gap - log_total[:, None]) * gap).sum(axis=1)


def margin(logits) -> np.ndarray:
    r"""Negative margin between the two largest logits: \(u = -(z_{(1)} - z_{(2)})\).

    Parameters
    ----------
    logits : array of shape (N, K), K >= 2
        Outputs of the classifier before the softmax.

    Returns
    -------
    float64 array of shape (N,)
        At most 0; larger = more likely unknown.

    Examples
    --------
    >>> margin([[5.0, 1.0, 4.5], [2.0, 2.0, 0.0]]).tolist()
    [-0.5, -0.0]
    """
    logits = _checked(logits)
    if logits.shape[1] < 2:
        raise UserError("margin: needs logits of at least 2 classes, got 1")
    top_two = np.partition(logits, -2, axis=1)[:, -2:]
    return -(top_two[:, 1] - top_two[:, 0])


SCORES: dict[str, Callable[..., np.ndarray]] = {
    "msp": msp,
    "mls": mls,
    "energy": energy,
    "entropy": entropy,
    "margin": margin,
}


def _checked(logits) -> np.ndarray:
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise UserError(f"logits must have shape (samples, classes), got {logits.shape}")
    bad = ~np.isfinite(logits).all(axis=1)
    if bad.any():
        count, first = int(bad.sum()), int(bad.argmax())
        raise UserError(f"logits: {count} of {len(bad)} rows hold NaN or infinity (first: row {first})")
    return logits


def _other_mass(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest logit (N,) and the sum of exp(z_k - largest) over all other classes (N,)."""
    rows = np.arange(len(logits))
    best = logits.argmax(axis=1)
    top = logits[rows, best]
    relative = np.exp(logits - top[:, None])
    relative[rows, best] = 0.0
    return top, relative.sum(axis=1)
