"""CSSR's network: backbone, one auto-encoder per known class, probabilities from reconstruction errors.

    z = backbone(x)                                feature map (N, C, H, W)
    e_i(p) = ||A_i(z_p) - z_p||                    error of class i at position p (autoencoders.py)
    l_i(p) = clamp(-/+ gamma e_i(p), -100, 100)    minus: pcssr (small error = this class); plus: rcssr (reciprocal)
    P_i    = mean over p of softmax_i l(p)         `softmax_avg`; the linear baseline: softmax of the mean, `avg_softmax`
    loss   = mean over the batch of -log P_y

The linear baseline has l(p) = gamma W z_p in place of the errors, without clamp.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from common.backbones import Normalise
from cssr.autoencoders import ClassAutoencoders, uniform_stack
from cssr.backbones import build_backbone

MODELS = ("pcssr", "rcssr", "linear")
ORDERS = ("softmax_avg", "avg_softmax")
CLIP = 100.0
# Values of the released configurations by model, where a flag is not given.
DEFAULT_GAMMA = {"pcssr": 0.1, "rcssr": 0.1, "linear": 1.0}
DEFAULT_ORDER = {"pcssr": "softmax_avg", "rcssr": "softmax_avg", "linear": "avg_softmax"}


class ReconstructionHead(nn.Module):
    """Logit map `(N, m, H, W)` from the class-specific reconstruction errors, `pcssr` or `rcssr`."""

    def __init__(self, model, classes, channels, latent=64, hidden=(), gamma=0.1, error="L1"):
        super().__init__()
        self.autoencoders = ClassAutoencoders(classes, channels, latent, hidden, error)
        self.scale = gamma if model == "rcssr" else -gamma

    def forward(self, feature_map):
        return (self.scale * self.autoencoders(feature_map)).clamp(-CLIP, CLIP)


class LinearHead(nn.Module):
    """Logit map `gamma W z_p`, `(N, m, H, W)`: a 1x1 convolution without bias."""

    def __init__(self, classes, channels, gamma=1.0):
        super().__init__()
        self.weight = uniform_stack(classes, channels)
        self.scale = gamma

    def forward(self, feature_map):
        feature_map = feature_map.to(self.weight.dtype)
        return self.scale * functional.conv2d(feature_map, self.weight[:, :, None, None])


def log_probabilities(logit_map: torch.Tensor, order: str) -> torch.Tensor:
    """Logarithm of the class probabilities P, `(N, m)`, of a logit map `(N, m, H, W)`.

    Computed on the logarithmic scale throughout: the released product of a one-hot vector and log P is NaN as soon as
    any class probability underflows.
    """
    logits = logit_map.flatten(2)
    if order == "avg_softmax":
        return functional.log_softmax(logits.mean(2), dim=1)
    return torch.logsumexp(functional.log_softmax(logits, dim=1), dim=2) - math.log(logits.shape[2])


class CSSR(nn.Module):
    """Normalisation, backbone and head.

    Parameters
    ----------
    model : str
        `pcssr`, `rcssr` or `linear`.
    backbone : str
        Name in `cssr.backbones.NAMES`.
    classes : int
        Number of known classes m.
    shape : tuple of int
        `(C, H, W)` of the images.
    mean, std : sequence of float
        Normalisation constants per channel on the 0..1 scale.
    width, norm, standard_wrn, projection_dim
        See `cssr.backbones.build_backbone`.
    ae_hidden, ae_latent, gamma, error_measure, arch_type
        Hidden widths, latent width k (0: prototype points), factor on the errors, `L1` or `L2`, and `softmax_avg` or
        `avg_softmax`.
    mirror_test : bool
        Evaluate an image together with its mirror image (see `evaluation_map`).
    """

    def __init__(
        self, model, backbone, classes, shape, mean, std, *, width=None, norm="batch", standard_wrn=False,
        projection_dim=-1, ae_hidden=(), ae_latent=64, gamma=0.1, error_measure="L1", arch_type="softmax_avg",
        mirror_test=False,
    ):  # fmt: skip
        super().__init__()
        self.kind, self.arch_type, self.mirror_test = model, arch_type, mirror_test
        self.normalise = Normalise(mean, std)
        self.backbone = build_backbone(
            backbone, shape[0], shape[1], width=width, norm=norm, standard_wrn=standard_wrn,
            projection_dim=projection_dim,
        )  # fmt: skip
        if model == "linear":
            self.head = LinearHead(classes, self.backbone.channels, gamma)
        else:
            self.head = ReconstructionHead(
                model, classes, self.backbone.channels, ae_latent, ae_hidden, gamma, error_measure
            )

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        """Feature map `(N, C, h, w)` of uint8 images `(N, C, H, W)` (floats count as normalised already)."""
        images = self.normalise(images).contiguous(memory_format=torch.channels_last)
        return self.backbone.feature_map(images)

    def logit_map(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Logit map `(N, m, h, w)`; the head computes in its own precision, outside autocast."""
        with torch.autocast(feature_map.device.type, enabled=False):
            return self.head(feature_map)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the known classes, `(N, m)`."""
        return log_probabilities(self.logit_map(self.feature_map(images)), self.arch_type)

    def evaluation_map(self, images: torch.Tensor) -> torch.Tensor:
        """Feature map for scoring, `(N, C, h, w)`; with `mirror_test` `(N, C, 2 h, w)`.

        The mirror image's positions are further positions of the same image: everything that CSSR averages or sums over
        positions then runs over both.
        """
        feature_map = self.feature_map(images)
        if self.mirror_test:
            feature_map = torch.cat((feature_map, self.feature_map(images.flip(-1))), dim=2)
        return feature_map.float()
