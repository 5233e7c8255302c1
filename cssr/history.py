"""`hist.json`: one entry for each epoch with the original's keys, and beside them the metrics of `common`.

The original's metrics take known as positive and find their threshold on the test set (the point of the ROC curve nearest to a
true positive rate of .95, collinear points left out): they are for comparison with its output, not for claims.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from common.files import write_json

# A table of AUROC by predicted class is written for fewer classes than this.
CLASSWISE_LIMIT = 50


def operating_point(known: np.ndarray, score: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """Threshold and false positive rate at the ROC point nearest to `share` of known samples accepted."""
    from sklearn.metrics import roc_curve

    fpr, tpr, thresholds = roc_curve(known, score)
    nearest = np.abs(tpr - share).argmin()
    return float(thresholds[nearest]), float(fpr[nearest])


def open_detection(target: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """The original's `open_detection`: known against unknown, `score` large for known.

    `{"auroc": -1}` as there when a score is NaN or infinite, or one side is empty.
    """
    from sklearn import metrics

    known = target >= 0
    if not np.isfinite(score).all() or known.all() or not known.any():
        return {"auroc": -1}
    fpr, tpr, _ = metrics.roc_curve(known, score)
    threshold, fpr_at_share = operating_point(known, score)
    accepted = score >= threshold
    areas = []
    for positive, ranked in ((known, score), (~known, -score)):
        precision, recall, _ = metrics.precision_recall_curve(positive, ranked)
        areas.append(metrics.auc(recall, precision))
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(known, accepted, average="binary", zero_division=0)
    found = {"auroc": metrics.auc(fpr, tpr), "auprIN": areas[0], "auprOUT": areas[1], "accuracy": (accepted == known).mean(),
             "f1": f1, "recall": recall, "precision": precision, "fpr@tpr95": fpr_at_share,
             "bestdetacc": 0.5 * (tpr + 1 - fpr).max()}  # fmt: skip
    return {name: float(value) for name, value in found.items()}


def open_recognition(target: np.ndarray, prediction: np.ndarray, score: np.ndarray, classes: int) -> dict:
    """The original's `open_reco`: known classes and "unknown" together; empty where `open_detection` is."""
    from sklearn import metrics

    known = target >= 0
    if not np.isfinite(score).all() or known.all() or not known.any():
        return {}
    threshold, _ = operating_point(known, score)
    decided = np.where(score > threshold, prediction, -1)
    truth = np.where(known, target, -1)
    found = {"closeacc_withrej": (decided[known] == truth[known]).mean(), "accuracy": (decided == truth).mean(),
             "oscr": oscr(target, prediction, score)}  # fmt: skip
    for average in ("macro", "weighted"):
        values = metrics.precision_recall_fscore_support(truth, decided, average=average, zero_division=0)
        found |= dict(zip((f"{average}_precision", f"{average}_recall", f"{average}_f1"), values[:3]))
    found = {name: float(value) for name, value in found.items()}
    return found | ({"classwise_auc": classwise_auroc(known, prediction, score, classes)} if classes < CLASSWISE_LIMIT else {})


def oscr(target: np.ndarray, prediction: np.ndarray, score: np.ndarray) -> float:
    """The original's OSCR: rates above every score as threshold, with the points (0, 0) and (1, 1) added.

    The added (1, 1) makes it larger than `common.metrics.oscr` when not every known sample is classified right.
    """
    known = target >= 0
    right, unknown = np.sort(score[known & (prediction == target)]), np.sort(score[~known])
    thresholds = np.sort(score)
    ccr = (len(right) - np.searchsorted(right, thresholds, side="right")) / known.sum()
    fpr = (len(unknown) - np.searchsorted(unknown, thresholds, side="right")) / len(unknown)
    ccr, fpr = np.r_[1.0, ccr, 0.0], np.r_[1.0, fpr, 0.0]
    return float(((fpr[:-1] - fpr[1:]) * (ccr[:-1] + ccr[1:]) / 2).sum())


def classwise_auroc(known: np.ndarray, prediction: np.ndarray, score: np.ndarray, classes: int) -> dict[str, float]:
    """AUROC among the samples predicted as each class, and their mean weighted by the number of those samples.

    A class whose samples are all known or all unknown counts 0.
    """
    from sklearn.metrics import roc_auc_score

    found, mean = {}, 0.0
    for label in range(classes):
        chosen = prediction == label
        both = len(np.unique(known[chosen])) == 2
        found[f"class{label}"] = float(roc_auc_score(known[chosen], score[chosen])) if both else 0.0
        mean += found[f"class{label}"] * chosen.mean()
    return found | {"mean": float(mean)}


def evaluated(arrays: dict, classes: int) -> dict:
    """An evaluated epoch's part of the entry, from the arrays of `scores.npz`: all unknown sets together."""
    from common.metrics import closed_accuracy, evaluate

    test = arrays["split"] == 0
    target, prediction = arrays["target"][test], arrays["prediction"][test]
    score = -np.asarray(arrays["unknown_score"], dtype=np.float64)[test]
    entry = {"close acc": closed_accuracy(target, prediction), "open_detection": open_detection(target, score),
             "open_reco": open_recognition(target, prediction, score, classes)}  # fmt: skip
    if np.isfinite(arrays["unknown_score"]).all():
        names = ("target", "prediction", "unknown_score", "split", "logits")
        entry["metrics"] = evaluate(*(arrays[name] for name in names), classes=classes)
    return entry


class History:
    """The file `hist.json` of a run; a resumed run goes on behind the epochs that are done.

    Parameters
    ----------
    path : Path
    done : int
        Epochs that are done; later entries belong to epochs that are repeated.
    """

    def __init__(self, path: Path, done: int = 0):
        self.path = Path(path)
        stored = json.loads(self.path.read_text()) if done and self.path.exists() else []
        self.entries = [entry for entry in stored if entry["epoch"] < done]

    def add(self, epoch: int, loss: dict, found: dict | None = None) -> None:
        """Append an epoch (from 0): its `loss` part, and what an evaluation found."""
        self.entries.append({"epoch": epoch, "loss": loss, **(found or {})})
        write_json(self.path, self.entries)


def last_and_best(entries: list[dict], metric: str) -> tuple[float | None, float | None]:
    """Value of a dotted metric in the last entry, and its largest in all entries; None where it is not there.

    The largest one is selected on the test set.
    """
    values = []
    for entry in entries:
        value = entry
        for key in metric.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        values.append(value if isinstance(value, (int, float)) else None)
    present = [value for value in values if value is not None]
    return (values[-1] if values else None), (max(present) if present else None)
