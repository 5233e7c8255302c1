"""Metric loss, KL term, margin and latent Gaussians against the released program, brute force, and other libraries."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from common.devices import Devices
from common.errors import UserError
from vmdls.losses import (
    kl_closed,
    kl_sampled,
    kl_term,
    margin_at,
    metric_loss,
    pairwise_distances,
    sample,
)
from vmdls.main import parse_arguments
from vmdls.model import VMDLS, LatentGaussians
from vmdls.recipe import Trainer

METRIC_CASES = ["n24_d8", "n40_d16", "n24_separated_all_zero", "n24_partly_zero", "n20_unequal_with_singleton",
                "n12_one_class_no_triplet"]  # fmt: skip
STEP_CASES = ["k3", "k3_f64", "k4_missing_class"]


def near(found, expected, relative):
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=relative * max(np.abs(expected).max(), 1e-30))


def every_triplet(embeddings, labels, margin, triplet_margin=0.1, normalise=True):
    """Loss and number of active triplets as defined: all (a, p, n) listed."""
    distances = pairwise_distances(embeddings, normalise)
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool)
    anchor, near_one, far_one = (positive[:, :, None] & ~same[:, None]).nonzero(as_tuple=True)
    to_near, to_far = distances[anchor, near_one], distances[anchor, far_one]
    costs = (to_near - to_far + triplet_margin).relu() + (margin - to_far).relu()
    active = (costs > 0).sum()
    return costs.sum() / active.clamp(min=1), active


def with_gradient(function, embeddings, *arguments, **options):
    embeddings = embeddings.clone().requires_grad_()
    loss, active = function(embeddings, *arguments, **options)
    loss.backward()
    return loss.detach(), int(active), embeddings.grad


@pytest.mark.parametrize("name", METRIC_CASES)
@pytest.mark.parametrize("variant", ["normalised", "euclidean"])
def test_metric_loss_equals_the_released_program(golden, name, variant):
    case = golden(f"metric_loss/{name}")
    labels = torch.from_numpy(case["labels"])
    for prefix, kind, value, gradient in (("f64_", torch.float64, 1e-9, 1e-9), ("", torch.float32, 2e-5, 1e-4)):
        embeddings = torch.from_numpy(case["embeddings"]).to(kind)
        for number, margin in enumerate(case["margins"]):
            options = {"triplet_margin": case.config["triplet_margin"], "normalise": variant == "normalised"}
            loss, active, grad = with_gradient(metric_loss, embeddings, labels, float(margin), **options)
            near(loss, case[f"{prefix}{variant}_loss"][number], value)
            near(grad, case[f"{prefix}{variant}_grad"][number], gradient)
            assert (active == 0) == (case[f"{prefix}{variant}_loss"][number] == 0)
    # Not the diagonal: the release's matrix products leave up to 2e-8 there.
    found = pairwise_distances(torch.from_numpy(case["embeddings"]).double(), variant == "normalised")
    assert found.diagonal().eq(0).all()
    np.testing.assert_allclose(found, case[f"{variant}_distance_f64"] * (1 - np.eye(len(found))), atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_metric_loss_equals_all_triplets_listed(data):
    """Points of a small integer grid: duplicates, equal distances, and distances that meet a margin exactly."""
    count = data.draw(st.integers(1, 9))
    rows = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
    points = data.draw(st.lists(rows, min_size=count, max_size=count))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    margin = data.draw(st.sampled_from([0.0, 0.15, 1.0, 2.0, 2.15, 32.0]))
    options = {"triplet_margin": data.draw(st.sampled_from([0.0, 0.1, 1.0])), "normalise": data.draw(st.booleans())}
    embeddings = torch.tensor(points, dtype=torch.float64)
    expected = with_gradient(every_triplet, embeddings, labels, margin, **options)
    for block in (2, 64):
        loss, active, grad = with_gradient(metric_loss, embeddings, labels, margin, block=block, **options)
        assert active == expected[1]
        assert loss.item() == pytest.approx(expected[0].item(), rel=1e-12, abs=1e-12)
        np.testing.assert_allclose(grad, expected[2], atol=1e-12)


@pytest.mark.parametrize("normalise", [True, False])
def test_triplet_part_equals_pytorch_metric_learning(normalise):
    """At distancing margin 0 the loss is the library's triplet loss over all triplets, averaged over those above 0."""
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    from pytorch_metric_learning.losses import TripletMarginLoss

    torch.manual_seed(0)
    labels = torch.randint(0, 4, (40,))
    embeddings = torch.randn(40, 6, dtype=torch.float64)
    reference = TripletMarginLoss(margin=0.1, distance=distances.LpDistance(normalize_embeddings=normalise))
    theirs = embeddings.clone().requires_grad_()
    value = reference(theirs, labels)
    value.backward()
    loss, _, grad = with_gradient(metric_loss, embeddings, labels, 0.0, normalise=normalise)
    assert loss.item() == pytest.approx(value.item(), rel=1e-9)
    near(grad, theirs.grad, 1e-9)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_normalised_loss_ignores_the_radius(scale, seed):
    draws = torch.Generator().manual_seed(seed)
    embeddings, labels = torch.randn(18, 5, generator=draws, dtype=torch.float64), torch.arange(18) % 3
    loss, active = metric_loss(embeddings, labels, 1.15)
    again, active_again = metric_loss(embeddings * scale, labels, 1.15)
    assert loss.item() == pytest.approx(again.item(), rel=1e-9) and active == active_again


