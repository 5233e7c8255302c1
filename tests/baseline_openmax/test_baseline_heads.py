"""Scores of the heads: pytorch-ood's values where the definitions coincide, definitions by hand where they do not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pytorch_ood.detector import GEN, ODIN, EnergyBased, KLMatching, MaxLogit, MaxSoftmax, OpenMax
from pytorch_ood.detector import Entropy as EntropyDetector

import common.openmax
from baseline_openmax import scores
from baseline_openmax.odin import odin_logits, perturbed
from common.errors import UserError
from common.scores import energy, entropy, mls, msp

LOGITS = arrays(np.float64, (6, 5), elements=st.floats(-25, 25, width=32))
unhurried = settings(deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def logits():
    return torch.from_numpy(np.random.RandomState(0).normal(size=(300, 6)) * 3)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda z: np.exp(-msp(z)) * -1, MaxSoftmax.score),
        (mls, MaxLogit.score),
        (energy, EnergyBased.score),
        (entropy, lambda z: EntropyDetector(None).predict_logits(z)),
        (scores.gen, lambda z: GEN.score(z, gamma=0.1)),
        (lambda z: scores.gen(z, 0.5, top=3), lambda z: GEN.score(z, gamma=0.5, M=3)),
    ],
    ids=["msp", "mls", "energy", "entropy", "gen", "gen-top3"],
)
def test_static_scores_equal_pytorch_ood(logits, ours, theirs):
    np.testing.assert_allclose(ours(logits.numpy()), theirs(logits).numpy(), atol=1e-6, rtol=0)


def test_kl_matching_equals_pytorch_ood(logits):
    theirs = KLMatching(None).fit_logits(logits[:200])
    ours = scores.KLMatching().fit(logits[:200].numpy())
    found, reference = ours.score(logits[200:].numpy()), theirs.predict_logits(logits[200:]).numpy()
    np.testing.assert_allclose(found, reference, atol=1e-6, rtol=0)


def test_openmax_equals_pytorch_ood_on_the_same_tails():
    """All samples, Euclidean distance, translation 10000, and the tails as SciPy fitted them."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 200)
    z = 8 * np.eye(4)[labels] + generator.normal(size=(800, 4))
    query = generator.normal(size=(200, 4)) * 5
    theirs = OpenMax(None, tailsize=25, alpha=4, euclid_weight=1.0).fit_logits(torch.tensor(z), torch.tensor(labels))
    reference = theirs.predict_logits(torch.tensor(query)).numpy()
    ours = common.openmax.OpenMax(25, 4, "euclidean", correct_only=False, translation=10_000).fit(z, labels)
    fitted = [theirs._openmax.distributions[c] for c in range(4)]
    tails = {"scale": [f.scale for f in fitted], "shape": [f.c for f in fitted], "small": [f.min_val for f in fitted]}
    same = common.openmax.OpenMax.from_state({"means": ours.means, **tails}, ours.settings)
    np.testing.assert_allclose(same.unknown_probability(query), reference, atol=1e-6, rtol=0)
    np.testing.assert_allclose(ours.unknown_probability(query), reference, atol=1e-4, rtol=0)


def linear_network(seed=0):
    torch.manual_seed(seed)
    layers = torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)
    return torch.nn.Sequential(*layers).double()


@pytest.mark.parametrize("std", [None, [0.2, 0.3, 0.5]])
def test_odin_equals_pytorch_ood(std):
    model, images = linear_network(), torch.randn(40, 3, 4, 4, dtype=torch.float64)
    for temperature, step in ((1000.0, 0.0014), (10.0, 0.05)):
        theirs = ODIN(model, eps=step, temperature=temperature, norm_std=std).predict(images)
        u = msp(odin_logits(model, images, temperature, step, std).double().numpy())
        np.testing.assert_allclose(-np.exp(-u), theirs.detach().numpy(), atol=1e-6, rtol=0)


def test_odin_makes_the_network_surer_and_leaves_no_gradient():
    model, images = linear_network(), torch.randn(40, 3, 4, 4, dtype=torch.float64)
    moved = perturbed(model, images, 1.0, 0.01)
    before, after = (model(x).softmax(1).max(1).values for x in (images, moved))
    assert (after > before).double().mean() > 0.95
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close((moved - images).abs().amax(), torch.tensor(0.01, dtype=torch.float64))
    torch.testing.assert_close(perturbed(model, images, 1.0, 0.0), images)


