"""The general network: normalisation, any backbone, a neck, a linear layer, and dummy logits for "unknown".

`model.py` holds the plain classifier that most rows use; `build_network` gives that one wherever it is enough.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn import functional

from baseline_openmax.model import Classifier
from baseline_openmax.sized_backbones import build
from common.backbones import Normalise
from common.errors import UserError

NECKS = ("none", "linear", "mlp", "batch_norm")
CLASSIFIERS = ("linear", "weight_norm")
# What a header of the general network has beyond that of the plain classifier.
GENERAL = ("image_size", "neck", "neck_dim", "classifier", "dummies", "stem", "timm", "frozen")


def make_neck(kind: str, inputs: int, outputs: int) -> tuple[nn.Module, int]:
    """The part between pooled features and classifier, and the length of what it gives.

    `none`; `linear`; `mlp`: linear - ReLU - linear; `batch_norm`: linear - BatchNorm - ReLU (the neck of deep-osr).
    """
    if kind == "none":
        return nn.Identity(), inputs
    if kind == "linear":
        return nn.Linear(inputs, outputs), outputs
    if kind == "mlp":
        return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs)), outputs
    if kind == "batch_norm":
        return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()), outputs
    raise ValueError(f"unknown neck {kind!r}; choose from {', '.join(NECKS)}")


class OpenSetNetwork(nn.Module):
    """Backbone - neck - classifier, with D dummy logits that stand for "unknown" in K+1 training.

    Parameters
    ----------
    backbone, classes, shape, mean, std, width, norm, logit_scale
        As of `baseline_openmax.model.Classifier`; the backbone is any name of `baseline_openmax.backbones`.
    image_size : int, optional
        Side to which images are resized (bilinear) before the backbone; default: their own.
    neck : str
        One of `NECKS`, of `neck_dim` outputs.
    classifier : str
        `linear`, or `weight_norm`: direction and length of the weights are separate parameters.
    dummies : int
        Number D of dummy logits; 0 for a K-way network.
    stem : str
        `small` or `imagenet`, of timm's convolutional networks.
    timm : bool
        Take timm's form of a backbone that `common` has as well.
    frozen : bool
        The backbone is not trained, and stays in evaluation mode so that its statistics do not move.
    pretrained, weights
        Where a new network's backbone starts; of no meaning for one that is loaded.
    """

    def __init__(
        self, backbone, classes, shape, mean, std, width=None, norm="batch", logit_scale=1.0, *, image_size=None,
        neck="none", neck_dim=512, classifier="linear", dummies=0, stem="small", timm=False, frozen=False,
        pretrained=False, weights=None,
    ):  # fmt: skip
        super().__init__()
        channels, height, _ = shape
        self.classes, self.dummies, self.frozen, self.logit_scale = classes, dummies, frozen, logit_scale
        self.image_size = None if image_size in (None, height) else image_size
        self.normalise = Normalise(mean, std)
        self.backbone = build(backbone, channels, image_size or height, width=width, norm=norm, stem=stem,
                              pretrained=pretrained, weights=weights, timm=timm)  # fmt: skip
        self.neck, dimension = make_neck(neck, self.backbone.dimension, neck_dim)
        self.classifier = nn.Linear(dimension, classes, bias=logit_scale == 1.0)
        if classifier == "weight_norm":
            self.classifier = nn.utils.parametrizations.weight_norm(self.classifier)
        self.dummy = nn.Linear(dimension, dummies, bias=logit_scale == 1.0) if dummies else None
        if frozen:
            self.backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        """Training mode; a frozen backbone's normalisation keeps its statistics."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the classifier sees of images (uint8, or normalised floats), `(N, D)`."""
        images = self.normalise(images)
        if self.image_size is not None:
            images = functional.interpolate(images, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        images = images.contiguous(memory_format=torch.channels_last)
        return self.neck(self.backbone(images))

    def heads(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of the classes and then the dummy logits, `(N, K + D)`."""
        logits = self.classifier(features)
        if self.dummy is not None:
            logits = torch.cat((logits, self.dummy(features)), 1)
        return logits * self.logit_scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, `(N, K + D)`."""
        return self.heads(self.features(images))

    @contextlib.contextmanager
    def mixing(self, partner: torch.Tensor, share: torch.Tensor) -> Iterator[None]:
        """Within this context the hidden map of image i becomes `share_i h_i + (1 - share_i) h_partner(i)` (manifold mixup).

        The map is that after the middle part of the backbone. `partner` int64 `(N,)`, `share` float `(N,)`.
        """

        def mix(module, inputs, output):
            weight = share.view(-1, *[1] * (output.ndim - 1)).to(output.dtype)
            return weight * output + (1 - weight) * output[partner]

        handle = middle_of(self.backbone).register_forward_hook(mix)
        try:
            yield
        finally:
            handle.remove()


def middle_of(backbone: nn.Module) -> nn.Module:
    """The part of a backbone after which hidden maps are mixed: half way through its layers."""
    net = getattr(backbone, "net", backbone)
    for name in ("layer2", "blocks"):
        part = getattr(net, name, None)
        if part is not None:
            return part[len(part) // 2] if name == "blocks" else part
    layers = getattr(net, "layers", None)
    if layers is None:
        raise UserError("manifold mixup knows no middle of this backbone: choose another one, or --kplus1 placeholder")
    return layers[len(layers) // 2]


def is_general(settings: Mapping) -> bool:
    """Whether a header's `model` describes an `OpenSetNetwork`."""
    return any(key in settings for key in GENERAL)


def build_network(settings: Mapping) -> nn.Module:
    """The network that a checkpoint's header (`model`) describes."""
    return (OpenSetNetwork if is_general(settings) else Classifier)(**settings)


def dummies_of(settings: Mapping) -> int:
    """Number of dummy logits that the network of a header gives after its K class logits."""
    return settings.get("dummies", 0)
