"""Statistics, the three scores and their fusion against the released program's numbers and their definitions."""

import math

import numpy as np
import pytest
import torch
from test_head import near

from cssr import scores
from cssr.model import LinearHead, ReconstructionHead, log_probabilities
from cssr.scores import ClassStatistics, fused, gram, parts_of, training_statistics, triangle

CASES = ["pcssr", "rcssr", "linear", "pcssr_class2_absent", "pcssr_class0_never_predicted_BUG"]


class Model:
    """What `training_statistics` needs of a network, around a golden case's head."""

    def __init__(self, case):
        config = case.config
        self.kind, self.order = config["model"], config["order"]
        channels = case["train_x"].shape[1]
        if self.kind == "linear":
            self.head, names = LinearHead(config["m"], channels, config["gamma"]), ["linear_weight"]
        else:
            self.head = ReconstructionHead(self.kind, config["m"], channels, config["k"], (), config["gamma"])
            names = ["encoder_weight", "decoder_weight"]
        for parameter, name in zip(self.head.parameters(), names, strict=True):
            parameter.data = torch.from_numpy(case[name])

    @torch.no_grad()
    def maps(self, x, batch=7):
        for part in torch.from_numpy(x).split(batch):
            logit_map = self.head(part)
            yield part, logit_map, log_probabilities(logit_map, self.order)

    def parts(self, x, statistics):
        stored = {key.removeprefix("statistics."): value for key, value in statistics.items()}
        gamma = abs(self.head.scale)
        return torch.cat([parts_of(self.kind, *maps, stored, gamma) for maps in self.maps(x)])


def fitted(case, augmented=False):
    model = Model(case)
    again = model.maps(case["augmented_train_x"]) if augmented else None
    return model, training_statistics(model, lambda: model.maps(case["train_x"]), again)


def full(tri, channels):
    """Symmetric matrices `(N, C, C)` from upper triangles."""
    matrix = torch.zeros(len(tri), channels, channels, dtype=tri.dtype)
    row, column = torch.triu_indices(channels, channels)
    matrix[:, row, column] = tri
    matrix[:, column, row] = tri
    return matrix


@pytest.mark.parametrize("name", CASES)
def test_statistics_equal_the_released_program(golden, name):
    case = golden(f"scoring/{name}")
    model, statistics = fitted(case)
    predicted = torch.cat([log_p.argmax(1) for _, _, log_p in model.maps(case["train_x"])])
    np.testing.assert_array_equal(predicted, case["train_pred"])
    np.testing.assert_array_equal(
        statistics["statistics.class_count"], np.bincount(case["train_pred"], minlength=case.config["m"])
    )
    channels = case["train_x"].shape[1]
    first = gram(torch.from_numpy(case["test_x"][:1]), triangle(channels)[0])
    near(full(first, channels)[0], case["gram_of_first_test_map"], 2e-5)
    if not name.endswith("BUG"):
        near(statistics["statistics.class_share"], case["class_share"], 2e-5)
        near(full(statistics["statistics.gram_mean"], channels), case["gram_mean"], 2e-5)


@pytest.mark.parametrize("name", CASES[:4])
def test_scores_equal_the_released_program(golden, name):
    case = golden(f"scoring/{name}")
    model, statistics = fitted(case)
    logit_map = torch.cat([maps[1] for maps in model.maps(case["test_x"])])
    near(logit_map, case["test_logit_map"], 2e-5)
    log_p = torch.cat([maps[2] for maps in model.maps(case["test_x"])])
    near(log_p.exp(), case["test_prob"], 2e-5)
    np.testing.assert_array_equal(log_p.argmax(1), case["test_pred"])
    parts = model.parts(case["test_x"], statistics)
    for column in range(3):
        near(parts[:, 2 + column], case["test_S"][:, column], 2e-5)
    if name == "linear":
        near(parts[:, 2], case["same_integrated"], 2e-5)
        return
    near(statistics["statistics.mean"], case["same_mean"], 2e-5)
    near(statistics["statistics.std"], case["same_std"], 2e-5)
    integrated = fused(parts, statistics["statistics.mean"], statistics["statistics.std"])
    near(integrated, case["same_integrated"], 1e-4)
    model, released = fitted(case, augmented=True)
    near(released["statistics.mean"], case["augmented_mean"], 2e-5)
    near(released["statistics.std"], case["augmented_std"], 2e-5)
    integrated = fused(parts, released["statistics.mean"], released["statistics.std"])
    near(integrated, case["augmented_integrated"], 1e-4)


def test_class_zero_never_predicted_does_not_silence_the_scores(golden):
    """The release leaves S1 = S2 = 0 for every image then; its S0 is right."""
    case = golden("scoring/pcssr_class0_never_predicted_BUG")
    assert (case["train_pred"] > 0).all() and (case["test_S"][:, 1:] == 0).all()
    model, statistics = fitted(case)
    assert (statistics["statistics.class_share"][0] == 0).all()
    parts = model.parts(case["test_x"], statistics)
    near(parts[:, 2], case["test_S"][:, 0], 2e-5)
    seen = torch.from_numpy(case["test_pred"] > 0)
    assert (parts[seen, 3:] > 0).all()


