"""The encoders of VMDLS: networks that give three feature maps and the encoder output g(x), their feature ensemble.

| name | g | maps t1, t2, t3 (after) | source |
|---|---|---|---|
| mnist-conv | 500 | 100, 100, 100 (convolutions 2, 3, 4) | plain CNN of CROSR (Yoshihashi et al. 2019) |
| vgg | 1024 | 128, 256, 256 (convolutions 2, 4, 8) | the same paper's CIFAR net |
| resnet18, resnet34, resnet50 | 512, 512, 2048 | stages 1, 2, 3 | He et al. 2016, 3x3 stem for small images |
| densenet | 342 | 108, 150, 342 (dense blocks 1, 2, 3) | DenseNet-BC-100, growth 12 (Huang et al. 2017) |
| wresnet | 640 | 160, 320, 640 (groups 1, 2, 3) | WRN-28-10 (Zagoruyko and Komodakis 2016) |
| small | 64 | 32, 32, 64 (convolutions 1, 2, 3) | ours, for 8x8 images; the baseline's `convnet8` |
| speednet | 256 | 64, 256, 256 (blocks 1, 2, 3) | ours, for CIFAR on a laptop; the baseline's `speednet` |

Parameters of the residual and dense nets are named as in torchvision and in the usual CIFAR code
(`block1.layer.0.conv1`), so that published softmax-trained weights load by name.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from common.backbones import ConvNet8, SpeedNet
from common.errors import UserError


class Encoder(nn.Module):
    """Common form: `stages(images)` yields the maps t1, t2, t3 `(N, C_i, h_i, w_i)`, then g `(N, k)`, one by one.

    Images are normalised floats. `dimension` is k, `layer_dimensions` are the channels of the maps. Whoever wants the
    first map alone takes `next(encoder.stages(images))`: later layers are then not computed.
    """

    dimension: int
    layer_dimensions: tuple[int, int, int]

    @abstractmethod
    def stages(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield t1, t2, t3 and g."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encoder output g, `(N, k)`."""
        *_, output = self.stages(images)
        return output


class TappedEncoder(Encoder):
    """Layers one after another; the maps are the outputs of the layers with the indices `taps`."""

    layers: nn.Sequential
    taps: tuple[int, int, int]

    def stages(self, images):
        for index, layer in enumerate(self.layers):
            images = layer(images)
            if index in self.taps:
                yield images
        yield images


