"""K+1 training: how a network without unknown images learns a class "unknown" (Zhou et al. 2021, PROSER; Hendrycks 2019).

Outputs are `(N, K + D)`: the K class logits z and D dummy logits; d is the largest dummy logit, and `[z, d]` has K + 1.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from common.errors import UserError


def joined(outputs: torch.Tensor, classes: int) -> torch.Tensor:
    """`[z, d]`, `(N, K + 1)`, unknown last."""
    if outputs.shape[1] <= classes:
        raise UserError(f"K+1 training needs dummy logits beside the {classes} class logits, got {outputs.shape[1]} outputs")
    dummy = outputs[:, classes:].max(1, keepdim=True).values
    return torch.cat((outputs[:, :classes], dummy), 1)


def known_loss(both: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy of `[z, d]` with the true class."""
    return functional.cross_entropy(both, labels, label_smoothing=label_smoothing)


def placeholder_loss(both: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `[z without the true class, d]` with "unknown", so that the dummy comes second (PROSER)."""
    others = both.scatter(1, labels[:, None], float("-inf"))
    return unknown_loss(others)


def unknown_loss(both: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `[z, d]` with "unknown"; for mixed hidden maps (PROSER, data placeholder) and outliers."""
    target = torch.full((len(both),), both.shape[1] - 1, dtype=torch.int64, device=both.device)
    return functional.cross_entropy(both, target)


def different_partners(labels: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """For each sample a random one of another class.

    Returns
    -------
    kept, partner : int64 tensors (M,)
        Positions of the samples that have one (all, unless the batch has a single class), and their partners' positions.
    """
    labels = labels.cpu()
    other = (labels[:, None] != labels[None, :]).double()
    kept = torch.nonzero(other.any(1)).flatten()
    if not len(kept):
        return kept, kept
    partner = torch.multinomial(other[kept], 1, generator=generator).flatten()
    return kept, partner


def mixing_shares(count: int, alpha: float, generator: torch.Generator) -> torch.Tensor:
    """Shares lambda ~ Beta(alpha, alpha), float32 `(count,)`, from a seeded generator."""
    import numpy as np

    seed = int(torch.randint(0, 2**31 - 1, (1,), generator=generator))
    return torch.from_numpy(np.random.RandomState(seed).beta(alpha, alpha, count)).float()
