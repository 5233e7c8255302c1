"""CSSR's networks against the released program's outputs, parameter lists and BatchNorm updates."""

import math

import numpy as np
import pytest
import torch
from test_head import near
from torch import nn

from cssr.backbones import NAMES, RESNETS, WideResNet, build_backbone

GOLDEN_NETS = ["wideresnet40-4_2x3x32x32", "resnet18_2x3x32x32", "resnet18_1x3x64x64"]


def batch_norms(net, order):
    """BatchNorm layers in the recorded order: the order of the parameters."""
    found = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(found) == len(order)
    return found


def fill(net, architecture, rule, seed):
    """Set parameters and running statistics by the golden README's rules."""
    generator, index = np.random.RandomState(seed), 0
    for parameter, entry in zip(net.parameters(), architecture["parameters"], strict=True):
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
    norms, generator = batch_norms(net, architecture["batchnorm_order"]), np.random.RandomState(seed + 1)
    for norm in norms:
        norm.reset_running_stats()
        if rule == "rng":
            shape = norm.num_features
            norm.running_mean.copy_(torch.from_numpy(0.1 * generator.standard_normal(shape)))
            norm.running_var.copy_(torch.from_numpy(1 + 0.2 * np.abs(generator.standard_normal(shape))))
    return norms


@pytest.mark.parametrize("name", GOLDEN_NETS)
def test_networks_equal_the_released_program(golden, architectures, name):
    case = golden(f"backbone/{name}")
    config, architecture = case.config, architectures[case.config["arch"]]
    net = build_backbone(config["arch"], 3, config["input"][2])
    assert sum(p.numel() for p in net.parameters()) == int(case["param_count"]) == architecture["count"]
    size = math.prod(config["input"])
    inputs = {"sin": torch.from_numpy(np.cos(np.arange(size)).astype(np.float32)).view(config["input"]),
              "rng": torch.from_numpy(case["rng_x"])}  # fmt: skip
    for rule, images in inputs.items():
        norms = fill(net, architecture, rule, config["seed"])
        with torch.no_grad():
            out = net.eval().feature_map(images)
        assert list(out.shape) == list(case[f"{rule}_out_shape"])
        near(out.flatten()[:50], case[f"{rule}_out_first50"], 2e-5)
        near(out.mean((2, 3)), case[f"{rule}_out_channel_mean"], 2e-5)
        near(out.double().mean(), case[f"{rule}_out_mean"], 2e-5)
        near(out.double().std(correction=0), case[f"{rule}_out_std"], 2e-5)
    if "rng_train_out_shape" not in case:
        return
    with torch.no_grad():
        out = net.train().feature_map(inputs["rng"])
    near(out.flatten()[:50], case["rng_train_out_first50"], 1e-4)
    for which, norm in (("first", norms[0]), ("last", norms[-1])):
        near(norm.running_mean, case[f"rng_train_{which}_bn_running_mean"], 2e-5)
        near(norm.running_var, case[f"rng_train_{which}_bn_running_var"], 2e-5)


def test_every_recorded_parameter_count_and_shape(architectures):
    for name, expected in architectures["_counts_and_output_shape_for_1x3x32x32"].items():
        base, _, projection = name.partition("+proj")
        with torch.device("meta"):
            net = build_backbone(base, 3, 32, projection_dim=int(projection or -1))
            out = net.eval().feature_map(torch.empty(1, 3, 32, 32))
        assert sum(p.numel() for p in net.parameters()) == expected["count"], name
        assert list(out.shape) == expected["out32"] and net.channels == out.shape[1], name


def test_acceptance_sizes():
    for name, channels, millions in (("wideresnet40-4", 256, 8.947), ("resnet18", 512, 11.169)):
        with torch.device("meta"):
            net = build_backbone(name, 3, 32)
        assert net.channels == channels
        assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


def test_standard_wrn_normalises_every_block_and_the_released_form_does_not():
    torch.manual_seed(0)
    released, standard = WideResNet(3, 10, 1), WideResNet(3, 10, 1, standard=True)
    standard.load_state_dict(released.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert not torch.allclose(released.eval()(images), standard.eval()(images))
    for net, unused in ((released, 2), (standard, 0)):
        net.train().feature_map(images).square().sum().backward()
        frozen = [norm for norm in net.modules() if isinstance(norm, nn.BatchNorm2d) and norm.weight.grad is None]
        assert len(frozen) == unused
        assert all(not p.requires_grad or p.grad is not None for p in net.parameters())


def test_dropout_works_in_training_only():
    torch.manual_seed(0)
    net, images = WideResNet(3, 10, 1, dropout=0.4), torch.randn(4, 3, 8, 8)
    assert torch.equal(net.eval()(images), net(images))
    net.train()
    assert not torch.equal(net(images), net(images))


@pytest.mark.parametrize("name", ["convnet8", "convnet28", "speednet"])
def test_plain_nets_are_projected_to_other_widths_only(name):
    size = {"convnet8": 8, "convnet28": 28, "speednet": 32}[name]
    plain = build_backbone(name, 3, size)
    assert type(build_backbone(name, 3, size, projection_dim=plain.channels)) is type(plain)
    net = build_backbone(name, 3, size, projection_dim=10)
    assert net.feature_map(torch.randn(2, 3, size, size)).shape[1] == net.channels == 10
    assert build_backbone(next(iter(RESNETS)), 3, 32, projection_dim=512).projection[0].out_channels == 512


def test_unknown_backbone_names_the_choices():
    with pytest.raises(ValueError, match=NAMES[0]):
        build_backbone("resnet81", 3, 32)
