"""A set of labelled images in memory, and the few operations that every protocol needs on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import UserError


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images that are held in memory.

    Parameters
    ----------
    pixels : ndarray, uint8 `(N, C, H, W)`
        Image space, 0..255. float32 only for noise in its released form: that one *is* the input of the network and
        must not be normalised again (see `is_network_input`).
    labels : ndarray, int64 `(N,)`
        Index into `classes`, or -1 for unknown.
    classes : tuple of str
        Class names; empty when the set has no classes.
    name : str
        How the set is called in tables, e.g. `imagenet-crop (rebuilt)`.
    checksums : dict
        File or folder, relative to the data folder -> `md5:...` or `sha256:...` of what was read.
    """

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str = ""
    checksums: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.pixels.ndim != 4 or len(self.pixels) != len(self.labels):
            raise ValueError(f"pixels {self.pixels.shape} and labels {self.labels.shape} do not fit together")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return tuple(int(n) for n in self.pixels.shape[1:])

    @property
    def is_network_input(self) -> bool:
        """True for released noise (float): it bypasses normalisation."""
        return self.pixels.dtype != np.uint8

    def subset(self, index) -> Images:
        """Return the images at `index` (integers, booleans or a slice), in that order."""
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def of_classes(self, keep) -> Images:
        """Return the images whose label is in `keep`; labels stay as they are."""
        return self.subset(np.flatnonzero(np.isin(self.labels, np.asarray(keep, dtype=np.int64))))

    def relabelled(self, known) -> Images:
        """Return the images of the classes `known`, labelled 0..K-1 in ascending original order."""
        known = np.array(sorted(known), dtype=np.int64)
        kept = self.of_classes(known)
        classes = tuple(self.classes[k] for k in known)
        return replace(kept, labels=np.searchsorted(known, kept.labels).astype(np.int64), classes=classes)

    def as_unknown(self, name: str = "") -> Images:
        """Return the same images with label -1 everywhere."""
        return replace(self, labels=np.full(len(self), -1, dtype=np.int64), name=name or self.name)

    def mean_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation per channel of the pixels scaled to [0, 1], float64 `(C,)` each."""
        if not len(self):
            raise UserError(f"{self.name or 'the data set'} has no image: no mean to compute")
        if self.is_network_input:
            return self.pixels.mean(axis=(0, 2, 3), dtype=np.float64), self.pixels.std(axis=(0, 2, 3), dtype=np.float64)
        # A histogram has only 256 bins: exact, and without a float copy of the whole set.
        counts = np.stack([np.bincount(self.pixels[:, c].ravel(), minlength=256) for c in range(self.shape[0])])
        levels, total = np.arange(256) / 255, counts.sum(axis=1)
        mean = counts @ levels / total
        return mean, np.sqrt((counts * (levels - mean[:, None]) ** 2).sum(axis=1) / total)


def require_classes(name: str, part: str, classes: Sequence[str], labels, wanted: Sequence[int]) -> None:
    """Raise a `UserError` that names the classes of `wanted` without an image in `labels`."""
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=max(wanted) + 1)
    empty = [int(k) for k in wanted if not counts[k]]
    if empty:
        shown = ", ".join(f"{k} ({classes[k]})" for k in empty[:5]) + (" ..." if len(empty) > 5 else "")
        raise UserError(
            f"{name}: no {part} image of {len(empty)} of the {len(wanted)} classes wanted: {shown}; "
            "fetch them or choose another split"
        )


def match_shape(images: Images, shape: tuple[int, int, int], resize: bool = True) -> Images:
    """Bring a set to the channel count and size of another one.

    Grey becomes RGB by repetition, RGB becomes grey by the ITU-R 601 luma (Pillow's integer formula). Only if the size
    differs, each image is resized with Pillow's bilinear filter (which averages when it shrinks).

    Parameters
    ----------
    images : Images
    shape : tuple
        Channels, height, width wanted.
    resize : bool
        False leaves the size alone (`--odin_crop native`).
    """
    channels, height, width = shape
    pixels = images.pixels
    if resize and pixels.shape[2:] != (height, width):
        if images.is_network_input:
            raise UserError(
                f"{images.name} in its released form is {pixels.shape[2:]} and cannot be resized to {height}"
            )
        pixels = resize_bilinear(pixels, height, width)
    if pixels.shape[1] == 1 and channels == 3:
        pixels = np.repeat(pixels, 3, axis=1)
    elif pixels.shape[1] == 3 and channels == 1:
        weights = np.array([19595, 38470, 7471], dtype=np.uint32)
        luma = np.einsum("nchw,c->nhw", pixels.astype(np.uint32), weights) + 0x8000 >> 16
        pixels = luma[:, None].astype(np.uint8)
    elif pixels.shape[1] != channels:
        raise UserError(f"{images.name} has {pixels.shape[1]} channels, the known set {channels}: no rule to convert")
    return replace(images, pixels=pixels)


def resize_bilinear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize uint8 `(N, C, H, W)` image by image with Pillow's bilinear filter."""
    from PIL import Image

    grey = pixels.shape[1] == 1
    out = np.empty((*pixels.shape[:2], height, width), np.uint8)
    for source, target in zip(pixels, out):
        frame = source[0] if grey else np.ascontiguousarray(source.transpose(1, 2, 0))
        resized = np.asarray(Image.fromarray(frame).resize((width, height), Image.BILINEAR))
        target[:] = resized if grey else resized.transpose(2, 0, 1)
    return out


def class_ranks(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give every image a random rank within its class.

    Returns
    -------
    rank : ndarray, int64 `(N,)`
        0 for the first image drawn of a class, 1 for the second, ...
    size : ndarray, int64 `(N,)`
        Number of images of the image's class.
    draw : ndarray, float64 `(N,)`
        The random numbers, to break ties between classes.
    """
    # RandomState: its stream is frozen, so the same seed gives the same images under every NumPy version.
    draw = np.random.RandomState(seed).random_sample(len(labels))
    order = np.lexsort((draw, labels))
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - starts[inverse[order]]
    return rank, counts[inverse], draw


def stratified_subset(images: Images, count: int, seed: int, every_class: bool = True) -> Images:
    """Draw `count` images, seeded, every class in proportion to its size; a smaller set is returned whole.

    Parameters
    ----------
    images : Images
    count : int
    seed : int
    every_class : bool
        Require at least one image of every class that occurs (known data); unknown data need not have all.
    """
    if count < 1:
        raise UserError(f"a subset needs at least 1 image, got {count}")
    if count >= len(images):
        return images
    classes = len(np.unique(images.labels))
    if every_class and count < classes:
        raise UserError(
            f"a subset of {count} images is too small for the {classes} classes of {images.name}: at least {classes}"
        )
    rank, size, draw = class_ranks(images.labels, seed)
    # The first image of every class comes first; then the classes advance in proportion to their sizes.
    progress = np.where(rank == 0, -1.0, (rank + 0.5) / size)
    return images.subset(np.sort(np.lexsort((draw, progress))[:count]))
