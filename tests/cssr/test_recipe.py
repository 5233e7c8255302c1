"""Schedule, optimiser groups, augmentation, presets."""

import argparse

import numpy as np
import pytest
import torch

from common.backbones import Normalise
from common.datasets.batches import Draws, generator_for
from common.datasets.randaugment import LISTS, RandAugment
from common.errors import UserError
from cssr.arguments import PRESETS, get_args_parser, parse_arguments
from cssr.augmentation import RELEASED_POOL, augmentation, operation_list, operation_pool
from cssr.configuration import FOLDER, POOL_OPTIONS
from cssr.model import CSSR
from cssr.optimisation import MultiStep, build_optimizer, multi_step_factor


@pytest.mark.parametrize("name", ["cifar", "tinyimagenet"])
def test_rates_equal_the_released_program(golden, name):
    case = golden(f"lr_schedule/{name}")
    config = case.config
    settings = (config["steps_per_epoch"], config["milestones"], config["lr_decay"], config["warmup_epoch"])
    rates = [[config["learn_rate"] * multi_step_factor(int(e), int(s), *settings) for s in case["steps"]] for e in case["epochs"]]
    np.testing.assert_allclose(rates, case["lr"], rtol=1e-12)


def test_warm_up_is_inclusive():
    assert multi_step_factor(2, 0, 10, [1], 0.1, warmup=2) == 1.0
    assert multi_step_factor(2, 1, 10, [1], 0.1, warmup=2) == pytest.approx(0.1)


def test_multi_step_sets_every_group_without_compounding():
    groups = [{"params": [torch.zeros(1)], "lr": 0.4}, {"params": [torch.zeros(1)], "lr": 1.0}]
    schedule = MultiStep(torch.optim.SGD(groups, lr=1), steps=5, milestones=[2, 4], decay=0.1, warmup=0)
    for step, factor in ((9, 1.0), (10, 0.1), (12, 0.1), (20, 0.01), (0, 1.0)):
        schedule.set(step)
        assert [group["lr"] for group in groups] == pytest.approx([0.4 * factor, factor])


def small_model(model="pcssr", backbone="convnet8"):
    shape = (1, 8, 8) if backbone == "convnet8" else (3, 32, 32)
    return CSSR(model, backbone, 4, shape, [0.5] * shape[0], [0.25] * shape[0], ae_latent=8)


def test_speed_recipe_gives_the_heads_their_own_rate():
    args = parse_arguments(["--preset", "laptop", "--batch_size", "512"])
    net = small_model(backbone="speednet")
    optimizer = build_optimizer(net, args, steps_per_epoch=50)
    trained = {id(p) for p in net.parameters() if p.requires_grad}
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(trained)
    head = optimizer.param_groups[-1]
    assert {id(p) for p in head["params"]} == {id(p) for p in net.head.parameters()}
    assert head["lr"] == pytest.approx(0.4 * 0.15) and head["weight_decay"] == 5e-4
    assert optimizer.param_groups[0]["lr"] == pytest.approx(11.5 * 0.5 / (1 + 1 / 0.15))
    (stem,) = (group for group in optimizer.param_groups if "stop_at_step" in group)
    assert stem["stop_at_step"] == 150


def test_released_optimiser_is_plain_sgd_and_paper_has_momentum():
    released = build_optimizer(small_model(), parse_arguments([]), 1).param_groups
    assert len(released) == 1 and released[0]["momentum"] == 0 and not released[0]["nesterov"]
    assert released[0]["lr"] == 0.4 and released[0]["weight_decay"] == 5e-4
    paper = parse_arguments(["--preset", "paper"])
    assert (paper.momentum, paper.milestones, paper.max_epochs) == (0.9, [130, 190], 200)


def draws(count):
    return Draws(generator_for(0, 0, 1), torch.arange(count), 0)


def test_manual_contrast_scales_the_whole_normalised_image():
    normalise = Normalise([0.5], [0.25])
    pixels = torch.full((200, 1, 16, 16), 255, dtype=torch.uint8)
    out = augmentation("simple", 0, 0, 16, normalise)(pixels, draws(200))
    factors = out[:, 0, 0, 0] / 2  # white is 2 after normalising
    torch.testing.assert_close(out, normalise(pixels) * factors.view(-1, 1, 1, 1))
    assert 0.1 <= factors.min() < 0.2 and 1.9 < factors.max() <= 2.0


