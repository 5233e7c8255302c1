"""main.py: presets, the originals' flags, a trained digits run, resume, skipped batches, and bad input in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import checkpoints
from common.arguments import run_script
from common.errors import TimeUp, UserError
from crosr import main
from crosr.main import PRESETS, build_schedules, parse_arguments, set_rate, settle_skipped
from crosr.model import DHRNet

DIGITS = ["--preset", "digits"]


def log_of(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_parse_and_flags_beside_them_win(preset):
    args = parse_arguments(["--preset", preset, "--max_epochs", "3"])
    assert args.max_epochs == 3
    assert all(getattr(args, flag) == value for flag, value in PRESETS[preset].items() if flag != "max_epochs")


def test_presets_are_the_recipes_of_the_releases():
    released, paper = (parse_arguments(["--preset", name]) for name in ("released", "paper"))
    for args in (released, paper, parse_arguments([])):
        assert (args.known_dataset, args.split, args.max_epochs, args.batch_size) == ("cifar10", "all", 500, 128)
        assert (args.rate, args.momentum, args.weight_decay, args.lr_decay_rate) == (0.05, 0.9, 5e-4, 0.5)
        assert args.schedule == "step" and args.reconstruction_weight == 1 and not args.no_shuffle
    assert (released.variant, released.augment, released.lr_decay_epoch) == ("released", "released", 30)
    assert (paper.variant, paper.augment, paper.lr_decay_epoch) == ("paper", "paper", 25)
    assert (paper.random_angle, paper.pca_sigma, paper.expand_ratio) == (15, 25.5, 1.2)


def test_the_originals_flags_are_accepted():
    flags = "--seed 4 --gpus 0, --batchsize 16 --training_epoch 3 --initial_lr .02 --lr_decay_rate .3"
    flags += " --lr_decay_epoch 7 --weight_decay .001 --rloss_weight 2 --random_angle 10 --pca_sigma 5"
    flags += " --expand_ratio 1.1 --crop_size 24 24"
    args = parse_arguments([*flags.split(), "--augment", "paper"])
    assert (args.seed, args.gpu, args.batch_size, args.max_epochs, args.rate) == (4, "0,", 16, 3, 0.02)
    assert (args.lr_decay_rate, args.lr_decay_epoch, args.weight_decay) == (0.3, 7, 0.001)
    assert args.reconstruction_weight == 2
    assert (args.random_angle, args.pca_sigma, args.expand_ratio, args.crop_size) == (10, 5, 1.1, 24)


@pytest.mark.parametrize(("preset", "every"), [("released", 30), ("paper", 25)])
def test_step_schedule_halves_the_rate_at_the_first_step_of_an_epoch(preset, every):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.05)
    steps = 391
    schedules = build_schedules(optimizer, parse_arguments(["--preset", preset]), steps)
    for epoch in (0, 1, 3, 7, 499 // every):
        for step, decays in ((epoch * every * steps - 1, epoch - 1), (epoch * every * steps, epoch)):
            if step >= 0:
                set_rate(schedules, step)
                assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.5**decays, rel=1e-12), (epoch, step)


def test_the_rate_begins_again_and_falls_to_zero():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    flags = ["--schedule", "onecycle", "--rate", "0.1", "--max_epochs", "14"]
    again = build_schedules(optimizer, parse_arguments([*flags, "--restart_epoch", "9", "--restart_rate", "0.04"]), 10)
    alone = build_schedules(optimizer, parse_arguments([*flags[:-1], "9"]), 10)

    def rate(schedules, step):
        set_rate(schedules, step)
        return optimizer.param_groups[0]["lr"]

    assert [rate(again, step) for step in range(90)] == [rate(alone, step) for step in range(90)]
    falling = [rate(again, step) for step in range(90, 140)]
    assert falling[0] == pytest.approx(0.04) and falling == sorted(falling, reverse=True)
    assert falling[25] == pytest.approx(0.02) and 0 < falling[-1] < 1e-4
    assert len(build_schedules(optimizer, parse_arguments([*flags, "--restart_epoch", "20"]), 10)) == 1


def test_digits_are_learned_and_reconstructed(trained):
    log = log_of(trained)
    assert len(log) == 8 and log[-1]["validation_accuracy"] >= 0.95
    assert log[-1]["reconstruction_loss"] < 0.5 * log[0]["reconstruction_loss"]
    assert log[-1]["classification_loss"] < 0.2 * log[0]["classification_loss"]
    for line in log:
        assert line["loss"] == pytest.approx(line["classification_loss"] + line["reconstruction_loss"], rel=1e-5)


def test_checkpoint_rebuilds_the_network_and_holds_the_statistics(trained):
    tensors, header = checkpoints.load_weights(trained, paper="crosr", classes=6)
    assert header["model"]["backbone"] == "convnet8" and header["data"]["split"] == "first-6"
    model = DHRNet(**header["model"])
    model.load_state_dict({name: t for name, t in tensors.items() if not name.startswith("statistics.")})
    assert any(name.startswith("statistics.") for name in tensors)


def test_interrupted_run_resumes_bit_for_bit(tmp_path):
    """Dropout's random numbers go on where they stopped, too."""
    flags = [*DIGITS, "--max_epochs", "2", "--augment", "shift1", "--run_dir"]
    main.main([*flags, str(tmp_path / "whole")])
    with pytest.raises(TimeUp):
        main.main([*flags, str(tmp_path / "parts"), "--time_limit", "0.0001"])
    main.main([*flags, str(tmp_path / "parts"), "--resume"])
    whole, parts = (checkpoints.load_weights(tmp_path / name, paper="crosr")[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(tensor, parts[name], err_msg=name)
    for one, other in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "parts")):
        assert one | {"seconds": 0} == other | {"seconds": 0}


