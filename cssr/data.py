"""The data of a CSSR run: the original's path flags, its experiment files, streamed sets, and stand-ins for dry runs."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.arguments import positive_int
from common.datasets import (
    CATALOGUE,
    Images,
    OpenSetData,
    find_split,
    hold_out,
    load,
    match_shape,
    prepare,
    resolve_name,
    stratified_subset,
)
from common.errors import UserError
from cssr.experiments import UnknownSet

# The original's path constants: flag, environment variable, data sets found there, and what the folder holds.
PATHS = {
    "tinyimagenet_path": ("OSR_TINYIMAGENET_PATH", ("tinyimagenet",), "train/ and val/ of TinyImageNet"),
    "imagenet_path": ("OSR_IMAGENET_PATH", ("imagenet",), "train/ and val/ of ImageNet-1k"),
    "large_ood_path": ("OSR_LARGE_OOD_PATH", ("inaturalist", "places", "textures", "imagenet30"),
                       "folders of large unknown sets (iNaturalist/, ...)"),
}  # fmt: skip
# Images of each part in a dry run; more where there are more classes, except in streamed sets.
DRY_RUN_IMAGES = 16


def whole_number(text: str) -> int:
    """argparse type: an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, got {text}")
    return value


def add_path_arguments(parser) -> None:
    """Add the original's path constants as flags."""
    group = parser.add_argument_group("the original's paths")
    for flag, (variable, _, holds) in PATHS.items():
        group.add_argument(f"--{flag}", type=Path, metavar="DIR", help=f"{holds}; else ${variable}, else below the data folder")
    group.add_argument("--image_size", type=positive_int, metavar="PIXELS", help="side of streamed images (ImageNet); else 224")
    group.add_argument("--workers", type=whole_number, metavar="N",
                       help="processes that decode streamed images; else the CPUs less one")


def place_data_sets(args) -> None:
    """Put the folders of the path flags first among the places where their data sets are looked for."""
    for flag, (variable, names, _) in PATHS.items():
        given = getattr(args, flag) or os.environ.get(variable)
        if not given:
            continue
        folder = Path(given).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"--{flag} (${variable}) names {given}, which is no folder")
        for name in names:
            entry = CATALOGUE[name]
            # An absolute place stands for itself below any data folder.
            places = [folder] if len(names) == 1 else [folder / place for place in entry.folders]
            CATALOGUE[name] = replace(entry, folders=tuple(dict.fromkeys((*map(str, places), *entry.folders))))


def decoding_processes(workers: int | None) -> int:
    """Processes that decode: as asked, else all CPUs but one."""
    return workers if workers is not None else max((os.cpu_count() or 1) - 1, 1)


def unknown_sets(args) -> list[UnknownSet | str]:
    """Unknown sets of a run's flags: those of `--ds`, else the classes that the split leaves unknown (none with `all`)."""
    if args.unknown_sets is not None:
        return [UnknownSet(part["dataset"], part["classes"] and tuple(part["classes"])) for part in args.unknown_sets]
    split = find_split(args.known_dataset, args.split)
    return ["rest"] if split.unknown or split.unknown_dataset else []


def open_set_data(
    dataset: str, split: str, unknown: tuple[UnknownSet, ...] | list[str], args, *, validation_share: float, seed: int,
    subset: int | None, **options,
) -> OpenSetData:  # fmt: skip
    """Known and unknown data of one run; in a dry run random images stand in for data that is not there.

    Parameters
    ----------
    dataset, split : str
    unknown : sequence of UnknownSet, or of names as `--unknown` has them
    args : Namespace
        Flags `data_dir dry_run image_size workers`.
    validation_share, seed, subset
        As in `common.datasets.prepare`.
    options
        Further arguments of `prepare`.
    """
    from cssr.streaming import streams

    chosen = find_split(dataset, split)  # a wrong split is an error in a dry run too
    subset = max(DRY_RUN_IMAGES, len(chosen.known)) if args.dry_run else subset
    options |= {"root": args.data_dir}
    try:
        if streams(dataset):
            return _streamed(dataset, split, unknown, args, validation_share, seed, subset)
        return _held(dataset, split, unknown, validation_share=validation_share, seed=seed, subset=subset, **options)
    except UserError as error:
        if not args.dry_run:
            raise
        print(f"warning: {error}; this dry run takes random images", file=sys.stderr)
        return stand_in(dataset, split, unknown, validation_share, seed, args.image_size)


