"""A score over a grid of its settings, from outputs that were computed once: a table and a figure."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.errors import UserError, nearest
from common.files import atomic
from common.metrics import evaluate

SHOWN = ("auroc", "fpr95_known_positive", "oscr", "macro_f1_validation", "macro_f1_argmax")


def parse_sweep(words: Sequence[str], settings: Mapping) -> dict[str, list]:
    """Turn `tail_size=20,50 distance=eucos,cosine` into lists of values of the settings' own types."""
    grid = {}
    for word in words:
        name, equals, listed = word.partition("=")
        if not equals or name not in settings:
            raise UserError(
                f"--sweep expects NAME=VALUE,VALUE with NAME one of {', '.join(settings)}, got {word!r}{nearest(name, settings)}"
            )
        kind = type(settings[name])
        try:
            grid[name] = [kind(value) for value in listed.split(",") if value]
        except ValueError:
            raise UserError(f"--sweep {name} expects {kind.__name__} values, got {listed!r}") from None
        if not grid[name]:
            raise UserError(f"--sweep {name} has no values")
    return grid


def combinations(grid: Mapping[str, list]) -> list[dict]:
    """Every combination of the grid's values, setting to value; the last setting varies fastest."""
    return [dict(zip(grid, values)) for values in itertools.product(*grid.values())]


def sweep(
    grid: Mapping[str, list], scored: Callable[[dict], Mapping[str, np.ndarray]],
    counted: Callable[[Mapping[str, np.ndarray]], dict] = lambda result: {},
) -> list[dict]:  # fmt: skip
    """Evaluate every combination of the grid.

    Parameters
    ----------
    grid : mapping
        Setting to its values.
    scored : callable
        A combination, setting to value, to the arrays of its `scores.npz` (with `probabilities`).
    counted : callable
        Those arrays to further columns of the table.

    Returns
    -------
    list of dict
        Settings, further columns, metrics (`SHOWN`).
    """
    from tqdm import tqdm

    rows = []
    for chosen in tqdm(combinations(grid), desc="sweep", delay=2, leave=False, disable=None):
        result = scored(chosen)
        metrics = evaluate(result["target"], result["prediction"], result["unknown_score"], split=result["split"],
                           probabilities=result["probabilities"])  # fmt: skip
        rows.append(chosen | counted(result) | {name: metrics[name] for name in SHOWN})
    return rows


def write_sweep(rows: list[dict], directory: Path, varied: Sequence[str]) -> None:
    """Write `sweep.csv` and `figures/sweep.png`; print the table. `varied`: the columns that are settings."""
    names = list(rows[0])
    with atomic(directory / "sweep.csv") as partial, open(partial, "w", newline="") as target:
        writer = csv.DictWriter(target, names)
        writer.writeheader()
        writer.writerows(rows)
    print("  ".join(f"{name:>20}" for name in names))
    for row in rows:
        print("  ".join(f"{v:>20.4f}" if isinstance(v, float) else f"{v:>20}" for v in row.values()))
    with atomic(directory / "figures" / "sweep.png") as partial:
        draw_sweep(rows, varied).savefig(partial, format="png", dpi=130)


def draw_sweep(rows: list[dict], varied: Sequence[str]):
    """Figure of the sweep: the first setting along x, one line for each combination of the others."""
    from matplotlib.figure import Figure

    first, others = varied[0], varied[1:]
    lines: dict[str, list[dict]] = {}
    for row in rows:
        lines.setdefault(", ".join(f"{name} {row[name]}" for name in others) or "OpenMax", []).append(row)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    titles = {"auroc": "AUROC", "macro_f1_argmax": "macro-F1, arg max over K+1",
              "macro_f1_validation": "macro-F1, held-out threshold"}  # fmt: skip
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    for axes, (metric, title) in zip(figure.subplots(1, 3), titles.items()):
        for (label, members), colour in zip(lines.items(), itertools.cycle(colours)):
            positions = range(len(members))
            axes.plot(positions, [row[metric] for row in members], marker="o", label=label, color=colour)
            axes.set_xticks(positions, [str(row[first]) for row in members])
        axes.set(title=title, xlabel=first.replace("_", " "))
        axes.grid(alpha=0.3)
    if others:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(lines), 4), frameon=False)
    return figure