def test_weight_of_the_reconstruction_and_monitoring_on_test_images(tmp_path, capsys):
    flags = [*DIGITS, "--max_epochs", "1", "--rloss_weight", "0.25", "--validate_on_test", "--no_shuffle"]
    main.main([*flags, "--dropout_at_test", "--run_dir", str(tmp_path / "run")])
    (line,) = log_of(tmp_path / "run")
    assert line["loss"] == pytest.approx(line["classification_loss"] + 0.25 * line["reconstruction_loss"], rel=1e-5)
    assert 0 <= line["test_accuracy"] <= 1 and 0 <= line["validation_accuracy"] <= 1
    assert "monitoring only" in capsys.readouterr().out
    header = checkpoints.load_weights(tmp_path / "run", paper="crosr")[1]
    assert header["model"]["dropout_at_test"] is True


def test_diverged_training_skips_batches_and_then_stops(tmp_path, capsys):
    with pytest.raises(UserError, match="smaller --rate"):
        main.main([*DIGITS, "--rate", "1e30", "--max_epochs", "3", "--run_dir", str(tmp_path / "run")])
    assert "batches skipped" in capsys.readouterr().out
    (line,) = log_of(tmp_path / "run")
    assert 0 < line["skipped_batches"] < line["steps"] and np.isfinite(line["loss"])


def test_means_of_an_epoch_leave_skipped_batches_out(capsys):
    run = SimpleNamespace(epoch=0, step=4, sums={"skipped_batches": torch.tensor(1.0), "loss": torch.tensor(6.0)})
    assert settle_skipped(run) == {"skipped_batches": 1}
    assert float(run.sums["loss"]) / run.step == pytest.approx(2.0) and "1 of 4" in capsys.readouterr().out
    assert settle_skipped(SimpleNamespace(epoch=0, step=4, sums={"skipped_batches": torch.tensor(0.0)})) == {}


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "digits"])
def test_every_preset_runs_dry_on_its_data(preset, tmp_path):
    from common.datasets import data_root
    from common.datasets.presence import part_path

    args = parse_arguments(["--preset", preset])
    if not all(part_path(args.known_dataset, train, data_root()) for train in (True, False)):
        pytest.skip(f"{args.known_dataset} is not in {data_root()}")
    main.main(["--preset", preset, "--width", "8", "--dry_run", "--run_dir", str(tmp_path / preset)])
    tensors, header = checkpoints.load_weights(tmp_path / preset, paper="crosr", classes=10)
    assert header["model"]["crop_size"] == (28 if preset == "paper" else None)
    assert tensors["normalise.mean"].numel() == (1 if "mnist" in preset else 3)


GREY = [*DIGITS, "--augment", "paper"]
BAD = [
    ([*DIGITS, "--backbone", "plian"], "nearest: plain"),
    ([*DIGITS, "--crop_size", "6"], "--augment paper"),
    ([*GREY, "--crop_size", "6", "7"], "twice the same"),
    ([*GREY, "--pca_sigma", "0", "--crop_size", "12"], "larger than the images"),
    (GREY, "--pca_sigma 0"),
    ([*GREY, "--pca_sigma", "0", "--expand_ratio", "0.5"], "at least 1"),
    ([*DIGITS, "--low_resolution_epochs", "2"], "multiples of 4"),
    (["--preset", "released", "--low_resolution_epochs", "2"], "--augment released"),
    ([*DIGITS, "--normalisation", "released"], "three colour channels"),
    ([*DIGITS, "--backbone", "densenet", "--norm", "none"], "plain nets"),
    ([*DIGITS, "--variant", "official"], "released"),
    ([*DIGITS, "--rloss_weight", "-1"], "at least 0"),
    (["--preset", "digit"], "nearest: digits"),
    (["--restart_rate", "0.1"], "--restart_epoch says when"),
    (["--resume"], "--resume needs"),
]


@pytest.mark.parametrize(("flags", "expected"), BAD)
def test_bad_input_is_one_line_and_writes_nothing(flags, expected, tmp_path, capsys):
    where = [] if "--resume" in flags else ["--run_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as left:
        run_script(main.main, [*where, *flags])
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.count("\n") == 1 and expected in error
    assert not (tmp_path / "run").exists()


def test_script_runs_as_a_user_runs_it(run, tmp_path):
    done = run("main.py", *DIGITS, "--dry_run", "--run_dir", tmp_path / "run")
    assert done.returncode == 0 and "trained:" in done.stdout, done.stderr
    assert (tmp_path / "run" / "weights.safetensors").exists()


def test_help_needs_no_torch():
    code = "import sys; from crosr import main; main.parse_arguments([]); print('torch' in sys.modules)"
    root = Path(main.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=os.environ)
    assert done.stdout.strip() == "False", done.stderr
