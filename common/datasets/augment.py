"""Random augmentation of a batch: policies that draw their numbers through `Draws` and apply whole-batch operations.

A policy is called as `policy(pixels, draws) -> pixels` with this process's images, uint8 `(N, C, H, W)`. Every number is
drawn for the global batch and in a fixed sequence that no image content changes, so several processes see the same
augmentation as one. `repr(policy)` names all parameters; runs record it.
"""

from __future__ import annotations

import torch

from common.datasets import geometry


class Compose:
    """Apply policies one after another."""

    def __init__(self, *policies):
        self.policies = policies

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        for policy in self.policies:
            pixels = policy(pixels, draws)
        return pixels

    def __repr__(self):
        return f"Compose({', '.join(map(repr, self.policies))})"


class RandomFlip:
    """Mirror each image left and right with a probability."""

    def __init__(self, probability: float = 0.5):
        self.probability = _share("probability", probability)

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        return geometry.horizontal_flip(pixels, draws.uniform() < self.probability)

    def __repr__(self):
        return f"RandomFlip(probability={self.probability})"


class AlternatingFlip:
    """Mirror each image in every second epoch, so that two epochs show both views (Jordan 2024, arXiv 2404.00498).

    Parameters
    ----------
    seed : int
        Chooses, for every position in the data set, whether its first epoch is the mirrored one. No number is drawn:
        the choice is a hash of position and seed, so it holds over epochs, batches and processes.
    """

    def __init__(self, seed: int = 0):
        self.seed = int(seed)

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        return geometry.horizontal_flip(pixels, (_hash(draws.index, self.seed) + draws.epoch) % 2 == 1)

    def __repr__(self):
        return f"AlternatingFlip(seed={self.seed})"


class RandomShift:
    """Shift each image by up to `padding` pixels each way (pad, then crop to the old size).

    Parameters
    ----------
    padding : int
        Pixels.
    mode : "reflect" or "zero"
        What comes in at the border: the mirrored image, or black.
    """

    def __init__(self, padding: int, mode: str = "reflect"):
        if mode not in ("reflect", "zero"):
            raise ValueError(f"padding mode must be reflect or zero, got {mode}")
        if padding < 0:
            raise ValueError(f"padding must be at least 0, got {padding}")
        self.padding, self.mode = padding, mode

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        offsets = draws.integers(0, 2 * self.padding + 1, 2)
        return geometry.pad_crop(pixels, offsets, self.padding, self.mode)

    def __repr__(self):
        return f"RandomShift(padding={self.padding}, mode={self.mode!r})"


def _share(name: str, value: float) -> float:
    """Check a probability."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in 0..1, got {value}")
    return value


def _hash(index: torch.Tensor, seed: int) -> torch.Tensor:
    """Mix positions, int64 `(N,)`, with a seed to evenly spread non-negative int64 (the finaliser of splitmix64)."""
    low = (1 << 63) - 1  # int64 shifts carry the sign along: keep the numbers non-negative before each shift
    state = (index + 1) * 0x1E3779B97F4A7C15 + (seed * 0x3F58476D1CE4E5B9 & low)
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB)):
        state = state & low
        state = (state ^ (state >> shift)) * factor
    state = state & low
    return (state ^ (state >> 31)) >> 16
