"""The plain networks that no paper here claims: small conv nets, VGG, the CIFAR speed net, ResNet-18 with a 3x3 stem.

Every backbone is a module with `feature_map(images) -> (N, C, h, w)`, `pool(feature_map) -> (N, D)` and
`forward = pool(feature_map(.))`; `channels` and `dimension` give C and D. Inputs are normalised float images.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Normalise(nn.Module):
    """Turn uint8 images into normalised floats, `(N, C, H, W)`; floats pass unchanged.

    The constants travel with the weights as buffers, so a checkpoint cannot be fed wrongly scaled images. Float images
    are network inputs already: only the noise sets in the ranges of the VMDLS release come so.

    Parameters
    ----------
    mean, std : sequence of float `(C,)`
        On the 0..1 scale, as such constants are usually published.
    """

    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images):
        if images.is_floating_point():
            return images
        return (images.float() - self.mean) / self.std


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the batch of all processes, on any device (torch's SyncBatchNorm refuses the CPU).

    Sums pass through a differentiable all-reduce, so several processes train as one does on the joined batch.
    """

    @staticmethod
    def convert(model: nn.Module) -> None:
        """Turn every `BatchNorm2d` of a model into this form, in place."""
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = GlobalBatchNorm2d

    def forward(self, images):
        if not self.training:
            return super().forward(images)
        from torch.distributed.nn.functional import all_reduce

        count = all_reduce(torch.tensor(float(images.numel() // images.shape[1]), device=images.device))
        mean = all_reduce(images.float().sum((0, 2, 3))) / count
        centred = images.float() - mean.view(1, -1, 1, 1)
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = (self.weight * (variance + self.eps).rsqrt()).view(1, -1, 1, 1)
        return (centred * scale + self.bias.view(1, -1, 1, 1)).to(images.dtype)


class Backbone(nn.Module):
    """Common form of the backbones: a feature map, then global average pooling unless a subclass pools otherwise."""

    channels: int
    dimension: int

    def feature_map(self, images: torch.Tensor) -> torch.Tensor:
        """Last feature map, `(N, channels, h, w)`."""
        return self.layers(images)

    def pool(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Pooled features, `(N, dimension)`."""
        return feature_map.mean(dim=(2, 3))

    def forward(self, images):
        return self.pool(self.feature_map(images))


def conv_block(inputs: int, outputs: int, norm: str) -> list[nn.Module]:
    """3x3 convolution, BatchNorm if `norm == "batch"`, ReLU."""
    if norm == "batch":
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]


class ConvNet8(Backbone):
    """Three 3x3 convolutions and one pooling for 8x8 images; feature map `(2 width, 4, 4)`."""

    def __init__(self, in_channels: int = 1, width: int = 32, norm: str = "batch", image_size: int = 8):
        super().__init__()
        self.layers = nn.Sequential(
            *conv_block(in_channels, width, norm),
            *conv_block(width, width, norm),
            nn.MaxPool2d(2),
            *conv_block(width, 2 * width, norm),
        )
        self.channels = self.dimension = 2 * width


class ConvNet28(Backbone):
    """Five 3x3 convolutions (2, pooling, 2, pooling, 1) of one width for 28x28 images; feature map `(width, 7, 7)`."""

    def __init__(self, in_channels: int = 1, width: int = 32, norm: str = "batch", image_size: int = 28):
        super().__init__()
        self.layers = nn.Sequential(
            *conv_block(in_channels, width, norm),
            *conv_block(width, width, norm),
            nn.MaxPool2d(2),
            *conv_block(width, width, norm),
            *conv_block(width, width, norm),
            nn.MaxPool2d(2),
            *conv_block(width, width, norm),
        )
        self.channels = self.dimension = width


class VGG(Backbone):
    """VGG-style net of eight 3x3 convolutions with BatchNorm and two linear layers; `width` is that of the first stage.

    Stages of (1, 2), (4, 4) and (4, 4, 4, 4) times `width` channels, a 2x2 max-pool after each, then two linear layers of
    16 times `width` with ReLU: at the default 64 the plain CIFAR net of CROSR (Yoshihashi 2019, section 5).
    """

    def __init__(self, in_channels: int = 3, width: int = 64, norm: str = "batch", image_size: int = 32):
        super().__init__()
        layers, inputs = [], in_channels
        for stage in ((1, 2), (4, 4), (4, 4, 4, 4)):
            for factor in stage:
                layers += conv_block(inputs, factor * width, norm)
                inputs = factor * width
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.channels, self.dimension = inputs, 16 * width
        self.head = nn.Sequential(
            nn.Linear(inputs * (image_size // 8) ** 2, self.dimension),
            nn.ReLU(),
            nn.Linear(self.dimension, self.dimension),
            nn.ReLU(),
        )

    def pool(self, feature_map):
        return self.head(feature_map.flatten(1))


class SpeedNet(Backbone):
    """Small, fast CIFAR net after Jordan 2024 (arXiv 2404.00498): whitening stem, three blocks of two convolutions.

    Stem: 2x2 convolution fixed to the eigenvectors of training patches and their negatives (`whiten` sets them), trainable
    bias, GELU. Block: conv 3x3 - max-pool 2 - BatchNorm - GELU - conv 3x3 - BatchNorm - GELU. BatchNorm has no scale, running
    momentum .4 and eps 1e-12. Feature map `(4 width, 3, 3)` at 32x32; pooling takes the maximum.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, norm: str = "batch", image_size: int = 32):
        super().__init__()
        stem = 2 * 4 * in_channels
        self.whitening = nn.Conv2d(in_channels, stem, 2)
        self.whitening.weight.requires_grad = False
        layers, inputs = [nn.GELU()], stem
        for outputs in (width, 4 * width, 4 * width):
            layers += [self._conv(inputs, outputs), nn.MaxPool2d(2), self._norm(outputs), nn.GELU()]
            layers += [self._conv(outputs, outputs), self._norm(outputs), nn.GELU()]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.channels = self.dimension = inputs

    @staticmethod
    def _conv(inputs: int, outputs: int) -> nn.Conv2d:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        # The first channels pass on unchanged at the start, which saves the first hundred steps.
        nn.init.dirac_(conv.weight[:inputs].detach())
        return conv

    @staticmethod
    def _norm(channels: int) -> nn.BatchNorm2d:
        norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
        norm.weight.requires_grad = False
        return norm

    @torch.no_grad()
    def whiten(self, images: torch.Tensor, eps: float = 5e-4) -> None:
        """Set the stem from normalised training images `(N, C, H, W)`; a few thousand are enough."""
        channels = images.shape[1]
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1)  # (N, C, H-1, W-1, 2, 2)
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 4 * channels).double()
        covariance = patches.T @ patches / len(patches)
        values, vectors = torch.linalg.eigh(covariance)
        scaled = (vectors / (values + eps).sqrt()).T.flip(0).reshape(-1, channels, 2, 2)
        self.whitening.weight.copy_(torch.cat((scaled, -scaled)))
        self.whitening.bias.zero_()

    def feature_map(self, images):
        return self.layers(self.whitening(images))

    def pool(self, feature_map):
        return functional.adaptive_max_pool2d(feature_map, 1).flatten(1)


class ResNet18(Backbone):
    """torchvision's ResNet-18 with the small-image stem: 3x3 convolution of stride 1, no max-pool; map `(512, 4, 4)` at 32x32."""

    def __init__(self, in_channels: int = 3, width: int = 64, norm: str = "batch", image_size: int = 32):
        super().__init__()
        from torchvision.models import resnet18

        net = resnet18(num_classes=1)
        net.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.layers = nn.Sequential(net.conv1, net.bn1, net.relu, net.layer1, net.layer2, net.layer3, net.layer4)
        self.channels = self.dimension = 512


BACKBONES = {"convnet8": ConvNet8, "convnet28": ConvNet28, "vgg": VGG, "speednet": SpeedNet, "resnet18": ResNet18}
