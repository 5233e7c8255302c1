"""The auto-encoders whose reconstructions weight VMDLS's score; each maps normalised images to normalised images.

| name | known sets | bottleneck | form |
|---|---|---|---|
| resnet18, resnet50 | CIFAR-10, CIFAR-100 | 256 | ResNet with a 3x3 stem; residual blocks that repeat pixels to enlarge |
| mnist | MNIST | 32 | the encoder `mnist-conv`; linear 500 and 900, six 2x2 transposed convolutions |
| small | sides divisible by 4 | free | ours, for tests and two CPU cores: strided and transposed 4x4 convolutions |

Dinari and Freifeld 2022, supplement, section 8. The training is in `ae_training.py`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from common.backbones import Normalise
from common.errors import UserError
from vmdls.encoders import build_encoder

NAMES = ("resnet18", "resnet50", "mnist", "small")
# Output width of the encoders, which users of the release name with --enc_out_dim.
ENCODER_OF = {"resnet18": "resnet18", "resnet50": "resnet50", "mnist": "mnist-conv"}


def enlarge(factor: int) -> nn.Module:
    """Repeat every pixel `factor` times in both directions."""
    return nn.Upsample(scale_factor=factor) if factor > 1 else nn.Identity()


class DecoderBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, the second on the enlarged map; 1x1 shortcut where size or width change."""

    def __init__(self, inputs: int, outputs: int, factor: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.enlarge = enlarge(factor)
        self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        changes = factor > 1 or inputs != outputs
        shortcut = (enlarge(factor), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(*shortcut) if changes else nn.Identity()

    def forward(self, maps):
        out = self.bn1(self.conv1(maps)).relu()
        out = self.bn2(self.conv2(self.enlarge(out)))
        return (out + self.shortcut(maps)).relu()


class ResNetDecoder(nn.Module):
    """Latent vectors to images: linear to 512 maps, four stages of two blocks, 3x3 convolution without activation.

    Widths 256, 128, 64, 64; the first three stages double the size. `image_size` is divisible by 8.
    """

    def __init__(self, latent_dim: int, out_channels: int, image_size: int):
        super().__init__()
        self.start = image_size // 8
        self.linear = nn.Linear(latent_dim, 512 * self.start**2)
        blocks, inputs = [], 512
        for outputs, factor in ((256, 2), (128, 2), (64, 2), (64, 1)):
            blocks += [DecoderBlock(inputs, outputs, factor), DecoderBlock(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.conv = nn.Conv2d(inputs, out_channels, 3, padding=1, bias=False)

    def forward(self, latent):
        return self.conv(self.blocks(self.linear(latent).unflatten(1, (512, self.start, self.start))))


def mnist_decoder(latent_dim: int, out_channels: int, width: int) -> nn.Sequential:
    """Latent vectors to 28x28 images: two linear layers, transposed 2x2 convolutions 3 -> 7 and 7 -> 28, 1x1 convolution."""
    layers: list[nn.Module] = [nn.Linear(latent_dim, 500), nn.Linear(500, 9 * width), nn.Unflatten(1, (width, 3, 3))]
    for stride in (1, 1, 1, 1, 2, 2):
        layers += [nn.ConvTranspose2d(width, width, 2, stride), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, out_channels, 1))


def small_network(latent_dim: int, channels: int, image_size: int, width: int) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of 4x4 convolutions of stride 2 (three at 32 pixels, else two) around a linear bottleneck."""
    widths = [channels, *(width * 2**stage for stage in range(3 if image_size % 8 == 0 and image_size > 8 else 2))]
    side = image_size // 2 ** (len(widths) - 1)
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        down += [nn.Conv2d(inputs, outputs, 4, 2, padding=1), nn.ReLU()]
        up = [nn.ReLU(), nn.ConvTranspose2d(outputs, inputs, 4, 2, padding=1), *up]
    flat = widths[-1] * side**2
    encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, latent_dim))
    return encoder, nn.Sequential(nn.Linear(latent_dim, flat), nn.Unflatten(1, (widths[-1], side, side)), *up)


class AutoEncoder(nn.Module):
    """An auto-encoder with the normalisation it was trained in.

    Parameters
    ----------
    autoencoder : str
        Name in `NAMES`.
    shape : tuple of int
        `(C, H, W)` of the images.
    mean, std : sequence of float
        Normalisation constants per channel on the 0..1 scale; those of the classifier it shall serve.
    latent_dim : int
        Width of the bottleneck.
    width : int, optional
        Channels of `mnist` (paper and default 100) and of `small`'s first convolution (32).
    first_conv, maxpool1 : bool
        Stem of the ResNets, see `vmdls.encoders.build_encoder`.

    Raises
    ------
    UserError
        The image size does not fit the network.
    """

    def __init__(
        self, autoencoder, shape, mean, std, *, latent_dim=256, width=None, first_conv=False, maxpool1=False
    ):  # fmt: skip
        super().__init__()
        channels, height, columns = shape
        step = {"mnist": 28, "small": 4}.get(autoencoder, 8)
        if height != columns or height % step or (autoencoder == "mnist" and height != 28):
            wanted = "28x28" if autoencoder == "mnist" else f"square, with a side divisible by {step}"
            raise UserError(f"the auto-encoder {autoencoder} is for images of {wanted}, got {height}x{columns}")
        if width is not None and autoencoder not in ("mnist", "small"):
            raise UserError(f"--width goes with --enc_type mnist, small; {autoencoder} has no such thing")
        self.normalise = Normalise(mean, std)
        if autoencoder == "small":
            self.encoder, self.decoder = small_network(latent_dim, channels, height, width or 32)
            return
        options = {"width": width} if autoencoder == "mnist" else {"first_conv": first_conv, "maxpool1": maxpool1}
        encoder = build_encoder(ENCODER_OF[autoencoder], channels, height, **options)
        self.encoder = nn.Sequential(encoder, nn.Linear(encoder.dimension, latent_dim))
        self.decoder = (
            mnist_decoder(latent_dim, channels, width or 100)
            if autoencoder == "mnist"
            else ResNetDecoder(latent_dim, channels, height)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstructions `(N, C, H, W)`, in normalised floats, of uint8 images (floats count as normalised)."""
        return self.decoder(self.encoder(self.normalise(images).contiguous(memory_format=torch.channels_last)))


def initialise_for_relu(autoencoder: nn.Module) -> None:
    """Draw convolutions, transposed ones and linear layers as He et al. 2015 do for ReLU, biases 0, in place.

    With PyTorch's own initialisation, which the release leaves, the fourteen layers of `mnist` pass on so little of an
    image at first that a short training ends at the mean image.
    """
    for module in autoencoder.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
