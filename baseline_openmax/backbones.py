"""Every backbone by name: the plain nets of `common`, classifier32, and timm's networks with small-image stem or own weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from common.backbones import BACKBONES as PLAIN
from common.backbones import Backbone
from common.errors import UserError, nearest

# Our name: timm's name.
TIMM = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_b4": "efficientnet_b4",
    "vit_b16": "vit_base_patch16_224",
    "vit_s16": "vit_small_patch16_224",
    "vit_ti16": "vit_tiny_patch16_224",
    "dinov2_s14": "vit_small_patch14_dinov2",
    "dinov2_b14": "vit_base_patch14_dinov2",
    "dinov2_l14": "vit_large_patch14_dinov2",
    "dinov2_g14": "vit_giant_patch14_dinov2",
}
PREFIX = "timm:"
NAMES = (*PLAIN, "classifier32", *(name for name in TIMM if name not in PLAIN))
# Smallest side in pixels that leaves a feature map of at least one pixel.
SMALLEST = {"convnet8": 2, "convnet28": 4, "vgg": 8, "speednet": 27, "resnet18": 8, "classifier32": 8}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Classifier32(Backbone):
    """The nine-convolution net of Neal et al. 2018 that ARPL and Vaze et al. 2022 call classifier32 or VGG32; 128 features.

    Three stages of three 3x3 convolutions, the last of each with stride 2, BatchNorm and LeakyReLU(.2) after each, channel
    dropout .2 before each stage; global average pooling. Widths 64, 64, 128, then 128 throughout.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, norm: str = "batch", image_size: int = 32):
        super().__init__()
        wide = 2 * width
        layers, inputs = [], in_channels
        for stage in ((width, width, wide), (wide, wide, wide), (wide, wide, wide)):
            layers.append(nn.Dropout2d(0.2))
            for number, outputs in enumerate(stage):
                layers.append(nn.Conv2d(inputs, outputs, 3, stride=1 + number // 2, padding=1, bias=norm == "none"))
                layers += [nn.BatchNorm2d(outputs)] if norm == "batch" else []
                layers.append(nn.LeakyReLU(0.2))
                inputs = outputs
        self.layers = nn.Sequential(*layers)
        self.channels = self.dimension = inputs


class TimmBackbone(nn.Module):
    """A network of timm up to its pooled features, `(N, dimension)`.

    Parameters
    ----------
    name : str
        Key of `TIMM`, or `timm:` and any name that timm knows.
    in_channels, image_size : int
        Of the images it will see; transformers are built for that size.
    stem : str
        `small`: a ResNet starts with a 3x3 convolution of stride 1 and no max-pool, an EfficientNet with stride 1;
        `imagenet`: as published.
    pretrained : bool
        Take timm's published weights; with a small stem the first convolution of a ResNet stays random.
    weights : path, optional
        A local file with them instead (safetensors, or a state dict that is read weights-only).

    Raises
    ------
    UserError
        timm or the name or the weights are not there.
    """

    def __init__(
        self, name: str, in_channels: int = 3, image_size: int = 32, stem: str = "small",
        pretrained: bool = False, weights: str | None = None,
    ):  # fmt: skip
        super().__init__()
        known = timm_name(name)
        options = {"img_size": image_size} if is_transformer(name) else {}
        if weights is not None:
            options["pretrained_cfg_overlay"] = {"file": str(weights), "custom_load": False, "url": "", "hf_hub_id": None}
        self.net = _create(name, known, pretrained or weights is not None, weights, in_chans=in_channels, **options)
        if stem == "small":
            _small_stem(self.net, in_channels)
        self.channels = self.dimension = self.net.num_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (transformers: the class token where the network pools so), `(N, dimension)`."""
        return self.net(images)


def timm_name(name: str) -> str:
    """The name under which timm knows a backbone of ours."""
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX)
    if name not in TIMM:
        raise UserError(f"unknown backbone {name!r}, choose from {', '.join(NAMES)}, {PREFIX}NAME{nearest(name, NAMES)}")
    return TIMM[name]


def timm_module():
    """The library timm; a `UserError` says how to get it."""
    try:
        import timm
    except ImportError:
        raise UserError("this backbone needs timm: pip install timm") from None
    return timm


def _create(name: str, known: str, pretrained: bool, weights: str | None, **options) -> nn.Module:
    timm = timm_module()
    if not timm.is_model(known):
        hint = nearest(known, timm.list_models())
        raise UserError(f"timm has no network {known!r}{hint}")
    if weights is not None and not Path(weights).is_file():
        raise UserError(f"--backbone_weights: there is no file {weights}")
    try:
        net = timm.create_model(known, pretrained=pretrained, num_classes=0, **options)
    except Exception as error:
        if not pretrained:
            raise UserError(f"timm cannot build {known} with {options}: {_first_line(error)}") from None
        if weights is not None:
            raise UserError(f"--backbone_weights {weights} does not fit {name}: {_first_line(error)}") from None
        raise UserError(
            f"the pretrained weights of {name} (timm: {known}) are neither here nor to be fetched ({_first_line(error)}):"
            " take random ones with --pretrained false, or a local file with --backbone_weights FILE"
        ) from None
    if weights is not None:
        # timm loads what fits and only logs the rest.
        inside, wanted = timm.models.load_state_dict(weights), net.state_dict()
        absent = [key for key in wanted if key not in inside]
        if 2 * len(absent) > len(wanted):
            raise UserError(f"--backbone_weights {weights} does not fit {name}: {len(absent)} of its {len(wanted)} tensors"
                            f" are not in the file, such as {absent[0]}")  # fmt: skip
    return net


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


def _small_stem(net: nn.Module, in_channels: int) -> None:
    """Keep the resolution at the start, in place: published stems reduce 32x32 images to 8x8 before anything is seen."""
    if hasattr(net, "maxpool") and isinstance(getattr(net, "conv1", None), nn.Conv2d):
        net.conv1 = nn.Conv2d(in_channels, net.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    elif isinstance(getattr(net, "conv_stem", None), nn.Conv2d):
        net.conv_stem.stride = (1, 1)


def is_plain(name: str, pretrained: bool = False, weights: str | None = None, stem: str | None = None) -> bool:
    """Whether a name means a net of `common` or classifier32; ResNet-18 with weights or published stem is timm's."""
    if name == "classifier32":
        return True
    special = pretrained or weights is not None or stem == "imagenet"
    return name in PLAIN and not (name in TIMM and special)


def is_transformer(name: str) -> bool:
    """Whether a network of timm cuts images into patches and has a place for each."""
    return "vit" in timm_name(name)


def patch_size(name: str) -> int:
    """Side of the patches of a transformer, in pixels."""
    part = next((word for word in timm_name(name).split("_") if word.startswith("patch")), "patch16")
    return int(part.removeprefix("patch"))


def default_stem(name: str, image_size: int, pretrained: bool) -> str:
    """The stem that suits: the small one for images below 64 pixels without published weights."""
    return "small" if image_size < 64 and not pretrained else "imagenet"


def check_size(name: str, image_size: int, stem: str | None = None, plain: bool = True) -> None:
    """Refuse a size that the backbone cannot take, before anything is trained.

    Raises
    ------
    UserError
        With the nearest sizes that `--image_size` can be given.
    """
    if plain:
        least = SMALLEST[name]
        if image_size < least:
            raise UserError(f"backbone {name} needs images of at least {least} pixels, these have {image_size}:"
                            f" resize them with --image_size {max(least, 32)}, or choose another backbone")
        return
    if is_transformer(name):
        patch = patch_size(name)
        if image_size % patch:
            below, above = image_size // patch * patch, (image_size // patch + 1) * patch
            sizes = f"{below} or {above}" if below else str(above)
            raise UserError(f"backbone {name} cuts images into patches of {patch} pixels, these have {image_size}:"
                            f" resize them with --image_size {sizes}")
        return
    least = 16 if stem == "small" else 32
    if image_size < least:
        raise UserError(f"backbone {name} with the {stem} stem needs images of at least {least} pixels, these have"
                        f" {image_size}: resize them with --image_size {least}")


def normalisation_of(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel that the published weights of a timm network were trained with."""
    config = timm_module().get_pretrained_cfg(timm_name(name))
    return (tuple(config.mean), tuple(config.std)) if config else (IMAGENET_MEAN, IMAGENET_STD)


def build(
    name: str, in_channels: int, image_size: int, *, width: int | None = None, norm: str = "batch",
    stem: str = "small", pretrained: bool = False, weights: str | None = None, timm: bool = False,
) -> nn.Module:  # fmt: skip
    """Build a backbone; `timm` takes timm's form of a name that `common` has as well."""
    if not timm:
        options: Mapping = {} if width is None else {"width": width}
        kind = Classifier32 if name == "classifier32" else PLAIN[name]
        return kind(in_channels=in_channels, image_size=image_size, norm=norm, **options)
    return TimmBackbone(name, in_channels, image_size, stem, pretrained, weights)
