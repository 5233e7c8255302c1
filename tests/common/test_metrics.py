"""Metrics that rank, operating points, calibration, intervals, and the calls that return all of them."""

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import common.metrics as m
from common.errors import UserError
from common.metrics import METRICS, evaluate, evaluate_file

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "crosr"
MODULES = ["calibration", "decisions", "intervals", "operating", "per_class", "ranking", "report"]
PAIR_METRICS = (
    m.auroc,
    m.aupr_known,
    m.aupr_unknown,
    m.fpr95_known_positive,
    m.fpr95_unknown_positive,
    m.tnr95_known_positive,
    m.detection_accuracy,
    m.unknown_recall_at_95_seen_precision,
)
unhurried = settings(deadline=None)  # the machine may be shared


@st.composite
def scored(draw):
    """Target and score with many ties; both sides present."""
    known, unknown = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    score = draw(st.lists(st.integers(0, 8), min_size=known + unknown, max_size=known + unknown))
    return np.r_[np.zeros(known, dtype=int), np.full(unknown, -1)], np.array(score, dtype=float)


def gaussian(known, unknown, distance, seed=0):
    generator = np.random.default_rng(seed)
    target = np.r_[np.zeros(known, dtype=int), np.full(unknown, -1)]
    return target, generator.normal(size=known + unknown) + distance * (target < 0)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"common.metrics.{name}"))
    assert result.failed == 0 and result.attempted > 0


@unhurried
@given(scored())
def test_equal_to_scikit_learn(data):
    sklearn = pytest.importorskip("sklearn.metrics")
    target, score = data
    unknown = target < 0
    assert m.auroc(*data) == pytest.approx(sklearn.roc_auc_score(unknown, score), abs=1e-12)
    assert m.aupr_unknown(*data) == pytest.approx(sklearn.average_precision_score(unknown, score), abs=1e-12)
    assert m.aupr_known(*data) == pytest.approx(sklearn.average_precision_score(~unknown, -score), abs=1e-12)
    fpr, tpr, _ = sklearn.roc_curve(unknown, score, drop_intermediate=False)
    assert m.fpr95_unknown_positive(*data) == fpr[tpr >= 0.95][0]
    assert m.detection_accuracy(*data) == pytest.approx(0.5 * (tpr + 1 - fpr).max(), abs=1e-12)
    fpr, tpr, _ = sklearn.roc_curve(~unknown, -score, drop_intermediate=False)
    assert m.fpr95_known_positive(*data) == fpr[tpr >= 0.95][0]
    assert m.tnr95_known_positive(*data) == 1 - fpr[tpr >= 0.95][0]


def test_equal_to_pytorch_ood_where_definitions_coincide():
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("pytorch_ood.metrics.functional", reason="needs pytorch-ood 0.4")
    target, score = gaussian(700, 400, 1.0)
    score = score.round(1)
    arguments = torch.tensor(score), torch.tensor(target)
    assert m.auroc(target, score) == pytest.approx(float(functional.auroc(*arguments)), abs=1e-9)
    assert m.fpr95_unknown_positive(target, score) == pytest.approx(float(functional.fpr_at_tpr(*arguments)))
    # Its AUPR is the trapezoid, which lies beside the step form.
    trapezoid = float(functional.aupr(*arguments, positive="ood"))
    assert 0 < abs(m.aupr_unknown(target, score) - trapezoid) < 0.01


@unhurried
@given(scored(), st.randoms())
def test_order_of_samples_does_not_matter(data, random):
    order = list(range(len(data[0])))
    random.shuffle(order)
    for metric in PAIR_METRICS:
        found, expected = metric(data[0][order], data[1][order]), metric(*data)
        assert found == expected or (np.isnan(found) and np.isnan(expected))


@unhurried
@given(scored())
def test_monotone_maps_of_the_score_change_nothing(data):
    target, score = data
    for metric in PAIR_METRICS:
        np.testing.assert_equal(metric(target, np.exp(score / 3)), metric(target, score))
        np.testing.assert_equal(metric(target, 5 * score - 100), metric(target, score))


@unhurried
@given(scored())
def test_swapping_known_and_unknown_mirrors(data):
    target, score = data
    mirrored = np.where(target < 0, 0, -1)
    assert m.auroc(mirrored, score) == pytest.approx(1 - m.auroc(target, score), abs=1e-12)
    for first, second in (
        (m.auroc, m.auroc),
        (m.aupr_known, m.aupr_unknown),
        (m.fpr95_known_positive, m.fpr95_unknown_positive),
        (m.detection_accuracy, m.detection_accuracy),
    ):
        assert first(mirrored, -score) == second(target, score)