class MNISTConv(TappedEncoder):
    """Five 3x3 convolutions with bias (2, pooling, 2, pooling, 1, pooling), linear to 500 without activation.

    `released_slices`: the maps of the released program, one layer too early: convolution 2 before its ReLU, then its
    pooled output, then convolution 3.
    """

    def __init__(self, in_channels: int = 1, image_size: int = 28, width: int = 100, released_slices: bool = False):
        super().__init__()
        layers, inputs = [], in_channels
        for convolutions in (2, 2, 1):
            for _ in range(convolutions):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (image_size // 8) ** 2, 500))
        self.taps = (2, 4, 6) if released_slices else (3, 6, 8)
        self.layer_dimensions, self.dimension = (width, width, width), 500


class VGG(TappedEncoder):
    """Eight 3x3 convolutions with bias, BatchNorm and ReLU in stages of 2, 2, 4, then two linear layers with ReLU.

    `width` is that of the first convolution; paper: 64. `released_slices`: the maps before the ReLU.
    """

    def __init__(self, in_channels: int = 3, image_size: int = 32, width: int = 64, released_slices: bool = False):
        super().__init__()
        layers, inputs = [], in_channels
        for stage in ((1, 2), (4, 4), (4, 4, 4, 4)):
            for factor in stage:
                outputs = factor * width
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.dimension = 16 * width
        head = [nn.Flatten(), nn.Linear(inputs * (image_size // 8) ** 2, self.dimension), nn.ReLU()]
        self.layers = nn.Sequential(*layers, *head, nn.Linear(self.dimension, self.dimension), nn.ReLU())
        self.taps = (4, 11, 24) if released_slices else (5, 12, 25)
        self.layer_dimensions = (2 * width, 4 * width, 4 * width)


class Small(TappedEncoder):
    """Three 3x3 convolutions with BatchNorm and ReLU for 8x8 images; g is the last map's mean."""

    def __init__(self, in_channels: int = 1, image_size: int = 8, width: int = 32):
        super().__init__()
        net = ConvNet8(in_channels, width)
        self.layers = nn.Sequential(*net.layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.taps = (2, 5, 9)
        self.layer_dimensions, self.dimension = (width, width, 2 * width), net.dimension


class SpeedNetEncoder(TappedEncoder, SpeedNet):
    """The speed net; maps are the outputs of its three blocks, g is the last map's maximum over positions."""

    def __init__(self, in_channels: int = 3, image_size: int = 32, width: int = 64):
        super().__init__(in_channels, width)
        self.taps = (7, 14, 21)
        self.layer_dimensions, self.dimension = (width, 4 * width, 4 * width), self.channels

    def stages(self, images):
        *maps, last = super().stages(self.whitening(images))
        yield from maps
        yield self.pool(last)


class ResNet(Encoder):
    """torchvision's ResNet without its classifier, default initialisation.

    Stem: 3x3 convolution of stride 1, no pooling; `first_conv`: 7x7 of stride 2; `maxpool1`: 3x3 max-pool of stride 2.
    """

    def __init__(self, block, counts, in_channels: int = 3, first_conv: bool = False, maxpool1: bool = False):
        super().__init__()
        from torchvision.models.resnet import ResNet as Standard

        net = Standard(block, counts, num_classes=1)
        stem = (7, 2, 3) if first_conv else (3, 1, 1)
        self.conv1 = nn.Conv2d(in_channels, 64, *stem, bias=False)
        self.bn1, self.relu = net.bn1, net.relu
        self.maxpool = nn.MaxPool2d(3, 2, 1) if maxpool1 else nn.Identity()
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
        self.layer_dimensions = tuple(width * block.expansion for width in (64, 128, 256))
        self.dimension = 512 * block.expansion

    def stages(self, images):
        maps = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in (self.layer1, self.layer2, self.layer3):
            maps = stage(maps)
            yield maps
        yield self.layer4(maps).mean((2, 3))


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution to 4 times the growth, BatchNorm, ReLU, 3x3 convolution; joined to the input."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        grown = self.conv1(functional.relu(self.bn1(x)))
        return torch.cat((x, self.conv2(functional.relu(self.bn2(grown)))), 1)


class Transition(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution to half the channels, 2x2 average."""

    def __init__(self, inputs: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x):
        return functional.avg_pool2d(self.conv1(functional.relu(self.bn1(x))), 2)


class Block(nn.Module):
    """Layers in sequence, under the name that published weights use."""

    def __init__(self, layers):
        super().__init__()
        self.layer = nn.Sequential(*layers)

    def forward(self, x):
        return self.layer(x)


class DenseNet(Encoder):
    """DenseNet-BC-100, growth 12: three dense blocks of 16 layers, transitions after the first two.

    Convolutions start from N(0, 2/16) as released: 16 is the number of layers a block, where the fan was meant. The
    pool of g is a window of a quarter of `image_size`, so on larger images g sees their corner and t3 all of them.
    """

    def __init__(self, in_channels: int = 3, image_size: int = 32, growth: int = 12, layers: int = 16):
        super().__init__()
        self.window = image_size // 4
        channels, dimensions = 2 * growth, []
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        for number in (1, 2, 3):
            setattr(self, f"block{number}", Block([DenseLayer(channels + i * growth, growth) for i in range(layers)]))
            channels += layers * growth
            if number < 3:
                setattr(self, f"trans{number}", Transition(channels))
                channels //= 2
            dimensions.append(channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer_dimensions, self.dimension = tuple(dimensions), channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=math.sqrt(2 / layers))

    def stages(self, images):
        first = self.trans1(self.block1(self.conv1(images)))
        yield first
        second = self.trans2(self.block2(first))
        yield second
        third = functional.relu(self.bn1(self.block3(second)))
        yield third
        yield functional.avg_pool2d(third, self.window).flatten(1)


class WideLayer(nn.Module):
    """Pre-activation block of two 3x3 convolutions with dropout between them; 1x1 shortcut where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, dropout_at_test: bool):
        super().__init__()
        self.dropout, self.dropout_at_test = dropout, dropout_at_test
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x):
        entry = functional.relu(self.bn1(x))
        out = functional.relu(self.bn2(self.conv1(entry)))
        out = functional.dropout(out, self.dropout, self.training or self.dropout_at_test)
        return self.conv2(out) + (x if self.convShortcut is None else self.convShortcut(entry))


class WideResNet(Encoder):
    """WRN-28-10 with dropout .1; t1 and t2 are the groups' sums before BatchNorm and ReLU, t3 comes after them.

    `dropout_at_test`: keep dropout in evaluation mode, as the released program does (its test features are random).
    """

    def __init__(
        self, in_channels: int = 3, image_size: int = 32, dropout_at_test: bool = False, depth: int = 28,
        width: int = 10,
    ):  # fmt: skip
        super().__init__()
        self.window = image_size // 4
        self.layer_dimensions = (16 * width, 32 * width, 64 * width)
        self.dimension, inputs = 64 * width, 16
        self.conv1 = nn.Conv2d(in_channels, inputs, 3, padding=1, bias=False)
        for number, outputs in enumerate(self.layer_dimensions, 1):
            layers = []
            for index in range((depth - 4) // 6):
                stride = 2 if number > 1 and index == 0 else 1
                layers.append(WideLayer(inputs, outputs, stride, 0.1, dropout_at_test))
                inputs = outputs
            setattr(self, f"block{number}", Block(layers))
        self.bn1 = nn.BatchNorm2d(inputs)

    def stages(self, images):
        first = self.block1(self.conv1(images))
        yield first
        second = self.block2(first)
        yield second
        third = functional.relu(self.bn1(self.block3(second)))
        yield third
        yield functional.avg_pool2d(third, self.window).flatten(1)


def initialise_kaiming(encoder: nn.Module) -> None:
    """Draw convolutions and linear layers as He et al. 2015 do for ReLU, biases 0, in place.

    The release leaves PyTorch's own initialisation, under which the plain CNN's output hardly differs between images at
    first (standard deviation .002 against .4): it learns only after some thousand steps.
    """
    for module in encoder.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


RESNETS = {"resnet18": ("BasicBlock", [2, 2, 2, 2]), "resnet34": ("BasicBlock", [3, 4, 6, 3]),
           "resnet50": ("Bottleneck", [3, 4, 6, 3])}  # fmt: skip
WITH_WIDTH = {"mnist-conv": MNISTConv, "vgg": VGG, "small": Small, "speednet": SpeedNetEncoder}
NAMES = ("mnist-conv", "vgg", *RESNETS, "densenet", "wresnet", "small", "speednet")
# Smallest image side in pixels that leaves every encoder at least one position.
SMALLEST = {"mnist-conv": 8, "vgg": 8, "small": 4, "speednet": 9}


def build_encoder(
    name: str, in_channels: int, image_size: int, *, width: int | None = None, first_conv: bool = False,
    maxpool1: bool = False, released_slices: bool = False, dropout_at_test: bool = False,
) -> Encoder:  # fmt: skip
    """Return the encoder called `name` for square images of `image_size` pixels.

    Raises
    ------
    UserError
        The images are too small for it, or an option belongs to other encoders.
    """
    if name not in NAMES:
        raise ValueError(f"unknown encoder {name!r}; choose from {', '.join(NAMES)}")
    for flag, given, where in (
        ("--width", width is not None, tuple(WITH_WIDTH)), ("--first_conv", first_conv, tuple(RESNETS)),
        ("--maxpool1", maxpool1, tuple(RESNETS)), ("--released_slices", released_slices, ("mnist-conv", "vgg")),
        ("--dropout_at_test", dropout_at_test, ("wresnet",)),
    ):  # fmt: skip
        if given and name not in where:
            raise UserError(f"{flag} goes with --enc_type {', '.join(where)}; {name} has no such thing")
    if image_size < SMALLEST.get(name, 4):
        raise UserError(f"--enc_type {name} needs images of at least {SMALLEST.get(name, 4)} pixels, got {image_size}")
    if name in RESNETS:
        from torchvision.models import resnet

        block, counts = RESNETS[name]
        return ResNet(getattr(resnet, block), counts, in_channels, first_conv, maxpool1)
    if name == "densenet":
        return DenseNet(in_channels, image_size)
    if name == "wresnet":
        return WideResNet(in_channels, image_size, dropout_at_test)
    options = {} if width is None else {"width": width}
    if name in ("mnist-conv", "vgg"):
        options["released_slices"] = released_slices
    return WITH_WIDTH[name](in_channels, image_size, **options)