def test_beyond_every_distance_all_triplets_are_active():
    torch.manual_seed(1)
    embeddings, labels = torch.randn(30, 8, dtype=torch.float64), torch.arange(30) % 5
    distances, same = pairwise_distances(embeddings), labels[:, None] == labels
    mean_negative = distances[~same].mean()
    for margin in (2.15, 32.15):
        loss, active = metric_loss(embeddings, labels, margin)
        assert active == 30 * 5 * 24
        triplet, _ = metric_loss(embeddings, labels, 0.0)
        costing = every_triplet(embeddings, labels, 0.0)[1]
        mean_triplet = triplet * costing / active  # the same sum, over all triplets
        assert loss.item() == pytest.approx((mean_triplet + margin - mean_negative).item(), rel=1e-12)


def test_duplicates_have_finite_gradients_and_nan_is_passed_on():
    embeddings = torch.ones(6, 4)
    loss, active, grad = with_gradient(metric_loss, embeddings, torch.tensor([0, 0, 0, 1, 1, 1]), 0.15)
    assert loss.item() == pytest.approx(0.25) and active == 36 and torch.isfinite(grad).all()
    embeddings[0, 0] = math.nan
    assert metric_loss(embeddings, torch.tensor([0, 0, 0, 1, 1, 1]), 0.15).loss.isnan()


def test_more_triplets_than_float32_can_count_are_counted_exactly():
    labels = torch.arange(10).repeat_interleave(64)
    torch.manual_seed(0)
    assert metric_loss(torch.randn(640, 8), labels, 3.0).active.item() == 640 * 63 * 576 > 2**24


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"embeddings \(N, d\)"):
        metric_loss(torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), 0.1)


@pytest.mark.parametrize(
    "name", ["max32_jump1.0_start0", "max32_jump1.0_start10", "max64_jump1.0_start40", "resume_max32"]
)
def test_margins_equal_the_released_program(golden, name):
    case = golden(f"margin_schedule/{name}")
    config = case.config
    found = [margin_at(epoch, config["first_epoch"], config["jump"], config["max"], config["initial"])
             for epoch in range(len(case["margin_in_epoch"]))]  # fmt: skip
    np.testing.assert_allclose(found, case["margin_in_epoch"], rtol=1e-12)


def test_margin_ends_above_its_maximum():
    margins = [margin_at(epoch, 0, 1.0, 32.0) for epoch in range(40)]
    assert margins[0] == pytest.approx(1.15) and margins[-1] == pytest.approx(32.15)
    assert len({round(margin, 6) for margin in margins}) == 32
    assert margin_at(99, 0, 1.0, 64.0) == pytest.approx(64.15)
    assert margin_at(99, 0, 0.0, 32.0) == margin_at(5, 6, 1.0, 32.0) == pytest.approx(0.15)


