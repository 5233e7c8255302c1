"""Gaussians, statistics, weights and released metrics against golden numbers, SciPy, and their own definitions."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_gaussians import fitted, made
from scipy.stats import multivariate_normal

from common.metrics import auroc, closed_accuracy, decide, fpr95_known_positive, macro_f1, oscr, threshold_accepting
from vmdls import scores
from vmdls.scores import ClassMoments, Gaussians, cauroc, known_score, pack, threshold_table, unpack

CASES = [
    ("scoring/full_rank", "correct"),
    ("scoring/full_rank", "overwrite"),
    ("scoring/rank_deficient_mu_from_g", "correct"),
]
F32 = 2e-5


def ensembles(case):
    """Training and test features in float64; in the rank-deficient case the mean vector is computed from g."""
    parts = [torch.from_numpy(case[name]).double() for name in ("train_t", "test_t")]
    if "rank_deficient" in case.name:
        weight, bias = (torch.from_numpy(case[f"mu_{name}"]).double() for name in ("weight", "bias"))
        parts = [torch.cat((part[:, :10], part[:, 7:10] @ weight.T + bias), 1) for part in parts]
    return parts


def moments_of(case, kind):
    features, labels = ensembles(case)[0], torch.from_numpy(case["train_y"])
    moments = ClassMoments(3, 12, released=kind == "overwrite")
    if kind == "correct":
        moments.add(features, labels)
        return moments.finish()
    members = [(labels == label).nonzero().flatten() for label in range(3)]
    for half in (slice(0, 30), slice(30, 60)):
        for rows in members:
            moments.add(features[rows[half]], labels[rows[half]])
    return moments.finish()


def assert_close(found, expected, relative):
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_released_program_statistics_and_scores(golden, name, kind):
    case = golden(name)
    mean, covariance = moments_of(case, kind)
    assert_close(mean, case[f"f64_{kind}_class_means"], 1e-12)
    assert_close(covariance, case[f"f64_{kind}_covariances_without_jitter"], 1e-12)
    gaussians = Gaussians(mean, pack(covariance))
    assert gaussians.steps == case[f"f64_{kind}_jitter_steps"]
    found = gaussians.log_likelihood(ensembles(case)[1]).numpy()
    assert_close(found, case[f"f64_{kind}_loglik"], 1e-9)
    error = scores.reconstruction_error(case["test_t1_residual"], np.zeros_like(case["test_t1_residual"]))
    weight = error / error.max()
    assert_close(weight, case[f"f64_{kind}_w"], 1e-9)
    for score, used in (("weighted", weight), ("unweighted", None)):
        assert_close(known_score(found, found.max(), used), case[f"f64_{kind}_{score}_S"], 1e-9)
        np.testing.assert_array_equal(found.argmax(1), case[f"f64_{kind}_{score}_pred"])


@pytest.mark.parametrize("kind", ["correct", "overwrite"])
def test_float32_run_of_the_released_program_is_near(golden, kind):
    case = golden("scoring/full_rank")
    mean, covariance = moments_of(case, kind)
    found = Gaussians(mean, pack(covariance)).log_likelihood(torch.from_numpy(case["test_t"])).numpy()
    assert_close(found, case[f"{kind}_loglik"], F32)
    np.testing.assert_array_equal(found.argmax(1), case[f"{kind}_unweighted_pred"])


@pytest.mark.parametrize("score", ["weighted", "unweighted"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_released_metrics_of_the_released_scores(golden, name, kind, score):
    case = golden(name)
    target, prediction = np.where(case["test_y"] == 3, -1, case["test_y"]), case[f"{kind}_{score}_pred"]
    unknown_score = -case[f"{kind}_{score}_S"].astype(np.float64)
    assert auroc(target, unknown_score) == pytest.approx(case[f"{kind}_{score}_auroc_swept"], abs=1e-12)
    assert fpr95_known_positive(target, unknown_score) == pytest.approx(case[f"{kind}_{score}_fpr_at_tpr95"], abs=1e-12)
    assert cauroc(target, prediction, unknown_score) == pytest.approx(case[f"{kind}_{score}_cauroc"], abs=1e-12)
    assert closed_accuracy(target, prediction) == pytest.approx(case[f"{kind}_{score}_acc_known"], abs=1e-12)
    known = unknown_score[target >= 0]
    reached = np.mean(known < threshold_accepting(known))
    assert reached == pytest.approx(case[f"{kind}_{score}_tpr_reached"], abs=1e-12)
    expected = case[f"{kind}_{score}_f1_table"]
    # Accepted there where S >= tau, here where -S is below the threshold.
    cuts = np.nextafter(-expected[:, 0].astype(np.float64), np.inf)
    found = threshold_table(target, prediction, unknown_score, cuts, 3)
    np.testing.assert_allclose(found, expected[:, 1:], atol=1e-7)
    assert found[:, 0].max() == pytest.approx(case[f"{kind}_{score}_best_f1"], abs=1e-12)
    assert expected[found[:, 0].argmax(), 0] == case[f"{kind}_{score}_best_f1_threshold"]


@settings(deadline=None, max_examples=60)
@given(
    cuts=st.lists(st.integers(0, 90), max_size=8),
    offset=st.sampled_from([0.0, -40.0, 1e5]),
    seed=st.integers(0, 2**31 - 1),
)
def test_moments_of_any_batches_are_those_of_one_pass(cuts, offset, seed):
    random = np.random.default_rng(seed)
    features = random.normal(size=(90, 4)) * [1, 1e-2, 5, 1] + offset
    labels = random.choice(4, 90, p=[0.5, 0.3, 0.19, 0.01])
    moments = ClassMoments(4, 4)
    edges = [0, *sorted(cuts), 90]
    for start, stop in pairwise(edges):
        if stop > start:
            moments.add(torch.from_numpy(features[start:stop]), torch.from_numpy(labels[start:stop]))
    mean, covariance = (part.numpy() for part in moments.finish())
    for label in range(4):
        own = features[labels == label]
        assert moments.count[label] == len(own)
        if len(own):
            np.testing.assert_allclose(mean[label], own.mean(0), rtol=1e-13, atol=1e-13)
            expected = np.cov(own.T, bias=True) if len(own) > 1 else np.zeros((4, 4))
            np.testing.assert_allclose(covariance[label], expected, rtol=1e-9, atol=1e-15 * offset**2 + 1e-13)
        else:
            assert not mean[label].any() and not covariance[label].any()


def test_released_statistics_keep_the_last_batch_over_the_count_of_all():
    features, labels = made(90)
    moments = ClassMoments(3, 5, released=True)
    first, second = slice(0, 30), slice(30, 90)
    for part in (first, second):
        moments.add(features[part], labels[part])
    mean, covariance = moments.finish()
    for label in range(3):
        last, count = features[second][labels[second] == label], int((labels == label).sum())
        expected = last.sum(0) / count
        np.testing.assert_allclose(mean[label], expected, rtol=1e-12)
        second_moment = last.T @ last / count
        np.testing.assert_allclose(
            covariance[label], second_moment - torch.outer(expected, expected), rtol=1e-9, atol=1e-12
        )


def test_log_likelihood_is_scipys():
    features, labels = made()
    gaussians = fitted(features, labels)
    found = gaussians.log_likelihood(features)
    matrices = unpack(gaussians.covariance, 5) + gaussians.steps * 1e-6 * torch.eye(5)
    for label in range(3):
        expected = multivariate_normal(gaussians.mean[label].numpy(), matrices[label].numpy()).logpdf(features.numpy())
        np.testing.assert_allclose(found[:, label], expected, rtol=1e-10)
        np.testing.assert_allclose(gaussians.log_likelihood(features, label)[:, 0], expected, rtol=1e-10)


def test_blocks_change_nothing(monkeypatch):
    features, labels = made(classes=7)
    whole = fitted(features, labels)
    expected = whole.log_likelihood(features)
    monkeypatch.setattr(scores, "BLOCK_BYTES", 1)
    blocked = Gaussians(whole.mean, whole.covariance)
    assert blocked.block == 1 and blocked.steps == whole.steps
    torch.testing.assert_close(blocked.log_likelihood(features, batch=13), expected, rtol=1e-12, atol=0)


def test_pack_keeps_one_triangle():
    matrices = torch.randn(3, 4, 4, dtype=torch.float64)
    matrices = matrices + matrices.mT
    assert pack(matrices).shape == (3, 10)
    torch.testing.assert_close(unpack(pack(matrices), 4), matrices, rtol=0, atol=0)


@pytest.mark.parametrize("negative", [0.0, 0.4e-6, 1.7e-6, 36.5e-6, 1e-3])
def test_jitter_is_the_fewest_steps_that_serve_every_class_and_two_more(negative):
    """A smallest eigenvalue of -a needs the first multiple of 1e-6 beyond a."""
    matrices = torch.diag_embed(torch.tensor([[1.0, 2.0, 3.0], [1.0, -negative, 2.0]], dtype=torch.float64))
    needed = int(negative / 1e-6) + 1
    assert Gaussians(torch.zeros(2, 3, dtype=torch.float64), pack(matrices)).steps == needed + 2


def test_shrinkage_mixes_in_the_mean_variance():
    features, labels = made()
    plain = fitted(features, labels)
    matrices = unpack(plain.covariance, 5)
    middle = matrices.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(5)
    expected = Gaussians(plain.mean, pack(0.7 * matrices + 0.3 * middle)).log_likelihood(features)
    shrunk = Gaussians(plain.mean, plain.covariance, shrinkage=0.3).log_likelihood(features)
    torch.testing.assert_close(shrunk, expected, rtol=1e-10, atol=0)
    assert (shrunk - plain.log_likelihood(features)).abs().max() > 0.1


def test_marginal_is_the_gaussian_of_those_columns():
    features, labels = made()
    columns = torch.tensor([0, 2, 3])
    found = fitted(features, labels).marginal(columns).log_likelihood(features[:, columns])
    torch.testing.assert_close(found, fitted(features[:, columns], labels).log_likelihood(features[:, columns]))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31 - 1), factor=st.floats(1e-3, 1e3))
def test_weights(seed, factor):
    random = np.random.default_rng(seed)
    log_likelihood = random.normal(size=(30, 4)) * 100
    best, highest = log_likelihood.max(1), log_likelihood.max()
    assert known_score(log_likelihood, highest).argsort().tolist() == best.argsort().tolist()
    ones = known_score(log_likelihood, highest, np.ones(30))
    np.testing.assert_allclose(ones, known_score(log_likelihood, highest), rtol=1e-12)
    weight = random.random(30)
    scaled = known_score(log_likelihood, highest, factor * weight)
    np.testing.assert_allclose(scaled, factor * known_score(log_likelihood, highest, weight), rtol=1e-12)
    # Constants of other images: a larger reconstruction error still never makes an image more known.
    low = known_score(log_likelihood, np.median(best), weight)
    assert (known_score(log_likelihood, np.median(best), 2 * weight) <= low).all()


def drawn(draw_unknown, seed, ties):
    random = np.random.default_rng(seed)
    size = 40
    target, prediction = random.integers(0, 3, size), random.integers(0, 3, size)
    target[random.random(size) < draw_unknown] = -1
    score = random.integers(0, 8, size).astype(float) if ties else random.permutation(size) - 20.0
    return target, prediction, score


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**31 - 1), ties=st.booleans())
def test_cauroc_is_the_released_sum_over_thresholds(seed, ties):
    target, prediction, unknown_score = drawn(0.5, seed, ties)
    right, unknown = (target >= 0) & (prediction == target), target < 0
    if not right.any() or not unknown.any():
        assert np.isnan(cauroc(target, prediction, unknown_score))
        return
    known_score = -unknown_score
    area, fpr = 0.0, 1.0
    for cut in np.unique(known_score):  # ascending
        rate, own = np.mean(known_score[unknown] >= cut), np.mean(known_score[right] >= cut)
        area, fpr = area + (fpr - rate) * own, rate
    area += fpr * own
    assert cauroc(target, prediction, unknown_score) == pytest.approx(area, abs=1e-12)
    if not ties:
        same = oscr(target, prediction, unknown_score) / closed_accuracy(target, prediction)
        last = unknown[unknown_score.argmin()]  # no known image is as known as a most known unknown one
        assert cauroc(target, prediction, unknown_score) == pytest.approx(same, abs=1e-12) or last


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 2**31 - 1), ties=st.booleans(), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_threshold_table_is_the_direct_count(seed, ties, share):
    target, prediction, unknown_score = drawn(share, seed, ties)
    cuts = np.random.default_rng(seed).permutation(np.r_[unknown_score[:7], -np.inf, np.inf, 0.5])
    table = threshold_table(target, prediction, unknown_score, cuts, 3)
    if (target < 0).all() or (target >= 0).all():
        assert np.isnan(table).all()
        return
    for cut, row in zip(cuts, table):
        decision = decide(prediction, unknown_score, cut)
        expected = (
            macro_f1(target, decision, 3),
            np.mean((decision == target)[target >= 0]),
            np.mean(decision[target < 0] < 0),
        )
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12)
