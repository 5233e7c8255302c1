"""CSSR's experiment files (`exps/`): which classes of which data sets are known and unknown.

    python cssr/experiments.py            # write exps/ from the table below

A file holds `name`, `train` and `test`; an entry of the lists is a data set, the new label of each of its classes
(`convert_class`; -1: unknown) and the new labels that are kept (`keep_class`). A set without classes has one entry. `split`
names the lists where `common.datasets` knows them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.arguments import ScriptParser, run_script
from common.datasets import CATALOGUE, class_count, find_split, resolve_name, split_names
from common.errors import UserError
from cssr.configuration import FOLDER, locate, read_json

LETTERS = "abcde"
# What CIFAR-10 with ten known classes meets (the paper's tables 2, 3 and 4).
OUTLIERS = ("imagenet-crop", "imagenet-resize", "lsun-crop", "lsun-resize", "imagenet-fix", "lsun-fix", "cifar100", "svhn")
# CIFAR-100's bus and pickup_truck show CIFAR-10's automobile and truck. The paper removes "overlapping classes" unnamed.
OVERLAPPING = (13, 58)
# CIFAR-100 openness: 15 known classes, then so many unknown ones; the paper names no classes, so their order is drawn once.
OPENNESS_UNKNOWN = tuple(range(15, 86, 10))
OPENNESS_SEED = 0


@dataclass(frozen=True)
class UnknownSet:
    """Unknown images of one data set: of these original classes, or all of them."""

    dataset: str
    classes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Experiment:
    """What an experiment file says.

    Attributes
    ----------
    dataset : str
        Canonical name of the known data set.
    split : str
        Name of the known classes for `common.datasets.find_split`.
    unknown : tuple of UnknownSet
    """

    dataset: str
    split: str
    unknown: tuple[UnknownSet, ...]


def _entry(dataset: str, known=(), unknown=(), train: bool = False) -> dict:
    """One entry of `train` or `test`; classes of neither list get -2 and are dropped."""
    count = CATALOGUE[dataset].classes or 1
    labels = np.full(count, -1 if train else -2)
    labels[list(unknown) if CATALOGUE[dataset].classes else [0]] = -1
    labels[list(known)] = np.arange(len(known))
    kept = [*range(len(known)), *([-1] if not train and (labels == -1).any() else [])]
    return {"dataset": dataset, "convert_class": labels.tolist(), "keep_class": kept}


def experiment(dataset: str, split, others=()) -> dict:
    """Content of an experiment file.

    Parameters
    ----------
    dataset : str
        Known data set.
    split : str or sequence of int
        Known classes; the unknown ones that the split names are tested.
    others : sequence of (str, classes or None)
        Further unknown sets, with the classes taken of each.
    """
    found = find_split(dataset, split)
    rest = () if found.unknown_dataset else found.unknown
    if found.unknown_dataset:
        others = [(found.unknown_dataset, found.unknown), *others]
    tests = [_entry(dataset, found.known, rest)]
    for name, classes in others:
        tests.append(_entry(name, unknown=classes or range(CATALOGUE[name].classes)))
    content = {"name": dataset, "train": [_entry(dataset, found.known, train=True)], "test": tests}
    named = isinstance(split, str) and split != "all"
    return content | ({"split": found.name} if named else {})


def _openness(count: int) -> dict:
    """CIFAR-100 with 15 known classes and `count` unknown ones, each series containing the shorter ones."""
    order = np.random.RandomState(OPENNESS_SEED).permutation(100)
    content = experiment("cifar100", sorted(order[:15].tolist()))
    known = np.sort(order[:15])
    content["test"] = [_entry("cifar100", known.tolist(), np.sort(order[15 : 15 + count]).tolist())]
    return content


def table() -> dict[str, dict]:
    """Every shipped experiment: path below `exps/` to content."""
    files = {f"{data}/spl_{s}": experiment(data, f"cssr-{s}") for data in ("cifar10", "svhn", "tinyimagenet", "mnist")
             for s in LETTERS}  # fmt: skip
    files["digits/first_6"] = experiment("digits", "first-6")
    for number, letter in enumerate(LETTERS):
        # Digits: the class numbers of the CIFAR-10 split. CIFAR+M: CAC's lists, whose known classes are no animals.
        files[f"digits/spl_{letter}"] = experiment("digits", find_split("cifar10", f"cssr-{letter}").known)
        for plus in (10, 50):
            files[f"cifar+{plus}/spl_{letter}"] = experiment("cifar10", f"cac-plus{plus}-{number}")
            files[f"cifar+{plus}/arpl_{number}"] = experiment("cifar10", f"arpl-plus{plus}-{number}")
    for other in OUTLIERS:
        classes = range(class_count(other)) if CATALOGUE[other].classes else None
        files[f"cifar10/all_vs_{other.replace('-', '_')}"] = experiment("cifar10", "all", [(other, classes)])
    others = [k for k in range(100) if k not in OVERLAPPING]
    files["cifar10/all_vs_cifar100_without_overlap"] = experiment("cifar10", "all", [("cifar100", others)])
    files |= {f"cifar100/openness_{count}": _openness(count) for count in OPENNESS_UNKNOWN}
    files["imagenet/vs_inaturalist"] = experiment("imagenet", "vs-inaturalist")
    return {f"{name}.json": content for name, content in files.items()}


def text_of(content: dict) -> str:
    """The file's text: one line for each key."""
    lines = []
    for key, value in content.items():
        entries = [json.dumps(value)] if not isinstance(value, list) else [json.dumps(entry) for entry in value]
        joined = ",\n    ".join(entries)
        lines.append(f'  "{key}": [{joined}]' if isinstance(value, list) else f'  "{key}": {joined}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_experiment(path: str) -> Experiment:
    """Read an experiment file.

    Raises
    ------
    UserError
        No such file, no experiment, known classes that do not become 0, 1, ... in ascending order, or unknown images that
        are not labelled -1.
    """
    content = read_json(locate(path))
    try:
        (entry,) = content["train"]
        dataset, known, _ = _classes_of(entry)
        tests = [_classes_of(test) for test in content["test"]]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is no experiment: expected one train entry and test entries with dataset, convert_class and"
                        " keep_class; --ds takes a file of exps/, --config one of configs/") from None
    labels = list(known.values())
    if not labels or labels != list(range(len(known))):
        raise UserError(f"{path}: known classes must become 0, 1, ... in ascending order, got {labels}")
    unknown = []
    for name, kept, classes in tests:
        if kept and (name != dataset or kept != known):
            raise UserError(f"{path}: the test entry of {name} has other known classes than the train entry")
        if classes:
            complete = name != dataset and len(classes) == max(CATALOGUE[name].classes, 1)
            unknown.append(UnknownSet(name, None if complete else classes))
    return Experiment(dataset, _split_name(content.get("split"), dataset, tuple(known), tuple(unknown)), tuple(unknown))