@pytest.mark.parametrize("name", STEP_CASES)
def test_training_steps_equal_the_released_program(golden, name):
    """Heads, sampling, both losses and their gradients, class means, covariances, bounds and mid-training decisions."""
    case = golden(f"train_step/{name}")
    config, double = case.config, name.endswith("f64")
    value, gradient = (1e-9, 1e-9) if double else (2e-5, 1e-4)
    kind = torch.float64 if double else torch.float32

    def tensor(field):
        array = torch.from_numpy(case[field])
        return array.to(kind) if array.is_floating_point() else array

    initial = tensor("class_means_initial")
    classes, gaussians, means = len(initial), LatentGaussians(initial, config["lower_bound"]), initial
    for step in ("epoch0_batch0", "epoch0_batch1", "epoch1_batch0"):
        if step == "epoch1_batch0":
            for field, found in (("counts", gaussians.count), ("sum_z", gaussians.sum), ("sum_zz", gaussians.product)):
                near(found, case[f"epoch0_{field}"], value)
            means = gaussians.end_epoch().to(kind)
            near(means, case["epoch0_end_class_means"], value)
            near(gaussians.covariance, case["epoch0_end_class_cov"], 10 * value)
        near(means, case[f"{step}_class_means_used"], value)
        leaves = [tensor(field).requires_grad_() for field in (f"{step}_g", "mu_weight", "logvar_weight")]
        g, mean_weight, variance_weight = leaves
        labels = tensor(f"{step}_y")
        mean = g @ mean_weight.T + tensor("mu_bias")
        log_variance = g @ variance_weight.T + tensor("logvar_bias")
        z = sample(mean, log_variance, tensor(f"{step}_eps"))
        metric = metric_loss(z, labels, config["distancing_margin"], triplet_margin=config["triplet_margin"]).loss
        sampled = kl_sampled(z, mean, log_variance, means[labels], config["prior_std"])
        closed = kl_closed(mean, log_variance, means[labels], config["prior_std"])
        kl = config["kl_coeff"] * kl_term(sampled, labels, classes)
        loss = metric + kl
        loss.backward()
        gaussians.add(z, labels)
        with torch.no_grad():
            for field, found in (("mu", mean), ("logvar", log_variance), ("z", z), ("metric", metric), ("kl", kl),
                                 ("loss", loss), ("kl_mc_elementwise", sampled), ("kl_closed_elementwise", closed),
                                 ("kl_closed", config["kl_coeff"] * kl_term(closed, labels, classes))):  # fmt: skip
                near(found, case[f"{step}_{field}"], value)
        for field, leaf in zip(("g", "mu_weight", "logvar_weight"), leaves):
            near(leaf.grad, case[f"{step}_grad_{field}"], gradient)
    gaussians.end_epoch()
    near(gaussians.bound, case["epoch1_end_class_bounds"], 10 * value)
    np.testing.assert_array_equal(gaussians.decide(tensor("probe_mu"))[1], case["probe_class_with_rejection"])


def test_closed_form_is_zero_at_the_prior_and_what_samples_average_to():
    torch.manual_seed(0)
    mean, prior = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    at_prior = torch.full_like(mean, 2 * math.log(0.1))
    assert kl_closed(mean, at_prior, mean).abs().max() < 1e-12
    log_variance = torch.tensor([[-4.0, -5.0, -3.0]], dtype=torch.float64)
    z = sample(mean, log_variance, torch.randn(400_000, 3, dtype=torch.float64))
    estimate = kl_sampled(z, mean, log_variance, prior).mean(0)
    np.testing.assert_allclose(estimate, kl_closed(mean, log_variance, prior)[0], rtol=0.01)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    reference = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(prior, 0.1))
    np.testing.assert_allclose(kl_closed(mean, log_variance, prior), reference, rtol=1e-12)


def test_kl_weighs_classes_equally():
    divergence = torch.tensor([[1.0, 3.0], [5.0, 7.0], [10.0, 10.0]])
    assert kl_term(divergence, torch.tensor([0, 0, 2]), 4).item() == pytest.approx((4 + 10) / 2)


