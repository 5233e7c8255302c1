"""Which data sets are here: a look at the file names only."""

from __future__ import annotations

from pathlib import Path

from .catalogue import CATALOGUE, find
from .fine_grained import place_of
from .own import part_of
from .readers_folders import outlier_place, tinyimagenet_wnids
from .streaming import locate_folder


def part_path(name: str, train: bool, root: Path) -> Path | None:
    """Return the place of one part of a data set if all its files seem to be here, else None.

    Generated and embedded sets have no place: for them `root` itself is returned.
    """
    entry = CATALOGUE[name]
    if train and not entry.train:
        return None
    if entry.reader == "digits" or (entry.reader == "noise" and not entry.folders):
        return root
    if entry.reader in ("idx", "noise"):
        prefix = "train" if train else "t10k"
        stems = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
        place = find(name, root, stems[0], f"{stems[0]}.gz")
        complete = place and all((place / s).exists() or (place / f"{s}.gz").exists() for s in stems)
        return place if complete else None
    if entry.reader == "cifar":
        ten = name == "cifar10"
        files = [f"data_batch_{i}" for i in range(1, 6)] if ten and train else ["train" if train else "test"]
        files = ["test_batch"] if ten and not train else files
        place = find(name, root, files[0])
        files.append("batches.meta" if ten else "meta")
        return place if place and all((place / f).exists() for f in files) else None
    if entry.reader == "svhn":
        return find(name, root, f"{'train' if train else 'test'}_32x32.mat")
    if entry.reader == "omniglot":
        return find(name, root, "images_background" if train else "images_evaluation")
    if entry.reader == "tinyimagenet":
        return find(name, root, "train" if train else "val")
    if entry.reader == "outliers":
        return outlier_place(name, root)
    if entry.reader == "fine-grained":
        return place_of(name, train, root)
    if entry.reader == "own":
        return part_of(name, train)
    return locate_folder(name, train, root)


def absent_classes(name: str, split: str, root: Path) -> int:
    """How many known classes of a split have no training images here; sets other than Tiny ImageNet are whole or absent."""
    if name != "tinyimagenet":
        return 0
    from .splits import find_split

    place = part_path(name, True, root)
    names = tinyimagenet_wnids(place)
    return sum(not (place / "train" / names[label]).is_dir() for label in find_split(name, split).known)
