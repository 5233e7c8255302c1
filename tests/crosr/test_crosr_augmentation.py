"""The augmentations of the two releases: order, colour only, bounds of expansion and crop, repeatability."""

import pytest
import torch

from common.datasets.batches import Draws, generator_for
from common.errors import UserError
from crosr.augmentation import augmentation

MEAN = [0.4, 0.5, 0.6]


def draws(count, part=slice(None), number=1):
    return Draws(generator_for(0, 0, number), torch.arange(count), 0, part)


def pictures(count, side=32, low=0, high=256, channels=3):
    return torch.randint(low, high, (count, channels, side, side), dtype=torch.uint8, generator=generator_for(5))


def names(policy):
    return [type(step).__name__ for step in policy.policies]


def test_steps_come_in_the_order_of_the_releases():
    assert names(augmentation("released", 0, mean=MEAN)) == ["ColourJitter", "RandomAffine", "RandomFlip"]
    paper = augmentation("paper", 0, mean=MEAN)
    assert names(paper) == ["RandomRotation", "PCALighting", "RandomFlip", "RandomExpand"]
    assert (paper.policies[0].degrees, paper.policies[1].std) == (15, 25.5)
    assert (paper.policies[3].ratio, paper.policies[3].crop, paper.policies[3].fill) == (1.2, 28, [102, 128, 153])
    jitter, affine, _ = augmentation("released", 0, mean=MEAN).policies
    assert (jitter.brightness, jitter.hue, jitter.contrast, jitter.saturation) == (0.5, 0.3, 0, 0)
    assert (affine.degrees, affine.translate, affine.scale) == (30, (0.2, 0.2), (0.75, 1.0))


def test_pca_lighting_adds_one_colour_to_all_pixels_of_an_image():
    before = pictures(200, low=100, high=150)
    policy = augmentation("paper", 0, mean=MEAN, random_angle=0, pca_sigma=25.5, expand_ratio=1, crop_size=32)
    after = policy(before, draws(200))
    change = after.int() - before.int()
    mirrored = after.int() - before.flip(3).int()
    straight = (change == change[:, :, :1, :1]).flatten(1).all(1)
    turned = (mirrored == mirrored[:, :, :1, :1]).flatten(1).all(1)
    assert (straight | turned).all() and 60 < int(straight.sum()) < 140
    colours = change[straight][:, :, 0, 0]
    assert len(colours.unique(dim=0)) > 0.3 * len(colours)  # small shifts coincide after rounding
    # ImageNet's first axis is nearly grey, with standard deviation .2175 x 25.5 x .58 in every channel.
    assert colours.float().std(0).min() > 2 and colours.float().std(0).max() < 5


def test_without_expansion_and_lighting_a_crop_is_a_window_of_the_image():
    before = pictures(20)
    policy = augmentation("paper", 0, mean=MEAN, random_angle=0, pca_sigma=0, expand_ratio=1, crop_size=28)
    after = policy(before, draws(20))
    assert after.shape == (20, 3, 28, 28)
    seen = set()
    for image, window in zip(before, after):
        views = (image, image.flip(2))
        places = [(turned, top, left) for turned in (0, 1) for top in range(5) for left in range(5)
                  if torch.equal(views[turned][:, top : top + 28, left : left + 28], window)]  # fmt: skip
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 10


@pytest.mark.parametrize(("ratio", "most"), [(1.2, 6), (1.0, 0)])
def test_expansion_shows_at_most_the_ratio_of_mean_colour(ratio, most):
    white = torch.full((300, 3, 32, 32), 255, dtype=torch.uint8)
    policy = augmentation("paper", 0, mean=MEAN, random_angle=0, pca_sigma=0, expand_ratio=ratio)
    after = policy(white, draws(300))
    canvas = (after == torch.tensor([102, 128, 153], dtype=torch.uint8).view(1, 3, 1, 1)).all(1)
    assert (canvas | (after == 255).all(1)).all()
    rows, columns = canvas.all(2).sum(1), canvas.all(1).sum(1)
    # 1.2 x 32 = 38 pixels: at most 6 more than the image, and rarely so many at one border of the window.
    assert max(rows.max(), columns.max()) <= most and min(rows.max(), columns.max()) >= most // 2


def test_released_jitter_shrinks_and_darkens_within_its_bounds():
    grey = torch.full((400, 3, 32, 32), 100, dtype=torch.uint8)
    after = augmentation("released", 0, mean=MEAN)(grey, draws(400))
    assert after.shape == grey.shape
    levels = after.flatten(1).max(1).values  # uniform grey stays grey under hue: only brightness shows
    assert levels.min() >= 49 and levels.max() <= 150 and levels.float().std() > 20
    covered = (after > 0).all(1).float().mean((1, 2))
    assert covered.min() > 0.25 and (covered < 0.9).float().mean() > 0.5


def test_grey_images_have_no_hue_and_no_pca_lighting():
    grey = pictures(30, side=28, channels=1)
    after = augmentation("released", 0, mean=[0.13])(grey, draws(30))
    assert after.shape == grey.shape and not torch.equal(after, grey)
    with pytest.raises(UserError, match="--pca_sigma 0"):
        augmentation("paper", 0, mean=[0.13], crop_size=24)
    assert augmentation("paper", 0, mean=[0.13], pca_sigma=0, crop_size=24)(grey, draws(30)).shape == (30, 1, 24, 24)
    with pytest.raises(UserError, match="at least 1"):
        augmentation("paper", 0, mean=MEAN, expand_ratio=0.9)


@pytest.mark.parametrize("name", ["released", "paper"])
def test_draws_decide_alone_and_a_process_gets_its_slice(name):
    policy, batch = augmentation(name, 0, mean=MEAN), pictures(32)
    whole = policy(batch, draws(32))
    torch.testing.assert_close(policy(batch, draws(32)), whole, rtol=0, atol=0)
    assert not torch.equal(policy(batch, draws(32, number=2)), whole)
    half = slice(16, 32)
    torch.testing.assert_close(policy(batch[half], draws(32, half)), whole[half], rtol=0, atol=0)


def test_plain_names_are_the_shared_ones():
    assert augmentation("none", 0) is None
    small = augmentation("alternating-flip+shift2", 0, 6)(pictures(4), draws(4))
    assert small.shape == (4, 3, 24, 24)
