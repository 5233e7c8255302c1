"""Which method is best on the same data, splits and recipe: every paper's scores beside one reference, run by run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from common import ledger, results, staleness
from common.arguments import ROOT

REFERENCE = ("baseline_openmax", "mls")
COSTS = ROOT / "results" / "benchmarks"  # methods-RECIPE.json of benchmarks/methods.py
# The score each paper stands for, and those of plain softmax training that it is compared with.
SCORES = {
    "baseline_openmax": ("mls", "msp", "openmax-tail20", "openmax-tail100", "kplus1"),
    "crosr": ("crosr-tail100-softmax_before", "mls"),
    "cssr": ("linear-mls", "pcssr-fused", "rcssr-fused"),
    "vmdls": ("vmdls", "mean"),
}
# Recipes that go on from the networks of another one, with the score that they are for: they stand beside it.
CONTINUATIONS = {("laptop-proser", "kplus1"): "laptop"}


class Field(NamedTuple):
    """Runs that may be compared: one recipe, data set, family of splits and unknown set."""

    table: str
    data: str
    splits: str
    unknown: str


class Entry(NamedTuple):
    """One method in a field.

    `gain` is the AUROC minus the reference's on the runs that both have (NaN: none), which entries are sorted by: means over
    different splits cannot be ranked; `half` is half of its interval. `runs` is how many were averaged. The rest is Markdown.
    """

    paper: str
    method: str
    gain: float
    half: float
    runs: int
    backbone: str
    count: str
    closed_accuracy: str
    auroc: str
    difference: str
    oscr: str
    arithmetic: str
    cost: str


def fields(records: Iterable[dict]) -> dict[Field, dict[tuple[str, str], dict]]:
    """Group records of `SCORES`: for each field the runs `(split, seed)` of each `(paper, method)`.

    Only fields that the reference and at least one other paper entered are kept.
    """
    found: dict[Field, dict] = {}
    for record in records:
        if record["method"] not in SCORES.get(record["paper"], ()):
            continue
        recipe, family = recipe_of(staleness.shown_recipe(record), record["method"]), results.FAMILY.sub(r"\1", record["split"])
        for unknown in results.by_source(record["metrics"]):
            field = Field(recipe, record["data"], family, unknown)
            methods = found.setdefault(field, {})
            methods.setdefault((record["paper"], record["method"]), {})[record["split"], record["seed"]] = record
    return {field: methods for field, methods in found.items()
            if REFERENCE in methods and len({paper for paper, _ in methods}) > 1}  # fmt: skip


def recipe_of(table: str, method: str) -> str:
    """The recipe under which a method's runs are compared: its own, or the one whose networks it starts from."""
    return CONTINUATIONS.get((table, method), table)


def entries(field: Field, methods: dict[tuple[str, str], dict]) -> list[Entry]:
    """Entries of a field, the largest gain over the reference first."""
    reference, prices = methods[REFERENCE], costs(field)
    built = []
    for (paper, method), runs in methods.items():
        values = {key: record["metrics"][field.unknown] for key, record in runs.items()}
        started = any(record.get("flags", {}).get(flag) for record in runs.values() for flag in ("weights", "start_from"))
        backbone = "/".join(sorted({str(record["backbone"]) for record in runs.values()}))
        same = [results.experiment(record) for record in runs.values()]
        shown = {name: results.interval_cell((value[name] for value in values.values()), same)
                 for name in ("closed_accuracy", "auroc", "oscr")}  # fmt: skip
        gain, half, text = difference(field, runs, reference) if (paper, method) != REFERENCE else (0.0, 0.0, "reference")
        arithmetic = ", ".join(sorted({record["precision"] for record in runs.values()}))
        price = prices.get((paper, method))
        cost = results.number(price) if price is None else f"{'1 + ' if started else ''}{price:.1f}"
        fewer = f": {', '.join(sorted({split for split, _ in runs}))}" if len(runs) < len(reference) else ""
        built.append(Entry(paper, method, gain, half, len(runs), backbone, results.count_cell(same) + fewer,
                           difference=text, arithmetic=arithmetic, cost=cost, **shown))  # fmt: skip
    return sorted(built, key=lambda entry: (np.isnan(entry.gain), -entry.gain))


def costs(field: Field) -> dict[tuple[str, str], float]:
    """Training cost of each (paper, method) beside plain softmax training, where `benchmarks/methods.py` measured it."""
    path = COSTS / f"methods-{field.table}.json"
    if not path.exists():
        return {}
    measured = json.loads(path.read_text())["runs"]
    answers = [answer for book in ledger.ledgers() for row in book.rows for answer in row.answers]
    return {(answer.recipe.paper, answer.method): measured[answer.recipe.id]["cost"] for answer in answers
            if answer.recipe.id in measured and recipe_of(answer.recipe.table, answer.method) == field.table
            and field.data == answer.recipe.data[0]
            and field.splits == results.FAMILY.sub(r"\1", answer.recipe.splits[0])}  # fmt: skip


