"""Known/unknown splits: the published lists as data (`splits.json`), "the first K classes", and any list.

Known classes are relabelled 0..K-1 in ascending original order, whatever the order of a list.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, nearest
from .catalogue import CATALOGUE, OWN, fold, is_own, resolve_name
from .own import class_names, part_of
from .semantic_shift import FILES, SOURCE, semantic_shift_classes


@dataclass(frozen=True)
class Split:
    """Which classes are known and which are not.

    Parameters
    ----------
    dataset : str
        Canonical name of the known data set.
    name : str
        Name of the split, as in tables.
    known : tuple of int
        Original indices of the known classes, ascending.
    unknown : tuple of int
        Original indices of the unknown classes, of `unknown_dataset` if that is given, else of `dataset`.
    source : str
        Where the lists come from.
    unknown_dataset : str, optional
        The data set that the unknown classes belong to when it is another one; then an empty `unknown` means all of it.
    """

    dataset: str
    name: str
    known: tuple[int, ...]
    unknown: tuple[int, ...]
    source: str
    unknown_dataset: str | None = None


@functools.cache
def _table() -> dict:
    return json.loads(Path(__file__).with_name("splits.json").read_text(encoding="utf-8"))


def class_count(dataset: str) -> int:
    """Return the number of classes of a data set that can be known."""
    name = resolve_name(dataset)
    if not CATALOGUE[name].classes:
        known = ", ".join(n for n, e in CATALOGUE.items() if e.classes)
        own = f", {OWN}PATH@SIZE with train/CLASS/ and test/CLASS/ in it"
        raise UserError(f"data set {name} has no classes and can only be unknown; known data can be: {known}{own}")
    return CATALOGUE[name].classes


def split_names(dataset: str) -> list[str]:
    """Return the names of the published splits of a data set; `all`, `first-K` and lists of classes work everywhere."""
    return list(_table().get(resolve_name(dataset), {}))


def find_split(dataset: str, split: str | Sequence[int] = "all", root=None) -> Split:
    """Find a split by name, or make one from a list of classes.

    Parameters
    ----------
    dataset : str
        Known data set, any spelling.
    split : str or sequence of int
        A published name (`cssr-a` or `a`, `arpl-0`, `cac-0` or `neal-0`, `arpl-plus10-0`, ...), `all`, `first-6`, or
        the known classes: `0,1,2`, `0-5,8`, `[0, 1, 2]`, of own images also by name: `oak,rose`. Of the Semantic Shift
        Benchmark: `ssb-easy`, `ssb-medium`, `ssb-hard`, `ssb`.
    root : path, optional
        Data folder, where the lists of the Semantic Shift Benchmark lie; see `data_root`.
    """
    dataset = resolve_name(dataset)
    count = class_count(dataset)
    if not isinstance(split, str):
        return _from_list(dataset, count, [int(k) for k in split])
    name = fold(split)
    published = _table().get(dataset, {})
    for candidate in (name, f"cssr-{name}", re.sub(r"^spl-", "cssr-", name), re.sub(r"^neal-", "cac-", name)):
        if candidate in published:
            row = published[candidate]
            known = tuple(range(count)) if row["known"] == "all" else tuple(sorted(row["known"]))
            other = row.get("unknown_dataset")
            unknown = tuple(sorted(row.get("unknown", ()))) if other else _rest(count, known)
            return Split(dataset, candidate, known, unknown, row["source"], other)
    if dataset in FILES and name.startswith("ssb"):
        known, unknown = semantic_shift_classes(dataset, name, root)
        return Split(dataset, name, known, unknown, f"Semantic Shift Benchmark (Vaze et al. 2022), {SOURCE}")
    if name == "all":
        return Split(dataset, "all", tuple(range(count)), (), "every class is known")
    first = re.fullmatch(r"first-?(\d+)", name)
    if first:
        k = int(first.group(1))
        if not 1 <= k <= count:
            raise UserError(f"split '{split}': K must be 1 to {count} for {dataset}, got {k}")
        return Split(dataset, f"first-{k}", tuple(range(k)), tuple(range(k, count)), f"the first {k} classes are known")
    if re.fullmatch(r"[\d\s,-]+", split) and re.search(r"\d", split):
        return _from_list(dataset, count, parse_classes(split))
    labels = class_names(part_of(dataset, True)) if is_own(dataset) else ()
    if labels and set(named := [word.strip() for word in split.split(",")]) <= set(labels):
        return _from_list(dataset, count, [labels.index(word) for word in named])
    choices = [*published, *labels, *(n[5:] for n in published if n.startswith("cssr-")), "all", "first-K"]
    shown = nearest(name, choices) or f"; known: {', '.join([*published, 'all', 'first-K', '0-5,8'])}"
    raise UserError(f"data set {dataset} has no split '{split}'{shown}")


def parse_classes(text: str) -> list[int]:
    """Parse a list of classes such as `0-5,8` (ranges include both ends)."""
    classes: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", item)
        if not match:
            raise UserError(f"class list '{text}': '{item.strip()}' is neither a number nor a range such as 0-5")
        low, high = int(match.group(1)), int(match.group(2) or match.group(1))
        if high < low:
            raise UserError(f"class list '{text}': the range {low}-{high} runs backwards")
        # Bounded, so that a typing error such as 0-9999999999 cannot fill the memory.
        if high > 100_000:
            raise UserError(f"class list '{text}': no data set has a class {high}")
        classes.extend(range(low, high + 1))
    return classes


def _rest(count: int, known: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(set(range(count)) - set(known)))


def _from_list(dataset: str, count: int, classes: list[int]) -> Split:
    if not classes:
        raise UserError(f"the list of known classes of {dataset} is empty")
    doubled = sorted({k for k in classes if classes.count(k) > 1}) if len(set(classes)) < len(classes) else []
    if doubled:
        raise UserError(f"known classes of {dataset}: {', '.join(map(str, doubled))} given more than once")
    outside = sorted(k for k in classes if not 0 <= k < count)
    if outside:
        raise UserError(f"known classes of {dataset}: 0 to {count - 1} exist, got {', '.join(map(str, outside[:5]))}")
    if len(classes) == 1:
        raise UserError(f"known classes of {dataset}: two at least, got {classes[0]} alone (first-3: the first three)")
    known = tuple(sorted(classes))
    return Split(dataset, format_classes(known), known, _rest(count, known), "known classes as given")


def format_classes(classes: Sequence[int]) -> str:
    """Write ascending classes as a short list, e.g. `0-5,8`; `parse_classes` reads it back."""
    runs: list[list[int]] = []
    for k in classes:
        if runs and k == runs[-1][1] + 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
