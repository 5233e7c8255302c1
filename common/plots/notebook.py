"""What notebooks show: figures as small images, tables and verdicts as text, and a threshold to move by hand.

Images are written with a palette at a low resolution: a notebook with a dozen of them stays below one megabyte. Nothing that
is shown names a folder of this machine.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from common.metrics import class_report, decide, macro_f1
from common.plots.parts import Scores, cuts, needs_log_axis, shown_range, test_part
from common.results import number

DOTS_PER_INCH = 100
COLOURS = 256


def small_png(figure, dots_per_inch: int = DOTS_PER_INCH) -> bytes:
    """A matplotlib figure as PNG with a palette of `COLOURS` colours."""
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dots_per_inch)
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def show(figure, dots_per_inch: int = DOTS_PER_INCH) -> None:
    """Display a figure in the notebook, with its titles as the text that stands in for the image."""
    from IPython.display import display

    titles = [text.get_text() for axes in figure.axes for text in axes.texts if text.get_fontweight() == "bold"]
    data = {"image/png": small_png(figure, dots_per_inch), "text/plain": f"figure: {'; '.join(titles)}"}
    display(data, raw=True)


def say(text: str) -> None:
    """Display a line of markdown."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def cell(value) -> str:
    """A value in a table: metrics with three digits, missing ones as a dash."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    return number(value) if isinstance(value, float) else str(value)


def table(rows: Iterable[Mapping], columns: Sequence[str] | None = None) -> None:
    """Display rows as a markdown table; the columns are those of the first row unless given."""
    rows = list(rows)
    columns = list(columns or rows[0])
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    say("\n".join([*lines, *(f"| {' | '.join(cell(row.get(column)) for column in columns)} |" for row in rows)]))


def verdict(name: str, holds: bool | None, ours: str, statement: str = "", published: str = "") -> None:
    """Display whether a finding holds here; `holds` None: it cannot be asked of these data."""
    word = {True: "holds here", False: "does not hold here", None: "cannot be asked here"}[holds]
    parts = [f"**{name}: {word}.**", f"{statement}." if statement else "", f"*Published:* {published}." if published else "",
             f"*Here:* {ours}."]  # fmt: skip
    say(" ".join(part for part in parts if part))


def at_threshold(scores: Scores, threshold: float) -> dict[str, float]:
    """What a threshold costs: shares of the test images, and macro-F1 over the known classes and unknown."""
    part = test_part(scores)
    decision, classes = decide(part["prediction"], part["unknown_score"], threshold), len(scores["class_names"])
    known = part["target"] >= 0
    return {"threshold": float(threshold), "known accepted": float((decision[known] >= 0).mean()),
            "known accepted and right": float((decision[known] == part["target"][known]).mean()),
            "unknown accepted": float((decision[~known] >= 0).mean()),
            "F1 of unknown": float(class_report(part["target"], decision, classes).f1[-1]),
            "macro-F1": float(macro_f1(part["target"], decision, classes))}  # fmt: skip


def threshold_table(scores: Scores) -> None:
    """The slider's static stand-in: `at_threshold` at every threshold that has a name."""
    table([{"set by": cut.meaning, **at_threshold(scores, cut.value)} for cut in cuts(scores)])


def threshold_slider(scores: Scores, steps: int = 200):
    """A slider over the threshold with the numbers of `at_threshold` below it; moves only while a kernel runs.

    Parameters
    ----------
    scores : mapping
        Arrays of one `scores.npz`.
    steps : int
        Places of the slider between the ends of the shown range.

    Returns
    -------
    ipywidgets VBox
    """
    import ipywidgets

    part = test_part(scores)
    log = needs_log_axis(part)
    low, high = shown_range(part["unknown_score"], log)
    start = min(max(cuts(scores, oracle=False)[0].value, low), high)
    kind = ipywidgets.FloatLogSlider if log else ipywidgets.FloatSlider
    low, high = (math.log10(low), math.log10(high)) if log else (low, high)
    slider = kind(start, min=low, max=high, step=(high - low) / steps, description="threshold", readout_format=".4g",
                  layout=ipywidgets.Layout(width="80%"))  # fmt: skip
    text = ipywidgets.HTML()

    def update(change) -> None:
        text.value = rows_of(at_threshold(scores, slider.value), cell)

    slider.observe(update, names="value")
    update(None)
    return ipywidgets.VBox([slider, text])


def rows_of(values: Mapping[str, float], written: Callable) -> str:
    """Names and values as an HTML table."""
    lines = "".join(f"<tr><td>{name}</td><td>{written(value)}</td></tr>" for name, value in values.items())
    return f"<table>{lines}</table>"
