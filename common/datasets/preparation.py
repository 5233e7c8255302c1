"""`prepare`: everything one open-set experiment needs, from the names of its data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import UserError
from .catalogue import REST_OF, fold, resolve_name
from .images import Images, class_ranks, match_shape, require_classes, stratified_subset
from .own import identity, shown_name
from .readers import load
from .splits import Split, find_split

REST = "rest"

#: Sets without class labels that nevertheless show the classes of another one: made from its images.
MADE_FROM = {
    "imagenet-crop": ("tinyimagenet", "imagenet"),
    "imagenet-resize": ("tinyimagenet", "imagenet"),
    "imagenet-fix": ("imagenet",),
    "imagenet30": ("imagenet",),
}


@dataclass(eq=False)
class OpenSetData:
    """The data of one experiment. Known labels are 0..K-1, unknown ones -1.

    Parameters
    ----------
    train : Images
        Known training images without the held-out ones.
    validation, calibration : Images or None
        Held-out known images, disjoint from `train` and from each other; None when their share is 0.
    test : Images
        Known test images.
    unknown : dict
        Name -> images with label -1, in the channels and size of the known images.
    class_names : tuple of str
        Names of the known classes, by label.
    split : Split
    """

    train: Images
    validation: Images | None
    calibration: Images | None
    test: Images
    unknown: dict[str, Images]
    class_names: tuple[str, ...]
    split: Split
    dataset: str = ""
    checksums: dict[str, str] = field(default_factory=dict)

    def mean_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation per channel of the training pixels scaled to [0, 1], float64 `(C,)`."""
        return self.train.mean_std()


def prepare(
    known_dataset: str,
    split: str | Sequence[int] = "all",
    unknown: str | Sequence[str] | None = None,
    *,
    root=None,
    validation_share: float = 0.1,
    calibration_share: float = 0.0,
    seed: int = 0,
    subset: int | None = None,
    released_noise: bool = False,
    odin_crop: str = "center",
    download: bool = False,
) -> OpenSetData:
    """Load known and unknown data, relabel, hold out, and bring the unknown images to the known ones' shape.

    Parameters
    ----------
    known_dataset : str
    split : str or sequence of int
        See `find_split`.
    unknown : str or sequence of str, optional
        Names of unknown sets (a string may hold several, with commas); `rest` is what the split leaves unknown: the
        other classes of the same set, or the classes of the set that the split names. Default: `rest` where there is
        one, else nothing. An empty sequence loads none.
    root : path, optional
    validation_share, calibration_share : float
        Shares of every known class's training images that are held out, e.g. 0.1; the two parts are disjoint, and
        asking for the second does not change the first.
    seed : int
        Decides what is held out and which images a subset has. Noise does not depend on it.
    subset : int, optional
        At most this many images in each part.
    released_noise, odin_crop, download
        See `load`. Native 36x36 images keep their size.

    Returns
    -------
    OpenSetData
    """
    dataset = resolve_name(known_dataset)
    chosen = find_split(dataset, split, root)
    names = _unknown_names(dataset, chosen, unknown)
    _check_shares(validation_share, calibration_share)
    options = {"root": root, "download": download}

    train_all = _known_part(load(dataset, True, keep=chosen.known, **options), chosen, "training")
    same_rest = REST in names and chosen.unknown_dataset is None
    everything = load(dataset, False, keep=chosen.known + (chosen.unknown if same_rest else ()), **options)
    test = _known_part(everything, chosen, "test")
    train, validation, calibration = hold_out(train_all, validation_share, calibration_share, seed)

    outliers = _unknown_sets(names, chosen, everything, released_noise, odin_crop, options)
    shown = [test.name, *(part.name for part in outliers.values())]
    if same := [name for name in shown if shown.count(name) > 1]:
        raise UserError(f"two of the data sets are called '{same[0]}': rename one of the folders")
    if subset is not None:
        train, test = (stratified_subset(part, subset, seed) for part in (train, test))
        validation, calibration = (part and stratified_subset(part, subset, seed) for part in (validation, calibration))
        outliers = {key: stratified_subset(part, subset, seed, every_class=False) for key, part in outliers.items()}
    checksums = _merged(train_all, everything, *outliers.values())
    outliers = {key: part.as_unknown() for key, part in outliers.items()}
    return OpenSetData(train, validation, calibration, test, outliers, train.classes, chosen, dataset, checksums)


def _merged(*parts: Images) -> dict[str, str]:
    return {file: digest for part in parts for file, digest in part.checksums.items()}


