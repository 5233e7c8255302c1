"""CROSR's encoders with their decoders' layers: plain (VGG type), densenet, and small plain nets for 28x28 and 8x8.

`build_network` gives the parts that `crosr.model.DHRNet` joins: stages f_l, classifier, decoder layers g_l.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from common.errors import UserError, nearest

NAMES = ("plain", "densenet", "convnet28", "convnet8")
# The network that fits an image height in pixels when none is named.
FOR_SIZE = {8: "convnet8", 28: "convnet28", 32: "plain", 64: "plain"}
VARIANTS = ("paper", "released")
# The poolings of an encoder divide the image side by this; it must be a multiple.
STRIDE = {"plain": 8, "densenet": 4, "convnet28": 4, "convnet8": 4}
# Channels of the first stage (plain nets), growth rate (densenet).
DEFAULT_WIDTH = {"plain": 64, "densenet": 24, "convnet28": 100, "convnet8": 32}


class Network(NamedTuple):
    """Parts of a deep hierarchical reconstruction net, bottom level first.

    `stages[l]` maps x_l to x_(l+1) of `channels[l]` channels; `classifier` maps the top one to logits; `decoders[l]`
    maps `channels[l]` back to the channels below (the image's for l = 0); `expansion_relu`: ReLU after the lateral's
    expansion.
    """

    stages: list[nn.Module]
    channels: list[int]
    classifier: nn.Module
    decoders: list[nn.Module]
    expansion_relu: bool


class Dropout(nn.Module):
    """Dropout in training; `at_test` keeps it on in evaluation mode, as the re-implementations of CROSR released it."""

    def __init__(self, probability: float, at_test: bool):
        super().__init__()
        self.probability, self.at_test = probability, at_test

    def forward(self, x):
        return functional.dropout(x, self.probability, self.training or self.at_test)


class Flatten(nn.Module):
    """Flatten a map `(N, C, h, w)` for a linear layer; one of another size is average-pooled to `size` first."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x):
        if x.shape[2:] != (self.size, self.size):
            x = functional.adaptive_avg_pool2d(x, self.size)
        return x.flatten(1)


def convolution(inputs: int, outputs: int, norm: str) -> list[nn.Module]:
    """3x3 convolution with bias, BatchNorm if `norm == "batch"`, ReLU."""
    normalised = [nn.BatchNorm2d(outputs)] if norm == "batch" else []
    return [nn.Conv2d(inputs, outputs, 3, padding=1), *normalised, nn.ReLU(inplace=True)]


def plain_network(
    in_channels: int, image_size: int, classes: int, stages, hidden, *, variant: str, norm: str, dropout_at_test: bool
) -> Network:  # fmt: skip
    """Stages of 3x3 convolutions, each closed by a 2x2 max-pool and dropout .25; hidden linear layers with dropout .5.

    Parameters
    ----------
    stages : sequence of sequences of int
        Channels of the convolutions of each stage.
    hidden : sequence of int
        Widths of the hidden linear layers.
    variant : str
        `released` ends the decoder in a ReLU, which cannot reconstruct the negative half of a standardised image.
    """
    built, channels, inputs = [], [], in_channels
    for widths in stages:
        layers = []
        for outputs in widths:
            layers += convolution(inputs, outputs, norm)
            inputs = outputs
        built.append(nn.Sequential(*layers, nn.MaxPool2d(2), Dropout(0.25, dropout_at_test)))
        channels.append(inputs)
    size = image_size // 2 ** len(channels)
    classifier, inputs = [Flatten(size)], inputs * size**2
    for outputs in hidden:
        classifier += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True), Dropout(0.5, dropout_at_test)]
        inputs = outputs
    classifier.append(nn.Linear(inputs, classes))
    decoders = []
    for level, (below, above) in enumerate(zip([in_channels, *channels], channels)):
        ends_in_relu = level > 0 or variant == "released"
        decoders.append(nn.Sequential(nn.ConvTranspose2d(above, below, 2, 2), *([nn.ReLU()] if ends_in_relu else [])))
    return Network(built, channels, nn.Sequential(*classifier), decoders, expansion_relu=False)


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution to `growth` channels that are appended to the input."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.convolution = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat((x, self.convolution(functional.relu(self.norm(x)))), dim=1)


