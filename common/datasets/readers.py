"""`load`: from the name of a data set to its images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from . import noise
from .catalogue import CATALOGUE, data_root, missing, resolve_name
from .images import Images
from .presence import part_path
from .readers_binary import read_cifar, read_digits, read_idx, read_svhn
from .readers_folders import read_omniglot, read_outliers, read_tinyimagenet
from .streaming import read_folder

ODIN_CROPS = ("center", "resize", "native")


def load(
    name: str,
    train: bool,
    root=None,
    *,
    seed: int = 0,
    released_noise: bool = False,
    odin_crop: str = "center",
    download: bool = False,
    keep: Sequence[int] | None = None,
    size: int | None = None,
    shape: tuple[int, int, int] | None = None,
) -> Images:
    """Load one part of a data set into memory.

    Parameters
    ----------
    name : str
        Canonical name or any alias.
    train : bool
        Training part, else test part (Tiny-ImageNet and ImageNet: the validation images).
    root : path, optional
        Data folder; see `data_root`.
    seed : int
        Seed of generated noise.
    released_noise : bool
        Noise as the VMDLS program made it: float32 network input.
    odin_crop : {"center", "resize", "native"}
        What happens to the 36x36 images of the ODIN crop archives.
    download : bool
        Let torchvision fetch what is absent.
    keep : sequence of int, optional
        Only these classes; a set that is stored as folders then decodes no others.
    size : int, optional
        Side length for sets whose images differ in size (textures, places, ImageNet, ...): the shorter side is scaled
        to it, the centre is cut out.
    shape : tuple, optional
        Channels, height, width of generated noise; 1x28x28 by default.

    Returns
    -------
    Images
        uint8 `(N, C, H, W)`; float32 only for released noise.
    """
    name, place = resolve_name(name), data_root(root)
    entry = CATALOGUE[name]
    if odin_crop not in ODIN_CROPS:
        raise UserError(f"odin_crop must be one of {', '.join(ODIN_CROPS)}, got '{odin_crop}'")
    if train and not entry.train:
        raise UserError(f"data set {name} has only a test part")
    try:
        images = _read(entry, train, place, seed, released_noise, odin_crop, keep, size, shape)
    except UserError:
        # An error about files that are here means damage or a wrong argument: downloading would not help.
        if not download or not entry.torchvision or part_path(name, train, place) is not None:
            raise
        fetch(name, place)
        images = _read(entry, train, place, seed, released_noise, odin_crop, keep, size, shape)
    return images if keep is None else images.of_classes(keep)


def _read(entry, train, place, seed, released_noise, odin_crop, keep, size, shape) -> Images:
    """Call the reader of a data set's family."""
    if entry.reader == "noise":
        return _noise(entry.name, place, seed, released_noise, shape or (1, 28, 28))
    if entry.reader == "outliers":
        return read_outliers(entry.name, train, place, odin_crop)
    if entry.reader == "tinyimagenet":
        return read_tinyimagenet(entry.name, train, place, keep)
    if entry.reader in ("folder", "textures"):
        return read_folder(entry.name, train, place, keep, size)
    readers = {
        "cifar": read_cifar,
        "idx": read_idx,
        "svhn": read_svhn,
        "digits": read_digits,
        "omniglot": read_omniglot,
    }
    return readers[entry.reader](entry.name, train, place)


def _noise(name: str, place: Path, seed: int, released: bool, shape: tuple[int, int, int]) -> Images:
    if name == "noise":
        return noise.uniform(shape, seed, released=released)
    if name == "gaussian-noise":
        return noise.gaussian(shape, seed)
    digits = read_idx("mnist", False, place)
    return replace(noise.on_digits(digits, seed, released), name=name)


def fetch(name: str, root=None) -> None:
    """Download a data set with torchvision, into torchvision's layout.

    Raises
    ------
    UserError
        If torchvision cannot download it: what to fetch by hand; or if the download fails.
    """
    name, place = resolve_name(name), data_root(root)
    entry = CATALOGUE[name]
    if not entry.torchvision:
        raise missing(name, place)
    from torchvision import datasets

    parts = {
        "SVHN": ({"split": "train"}, {"split": "test"}),
        "DTD": ({"split": "test"},),
        "Omniglot": ({"background": False},),
    }
    place.mkdir(parents=True, exist_ok=True)
    for arguments in parts.get(entry.torchvision, ({"train": False},)):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                getattr(datasets, entry.torchvision)(str(place), download=True, **arguments)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"download of {name} failed ({reason}): fetch {entry.source} and put it into {place}"
            ) from error
