"""Scores from logits: hand values, other libraries, saturation, bad input."""

import doctest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats

import common.scores
from common.errors import UserError
from common.metrics import aupr_known, aupr_unknown, auroc, fpr95_known_positive, fpr95_unknown_positive
from common.scores import SCORES, energy, entropy, margin, mls, msp

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "crosr"
LOGITS = arrays(np.float64, (5, 4), elements=st.floats(-30, 30, width=32))
unhurried = settings(deadline=None)  # the machine may be shared


def test_examples_in_docstrings():
    assert doctest.testmod(common.scores).failed == 0


def test_hand_values():
    logits = np.log([[0.7, 0.2, 0.1]])
    assert 1 - np.exp(-msp(logits)) == pytest.approx([0.3])
    assert mls(logits) == pytest.approx([-np.log(0.7)])
    assert energy(logits) == pytest.approx([0.0], abs=1e-15)
    assert energy(logits, temperature=2.0) == pytest.approx([-2 * np.log(np.sqrt([0.7, 0.2, 0.1]).sum())])
    assert entropy(logits) == pytest.approx([-(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1))])
    assert margin(logits) == pytest.approx([-np.log(3.5)])


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_float64_and_one_per_sample(name):
    result = SCORES[name](np.zeros((3, 4), dtype=np.float32))
    assert result.shape == (3,) and result.dtype == np.float64


@pytest.mark.parametrize("name", ["msp", "entropy"])
def test_a_saturated_network_makes_no_ties(name):
    gaps = np.arange(5.0, 700.0, 5.0)
    logits = np.stack([gaps, np.zeros_like(gaps), -gaps], axis=1).astype(np.float32)
    assert np.all(np.diff(SCORES[name](logits)) < 0)  # a larger gap is always less unknown


@pytest.mark.parametrize("name", SCORES)
def test_confident_samples_are_less_unknown(name):
    sure, unsure = SCORES[name]([[9.0, 0.0, 0.0], [0.4, 0.0, 0.0]])
    assert sure < unsure


@unhurried
@given(LOGITS, st.floats(-20, 20), st.permutations(range(4)))
def test_shift_and_class_order(logits, shift, order):
    for name, score in SCORES.items():
        assert score(logits[:, order]) == pytest.approx(score(logits), abs=1e-9)
        expected = score(logits) - (shift if name in ("mls", "energy") else 0.0)
        assert score(logits + shift) == pytest.approx(expected, abs=1e-9)


@unhurried
@given(LOGITS)
def test_ranges(logits):
    assert np.all((msp(logits) >= 0) & (msp(logits) <= np.log(4) + 1e-12))
    assert np.all((entropy(logits) >= 0) & (entropy(logits) <= np.log(4) + 1e-12))
    assert np.all(margin(logits) <= 0)
    assert np.all(energy(logits) <= mls(logits))


def test_equal_to_pytorch_ood():
    torch = pytest.importorskip("torch")
    detector = pytest.importorskip("pytorch_ood.detector")
    logits = np.random.default_rng(0).normal(scale=4, size=(500, 7))
    tensor = torch.tensor(logits)
    assert energy(logits) == pytest.approx(detector.EnergyBased.score(tensor).numpy(), abs=1e-12)
    assert mls(logits) == pytest.approx(detector.MaxLogit.score(tensor).numpy(), abs=1e-12)
    # pytorch-ood bounds probabilities away from 0 before the logarithm: up to 3e-6 of its entropy is lost.
    assert entropy(logits) == pytest.approx(detector.Entropy.score(tensor).numpy(), abs=5e-6)
    probabilities = special.softmax(logits, axis=1)
    assert entropy(logits) == pytest.approx(stats.entropy(probabilities, axis=1), abs=1e-12)
    # pytorch-ood gives -max p; ours is -log max p.
    assert -np.exp(-msp(logits)) == pytest.approx(detector.MaxSoftmax.score(tensor).numpy(), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("msp", (0.86704059, 0.82164459, 0.89730695, 0.3516, 0.7219)),
        ("mls", (0.91391973, 0.88725587, 0.92954377, 0.2813, 0.5244)),
        ("energy", (0.91606058, 0.89049754, 0.93076349, 0.2811, 0.5071)),
        ("entropy", (0.8768262, 0.84380061, 0.90200712, 0.3478, 0.6317)),
    ],
)
def test_golden_cifar10_against_tinyimagenet(name, expected):
    file = GOLDEN / "crosr_logits.npz"
    if not file.exists():
        pytest.skip("the authors' logits may not be committed; they lie in ../shared/golden/crosr")
    with np.load(file) as stored:
        logits = np.concatenate([stored["test_logits"], stored["outlier_logits"]])
        target = np.concatenate(
            [stored["test_labels"].astype(int), np.full(len(stored["outlier_logits"]), -1)]
        )
    score = SCORES[name](logits)
    metrics = (auroc, aupr_unknown, aupr_known, fpr95_unknown_positive, fpr95_known_positive)
    assert [metric(target, score) for metric in metrics] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", SCORES)
def test_logits_that_are_not_finite_are_refused(name, bad):
    with pytest.raises(UserError, match=r"1 of 2 rows hold NaN or infinity \(first: row 1\)"):
        SCORES[name]([[0.0, 1.0], [bad, 0.0]])


def test_other_bad_input():
    with pytest.raises(UserError, match="shape"):
        msp([1.0, 2.0])
    with pytest.raises(UserError, match="at least 2 classes"):
        margin([[1.0]])
    with pytest.raises(UserError, match="temperature"):
        energy([[1.0, 2.0]], temperature=0.0)


def test_one_class_and_no_samples():
    assert msp([[3.0]]).tolist() == [0.0] and entropy([[3.0]]).tolist() == [0.0]
    assert all(len(score(np.empty((0, 3)))) == 0 for score in SCORES.values())
