"""Curves over all thresholds: ROC, precision-recall, OSCR, F1. One run, several, or bands over seeds and splits.

Every function takes `runs`: the arrays of one `scores.npz`, or a mapping of labels to them, or a mapping of labels
to lists of them. A list (seeds or splits of one method) becomes the mean curve with a band of one standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from common import metrics
from common.plots import style
from common.plots.parts import Scores, cuts, needs_log_axis, shown_range, test_part
from common.results import interval_cell

GRID_POINTS = 400


def groups_of(runs) -> dict[str, list[dict]]:
    """Return `{label: [test part, ...]}` of what a figure function is given as `runs`."""
    if "target" in runs:
        runs = {"": runs}
    lists = {label: [given] if isinstance(given, Mapping) else list(given) for label, given in runs.items()}
    return {str(label): [test_part(scores) for scores in members] for label, members in lists.items()}


def value_text(metric: Callable, members: list[dict], with_prediction: bool = False) -> str:
    """A metric of a group as the legend shows it: the value, or mean ± 95 % interval."""
    names = ("target", "prediction", "unknown_score") if with_prediction else ("target", "unknown_score")
    return interval_cell(metric(*(part[name] for name in names)) for part in members)


def acceptance(part: Scores) -> metrics.OscrCurve:
    """Share of unknown (`fpr`) and of known samples (`ccr`) accepted at every threshold.

    With every prediction taken as right, the correct classification rate is the true positive rate.
    """
    return metrics.oscr_curve(part["target"], np.maximum(part["target"], 0), part["unknown_score"])


def open_set_rate(part: Scores) -> metrics.OscrCurve:
    """Points of the OSCR curve of a test part."""
    return metrics.oscr_curve(part["target"], part["prediction"], part["unknown_score"])


def draw_group(axes, curves: list[tuple[np.ndarray, np.ndarray]], grid, index: int, label: str, step: bool = False):
    """Draw one curve as it is, or the mean of several on `grid` with a band of one standard deviation."""
    look = style.run_style(index)
    if len(curves) == 1:
        axes.plot(*curves[0], label=label, linewidth=2, drawstyle="steps-pre" if step else "default", **look)
        return
    rows = np.stack([at_grid(x, y, grid, step) for x, y in curves])
    mean, spread = rows.mean(axis=0), rows.std(axis=0, ddof=1)
    axes.fill_between(grid, np.maximum(mean - spread, 0), np.minimum(mean + spread, 1), color=look["color"],
                      alpha=0.18, linewidth=0)  # fmt: skip
    axes.plot(grid, mean, label=f"{label}  (n = {len(curves)})", linewidth=2, **look)


def at_grid(x: np.ndarray, y: np.ndarray, grid: np.ndarray, step: bool) -> np.ndarray:
    """Values of a curve at the points of `grid`: between two points by a line, or by the step that ends there."""
    if step:
        return y[np.minimum(np.searchsorted(x, grid, side="left"), len(x) - 1)]
    last = np.r_[x[1:] != x[:-1], True]  # at a jump the upper end counts
    return np.interp(grid, x[last], y[last])


def _height(groups: dict[str, list]) -> float:
    """Height in inches that leaves the axes nearly square, with room below for the legend of several runs."""
    return 5.3 + (0.2 + 0.2 * len(groups)) * (len(groups) > 1)


def place_legend(axes, groups: dict[str, list], loc: str) -> None:
    """Legend of one run in a corner its curve leaves free, of several below the axes, where it covers nothing."""
    where = {"loc": loc} if len(groups) == 1 else {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12)}
    style.legend(axes, **where)


def band_note(groups: dict[str, list]) -> str:
    """Words that explain the bands, where there are any."""
    many = any(len(members) > 1 for members in groups.values())
    return "\nline: mean; band: ± 1 standard deviation; numbers: mean ± 95 % t-interval" if many else ""


def roc(runs):
    """Receiver operating characteristic: known samples accepted against unknown ones accepted.

    Parameters
    ----------
    runs : mapping
        See the module's docstring.

    Returns
    -------
    matplotlib Figure
        Known is positive, as in OSCR, so that the marked point reads `fpr95_known_positive`; the area is the
        same with unknown as positive.
    """
    groups = groups_of(runs)
    figure = style.new_figure(6.4, _height(groups))
    axes = style.dress(
        figure.add_subplot(), "ROC: known against unknown",
        "accepted: unknown score below the threshold; ring: 95 % of the known samples accepted"
        + band_note(groups),
        "false positive rate: share of unknown samples accepted", "true positive rate: share of known samples accepted",
    )  # fmt: skip
    axes.plot([0, 1], [0, 1], color=style.FAINT, linewidth=1, linestyle=":", label="chance")
    for index, (label, members) in enumerate(groups.items()):
        curves = [acceptance(part) for part in members]
        text = f"AUROC {value_text(metrics.auroc, members)}, FPR95 {value_text(metrics.fpr95_known_positive, members)}"
        draw_group(axes, [(c.fpr, c.ccr) for c in curves], np.linspace(0, 1, GRID_POINTS), index, f"{label}  {text}".strip())
        points = [(c.fpr[i], c.ccr[i]) for c in curves for i in [int(np.searchsorted(c.ccr, 0.95))]]
        axes.plot(*np.mean(points, axis=0), marker="o", markersize=9, markerfacecolor="white", markeredgewidth=2,
                  color=style.run_style(index)["color"], zorder=4)  # fmt: skip
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    place_legend(axes, groups, loc="lower right")
    return figure


def precision_recall(runs):
    """Precision against recall, with known samples as positive (left) and with unknown ones (right).

    Parameters
    ----------
    runs : mapping
        See the module's docstring.

    Returns
    -------
    matplotlib Figure
        Step form, as `aupr_known` and `aupr_unknown` sum it. Dotted: the precision of chance, which is the
        share of positive samples.
    """
    groups = groups_of(runs)
    figure = style.new_figure(10.4, _height(groups) - 0.6)
    sides = (("known", metrics.aupr_known, "accepted"), ("unknown", metrics.aupr_unknown, "rejected"))
    for position, (side, area, kept) in enumerate(sides):
        axes = style.dress(
            figure.add_subplot(1, 2, position + 1), f"Precision-recall, {side} positive",
            f"positive = {side}: found when {kept}; dotted: chance" + band_note(groups),
            f"recall: share of {side} samples {kept}", f"precision: share of {side} among {kept} samples",
        )  # fmt: skip
        for index, (label, members) in enumerate(groups.items()):
            curves = [precision_points(part, side) for part in members]
            text = f"{label}  AUPR {value_text(area, members)}".strip()
            draw_group(axes, curves, np.linspace(0.002, 1, GRID_POINTS), index, text, step=True)
            chance = np.mean([np.mean((part["target"] >= 0) == (side == "known")) for part in members])
            axes.axhline(chance, color=style.run_style(index)["color"], linewidth=1, linestyle=":")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        place_legend(axes, groups, loc="lower right" if side == "unknown" else "upper right")
    return figure


def precision_points(part: Scores, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Recall, ascending, and precision at every threshold with `side` ("known" or "unknown") as positive."""
    curve = acceptance(part)
    known, unknown = (part["target"] >= 0).sum(), (part["target"] < 0).sum()
    found, alarms = curve.ccr[1:] * known, curve.fpr[1:] * unknown
    if side == "unknown":  # the complement, in the order of ever more rejected samples
        found, alarms = (1 - curve.fpr[-2::-1]) * unknown, (1 - curve.ccr[-2::-1]) * known
    return found / (known if side == "known" else unknown), found / (found + alarms)


