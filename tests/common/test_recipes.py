"""Schedules, the speed recipe's parameter groups and the weight averaging, against their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.recipes import (
    SCHEDULES,
    Schedule,
    WeightAveraging,
    build_optimizer,
    schedule_factor,
    speed_parameter_groups,
)


@given(st.sampled_from(SCHEDULES), st.integers(1, 5000), st.data())
def test_factors_stay_between_zero_and_one(name, total, data):
    step = data.draw(st.integers(0, total))
    assert 0 <= schedule_factor(name, step, total) <= 1


def test_triangular_has_the_published_corners():
    factor = [schedule_factor("triangular", step, 1000) for step in (0, 230, 1000)]
    assert factor == pytest.approx([0.2, 1.0, 0.07])


def test_step_schedule_decays_at_its_milestones():
    factors = [schedule_factor("step", step, 10, milestones=(0.5, 0.8)) for step in (0, 4, 5, 7, 8, 10)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_unknown_schedule_names_the_choices():
    with pytest.raises(ValueError, match="constant, cosine"):
        schedule_factor("cosin", 0, 1)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))


def test_speed_rates_equal_the_summed_loss_form():
    """The published recipe sums the loss over 1,024 images; ours takes the mean with the converted rate: same step."""
    x, y = torch.randn(64, 1, 8, 8), torch.randint(0, 3, (64,))
    effective = 1 + 1 / (1 - 0.85)
    summed, mean = small_net(), small_net()
    rate = 11.5 / (1024 * effective)
    decay = 0.0153 * 64 / (1024 * effective)
    weights = [p for p in summed.parameters() if p.ndim > 1]
    biases = [p for p in summed.parameters() if p.ndim == 1]
    published = torch.optim.SGD(
        [
            {"params": weights, "lr": rate, "weight_decay": decay / rate},
            {"params": biases, "lr": 64 * rate, "weight_decay": decay / (64 * rate)},
        ],
        lr=rate, momentum=0.85, nesterov=True,
    )  # fmt: skip
    ours = build_optimizer(mean, "speed", 11.5, momentum=0.85, weight_decay=0.0153, batch_size=64)
    for _ in range(5):
        for net, optimizer, reduction in ((summed, published, "sum"), (mean, ours, "mean")):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y, reduction=reduction).backward()
            optimizer.step()
    for a, b in zip(summed.parameters(), mean.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_stem_bias_stops():
    net = small_net()
    groups = speed_parameter_groups(net, stop_bias=net[0].bias, stop_at_step=3)
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = Schedule(optimizer, "constant", 10)
    rates = []
    for step in range(5):
        schedule.set(step)
        rates.append([group["lr"] > 0 for group in optimizer.param_groups])
    assert rates == [[True] * 3] * 3 + [[True, True, False]] * 2
    counted = sum(len(group["params"]) for group in groups)
    assert counted == len(list(net.parameters()))


def test_schedule_does_not_compound():
    net = small_net()
    optimizer = build_optimizer(net, "sgd", 0.5)
    schedule = Schedule(optimizer, "cosine", 4)
    for _ in range(3):
        schedule.set(2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25)


def test_averaging_follows_its_definition():
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0.0)
    averaging = WeightAveraging(net, total=10, every=5)
    net.weight.data.fill_(1.0)
    averaging.update(4)
    assert net.weight.item() == 1.0
    averaging.update(5)
    decay = 0.95**5 * 0.5**3
    assert net.weight.item() == pytest.approx(1 - decay)
    net.weight.data.fill_(7.0)
    averaging.finish()
    assert net.weight.item() == pytest.approx(1 - decay)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "speed"])
def test_every_optimiser_lowers_the_loss(name):
    net, x, y = small_net(), torch.randn(32, 1, 8, 8), torch.randint(0, 3, (32,))
    optimizer = build_optimizer(net, name, 1.0 if name == "speed" else 0.01, weight_decay=1e-4, batch_size=32)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_unknown_optimiser():
    with pytest.raises(ValueError, match="adam, adamw, sgd, speed"):
        build_optimizer(small_net(), "sdg", 0.1)
