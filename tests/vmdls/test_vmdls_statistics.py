"""Statistics of the training images: released visits, redundant columns, layers, what is stored, and bad input."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_gaussians import fitted, made

from common.errors import UserError
from vmdls import scoring
from vmdls.model import VMDLS
from vmdls.scores import Gaussians, unpack

SIZES = {"cifar10": [5000] * 10, "cifar100": [500] * 100,
         "mnist": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["cifar100_10x450", "cifar10_1x2500", "cifar10_1x4996", "cifar10_2x2500", "mnist_1x4996"]
)
def test_released_visits_are_those_of_the_released_loader(golden, name):
    case = golden(f"sampler/stats_{name}")
    config = case.config
    sizes = SIZES[config["dataset"]]
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    visits = scoring.released_visits(labels, config["batch_classes"], config["sample_count"])
    counts = np.stack([np.bincount(labels[visit], minlength=len(sizes)) for visit in visits])
    np.testing.assert_array_equal(counts, case["samples_of_class_in_batch"])
    np.testing.assert_array_equal((counts > 0).sum(0), case["visits_per_class"])
    distinct = np.bincount(labels[np.unique(np.concatenate(visits))], minlength=len(sizes))
    once = case["visits_per_class"] == 1
    np.testing.assert_array_equal(distinct[once], case["distinct_samples_per_class"][once])
    # Where a list is shuffled anew the number depends on the shuffle; its expectation does not.
    np.testing.assert_allclose(distinct[~once], case["distinct_samples_per_class"][~once], rtol=0.02)


DIMENSIONS = {"t1": 2, "t2": 2, "t3": 5, "g": 5, "mean": 3}


def redundant_ensemble(seed=0):
    """[t1, t2, t3, t3 again, an affine function of it] of training and test images; classes of the former."""
    base, labels = made(400, 9, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    ensemble = torch.cat((base, base[:, 4:], base[:, 4:] @ weight + 1), 1)
    return ensemble[:300], ensemble[300:], labels[:300]


@pytest.mark.parametrize("seed", range(3))
def test_redundant_columns_leave_the_ranking_as_it_is(seed):
    train, test, labels = redundant_ensemble(seed)
    column = scoring.columns_modelled(train, DIMENSIONS, keep_redundant=False)
    assert column.tolist() == [*range(9), 4, 5, 6, 7, 8, -1, -1, -1]
    kept = scoring.columns_of(column)
    assert kept.tolist() == list(range(9))
    whole, reduced = fitted(train, labels), fitted(train[:, kept], labels)
    assert whole.steps > reduced.steps  # one is singular but for the jitter
    full, small = whole.log_likelihood(test), reduced.log_likelihood(test[:, kept])
    torch.testing.assert_close(full.argmax(1), small.argmax(1), rtol=0, atol=0)
    # All scores move by one constant, to the order of the jitter; only images closer than that can change places.
    full, small = full.max(1)[0], small.max(1)[0]
    constant = (full - small).mean()
    moved = (full - small - constant).abs().max()
    assert moved < 1e-4 < 10 < constant.abs()
    gaps = small[:, None] - small
    apart = gaps.abs() > 2 * moved
    assert apart.double().mean() > 0.98
    assert ((full[:, None] - full) * gaps)[apart].min() > 0
    assert scoring.columns_modelled(train, DIMENSIONS, keep_redundant=True).tolist() == list(range(17))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("backbone", "size", "repeated"), [("densenet", 32, True), ("small", 8, True), ("resnet18", 8, False)]
)
def test_pooled_again_is_found_in_real_encoders(backbone, size, repeated, dtype):
    torch.manual_seed(0)
    model = VMDLS(backbone, 2, [3, size, size], [0.5] * 3, [0.25] * 3, latent_dim=4).eval()
    # Images of different brightness, so that features vary as they do between pictures.
    pixels = torch.rand(6, 3, size, size) * torch.linspace(20, 255, 6)[:, None, None, None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        features = model.features(pixels.to(torch.uint8))
    column = scoring.columns_modelled(features, model.dimensions, keep_redundant=False)
    distinct = sum(model.dimensions.values()) - 4 - repeated * model.dimensions["g"]
    assert len(scoring.columns_of(column)) == distinct
    assert column.max() == distinct - 1 and (column[-4:] == -1).all()


def test_layers_of_one_width_are_kept_when_they_differ():
    features = torch.rand(50, 8)
    dimensions = {"t1": 1, "t2": 1, "t3": 2, "g": 2, "mean": 2}
    column = scoring.columns_modelled(features, dimensions, keep_redundant=False)
    assert column.tolist() == [0, 1, 2, 3, 4, 5, -1, -1]


def test_layers_are_marginals_of_the_ensemble():
    train, test, labels = redundant_ensemble()
    column = scoring.columns_modelled(train, DIMENSIONS, keep_redundant=False)
    kept = scoring.columns_of(column)
    ensemble, latent = fitted(train[:, kept], labels), fitted(train[:, -3:], labels)
    statistics = {
        "column": column,
        "mean": ensemble.mean,
        "covariance": ensemble.covariance,
        "settings": torch.zeros(5),
    }
    statistics |= {"latent_mean": latent.mean, "latent_covariance": latent.covariance}
    start = 0
    for name, width in DIMENSIONS.items():
        columns, gaussians = scoring.layer_gaussians(name, statistics, DIMENSIONS)
        own = slice(start, start + width)
        torch.testing.assert_close(test[:, columns], test[:, own])
        expected = fitted(train[:, own], labels).log_likelihood(test[:, own])
        torch.testing.assert_close(gaussians.log_likelihood(test[:, columns]), expected)
        start += width


def test_classes_in_blocks_have_the_same_moments(monkeypatch):
    features, labels = made(classes=7)
    whole = fitted(features, labels)
    monkeypatch.setattr(scoring, "BLOCK_BYTES", 1)
    groups = np.array_split(labels.numpy().argsort(kind="stable"), 9)
    count, mean, covariance = scoring.class_moments(features, labels.numpy(), groups, "cpu", False)
    assert count.tolist() == torch.bincount(labels).tolist()
    torch.testing.assert_close(mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(covariance, whole.covariance.float(), rtol=1e-6, atol=1e-6)


class Linear(torch.nn.Module):
    """A model of the contract: features are the pixels, the mean vector two of them."""

    def __init__(self, classes=2):
        super().__init__()
        self.class_means = torch.zeros(classes, 2)
        self.dimensions = {"t1": 1, "t2": 1, "t3": 1, "g": 3, "mean": 2}

    def features(self, images):
        pixels = images.flatten(1).float()
        return torch.cat((pixels, pixels[:, 3:5]), 1)


def devices():
    return SimpleNamespace(device=torch.device("cpu"), autocast=contextlib.nullcontext)


def images(count=40, classes=2, seed=0):
    pixels = np.random.default_rng(seed).normal(size=(count, 1, 2, 3)).astype(np.float32)
    return SimpleNamespace(pixels=pixels, labels=np.arange(count) % classes)


def test_statistics_are_complete_and_do_not_depend_on_the_batch_size():
    model, data = Linear(), images()
    found = scoring.collect_statistics(model, data, devices())
    again = scoring.collect_statistics(model, data, devices(), batch_size=7)
    names = ("column", "count", "mean", "covariance", "latent_mean", "latent_covariance", "highest", "settings")
    assert set(found) == {f"statistics.{name}" for name in names}
    for name, value in found.items():
        torch.testing.assert_close(again[name], value)
    assert found["statistics.count"].tolist() == [20, 20]
    assert found["statistics.column"].tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert found["statistics.covariance"].shape == (2, 21) and found["statistics.covariance"].dtype == torch.float32
    own = data.pixels[data.labels == 1].reshape(20, 6).astype(np.float64)
    np.testing.assert_allclose(found["statistics.mean"][1], own.mean(0), rtol=1e-12)
    covariance = unpack(found["statistics.covariance"], 6)
    np.testing.assert_allclose(covariance[1], np.cov(own.T, bias=True), rtol=1e-5, atol=1e-7)
    gaussians = Gaussians(found["statistics.mean"], found["statistics.covariance"])
    rows = torch.from_numpy(data.pixels).flatten(1)
    own_likelihood = gaussians.log_likelihood(rows).gather(1, torch.from_numpy(data.labels)[:, None])
    assert found["statistics.highest"] == pytest.approx(own_likelihood.max().item())


def test_covariances_that_are_too_large_are_left_out_and_said(capsys):
    found = scoring.collect_statistics(Linear(), images(), devices(), stored_bytes=100)
    assert "statistics.covariance" not in found and "statistics.mean" in found
    assert "not stored" in capsys.readouterr().out


def test_bad_statistics_input_says_what_is_wrong():
    data = images()
    data.labels = np.r_[np.zeros(39, int), 1]
    with pytest.raises(UserError, match=r"class 1 has 1 training image"):
        scoring.collect_statistics(Linear(), data, devices())
    with pytest.raises(UserError, match=r"class 2 has 0 training image"):
        scoring.collect_statistics(Linear(3), images(), devices())
    data = images()
    data.pixels[3, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"1 of 40 training images are NaN"):
        scoring.collect_statistics(Linear(), data, devices())
    with pytest.raises(UserError, match=r"never reaches class 1"):
        scoring.collect_statistics(Linear(), images(), devices(), released=True, batch_classes=1, sample_count=20)
    with pytest.raises(UserError, match="NaN or infinity"):
        Gaussians(torch.full((1, 2), torch.nan), torch.ones(1, 3))