def difference(field: Field, runs: dict, reference: dict) -> tuple[float, float, str]:
    """AUROC minus the reference's on the runs that both have, half of its interval (DeLong's for a single run), and its cell."""
    from common.metrics import auroc_difference, paired_difference

    both = sorted(set(runs) & set(reference))
    if not both:
        return float("nan"), float("nan"), "–"
    same = [results.experiment(runs[key]) for key in both]
    if len(set(same)) > 1:
        pairs = [[side[key]["metrics"][field.unknown]["auroc"] for key in both] for side in (runs, reference)]
        found = paired_difference(*pairs, groups=same)
    else:
        (target, first), (other, second) = (images(side[both[0]], field.unknown) for side in (runs, reference))
        if not np.array_equal(target, other):
            return float("nan"), float("nan"), "–"
        found = auroc_difference(target, first, second)
    half = found.high - found.estimate
    sign = "+" if found.estimate >= 0 else "−"
    text = f"{sign}{results.number(abs(found.estimate))} ± {results.number(half)}" + ("" if len(set(same)) > 1 else " (images)")
    return found.estimate, half, text


def images(record: dict, unknown: str) -> tuple[np.ndarray, np.ndarray]:
    """Targets and unknown scores of a record's test images: known ones, then those of one unknown set."""
    arrays = results.read_scores((ROOT / record["path"]).with_suffix(".npz"))
    test = arrays["split"] == 0
    name = str(unknown).removesuffix(" (rebuilt)")
    sources = [str(source).removesuffix(" (rebuilt)") for source in arrays["sources"]]
    wanted = np.full(len(test), True) if unknown == "all" else arrays["source"] == sources.index(name)
    parts = [np.flatnonzero(test & (arrays["target"] >= 0)), np.flatnonzero(test & (arrays["target"] < 0) & wanted)]
    order = np.concatenate(parts)
    return np.sign(arrays["target"][order]), arrays["unknown_score"][order].astype(np.float64)


def weight(item: tuple[Field, dict]) -> tuple:
    """Order of a field and its methods: those with more papers, then with more runs of the reference, come first."""
    field, methods = item
    return -len({paper for paper, _ in methods}), -len(methods[REFERENCE]), field


def chosen_fields(records: Sequence[dict] | None, table: str | None, splits: str | None) -> list[tuple[Field, dict]]:
    """Fields of one recipe or family of splits, those with most papers and runs first."""
    found = fields(results.read_records() if records is None else records)
    chosen = [(field, methods) for field, methods in found.items()
              if table in (None, field.table.removesuffix(staleness.EARLIER)) and splits in (None, field.splits)]  # fmt: skip
    return sorted(chosen, key=weight)


def markdown(records: Sequence[dict] | None = None, table: str | None = None, splits: str | None = None) -> str:
    """Markdown tables of all fields, those with most papers and runs first; `table` and `splits` keep one recipe or family."""
    parts = []
    for field, methods in chosen_fields(records, table, splits):
        header = ["method", "score", "backbone", "runs", "closed acc.", "AUROC", "minus MLS of plain training", "OSCR",
                  "arithmetic", "cost"]  # fmt: skip
        rows = ([entry.paper, entry.method, entry.backbone, entry.count, entry.closed_accuracy, entry.auroc, entry.difference,
                 entry.oscr, entry.arithmetic, entry.cost] for entry in entries(field, methods))  # fmt: skip
        caption = f"**{field.data}, known: {field.splits}, unknown: {field.unknown}; recipe {field.table}**"
        parts.append(f"{caption}\n\n{results.table_of(header, rows)}")
    return "\n\n".join(parts) or "not run"


def overview(table: str, records: Sequence[dict] | None = None) -> str:
    """One Markdown table of a recipe: each method's AUROC minus the reference's in every field, those above it in bold.

    Bold: above by more than the interval over several runs (that over images knows nothing of the chance of training). A
    number of runs in parentheses: fewer than the reference has there.
    """
    columns = [(field, methods) for field, methods in chosen_fields(records, table, None) if field.table == table]
    if not columns:
        return "not run"
    header, first, rows, costs_of = ["method", "score", "cost"], {}, {}, {}
    for field, methods in columns:
        reference = methods[REFERENCE]
        header.append(f"{field.data}, {field.splits} / {field.unknown}: {len(reference)} run{'s'[: len(reference) - 1]}")
        for entry in entries(field, methods):
            key = entry.paper, entry.method
            first.setdefault(key, (np.isnan(entry.gain), -entry.gain))
            costs_of.setdefault(key, entry.cost)
            text = f"AUROC {entry.auroc}" if key == REFERENCE else entry.difference
            if key != REFERENCE and entry.runs < len(reference):
                text += f" ({entry.runs})"
            above = entry.gain > entry.half and "(images)" not in text
            rows.setdefault(key, {})[field] = f"**{text}**" if above else text
    order = sorted(rows, key=lambda key: (key != REFERENCE, first[key]))
    body = ([*key, costs_of[key], *(rows[key].get(field, "–") for field, _ in columns)] for key in order)
    return results.table_of(header, body)
