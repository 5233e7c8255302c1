"""Augmentation policies: draws that hold on any number of processes, ranges, types, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets import augment, colour, geometry, randaugment
from common.datasets.batches import Batches, Draws, generator_for

POLICIES = [
    augment.RandomFlip(0.4),
    augment.AlternatingFlip(3),
    augment.RandomShift(3, "reflect"),
    augment.RandomShift(2, "zero", fill=9),
    augment.RandomRotation(25, "bilinear"),
    augment.RandomAffine(30, (0.2, 0.2), (0.75, 1.0), (5.0, 3.0)),
    augment.RandomExpand(1.3, crop=10, fill=(1, 2, 3)),
    augment.RandomExpand(1.5),
    augment.RandomResizedCrop(11, (0.2, 1.0)),
    augment.Cutout(6),
    augment.ColourJitter(0.5, 0.3, 0.4, 0.3),
    augment.PCALighting(25.5),
    augment.GaussianNoise(4.0),
    *(randaugment.RandAugment(2, 9, name) for name in randaugment.LISTS),
]
POLICIES.append(
    augment.Compose(
        augment.RandomFlip(), augment.RandomShift(2), randaugment.RandAugment(), augment.Cutout(6)
    )
)


def labelled_images(count: int, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randint(
        0, 256, (count, channels, 12, 12), dtype=torch.uint8, generator=generator_for(count)
    )
    return pixels, torch.arange(count)


@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 24), epoch=st.integers(0, 5))
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_slices_of_several_processes_equal_one_process(policy, count, batch_size, epoch):
    pixels, labels = labelled_images(count)
    whole = list(Batches(pixels, labels, batch_size, 5, policy).epoch(epoch))
    for world in (2, 3):
        ranks = [
            list(Batches(pixels, labels, batch_size, 5, policy, rank=rank, world_size=world).epoch(epoch))
            for rank in range(world)
        ]
        parts = [{number: (images, targets) for number, images, targets in rank} for rank in ranks]
        for number, images, targets in whole:
            share = len(images) // world  # every process takes equally many; a rest below `world` waits
            taken = [part[number] for part in parts if number in part]
            assert [len(part[0]) for part in taken] == ([share] * world if share else [])
            if share:
                assert torch.equal(images[: share * world], torch.cat([part[0] for part in taken]))
                assert torch.equal(targets[: share * world], torch.cat([part[1] for part in taken]))


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_policies_are_deterministic_and_keep_type_and_input(policy):
    pixels, _ = labelled_images(64)
    before = pixels.clone()
    results = [policy(pixels, Draws(generator_for(seed), torch.arange(64), epoch=0)) for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1]) and torch.equal(pixels, before)
    assert results[0].dtype == torch.uint8 and len(results[0]) == 64
    assert isinstance(policy, augment.AlternatingFlip) or not torch.equal(results[0], results[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_policies_on_cuda_stay_there_and_match_the_cpu(policy):
    """Stated: at most 1 level on at most 0.1 % of the values."""
    pixels, _ = labelled_images(64)
    result, expected = (
        policy(pixels.to(device), Draws(generator_for(1), torch.arange(64), 0, device=device))
        for device in ("cuda", "cpu")
    )
    assert result.device.type == "cuda"
    gap = (result.cpu().int() - expected.int()).abs()
    assert gap.max() <= 1 and (gap > 0).double().mean() <= 0.001


@pytest.mark.parametrize(
    "policy", [p for p in POLICIES if "fill=(1" not in repr(p) and "PCA" not in repr(p)], ids=repr
)
def test_policies_take_grey_images(policy):
    pixels, _ = labelled_images(16, channels=1)
    assert policy(pixels, Draws(generator_for(1), torch.arange(16), 0)).shape[:2] == (16, 1)


def test_alternating_flip_shows_both_views_in_two_epochs():
    pixels, _ = labelled_images(400)
    index = torch.randperm(400)
    views = [augment.AlternatingFlip(7)(pixels, Draws(generator_for(0), index, epoch)) for epoch in range(4)]
    flipped = (views[0] != pixels).flatten(1).any(1)
    assert 0.4 < flipped.double().mean() < 0.6
    assert (
        torch.equal(views[1], views[0].flip(3))
        and torch.equal(views[2], views[0])
        and torch.equal(views[3], views[1])
    )
    other = augment.AlternatingFlip(8)(pixels, Draws(generator_for(0), index, 0))
    assert not torch.equal(other, views[0])
    back = torch.empty_like(flipped)
    back[index] = flipped  # the choice belongs to the position in the data set, not to the place in the batch
    again = augment.AlternatingFlip(7)(pixels, Draws(generator_for(9), torch.arange(400), 0))
    assert torch.equal((again != pixels).flatten(1).any(1), back)


def test_draw_ranges():
    draws = Draws(generator_for(3), torch.arange(4000), 0)
    corner = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    corner[..., 4, 4] = 255
    shifted = augment.RandomShift(2, "zero")(corner.expand(4000, -1, -1, -1), draws)[:, 0]
    places = shifted.flatten(1).double().argmax(1)
    assert sorted(places.unique().tolist()) == [
        row * 9 + column for row in range(2, 7) for column in range(2, 7)
    ]
    assert places.bincount().max() < 240  # 160 each on average
    assert (
        abs(
            (augment.RandomFlip(0.3)(shifted[:, None], draws) != shifted[:, None])
            .flatten(1)
            .any(1)
            .double()
            .mean()
            - 0.24
        )
        < 0.03
    )
    squares = (augment.Cutout(4, fill=9)(torch.zeros(4000, 1, 20, 20, dtype=torch.uint8), draws) == 9).sum(
        (1, 2, 3)
    )
    assert squares.max() == 25 and squares.min() >= 9


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: augment.RandomFlip(1.5), "probability must lie in 0..1, got 1.5"),
        (lambda: augment.RandomShift(4, "wrap"), "padding mode must be reflect or zero, got wrap"),
        (lambda: augment.RandomShift(-1), "padding must be at least 0, got -1"),
        (lambda: augment.ColourJitter(hue=0.7), "hue must lie in 0..0.5"),
        (lambda: augment.ColourJitter(contrast=-1), "contrast must be at least 0"),
        (lambda: augment.RandomExpand(0.5), "ratio must be at least 1"),
        (lambda: augment.RandomAffine(5, scale=(1, 0.5)), "scale must be two positive numbers"),
        (lambda: augment.RandomResizedCrop(8, scale=(0, 1)), "scale and ratio must be"),
        (lambda: augment.Cutout(-1), "size must be at least 0"),
        (lambda: randaugment.RandAugment(2, 10, "csr"), "got csr; nearest: cssr"),
        (lambda: randaugment.RandAugment(2, 31), "m must lie in 2..11 for cssr, got 31"),
        (lambda: randaugment.RandAugment(-1), "n must be at least 0"),
        (lambda: randaugment.RandAugment(probability=2), "probability must lie in 0..1"),
        (lambda: colour.equalize(torch.zeros(2, 3, 4, 4)), "expected uint8 images, got float32"),
        (lambda: colour.hue(torch.zeros(2, 2, 4, 4, dtype=torch.uint8), 0), "1 or 3 channels, got 2"),
        (lambda: geometry.horizontal_flip(torch.zeros(3, 4, 4), True), r"expected images \(N, C, H, W\)"),
        (
            lambda: colour.brightness(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.ones(3)),
            "each of 2 images",
        ),
        (
            lambda: geometry.pad(torch.zeros(1, 1, 4, 4), 4, "reflect"),
            "reflect padding 4 needs images larger than that",
        ),
        (lambda: geometry.pad(torch.zeros(1, 3, 4, 4), 1, fill=(1, 2)), "fill must be one number or 3"),
        (lambda: geometry.crop(torch.zeros(1, 1, 4, 4), torch.tensor([[0, 2]]), 3, 3), "leaves the image"),
        (lambda: geometry.crop(torch.zeros(1, 1, 4, 4), torch.zeros(2, 2).long(), 3, 3), "offsets must be"),
        (lambda: geometry.crop(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2).long(), 5, 3), "larger than 4 x 4"),
        (
            lambda: geometry.rotate(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), 1, "cubic"),
            "nearest or bilinear",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_geometry_without_interpolation_takes_floats():
    """Released noise images are floats."""
    pixels = torch.rand(6, 3, 8, 8)
    draws = Draws(generator_for(0), torch.arange(6), 0)
    assert (
        augment.Compose(augment.RandomFlip(), augment.RandomShift(2), augment.Cutout(3))(pixels, draws).dtype
        == torch.float32
    )


def test_repr_names_the_parameters():
    policy = augment.Compose(augment.RandomShift(4), randaugment.RandAugment(2, 10))
    assert repr(policy) == (
        "Compose(RandomShift(padding=4, mode='reflect', fill=0), "
        "RandAugment(n=2, m=10, operations='cssr', probability=0.5))"
    )