def _held(dataset, split, unknown, **options) -> OpenSetData:
    """Data that is held in memory."""
    named = [part if isinstance(part, str) else part.dataset for part in unknown if _all_classes(part)]
    data = prepare(dataset, split, named, **options)
    for part in unknown:
        if _all_classes(part):
            continue
        images = match_shape(load(part.dataset, False, keep=part.classes, root=options["root"]), data.test.shape)
        if options["subset"] is not None:
            images = stratified_subset(images, options["subset"], options["seed"], every_class=False)
        name = f"{part.dataset}-unknown"
        data.unknown[name] = images.as_unknown(name)
        data.checksums.update(images.checksums)
    return data


def _all_classes(part: UnknownSet | str) -> bool:
    return isinstance(part, str) or part.classes is None


def _streamed(dataset, split, unknown, args, validation_share, seed, subset) -> OpenSetData:
    """Data of class folders, listed now and decoded when used."""
    from cssr.streaming import open_set

    chosen, workers = find_split(dataset, split), decoding_processes(args.workers)
    train, test = (open_set(dataset, part, args.data_dir, args.image_size, workers) for part in (True, False))
    outliers = {}
    for part in unknown:
        if part == "rest":
            part = UnknownSet(chosen.unknown_dataset or dataset, chosen.unknown or None)
        part = UnknownSet(resolve_name(part)) if isinstance(part, str) else part
        images = test if part.dataset == dataset else _streamed_unknown(part.dataset, test, args, workers)
        name = part.dataset if part.classes is None else f"{part.dataset}-unknown"
        outliers[name] = (images if part.classes is None else images.of_classes(part.classes)).as_unknown(name)
    train, test = train.relabelled(chosen.known), test.relabelled(chosen.known)
    train, validation, _ = hold_out(train, validation_share, 0.0, seed)
    if subset is not None:
        count = DRY_RUN_IMAGES if args.dry_run else subset

        def fewer(images):
            return images and stratified_subset(images, count, seed, every_class=False)

        train, validation, test = fewer(train), fewer(validation), fewer(test)
        outliers = {name: fewer(images) for name, images in outliers.items()}
    checksums = {key: value for images in (train, test, *outliers.values()) for key, value in images.checksums.items()}
    return OpenSetData(train, validation, None, test, outliers, train.classes, chosen, dataset, checksums)


def _streamed_unknown(name: str, test: Images, args, workers: int) -> Images:
    """Unknown images in the size of the known ones: streamed where they are a folder of files, else in memory."""
    from cssr.streaming import open_set, streams

    if streams(name):
        return open_set(name, False, args.data_dir, test.pixels.size, workers)
    return match_shape(load(name, False, root=args.data_dir), test.shape)


def stand_in(dataset: str, split: str, unknown, validation_share: float, seed: int, size: int | None = None) -> OpenSetData:
    """Random images in the shape and classes of a data set, to see that a command runs where the data is not."""
    chosen, (channels, side) = find_split(dataset, split), CATALOGUE[dataset].shape
    size = (size or side) if side > 64 else side
    classes = tuple(f"class {k}" for k in chosen.known)
    count = DRY_RUN_IMAGES if side > 64 else max(DRY_RUN_IMAGES, len(classes))
    generator = np.random.default_rng(seed)

    def random_images(name: str) -> Images:
        pixels = generator.integers(0, 256, (count, channels, size, size), dtype=np.uint8)
        return Images(pixels, np.arange(count) % len(classes), classes, name)

    train, test = random_images(dataset), random_images(dataset)
    validation = random_images(dataset) if validation_share else None
    others = {part if isinstance(part, str) else part.dataset for part in unknown}
    outliers = {name: random_images(name).as_unknown() for name in sorted(others)}
    return OpenSetData(train, validation, None, test, outliers, classes, chosen, dataset)
