"""All metrics in one call, from arrays or from a `scores.npz` alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.metrics import calibration, classification_rate, decisions, operating, ranking
from common.metrics.checks import UNKNOWN, labels, matrix, scores

TEST, VALIDATION, TRAIN = 0, 1, 2
CCR_RATES = (0.0001, 0.001, 0.01, 0.1)
METRICS = (
    "closed_accuracy",
    "auroc",
    "aupr_known",
    "aupr_unknown",
    "fpr95_known_positive",
    "fpr95_unknown_positive",
    "tnr95_known_positive",
    "detection_accuracy",
    "oscr",
    "oscr_arpl",
    *(f"ccr_at_fpr_{rate}" for rate in CCR_RATES),
    "macro_f1_validation",
    "macro_f1_train",
    "macro_f1_test_quantile",
    "macro_f1_oracle",
    "macro_f1_argmax",
    "open_f_micro",
    "open_f_macro",
    "unknown_recall_at_95_seen_precision",
    "unknown_recall_at_95_seen_recall",
    "nll",
    "ece",
)


def closed_accuracy(target, prediction) -> float:
    """Share of known samples whose predicted class is right; rejection plays no part.

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown; unknown samples are left out.
    prediction : int array (N,)
        Predicted known class.

    Returns
    -------
    float
        NaN without known samples. Larger is better; no ties.

    Examples
    --------
    >>> closed_accuracy([0, 1, -1], [0, 0, 0])
    0.5
    """
    target = labels(target, "target")
    prediction = labels(prediction, "prediction", length=len(target))
    known = target >= 0
    return float(np.mean(prediction[known] == target[known])) if known.any() else float("nan")


def thresholds(target, unknown_score, split=None) -> dict[str, float]:
    """Return the thresholds that accept 95 % of the known samples of each part, by the suffix of
    `macro_f1_*`.

    Parameters
    ----------
    target : int array (N,)
        Known class, or -1 for unknown; unknown samples never move a threshold.
    unknown_score : float array (N,)
        Larger = more likely unknown; accepted where below the threshold. Ties: see `threshold_accepting`.
    split : int array (N,), optional
        0 test, 1 validation, 2 train; all test when absent.

    Returns
    -------
    dict
        `validation`, `train`, `test_quantile`, each NaN where the part has no known sample.

    Examples
    --------
    >>> found = thresholds([0, 0, 1, -1], [0.1, 0.2, 0.3, 0.9], split=[1, 1, 0, 0])
    >>> round(found["validation"], 6), round(found["test_quantile"], 6), found["train"]
    (0.2, 0.3, nan)
    """
    target = labels(target, "target")
    unknown_score = scores(unknown_score, length=len(target))
    split = _split(split, len(target))
    return {
        name: operating.threshold_accepting(unknown_score[(split == part) & (target >= 0)])
        for name, part in (("validation", VALIDATION), ("train", TRAIN), ("test_quantile", TEST))
    }


def evaluate(
    target, prediction, unknown_score, split=None, logits=None, probabilities=None, classes: int | None = None
) -> dict[str, float]:
    """Return every metric of `METRICS`, in that order, as Python floats.

    Parameters
    ----------
    target : int array (N,)
        Known class 0..K-1, or -1 for unknown.
    prediction : int array (N,)
        Predicted known class, ignoring rejection.
    unknown_score : float array (N,)
        Larger = more likely unknown.
    split : int array (N,), optional
        0 test, 1 validation, 2 train; all test when absent. Metrics are of the test part; the other parts
        only set the thresholds of `macro_f1_validation` and `macro_f1_train`.
    logits : float array (N, K), optional
        For `nll` and `ece`; without them the known columns of `probabilities`, renormalised, serve.
    probabilities : float array (N, K + 1), optional
        Unknown last, for `macro_f1_argmax`.
    classes : int, optional
        K; default: columns of logits or probabilities, else the largest label plus one.

    Returns
    -------
    dict of str to float
        NaN where undefined, never 0: without known or unknown test samples, without the part or array that
        a metric needs. `open_f_*` are taken at the validation threshold, else at that of train, else NaN.

    Examples
    --------
    >>> found = evaluate([0, 1, 1, -1], [0, 1, 0, 1], [0.1, 0.2, 0.6, 0.5])
    >>> round(found["closed_accuracy"], 4), round(found["auroc"], 4), found["macro_f1_validation"]
    (0.6667, 0.6667, nan)
    """
    target = labels(target, "target")
    prediction = labels(prediction, "prediction", length=len(target), lowest=0)
    if classes is None:
        classes = decisions.number_of_classes(target, prediction, logits, probabilities)
    target = labels(target, "target", classes=classes)
    prediction = labels(prediction, "prediction", classes=classes)
    unknown_score = scores(unknown_score, length=len(target))
    split = _split(split, len(target))
    cuts = thresholds(target, unknown_score, split)

    test = split == TEST
    found = _ordered(target[test], prediction[test], unknown_score[test])
    found |= _decided(target[test], prediction[test], unknown_score[test], cuts, classes)
    if probabilities is not None:
        probabilities = _probabilities(probabilities, len(target), classes)[test]
        argmax = decisions.decide_argmax(probabilities)
        found["macro_f1_argmax"] = decisions.macro_f1(target[test], argmax, classes)
    if logits is not None:
        logits = matrix(logits, "logits", length=len(target), columns=classes)[test]
    elif probabilities is not None:
        logits = calibration.known_log_probabilities(probabilities)
    if logits is not None:
        found["nll"] = calibration.nll(target[test], logits)
        found["ece"] = calibration.ece(target[test], logits)
    return {name: float(found.get(name, np.nan)) for name in METRICS}


def by_unknown_source(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name of each unknown source and the mask of its test samples together with the known ones.

    Parameters
    ----------
    arrays : mapping
        `target`, `split`, `source` (N,), `sources`, as in a `scores.npz`.

    Examples
    --------
    >>> arrays = {"target": np.array([0, -1, -1]), "split": np.zeros(3, int), "source": np.array([0, 1, 2])}
    >>> [(name, mask.tolist()) for name, mask in by_unknown_source(arrays | {"sources": ["digits", "noise", "letters"]})]
    [('noise', [True, True, False]), ('letters', [True, False, True])]
    """
    test, unknown = arrays["split"] == TEST, arrays["target"] < 0
    for source in np.unique(arrays["source"][test & unknown]):
        yield str(arrays["sources"][source]), test & (~unknown | (arrays["source"] == source))


