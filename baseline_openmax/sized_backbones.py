"""Backbones of timm by their own names that are built for one image size: DeiT, Swin, mixers, hybrids."""

from __future__ import annotations

import torch
from torch import nn

from baseline_openmax import backbones
from common.errors import UserError


def may_want_size(name: str) -> bool:
    """Whether a `timm:NAME` may be made for one image size: it says so, or it is a transformer by name."""
    return name.startswith(backbones.PREFIX) and (backbones.is_transformer(name) or _fixed(name))


def _fixed(name: str) -> bool:
    config = backbones.timm_module().get_pretrained_cfg(backbones.timm_name(name))
    return bool(config is not None and config.fixed_input_size)


def own_size(name: str) -> int:
    """Side in pixels of the images that a network of timm was published for."""
    config = backbones.timm_module().get_pretrained_cfg(backbones.timm_name(name))
    return 224 if config is None else int(config.input_size[-1])


class SizedBackbone(backbones.TimmBackbone):
    """A network of timm, told the size of its images where it can be; parameters and errors as of `TimmBackbone`."""

    def __init__(self, name, in_channels=3, image_size=32, stem="small", pretrained=False, weights=None):
        nn.Module.__init__(self)  # not TimmBackbone's: it builds the network without its size
        known = backbones.timm_name(name)
        options = {"in_chans": in_channels, "img_size": image_size}
        if weights is not None:
            options["pretrained_cfg_overlay"] = {"file": str(weights), "custom_load": False, "url": "", "hf_hub_id": None}
        try:
            self.net = backbones._create(name, known, pretrained or weights is not None, weights, **options)
        except UserError as error:
            if "unexpected keyword argument 'img_size'" not in str(error):
                raise
            if _fixed(name) and image_size != own_size(name):
                raise UserError(f"backbone {name} takes images of {own_size(name)} pixels only, these have {image_size}:"
                                f" resize them with --image_size {own_size(name)}") from None
            del options["img_size"]
            self.net = backbones._create(name, known, pretrained or weights is not None, weights, **options)
        if stem == "small":
            backbones._small_stem(self.net, in_channels)
        self.channels = self.dimension = self.net.num_features


def build(name: str, in_channels: int, image_size: int, *, timm: bool = False, **options) -> nn.Module:
    """`backbones.build`, with `timm:` networks built for the size of the images."""
    if not timm or not may_want_size(name):
        return backbones.build(name, in_channels, image_size, timm=timm, **options)
    rest = {key: options[key] for key in ("stem", "pretrained", "weights") if key in options}
    return SizedBackbone(name, in_channels, image_size, **rest)


def check_passes(model: nn.Module, name: str, shape, image_size: int) -> None:
    """Pass one blank image through a network of timm, so that a size it cannot take is known before anything is trained.

    Raises
    ------
    UserError
        With the size that the network was published for.
    """
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape, dtype=torch.uint8))
    except (RuntimeError, AssertionError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"backbone {name} cannot take images of {image_size} pixels ({said}): resize them with"
                        f" --image_size {own_size(name)}, the size it was published for") from None
    finally:
        model.train(training)
