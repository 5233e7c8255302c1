"""The networks of CSSR: Wide ResNets and ResNets with LeakyReLU for small images; each gives a feature map.

Beside them `build_backbone` knows the plain nets of `common.backbones`: `convnet8` for digits, `convnet28` for MNIST,
`speednet` for CIFAR-10 on a laptop.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from common.backbones import BACKBONES, Backbone

# Depth, width and dropout of the released Wide ResNets.
WIDE_RESNETS = {
    "wideresnet40-4": (40, 4, 0.0),
    "wideresnet28-2": (28, 2, 0.0),
    "wideresnet16-8": (16, 8, 0.4),
    "wideresnet28-10": (28, 10, 0.3),
}
# Blocks per stage, and stride of the first stage.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), 1),
    "resnet34": ((3, 4, 6, 3), 1),
    "resnet18a": ((2, 2, 2, 2), 2),
    "resnet18b": ((2, 2, 2, 2), 2),
}
PLAIN = ("convnet8", "convnet28", "speednet")
NAMES = (*WIDE_RESNETS, *RESNETS, *PLAIN)
# The backbone that fits an image size when none is named.
FOR_SIZE = {8: "convnet8", 28: "convnet28", 32: "wideresnet40-4", 64: "resnet18"}


class WideBlock(nn.Module):
    """Pre-activation block of two 3x3 convolutions with LeakyReLU(.1); a 1x1 shortcut where the width changes.

    `raw_entry`: the released form of blocks that change the width after the first group: convolution and shortcut both
    take the input as it is, so that the first BatchNorm has no effect (it stays, frozen, for the published weights).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, momentum: float, raw_entry: bool):
        super().__init__()
        self.dropout, self.raw_entry = dropout, raw_entry
        self.bn1 = nn.BatchNorm2d(inputs, momentum=momentum).requires_grad_(not raw_entry)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, momentum=momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x):
        entry = x if self.raw_entry else functional.leaky_relu(self.bn1(x), 0.1)
        out = functional.leaky_relu(self.bn2(self.conv1(entry)), 0.1)
        if self.dropout:
            out = functional.dropout(out, self.dropout, self.training)
        return self.conv2(out) + (x if self.shortcut is None else self.shortcut(entry))


class WideResNet(Backbone):
    """Wide ResNet d-w (Zagoruyko and Komodakis 2016) with LeakyReLU(.1) and slow BatchNorm, as CSSR released it.

    Parameters
    ----------
    in_channels : int
    depth, width : int
        (depth - 4) / 6 blocks in each of three groups of 16, 32 and 64 times `width` channels, strides 1, 2, 2.
    dropout : float
        Between the convolutions of a block, in training.
    standard : bool
        Normalise the input of every block. Released: not where groups 2 and 3 change the width.
    momentum : float
        Weight of a new batch in BatchNorm's running statistics; .001 needs thousands of steps to settle.
    """

    def __init__(self, in_channels=3, depth=40, width=4, dropout=0.0, standard=False, momentum=0.001):
        super().__init__()
        blocks, inputs = [], 16
        self.stem = nn.Conv2d(in_channels, inputs, 3, padding=1, bias=False)
        for group in range(3):
            outputs = 16 * width * 2**group
            for number in range((depth - 4) // 6):
                stride = 2 if group and not number else 1
                raw = not standard and group > 0 and inputs != outputs
                blocks.append(WideBlock(inputs, outputs, stride, dropout, momentum, raw))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs, momentum=momentum)
        self.channels = self.dimension = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def feature_map(self, images):
        return functional.leaky_relu(self.norm(self.blocks(self.stem(images))), 0.1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, LeakyReLU(.01) between them, ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.01),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return functional.relu(self.residual(x) + self.shortcut(x))


class LeakyResNet(Backbone):
    """ResNet for small images as CSSR released it: 3x3 stem of stride 1, no pooling; map `(512, H/8, W/8)`."""

    def __init__(self, in_channels=3, blocks=(2, 2, 2, 2), first_stride=1):
        super().__init__()
        layers = [nn.Conv2d(in_channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.LeakyReLU(0.01)]
        inputs = 64
        for stage, count in enumerate(blocks):
            for number in range(count):
                stride = (2 if stage else first_stride) if number == 0 else 1
                layers.append(ResidualBlock(inputs, 64 * 2**stage, stride))
                inputs = 64 * 2**stage
        self.layers = nn.Sequential(*layers)
        self.channels = self.dimension = inputs


class Projected(Backbone):
    """A backbone followed by 1x1 convolution, BatchNorm and LeakyReLU(.2) to another number of channels."""

    def __init__(self, backbone: Backbone, channels: int):
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Sequential(
            nn.Conv2d(backbone.channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.LeakyReLU(0.2)
        )
        self.channels = self.dimension = channels

    def feature_map(self, images) -> torch.Tensor:
        return self.projection(self.backbone.feature_map(images))


def build_backbone(
    name: str, in_channels: int, image_size: int, *, width=None, norm="batch", standard_wrn=False, projection_dim=-1
) -> Backbone:
    """Return the backbone called `name`; `projection_dim` > 0 appends a projection.

    A ResNet is always projected then, the others only to a number of channels that they do not have already.
    """
    if name in WIDE_RESNETS:
        depth, factor, dropout = WIDE_RESNETS[name]
        backbone = WideResNet(in_channels, depth, factor, dropout, standard=standard_wrn)
    elif name in RESNETS:
        backbone = LeakyResNet(in_channels, *RESNETS[name])
    elif name in PLAIN:
        options = {} if width is None else {"width": width}
        backbone = BACKBONES[name](in_channels=in_channels, image_size=image_size, norm=norm, **options)
    else:
        raise ValueError(f"unknown backbone {name!r}; choose from {', '.join(NAMES)}")
    if projection_dim > 0 and (name in RESNETS or projection_dim != backbone.channels):
        return Projected(backbone, projection_dim)
    return backbone
