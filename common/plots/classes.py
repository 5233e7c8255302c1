"""Decisions by class: confusion matrix at a threshold, and whether the probabilities can be believed."""

from __future__ import annotations

import numpy as np

from common import metrics
from common.errors import UserError
from common.plots import style
from common.plots.parts import THRESHOLDS, Scores, class_names, cuts, test_part
from common.results import number

RELIABILITY_BINS = 15
LARGEST_WITH_NUMBERS = 21


def confusion_matrix(scores: Scores, threshold: float | None = None):
    """(K + 1) x (K + 1) confusion matrix at a threshold, unknown last.

    Parameters
    ----------
    scores : mapping
        Arrays of one `scores.npz`.
    threshold : float, optional
        A sample is accepted below it. Default: the leading threshold (validation, else train, else the 95 %
        point of the test knowns); the title states which.

    Returns
    -------
    matplotlib Figure
        Numbers are samples; colour is the share of the row, so that classes of unequal size compare.
    """
    part = test_part(scores)
    names = [*class_names(scores), "unknown"]
    if threshold is None:
        leading = cuts(scores, oracle=False)[0]
        threshold, meaning = leading.value, THRESHOLDS[leading.name]
    else:
        meaning = "given"
    decision = metrics.decide(part["prediction"], part["unknown_score"], threshold)
    counts = metrics.confusion(part["target"], decision, len(names) - 1)
    f1 = number(metrics.macro_f1(part["target"], decision, len(names) - 1))
    size = float(np.clip(2.6 + 0.52 * len(names), 5.4, 11))
    figure = style.new_figure(size + 0.7, size)
    axes = style.dress(figure.add_subplot(), "Confusion matrix with unknown",
                       f"threshold {threshold:.4g}: {meaning}; macro-F1 {f1}\nnumber: samples; colour: share of the row",
                       "decision", "true class", grid=False)  # fmt: skip
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if len(names) <= LARGEST_WITH_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8.5 if len(names) < 13 else 6.5,
                          color="white" if share[row, column] > 0.55 else style.INK)  # fmt: skip
    step = int(np.ceil(len(names) / 40))
    ticks = sorted({*range(0, len(names) - 1, step), len(names) - 1})
    long = max(len(name) for name in names[:-1]) > 3 or len(names) > 13
    axes.set_xticks(ticks, [names[t] for t in ticks], rotation=90 if long else 0)
    axes.set_yticks(ticks, [names[t] for t in ticks])
    for line in (axes.axhline, axes.axvline):
        line(len(names) - 1.5, color=style.FAINT, linewidth=1.2)
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
    bar.set_label("share of the row", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return figure


def known_logits(part: Scores) -> np.ndarray:
    """Logits of the K known classes, or the logarithm of their probabilities where logits were not kept."""
    if "logits" in part:
        return part["logits"].astype(np.float64)
    if "probabilities" in part:
        return metrics.known_log_probabilities(part["probabilities"])
    raise UserError("the scores hold neither logits nor probabilities, which a reliability diagram needs;"
                    " test.py writes logits, the compact copies beside records may lack them")  # fmt: skip


def reliability_bins(part: Scores, bins: int = RELIABILITY_BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples, mean confidence and accuracy per confidence bin of the known samples; NaN in empty bins.

    The bins are those of `common.metrics.ece`.
    """
    logits = known_logits(part)[part["target"] >= 0]
    target = part["target"][part["target"] >= 0]
    confidence = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    filled = np.where(count > 0, count, np.nan)
    right = np.bincount(index, weights=logits.argmax(axis=1) == target, minlength=bins)
    return count, np.bincount(index, weights=confidence, minlength=bins) / filled, right / filled


def reliability(scores: Scores):
    """Reliability diagram of the known test samples: accuracy against confidence, with a histogram below.

    Parameters
    ----------
    scores : mapping
        Arrays of one `scores.npz` with `logits` or `probabilities`.

    Returns
    -------
    matplotlib Figure
        The expected calibration error in the title is that of `common.metrics.ece`.

    Raises
    ------
    UserError
        Neither logits nor probabilities were kept.
    """
    part = test_part(scores)
    count, confidence, accuracy = reliability_bins(part)
    error = metrics.ece(part["target"], known_logits(part), RELIABILITY_BINS)
    edges = np.linspace(0, 1, RELIABILITY_BINS + 1)
    figure = style.new_figure(5.8, 5.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    style.dress(upper, f"Reliability: ECE {number(error)}",
                f"known test samples, no rejection; {RELIABILITY_BINS} equal bins of confidence",
                "", "accuracy in the bin")  # fmt: skip
    upper.plot([0, 1], [0, 1], color=style.FAINT, linewidth=1, linestyle=":", label="calibrated")
    middle, width = (edges[:-1] + edges[1:]) / 2, 1 / RELIABILITY_BINS
    upper.bar(middle, np.nan_to_num(accuracy), width=0.94 * width, color=style.BLUE, alpha=0.75, label="accuracy")
    upper.plot(confidence, accuracy, "o", color=style.VERMILION, markersize=5, label="at the bin's mean confidence")
    upper.set(xlim=(0, 1), ylim=(-0.025, 1.04))
    style.legend(upper, loc="upper left")
    style.dress(lower, "", "", "confidence: largest probability of a known class", "share of\nsamples")
    lower.bar(middle, count / max(count.sum(), 1), width=0.94 * width, color=style.FAINT)
    return figure
