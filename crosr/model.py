"""CROSR's network: a classifier whose stages are reconstructed through narrow laterals (DHRNet).

Yoshihashi et al. 2019, "Classification-Reconstruction Learning for Open-Set Recognition" (CVPR), section 4:

    x_(l+1) = f_l(x_l)                             encoder, l = 0 .. L - 1; logits y from x_L
    z_l     = ReLU(h_l(x_l))                       latent, 32 channels, l = 1 .. L
    g~_l    = g_l(g~_(l+1) + h~_l(z_l))            decoder, from the top; reconstruction of the image at the bottom
    loss    = cross-entropy(y) + weight * mean squared error of the reconstruction

OpenMax then works on [y, z_L, ..., z_1] (`features.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from common.backbones import Normalise
from common.errors import UserError
from crosr.networks import build_network

LATENT_CHANNELS = 32
POOLINGS = ("max", "avg")
# Normalisation of the PyTorch release for CIFAR-10.
RELEASED_MEAN, RELEASED_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Output(NamedTuple):
    """What the network gives for N images.

    `logits (N, K)`; `latents` z_L, ..., z_1, top first, each `(N, 32, h, w)`; `reconstruction` and `target`, the
    normalised input, both `(N, C, H, W)`.
    """

    logits: torch.Tensor
    latents: list[torch.Tensor]
    reconstruction: torch.Tensor
    target: torch.Tensor


class DHRNet(nn.Module):
    """Deep hierarchical reconstruction net.

    Parameters
    ----------
    backbone : str
        Name in `crosr.networks.NAMES`.
    classes : int
        Number of known classes K.
    shape : sequence of int
        `(C, H, W)` of the images.
    mean, std : sequence of float
        Normalisation constants per channel on the 0..1 scale.
    width : int, optional
        Channels of the first stage, or densenet's growth rate; else the paper's.
    norm : str
        `batch` or `none`: normalisation after the convolutions of the plain nets.
    variant : str
        `paper`: four convolutions in the plain net's third stage, linear reconstruction; `released`: three, and a ReLU
        on the reconstruction, as in the PyTorch release.
    dropout_at_test : bool
        Leave dropout on in evaluation mode, as the PyTorch release does.
    crop_size : int, optional
        The authors' release sees the central `crop_size` pixels of an image, resized to H x W (densenet: as they are);
        training images come cropped already.
    """

    def __init__(
        self, backbone, classes, shape, mean, std, width=None, norm="batch", variant="paper", dropout_at_test=False,
        crop_size=None,
    ):  # fmt: skip
        super().__init__()
        if crop_size and crop_size > min(shape[1:]):
            raise UserError(f"--crop_size {crop_size} is larger than the images, {shape[1]}x{shape[2]} pixels")
        self.crop_size = crop_size
        self.resized = tuple(shape[1:]) if crop_size and backbone != "densenet" else None
        self.normalise = Normalise(mean, std)
        size = crop_size if crop_size and not self.resized else shape[1]
        network = build_network(backbone, classes, shape[0], size, width=width, norm=norm, variant=variant,
                                dropout_at_test=dropout_at_test)  # fmt: skip
        self.stages, self.classifier = nn.ModuleList(network.stages), network.classifier
        self.bottlenecks = nn.ModuleList(nn.Conv2d(c, LATENT_CHANNELS, 3, padding=1) for c in network.channels)
        self.expansions = nn.ModuleList(nn.Conv2d(LATENT_CHANNELS, c, 3, padding=1) for c in network.channels)
        self.decoders = nn.ModuleList(network.decoders)
        self.expansion_relu = network.expansion_relu

    def inputs(self, images: torch.Tensor) -> torch.Tensor:
        """Network inputs of images `(N, C, H, W)`, cropped and resized where asked; floats count as normalised."""
        images = self.normalise(images)
        if self.crop_size:
            top, left = ((side - self.crop_size) // 2 for side in images.shape[2:])
            images = images[:, :, top : top + self.crop_size, left : left + self.crop_size]
        if self.resized:
            images = functional.interpolate(images, size=self.resized, mode="bilinear", align_corners=False)
        return images.contiguous(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> Output:
        target = self.inputs(images)
        maps, x = [], target
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        latents = [functional.relu(bottleneck(x)) for bottleneck, x in zip(self.bottlenecks, maps)]
        decoded = None
        for z, expansion, decoder in reversed(list(zip(latents, self.expansions, self.decoders))):
            lateral = expansion(z)
            if self.expansion_relu:
                lateral = functional.relu(lateral)
            decoded = decoder(lateral if decoded is None else lateral + decoded)
        return Output(self.classifier(maps[-1]), latents[::-1], decoded, target)


def pooled_latents(latents: Sequence[torch.Tensor], pooling: str = "max") -> torch.Tensor:
    """Latent maps `(N, C_l, h, w)`, pooled over positions (`max`, `avg`) and joined in order, `(N, sum of C_l)`."""
    if pooling not in POOLINGS:
        raise UserError(f"unknown pooling {pooling!r}, choose from {', '.join(POOLINGS)}")
    return torch.cat([z.amax((2, 3)) if pooling == "max" else z.mean((2, 3)) for z in latents], dim=1)


def classification_loss(output: Output, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, mean over the batch, of labels int64 `(N,)`."""
    return functional.cross_entropy(_at_least_float32(output.logits), labels)


def reconstruction_loss(output: Output) -> torch.Tensor:
    """Squared error of the reconstruction, mean over all elements."""
    return functional.mse_loss(_at_least_float32(output.reconstruction), output.target)


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.itemsize < 4 else values


def _own_name(name: str) -> str | None:
    """Our name of a tensor of the PyTorch release; None for a name that it does not have."""
    match = re.fullmatch(r"(conv|bn)([123])_([123])\.(\w+)", name)
    if match:
        kind, stage, number, field = match.groups()
        return f"stages.{int(stage) - 1}.{3 * int(number) - 3 + (kind == 'bn')}.{field}"
    match = re.fullmatch(r"(btl|btlu|deconv|fc)([1-6])\.(\w+)", name)
    if not match:
        return None
    kind, number, field = match.groups()
    if kind == "fc":
        # Flatten, then linear, ReLU, dropout in turn.
        return f"classifier.{3 * (int(number) - 4) + 1}.{field}"
    module = {"btl": "bottlenecks", "btlu": "expansions", "deconv": "decoders"}[kind]
    return f"{module}.{int(number) - 1}{'.0' if kind == 'deconv' else ''}.{field}"


def released_state_dict(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State of `DHRNet("plain", ..., variant="released")` from the tensors of the PyTorch release (`dhr_net.pt`).

    The file holds no normalisation: its constants for CIFAR-10 are added.

    Raises
    ------
    UserError
        A tensor that the release does not have.
    """
    named = {name: _own_name(name) for name in tensors}
    foreign = [name for name, own in named.items() if own is None]
    if foreign:
        raise UserError(f"not the tensors of the released DHRNet: {', '.join(foreign[:5])}")
    return Normalise(RELEASED_MEAN, RELEASED_STD).state_dict(prefix="normalise.") | {
        own: tensors[name] for name, own in named.items()
    }
