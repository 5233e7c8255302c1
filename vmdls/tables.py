"""The tables that the release sends to a hosted logger, as files: thresholds, F1 by threshold, its CAUROC.

Thresholds are on `unknown_score`, minus the paper's S: an image is accepted below its threshold. A row for every
hundredth of the TPR (known test images that are accepted), so that the README's protocol, the F1 at 95 % TPR, is a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.files import atomic, write_json
from common.metrics import by_unknown_source, threshold_accepting
from vmdls.scores import cauroc, threshold_table

SHARES = [number / 100 for number in range(1, 101)]


def rows_of(target, prediction, unknown_score, classes: int) -> np.ndarray:
    """`(100, 6)`: threshold, TPR, FPR, macro-F1, known accuracy, unknown accuracy, for TPRs of .01, .02, ..., 1."""
    known = unknown_score[target >= 0]
    cuts = threshold_accepting(known, np.array(SHARES))
    rates = np.searchsorted(np.sort(known), cuts, side="left") / len(known)
    table = threshold_table(target, prediction, unknown_score, cuts, classes)
    return np.column_stack((cuts, rates, 1 - table[:, 2], table))


def write_tables(
    directory: Path, found: Mapping[str, Mapping], first: str, methods: Mapping[str, str], thresholding: bool
) -> Path:
    """Write the table of the score `first`, and add to metrics.json what the release reports.

    There: `method`, whose table it is; and of every score: `methods`, whose thresholds they are; `cauroc`; `f1_at_95_tpr`, with
    its threshold.
    Returns the path of the table: `thresholds.csv` with `thresholding`, else `f1_by_threshold.csv`.
    """
    metrics = json.loads((directory / "metrics.json").read_text())
    metrics |= {"method": methods[first], "methods": dict(methods), "cauroc": {}, "f1_at_95_tpr": {}}
    for name, result in found.items():
        arrays = [result[key] for key in ("target", "prediction", "unknown_score")]
        sources = [(source, *(array[kept] for array in arrays)) for source, kept in by_unknown_source(result)]
        metrics["cauroc"][name] = {source: cauroc(*arrays) for source, *arrays in sources}
        tables = {source: rows_of(*arrays, len(result["class_names"])) for source, *arrays in sources}
        at = SHARES.index(0.95)
        metrics["f1_at_95_tpr"][name] = {source: {"threshold": rows[at, 0], "macro_f1": rows[at, 3]}
                                         for source, rows in tables.items()}  # fmt: skip
        if name == first:
            own = tables
    write_json(directory / "metrics.json", metrics)
    if thresholding:
        path, head, columns = directory / "thresholds.csv", "threshold,tpr,fpr", (0, 1, 2)
    else:
        path, head = directory / "f1_by_threshold.csv", "threshold,tpr,macro_f1,known_accuracy,unknown_accuracy"
        columns = (0, 1, 3, 4, 5)
    lines = [f"unknown,{head}"]
    for source, rows in own.items():
        for threshold, *rest in rows[:, columns]:
            lines.append(",".join((source, repr(float(threshold)), *(f"{value:.6f}" for value in rest))))
    with atomic(path) as partial:
        partial.write_text("\n".join(lines) + "\n")
    return path
