"""Readers of the fine-grained sets of the Semantic Shift Benchmark, in the layouts that torchvision and the authors unpack to.

CUB-200-2011 (`CUB_200_2011/`), FGVC-Aircraft (`fgvc-aircraft-2013b/data/`, variants, trainval) and Stanford Cars
(`stanford_cars/`, as torchvision's `StanfordCars` expects it).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import UserError
from .catalogue import CATALOGUE, find, missing
from .checksums import corrupt
from .images import Images
from .readers_folders import MEMORY_LIMIT, decode, stack
from .streaming import fit

#: Data set -> file of the training part, file of the test part, below its folder.
LISTS = {
    "cub": ("images.txt", "images.txt"),
    "fgvc-aircraft": ("data/images_variant_trainval.txt", "data/images_variant_test.txt"),
    "stanford-cars": ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
}


def place_of(name: str, train: bool, root: Path) -> Path | None:
    """Return the folder of a data set if the list of that part is in it, else None."""
    return find(name, root, LISTS[name][0 if train else 1])


def read_fine_grained(name: str, train: bool, root: Path, keep=None, size: int | None = None) -> Images:
    """Read one part: the shorter side of every image is scaled to `size` (default 224), the centre is cut out.

    Raises
    ------
    UserError
        Absent (what to fetch, and where it goes), damaged, or too large for memory at that size.
    """
    place = place_of(name, train, root)
    if place is None:
        raise missing(name, root, LISTS[name][0 if train else 1])
    paths, labels = {"cub": _cub, "fgvc-aircraft": _aircraft, "stanford-cars": _cars}[name](place, train)
    classes = _classes(name, place)
    if len(classes) != CATALOGUE[name].classes:
        raise corrupt(place, f"{CATALOGUE[name].classes} classes", f"{len(classes)}")
    labels = np.asarray(labels, dtype=np.int64)
    wanted = np.arange(len(labels)) if keep is None else np.flatnonzero(np.isin(labels, np.asarray(keep)))
    size = size or CATALOGUE[name].shape[1]
    needed = len(wanted) * 3 * size * size
    if needed > MEMORY_LIMIT:
        raise UserError(f"{name} at {size}x{size} takes {needed / 2**30:.0f} GiB of memory: load it at a smaller size")
    absent = next((paths[i] for i in wanted if not paths[i].is_file()), None)
    if absent is not None:
        raise corrupt(absent, "an image that the list names", "no file")
    if not len(wanted):
        raise missing(name, root, "no image of the wanted classes")
    frames, digest = decode([paths[i] for i in wanted], lambda image: fit(image, size))
    key = f"{name}/{'train' if train else 'test'} ({len(wanted)} files)"
    return Images(stack(frames, name), labels[wanted], tuple(classes), name, {key: digest})


def _columns(path: Path) -> list[list[str]]:
    """Return the lines of a text file, each cut at its first space."""
    if not path.is_file():
        raise corrupt(path, "the list of the published archive", "no file")
    return [line.strip().split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _cub(place: Path, train: bool):
    files = dict(_columns(place / "images.txt"))
    labels = dict(_columns(place / "image_class_labels.txt"))
    part = dict(_columns(place / "train_test_split.txt"))
    chosen = [number for number in files if part.get(number) == str(int(train))]
    return [place / "images" / files[n] for n in chosen], [int(labels[n]) - 1 for n in chosen]


def _aircraft(place: Path, train: bool):
    index = {name: number for number, name in enumerate(_classes("fgvc-aircraft", place))}
    rows = _columns(place / LISTS["fgvc-aircraft"][0 if train else 1])
    return [place / "data" / "images" / f"{image}.jpg" for image, _ in rows], [index[name] for _, name in rows]


def _cars(place: Path, train: bool):
    rows = _matlab(place / LISTS["stanford-cars"][0 if train else 1], "annotations")
    folder = place / ("cars_train" if train else "cars_test")
    return [folder / str(row["fname"]) for row in rows], [int(row["class"]) - 1 for row in rows]


def read_classes(name: str, root: Path) -> list[str]:
    """Return the class names of a data set in its own order, from whichever part is here."""
    place = place_of(name, True, root) or place_of(name, False, root)
    if place is None:
        raise missing(name, root)
    return _classes(name, place)


def _classes(name: str, place: Path) -> list[str]:
    if name == "cub":
        return [words[-1] for words in _columns(place / "classes.txt")]
    if name == "fgvc-aircraft":
        return [" ".join(words) for words in _columns(place / "data" / "variants.txt")]
    return [str(words) for words in _matlab(place / "devkit" / "cars_meta.mat", "class_names")]


def _matlab(path: Path, key: str) -> np.ndarray:
    """Return one array of a MATLAB file."""
    from scipy.io import loadmat

    try:
        return np.atleast_1d(loadmat(path, squeeze_me=True)[key])
    except Exception as error:  # SciPy has an error of its own for every kind of damage
        raise corrupt(path, f"a MATLAB file with {key}", str(error) or type(error).__name__) from None