def test_aupr_polarity_on_four_samples():
    target, score = (
        [0, 0, 0, -1],
        [0.1, 0.2, 0.9, 0.5],
    )  # one known sample looks more unknown than the unknown one
    assert m.aupr_unknown(target, score) == 0.5
    assert m.aupr_known(target, score) == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_both_fpr95_conventions_differ():
    target = np.r_[np.zeros(20, dtype=int), np.full(20, -1)]
    score = np.r_[np.arange(20.0), np.arange(20) + 15.5]
    # 19 of 20 known samples lie at or below 18: unknown 15.5, 16.5, 17.5 are accepted with them.
    assert m.fpr95_known_positive(target, score) == 3 / 20
    # 19 of 20 unknown samples lie at or above 16.5: known 17, 18, 19 are rejected with them.
    assert m.fpr95_unknown_positive(target, score) == 3 / 20
    score[0] = 40.0
    assert (
        m.fpr95_known_positive(target, score) == 4 / 20 and m.fpr95_unknown_positive(target, score) == 4 / 20
    )
    score[1] = 41.0
    assert m.fpr95_known_positive(target, score) == 1.0 and m.fpr95_unknown_positive(target, score) == 5 / 20


@pytest.mark.parametrize(("distance", "expected"), [(1, 0.938), (2, 0.819), (3, 0.793)])
def test_seen_precision_falls_as_the_detector_improves(distance, expected):
    """The published table on Gaussian scores; its worse-than-chance rows were the empty end of the curve."""
    target, score = gaussian(8000, 2000, distance)
    point = m.seen_precision_point(target, score)
    assert point.unknown_recall == pytest.approx(expected, abs=0.02)
    assert point.seen_precision >= 0.95 and 0 < point.known_recall <= 1
    assert point.unknown_recall >= 1 - 8000 * (1 / 0.95 - 1) / 2000 - 1e-12
    assert m.unknown_recall_at_95_seen_recall(target, score) == pytest.approx(
        {1: 0.26, 2: 0.64, 3: 0.91}[distance], abs=0.03
    )


def test_seen_precision_is_nan_when_no_threshold_attains_it():
    assert np.isnan(m.seen_precision_point([0, 0, -1, -1], [0.5, 0.6, 0.1, 0.2])).all()


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 100, 1000])
def test_threshold_accepts_just_95_percent(count):
    score = np.random.default_rng(count).normal(size=count)
    threshold = m.threshold_accepting(score)
    accepted = np.count_nonzero(score < threshold)
    assert accepted / count >= 0.95 and (accepted - 1) / count < 0.95


def test_calibration_against_a_plain_loop():
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=3, size=(400, 5))
    target = np.where(generator.random(400) < 0.6, logits.argmax(axis=1), generator.integers(-1, 5, 400))
    known = target >= 0
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert m.nll(target, logits) == pytest.approx(-np.log(p[known, target[known]]).mean(), abs=1e-12)
    confidence, right = p.max(axis=1)[known], (p.argmax(axis=1) == target)[known]
    total = 0.0
    for bin_index in range(15):
        inside = (confidence > bin_index / 15) & (confidence <= (bin_index + 1) / 15)
        total += abs((right[inside] - confidence[inside]).sum())
    assert m.ece(target, logits) == pytest.approx(total / known.sum(), abs=1e-12)
    with pytest.raises(UserError, match="bins"):
        m.ece(target, logits, bins=0)