@unhurried
@given(LOGITS)
def test_gen_and_kplus1_do_not_depend_on_the_order_of_classes_or_a_shift(z):
    order = np.random.RandomState(0).permutation(z.shape[1])
    np.testing.assert_allclose(scores.gen(z[:, order] + 3), scores.gen(z), atol=1e-9)
    d = z[:, 0] - 1
    np.testing.assert_allclose(scores.kplus1(z[:, order] + 3, d + 3), scores.kplus1(z, d), atol=1e-9)


def test_gen_by_hand_and_without_ties_where_it_saturates():
    p = np.array([0.7, 0.2, 0.1])
    assert scores.gen(np.log(p)[None])[0] == pytest.approx((p**0.1 * (1 - p) ** 0.1).mean())
    gaps = np.arange(5.0, 300.0, 5.0)
    sure = scores.gen(np.stack([gaps, np.zeros_like(gaps), np.zeros_like(gaps)], 1))
    assert (np.diff(sure) < 0).all()


def test_kl_is_zero_at_a_class_mean_and_finite_far_from_all():
    model = scores.KLMatching().fit(np.log([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]))
    assert model.score(np.log([[0.8, 0.1, 0.1]]))[0] == pytest.approx(0, abs=1e-12)
    by_hand = np.sum(np.array([0.4, 0.4, 0.2]) * np.log(np.array([0.4, 0.4, 0.2]) / np.array([0.8, 0.1, 0.1])))
    assert model.score(np.log([[0.4, 0.4, 0.2]]))[0] == pytest.approx(by_hand)
    assert np.isfinite(scores.KLMatching().fit([[2000.0, 0, 0]]).score([[0, 2000.0, 0]])).all()
    with pytest.raises(UserError, match="held-out known images"):
        scores.KLMatching().fit(np.empty((0, 3)))


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_simple_openmax_is_the_distance_to_the_nearest_mean_of_correct_images(distance):
    generator = np.random.RandomState(0)
    features, labels = generator.normal(size=(90, 7)), np.arange(90) % 3
    logits = np.eye(3)[labels]
    logits[:6] = np.roll(logits[:6], 1, axis=1)  # six images are classified wrongly and must not count
    model = scores.MeanActivation(distance).fit(features, labels, logits)
    means = np.stack([features[6:][labels[6:] == c].mean(0) for c in range(3)])
    np.testing.assert_allclose(model.means, means)
    query = generator.normal(size=(20, 7))
    if distance == "euclidean":
        expected = np.linalg.norm(query[:, None] - means, axis=2).min(1)
    else:
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, means)]
        expected = 1 - (unit[0] @ unit[1].T).max(1)
    np.testing.assert_allclose(model.score(query), expected, atol=1e-12)
    with pytest.raises(UserError, match="class b is classified correctly"):
        scores.MeanActivation().fit(features, labels, np.roll(np.eye(3)[labels], 1, 1) * (labels == 1)[:, None]
                                    + np.eye(3)[labels] * (labels != 1)[:, None], ["a", "b", "c"])  # fmt: skip


def test_kplus1_score_is_the_log_odds_of_its_probability():
    z, d = np.array([[1.0, 0.0], [60.0, 0.0], [61.0, 0.0]]), np.array([0.5, 0.0, 0.0])
    u, p = scores.kplus1(z, d), scores.kplus1_probabilities(z, d)
    np.testing.assert_allclose(1 / (1 + np.exp(-u)), p[:, -1])
    np.testing.assert_allclose(p.sum(1), 1)
    assert u[1] > u[2]  # where p itself rounds to 0 there is still an order


def test_dummy_bias_keeps_95_percent_of_the_held_out_known_images():
    generator = np.random.RandomState(0)
    z, d = generator.normal(size=(400, 5)), generator.normal(size=400)
    p = scores.kplus1_probabilities(z, d, scores.dummy_bias(z, d))
    assert (p.argmax(1) < 5).mean() == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("gamma", [0, 1.5])
def test_gen_refuses_other_exponents(gamma):
    with pytest.raises(UserError, match=r"gamma must lie in \(0, 1\]"):
        scores.gen([[1.0, 0.0]], gamma)
