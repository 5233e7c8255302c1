"""The user's own images as a data set: `folder:PATH@SIZE` wherever a data set is named.

    folder:leaves@64      leaves/train/CLASS/*.jpg and leaves/test/CLASS/*.jpg, as RGB images of 64x64
    folder:scans@1x28     the same, as grey images of 28x28
    folder:anything       as unknown set: its test part, or any tree of images, in the size of the known ones

PATH is tried as it is, then below the data folder (`$OSR_DATA_DIR`). Images are scaled on their shorter side and cut to the
centre. A class has the index of its folder in alphabetical order.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import UserError
from .catalogue import OWN, Entry, data_root, is_own
from .images import Images
from .readers_folders import MEMORY_LIMIT, decode, has_images, image_files, stack

_NAME = re.compile(re.escape(OWN) + r"(?P<path>.+?)(?:@(?:(?P<channels>[13])x)?(?P<size>\d+))?")
_TRAIN, _TEST = ("train", "training"), ("test", "val", "validation")


def parsed(name: str) -> tuple[str, int, int]:
    """Path as it was given, channels, and side length (0: none given) of `folder:PATH@SIZE`.

    Raises
    ------
    UserError
        Another form, or a side length below 4.
    """
    found = _NAME.fullmatch(name.strip())
    size = int(found["size"] or 0) if found else 0
    if found is None or (found["size"] and size < 4) or "@" in Path(found["path"]).name:
        raise UserError(f"data set '{name}': expected {OWN}PATH@SIZE, such as {OWN}leaves@64 (RGB) or {OWN}scans@1x28 (grey)")
    return str(Path(found["path"])), int(found["channels"] or 3), size


def canonical(name: str) -> str:
    """The one spelling of an own data set: no slash at the end, channels always said."""
    path, channels, size = parsed(name)
    return f"{OWN}{path}" + (f"@{channels}x{size}" if size else "")


def place_of(name: str) -> Path:
    """The folder of an own data set.

    Raises
    ------
    UserError
        There is none: where it was looked for.
    """
    given = Path(parsed(name)[0]).expanduser()
    for place in (given, data_root() / given):
        if place.is_dir():
            return place
    raise UserError(f"data set '{name}': no folder {given} here or in the data folder {data_root()}")


def shown_name(name: str) -> str:
    """Name of a data set in tables and of its sources in scores: for an own one, that of its folder."""
    return place_of(name).resolve().name if is_own(name) else name


def identity(name: str) -> str:
    """What two names of the same images have in common: for an own data set its folder, whatever the size and the spelling."""
    if not is_own(name):
        return name
    try:
        return f"{OWN}{place_of(name).resolve()}"
    except UserError:  # outliers of a training on another machine
        return f"{OWN}{parsed(name)[0]}"


def part_of(name: str, train: bool) -> Path | None:
    """The folder of one part: `train` or `training`; `test`, `val` or `validation`. One without parts is a test part."""
    place = place_of(name)
    found = next((place / part for part in (_TRAIN if train else _TEST) if (place / part).is_dir()), None)
    if found is None and not train and part_of(name, True) is None:
        return place
    return found


def class_names(part: Path) -> tuple[str, ...]:
    """Names of the folders in a part that hold images, sorted."""
    return tuple(sorted(p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith(".") and has_images(p)))


def entry_of(name: str) -> Entry:
    """What `CATALOGUE` gives for the name of an own data set."""
    _, channels, size = parsed(name)
    train = part_of(name, True)
    return Entry(name, "own", (channels, size), int(train is not None), 0, 0 if train is None else len(class_names(train)),
                 (str(place_of(name)),), "your own images")  # fmt: skip


def read_own(name: str, train: bool, keep=None, size: int | None = None) -> Images:
    """Read one part into memory, uint8 `(N, C, size, size)`; of the classes `keep` only.

    Raises
    ------
    UserError
        No size, no such part or no image in it, classes that differ between the parts, or too large for memory.
    """
    shown, (_, channels, own_size) = shown_name(name), parsed(name)
    size = size or own_size
    if not size:
        raise UserError(f"data set '{name}' has no image size: {name}@32 reads RGB images of 32x32, {name}@1x32 grey ones")
    part, training = part_of(name, train), part_of(name, True)
    if part is None:
        raise UserError(f"data set '{name}': no {'training' if train else 'test'} part in {place_of(name)}; known classes want"
                        " train/CLASS/ and test/CLASS/")  # fmt: skip
    classes = class_names(part)
    if training and not train and (differing := sorted(set(classes) ^ set(class_names(training)))):
        raise UserError(f"data set '{name}': train/ and test/ have different classes ({', '.join(differing[:5])}); images of"
                        f" further classes make an unknown set of their own: --unknown {OWN}PATH")  # fmt: skip
    paths = image_files(part)
    beside = next((path for path in paths if path.parent == part), None)
    if beside and training:
        raise UserError(f"data set '{name}': {beside} lies beside the class folders: put it into one of them")
    classes = () if beside else classes  # of a tree whose images lie anywhere there are no classes
    index = {folder: label for label, folder in enumerate(classes)}
    labels = np.array([index.get(path.relative_to(part).parts[0], 0) for path in paths], dtype=np.int64)
    wanted = np.arange(len(paths)) if keep is None else np.flatnonzero(np.isin(labels, np.asarray(keep)))
    if not len(wanted):
        raise UserError(f"data set '{name}': no image below {part}")
    if (needed := len(wanted) * channels * size * size) > MEMORY_LIMIT:
        raise UserError(f"{shown} at {size}x{size} takes {needed / 2**30:.0f} GiB of memory: name a smaller size")
    frames, digest = decode([paths[k] for k in wanted], lambda image: _fitted(image, channels, size))
    key = f"{shown}/{'train' if train else 'test'} ({len(wanted)} files)"
    return Images(stack(frames, shown), labels[wanted], classes, shown, {key: digest})


def _fitted(image, channels: int, size: int):
    from .streaming import fit

    return fit(image, size).convert("RGB" if channels == 3 else "L")
