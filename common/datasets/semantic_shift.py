"""The class lists of the Semantic Shift Benchmark (Vaze et al. 2022): known classes, and unknown ones in three grades.

The lists are published as files of their repository, which this one does not copy: they are read from `ssb/` below the data
folder, as published (`.pkl`, read without executing anything) or as JSON of the same form::

    {"known_classes": [...], "unknown_classes": {"Easy": [...], "Medium": [...], "Hard": [...]}}

Classes are names or numbers from 0 in the data set's own order.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, nearest
from .catalogue import CATALOGUE, data_root

FILES = {"cub": "cub_osr_splits", "fgvc-aircraft": "aircraft_osr_splits", "stanford-cars": "scars_osr_splits"}
GRADES = ("easy", "medium", "hard")
NAMES = ("ssb", *(f"ssb-{grade}" for grade in GRADES))
SOURCE = "data/open_set_splits of github.com/sgvaze/osr_closed_set_all_you_need"


def semantic_shift_classes(dataset: str, name: str, root=None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the known classes and the unknown ones of a grade (`ssb`: of all grades), as ascending numbers.

    Raises
    ------
    UserError
        No such grade; the file is absent (what to fetch, and where it goes) or of another form.
    """
    if name not in NAMES:
        raise UserError(f"data set {dataset} has no split '{name}'; known: {', '.join(NAMES)}{nearest(name, NAMES)}")
    path, lists = _read(dataset, data_root(root))
    try:
        known, graded = lists["known_classes"], {str(k).lower(): v for k, v in lists["unknown_classes"].items()}
        wanted = GRADES if name == "ssb" else (name.removeprefix("ssb-"),)
        unknown = [item for grade in wanted for item in graded[grade]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: known_classes and unknown_classes with Easy, Medium, Hard expected ({error})") from None
    numbers = [_numbers(dataset, items, path, data_root(root)) for items in (known, unknown)]
    both = sorted(set(numbers[0]) & set(numbers[1]))
    if both or not all(numbers):
        raise UserError(f"{path}: known and unknown classes must be disjoint and not empty; common: {both[:5]}")
    return numbers[0], numbers[1]


def _read(dataset: str, root: Path) -> tuple[Path, dict]:
    from .readers_binary import _ArrayUnpickler

    folder = root / "ssb"
    for path in (folder / f"{FILES[dataset]}.json", folder / f"{FILES[dataset]}.pkl"):
        if not path.is_file():
            continue
        try:
            if path.suffix == ".json":
                return path, json.loads(path.read_text())
            return path, _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(f"{path} is not readable as class lists ({error}); fetch it again") from None
    raise UserError(f"the class lists of the Semantic Shift Benchmark for {dataset} are not in {folder}: fetch"
                    f" {FILES[dataset]}.pkl from {SOURCE} and put it there")  # fmt: skip


def _numbers(dataset: str, items: Sequence, path: Path, root: Path) -> tuple[int, ...]:
    """Return class numbers of names or numbers, ascending."""
    count = CATALOGUE[dataset].classes
    if any(isinstance(item, str) for item in items):
        from .fine_grained import read_classes

        index = {name: number for number, name in enumerate(read_classes(dataset, root))}
        strange = [item for item in items if item not in index]
        if strange:
            raise UserError(f"{path}: {dataset} has no class {strange[0]!r}{nearest(str(strange[0]), index)}")
        items = [index[item] for item in items]
    numbers = sorted(int(item) for item in items)
    if numbers and not 0 <= numbers[0] <= numbers[-1] < count:
        raise UserError(f"{path}: classes 0 to {count - 1} exist, got {numbers[0]} to {numbers[-1]}")
    return tuple(numbers)