def _classes_of(entry: dict) -> tuple[str, dict[int, int], tuple[int, ...]]:
    """Data set of an entry, its known classes with their labels, and its unknown classes (0 for a set without classes)."""
    dataset, keep, labels = resolve_name(entry["dataset"]), set(entry["keep_class"]), list(entry["convert_class"])
    expected = CATALOGUE[dataset].classes or 1
    if len(labels) != expected:
        raise UserError(f"entry {dataset}: convert_class must hold {expected} labels, got {len(labels)}")
    if {label for label in labels if label < 0} & keep - {-1}:
        raise UserError(f"entry {dataset}: unknown classes are kept with the label -1, got {sorted(keep)}")
    known = {index: label for index, label in enumerate(labels) if label in keep and label >= 0}
    return dataset, known, tuple(index for index, label in enumerate(labels) if label in keep and label == -1)


def _split_name(named: str | None, dataset: str, known: tuple[int, ...], unknown: tuple[UnknownSet, ...]) -> str:
    """Name of the split with these known classes: the file's own, a published one, all, first-K, or the list."""
    elsewhere = {part.dataset: part.classes for part in unknown if part.dataset != dataset}
    published = [name for name in split_names(dataset) if name.startswith("cssr-")]
    candidates = [*([named] if named else []), *published, "all", f"first-{len(known)}"]
    for name in candidates:
        split = find_split(dataset, name)
        if split.known == known and (split.unknown_dataset is None or split.unknown_dataset in elsewhere):
            return split.name
    return find_split(dataset, known).name


def is_rest(found: Experiment) -> bool:
    """Whether the unknown images are what the split itself leaves unknown."""
    split = find_split(found.dataset, found.split)
    rest = UnknownSet(split.unknown_dataset or split.dataset, split.unknown or None)
    return found.unknown == (rest,)


def main(argv=None) -> None:
    """Write `exps/`, and delete files that the table does not list."""
    about = "Write exps/ from the table in this file; files there that it does not list are removed."
    ScriptParser(description=about).parse_args(argv)
    folder = FOLDER / "exps"
    wanted = {folder / name: text_of(content) for name, content in table().items()}
    for stale in set(folder.glob("*/*.json")) - wanted.keys():
        stale.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    print(f"{len(wanted)} files in {folder}")


if __name__ == "__main__":
    run_script(main)
