"""The auto-encoders against golden numbers, and their two scripts: figures, resume, names, bad input in one line."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from common.arguments import run_script
from common.checkpoints import load_weights
from common.errors import TimeUp, UserError
from vmdls import ae_training, mnist_ae, train_resnet_ae
from vmdls.autoencoders import AutoEncoder, ResNetDecoder


def filled(net, parameters, entries, seed):
    """Fill parameters with the golden rule, in the order of `entries`; BatchNorm statistics after them."""
    generator = np.random.RandomState(seed)
    values = {}
    for entry in entries:
        drawn = generator.standard_normal(entry["shape"])
        if entry["kind"] == "weight":
            drawn = drawn * np.sqrt(2 / math.prod(entry["shape"][1:]))
        else:
            drawn = 1 + 0.1 * drawn if entry["kind"] == "bn_weight" else 0.1 * drawn
        values[entry["name"]] = torch.from_numpy(drawn.astype(np.float32))
    for name, parameter in parameters:
        assert parameter.shape == values[name].shape, name
        parameter.data = values[name]
    generator = np.random.RandomState(seed + 1)
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.copy_(torch.from_numpy(0.1 * generator.standard_normal(norm.num_features)))
        norm.running_var.copy_(torch.from_numpy(1 + 0.2 * np.abs(generator.standard_normal(norm.num_features))))
    return net.eval()


@pytest.mark.parametrize("name", ["mnist_autoencoder", "resnet18_decoder_latent256_height32"])
def test_networks_equal_the_released_program(golden, architectures, name):
    case, entries = golden(f"autoencoder/{name}"), architectures[name]["parameters"]
    names = [entry["name"] for entry in entries]
    if name == "mnist_autoencoder":
        net = AutoEncoder("mnist", (1, 28, 28), [0.5], [0.5], latent_dim=32)
        # There the bottleneck's layer comes last.
        decoder = [n for n in names if n.startswith("decoder")]
        names = [n for n in names if n.startswith("encoder")] + ["fc.weight", "fc.bias"] + decoder
        parameters = list(net.parameters())
    else:
        net = ResNetDecoder(256, 3, 32)
        # The 1x1 shortcut comes last in each block of both.
        parameters = list(net.parameters())
    assert sum(p.numel() for p in net.parameters()) == case["param_count"]
    filled(net, zip(names, parameters, strict=True), entries, case.config["seed"])
    with torch.no_grad():
        found = net(torch.from_numpy(case["rng_x"]))
    assert list(found.shape) == case["rng_out_shape"].tolist()
    np.testing.assert_allclose(found.flatten()[:50], case["rng_out_first50"], rtol=2e-5, atol=2e-4)
    assert found.mean().item() == pytest.approx(case["rng_out_mean"], rel=2e-5)
    assert found.std(correction=0).item() == pytest.approx(case["rng_out_std"], rel=2e-5)


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [("resnet18", (3, 32, 32), {}), ("mnist", (1, 28, 28), {"width": 8}), ("small", (1, 8, 8), {"width": 4}),
     ("small", (3, 32, 32), {"width": 4}), ("small", (1, 28, 28), {"width": 4})],
)  # fmt: skip
def test_reconstructions_have_the_shape_of_the_images(name, shape, options):
    net = AutoEncoder(name, shape, [0.5] * shape[0], [0.25] * shape[0], latent_dim=16, **options)
    images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    with torch.no_grad():
        found = net.eval()(images)
        assert found.shape == (2, *shape)
        # Floats count as normalised already.
        torch.testing.assert_close(net(net.normalise(images)), found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("mnist", (1, 32, 32)), "28x28"), (("resnet18", (3, 36, 36)), "divisible by 8"), (("small", (1, 9, 9)), "by 4")],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        AutoEncoder(*arguments, [0.5], [0.5])
    with pytest.raises(UserError, match="--width"):
        AutoEncoder("resnet18", (3, 32, 32), [0.5] * 3, [0.5] * 3, width=8)


def test_digits_are_reconstructed_by_what_the_script_trains(tmp_path):
    """Far better than the mean image, and the log says so for held-out images."""
    mnist_ae.main(["--preset", "digits", "--max_epochs", "8", "--run_dir", str(tmp_path / "ae")])
    log = [json.loads(line) for line in (tmp_path / "ae" / "log.jsonl").read_text().splitlines()]
    tensors, header = load_weights(tmp_path / "ae", paper="vmdls")
    net = AutoEncoder(**header["model"])
    net.load_state_dict(tensors)
    from common.datasets import load

    digits = load("digits", False).of_classes(range(6))
    pixels = torch.from_numpy(digits.pixels)
    with torch.no_grad():
        images = net.normalise(pixels)
        error = nn.functional.mse_loss(net.eval()(pixels), images).item()
    spread = images.var(0, correction=0).mean().item()
    assert error < 0.5 * spread and log[-1]["validation_loss"] == pytest.approx(error, rel=0.4)
    assert header["class_names"] == list("012345") and header["data"]["split"] == "first-6"
    meta = json.loads((tmp_path / "ae" / "meta.json").read_text())
    assert meta["command"].startswith("python vmdls/mnist_ae.py --preset digits") and meta["finished"]


def test_interrupted_training_goes_on_bit_for_bit(tmp_path, monkeypatch):
    flags = ["--preset", "digits", "--subset", "150", "--max_epochs", "2"]
    mnist_ae.main([*flags, "--run_dir", str(tmp_path / "whole")])
    ticks = iter([False] * 3 + [True])
    monkeypatch.setattr("common.devices.Devices.agree", lambda self, value: next(ticks))
    with pytest.raises(TimeUp):
        mnist_ae.main([*flags, "--run_dir", str(tmp_path / "parts"), "--time_limit", "9"])
    monkeypatch.undo()
    mnist_ae.main([*flags, "--run_dir", str(tmp_path / "parts"), "--resume"])
    whole, parts = (load_weights(tmp_path / name, paper="vmdls")[0] for name in ("whole", "parts"))
    for name, tensor in whole.items():
        np.testing.assert_array_equal(tensor, parts[name], err_msg=name)


@pytest.mark.parametrize(
    ("script", "flags", "expected"),
    [
        (train_resnet_ae, ["--dataset", "stl10"], "nearest"),
        (train_resnet_ae, ["--enc_type", "densenet"], "choose from"),
        (mnist_ae, ["--preset", "digits", "--enc_type", "mnist"], "28x28"),
        (mnist_ae, ["--preset", "digits", "--lr", "1e30"], "diverged; lower --lr (now 1e+30)"),
        (mnist_ae, ["--preset", "mnists"], "nearest: mnist"),
        (mnist_ae, ["--preset", "digits", "--batch_size", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_line(script, flags, expected, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        run_script(script.main, ["--run_dir", str(tmp_path / "run"), *flags])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1 and expected in error


def test_the_width_of_the_encoder_is_checked():
    from types import SimpleNamespace

    images = SimpleNamespace(pixels=np.zeros((1, 3, 32, 32), np.uint8), shape=(3, 32, 32), name="")
    args = ae_training.parse_arguments("train_resnet_ae.py", ["--enc_type", "resnet18", "--enc_out_dim", "2048"])
    with pytest.raises(UserError, match="its output has 512"):
        ae_training.model_settings(args, images)
