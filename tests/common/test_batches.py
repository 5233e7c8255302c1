"""Batches: every epoch a permutation, resume in mid-epoch, the same numbers on any number of processes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets.augment import Compose, RandomFlip, RandomShift
from common.datasets.batches import Batches, Draws, generator_for


def batches_of(count: int, batch_size: int, **options) -> Batches:
    """Images whose first pixel is their label, so that pairs can be checked."""
    pixels = torch.randint(0, 256, (count, 1, 6, 6), dtype=torch.uint8, generator=generator_for(count))
    pixels[:, 0, 0, 0] = torch.arange(count).to(torch.uint8)
    return Batches(pixels, torch.arange(count), batch_size, **options)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 120), batch_size=st.integers(1, 50), epoch=st.integers(0, 9), drop=st.booleans())
def test_an_epoch_is_a_permutation(count, batch_size, epoch, drop):
    batches = batches_of(count, batch_size, drop_last=drop)
    parts = list(batches.epoch(epoch))
    labels = torch.cat([targets for _, _, targets in parts])
    assert [number for number, _, _ in parts] == list(range(len(batches)))
    assert len(labels.unique()) == len(labels)
    if drop and count >= batch_size:
        assert len(labels) == count - count % batch_size and all(len(part[2]) == batch_size for part in parts)
    else:
        assert len(labels) == count
    for _, pixels, targets in parts:
        assert torch.equal(pixels[:, 0, 0, 0].long(), targets)


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return torch.cat([targets for _, _, targets in batches_of(100, 32, seed=seed).epoch(epoch)])

    assert torch.equal(order(1, 3), order(1, 3))
    assert not torch.equal(order(1, 3), order(1, 4)) and not torch.equal(order(1, 3), order(2, 3))
    unshuffled = torch.cat([targets for _, _, targets in batches_of(100, 32, shuffle=False).epoch(7)])
    assert torch.equal(unshuffled, torch.arange(100))


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 80), batch_size=st.integers(1, 30), data=st.data())
def test_a_resumed_epoch_equals_the_tail(count, batch_size, data):
    batches = batches_of(count, batch_size, augment=Compose(RandomFlip(), RandomShift(2)), seed=4)
    full = list(batches.epoch(2))
    start = data.draw(st.integers(0, len(full)))
    tail = list(batches.epoch(2, start=start))
    assert len(tail) == len(full) - start
    for (number, pixels, labels), (other, more, targets) in zip(full[start:], tail, strict=True):
        assert number == other and torch.equal(pixels, more) and torch.equal(labels, targets)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 30), world=st.integers(1, 4))
def test_draws_are_made_for_the_global_batch(count, world):
    share = -(-count // world)
    slices = [slice(rank * share, min((rank + 1) * share, count)) for rank in range(world)]

    def numbers(part):
        draws = Draws(generator_for(8), torch.arange(count), 0, part)
        return (
            draws.index,
            draws.uniform(2),
            draws.normal(3),
            draws.integers(0, 9),
            draws.permutation(4),
            draws.uniform(),
        )

    parts = [numbers(part) for part in slices]
    for k, whole in enumerate(numbers(slice(None))):
        assert torch.equal(whole, torch.cat([part[k] for part in parts]))


def test_draws_have_the_stated_ranges():
    draws = Draws(generator_for(0), torch.arange(5000), 0)
    values = draws.uniform(2, low=-3.0, high=1.0)
    assert (
        values.shape == (5000, 2)
        and values.min() >= -3
        and values.max() < 1
        and abs(values.mean() + 1) < 0.05
    )
    assert draws.integers(2, 5).unique().tolist() == [2, 3, 4]
    assert abs(draws.normal().std() - 1) < 0.05
    assert torch.equal(draws.permutation(5).sort(1).values, torch.arange(5).expand(5000, -1))


def test_neighbouring_keys_give_unrelated_streams():
    streams = torch.stack([torch.rand(200, generator=generator_for(0, 0, key)) for key in range(20)])
    correlation = torch.corrcoef(streams) - torch.eye(20)
    assert correlation.abs().max() < 0.3
    assert generator_for(1, 2).initial_seed() != generator_for(2, 1).initial_seed()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"labels": torch.zeros(3)}, "4 images but 3 labels"),
    ],
)
def test_bad_input_is_named_in_one_line(options, message):
    fields = {"pixels": torch.zeros(4, 1, 2, 2), "labels": torch.zeros(4), "batch_size": 2, **options}
    with pytest.raises(ValueError, match=message):
        Batches(**fields)


def test_float_images_pass_through():
    batches = Batches(torch.rand(5, 1, 4, 4), torch.arange(5), 2, augment=RandomFlip())
    assert all(pixels.dtype == torch.float32 for _, pixels, _ in batches.epoch(0))
