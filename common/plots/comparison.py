"""Figures that lay methods side by side: metrics, differences on the same splits, agreement of scores, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common import metrics
from common.plots import style
from common.plots.parts import Scores, test_part


def bars(values: Mapping[str, float], title: str, note: str, x: str, highlight: Sequence[str] = ()):
    """Horizontal bars of named values, those of `highlight` in another colour."""
    figure = style.new_figure(8, 1.3 + 0.36 * len(values))
    axes = style.dress(figure.add_subplot(), title, note, x, "")
    colours = [style.VERMILION if name in highlight else style.BLUE for name in values]
    drawn = axes.barh(range(len(values)), list(values.values()), color=colours)
    axes.bar_label(drawn, fmt="%.3f", fontsize=8.5, padding=3, color=style.INK)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    return figure


def intervals(groups: Mapping[str, Mapping[str, metrics.Interval]], title: str, note: str, x: str, zero: bool = False):
    """Estimates with intervals: a line of the figure for each name, a colour for each group.

    Parameters
    ----------
    groups : mapping
        Group to name to `Interval` (bounds NaN where there is none).
    zero : bool
        Draw a line at 0, for differences.
    """
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    figure = style.new_figure(8.4, 1.7 + (0.2 + 0.16 * len(groups)) * len(names))
    axes = style.dress(figure.add_subplot(), title, note, x, "")
    if zero:
        axes.axvline(0, color=style.INK, linewidth=1)
    for index, (group, values) in enumerate(groups.items()):
        place = np.array([names.index(name) for name in values]) + 0.7 * (index + 0.5) / len(groups) - 0.35
        found = np.array([tuple(value) for value in values.values()])
        reach = np.nan_to_num(np.abs(found[:, 1:] - found[:, :1])).T
        axes.errorbar(found[:, 0], place, xerr=reach, fmt=style.MARKERS[index % len(style.MARKERS)], markersize=5,
                      color=style.run_style(index)["color"], elinewidth=1.4, capsize=2.5, label=group or None)  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    if any(groups):
        style.legend(axes, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def rank_correlation(runs: Mapping[str, Scores]) -> np.ndarray:
    """Spearman correlations of the unknown scores of the test images, `(M, M)`; the runs must hold the same images."""
    from scipy.stats import rankdata

    parts = [test_part(scores) for scores in runs.values()]
    if any(not np.array_equal(part["target"], parts[0]["target"]) for part in parts):
        raise ValueError("the runs hold different test images: their scores cannot be correlated")
    return np.atleast_2d(np.corrcoef([rankdata(part["unknown_score"]) for part in parts]))


def correlation(runs: Mapping[str, Scores]):
    """Spearman correlation of every pair of scores on the same test images."""
    found, names = rank_correlation(runs), list(runs)
    figure = style.new_figure(2.6 + 0.62 * len(names), 1.9 + 0.58 * len(names))
    axes = style.dress(figure.add_subplot(), "Which scores agree", "Spearman correlation over all test images",
                       "", "", grid=False)  # fmt: skip
    image = axes.imshow(found, cmap="RdBu", vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(found):
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
                  color="white" if abs(value) > 0.6 else style.INK)  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02).outline.set_visible(False)
    return figure


def points(groups: Mapping[str, Sequence[tuple[float, float]]], title: str, note: str, x: str, y: str, log: bool = False):
    """Scatter of pairs, a colour and mark for each group; `log`: logarithmic x."""
    figure = style.new_figure(8.6, 4.6)
    axes = style.dress(figure.add_subplot(), title, note, x, y)
    for index, (group, pairs) in enumerate(groups.items()):
        look = style.run_style(index)
        axes.scatter(*np.array(pairs, float).reshape(-1, 2).T, s=42, alpha=0.8, linewidths=0, color=look["color"],
                     marker=style.MARKERS[index % len(style.MARKERS)], label=group)  # fmt: skip
    if log:
        from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    style.legend(axes, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def lines(groups: Mapping[str, tuple[Sequence, Sequence]], title: str, note: str, x: str, y: str, log: bool = False):
    """Curves by name, `(x values, y values)` each; x values that are text stand at even steps."""
    figure = style.new_figure(8.4, 4.2)
    axes = style.dress(figure.add_subplot(), title, note, x, y)
    for index, (group, (places, heights)) in enumerate(groups.items()):
        axes.plot(places, heights, marker="o", markersize=4.5, linewidth=1.8, label=group, **style.run_style(index))
    if log:
        axes.set_xscale("log")
        every = sorted({place for places, _ in groups.values() for place in places})
        axes.set_xticks(every, [f"{place:g}" for place in every])
        axes.minorticks_off()
    style.legend(axes, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def histograms(values: Mapping[str, np.ndarray], target: np.ndarray, title: str, note: str):
    """A panel for each array `(N,)`: known (`target` at least 0) against unknown samples, with the AUROC of unknown."""
    columns = min(len(values), 3)
    rows = -(-len(values) // columns)
    figure = style.new_figure(4.1 * columns, 3.1 * rows)
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes, (name, array) in zip(panels, values.items()):
        area = metrics.auroc(target, array)
        style.dress(axes, name, f"AUROC {area:.3f}", "", "share per bin")
        low, high = np.quantile(array, [0.002, 0.998])
        edges = np.linspace(low, high if high > low else low + 1, 41)
        for side, colour, label in ((target >= 0, style.KNOWN, "known"), (target < 0, style.UNKNOWN, "unknown")):
            share = np.histogram(np.clip(array[side], edges[0], edges[-1]), edges)[0] / max(side.sum(), 1)
            axes.stairs(share, edges, fill=True, alpha=0.45, color=colour, label=label)
        axes.locator_params(axis="x", nbins=5)
    for axes in panels[len(values) :]:
        axes.set_visible(False)
    style.legend(panels[0], loc="upper right")
    figure.suptitle(f"{title}: {note}", x=0.01, ha="left", fontsize=10, color=style.FAINT)
    return figure


def plane(points_of: Mapping[str, np.ndarray], target: np.ndarray, class_names: Sequence[str],
          ellipses: tuple[np.ndarray, np.ndarray] | None = None):  # fmt: skip
    """Points `(N, 2)` by class, a panel for each name; unknown ones as crosses, class Gaussians as ellipses.

    Parameters
    ----------
    points_of : mapping
        Title of a panel to its points.
    target : int array (N,)
        -1 unknown.
    class_names : sequence of str
    ellipses : (means (K, 2), covariances (K, 2, 2)), optional
        Drawn in the first panel at two standard deviations.
    """
    from common.plots.embedding import _class_look

    count = len(points_of)
    columns = min(count, 4)
    rows = -(-count // columns)
    side = 5.6 if count == 1 else 4.0
    figure = style.new_figure(side * columns + 0.9, side * rows)
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes, (title, places) in zip(panels, points_of.items()):
        style.dress(axes, title, "", "", "", grid=False)
        axes.set(xticks=[], yticks=[])
        axes.scatter(*places[target < 0].T, s=11, color=style.BLACK, marker="x", linewidths=0.7, alpha=0.5, label="unknown")
        for label, name in enumerate(class_names):
            axes.scatter(*places[target == label].T, s=9, alpha=0.75, linewidths=0, label=name,
                         **_class_look(label, len(class_names), False))  # fmt: skip
    if ellipses is not None:
        _draw_ellipses(panels[0], *ellipses)
    for axes in panels[count:]:
        axes.set_visible(False)
    style.legend(panels[min(columns, count) - 1], loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.6)
    return figure


def _draw_ellipses(axes, means: np.ndarray, covariances: np.ndarray) -> None:
    angle = np.linspace(0, 2 * np.pi, 80)
    circle = 2 * np.stack([np.cos(angle), np.sin(angle)])
    size, direction = np.linalg.eigh(covariances)
    outline = np.einsum("kij,kj,jn->kin", direction, np.sqrt(np.maximum(size, 0)), circle) + means[:, :, None]
    for line in outline:
        axes.plot(*line, color=style.INK, linewidth=1.1)
