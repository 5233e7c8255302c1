"""`load`: from the name of a data set to its images."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from . import noise
from .catalogue import CATALOGUE, MANIFEST, data_root, missing, resolve_name
from .fine_grained import read_fine_grained
from .images import Images
from .own import read_own
from .presence import part_path
from .readers_binary import read_cifar, read_digits, read_idx, read_svhn
from .readers_folders import image_files, read_omniglot, read_outliers, read_tinyimagenet
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
        Fetch what is absent (`fetch`).
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
        if not download or part_path(name, train, place) is not None:
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
    if entry.reader == "own":
        return read_own(entry.name, train, keep, size)
    if entry.reader == "fine-grained":
        return read_fine_grained(entry.name, train, place, keep, size)
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


def fetch(name: str, root=None, base_url: str | None = None) -> bool:
    """Download what is absent of a data set, verified, into torchvision's layout.

    Parameters
    ----------
    name : str
        Canonical name or any alias.
    root : path, optional
        Data folder; see `data_root`.
    base_url : str, optional
        A web server with the same files under the same names, tried before the published addresses; else
        `$OSR_DATA_URL`.

    Returns
    -------
    bool
        True if something was fetched or unpacked, False if all of it was here.

    Raises
    ------
    UserError
        Nobody publishes a checksum for it, or no address gave the right bytes: what to fetch by hand, and where to.
    """
    from ..download import download, unpack

    name, place = resolve_name(name), data_root(root)
    if not CATALOGUE[name].folders:
        return False
    items, elsewhere = _downloads(name)
    if not items:
        known = f"; unverified: {', '.join(elsewhere)}" if elsewhere else ""
        raise UserError(f"{missing(name, place)}; no checksum is published, so no command downloads it{known}")
    base, changed = base_url or os.environ.get("OSR_DATA_URL", ""), False
    for item in items:
        file, here = place / item["file"], is_complete(name, place)
        # The files may lie elsewhere, unpacked, or without their archive; a file that is here is always checked.
        if here and ("folder" in item or not file.exists()):
            continue
        urls = [f"{base.rstrip('/')}/{item['file']}", *item["urls"]] if base else item["urls"]
        changed |= download(file, urls, f"md5:{item['md5']}", item.get("bytes"), item.get("about", ""))
        if "folder" in item:
            unpack(file, place / item["into"], item["folder"], lambda: is_complete(name, place))
            changed = True
    return changed


def _downloads(name: str) -> tuple[list[dict], list[str]]:
    """Return the files of a data set that can be fetched, and addresses of what cannot be verified."""
    rows = json.loads(MANIFEST.read_text())["datasets"]
    items = rows[name].get("download", [])
    return (_downloads(items)[0] if isinstance(items, str) else items), rows[name].get("elsewhere", [])


def is_complete(name: str, place: Path) -> bool:
    """Return True if both parts of a data set are here; of folders with a known number of files, all of them.

    A rebuilt npz file is not the published set, and an interrupted `tar` leaves a part of it.
    """
    entry = CATALOGUE[name]
    parts = [part_path(name, train, place) for train in (True, False) if entry.train or not train]
    if None in parts:
        return False
    if entry.reader == "outliers":
        return parts[0].is_dir() and len(image_files(parts[0])) >= entry.test
    if entry.reader == "tinyimagenet":
        return sum(p.is_dir() for p in (parts[0] / "train").glob("n*")) == entry.classes
    return True