def random_maps(count=30, classes=3, channels=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, 3, 4, generator=generator, dtype=torch.float64).relu() + 0.01
    logit_map = -3 * torch.rand(count, classes, 3, 4, generator=generator, dtype=torch.float64)
    return x, logit_map, log_probabilities(logit_map, "softmax_avg")


def statistics_of(x, log_p):
    sums = ClassStatistics(log_p.shape[1], x.shape[1])
    sums.add(x, log_p.argmax(1))
    return sums.finish()


def test_scores_equal_their_definitions():
    x, logit_map, log_p = random_maps()
    statistics = statistics_of(x, log_p)
    torch.testing.assert_close(statistics["class_share"].sum(0), torch.ones(6, dtype=torch.float64))
    predicted = log_p.argmax(1)
    grams = torch.einsum("ncp,ndp->ncd", x.flatten(2) ** 8, x.flatten(2) ** 8) ** (1 / 8)
    parts = parts_of("pcssr", x, logit_map, log_p, statistics, gamma=0.1)
    for n in range(len(x)):
        y = int(predicted[n])
        members = predicted == y
        magnitude = x[n].abs().sum(0)
        error = -logit_map[n, y] / 0.1
        assert parts[n, 0].item() == pytest.approx(-(error / magnitude).mean().item())
        assert parts[n, 1].item() == pytest.approx(magnitude.mean().item())
        assert parts[n, 2].item() == pytest.approx((-0.1 * error / (magnitude / 6) ** 2).mean().item())
        share = torch.stack([x[predicted == j].abs().mean((0, 2, 3)) for j in range(3)])
        positionwise = ((share / share.sum(0))[y][:, None, None] * x[n]).mean()
        assert parts[n, 3].item() == pytest.approx(positionwise.item())
        assert parts[n, 4].item() == pytest.approx((grams[n] * grams[members].mean(0)).sum().item())


def test_gram_is_symmetric_positive_and_blind_to_the_order_of_positions():
    x, logit_map, log_p = random_maps()
    statistics = statistics_of(x, log_p)
    shuffled = x.flatten(2)[:, :, torch.randperm(12)].view_as(x)
    upper, weight = triangle(6)
    assert (gram(x, upper) >= 0).all() and weight.sum() == 36
    before, after = (scores.gram_score(z, log_p.argmax(1), statistics["gram_mean"]) for z in (x, shuffled))
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_gram_neither_overflows_nor_vanishes_in_single_precision(factor):
    x = random_maps()[0].float()
    upper, _ = triangle(6)
    torch.testing.assert_close(gram(x * factor, upper), gram(x, upper) * factor**2, rtol=1e-5, atol=0)
    assert (gram(torch.zeros(1, 6, 2, 2), upper) == 0).all()


def test_training_scores_are_standardised_with_one_pass_or_two(golden, monkeypatch):
    case = golden("scoring/rcssr")
    model, kept = fitted(case)
    monkeypatch.setattr(scores, "KEPT_BYTES", 1000)
    monkeypatch.setattr(scores, "GRAM_BYTES", 1)
    _, twice = fitted(case)
    for name in kept:
        torch.testing.assert_close(kept[name], twice[name])
    parts = model.parts(case["train_x"], kept)[:, 2:]
    normal = (parts - kept["statistics.mean"]) / kept["statistics.std"]
    torch.testing.assert_close(normal.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std(0, correction=0), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)


def test_dead_channels_and_dead_positions_give_numbers():
    x, logit_map, log_p = random_maps()
    x[:, 2] = 0  # never active for any class: the release divides 0 by 0
    x[:, :, 1, 1] = 0
    statistics = statistics_of(x, log_p)
    assert (statistics["class_share"][:, 2] == 0).all()
    for kind in ("pcssr", "rcssr"):
        assert torch.isfinite(parts_of(kind, x, logit_map, log_p, statistics)).all()


def test_without_gram_the_fusion_has_two_terms():
    x, logit_map, log_p = random_maps()
    sums = ClassStatistics(3, 6, with_gram=False)
    sums.add(x, log_p.argmax(1))
    parts = parts_of("rcssr", x, logit_map, log_p, sums.finish())
    assert parts[:, 4].isnan().all()
    mean, std = parts[:, 2:].mean(0), parts[:, 2:].std(0, correction=0)
    expected = ((parts[:, 2:4] - mean[:2]) / (std[:2] + 1e-8)).sum(1)
    torch.testing.assert_close(fused(parts, mean, std), expected)
    assert math.isnan(mean[2])
