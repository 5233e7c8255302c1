"""Published value and ours for every row of the ledger, in one figure."""

from __future__ import annotations

from pathlib import Path

from common.comparison import METRIC_NAMES, absent_data, compared
from common.ledger import Ledger

from .style import BLUE, FAINT, GRID, INK, ORANGE, VERMILION, new_figure, save

ROW_INCHES = 0.185


def draw(books: list[Ledger], path: str | Path) -> Path:
    """Draw one panel a paper: hollow diamonds are published values, discs ours with 95 % interval, names only where not run.

    Rows of methods that are not in this repository, without a published value, or whose data are missing are left out.
    """
    panels = []
    for book in books:
        rows = [(row, compared(row, absent_data(book))) for row in book.rows if row.answers and row.published is not None]
        rows = [(row, found) for row, found in rows if not found.verdict.startswith("data missing")]
        if rows:
            panels.append((book, rows))
    # Two columns of about equal length.
    columns: list[list] = [[], []]
    for panel in sorted(panels, key=lambda entry: -len(entry[1])):
        shorter = min(columns, key=lambda column: sum(len(rows) + 3 for _, rows in column))
        shorter.append(panel)
    longest = max((sum(len(rows) + 3 for _, rows in column) for column in columns), default=4)
    figure = new_figure(15, max(longest * ROW_INCHES, 2.5) + 1.0)
    outer = figure.add_gridspec(1, 2, wspace=0.05)
    for place, column in zip(outer, columns):
        if not column:
            continue
        inner = place.subgridspec(len(column), 1, height_ratios=[len(rows) + 3 for _, rows in column])
        for spot, (book, rows) in zip(inner, column):
            _panel(figure.add_subplot(spot), book, rows)
    figure.suptitle("Published (diamonds) and ours (discs, 95 % interval); orange: reduced recipe; no disc: not run",
                    fontsize=12, color=INK, x=0.01, ha="left")  # fmt: skip
    return save(figure, path)


def _panel(axes, book: Ledger, rows) -> None:
    for place, (row, found) in enumerate(rows):
        axes.axhline(place, color=GRID, linewidth=0.6, zorder=0)
        axes.plot(row.published, place, marker="D", markersize=5, markerfacecolor="white",
                  markeredgecolor=INK if found.mean is not None else FAINT, linestyle="none", zorder=3)  # fmt: skip
        if found.mean is None:
            continue
        reduced = next(answer.recipe.note for answer in row.answers if answer.recipe.id == found.recipe)
        axes.errorbar(found.mean, place, xerr=found.half, fmt="o", markersize=5, zorder=4,
                      color=ORANGE if reduced else BLUE, ecolor=VERMILION if reduced else BLUE, elinewidth=1.1)  # fmt: skip
    axes.set_yticks(range(len(rows)), [_name(row) for row, _ in rows], fontsize=6.8, color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.02)
    axes.tick_params(axis="x", labelsize=7.5, colors=INK, length=3)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_title(book.paper, loc="left", fontsize=10, fontweight="bold", color=INK)


def _name(row) -> str:
    data = row.known if row.unknown == "none" else f"{row.known} / {row.unknown}"
    return f"{row.label}: {data}, {METRIC_NAMES[row.metric]}"
