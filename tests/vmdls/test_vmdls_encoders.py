"""The encoders against the released program's outputs and parameter lists; the network around them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import UserError
from vmdls import main
from vmdls.encoders import NAMES, SMALLEST, build_encoder, initialise_kaiming
from vmdls.model import VMDLS, Ensemble

GOLDEN_NETS = ["mnist-conv_2x1x28x28", "vgg_2x3x32x32", "resnet18_2x3x32x32", "densenet_2x3x32x32", "wresnet_1x3x32x32"]
WITH_SLICES = ("mnist-conv", "vgg")
SIZES = {"mnist-conv": (1, 28), "small": (1, 8)}


def near(found, expected, relative):
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=relative * np.abs(expected).max())


def fill(net, architecture, rule, seed):
    """Set parameters and running statistics by the golden README's rules."""
    generator, index = np.random.RandomState(seed), 0
    parameters = list(net.parameters())
    # DenseNet's list ends with a linear layer that is not used.
    assert len(architecture["parameters"]) - len(parameters) in (0, 2)
    for entry, parameter in zip(architecture["parameters"], parameters):
        assert list(parameter.shape) == entry["shape"], entry["name"]
        if rule == "sin":
            values = 0.05 * np.sin(np.arange(index, index + parameter.numel())).reshape(parameter.shape)
            index += parameter.numel()
        else:
            values = generator.standard_normal(parameter.shape)
            if entry["kind"] == "weight":
                values = values * np.sqrt(2 / math.prod(parameter.shape[1:]))
            else:
                values = 1 + 0.1 * values if entry["kind"] == "bn_weight" else 0.1 * values
        parameter.data = torch.from_numpy(values.astype(np.float32))
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == len(architecture["batchnorm_order"])
    generator = np.random.RandomState(seed + 1)
    for norm in norms:
        norm.reset_running_stats()
        if rule == "rng":
            shape = norm.num_features
            norm.running_mean.copy_(torch.from_numpy(0.1 * generator.standard_normal(shape)))
            norm.running_var.copy_(torch.from_numpy(1 + 0.2 * np.abs(generator.standard_normal(shape))))


@torch.no_grad()
def pooled(encoder, images):
    *maps, g = encoder.eval().stages(images)
    return [feature_map.mean((2, 3)) for feature_map in maps] + [g]


@pytest.mark.parametrize("name", GOLDEN_NETS)
def test_encoders_equal_the_released_program(golden, architectures, name):
    case = golden(f"encoder/{name}")
    config = case.config
    enc_type, (_, channels, size, _) = config["arch"], config["input"]
    architecture = architectures[enc_type]
    encoder = build_encoder(enc_type, channels, size, released_slices=enc_type in WITH_SLICES)
    unused = 342 * 10 + 10 if enc_type == "densenet" else 0
    assert sum(p.numel() for p in encoder.parameters()) + unused == int(case["param_count"]) == architecture["count"]
    waves = np.cos(np.arange(math.prod(config["input"]))).astype(np.float32).reshape(config["input"])
    inputs = {"sin": torch.from_numpy(waves), "rng": torch.from_numpy(case["rng_x"])}
    for rule, images in inputs.items():
        fill(encoder, architecture, rule, config["seed"])
        features = pooled(encoder, images)
        near(features[3].flatten()[:50], case[f"{rule}_out_first50"], 2e-5)
        for number, found in enumerate(features, 1):
            assert list(found.shape) == list(case[f"{rule}_feature{number}_shape"])
            near(found.flatten()[:50], case[f"{rule}_feature{number}_first50"], 2e-5)
            mean, spread = (float(case[f"{rule}_feature{number}_{name}"]) for name in ("mean", "std"))
            assert found.double().mean().item() == pytest.approx(mean, abs=2e-5 * spread)
            assert found.double().std(correction=0).item() == pytest.approx(spread, rel=2e-5)
            if rule == "rng":
                near(found, case[f"rng_feature{number}"], 2e-5)
    assert [found.shape[1] for found in features] == list(case["ensemble_dims_without_mu"])
    assert (*encoder.layer_dimensions, encoder.dimension) == tuple(case["ensemble_dims_without_mu"])


def test_deeper_resnets_have_the_standard_parameters(architectures):
    with torch.device("meta"):
        nets = {name: build_encoder(name, 3, 32) for name in ("resnet34", "resnet50")}
    shapes = [entry["shape"] for entry in architectures["resnet50"]["parameters"]]
    assert [list(p.shape) for p in nets["resnet50"].parameters()] == shapes
    # torchvision's ResNet-34 without classifier (21,284,672), its 7x7 stem (9,408) replaced by a 3x3 one (1,728).
    assert sum(p.numel() for p in nets["resnet34"].parameters()) == 21_284_672 - 9_408 + 1_728


@pytest.mark.parametrize(
    ("name", "latent_dim", "total"),
    [("densenet", 32, 974), ("densenet", 64, 1006), ("resnet18", 32, 992), ("vgg", 32, 1696), ("mnist-conv", 32, 832)],
)
def test_ensemble_has_the_papers_width(name, latent_dim, total):
    channels, size = SIZES.get(name, (3, 32))
    net = VMDLS(name, 10, (channels, size, size), [0.5] * channels, [0.5] * channels, latent_dim=latent_dim).eval()
    images = torch.randint(0, 256, (1, channels, size, size), dtype=torch.uint8)
    with torch.no_grad():
        parts, joined = net.ensemble(images), net.features(images)
    assert isinstance(parts, Ensemble) and joined.shape == (1, total) and joined.dtype == torch.float32
    assert [part.shape[1] for part in parts] == list(net.dimensions.values())
    assert torch.equal(parts.t1, net.first_layer(images)) and torch.equal(parts.mean, net(images)[0])