def oscr(runs, log: bool = False):
    """Open-set classification rate: known samples accepted *and* right against unknown samples accepted.

    Parameters
    ----------
    runs : mapping
        See the module's docstring.
    log : bool, default False
        Logarithmic false positive rate, which shows the left end where systems that must rarely err work.

    Returns
    -------
    matplotlib Figure
        The arrow at the right edge is the closed-set accuracy, where the curve ends.
    """
    groups = groups_of(runs)
    figure = style.new_figure(6.4, _height(groups))
    scale = ", logarithmic FPR" if log else ""
    axes = style.dress(
        figure.add_subplot(), f"OSCR: accept and classify{scale}",
        "arrow at the right edge: closed-set accuracy (nothing rejected)" + band_note(groups),
        "false positive rate: share of unknown samples accepted", "share of known samples accepted and correctly classified",
    )  # fmt: skip
    most = max((part["target"] < 0).sum() for members in groups.values() for part in members)
    low = 0.5 / max(most, 5) if log else 0.0  # half of the smallest rate above 0 that can occur
    grid = np.geomspace(low, 1, GRID_POINTS) if log else np.linspace(0, 1, GRID_POINTS)
    for index, (label, members) in enumerate(groups.items()):
        curves = [open_set_rate(part) for part in members]
        accuracy = [metrics.closed_accuracy(part["target"], part["prediction"]) for part in members]
        text = f"OSCR {value_text(metrics.oscr, members, with_prediction=True)}, closed accuracy {interval_cell(accuracy)}"
        # A rate of 0 has no place on a logarithmic axis: its points stand on the left edge.
        draw_group(axes, [(np.maximum(c.fpr, low), c.ccr) for c in curves], grid, index, f"{label}  {text}".strip())
        axes.plot(1.018, np.mean(accuracy), marker="<", markersize=8, color=style.run_style(index)["color"],
                  clip_on=False, transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set(xlim=(low, 1), ylim=(-0.01, 1.02), xscale="log" if log else "linear")
    place_legend(axes, groups, loc="lower right")
    return figure


def f1_threshold(runs):
    """F1 against the threshold: macro-F1 over K + 1 classes, its unknown part, and the open-set F-measure.

    Parameters
    ----------
    runs : mapping
        See the module's docstring. Thresholds of different methods have no common scale, so several runs are
        drawn (macro-F1 only) against the share of known samples that a threshold accepts.

    Returns
    -------
    matplotlib Figure
    """
    if "target" not in runs:
        return _f1_of_several(groups_of(runs))
    part, classes = test_part(runs), len(runs["class_names"])
    values = part["unknown_score"]
    log = needs_log_axis(part)
    low, high = shown_range(values, log)
    even = np.geomspace(low, high, 90) if log else np.linspace(low, high, 90)
    tried = np.unique(np.r_[even, np.quantile(values, np.linspace(0, 1, 90))])
    found = metrics.f1_at_thresholds(part["target"], part["prediction"], values, tried, classes)
    lines = {
        "macro-F1 over known classes and unknown": found.macro,
        "open-set F-measure (known classes, macro)": found.open_f,
        "F1 of unknown alone": found.unknown,
    }
    figure = style.new_figure()
    axes = style.dress(figure.add_subplot(), "F1 against the threshold", "accepted = unknown score below the threshold",
                       "threshold on the unknown score", "F1")  # fmt: skip
    for index, (label, heights) in enumerate(lines.items()):
        axes.plot(tried, heights, label=label, linewidth=2.4 - 0.6 * (index > 0), **style.run_style(index))
    for number, cut in enumerate(cuts(runs)):
        axes.axvline(cut.value, color=style.INK, linewidth=1.1, linestyle=style.DASHES[number], label=cut.meaning)
    axes.set(xlim=(low, high), ylim=(-0.01, 1.02), xscale="log" if log else "linear")
    style.legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def _f1_of_several(groups: dict[str, list[dict]]):
    figure = style.new_figure(6.4, _height(groups))
    axes = style.dress(
        figure.add_subplot(), "Macro-F1 over known classes and unknown",
        "a threshold is named by what it accepts, as scores of different methods share no scale" + band_note(groups),
        "share of known test samples accepted", "macro-F1 over K + 1 classes",
    )  # fmt: skip
    shares = np.linspace(0.01, 1, 100)
    for index, (label, members) in enumerate(groups.items()):
        curves = []
        for part in members:
            known = part["unknown_score"][part["target"] >= 0]
            tried, classes = metrics.threshold_accepting(known, shares), len(part["class_names"])
            found = metrics.f1_at_thresholds(part["target"], part["prediction"], part["unknown_score"], tried, classes)
            curves.append((shares, found.macro))
        best = interval_cell(float(heights.max()) for _, heights in curves)
        draw_group(axes, curves, shares, index, f"{label}  highest {best}".strip())
    axes.axvline(0.95, color=style.FAINT, linewidth=1, linestyle=":")
    axes.set(xlim=(0, 1.01), ylim=(-0.01, 1.02))
    place_legend(axes, groups, loc="lower center")
    return figure
