"""The losses of VMDLS: triplet and distancing terms over all triplets of a batch, and the Kullback-Leibler term.

Every triplet (a, p, n) with y_a = y_p != y_n and a != p costs

    l(a, p, n) = [d(a, p) - d(a, n) + M_t]_+ + [M - d(a, n)]_+

and the loss is the mean over the triplets that cost anything. No triplet is ever listed: the sum is linear in the
distances with integer weights (how many active terms each distance is part of), and those are counts in sorted rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional

TRIPLET_MARGIN = 0.1
INITIAL_MARGIN = 0.15
PRIOR_STD = 0.1


class MetricLoss(NamedTuple):
    """Loss `()` and the exact number of triplets that are active in it, float64 `()`."""

    loss: torch.Tensor
    active: torch.Tensor


class _Activity(NamedTuple):
    weights: torch.Tensor  # (N, N): how often each distance counts, negative for a negative pair
    constant: torch.Tensor  # (): the margins of all active terms
    active: torch.Tensor  # (): triplets with l > 0


def pairwise_distances(embeddings: torch.Tensor, normalise: bool = True) -> torch.Tensor:
    """Euclidean distances `(N, N)` of embeddings `(N, d)`, L2-normalised first unless told otherwise.

    Without the matrix-product shortcut, which is wrong for close pairs.
    """
    if normalise:
        embeddings = functional.normalize(embeddings)
    return torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")


def metric_loss(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    margin: float,
    *,
    triplet_margin: float = TRIPLET_MARGIN,
    normalise: bool = True,
    block: int = 64,
) -> MetricLoss:
    """Triplet and distancing loss over all triplets of a batch, averaged over the active ones (0 when there are none).

    Parameters
    ----------
    embeddings : Tensor `(N, d)`
        Sampled z.
    labels : Tensor, int64 `(N,)`
    margin : float
        Distancing margin M.
    triplet_margin : float
        M_t.
    normalise : bool
        L2-normalise the embeddings, as released; then no distance exceeds 2. False: as the paper's supplement reads.
    block : int
        Anchors at a time: bounds the memory beside the `(N, N)` distances.

    Returns
    -------
    MetricLoss
        NaN where an embedding is not finite.

    Raises
    ------
    ValueError
        Shapes do not fit.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        got = f"{tuple(embeddings.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"expected embeddings (N, d) and labels (N,), got {got}")
    distances = pairwise_distances(embeddings, normalise)
    weights, constant, active = _activity(distances.detach(), labels, margin, triplet_margin, block)
    # A large sum of small differences: in float64, so that cancellation costs nothing.
    total = (weights * distances.double()).sum() + constant
    return MetricLoss((total / active.clamp(min=1)).to(embeddings.dtype), active)


@torch.no_grad()
def _activity(distances, labels, margin: float, triplet_margin: float, block: int) -> _Activity:
    members, valid = _class_members(labels)
    weights = torch.zeros(distances.shape, dtype=torch.float64, device=distances.device)
    constant = active = torch.zeros((), dtype=torch.float64, device=distances.device)
    for start in range(0, len(labels), block):
        rows = slice(start, start + block)
        columns, positive = members[rows], valid[rows]
        # Infinity: never closer than anything.
        negatives = distances[rows].masked_fill(labels[rows, None] == labels, math.inf)
        negatives, order = negatives.sort(1)
        negatives = negatives.double()
        reach = distances[rows].gather(1, columns).double() + triplet_margin
        # Negatives that are nearer than d(a, p) + M_t, and those that are active for any reason.
        nearer = torch.searchsorted(negatives, reach) * positive
        either = torch.searchsorted(negatives, reach.clamp(min=margin)) * positive
        # The same seen from a negative: it is one of the `nearer` of all positives whose count is beyond its own place.
        ends = torch.zeros(len(order), len(labels) + 1, dtype=torch.int64, device=order.device)
        ends.scatter_add_(1, nearer, positive.long())
        positives = positive.sum(1, keepdim=True)
        reached = positives - ends.cumsum(1)[:, :-1]
        inside = positives * (negatives < margin)
        part = weights[rows]  # a view
        part.scatter_(1, order, -(reached + inside).double())
        part.scatter_add_(1, columns, nearer.double())
        constant = constant + triplet_margin * nearer.sum().double() + margin * inside.sum().double()
        active = active + either.sum()
    return _Activity(weights, constant, active)


def _class_members(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For every sample the positions of its class `(N, largest class)`, and which of them are another sample of it."""
    order = labels.argsort(stable=True)
    _, inverse, sizes = labels.unique(return_inverse=True, return_counts=True)
    place = torch.arange(int(sizes.max()), device=labels.device)
    start = sizes.cumsum(0) - sizes
    within = place < sizes[inverse, None]
    members = order[(start[inverse, None] + place).clamp(max=len(labels) - 1)]
    return members, within & (members != torch.arange(len(labels), device=labels.device)[:, None])


def margin_at(epoch: int, first_epoch: int, jump: float, maximum: float, initial: float = INITIAL_MARGIN) -> float:
    """Distancing margin M in `epoch`: from `first_epoch` on it grows by `jump` each epoch while at most `maximum`.

    The last growth starts from a margin <= maximum, so M ends above it: 32.15 for M_d = 32 and jumps of 1, as released.
    """
    margin = initial
    for _ in range(first_epoch, epoch + 1):
        if margin > maximum:
            break
        margin += jump
    return margin


def sample(mean: torch.Tensor, log_variance: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """z = mu + sigma eps, `(N, d)`."""
    return mean + (0.5 * log_variance).exp() * noise


def kl_closed(mean, log_variance, prior_mean, prior_std: float = PRIOR_STD) -> torch.Tensor:
    """D_KL(N(mu, sigma^2) || N(m, s^2)) of every dimension, `(N, d)` (supplement of the paper, section on the KL term).

    log(s / sigma) + (sigma^2 + (mu - m)^2) / (2 s^2) - 1/2; 0 where mu = m and sigma = s.
    """
    spread = (log_variance.exp() + (mean - prior_mean).square()) / (2 * prior_std**2)
    return math.log(prior_std) - 0.5 * log_variance + spread - 0.5


def kl_sampled(z, mean, log_variance, prior_mean, prior_std: float = PRIOR_STD) -> torch.Tensor:
    """One-sample estimate log N(z; mu, sigma^2) - log N(z; m, s^2) of every dimension, `(N, d)`, as released."""
    posterior = -0.5 * ((z - mean).square() / log_variance.exp() + log_variance)
    prior = -0.5 * ((z - prior_mean) / prior_std).square() - math.log(prior_std)
    return posterior - prior


def kl_term(divergence: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Mean of `(N, d)` divergences over dimensions and samples of a class, then over the classes present; `()`."""
    counts = torch.bincount(labels, minlength=classes)
    weights = 1 / (counts[labels] * (counts > 0).sum()).to(divergence.dtype)
    return (divergence.mean(1) * weights).sum()