@pytest.mark.parametrize(("name", "width"), [("vgg", 1024), ("resnet18", 512), ("densenet", 342)])
def test_native_odin_crops_fit_and_only_densenets_pool_differs(name, width):
    """36x36 images give the same widths; DenseNet's g is t3 at 32x32 only, where its pool sees the whole map."""
    encoder = build_encoder(name, 3, 32)
    for size in (32, 36):
        *_, third, g = pooled(encoder, torch.randn(1, 3, size, size))
        assert g.shape == (1, width)
        if name == "densenet":
            assert torch.allclose(third, g, atol=1e-5) == (size == 32)


def test_paper_slices_come_after_the_relu():
    for name in WITH_SLICES:
        channels, size = SIZES.get(name, (3, 32))
        torch.manual_seed(0)
        paper, released = (build_encoder(name, channels, size, width=8, released_slices=late) for late in (False, True))
        released.load_state_dict(paper.state_dict())
        images = torch.randn(2, channels, size, size)
        after, before = pooled(paper, images), pooled(released, images)
        assert all((part >= 0).all() for part in after[:3])
        assert (before[0] < 0).any()
        assert torch.equal(after[3], before[3])
    first, second, third = paper.eval().taps, (5, 12, 25), released.taps
    assert first == second and third == (4, 11, 24)


def test_dropout_is_off_at_test_unless_asked():
    images = torch.randn(1, 3, 16, 16)
    for at_test in (False, True):
        torch.manual_seed(0)
        encoder = build_encoder("wresnet", 3, 16, dropout_at_test=at_test).eval()
        with torch.no_grad():
            assert torch.equal(encoder(images), encoder(images)) != at_test


def test_stem_options_of_the_resnets():
    images = torch.randn(1, 3, 32, 32)
    for first_conv, maxpool1, side in ((False, False, 32), (True, False, 16), (False, True, 16), (True, True, 8)):
        encoder = build_encoder("resnet18", 3, 32, first_conv=first_conv, maxpool1=maxpool1).eval()
        with torch.no_grad():
            assert next(encoder.stages(images)).shape[-1] == side


def test_kaiming_start_keeps_the_spread_of_the_images():
    """From the library's own start the plain CNN maps all images to nearly one point."""
    torch.manual_seed(0)
    encoder, images = build_encoder("mnist-conv", 1, 28, width=16), torch.randn(32, 1, 28, 28)
    with torch.no_grad():
        assert encoder(images).std(0).mean() < 0.01
        initialise_kaiming(encoder)
        assert encoder(images).std(0).mean() > 0.1
    assert all(module.bias.abs().sum() == 0 for module in encoder.modules() if isinstance(module, nn.Conv2d))


def test_small_and_speed_net_are_the_baselines_own():
    from common.backbones import ConvNet8, SpeedNet

    torch.manual_seed(0)
    for name, plain, shape in (("small", ConvNet8(1), (2, 1, 8, 8)), ("speednet", SpeedNet(3), (2, 3, 32, 32))):
        encoder = build_encoder(name, shape[1], shape[2])
        assert encoder.state_dict().keys() == plain.state_dict().keys()
        encoder.load_state_dict(plain.state_dict())
        images = torch.randn(shape)
        with torch.no_grad():
            assert torch.allclose(encoder.eval()(images), plain.eval()(images), atol=1e-6)
            assert torch.allclose(pooled(encoder, images)[2], plain.feature_map(images).mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("name", SMALLEST)
def test_smallest_images(name):
    channels = SIZES.get(name, (3, 32))[0]
    smallest = SMALLEST[name]
    encoder = build_encoder(name, channels, smallest, width=4)
    assert encoder.eval()(torch.randn(1, channels, smallest, smallest)).shape == (1, encoder.dimension)
    with pytest.raises(UserError, match=f"at least {smallest} pixels"):
        build_encoder(name, channels, smallest - 1, width=4)


def test_options_of_other_encoders_are_refused():
    for options, flag in (({"width": 8}, "--width"), ({"released_slices": True}, "--released_slices"),
                          ({"dropout_at_test": True}, "--dropout_at_test")):  # fmt: skip
        with pytest.raises(UserError, match=flag):
            build_encoder("resnet18", 3, 32, **options)
    with pytest.raises(UserError, match="--maxpool1"):
        build_encoder("vgg", 3, 32, maxpool1=True)
    with pytest.raises(ValueError, match="mnist-conv"):
        build_encoder("mnist", 1, 28)


def test_main_offers_every_encoder():
    assert main.ENCODERS == NAMES


def test_frozen_encoder_stands_still_while_the_heads_learn():
    torch.manual_seed(0)
    net = VMDLS("small", 3, (1, 8, 8), [0.5], [0.25], latent_dim=4)
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    net.freeze(True)
    net.train()
    before = {name: value.clone() for name, value in net.encoder.state_dict().items()}
    mean, log_variance = net(images)
    (mean.square().sum() + log_variance.sum()).backward()
    assert all(p.grad is None for p in net.encoder.parameters())
    assert net.mean_head.weight.grad.abs().sum() > 0 and net.log_variance_head.weight.grad.abs().sum() > 0
    assert all(torch.equal(before[name], value) for name, value in net.encoder.state_dict().items())
    net.freeze(False)
    sum(part.sum() for part in net(images)).backward()
    assert all(p.grad is not None for p in net.encoder.parameters())
    assert not torch.equal(before["layers.1.running_mean"], net.encoder.state_dict()["layers.1.running_mean"])


def test_heads_keep_float32_under_autocast():
    net = VMDLS("small", 3, (1, 8, 8), [0.5], [0.25], latent_dim=4).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        parts = net.ensemble(torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8))
    assert all(part.dtype == torch.float32 for part in parts)
