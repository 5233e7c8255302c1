"""The threshold explorer: one page in which a slider moves the threshold and every number follows.

    python -m common.explorer RUN [RUN ...]      # RUN/explorer.html of each

The page holds the scores themselves and works offline. A link may name what to show, for example
`explorer.html#threshold=-3.2&unknown=noise&score=msp`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from common.arguments import ScriptParser, run_script
from common.report import evaluated, fill_page, write_page

# Up to here scores are embedded exactly as they are; above, as float32, and the page says so.
EXACT_SAMPLES = 20_000
FIXED_METRICS = ("closed_accuracy", "auroc", "oscr", "fpr95_known_positive")


def packed(array: np.ndarray, kind: str) -> str:
    """Base64 of an array in little-endian `kind`."""
    return base64.b64encode(np.ascontiguousarray(array, dtype=kind).tobytes()).decode()


def embeddable(arrays: Mapping) -> tuple[dict, str]:
    """Return the arrays with the scores that the page will hold, and their type.

    float32 where that loses nothing (scores of float32 logits) or where there are more than `EXACT_SAMPLES` test
    samples. Thresholds and metrics of the page come from the scores it holds, so its numbers always agree.
    """
    scores = arrays["unknown_score"].astype(np.float64)
    small = scores.astype(np.float32).astype(np.float64)
    if np.array_equal(scores, small):
        return dict(arrays) | {"unknown_score": scores}, "f4"
    if int((arrays["split"] == 0).sum()) > EXACT_SAMPLES:
        return dict(arrays) | {"unknown_score": small}, "f4 rounded"
    return dict(arrays) | {"unknown_score": scores}, "f8"


def score_data(name: str, arrays: Mapping) -> dict:
    """What the page needs of one score: the test samples, and per choice of unknown set its thresholds and metrics."""
    from common.plots.parts import needs_log_axis, shown_range, test_part

    arrays, kind = embeddable(arrays)
    part = test_part(arrays)
    log = needs_log_axis(part)
    unknown = part["target"] < 0
    source = part.get("source", np.zeros(len(unknown), np.int16))
    return {
        "name": name,
        "kind": kind,
        "log": log,
        "range": shown_range(part["unknown_score"], log),
        "classes": [str(one) for one in arrays["class_names"]],
        "score": packed(part["unknown_score"], kind[:2]),
        "target": packed(part["target"], "i2"),
        "prediction": packed(part["prediction"], "i2"),
        "source": packed(np.where(unknown, source, -1), "i2"),
        "views": views(arrays),
    }


def views(arrays: Mapping) -> list[dict]:
    """Thresholds and threshold-free metrics with all unknown sets together and with each alone."""
    from common.plots.parts import cuts

    found = []
    metrics = evaluated(arrays)
    names = [str(name) for name in arrays.get("sources", [])]
    if len(metrics) == 2:  # a single unknown set is the same as all of them
        metrics = {name: values for name, values in metrics.items() if name != "all"}
    for name, values in metrics.items():
        code = -1 if name == "all" else names.index(name)
        hidden = (arrays["target"] < 0) & (arrays["split"] == 0) & (code >= 0) & (arrays.get("source", 0) != code)
        length = len(hidden)
        kept = {k: v[~hidden] if v.ndim and len(v) == length and k != "sources" else v for k, v in arrays.items()}
        found.append({
            "name": name,
            "code": code,
            "thresholds": [{"name": c.name, "meaning": c.meaning, "value": c.value} for c in cuts(kept)],
            "metrics": {key: values[key] for key in FIXED_METRICS},
        })  # fmt: skip
    return found


def explorer_page(run) -> str:
    """The page as HTML."""
    data = {"title": run.title, "scores": [score_data(name, arrays) for name, arrays in run.scores.items()]}
    # "<" is escaped because a class name must not be able to end the script element.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return fill_page("explorer.html", title=escape(run.title), data=text)


def write_explorer(where, out: str | Path | None = None) -> Path:
    """Write the page of a run (directory, name or scores file) to `out`, else `explorer.html`; returns its path."""
    from common.plots.reading import read_run

    run = read_run(where)
    return write_page(Path(out) if out else run.page("explorer"), explorer_page(run))


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(prog="python -m common.explorer", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory, name of a run, or scores file (.npz)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file of the page (of one run)")
    return parser


def main(argv=None) -> None:
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if args.out and len(args.runs) > 1:
        parser.error("--out names one page; give one run with it")
    for where in args.runs:
        print(write_explorer(where, args.out))


if __name__ == "__main__":
    run_script(main)
