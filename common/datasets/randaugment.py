"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719) on a batch: the operations and strengths of four sources.

A list names its operations and says how a level becomes a magnitude:

* `cssr`: CSSR's reduced list for CIFAR, SVHN and TinyImageNet (10 entries, levels drawn from 1 .. m - 1);
* `fixmatch`: FixMatch's 14 entries, which CSSR's option `RA` uses (levels drawn likewise);
* `torchvision`: `torchvision.transforms.RandAugment`, every image at level m of 30, always applied;
* `timm`: timm's `rand-m9-n2-inc1` list, level m of 10, grey fill, each applied with probability one half.
  timm draws bilinear or bicubic interpolation; here geometric operations take the nearest pixel in all lists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from common.datasets import colour, geometry
from common.datasets.augment import Policy, apply_chosen
from common.errors import nearest


@dataclass(frozen=True)
class Operation:
    """One entry of a list: what is done, and the magnitude `strength(level, sign, size)` that it is given.

    `level` and `sign` (+1 or -1) are float64 `(N,)`, `size` is (height, width) in pixels.
    """

    apply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    strength: Callable[[torch.Tensor, torch.Tensor, tuple[int, int]], torch.Tensor]


@dataclass(frozen=True)
class OperationList:
    """Operations, chance of applying a chosen one, whether levels are drawn or fixed, largest level."""

    entries: dict[str, Operation]
    probability: float
    drawn_levels: bool
    top: int


def _plain(apply) -> Operation:
    """An operation without magnitude."""
    return Operation(lambda pixels, magnitude: apply(pixels), lambda level, sign, size: level)


def _even(apply, most: float, top: float, base: float = 0.0, *, signed=False, whole=False) -> Operation:
    """Magnitude `most` x level / `top` (whole: truncated), with a random sign if `signed`, plus `base`."""

    def strength(level, sign, size):
        value = level * most / top
        value = value.trunc() if whole else value
        return (value * sign if signed else value) + base

    return Operation(apply, strength)


def _moved(axis: int, most: float, top: float, fill=0, *, whole=True) -> Operation:
    """Shift along columns (axis 1) or rows (axis 0) by `most` x level / `top` of that side, either way."""

    def apply(pixels, pixels_moved):
        right, down = (pixels_moved, 0) if axis else (0, pixels_moved)
        return geometry.translate(pixels, right, down, fill)

    def strength(level, sign, size):
        value = level * most / top * size[axis]
        return (value.trunc() if whole else value) * sign

    return Operation(apply, strength)


def _cssr() -> dict[str, Operation]:
    return {
        "brightness": _even(colour.brightness, 1.8, 10, 0.1),
        "saturation": _even(colour.saturation, 0.9, 10, 0.05),
        "equalize": _plain(colour.equalize),
        "identity": _plain(lambda pixels: pixels),
        "posterize": _even(colour.posterize, 4, 10, 4, whole=True),
        "rotate": _even(geometry.rotate, 15, 10, signed=True, whole=True),
        "sharpness": _even(colour.sharpness, 1.8, 10, 0.05),
        "shear_x": _even(geometry.shear_x, 0.3, 10, signed=True),
        "shear_y": _even(geometry.shear_y, 0.3, 10, signed=True),
        "solarize": _inverse_solarize(256, 10),
    }


def _inverse_solarize(most: float, top: float, *, whole=True) -> Operation:
    """Threshold `most` - `most` x level / `top` (the product truncated if `whole`)."""

    def strength(level, sign, size):
        value = level * most / top
        return most - (value.trunc() if whole else value)

    return Operation(colour.solarize, strength)


def _fixmatch() -> dict[str, Operation]:
    return {
        "autocontrast": _plain(colour.autocontrast),
        "brightness": _even(colour.brightness, 0.9, 10, 0.05),
        "saturation": _even(colour.saturation, 0.9, 10, 0.05),
        "contrast": _even(colour.contrast, 0.9, 10, 0.05),
        "equalize": _plain(colour.equalize),
        "identity": _plain(lambda pixels: pixels),
        "posterize": _even(colour.posterize, 4, 10, 4, whole=True),
        "rotate": _even(geometry.rotate, 30, 10, signed=True, whole=True),
        "sharpness": _even(colour.sharpness, 0.9, 10, 0.05),
        "shear_x": _even(geometry.shear_x, 0.3, 10, signed=True),
        "shear_y": _even(geometry.shear_y, 0.3, 10, signed=True),
        "solarize": _inverse_solarize(256, 10),
        "translate_x": _moved(1, 0.3, 10),
        "translate_y": _moved(0, 0.3, 10),
    }


