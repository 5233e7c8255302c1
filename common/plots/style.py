"""One look for all figures: light, colour-blind safe, legible at half size, the same pixels on every run."""

from __future__ import annotations

from pathlib import Path

from common.files import atomic

# Okabe and Ito's palette, ordered so that neighbours differ in lightness too (grey prints).
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333"
)  # fmt: skip
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = "osD^vP"
KNOWN, UNKNOWN, INK, FAINT, GRID = BLUE, VERMILION, "#222222", "#5f6670", "#e3e6ea"
RESOLUTION = 160


def new_figure(width: float = 6.4, height: float = 4.5):
    """Return an empty figure of the house style; its canvas is Agg, so no window system is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=RESOLUTION, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes, title: str, subtitle: str, x: str, y: str, grid: bool = True):
    """Give axes a title, a line below it that defines what is shown, labels and a quiet frame."""
    axes.set_title(subtitle, loc="left", fontsize=8.5, color=FAINT)
    lines = subtitle.count("\n") + 1
    axes.annotate(title, (0, 1), xytext=(0, 6 + 12 * lines), xycoords="axes fraction", textcoords="offset points",
                  fontsize=12.5, fontweight="bold", color=INK, va="bottom")  # fmt: skip
    axes.set_xlabel(x, fontsize=10, color=INK)
    axes.set_ylabel(y, fontsize=10, color=INK)
    axes.tick_params(labelsize=9, colors=INK, length=3, width=0.7)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_linewidth(0.8)
        spine.set_color(FAINT)
    if grid:
        axes.grid(True, color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    return axes


def legend(axes, **where):
    """A legend that hides nothing: half-transparent ground, no frame."""
    options = {"fontsize": 8.5, "frameon": True, "framealpha": 0.85, "edgecolor": "none", "labelcolor": INK}
    return axes.legend(**options | where)


def run_style(index: int) -> dict:
    """Colour and dash pattern of the run number `index`: colours first, then new dashes, so print keeps them apart."""
    return {"color": CYCLE[index % len(CYCLE)], "linestyle": DASHES[(index + index // len(CYCLE)) % len(DASHES)]}


def save(figure, path: str | Path, svg: bool = False) -> Path:
    """Write a figure as PNG, and as SVG beside it when asked; each file appears whole or not at all.

    Parameters
    ----------
    figure : matplotlib Figure
    path : str or path
        Ends in `.png`.
    svg : bool, default False
        Write the same figure as `.svg` too.

    Returns
    -------
    path
        Of the PNG.
    """
    path = Path(path)
    with atomic(path) as partial:
        # Without these keys matplotlib writes its version and the date: the same scores must give the same bytes.
        figure.savefig(partial, format="png", metadata={"Software": None})
    if svg:
        from matplotlib import rc_context

        with atomic(path.with_suffix(".svg")) as partial, rc_context({"svg.hashsalt": path.stem}):
            figure.savefig(partial, format="svg", metadata={"Date": None, "Creator": None})
    return path
