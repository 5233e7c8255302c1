"""Schedule, optimiser groups, augmentation and configuration files."""

import argparse
import json

import numpy as np
import pytest
import torch

from common.backbones import Normalise
from common.datasets.batches import Draws, generator_for
from common.errors import UserError
from cssr.main import PRESETS, get_args_parser, parse_arguments
from cssr.model import CSSR
from cssr.recipe import (
    FOLDER,
    MultiStep,
    augmentation,
    build_optimizer,
    data_of_experiment,
    flags_of_config,
    multi_step_factor,
    read_config,
)


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


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_parse_and_flags_beside_them_win(preset):
    args = parse_arguments(["--preset", preset, "--max_epochs", "3"])
    assert args.max_epochs == 3
    assert all(getattr(args, flag) == value for flag, value in PRESETS[preset].items() if flag != "max_epochs")


def test_laptop_recipe_is_the_baselines():
    """Rows of one backbone compare only under one recipe; the heads take no label smoothing and no logit scale."""
    from baseline_openmax.main import PRESETS as BASELINE

    theirs = {k: v for k, v in BASELINE["laptop"].items() if k not in ("label_smoothing", "logit_scale")}
    assert PRESETS["laptop"] == theirs | {"normalisation": "data"}


def test_configuration_files_become_flags():
    args = parse_arguments(["--config", "./configs/rcssr/cifar10.json", "--ds", "./exps/cifar10/spl_b.json", "--gamma", "0.2"])
    assert (args.model, args.backbone, args.max_epochs, args.rate) == ("rcssr", "wideresnet40-4", 200, 0.4)
    assert (args.milestones, args.augment, args.ae_latent, args.gamma) == ([120, 190], "strong", 64, 0.2)
    assert (args.known_dataset, args.split) == ("cifar10", "cssr-b")
    linear = parse_arguments(["--config", "configs/linear/cifar10.json"])
    assert (linear.model, linear.gamma, linear.arch_type) == ("linear", 1, "avg_softmax")


def test_every_shipped_configuration_and_experiment_reads():
    flags = {action.dest for action in get_args_parser()._actions}
    files = [str(path.relative_to(FOLDER)) for path in FOLDER.glob("configs/*/*.json")]
    assert len(files) == 9
    for file in files:
        assert set(flags_of_config(file)) <= flags
    found = {str(path.relative_to(FOLDER)): data_of_experiment(str(path)) for path in FOLDER.glob("exps/*/*.json")}
    expected = {f"exps/{data}/spl_{s}.json": (data, f"cssr-{s}") for data in ("cifar10", "mnist") for s in "abcde"}
    assert found == expected | {"exps/digits/first_6.json": ("digits", "first-6")}


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def test_inheritance_merges_dictionaries_key_by_key(tmp_path):
    parent = write(tmp_path / "parent.json", {"batch_size": 128, "category_model": {"model": "pcssr", "gamma": 0.1}})
    child = write(tmp_path / "child.json", {"inherit": parent, "batch_size": 32, "category_model": {"gamma": 0.3}})
    assert read_config(child) == {"batch_size": 32, "category_model": {"model": "pcssr", "gamma": 0.3}}


def test_bad_files_say_what_is_wrong(tmp_path):
    loop = tmp_path / "loop.json"
    write(loop, {"inherit": str(loop)})
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for path, message in ((str(loop), "inherits itself"), (str(broken), "not readable JSON"),
                          ("./exps/cifar10/spl_a.json", "category_model"), ("./configs/pcsr.json", "pcssr.json")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            flags_of_config(path)
    with pytest.raises(UserError, match="no experiment"):
        data_of_experiment("./configs/pcssr.json")
    entry = {"dataset": "digits", "convert_class": [1, 0] + [-1] * 8, "keep_class": [0, 1]}
    with pytest.raises(UserError, match="ascending"):
        data_of_experiment(write(tmp_path / "order.json", {"train": [entry]}))


def test_help_needs_no_torch():
    import subprocess
    import sys

    code = "import sys; from cssr import main, test; main.parse_arguments([]); test.get_args_parser(); print('torch' in sys.modules)"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FOLDER.parent)
    assert done.stdout.strip() == "False", done.stderr
    assert isinstance(get_args_parser(), argparse.ArgumentParser)