def _unknown_names(dataset: str, split: Split, unknown) -> list[str]:
    """Resolve the wanted unknown sets and refuse those that show known classes."""
    rest_exists = bool(split.unknown or split.unknown_dataset)
    if unknown is None:
        return [REST] if rest_exists else []
    given = unknown.split(",") if isinstance(unknown, str) else list(unknown)
    names = []
    for item in (fold(name) for name in given if str(name).strip()):
        rest_of = REST_OF.get(item)
        if rest_of and rest_of != dataset:
            raise UserError(
                f"unknown set '{item}' means the other classes of {rest_of}, but the known set is {dataset}"
            )
        name = REST if rest_of or item == REST else resolve_name(item)
        if name == REST and not rest_exists:
            raise UserError(
                f"split '{split.name}' of {dataset} leaves no class unknown: name unknown sets with --unknown, "
                "or train on first-K or a published split"
            )
        if identity(name) == identity(dataset):
            raise UserError(
                f"known and unknown data overlap: {dataset} is the known set; its other classes are called '{REST}'"
            )
        if dataset in MADE_FROM.get(name, ()) or name in MADE_FROM.get(dataset, ()):
            raise UserError(f"known and unknown data overlap: {name} is made from images of the classes of {dataset}")
        if identity(name) in map(identity, names):
            raise UserError(f"unknown set '{name}' is given twice")
        names.append(name)
    return names


def _check_shares(validation: float, calibration: float) -> None:
    for name, share in (("validation_share", validation), ("calibration_share", calibration)):
        if not 0 <= share < 1:
            raise UserError(f"{name} must be at least 0 and below 1, got {share}")
    if validation + calibration >= 1:
        raise UserError(f"validation_share + calibration_share must be below 1, got {validation} + {calibration}")


def _known_part(images: Images, split: Split, part: str) -> Images:
    """Relabel the known classes, and name those that have no image."""
    require_classes(split.dataset, part, images.classes, images.labels, split.known)
    return images.relabelled(split.known)


def hold_out(
    images: Images, validation_share: float, calibration_share: float = 0.0, seed: int = 0
) -> tuple[Images, Images | None, Images | None]:
    """Divide known training images into what is trained on and two held-out parts, class by class.

    Returns
    -------
    train, validation, calibration : Images
        In the original order of the images; a part whose share is 0 is None.
    """
    rank, size, _ = class_ranks(images.labels, seed)
    first = np.floor(validation_share * size + 0.5)
    second = first + np.floor(calibration_share * size + 0.5)
    parts = []
    for share, low, high in ((validation_share, 0 * first, first), (calibration_share, first, second)):
        chosen = (rank >= low) & (rank < high)
        short = np.setdiff1d(images.labels, images.labels[chosen]) if share else []
        if len(short):
            raise UserError(
                f"a held-out share of {share} leaves no image of class {images.classes[short[0]]}: "
                f"it has only {int((images.labels == short[0]).sum())} training images"
            )
        parts.append(images.subset(chosen) if share else None)
    train = images.subset(rank >= second)
    gone = np.setdiff1d(images.labels, train.labels)
    if len(gone):
        raise UserError(f"held-out shares leave no training image of class {images.classes[gone[0]]}")
    return train, parts[0], parts[1]


def _unknown_sets(names, split: Split, everything: Images, released_noise, odin_crop, options) -> dict[str, Images]:
    """Load the unknown sets in the known set's channels and size."""
    outliers = {}
    for name in names:
        key, images = _unknown_set(name, split, everything, released_noise, odin_crop, options)
        native = odin_crop == "native" and key in ("imagenet-crop", "lsun-crop")
        outliers[key] = match_shape(images, everything.shape, resize=not native)
    return outliers


def _unknown_set(name, split: Split, everything: Images, released_noise, odin_crop, options) -> tuple[str, Images]:
    """Load one unknown set; labels are still its own, so that a subset can be drawn in proportion."""
    if name == REST and split.unknown_dataset is None:
        key = f"{shown_name(split.dataset)}-unknown"
        return key, replace(everything.of_classes(split.unknown), name=key)
    if name == REST:
        key = f"{split.unknown_dataset}-unknown" if split.unknown else split.unknown_dataset
        images = load(split.unknown_dataset, False, keep=split.unknown or None, **options)
        return key, replace(images, name=key)
    channels, height, width = everything.shape
    images = load(
        name,
        False,
        released_noise=released_noise,
        odin_crop=odin_crop,
        shape=(channels, height, width),
        size=height,
        **options,
    )
    shared = sorted({everything.classes[k] for k in split.known} & set(images.classes))
    if shared:
        raise UserError(
            f"known and unknown data overlap: {name} and {split.dataset} share {len(shared)} known classes: "
            f"{', '.join(shared[:5])}"
        )
    return name, images
