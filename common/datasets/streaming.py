"""Folders of images that are too large for memory: a list of files, and batches decoded as they are needed.

Also the reader for the same folders when they do fit (textures at 32x32, say).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from .catalogue import CATALOGUE, data_root, find, missing, resolve_name
from .checksums import corrupt
from .images import Images
from .readers_folders import MEMORY_LIMIT, decode, image_files, stack

_TRAIN, _TEST = ("train", "one_class_train"), ("val", "test", "one_class_test", "validation")


@dataclass(frozen=True, eq=False)
class FileList:
    """The files of one part of a data set.

    Parameters
    ----------
    items : list of (Path, int)
        File and label; label 0 throughout when the set has no classes.
    classes : tuple of str
        Names of the class folders, sorted; empty when the set has no classes.
    name : str
    """

    items: list[tuple[Path, int]]
    classes: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.items)

    def of_classes(self, keep: Sequence[int]) -> FileList:
        """Return the files whose label is in `keep`; labels stay as they are."""
        wanted = {int(k) for k in keep}
        return FileList([item for item in self.items if item[1] in wanted], self.classes, self.name)


def open_folder(name: str, train: bool, root=None) -> FileList:
    """List the files of a data set that is stored as class folders or, without classes, as any tree of images.

    Parameters
    ----------
    name : str
        `imagenet`, `inaturalist`, `places`, `imagenet30` or `textures`.
    train : bool
    root : path, optional

    Returns
    -------
    FileList
    """
    name, root = resolve_name(name), data_root(root)
    entry = CATALOGUE[name]
    if entry.reader not in ("folder", "textures"):
        raise UserError(f"data set {name} is not a folder of class folders: use load('{name}', ...)")
    if train and not entry.train:
        raise UserError(f"data set {name} has only a test part")
    place = locate_folder(name, train, root)
    if place is None:
        raise missing(name, root, "training part" if train else "test part")
    if not entry.classes:
        items, classes = [(path, 0) for path in image_files(place)], ()
    else:
        classes = tuple(sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith(".")))
        if len(classes) != entry.classes:
            raise UserError(f"{place}: {entry.classes} class folders expected for {name}, {len(classes)} found")
        items = [(path, label) for label, wnid in enumerate(classes) for path in image_files(place / wnid)]
    if not items:
        raise missing(name, root, f"no image below {place}")
    return FileList(items, classes, name)


def locate_folder(name: str, train: bool, root: Path) -> Path | None:
    """Return the folder that holds the class folders (or images) of one part, or None."""
    entry = CATALOGUE[name]
    if entry.reader == "textures":
        place = find(name, root)
        return place and (place / "images" if (place / "images").is_dir() else place)
    inside = _TRAIN if train else _TEST
    place = find(name, root, *inside)
    if place is not None:
        return next(place / item for item in inside if (place / item).exists())
    # Sets without classes may also lie there as one folder of images.
    return find(name, root) if not entry.classes else None


def fit(image, size: int):
    """Scale a Pillow image's shorter side to `size` (bilinear) and cut out the centre, as RGB."""
    from PIL import Image

    image = image.convert("RGB")
    width, height = image.size
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.BILINEAR).crop((left, top, left + size, top + size))


def read_folder(name: str, train: bool, root: Path, keep=None, size: int | None = None) -> Images:
    """Read a folder set into memory; one that would not fit must be streamed."""
    files = open_folder(name, train, root)
    files = files if keep is None else files.of_classes(keep)
    size = size or CATALOGUE[name].shape[1]
    needed = len(files) * 3 * size * size
    if needed > MEMORY_LIMIT:
        raise UserError(
            f"{name} at {size}x{size} takes {needed / 2**30:.0f} GiB of memory: stream it with "
            f"common.datasets.streaming.batches('{name}', ...), or load it at a smaller size"
        )
    if not len(files):
        raise missing(name, root, "no image of the wanted classes")
    frames, digest = decode([path for path, _ in files.items], lambda image: fit(image, size))
    labels = np.array([label for _, label in files.items], dtype=np.int64)
    key = f"{name}/{'train' if train else 'test'} ({len(files)} files)"
    return Images(stack(frames, name), labels, files.classes, name, {key: digest})


class StreamedImages:
    """A map-style data set for `torch.utils.data.DataLoader` that decodes one file per item.

    Parameters
    ----------
    files : FileList
    size : int
        Side length of the images given out.
    resize : int, optional
        Length of the shorter side before the centre is cut out; `size` by default (ImageNet's protocol: 256 for 224).
    """

    def __init__(self, files: FileList, size: int, resize: int | None = None):
        self.files, self.size, self.resize = files, size, resize or size
        if self.resize < size:
            raise ValueError(f"resize ({resize}) must not be below size ({size})")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: int):
        """Return one image, uint8 tensor `(3, size, size)`, and its label."""
        import torch
        from PIL import Image, UnidentifiedImageError

        path, label = self.files.items[index]
        try:
            with Image.open(path) as image:
                fitted = fit(image, self.resize)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise corrupt(path, "an image", str(error).splitlines()[0]) from error
        border = (self.resize - self.size) // 2
        pixels = np.asarray(fitted.crop((border, border, border + self.size, border + self.size)))
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), label


def batches(
    name: str,
    train: bool,
    root=None,
    *,
    size: int = 224,
    resize: int | None = None,
    batch_size: int = 128,
    keep: Sequence[int] | None = None,
    workers: int = 0,
    seed: int = 0,
):
    """Return a `DataLoader` over a folder set: uint8 `(batch, 3, size, size)` and int64 labels.

    The training part is shuffled by `seed`; the test part comes in file order.
    """
    import torch
    from torch.utils.data import DataLoader

    files = open_folder(name, train, root)
    files = files if keep is None else files.of_classes(keep)
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        StreamedImages(files, size, resize),
        batch_size=batch_size,
        shuffle=train,
        num_workers=workers,
        generator=generator,
        persistent_workers=workers > 0,
    )
