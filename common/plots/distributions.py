"""Where the scores of single samples lie: histogram with thresholds, and one column of points per class."""

from __future__ import annotations

import numpy as np

from common.plots import style
from common.plots.parts import (
    Scores,
    class_names,
    cuts,
    needs_log_axis,
    shown_range,
    subsample,
    test_part,
    unknown_sources,
)

MOST_BINS, FEWEST_BINS = 60, 15
POINTS_PER_CLASS = 400


def histogram(scores: Scores):
    """Histogram of the unknown score, known against unknown, with the thresholds as lines.

    Parameters
    ----------
    scores : mapping
        Arrays of one `scores.npz`.

    Returns
    -------
    matplotlib Figure
        Each group sums to 1, because unknown sets are often ten times larger than the known one. Far samples
        are counted in the outermost bins.
    """
    part = test_part(scores)
    values, known = part["unknown_score"], part["target"] >= 0
    log = needs_log_axis(part)
    low, high = shown_range(values, log)
    # Bins as fine as the smallest group allows: two steps of sqrt(n) keep its outline from breaking into spikes.
    smallest = min(known.sum(), *(mask.sum() for _, mask in unknown_sources(part)))
    bins = int(np.clip(2 * np.sqrt(smallest), FEWEST_BINS, MOST_BINS))
    edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
    figure = style.new_figure(7.2, 4.9)
    axes = style.dress(figure.add_subplot(), "Unknown score of the test samples",
                       "each group sums to 1; far samples are counted in the outermost bins; the first threshold leads",
                       "unknown score (larger = more likely unknown)", "share of the group per bin")  # fmt: skip
    axes.stairs(shares(values[known], edges), edges, fill=True, color=style.KNOWN, alpha=0.45,
                label=f"known ({known.sum():,})")  # fmt: skip
    axes.stairs(shares(values[known], edges), edges, color=style.KNOWN, linewidth=1)
    for index, (name, mask) in enumerate(unknown_sources(part)):
        colour = (style.UNKNOWN, style.PURPLE, style.ORANGE, style.BLACK)[index]
        axes.stairs(shares(values[mask], edges), edges, color=colour, linewidth=1.8, linestyle=style.DASHES[index],
                    label=f"unknown: {name} ({mask.sum():,})")  # fmt: skip
    for number, cut in enumerate(cuts(scores)):
        axes.axvline(cut.value, color=style.INK, linewidth=1.6 if number == 0 else 1, linestyle=style.DASHES[number],
                     label=f"{cut.meaning}: {cut.value:.4g}")  # fmt: skip
    axes.set(xlim=(low, high), xscale="log" if log else "linear")
    style.legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return figure


def shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of `values` in each bin; values outside count in the nearest bin."""
    index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return np.bincount(index, minlength=len(edges) - 1) / max(len(values), 1)


def scatter(scores: Scores, seed: int = 0):
    """Score of single samples, one column per known class and per unknown set, with the leading threshold.

    Parameters
    ----------
    scores : mapping
        Arrays of one `scores.npz`.
    seed : int, default 0
        Of the horizontal jitter and of the choice where a column has more samples than are drawn.

    Returns
    -------
    matplotlib Figure
    """
    part = test_part(scores)
    values, target = part["unknown_score"], part["target"]
    wrong = (part["prediction"] != target) & (target >= 0)
    names = class_names(scores)
    columns = [(name, target == label) for label, name in enumerate(names)] + unknown_sources(part)
    log = needs_log_axis(part)
    figure = style.new_figure(min(14, max(6.4, 2 + 0.62 * len(columns))), 4.9)
    cut = cuts(scores, oracle=False)[0]
    limits = shown_range(values, log)
    placed = np.clip(values, *limits)
    most = max(int(mask.sum()) for _, mask in columns)
    drawn = f"\nat most {POINTS_PER_CLASS} samples per column drawn, chosen at random" if most > POINTS_PER_CLASS else ""
    axes = style.dress(figure.add_subplot(), "Unknown score of single samples, by true class",
                       f"bar: median; cross: predicted into another known class; far samples at the edge{drawn}",
                       "", "unknown score")  # fmt: skip
    generator = np.random.default_rng(seed)
    for position, (_, mask) in enumerate(columns):
        chosen = subsample(mask, POINTS_PER_CLASS, seed)
        where = position + generator.uniform(-0.3, 0.3, len(chosen))
        colour = style.KNOWN if position < len(names) else style.UNKNOWN
        right = ~wrong[chosen]
        axes.scatter(where[right], placed[chosen][right], s=9, color=colour, alpha=0.4, linewidths=0)
        axes.scatter(where[~right], placed[chosen][~right], s=22, color=style.BLACK, marker="x",
                     linewidths=1.1, zorder=3)  # fmt: skip
        if mask.any():
            axes.plot([position - 0.36, position + 0.36], [np.median(values[mask])] * 2, color=style.INK, linewidth=2, zorder=4)
    axes.axhline(cut.value, color=style.INK, linewidth=1.2, linestyle="--", label=f"threshold: {cut.meaning} ({cut.value:.4g})")
    crowded = len(columns) > 14 or max(map(len, names)) > 6
    axes.set_xticks(range(len(columns)), [name for name, _ in columns], rotation=60 if crowded else 0,
                    ha="right" if crowded else "center")  # fmt: skip
    axes.set(xlim=(-0.6, len(columns) - 0.4), ylim=limits, yscale="log" if log else "linear")
    axes.grid(False, axis="x")
    axes.axvline(len(names) - 0.5, color=style.FAINT, linewidth=0.8)
    style.legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.28 if crowded else -0.1))
    return figure