def test_latent_gaussians_keep_a_class_that_is_absent():
    torch.manual_seed(0)
    gaussians = LatentGaussians(torch.full((3, 2), 7.0))
    gaussians.add(torch.randn(50, 2), torch.arange(50) % 2)
    means = gaussians.end_epoch().clone()
    assert torch.equal(means[2], torch.tensor([7.0, 7.0], dtype=torch.float64)) and means[:2].abs().max() < 1
    gaussians.add(torch.randn(20, 2) + 3, torch.full((20,), 2))
    assert torch.equal(gaussians.end_epoch()[:2], means[:2]) and gaussians.mean[2].mean() < 4


def test_latent_likelihoods_equal_scipy_and_state_comes_back():
    torch.manual_seed(0)
    gaussians, labels = LatentGaussians(torch.zeros(3, 4), 0.2), torch.arange(90) % 3
    gaussians.add(torch.randn(90, 4) * torch.tensor([1.0, 0.1, 2.0, 1.0]), labels)
    gaussians.end_epoch()
    gaussians.add(torch.randn(90, 4), labels)
    other = LatentGaussians(torch.zeros(3, 4), 0.2)
    other.load_state_dict(gaussians.state_dict())
    points = torch.randn(10, 4)
    expected = [multivariate_normal(gaussians.mean[c], gaussians.covariance[c]).logpdf(points) for c in range(3)]
    np.testing.assert_allclose(gaussians.log_likelihood(points), np.stack(expected, 1), rtol=1e-9)
    for trained in (gaussians, other):
        trained.add(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3)
        trained.end_epoch()
    assert torch.equal(gaussians.bound, other.bound) and torch.equal(gaussians.covariance, other.covariance)


def test_latent_means_beyond_every_bound_are_rejected():
    torch.manual_seed(0)
    gaussians, labels = LatentGaussians(torch.zeros(3, 4)), torch.arange(300) % 3
    for _ in range(2):
        gaussians.add(torch.randn(300, 4) + 20 * labels[:, None], labels)
        gaussians.end_epoch()
    best, accepted = gaussians.decide(torch.tensor([[0.0] * 4, [20.0] * 4, [40.0] * 4, [28.0] * 4]))
    assert best.tolist() == [0, 1, 2, 1] and accepted.tolist() == [0, 1, 2, 3]


def test_few_samples_give_no_singular_gaussian():
    gaussians = LatentGaussians(torch.zeros(2, 8))
    gaussians.add(torch.randn(4, 8), torch.tensor([0, 0, 1, 1]))
    gaussians.end_epoch()
    assert torch.isfinite(gaussians.log_likelihood(torch.randn(3, 8))).all()


def test_every_batch_and_epoch_has_its_own_noise():
    args = parse_arguments(["--preset", "digits"])
    trainer = Trainer(VMDLS("small", 2, (1, 8, 8), [0.5], [0.5]), args, Devices(args))
    inputs = (torch.zeros(4, 32), torch.zeros(4, 32), torch.tensor([0, 0, 1, 1]))

    def noise(epoch, number):
        trainer.begin(epoch)
        before = trainer.gaussians.sum.clone()
        trainer.losses(*inputs, number)
        return trainer.gaussians.sum - before

    first = noise(0, 0)
    torch.testing.assert_close(noise(0, 0), first)
    assert not torch.allclose(noise(0, 1), first) and not torch.allclose(noise(1, 0), first)


def test_embeddings_that_are_nan_stop_the_training_in_one_line():
    args = parse_arguments(["--preset", "digits"])
    trainer = Trainer(VMDLS("small", 2, (1, 8, 8), [0.5], [0.5]), args, Devices(args))
    trainer.begin(0)
    mean = torch.full((4, 32), math.nan)
    with pytest.raises(UserError, match=r"nan in batch 1 of epoch 1.*lower --lr") as raised:
        trainer.losses(mean, torch.zeros(4, 32), torch.tensor([0, 0, 1, 1]), 0)
    assert "\n" not in str(raised.value) and trainer.gaussians.count.sum() == 0