def test_strong_augmentation_has_the_papers_steps():
    policy = augmentation("strong", 0, 0, 32, Normalise([0.5] * 3, [0.25] * 3))
    steps = ["RandomFlip(probability=0.5)", "RandomShift(padding=4, mode='reflect'", "RandAugment(n=2, m=10, operations='cssr'",
             "Cutout(size=16, fill=127)", "ManualContrast(low=0.1, high=2.0)"]  # fmt: skip
    places = [repr(policy).find(step) for step in steps]
    assert min(places) >= 0 and places == sorted(places)
    out = policy(torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8), draws(20))
    assert out.shape == (20, 3, 32, 32) and out.dtype == torch.float32 and out.abs().max() <= 4


def steps_of(**options):
    return repr(augmentation("strong", 0, 0, 32, Normalise([0.5] * 3, [0.25] * 3), **options))


def test_options_of_the_strong_augmentation():
    """RA: FixMatch's list, always with cutout; NONE: neither; the reduced list takes other pools and may end without cutout."""
    fixmatch = steps_of(strong_option="RA", postprocess="none")
    assert "operations='fixmatch'" in fixmatch and "Cutout(size=16" in fixmatch
    plain = steps_of(strong_option="NONE")
    assert "RandAugment" not in plain and "Cutout" not in plain and "ManualContrast" in plain
    assert "Cutout" not in steps_of(postprocess="none")
    assert "ManualContrast" not in steps_of(manual_contrast=False)
    assert "RandomResizedCrop(size=32, scale=(0.25, 1.0)" in steps_of(crop_with_resize=True)
    assert "operations='cssr'" in steps_of(pool=list(RELEASED_POOL))
    other = steps_of(pool=["Solarize", "Color"])
    assert "operations='cssr: Color, Solarize'" in other


def test_large_images_are_cropped_at_a_random_scale():
    normalise = Normalise([0.5] * 3, [0.25] * 3)
    policy = augmentation("simple", 0, 0, 224, normalise)
    assert "RandomResizedCrop(size=224" in repr(policy) and "RandomShift" not in repr(policy)
    assert policy(torch.zeros(2, 3, 256, 256, dtype=torch.uint8), draws(2)).shape == (2, 3, 224, 224)


def test_pool_holds_the_released_strengths():
    """spec: brightness and contrast .9 v + bias over ten levels, light and high with bias 1.05, contrast overall 1.9 + .05."""
    level, sign = torch.tensor([1.0, 9.0]), torch.ones(2)
    strengths = {"BrightnessDark": (0.14, 0.86), "BrightnessLight": (1.14, 1.86), "BrightnessOverall": (0.28, 1.72),
                 "Color": (0.14, 0.86), "ContrastLow": (0.14, 0.86), "ContrastHigh": (1.14, 1.86),
                 "ContrastOverall": (0.24, 1.76), "Sharpness": (0.14, 0.86), "SharpnessLarge": (0.23, 1.67),
                 "Posterize": (4, 7), "Rotate": (1, 13), "Solarize": (231, 26), "Shear": (0.03, 0.27)}  # fmt: skip
    pool = operation_pool()
    assert tuple(pool) == POOL_OPTIONS
    for option, expected in strengths.items():
        for entry in pool[option].values():
            assert entry.strength(level, sign, (32, 32)).tolist() == pytest.approx(expected), option
    released = [name for option in RELEASED_POOL for name in pool[option]]
    assert released == list(LISTS["cssr"].entries)
    out = RandAugment(2, 10, operation_list(pool))(torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), draws(40))
    assert out.dtype == torch.uint8 and len(LISTS[operation_list(pool)].entries) == 17


def test_unknown_pool_options_are_named():
    with pytest.raises(UserError, match="nearest: Color"):
        operation_list(["Colour"])
    with pytest.raises(UserError, match="nothing"):
        operation_list([])


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_parse_and_flags_beside_them_win(preset):
    args = parse_arguments(["--preset", preset, "--max_epochs", "3"])
    assert args.max_epochs == 3
    assert all(getattr(args, flag) == value for flag, value in PRESETS[preset].items() if flag != "max_epochs")


def test_laptop_recipe_is_the_baselines():
    """Rows of one backbone compare only under one recipe; the heads take no logit scale."""
    from baseline_openmax.main import PRESETS as BASELINE

    theirs = dict(BASELINE["laptop"])
    assert theirs.pop("label_smoothing") == 0, "the heads have none"
    del theirs["logit_scale"]
    assert PRESETS["laptop"] == theirs | {"normalisation": "data"}


def test_help_needs_no_torch():
    import subprocess
    import sys

    code = "import sys; from cssr import main, test; main.parse_arguments(FLAGS); test.get_args_parser(); print('torch' in sys.modules)"  # noqa: E501
    code = code.replace("FLAGS", repr(["--ds", "./exps/digits/first_6.json", "--config", "./configs/rcssr/digits.json"]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FOLDER.parent)
    assert done.stdout.strip() == "False", done.stderr
    assert isinstance(get_args_parser(), argparse.ArgumentParser)
