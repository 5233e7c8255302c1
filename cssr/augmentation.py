"""CSSR's augmentation on the batch: the released steps and their options (`strong`, `simple`)."""

from __future__ import annotations

from collections.abc import Iterable

from common.errors import UserError, nearest
from common.training import AUGMENTATIONS as PLAIN_AUGMENTATIONS
from common.training import augmentation as plain_augmentation

# Images above this size are cropped at a random scale instead of shifted.
LARGE = 200
# Options of `customize_augment_pool` that are on in the released files.
RELEASED_POOL = (
    "BrightnessOverall", "Color", "Equalize", "Identity", "Posterize", "Rotate", "SharpnessLarge", "Shear", "Solarize"
)  # fmt: skip


def operation_pool() -> dict[str, dict]:
    """Operations of the reduced RandAugment list by the option that switches them on, in the files' order."""
    from common.datasets import colour
    from common.datasets.randaugment import LISTS, Operation

    released, small = LISTS["cssr"].entries, LISTS["fixmatch"].entries

    def enhanced(apply, slope: float, base: float) -> Operation:
        return Operation(apply, lambda level, sign, size: level * slope + base)

    return {
        "AutoContrast": {"autocontrast": small["autocontrast"]},
        "BrightnessDark": {"brightness_dark": small["brightness"]},
        "BrightnessLight": {"brightness_light": enhanced(colour.brightness, 0.09, 1.05)},
        "BrightnessOverall": {"brightness": released["brightness"]},
        "Color": {"saturation": released["saturation"]},
        "ContrastLow": {"contrast_low": small["contrast"]},
        "ContrastHigh": {"contrast_high": enhanced(colour.contrast, 0.09, 1.05)},
        "ContrastOverall": {"contrast": enhanced(colour.contrast, 0.19, 0.05)},
        "Equalize": {"equalize": released["equalize"]},
        "Identity": {"identity": released["identity"]},
        "Posterize": {"posterize": released["posterize"]},
        "Rotate": {"rotate": released["rotate"]},
        "Sharpness": {"sharpness_small": small["sharpness"]},
        "SharpnessLarge": {"sharpness": released["sharpness"]},
        "Shear": {name: released[name] for name in ("shear_x", "shear_y")},
        "Solarize": {"solarize": released["solarize"]},
    }


def operation_list(options: Iterable[str]) -> str:
    """Name under which `RandAugment` knows the operations that these options switch on."""
    from common.datasets.randaugment import LISTS, OperationList

    pool, options = operation_pool(), set(options)
    unknown = sorted(options - pool.keys())
    if unknown or not options:
        said = f"{unknown[0]!r}{nearest(unknown[0], pool)}" if unknown else "nothing"
        raise UserError(f"--augment_pool (customize_augment_pool) takes {', '.join(pool)}; got {said}")
    if options == set(RELEASED_POOL):
        return "cssr"
    chosen = [option for option in pool if option in options]
    entries = {name: entry for option in chosen for name, entry in pool[option].items()}
    name = f"cssr: {', '.join(chosen)}"
    LISTS[name] = OperationList(entries, 0.5, True, 10)
    return name


class ManualContrast:
    """Normalise, then multiply each image by one number drawn from `low` .. `high` (float images: network inputs)."""

    def __init__(self, normalise, low: float = 0.1, high: float = 2.0):
        self.normalise, self.low, self.high = normalise, low, high

    def __call__(self, pixels, draws):
        return self.normalise(pixels) * draws.uniform(1, 1, 1, low=self.low, high=self.high)

    def __repr__(self):
        return f"ManualContrast(low={self.low}, high={self.high})"


def augmentation(
    name: str, seed: int, low_resolution_epochs: int, image_size: int, normalise, *, strong_option="CUST",
    pool=None, postprocess="cutout", crop_with_resize=False, manual_contrast=True,
):  # fmt: skip
    """The augmentation called `name`; `strong` and `simple` are the released ones.

    `strong`: flip, reflected shift by an eighth of the size, what `strong_option` says, contrast; `simple`: flip, shift,
    contrast. Images of more than 200 pixels are cropped at a random scale (a quarter of the area or more) and resized in place
    of the shift.

    Parameters
    ----------
    strong_option : str
        `CUST`: two operations of the reduced RandAugment list, then `postprocess`; `RA`: two of FixMatch's 14, then cutout;
        `NONE`: nothing.
    pool : sequence of str, optional
        Options of CSSR's configuration files that make up the reduced list; else the released ones.
    postprocess : str
        `cutout`: a square of half the size in grey; `none`.
    crop_with_resize : bool
        Crop at a random scale also in small images.
    manual_contrast : bool
        Multiply each normalised image by a number from .1 to 2.
    """
    if name in PLAIN_AUGMENTATIONS:
        return plain_augmentation(name, seed, low_resolution_epochs)
    from common.datasets.augment import Compose, Cutout, RandomFlip, RandomResizedCrop, RandomShift
    from common.datasets.randaugment import RandAugment

    policies = [RandomFlip(0.5)]
    if image_size > LARGE or crop_with_resize:
        policies.append(RandomResizedCrop(image_size, (0.25, 1.0)))
    else:
        policies.append(RandomShift(image_size // 8, "reflect"))
    if name == "strong" and strong_option == "RA":
        policies += [RandAugment(2, 10, "fixmatch"), Cutout(image_size // 2)]
    elif name == "strong" and strong_option == "CUST":
        policies.append(RandAugment(2, 10, "cssr" if pool is None else operation_list(pool)))
        policies += [Cutout(image_size // 2)] if postprocess == "cutout" else []
    return Compose(*policies, *([ManualContrast(normalise)] if manual_contrast else []))
