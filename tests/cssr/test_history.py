"""hist.json: the original's metrics against recorded numbers, its keys, resumed files, last and best."""

import json

import numpy as np
import pytest

from common.metrics import auroc
from cssr import history
from cssr.history import History, classwise_auroc, evaluated, last_and_best, open_detection, open_recognition

CASES = ["no_ties", "ties_1_decimal", "ties_integer", "several_unknown_labels", "perfect_separation"]
DETECTION = {"auroc": "auroc", "auprIN": "auprIN", "auprOUT": "auprOUT", "accuracy": "accuracy", "f1": "f1", "recall": "recall",
             "precision": "precision", "fpr@tpr95": "fpr_at_tpr95", "bestdetacc": "bestdetacc"}  # fmt: skip
RECOGNITION = ["closeacc_withrej", "accuracy", "macro_f1", "oscr", "weighted_f1", "macro_recall", "weighted_recall",
               "macro_precision", "weighted_precision"]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_metrics_equal_the_released_program(golden, name):
    case = golden(f"metrics/{name}")
    target = np.where(case["labels"] < 0, -1, case["labels"])
    found = open_detection(target, case["scores"])
    assert list(found) == list(DETECTION)
    for key, field in DETECTION.items():
        assert found[key] == pytest.approx(float(case[f"det_{field}"]), rel=1e-9), key
    classes = len(case["classwise_auc"])
    found = open_recognition(target, case["pred"], case["scores"], classes)
    assert set(found) == {*RECOGNITION, "classwise_auc"}
    for key in RECOGNITION:
        assert found[key] == pytest.approx(float(case[f"reco_{key}"]), rel=1e-9), key
    *values, mean = found["classwise_auc"].values()
    np.testing.assert_allclose(values, case["classwise_auc"], rtol=1e-9)
    assert mean == pytest.approx(float(case["classwise_auc_mean"]), rel=1e-9)
    known = target >= 0
    assert (case["pred"] == target)[known].mean() == pytest.approx(float(case["close_acc"]))
    threshold, _ = history.operating_point(known, case["scores"])
    assert threshold == pytest.approx(float(case["threshold_at_tpr95"]), rel=1e-9)


def arrays(target, score, prediction=None):
    target = np.array(target)
    count = len(target)
    prediction = np.maximum(target, 0) if prediction is None else np.array(prediction)
    return {"target": target, "prediction": prediction, "unknown_score": -np.array(score, dtype=float),
            "split": np.zeros(count, np.int8), "logits": np.eye(2)[prediction]}  # fmt: skip


def test_undefined_scores_are_marked_as_the_original_does():
    for target, score in (([0, 1, -1], [1, np.nan, 2]), ([0, 1, 1], [1, 2, 3]), ([-1, -1, -1], [1, 2, 3])):
        found = evaluated(arrays(target, score), classes=2)
        assert found["open_detection"] == {"auroc": -1} and found["open_reco"] == {}
        assert ("metrics" in found) == np.isfinite(score).all()


def test_an_entry_holds_the_originals_keys_and_the_common_metrics():
    found = evaluated(arrays([0, 1, 0, -1, -1], [5, 4, 3, 3.5, 1]), classes=2)
    assert set(found) == {"close acc", "open_detection", "open_reco", "metrics"}
    assert found["close acc"] == 1
    expected = auroc([0, 1, 0, -1, -1], [-5, -4, -3, -3.5, -1])
    assert found["metrics"]["auroc"] == expected == pytest.approx(found["open_detection"]["auroc"])


def test_classes_of_one_kind_count_nothing_in_the_mean():
    known, prediction = np.array([True, True, False, True]), np.array([0, 0, 0, 1])
    found = classwise_auroc(known, prediction, np.array([3.0, 2, 1, 4]), classes=3)
    assert found == {"class0": 1.0, "class1": 0.0, "class2": 0.0, "mean": 0.75}


def test_fifty_classes_have_no_table_of_classes():
    target, score = np.array([0, 1, -1, 2]), np.array([3.0, 2, 2.5, 1])
    assert "classwise_auc" in open_recognition(target, target, score, 49)
    assert "classwise_auc" not in open_recognition(target, target, score, 50)


def test_a_resumed_history_forgets_epochs_that_are_repeated(tmp_path):
    path = tmp_path / "hist.json"
    first = History(path)
    for epoch in range(3):
        first.add(epoch, {"Loss": 1.0}, {"close acc": epoch / 10})
    resumed = History(path, done=2)
    resumed.add(2, {"Loss": 0.5})
    assert [entry["epoch"] for entry in json.loads(path.read_text())] == [0, 1, 2]
    assert json.loads(path.read_text())[2] == {"epoch": 2, "loss": {"Loss": 0.5}}
    assert History(path).entries == []


def test_last_and_best():
    entries = [{"open_detection": {"auroc": value}} for value in (0.5, 0.9, 0.7)]
    entries.insert(1, {"loss": {}})
    assert last_and_best(entries, "open_detection.auroc") == (0.7, 0.9)
    assert last_and_best(entries[:2], "open_detection.auroc") == (None, 0.5)
    assert last_and_best([], "open_detection.auroc") == (None, None)
    assert last_and_best(entries, "open_detection.auroc.x") == (None, None)
    assert last_and_best(entries, "open_detection") == (None, None)
