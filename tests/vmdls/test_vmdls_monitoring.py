"""The monitoring line: what it says, and that nothing depends on it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.checkpoints import load_weights
from common.metrics import macro_f1
from vmdls import main, monitoring


def train(directory, *flags):
    main.main(["--preset", "digits", "--subset", "150", "--max_epochs", "2", "--sample_count", "8", "--run_dir",
               str(directory), *flags])  # fmt: skip
    log = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return load_weights(directory, paper="vmdls")[0], log


def test_every_epoch_says_what_it_sees_and_nothing_depends_on_it(tmp_path, capsys):
    rest, log = train(tmp_path / "rest")
    lines = [line for line in capsys.readouterr().out.splitlines() if "monitoring (" in line]
    assert len(lines) == 2 and "nothing is chosen by it" in lines[0] and "macro-F1 with digits-unknown" in lines[0]
    assert f"known accuracy {log[1]['monitoring_accuracy']:.4f}" in lines[1]
    noise, other = train(tmp_path / "noise", "--unknown_dataset", "noise")
    assert "macro-F1 with noise" in capsys.readouterr().out
    for name, tensor in rest.items():
        np.testing.assert_array_equal(tensor, noise[name], err_msg=name)
    assert [line["loss"] for line in log] == [line["loss"] for line in other]


def test_a_set_that_is_not_here_is_left_out_and_said(tmp_path, capsys):
    _, log = train(tmp_path / "run", "--unknown_dataset", "lsun-crop", "--data_dir", str(tmp_path))
    out = capsys.readouterr().out
    assert "lsun-crop is not here" in out and "macro-F1" not in out
    assert log[0]["monitoring_f1"] is None and log[0]["monitoring_accuracy"] > 0.1


def test_figures_are_those_of_the_decisions(tmp_path):
    args = main.parse_arguments(["--preset", "digits", "--subset", "120"])
    from common.devices import Devices
    from common.training import load_data
    from vmdls.model import VMDLS, LatentGaussians

    data, devices = load_data(args), Devices(args)
    watch = monitoring.Monitor(args, data, devices, tmp_path, [])
    assert (watch.target >= 0).sum() == (watch.target < 0).sum() == 120
    torch.manual_seed(0)
    model = VMDLS("small", 6, (1, 8, 8), [0.5], [0.25], latent_dim=4)
    gaussians = LatentGaussians(model.class_means)
    gaussians.mean = 0.05 * torch.randn(6, 4, dtype=torch.float64)
    gaussians.bound = gaussians.bound.fill_(-3.8)
    found = watch.watch(0, model, gaussians)
    with torch.no_grad():
        mean = torch.cat([model.eval()(torch.from_numpy(part))[0] for part in watch.parts])
    best, reached = (values.numpy() for values in gaussians.decide(mean))
    known = watch.target >= 0
    assert found["monitoring_accuracy"] == pytest.approx(np.mean((best == watch.target)[known]))
    decision = np.where(reached == 6, -1, reached)
    assert found["monitoring_f1"] == pytest.approx(macro_f1(watch.target, decision, 6))
    with np.load(tmp_path / "latents" / "epoch-001.npz") as stored:
        np.testing.assert_allclose(stored["mean"], mean[watch.shown], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("argv", "split_unknown", "colour", "expected"),
    [
        ([], (6, 7), False, "rest"),
        ([], (), False, "omniglot"),
        ([], (), True, "imagenet-resize"),
        (["--unknown_dataset", "noise"], (6, 7), False, "noise"),
        (["--unknown_dataset=omniglot"], (6, 7), False, "omniglot"),
        (["--unknown_dataset", "cifar_unknown"], (6, 7), True, "rest"),
    ],
)
def test_what_is_watched(argv, split_unknown, colour, expected, monkeypatch, tmp_path):
    from common.datasets import presence

    monkeypatch.setattr(presence, "part_path", lambda *_: tmp_path)
    given = argv[-1].split("=")[-1] if argv else "omniglot"
    args = SimpleNamespace(unknown_dataset=given, data_dir=tmp_path)
    split = SimpleNamespace(unknown=split_unknown, unknown_dataset=None)
    assert monitoring.watched_set(args, split, colour, argv) == expected
