"""Data sets that show the same things under other names: what outliers in training forbid at the test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from common.errors import UserError

SHUFFLED = "shuffled"
# Known sets of natural objects: ImageNet has images of their classes.
NATURAL = ("cifar10", "cifar100", "tinyimagenet", "imagenet30", "imagenet", "cub", "fgvc-aircraft", "stanford-cars")


def family(name: str) -> set[str]:
    """Canonical names of all sets made of the same images as `name`: what it is made from, what is made from that, itself."""
    from common.datasets.own import identity
    from common.datasets.preparation import MADE_FROM

    found = {identity(name)}
    while True:
        groups = [{made, *sources} for made, sources in MADE_FROM.items()]
        larger = found.union(*(group for group in groups if group & found))
        if larger == found:
            return found
        found = larger


def refuse_training_outliers(unknown: Iterable[str] | None, header: Mapping) -> None:
    """A set that served as outliers in training, or was made from the same images, is no unknown set any more.

    Raises
    ------
    UserError
        Naming the unknown set and the outlier set.
    """
    from common.datasets import resolve_name
    from common.datasets.own import identity

    used = [identity(resolve_name(name)) for name in header.get("outliers", ()) if name != SHUFFLED]
    for name in unknown or ():
        if name == "rest" or name.endswith("unknown"):
            continue
        related = family(resolve_name(name))
        shown = next((outlier for outlier in used if outlier in related), None)
        if shown is not None:
            raise UserError(f"unknown set {name} was shown in training as outliers ({shown}): its result would measure nothing")


def check_training_outliers(outliers: Iterable[str], data) -> None:
    """Refuse outliers made of the images that the known data set was made of; say where names cannot tell an overlap.

    Raises
    ------
    UserError
        Outliers and known (or unknown) data set have a common source.
    """
    from common.datasets import resolve_name
    from common.datasets.own import identity

    sets = [data.dataset, *([data.split.unknown_dataset] if data.split.unknown_dataset else [])]
    for given in outliers:
        if given == SHUFFLED:
            continue
        name = resolve_name(given)
        for other in sets:
            if name != other and identity(name) in family(other):
                raise UserError(f"outliers {name}: they and {other} are made of the same images; outlier exposure with classes of"
                                " the test measures nothing: choose another set, noise or shuffled")  # fmt: skip
        # Archives of ODIN and CSI hold no class names, (Tiny) ImageNet numbers such as n02084071.
        if name in family("imagenet") and name != "imagenet30" and any(other in NATURAL for other in sets):
            print(f"note: the classes of outliers {name} are not stored by name, so an overlap with the classes of {data.dataset}"
                  " cannot be checked: ImageNet shows many of them")  # fmt: skip