def _torchvision() -> dict[str, Operation]:
    def kept_bits(level, sign, size):
        return 8 - (level / 7.5).round()

    return {
        "identity": _plain(lambda pixels: pixels),
        "shear_x": _even(geometry.shear_x, 0.3, 30, signed=True),
        "shear_y": _even(geometry.shear_y, 0.3, 30, signed=True),
        "translate_x": _moved(1, 150 / 331, 30),
        "translate_y": _moved(0, 150 / 331, 30),
        "rotate": _even(geometry.rotate, 30, 30, signed=True),
        "brightness": _even(colour.brightness, 0.9, 30, 1, signed=True),
        "saturation": _even(colour.saturation, 0.9, 30, 1, signed=True),
        "contrast": _even(colour.contrast, 0.9, 30, 1, signed=True),
        "sharpness": _even(colour.sharpness, 0.9, 30, 1, signed=True),
        "posterize": Operation(colour.posterize, kept_bits),
        "solarize": _inverse_solarize(255, 30, whole=False),
        "autocontrast": _plain(colour.autocontrast),
        "equalize": _plain(colour.equalize),
    }


def _timm() -> dict[str, Operation]:
    def kept_bits(level, sign, size):
        return 4 - (level * 4 / 10).trunc()

    grey = 128
    enhanced = {name: getattr(colour, name) for name in ("saturation", "contrast", "brightness", "sharpness")}
    return {
        "autocontrast": _plain(colour.autocontrast),
        "equalize": _plain(colour.equalize),
        "invert": _plain(colour.invert),
        "rotate": _even(partial(geometry.rotate, fill=grey), 30, 10, signed=True),
        "posterize": Operation(colour.posterize, kept_bits),
        "solarize": _inverse_solarize(256, 10),
        "solarize_add": _even(colour.solarize_add, 110, 10, whole=True),
        **{name: _even(apply, 0.9, 10, 1, signed=True) for name, apply in enhanced.items()},
        "shear_x": _even(partial(geometry.shear_x, fill=grey), 0.3, 10, signed=True),
        "shear_y": _even(partial(geometry.shear_y, fill=grey), 0.3, 10, signed=True),
        "translate_x": _moved(1, 0.45, 10, grey, whole=False),
        "translate_y": _moved(0, 0.45, 10, grey, whole=False),
    }


LISTS = {
    "cssr": OperationList(_cssr(), 0.5, True, 10),
    "fixmatch": OperationList(_fixmatch(), 0.5, True, 10),
    "torchvision": OperationList(_torchvision(), 1.0, False, 30),
    "timm": OperationList(_timm(), 0.5, False, 10),
}


class RandAugment(Policy):
    """Apply n operations, chosen for each image with replacement from a list.

    Parameters
    ----------
    n : int
        Operations per image.
    m : int
        Level: `cssr` and `fixmatch` draw whole levels from 1 .. m - 1 for each image and operation (m at most
        11), `torchvision` (m of 30) and `timm` (m of 10) always use m.
    operations : "cssr", "fixmatch", "torchvision" or "timm"
    probability : float, optional
        Chance that a chosen operation is applied; by default the list's own.
    """

    def __init__(self, n: int = 2, m: int = 10, operations: str = "cssr", probability: float | None = None):
        if operations not in LISTS:
            raise ValueError(
                f"operations must be {', '.join(LISTS)}, got {operations}{nearest(operations, LISTS)}"
            )
        chosen = LISTS[operations]
        least, most = (2, chosen.top + 1) if chosen.drawn_levels else (0, chosen.top)
        if not least <= m <= most:
            raise ValueError(f"m must lie in {least}..{most} for {operations}, got {m}")
        if n < 0:
            raise ValueError(f"n must be at least 0, got {n}")
        probability = chosen.probability if probability is None else probability
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"probability must lie in 0..1, got {probability}")
        self.n, self.m, self.operations, self.probability = n, m, operations, probability

    def __call__(self, pixels: torch.Tensor, draws) -> torch.Tensor:
        chosen = LISTS[self.operations]
        entries = list(chosen.entries.values())
        for _ in range(self.n):
            choice = draws.integers(0, len(entries))
            drawn = draws.integers(1, self.m) if chosen.drawn_levels else torch.full_like(choice, self.m)
            applied = draws.uniform() < self.probability
            sign = (draws.integers(0, 2) * 2 - 1).double()
            level, size = drawn.double(), tuple(pixels.shape[2:])
            strength = torch.stack([entry.strength(level, sign, size) for entry in entries], 1)
            strength = strength.gather(1, choice[:, None])[:, 0]
            choice = torch.where(applied, choice, len(entries))
            pixels = apply_chosen(pixels, choice, strength, [entry.apply for entry in entries])
        return pixels
