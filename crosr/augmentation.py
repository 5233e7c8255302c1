"""The augmentations that CROSR was trained with, beside the plain ones of `common.training`.

`released`, of the PyTorch release: brightness and hue, random affine map, flip. `paper`, of the authors' release:
rotation, PCA lighting, flip, random expansion, random crop; the network resizes the crop (`crosr.model.DHRNet`,
`crop_size`).
"""

from __future__ import annotations

from common.errors import UserError
from common.training import AUGMENTATIONS as PLAIN_AUGMENTATIONS
from common.training import augmentation as plain_augmentation

AUGMENTATIONS = (*PLAIN_AUGMENTATIONS, "released", "paper")


def augmentation(
    name: str, seed: int, low_resolution_epochs: int = 0, *, mean=(), random_angle: float = 15, pca_sigma: float = 25.5,
    expand_ratio: float = 1.2, crop_size: int = 28,
):  # fmt: skip
    """The augmentation called `name`, a policy of `common.datasets.augment`; None for none.

    Parameters
    ----------
    name : str
        One of `AUGMENTATIONS`.
    seed, low_resolution_epochs
        See `common.training.augmentation`; the plain ones only.
    mean : sequence of float
        Mean colour of the training images on the 0..1 scale, one per channel; `paper` fills its canvas with it,
        which is 0 after normalisation.
    random_angle : float
        `paper`: largest rotation either way, degrees.
    pca_sigma : float
        `paper`: standard deviation of the colour shift along ImageNet's principal axes, levels of 0..255; 0 for none.
    expand_ratio : float
        `paper`: largest side of the canvas relative to the image.
    crop_size : int
        `paper`: side of the random crop, pixels.

    Raises
    ------
    UserError
        PCA lighting of images that have no three colour channels, or an expansion below 1.
    """
    from common.datasets.augment import (
        ColourJitter,
        Compose,
        PCALighting,
        RandomAffine,
        RandomExpand,
        RandomFlip,
        RandomRotation,
    )

    if name in PLAIN_AUGMENTATIONS:
        return plain_augmentation(name, seed, low_resolution_epochs)
    coloured = len(mean) == 3
    if name == "released":
        # Grey images have no hue.
        jitter = ColourJitter(brightness=0.5, hue=0.3 if coloured else 0)
        return Compose(jitter, RandomAffine(30, translate=(0.2, 0.2), scale=(0.75, 1.0)), RandomFlip(0.5))
    if pca_sigma and not coloured:
        raise UserError(f"PCA lighting wants three colour channels, the images have {len(mean)}:"
                        " --pca_sigma 0 leaves it out")
    if expand_ratio < 1:
        raise UserError(f"--expand_ratio expects a number of at least 1, got {expand_ratio}")
    fill = [round(255 * value) for value in mean]
    lighting = [PCALighting(pca_sigma)] if pca_sigma else []
    return Compose(RandomRotation(random_angle, "bilinear"), *lighting, RandomFlip(0.5),
                   RandomExpand(expand_ratio, crop_size, fill))  # fmt: skip
