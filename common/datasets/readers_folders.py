"""Readers of data sets that come as folders of image files, or as one npz file of them.

There is no published checksum for a folder; what is recorded is the SHA-256 of all files read, in order.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from .catalogue import CATALOGUE, find, missing
from .checksums import corrupt
from .images import Images, require_classes, resize_bilinear

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff", ".webp"}
#: Files of the complete set: "the first 10,000" of an incomplete one would silently be others.
OMNIGLOT_FILES = {"images_background": 19_280, "images_evaluation": 13_180}
#: Above this, a set is streamed from its folder and not held in memory.
MEMORY_LIMIT = 4 * 2**30


def image_files(folder: Path) -> list[Path]:
    """Return all image files below a folder, at any depth, sorted by their path."""
    found = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES]
    visible = [p for p in found if not any(s.startswith((".", "__")) for s in p.relative_to(folder).parts)]
    return sorted(visible, key=lambda p: p.relative_to(folder).parts)


def decode(paths: Sequence[Path], convert: Callable) -> tuple[list[np.ndarray], str]:
    """Decode image files in order.

    Parameters
    ----------
    paths : sequence of Path
    convert : callable
        Pillow image -> Pillow image of the wanted mode and size.

    Returns
    -------
    frames : list of ndarray
        uint8 `(H, W)` or `(H, W, 3)`.
    digest : str
        `sha256:...` over the bytes of all files.
    """
    from PIL import Image, UnidentifiedImageError

    frames, total = [], hashlib.sha256()
    for path in paths:
        blob = path.read_bytes()
        total.update(blob)
        try:
            with Image.open(io.BytesIO(blob)) as image:
                frames.append(np.asarray(convert(image)))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise corrupt(path, "an image", str(error).splitlines()[0]) from error
    return frames, f"sha256:{total.hexdigest()}"


def _to_rgb(image):
    return image.convert("RGB")


def stack(frames: list[np.ndarray], name: str) -> np.ndarray:
    """Stack frames of one size to uint8 `(N, C, H, W)`."""
    sizes = {frame.shape for frame in frames}
    if len(sizes) != 1:
        raise UserError(f"{name}: images of one size expected, got {len(sizes)} sizes, e.g. {sorted(sizes)[:3]}")
    pixels = np.stack(frames)
    return np.ascontiguousarray(pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2))


def read_omniglot(name: str, train: bool, root: Path) -> Images:
    """Read Omniglot: the first 10,000 images of `images_evaluation` in sorted order, ink white, 28x28.

    Sorted, because torchvision takes them as the file system lists them, which differs between machines. Inverted and
    then resized with Pillow's bilinear filter, torchvision's default. The training part is `images_background`, whole.
    """
    from PIL import Image, ImageOps

    part = "images_background" if train else "images_evaluation"
    place = find(name, root, part)
    if place is None:
        raise missing(name, root, part)
    paths = image_files(place / part)
    if len(paths) != OMNIGLOT_FILES[part]:
        raise corrupt(place / part, f"{OMNIGLOT_FILES[part]} images", f"{len(paths)}")
    characters = [p.parent.relative_to(place / part).as_posix() for p in paths]
    classes, labels = np.unique(characters, return_inverse=True)
    if not train:
        paths, labels = paths[: CATALOGUE[name].test], labels[: CATALOGUE[name].test]

    def convert(image):
        return ImageOps.invert(image.convert("L")).resize((28, 28), Image.BILINEAR)

    frames, digest = decode(paths, convert)
    key = f"omniglot-py/{part} ({len(paths)} files)"
    return Images(stack(frames, name), labels.astype(np.int64), tuple(map(str, classes)), name, {key: digest})


def tinyimagenet_wnids(place: Path) -> list[str]:
    """Return the 200 class names of Tiny-ImageNet in alphabetical order, also when some training classes are absent."""
    if (place / "wnids.txt").exists():
        wnids = set((place / "wnids.txt").read_text().split())
    elif (place / "val" / "val_annotations.txt").exists():
        lines = (place / "val" / "val_annotations.txt").read_text().splitlines()
        wnids = {line.split("\t")[1] for line in lines if line}
    else:
        wnids = {p.name for part in ("train", "val") if (place / part).is_dir() for p in (place / part).glob("n*")}
    expected = CATALOGUE["tinyimagenet"].classes
    if len(wnids) != expected:
        raise UserError(
            f"{place}: {expected} classes expected, {len(wnids)} found (wnids.txt is missing or incomplete)"
        )
    return sorted(wnids)


def _tinyimagenet_files(place: Path, train: bool, wnids: list[str]) -> tuple[list[Path], list[int]]:
    """Return files and labels of one part; the validation part in its original layout or sorted into class folders."""
    index = {wnid: i for i, wnid in enumerate(wnids)}
    annotations = place / "val" / "val_annotations.txt"
    if not train and annotations.exists() and (place / "val" / "images").is_dir():
        rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines() if line]
        return [place / "val" / "images" / file for file, _ in rows], [index[wnid] for _, wnid in rows]
    folders = [p for p in sorted((place / ("train" if train else "val")).glob("n*")) if p.name in index]
    found = [(path, index[folder.name]) for folder in folders for path in image_files(folder)]
    return [path for path, _ in found], [label for _, label in found]


def read_tinyimagenet(name: str, train: bool, root: Path, keep: Sequence[int] | None = None) -> Images:
    """Read Tiny-ImageNet (test part: `val`); of the training part, the classes that are here.

    The index of a class is the position of its wnid in alphabetical order of all 200.
    """
    part = "train" if train else "val"
    place = find(name, root, part)
    if place is None:
        raise missing(name, root, part)
    wnids = tinyimagenet_wnids(place)
    paths, labels = _tinyimagenet_files(place, train, wnids)
    if not paths:
        raise missing(name, root, f"no image below {part}")
    if keep is not None:
        # Before anything is decoded: a partial download is common, and decoding takes seconds.
        require_classes(name, "training" if train else "test", wnids, labels, keep)
    wanted = np.flatnonzero(np.isin(labels, np.arange(len(wnids)) if keep is None else np.asarray(keep)))
    absent = next((paths[i] for i in wanted if not paths[i].exists()), None) if not train else None
    if absent is not None:
        raise corrupt(absent, "the image that val_annotations.txt names", "no file")
    frames, digest = decode([paths[i] for i in wanted], _to_rgb)
    key = f"{place.name}/{part} ({len(wanted)} files)"
    return Images(stack(frames, name), np.asarray(labels, dtype=np.int64)[wanted], tuple(wnids), name, {key: digest})


def _outlier_pixels(name: str, place: Path, odin_crop: str) -> tuple[np.ndarray, str]:
    """Return the pixels of an outlier set `(N, 3, H, W)` and the digest of its files."""
    if place.suffix == ".npz":
        blob = place.read_bytes()
        try:
            with np.load(io.BytesIO(blob), allow_pickle=False) as content:
                data = content["data"]
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise corrupt(place, "an npz file with the array 'data'", str(error)) from error
        if data.dtype != np.uint8 or data.ndim != 4 or data.shape[3] != 3:
            raise corrupt(place, "uint8 (N, H, W, 3)", f"{data.dtype} {data.shape}")
        return np.ascontiguousarray(data.transpose(0, 3, 1, 2)), f"sha256:{hashlib.sha256(blob).hexdigest()}"
    frames, digest = decode(image_files(place), _to_rgb)
    if odin_crop != "native" and len({frame.shape for frame in frames}) > 1:
        pixels = np.concatenate([fit_square(frame.transpose(2, 0, 1)[None], odin_crop) for frame in frames])
        return pixels, digest
    return stack(frames, name), digest


def fit_square(pixels: np.ndarray, odin_crop: str, size: int = 32) -> np.ndarray:
    """Bring the 36x36 images of the ODIN crop archives to 32x32: `center` cuts, `resize` scales, `native` leaves."""
    height, width = pixels.shape[2:]
    if (height, width) == (size, size) or odin_crop == "native":
        return pixels
    if odin_crop == "resize" or min(height, width) < size:
        return resize_bilinear(pixels, size, size)
    top, left = (height - size) // 2, (width - size) // 2
    return np.ascontiguousarray(pixels[:, :, top : top + size, left : left + size])


def read_outliers(name: str, train: bool, root: Path, odin_crop: str = "center") -> Images:
    """Read an outlier set of the ODIN or CSI authors: a folder of images at any depth, or `odin/<name>.npz`.

    An npz is one of ours, resampled from Tiny-ImageNet's test images: it is named `<name> (rebuilt)`, since numbers on
    it cannot be compared digit for digit with those on the published archives.
    """
    place = outlier_place(name, root)
    if place is None:
        raise missing(name, root)
    pixels, digest = _outlier_pixels(name, place, odin_crop)
    pixels = fit_square(pixels, odin_crop)
    display = f"{name} (rebuilt)" if place.suffix == ".npz" else name
    key = place.relative_to(root).as_posix()
    return Images(pixels, np.zeros(len(pixels), dtype=np.int64), (), display, {key: digest})


def outlier_place(name: str, root: Path) -> Path | None:
    """Return the first folder or npz file of an outlier set that is here; published archives come before npz files."""
    for place in (root / folder for folder in CATALOGUE[name].folders):
        # `Imagenet` may also be the real ImageNet on a file system that ignores capitals: that one has train/ and val/.
        if place.is_file() or (place.is_dir() and not (place / "val").is_dir() and has_images(place)):
            return place
    return None


def has_images(folder: Path) -> bool:
    """Return True as soon as one image file is found below a folder."""
    return any(p.suffix.lower() in SUFFIXES for p in folder.rglob("*"))
