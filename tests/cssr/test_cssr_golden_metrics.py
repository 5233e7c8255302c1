"""The metrics of `common.metrics` against those that the released CSSR program computed on the same arrays."""

import numpy as np
import pytest
from sklearn.metrics import auc, precision_recall_curve

from common import metrics

CASES = ("no_ties", "perfect_separation", "several_unknown_labels", "ties_1_decimal", "ties_integer")
TOLERANCE = {"rel": 1e-9, "abs": 1e-12}


@pytest.fixture(params=CASES)
def case(golden, request):
    """A golden case with labels, predictions and scores in this repository's conventions (large score = unknown)."""
    found = golden(f"metrics/{request.param}")
    found.target = np.where(found["labels"] < 0, -1, found["labels"])
    found.prediction, found.unknown_score = found["pred"], -found["scores"]
    found.classes = len(found["classwise_auc"])
    found.decision = metrics.decide(found.prediction, found.unknown_score, -float(found["threshold_at_tpr95"]))
    return found


def test_ranking(case):
    target, unknown_score = case.target, case.unknown_score
    assert metrics.auroc(target, unknown_score) == pytest.approx(float(case["det_auroc"]), **TOLERANCE)
    assert metrics.detection_accuracy(target, unknown_score) == pytest.approx(float(case["det_bestdetacc"]), **TOLERANCE)
    assert metrics.fpr95_known_positive(target, unknown_score) == pytest.approx(float(case["fpr_at_tpr95_all_points"]))


def test_area_under_precision_and_recall_differs_by_the_trapezoid_only(case):
    for name, positive, score in (("det_auprIN", case.target >= 0, -case.unknown_score),
                                  ("det_auprOUT", case.target < 0, case.unknown_score)):  # fmt: skip
        precision, recall, _ = precision_recall_curve(positive, score)
        assert float(case[name]) == pytest.approx(auc(recall, precision), **TOLERANCE)


def test_decisions_at_their_threshold(case):
    known = case.target >= 0
    report = metrics.class_report(case.target, case.decision, case.classes)
    assert metrics.closed_accuracy(case.target, case.prediction) == pytest.approx(float(case["close_acc"]), **TOLERANCE)
    accepted = np.mean(case.decision[known] == case.target[known])
    assert accepted == pytest.approx(float(case["reco_closeacc_withrej"]), **TOLERANCE)
    assert report.accuracy == pytest.approx(float(case["reco_accuracy"]), **TOLERANCE)
    assert metrics.macro_f1(case.target, case.decision, case.classes) == pytest.approx(float(case["reco_macro_f1"]), **TOLERANCE)
    for name, averages in (("macro", report.macro), ("weighted", report.weighted)):
        for measure, value in zip(("precision", "recall", "f1"), averages):
            assert value == pytest.approx(float(case[f"reco_{name}_{measure}"]), **TOLERANCE), f"{name} {measure}"


def test_oscr_differs_by_the_point_that_the_release_adds(case):
    """The release ends its curve in (1, 1), not in (1, closed accuracy): the last step's trapezoid is too high."""
    target, unknown_score = case.target, case.unknown_score
    last = np.mean(unknown_score[target < 0] == unknown_score.max())
    too_high = last * (1 - metrics.closed_accuracy(target, case.prediction)) / 2
    ours = metrics.oscr(target, case.prediction, unknown_score)
    assert ours + too_high == pytest.approx(float(case["reco_oscr"]), **TOLERANCE)


def test_area_per_predicted_class(case):
    """The release's class-wise AUROC is ours among the images that are taken for the class; 0 where one side is missing."""
    found = []
    for label in range(case.classes):
        chosen = case.prediction == label
        value = metrics.auroc(case.target[chosen], case.unknown_score[chosen])
        found.append(0.0 if np.isnan(value) else value)
    assert found == pytest.approx(case["classwise_auc"].tolist(), **TOLERANCE)
