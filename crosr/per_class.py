"""The tables that crosr_bda prints of an OpenMax score: one row per class, "unknown" last, over the test images.

`per_class.csv` has both in one: decision by arg max over K + 1 (accuracy and F1 one-vs-rest, precision, recall, support) and
each column of the probabilities as a score (ROC-AUC, the cut that maximises TPR - FPR, F1 at that cut).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from common.files import atomic
from common.metrics import ClassReport, OneVsRest, by_unknown_source, class_report, decide_argmax, one_vs_rest

HEADINGS = ("class", "accuracy", "f1_argmax", "auroc", "youden_cut", "f1_at_cut")


def tables(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[OneVsRest, ClassReport]]:
    """Both tables for every unknown source of the arrays of a `scores.npz` with `probabilities` `(N, K + 1)`."""
    found = {}
    for source, rows in by_unknown_source(arrays):
        target, probabilities = arrays["target"][rows], arrays["probabilities"][rows]
        report = class_report(target, decide_argmax(probabilities), probabilities.shape[1] - 1)
        found[source] = one_vs_rest(target, probabilities), report
    return found


def one_vs_rest_text(table: OneVsRest, class_names: Sequence[str]) -> str:
    """The table of crosr_bda: class, accuracy, F1 by arg max, ROC-AUC, Youden cut, F1 at it; 4 decimals."""
    titles = ("Class", "Accuracy", "F1 (arg max)", "ROC-AUC", "Cut-off", "F1 (cut-off)")
    width = max(len("unknown"), *map(len, class_names))
    columns = (table.accuracy, table.f1_argmax, table.auroc, table.youden_cut, table.f1_at_cut)
    lines = [f"{titles[0]:{width}}  " + "  ".join(f"{title:>12}" for title in titles[1:])]
    lines += [f"{name:{width}}  " + "  ".join(f"{value:12.4f}" for value in values)
              for name, *values in zip([*class_names, "unknown"], *columns)]  # fmt: skip
    return "\n".join(lines)


def report_text(report: ClassReport, class_names: Sequence[str]) -> str:
    """The classification report in scikit-learn's layout: precision, recall, F1, support, and their means; 2 decimals."""
    width, total = max(len("weighted avg"), *map(len, class_names)), int(report.support.sum())
    lines = [f"{'':{width}}  " + "".join(f"{title:>10}" for title in ("precision", "recall", "f1-score", "support")), ""]
    columns = (report.precision, report.recall, report.f1, report.support)
    lines += [f"{name:>{width}}  {precision:10.2f}{recall:10.2f}{f1:10.2f}{int(support):10}"
              for name, precision, recall, f1, support in zip([*class_names, "unknown"], *columns)]  # fmt: skip
    lines += ["", f"{'accuracy':>{width}}  {'':20}{report.accuracy:10.2f}{total:10}"]
    for name, values in (("macro avg", report.macro), ("weighted avg", report.weighted)):
        lines.append(f"{name:>{width}}  " + "".join(f"{value:10.2f}" for value in values) + f"{total:10}")
    return "\n".join(lines)


def write_tables(path: Path, found: Mapping[str, Mapping[str, tuple]], class_names: Sequence[str]) -> None:
    """Write `per_class.csv`: a row for each score, unknown source and class."""
    with atomic(path) as partial, open(partial, "w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(("score", "unknown", *HEADINGS, "precision", "recall", "support"))
        for score, sources in found.items():
            for source, (table, report) in sources.items():
                columns = (table.accuracy, table.f1_argmax, table.auroc, table.youden_cut, table.f1_at_cut,
                           report.precision, report.recall, report.support)  # fmt: skip
                writer.writerows((score, source, *row) for row in zip([*class_names, "unknown"], *columns))