def evaluate_file(path) -> dict[str, dict[str, float]]:
    """Return `evaluate` of a `scores.npz`, for all unknown test samples together and for each unknown
    source alone.

    Parameters
    ----------
    path : str or path
        File with `target`, `prediction`, `unknown_score` and optionally `split`, `source`, `sources`,
        `class_names`, `logits`, `probabilities`; float32 copies are read as float64.

    Returns
    -------
    dict of str to dict
        `"all"`: all known test samples against all unknown ones. Then one entry for each source that has
        unknown test samples, in the order of `sources` and under its name: all known test samples against
        that source's unknown ones. Thresholds of `macro_f1_validation` and `macro_f1_train` are the same in
        every entry. Metrics that need no unknown samples (accuracy, `nll`, `ece`) are therefore equal in
        all entries. Polarity and ties as in `evaluate`.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "scores.npz"
    >>> np.savez(path, target=[0, 1, -1, -1], prediction=[0, 1, 0, 0], unknown_score=[0.1, 0.2, 0.15, 0.9],
    ...          source=[0, 0, 1, 2], sources=["digits", "noise", "letters"])
    >>> {name: found["auroc"] for name, found in evaluate_file(path).items()}
    {'all': 0.75, 'noise': 0.5, 'letters': 1.0}
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a scores.npz written by test.py")
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files if name not in ("features", "parts")}
    missing = [name for name in ("target", "prediction", "unknown_score") if name not in arrays]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}; found {', '.join(sorted(arrays)) or 'nothing'}")
    optional = ("split", "logits", "probabilities")
    given = {
        name: arrays[name] for name in ("target", "prediction", "unknown_score", *optional) if name in arrays
    }
    classes = len(arrays["class_names"]) if "class_names" in arrays else None
    if classes is None:
        classes = decisions.number_of_classes(
            given["target"], given["prediction"], given.get("logits"), given.get("probabilities")
        )
    found = {"all": evaluate(**given, classes=classes)}
    if "source" not in arrays or "sources" not in arrays:
        return found
    target, source = given["target"], arrays["source"]
    unknown_test = (target == UNKNOWN) & (_split(given.get("split"), len(target)) == TEST)
    for index in np.unique(source[unknown_test]):
        kept = ~unknown_test | (source == index)
        part = {name: array[kept] for name, array in given.items()}
        found[str(arrays["sources"][index])] = evaluate(**part, classes=classes)
    return found


def _ordered(target, prediction, unknown_score) -> dict[str, float]:
    names = ("auroc", "aupr_known", "aupr_unknown", "detection_accuracy")
    found = {name: getattr(ranking, name)(target, unknown_score) for name in names}
    names = ("fpr95_known_positive", "fpr95_unknown_positive", "tnr95_known_positive")
    names += ("unknown_recall_at_95_seen_precision", "unknown_recall_at_95_seen_recall")
    found |= {name: getattr(operating, name)(target, unknown_score) for name in names}
    found["closed_accuracy"] = closed_accuracy(target, prediction)
    found["oscr"] = classification_rate.oscr(target, prediction, unknown_score)
    found["oscr_arpl"] = classification_rate.oscr_arpl(target, prediction, unknown_score)
    for rate in CCR_RATES:
        found[f"ccr_at_fpr_{rate}"] = classification_rate.ccr_at_fpr(target, prediction, unknown_score, rate)
    return found


def _decided(target, prediction, unknown_score, cuts, classes) -> dict[str, float]:
    found = {"macro_f1_oracle": decisions.macro_f1_oracle(target, prediction, unknown_score, classes).value}
    for name, cut in cuts.items():
        if not np.isnan(cut):
            decision = decisions.decide(prediction, unknown_score, cut)
            found[f"macro_f1_{name}"] = decisions.macro_f1(target, decision, classes)
    leading = cuts["train"] if np.isnan(cuts["validation"]) else cuts["validation"]
    if not np.isnan(leading):
        found["open_f_micro"], found["open_f_macro"] = decisions.open_f(
            target, decisions.decide(prediction, unknown_score, leading), classes
        )
    return found


def _split(split, length: int) -> np.ndarray:
    if split is None:
        return np.zeros(length, dtype=np.int64)
    return labels(
        split, "split (0 test, 1 validation, 2 train)", length=length, lowest=TEST, classes=TRAIN + 1
    )


def _probabilities(probabilities, length: int, classes: int) -> np.ndarray:
    probabilities = matrix(probabilities, "probabilities", length=length, columns=classes + 1)
    # 1e-3 leaves room for compact copies in half precision.
    if length and (probabilities.min() < 0 or np.abs(probabilities.sum(axis=1) - 1).max() > 1e-3):
        raise UserError(
            "probabilities must be non-negative rows that sum to 1, with unknown in the last column"
        )
    return probabilities