def dense_network(in_channels: int, classes: int, growth: int, layers: int = 32, stem: int = 16) -> Network:
    """DenseNet without bottlenecks or compression: three blocks of 32 layers (Huang et al. 2017).

    The authors' release, which gives 784, 1552 and 2320 channels at growth 24; the paper speaks of depth 92. Laterals
    leave at a block's end, before the transition. The decoder's inner activations are not known: ReLU here, as in the
    plain net. Its output is linear in both variants.
    """
    stages, channels, decoders, inputs = [], [], [], stem
    for level in range(3):
        if level:
            entry = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, inputs, 1, bias=False), nn.AvgPool2d(2)]
            decoder = [nn.ConvTranspose2d(inputs + layers * growth, inputs, 2, 2), nn.ReLU()]
        else:
            entry = [nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)]
            decoder = [nn.Conv2d(stem + layers * growth, stem, 3, padding=1), nn.ReLU(),
                       nn.Conv2d(stem, in_channels, 3, padding=1)]  # fmt: skip
        stages.append(nn.Sequential(*entry, *(DenseLayer(inputs + n * growth, growth) for n in range(layers))))
        decoders.append(nn.Sequential(*decoder))
        inputs += layers * growth
        channels.append(inputs)
    classifier = nn.Sequential(
        nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)
    )
    for module in (*stages, classifier):
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
    return Network(stages, channels, classifier, decoders, expansion_relu=True)


def build_network(
    name: str, classes: int, in_channels: int, image_size: int, *, width: int | None = None, norm: str = "batch",
    variant: str = "paper", dropout_at_test: bool = False,
) -> Network:  # fmt: skip
    """Return the parts of the network called `name`.

    Parameters
    ----------
    name : str
        `plain`: two stages of two and one of four (variant `released`: three) convolutions, `width` channels doubled
        from stage to stage, two linear layers of 16 x `width`. `convnet28`, the MNIST net: stages of three and two
        convolutions of `width`, one linear layer of 5 x `width`. `convnet8`: two stages of two convolutions, channels
        doubled, one linear layer of 4 x `width`. `densenet`: `width` is the growth rate.
    image_size : int
        Height and width in pixels that the linear layers are made for.

    Raises
    ------
    UserError
        Unknown name or variant, an image size that the poolings do not divide, or `norm` none with densenet.
    """
    if name not in NAMES:
        raise UserError(f"unknown backbone {name!r}, choose from {', '.join(NAMES)}{nearest(name, NAMES)}")
    if variant not in VARIANTS:
        raise UserError(f"unknown variant {variant!r}, choose from {', '.join(VARIANTS)}")
    if image_size % STRIDE[name]:
        fitting = FOR_SIZE.get(image_size)
        raise UserError(f"backbone {name} wants images whose side is a multiple of {STRIDE[name]} pixels,"
                        f" got {image_size}" + (f"; {fitting} fits" if fitting else ""))
    width = width or DEFAULT_WIDTH[name]
    if name == "densenet":
        if norm != "batch":
            raise UserError("densenet is made of batch normalisation: --norm none goes with the plain nets")
        return dense_network(in_channels, classes, width)
    if name == "plain":
        third = 3 if variant == "released" else 4
        stages, hidden = [(width,) * 2, (2 * width,) * 2, (4 * width,) * third], (16 * width, 16 * width)
    elif name == "convnet28":
        stages, hidden = [(width,) * 3, (width,) * 2], (5 * width,)
    else:
        stages, hidden = [(width,) * 2, (2 * width,) * 2], (4 * width,)
    return plain_network(in_channels, image_size, classes, stages, hidden, variant=variant, norm=norm,
                         dropout_at_test=dropout_at_test)  # fmt: skip
