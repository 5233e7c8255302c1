"""Metrics of decisions: macro-F1 at every kind of threshold, open-set F-measure, tables per class."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.metrics import (
    class_report,
    confusion,
    decide,
    decide_argmax,
    f1_at_thresholds,
    macro_f1,
    macro_f1_oracle,
    one_vs_rest,
    open_f,
)

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "crosr"
unhurried = settings(deadline=None)  # the machine may be shared


@st.composite
def samples(draw, classes=3):
    """Target, prediction and score with ties; both sides present, classes perhaps not."""
    known, unknown = draw(st.integers(1, 15)), draw(st.integers(1, 15))
    label = st.integers(0, classes - 1)
    target = draw(st.lists(label, min_size=known, max_size=known)) + [-1] * unknown
    prediction = draw(st.lists(label, min_size=known + unknown, max_size=known + unknown))
    score = draw(st.lists(st.integers(0, 6), min_size=known + unknown, max_size=known + unknown))
    return np.array(target), np.array(prediction), np.array(score, dtype=float)


@unhurried
@given(samples(), st.integers(0, 7))
def test_macro_f1_equals_scikit_learn(data, threshold):
    sklearn = pytest.importorskip("sklearn.metrics")
    target, prediction, score = data
    decision = decide(prediction, score, threshold)
    expected = sklearn.f1_score(target, decision, labels=np.unique(target), average="macro", zero_division=0)
    assert macro_f1(target, decision, 3) == pytest.approx(expected, abs=1e-12)


@unhurried
@given(samples())
def test_oracle_equals_a_search_over_all_thresholds(data):
    target, prediction, score = data
    cuts = [*np.unique(score), np.inf]
    expected = max(macro_f1(target, decide(prediction, score, cut), 3) for cut in cuts)
    best = macro_f1_oracle(target, prediction, score, 3)
    assert best.value == pytest.approx(expected, abs=1e-14)
    assert macro_f1(target, decide(prediction, score, best.threshold), 3) == best.value


@unhurried
@given(samples(), st.lists(st.sampled_from([-1.0, 0.0, 2.0, 2.5, 6.0, 7.0]), max_size=6))
def test_f1_at_thresholds_is_that_of_each_threshold(data, thresholds):
    target, prediction, score = data
    decisions = [decide(prediction, score, threshold) for threshold in thresholds]
    found = f1_at_thresholds(target, prediction, score, thresholds, 3)
    np.testing.assert_allclose(found.macro, [macro_f1(target, decision, 3) for decision in decisions], atol=1e-14)
    np.testing.assert_allclose(found.unknown, [class_report(target, decision, 3).f1[-1] for decision in decisions], atol=1e-14)
    np.testing.assert_allclose(found.open_f, [open_f(target, decision, 3).macro for decision in decisions], atol=1e-14)
    one_sided = f1_at_thresholds(target.clip(0), prediction, score, thresholds, 3)
    assert all(values.shape == (len(thresholds),) and np.isnan(values).all() for values in one_sided)


@unhurried
@given(samples(), st.randoms())
def test_oracle_does_not_depend_on_the_order_of_samples(data, random):
    order = list(range(len(data[0])))
    random.shuffle(order)
    found = macro_f1_oracle(*(array[order] for array in data), 3)
    assert found.value == pytest.approx(macro_f1_oracle(*data, 3).value, abs=1e-14)


def test_oracle_on_many_samples_and_classes():
    generator = np.random.default_rng(0)
    target = np.r_[generator.integers(0, 500, 5000), np.full(2000, -1)]
    prediction = np.where(generator.random(7000) < 0.7, target.clip(0), generator.integers(0, 500, 7000))
    score = generator.normal(size=7000) + 2 * (target < 0)
    best = macro_f1_oracle(target, prediction, score, 500)
    cuts = np.quantile(score, np.linspace(0, 1, 300))
    sampled = [macro_f1(target, decide(prediction, score, cut), 500) for cut in cuts]
    assert max(sampled) - 1e-12 <= best.value <= max(sampled) + 0.01


def test_rejecting_and_accepting_everything():
    target, prediction = np.array([0, 1, -1, -1]), np.array([0, 1, 0, 1])
    assert macro_f1(target, np.full(4, -1), 2) == pytest.approx((2 * 2 / (2 + 4)) / 3)
    assert macro_f1(target, prediction, 2) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_a_score_at_the_threshold_is_rejected():
    assert decide([0, 1], [0.5, 0.4999], 0.5).tolist() == [-1, 1]


@unhurried
@given(samples(), st.integers(0, 7))
def test_open_f_equals_a_loop_over_classes(data, threshold):
    target, prediction, score = data
    decision = decide(prediction, score, threshold)
    hits, decided, true, precisions, recalls = 0, 0, 0, [], []
    for label in range(3):
        hit = np.sum((target == label) & (decision == label))
        hits, decided, true = hits + hit, decided + np.sum(decision == label), true + np.sum(target == label)
        if np.any(target == label):
            precisions.append(hit / np.sum(decision == label) if np.any(decision == label) else 0.0)
            recalls.append(hit / np.sum(target == label))
    precision, recall = np.mean(precisions), np.mean(recalls)
    found = open_f(target, decision, 3)
    assert found.micro == pytest.approx(2 * hits / (decided + true), abs=1e-12)
    both = precision + recall
    assert found.macro == pytest.approx(2 * precision * recall / both if both else 0.0, abs=1e-12)


def test_open_f_ignores_rejected_unknowns_and_macro_f1_counts_them():
    target = np.array([0, 1, -1, -1, -1])
    right, wrong = np.array([0, 1, -1, -1, -1]), np.array([0, 1, -1, -1, 0])
    assert open_f(target, right, 2) == (1.0, 1.0) and macro_f1(target, right, 2) == 1.0
    assert open_f(target, wrong, 2).micro == pytest.approx(2 * 2 / (3 + 2))
    assert macro_f1(target, wrong, 2) == pytest.approx((2 / 3 + 1 + 4 / 5) / 3)


def test_undefined_is_nan():
    for target in ([0, 1], [-1, -1]):
        decision = np.array([0, -1])
        assert np.isnan([macro_f1(target, decision, 2), *open_f(target, decision, 2)]).all()
        assert np.isnan(macro_f1_oracle(target, [0, 0], [0.1, 0.2], 2)).all()
    report = class_report([0, -1], [0, 0], classes=2)
    assert np.isnan(report.recall[1]) and np.isnan(report.f1[1]) and np.isnan(report.precision[1])
    assert report.recall[2] == 0.0 and report.macro == (0.25, 0.5, pytest.approx(1 / 3))
    assert np.isnan(one_vs_rest([0, 0], [[0.9, 0.1], [0.8, 0.2]])).all()
    assert np.isnan(class_report([], [], classes=2).accuracy)


@unhurried
@given(samples())
def test_class_report_equals_scikit_learn(data):
    sklearn = pytest.importorskip("sklearn.metrics")
    target, prediction, score = data
    decision = decide(prediction, score, 3)
    order = [0, 1, 2, -1]
    precision, recall, f1, support = sklearn.precision_recall_fscore_support(
        target, decision, labels=order, zero_division=np.nan
    )
    report = class_report(target, decision, 3)
    present = support > 0
    np.testing.assert_allclose(report.precision, precision, atol=1e-12)
    np.testing.assert_allclose(report.recall, recall, atol=1e-12)
    np.testing.assert_allclose(report.f1[present], np.nan_to_num(f1)[present], atol=1e-12)
    assert report.support.tolist() == support.tolist()
    assert report.accuracy == pytest.approx(np.mean(target == decision))
    assert (
        confusion(target, decision, 3).tolist()
        == sklearn.confusion_matrix(target, decision, labels=order).tolist()
    )


def test_one_vs_rest_equals_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(2)
    probabilities = generator.dirichlet(np.ones(4), 500).round(2)
    target = np.where(
        generator.random(500) < 0.6, decide_argmax(probabilities), generator.integers(-1, 3, 500)
    )
    table = one_vs_rest(target, probabilities)
    for column, label in enumerate((0, 1, 2, -1)):
        positive, score = target == label, probabilities[:, column]
        assert table.auroc[column] == pytest.approx(sklearn.roc_auc_score(positive, score))
        assert table.average_precision[column] == pytest.approx(
            sklearn.average_precision_score(positive, score)
        )
        decided = decide_argmax(probabilities) == label
        assert table.f1_argmax[column] == pytest.approx(sklearn.f1_score(positive, decided))
        fpr, tpr, cut = sklearn.roc_curve(positive, score, drop_intermediate=False)
        assert table.tpr_at_cut[column] - table.fpr_at_cut[column] == pytest.approx((tpr - fpr).max())
        assert table.youden_cut[column] in cut
        at_cut = sklearn.f1_score(positive, score >= table.youden_cut[column])
        assert table.f1_at_cut[column] == pytest.approx(at_cut)


def published():
    file = GOLDEN / "crosr_published_scores.npz"
    if not file.exists():
        pytest.skip("the authors' scores may not be committed; they lie in ../shared/golden/crosr")
    with np.load(file) as stored:
        probabilities, label = stored["scores"].astype(float), stored["labels"].astype(int)
        return np.where(label == 10, -1, label), probabilities, stored["p_unknown_f64"]


def test_published_classification_report():
    """Precision, recall and F1 of the 11 classes and both means, to 4 decimals."""
    target, probabilities, _ = published()
    decision = decide_argmax(probabilities)
    report = class_report(target, decision, classes=10)
    precision = "6241 6350 4459 1709 5476 5547 4588 7721 5732 3593 2545"
    recall = "9050 9430 8730 7600 9090 8410 9030 9250 9320 9280 0028"
    f1 = "7388 7590 5903 2791 6835 6685 6085 8417 7098 5180 0055"
    for found, expected in ((report.precision, precision), (report.recall, recall), (report.f1, f1)):
        assert found.round(4).tolist() == [int(value) / 1e4 for value in expected.split()]
    assert report.support.tolist() == [1000] * 10 + [10000]
    assert np.round(report.macro, 4).tolist() == [0.4906, 0.8111, 0.5821]
    assert np.round(report.weighted, 4).tolist() == [0.3844, 0.4474, 0.3226]
    assert report.accuracy == 0.44735
    assert confusion(target, decision, 10)[10, [3, 10]].tolist() == [3527, 28]


def test_published_table_per_class():
    """Class: accuracy, F1 by argmax, AUROC, Youden cut, F1 at the cut, to 4 decimals."""
    target, probabilities, _ = published()
    table = one_vs_rest(target, probabilities)
    rows = """.9680 .7388 .9898 .1655 .6840 | .9700 .7590 .9921 .2405 .7317 | .9394 .5903 .9718 .1709 .5048
        | .8037 .2791 .8946 .0689 .2358 | .9579 .6835 .9846 .2542 .6454 | .9583 .6685 .9740 .1080 .5659
        | .9419 .6085 .9794 .4328 .6226 | .9826 .8417 .9922 .1173 .7561 | .9619 .7098 .9894 .1991 .6588
        | .9136 .5180 .9795 .4124 .5288 | .4973 .0055 .8834 .0004 .8326"""
    expected = np.array([[float(cell) for cell in row.split()] for row in rows.split("|")])
    found = np.stack(
        [table.accuracy, table.f1_argmax, table.auroc, table.youden_cut, table.f1_at_cut], axis=1
    )
    np.testing.assert_allclose(found, expected, atol=5.1e-5)


@pytest.mark.parametrize(
    ("rejected", "cut", "macro"),
    [
        (0.1999, 6.28048531e-04, 0.783453524),
        (0.0999, 3.54512e-03, 0.73731574),
        (0.0499, 1.86151e-02, 0.67069225),
    ],
)
def test_published_scores_at_a_share_of_rejected_knowns(rejected, cut, macro):
    target, probabilities, score = published()
    known = np.sort(score[target >= 0])
    threshold = np.nextafter(known[round((1 - rejected) * len(known)) - 1], 1)
    assert threshold == pytest.approx(cut, rel=1e-5)
    decision = decide(probabilities[:, :10].argmax(axis=1), score, threshold)
    assert np.mean(decision[target >= 0] < 0) == rejected
    assert macro_f1(target, decision, 10) == pytest.approx(macro, abs=1e-8)


def test_bad_input():
    with pytest.raises(UserError, match=r"decision must lie in -1\.\.1"):
        macro_f1([0, -1], [2, 0], 2)
    with pytest.raises(UserError, match="prediction must lie in 0"):
        macro_f1_oracle([0, -1], [-1, 0], [0.1, 0.2], 2)
    with pytest.raises(UserError, match="probabilities"):
        decide_argmax([[0.5, np.nan]])
