"""Softmax classifier: normalisation, a plain backbone, one linear layer."""

from __future__ import annotations

import torch
from torch import nn

from common.backbones import BACKBONES, Normalise

# The backbone that fits an image size when none is named.
BACKBONE_FOR_SIZE = {8: "convnet8", 28: "convnet28", 32: "speednet"}


class Classifier(nn.Module):
    """K-class softmax classifier.

    Parameters
    ----------
    backbone : str
        Name in `common.backbones.BACKBONES`.
    classes : int
        Number of known classes K.
    shape : tuple of int
        `(C, H, W)` of the images.
    mean, std : sequence of float
        Normalisation constants per channel on the 0..1 scale.
    width : int, optional
        Width of the backbone; its own default when omitted.
    norm : str
        `batch` or `none`.
    logit_scale : float
        Factor on the logits; the speed net uses 1/9 (Jordan 2024).
    """

    def __init__(self, backbone, classes, shape, mean, std, width=None, norm="batch", logit_scale=1.0):
        super().__init__()
        channels, height, _ = shape
        options = {} if width is None else {"width": width}
        self.normalise = Normalise(mean, std)
        self.backbone = BACKBONES[backbone](in_channels=channels, image_size=height, norm=norm, **options)
        self.classifier = nn.Linear(self.backbone.dimension, classes, bias=logit_scale == 1.0)
        self.logit_scale = logit_scale

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features of uint8 images, `(N, D)`."""
        images = self.normalise(images).contiguous(memory_format=torch.channels_last)
        return self.backbone(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, `(N, K)`."""
        return self.classifier(self.features(images)) * self.logit_scale


def mirrored(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits averaged over the images and their mirror images, `(N, K)`."""
    return 0.5 * (model(images) + model(images.flip(-1)))