def test_auroc_difference_equals_delongs_sums_over_pairs():
    generator = np.random.default_rng(4)
    target = np.r_[generator.integers(0, 3, 60), -np.ones(40, int)]
    order = generator.permutation(100)
    first = np.r_[generator.normal(0, 1, 60), generator.normal(1, 1, 40)].round(1)
    second = (first + generator.normal(0, 1, 100)).round(1)
    known, unknown = target >= 0, target < 0
    placed = []
    for score in (first, second):
        wins = (score[unknown, None] > score[known]) + 0.5 * (score[unknown, None] == score[known])
        placed.append((wins.mean(0), wins.mean(1)))
    variance = sum(np.var(a - b, ddof=1) / len(a) for a, b in zip(*placed))
    found = m.auroc_difference(target[order], first[order], second[order])
    assert found.estimate == pytest.approx(m.auroc(target, first) - m.auroc(target, second), abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(stats.norm.ppf(0.975) * np.sqrt(variance), rel=1e-9)
    resampled = m.bootstrap_interval(lambda t, a, b: m.auroc(t, a) - m.auroc(t, b), target, first, second, repeats=400)
    assert found.high - found.low == pytest.approx(resampled.high - resampled.low, rel=0.2)
    assert m.auroc_difference(target, first, first) == (0, 0, 0)
    assert np.isnan(m.auroc_difference(target[:60], first[:60], second[:60])).all()
    assert np.isnan(m.auroc_difference([0, 1, -1], [0, 1, 2], [1, 0, 2])[1:]).all()


def test_intervals():
    low, high = stats.t.interval(
        0.95, 4, loc=0.5, scale=np.std([0.3, 0.4, 0.5, 0.6, 0.7], ddof=1) / np.sqrt(5)
    )
    assert m.mean_interval([0.3, 0.4, 0.5, 0.6, 0.7]) == pytest.approx((0.5, low, high))
    assert np.isnan(m.mean_interval([0.5])[1:]).all() and m.mean_interval([0.5]).estimate == 0.5
    assert np.isnan(m.mean_interval([])).all()
    # One experiment that comes twice counts twice in the mean and once in the spread.
    doubled = m.mean_interval([0.8, 0.8, 0.9, 0.7], groups=["a", "a", "b", "c"])
    half = stats.t.ppf(0.975, 2) * 0.1 * np.sqrt(0.5**2 + 2 * 0.25**2)
    assert doubled == pytest.approx((0.8, 0.8 - half, 0.8 + half))
    assert m.mean_interval([0.3, 0.4], groups=[1, 2]) == pytest.approx(m.mean_interval([0.3, 0.4]))
    assert np.isnan(m.mean_interval([0.3, 0.3], groups=[1, 1]).low)
    # Splits differ by .2, methods by .01: only the paired interval sees it.
    first, second = np.array([0.9, 0.7, 0.8]), np.array([0.89, 0.69, 0.79])
    assert m.paired_difference(first, second).low > 0 and m.mean_interval(first).low < second.mean()
    target, score = gaussian(300, 200, 1.0)
    interval = m.bootstrap_interval(m.auroc, target, score, repeats=300)
    assert interval.low < m.auroc(target, score) == interval.estimate < interval.high
    assert 0.02 < interval.high - interval.low < 0.15
    assert interval == m.bootstrap_interval(m.auroc, target, score, repeats=300)
    with pytest.raises(UserError, match="one length"):
        m.bootstrap_interval(m.auroc, target, score[:-1])
    with pytest.raises(UserError, match="between 0 and 1"):
        m.mean_interval([1.0, 2.0], level=95)


def test_golden_published_scores():
    file = GOLDEN / "crosr_published_scores.npz"
    if not file.exists():
        pytest.skip("the authors' scores may not be committed; they lie in ../shared/golden/crosr")
    with np.load(file) as stored:
        values, label, score = (
            stored["scores"].astype(float),
            stored["labels"].astype(int),
            stored["p_unknown_f64"],
        )
    found = evaluate(
        np.where(label == 10, -1, label), values[:, :10].argmax(axis=1), score, probabilities=values
    )
    expected = {
        "closed_accuracy": 0.8998,
        "auroc": 0.88341366,
        "aupr_unknown": 0.8106075795541086,
        "aupr_known": 0.9074770926807172,
        "fpr95_unknown_positive": 0.3348,
        "fpr95_known_positive": 0.6739,
        "macro_f1_argmax": 0.5820552137964294,
        "detection_accuracy": 0.5 * (1 + 0.8887 - 0.246),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def example():
    generator = np.random.default_rng(1)
    target = np.r_[generator.integers(0, 4, 600), np.full(300, -1)]
    split = np.r_[np.repeat([0, 1, 2], 200), np.zeros(300, dtype=int)]
    logits = generator.normal(size=(900, 4))
    logits[np.arange(600), target[:600]] += 3
    probabilities = np.c_[np.exp(logits), np.full(900, np.e**2)]
    return {
        "target": target,
        "prediction": logits.argmax(axis=1),
        "unknown_score": -logits.max(axis=1),
        "split": split,
        "logits": logits,
        "probabilities": probabilities / probabilities.sum(axis=1, keepdims=True),
    }


def test_evaluate_returns_every_metric_of_the_test_part():
    data = example()
    found = evaluate(**data)
    assert tuple(found) == METRICS
    assert all(type(value) is float and np.isfinite(value) for value in found.values())
    test = data["split"] == 0
    target, score = data["target"][test], data["unknown_score"][test]
    assert found["auroc"] == m.auroc(target, score)
    assert found["nll"] == m.nll(target, data["logits"][test])
    cut = m.threshold_accepting(data["unknown_score"][data["split"] == 1])
    decision = m.decide(data["prediction"][test], score, cut)
    assert found["macro_f1_validation"] == m.macro_f1(target, decision, 4)
    assert found["open_f_macro"] == m.open_f(target, decision, 4).macro
    assert found["macro_f1_oracle"] >= max(
        found[f"macro_f1_{k}"] for k in ("validation", "train", "test_quantile")
    )
    # The probabilities' known columns are the softmax of the logits, so they serve without them.
    without = evaluate(**{name: array for name, array in data.items() if name != "logits"})
    assert without["nll"] == pytest.approx(found["nll"]) and without["ece"] == pytest.approx(found["ece"])


def test_what_is_undefined_is_nan():
    data = example()
    only_known = evaluate(**{name: array[:600] for name, array in data.items()})
    defined = {name for name, value in only_known.items() if not np.isnan(value)}
    assert defined == {"closed_accuracy", "nll", "ece"}
    only_unknown = evaluate(**{name: array[600:] for name, array in data.items()})
    assert all(np.isnan(value) for value in only_unknown.values())
    bare = evaluate(data["target"], data["prediction"], data["unknown_score"])
    missing = {name for name, value in bare.items() if np.isnan(value)}
    expected = {"macro_f1_validation", "macro_f1_train", "macro_f1_argmax", "open_f_micro", "open_f_macro"}
    assert missing == {*expected, "nll", "ece"}
    one_class = evaluate([0, 0, -1], [0, 0, 0], [0.1, 0.2, 0.3])
    assert one_class["oscr"] == 1.0 and one_class["macro_f1_oracle"] == 1.0


def test_evaluate_file(tmp_path):
    data = example()
    source = np.r_[np.zeros(600, dtype=np.int16), np.repeat([2, 1], 150).astype(np.int16)]
    names = {
        "source": source,
        "sources": np.array(["digits", "noise", "letters"]),
        "class_names": list("abcd"),
    }
    np.savez(tmp_path / "scores.npz", **data, **names)
    found = evaluate_file(tmp_path / "scores.npz")
    assert list(found) == ["all", "noise", "letters"]
    assert found["all"] == evaluate(**data)
    kept = (data["target"] >= 0) | (source == 1)
    assert found["noise"] == evaluate(**{name: array[kept] for name, array in data.items()})
    np.savez(
        tmp_path / "half.npz", **{n: a.astype(np.float32) if a.dtype == float else a for n, a in data.items()}
    )
    half = evaluate_file(tmp_path / "half.npz")
    assert list(half) == ["all"] and half["all"] == pytest.approx(found["all"], abs=1e-5)
    with pytest.raises(UserError, match="no such file"):
        evaluate_file(tmp_path / "absent.npz")
    np.savez(tmp_path / "part.npz", target=data["target"])
    with pytest.raises(UserError, match="lacks prediction, unknown_score"):
        evaluate_file(tmp_path / "part.npz")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("unknown_score", np.nan, "unknown_score: 900 of 900 values are NaN or infinite"),
        ("unknown_score", np.inf, "values are NaN or infinite"),
        ("logits", np.nan, "logits: 900 of 900 rows hold NaN or infinity"),
        ("probabilities", 0.3, "sum to 1"),
        ("probabilities", -1.0, "sum to 1"),
        ("target", 4, r"target must lie in -1\.\.3"),
        ("target", -2, "target must lie in -1"),
        ("prediction", -1, "prediction must lie in 0"),
        ("prediction", 4, r"prediction must lie in -1\.\.3|prediction must lie in 0"),
        ("split", 3, r"split .* must lie in 0\.\.2"),
    ],
)
def test_bad_values_are_named(name, value, message):
    data = example()
    data[name] = np.full_like(data[name], value)
    with pytest.raises(UserError, match=message):
        evaluate(**data)


def test_bad_shapes_are_named():
    data = example()
    for name, wrong in (("prediction", data["prediction"][:-1]), ("unknown_score", data["logits"])):
        with pytest.raises(UserError, match=f"{name} must have shape"):
            evaluate(**{**data, name: wrong})
    with pytest.raises(UserError, match=r"logits must have shape \(900, 4\)"):
        evaluate(**{**data, "logits": data["logits"][:, :3]}, classes=4)
    with pytest.raises(UserError, match="number of classes"):
        evaluate([], [], [])
