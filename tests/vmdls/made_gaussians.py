"""Features of classes with known Gaussians, and the Gaussians fitted to features."""

import torch

from vmdls.scores import ClassMoments, Gaussians, pack


def made(samples=120, columns=5, classes=3, seed=0):
    """Features `(samples, columns)` float64 and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    shift = 3 * torch.randn(classes, columns, generator=generator, dtype=torch.float64)
    # Standard deviations from .5 to 2 along random axes: the jitter stays small against all of them.
    axes = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))[0]
    mixing = torch.linspace(0.5, 2, columns, dtype=torch.float64)[:, None] * axes
    return shift[labels] + torch.randn(samples, columns, generator=generator, dtype=torch.float64) @ mixing, labels


def fitted(features, labels):
    moments = ClassMoments(int(labels.max()) + 1, features.shape[1])
    moments.add(features, labels)
    mean, covariance = moments.finish()
    return Gaussians(mean, pack(covariance))
