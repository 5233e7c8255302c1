"""ODIN (Liang, Li, Srikant 2018): a small step of the input towards its predicted class, then softmax at a high temperature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional


def perturbed(
    logits_of: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, temperature: float, step: float, std=None
) -> torch.Tensor:
    """Normalised images moved by `step` against the sign of the gradient of -log max softmax(z / T); shape as given.

    `std` (C,): the step is divided by the normalisation's deviation, so that it is the same for every channel of the
    unnormalised image (values in [0, 1]). Without it, as in the released program for unit deviations.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = logits_of(images).float() / temperature
        loss = functional.cross_entropy(logits, logits.argmax(1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
    direction = gradient.sign()
    if std is not None:
        direction = direction / torch.as_tensor(std, dtype=direction.dtype, device=direction.device).view(1, -1, 1, 1)
    return images.detach() - step * direction


def odin_logits(logits_of, images, temperature: float = 1000.0, step: float = 0.0014, std=None) -> torch.Tensor:
    """Logits / T of the perturbed images, `(N, K)`; their `msp` is the unknown score.

    Parameters
    ----------
    logits_of : callable
        Normalised images `(N, C, H, W)` to logits.
    images : float tensor
        Normalised images.
    temperature : float
        T; the authors' 1000.
    step : float
        epsilon; the authors' .0014 for CIFAR-10 and DenseNet.
    """
    moved = perturbed(logits_of, images, temperature, step, std)
    with torch.no_grad():
        return logits_of(moved).float() / temperature
