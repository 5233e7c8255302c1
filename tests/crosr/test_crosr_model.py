"""DHRNet against the golden numbers of the released network, and the properties that hold for every backbone."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from common.errors import UserError
from crosr.model import (
    RELEASED_MEAN,
    RELEASED_STD,
    DHRNet,
    Output,
    classification_loss,
    pooled_latents,
    reconstruction_loss,
    released_state_dict,
)
from crosr.networks import NAMES, Dropout, Flatten, build_network

LABELS = torch.tensor([3, 7])
SHAPES = {"plain": (3, 32, 32), "densenet": (3, 32, 32), "convnet28": (1, 28, 28), "convnet8": (1, 8, 8)}
NARROW = {"plain": 4, "densenet": 2, "convnet28": 8, "convnet8": 8}


def network(backbone="plain", classes=5, **options):
    torch.manual_seed(0)
    shape = options.pop("shape", SHAPES[backbone])
    width = options.pop("width", NARROW[backbone])
    return DHRNet(backbone, classes, shape, [0.5] * shape[0], [0.25] * shape[0], width, **options)


def images(shape, count=4):
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def released_network():
    return DHRNet("plain", 10, (3, 32, 32), RELEASED_MEAN, RELEASED_STD, variant="released")


def fill_a(tensors):
    """Sines in every tensor, float64, and the input."""
    filled = {}
    for name, shape, _ in tensors:
        values = np.sin(np.arange(int(np.prod(shape)), dtype=np.float64)).reshape(shape) * 0.05
        filled[name] = np.ones(shape) if name.endswith("running_var") else values
    return filled, np.cos(np.arange(2 * 3 * 32 * 32, dtype=np.float64)).reshape(2, 3, 32, 32)


def fill_b(tensors):
    """Seeded random tensors and input (golden README), rounded to float32."""
    filled = {}
    for number, (name, shape, _) in enumerate(tensors):
        random = np.random.RandomState(1000 + number)
        if name.endswith("running_var"):
            values = 0.5 + random.random_sample(shape)
        elif len(shape) >= 2:
            values = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.startswith("bn") and name.endswith(".weight"):
            values = 1 + 0.1 * random.standard_normal(shape)
        else:
            values = 0.1 * random.standard_normal(shape)
        filled[name] = np.asarray(values).astype(np.float32)
    return filled, np.random.RandomState(7).standard_normal((2, 3, 32, 32)).astype(np.float32)


def filled_network(golden, fill, precision):
    tensors = golden("dhrnet_state_dict.json")["state_dict"]
    values, inputs = fill(tensors)
    counters = {name for name, _, kind in tensors if kind == "int64"}
    state = {name: torch.as_tensor(value).to(precision) for name, value in values.items()}
    state |= {name: torch.tensor(0) for name in counters}
    model = released_network().to(precision)
    model.load_state_dict(released_state_dict(state))
    return model, torch.from_numpy(inputs).to(precision)


def check(found, expected, precision, factor=1.0):
    """Equal within a share of the largest value: rounding in float64, the README's measured difference in float32."""
    tolerance = (1e-12 if precision == torch.float64 else 5e-6 * factor) * max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(found.detach().double().numpy(), expected, rtol=0, atol=tolerance)


def check_output(output, stored, prefix, summary, precision):
    check(output.logits, stored[prefix + "logits"], precision)
    losses = torch.stack([classification_loss(output, LABELS), reconstruction_loss(output)])
    check(torch.cat([losses, losses.sum()[None]]), stored[prefix + "losses_ce_mse_total"], precision)
    for pooling in ("max", "avg"):
        vector = torch.cat([output.logits, pooled_latents(output.latents, pooling)], 1)
        check(vector, stored[f"{prefix}av_{pooling}pool"], precision, 4)
    maps = dict(zip(("z3", "z2", "z1"), output.latents)) | {"recon": output.reconstruction}
    for name, values in maps.items():
        flat = values.flatten()
        first = stored[f"{prefix}{name}_first"]
        check(flat[: len(first)], first, precision, 4)
        places = np.arange(64) * (len(flat) // 64)
        check(flat[places], stored[f"{prefix}{name}_strided"], precision, 4)
        found = torch.stack([flat.mean(), flat.std(correction=0), (flat == 0).double().mean()])
        check(found, stored[f"{prefix}{name}_{summary}"], precision, 4)


@pytest.mark.parametrize("precision", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_released_network_equals_fill_a(golden, precision):
    stored = golden("dhrnet_golden.npz")
    model, inputs = filled_network(golden, fill_a, precision)
    prefix = "f64_" if precision == torch.float64 else "f32_"
    check_output(model.eval()(inputs), stored, prefix, "mean_std", precision)


@pytest.mark.parametrize("mode", ["eval", "train_bn"])
@pytest.mark.parametrize("precision", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_released_network_equals_fill_b_with_gradients(golden, precision, mode):
    stored = golden("dhrnet_golden_b.npz")
    model, inputs = filled_network(golden, fill_b, precision)
    model.train(mode == "train_bn")
    for module in model.modules():
        if isinstance(module, Dropout):
            module.probability = 0.0  # the golden numbers are made without dropout
    output = model(inputs)
    prefix = f"{'f64' if precision == torch.float64 else 'f32'}_{mode}_"
    check_output(output, stored, prefix, "mean_std_zero", precision)
    (classification_loss(output, LABELS) + reconstruction_loss(output)).backward()
    gradients = {name: parameter.grad.norm() for name, parameter in model.named_parameters()}
    own = {original: name for name, original in released_state_dict({n: n for n in stored["param_names"]}).items()
           if isinstance(original, str)}  # fmt: skip
    norms = torch.stack([gradients.pop(own[name]) for name in stored["param_names"]])
    assert not gradients
    # In float32 a value within rounding of zero may fall on the other side of a ReLU: 1e-4 of a norm was seen.
    check(norms, stored[prefix + "grad_l2"], precision, 1 if precision == torch.float64 else 100)
    if mode == "train_bn":
        first = model.stages[0][1]
        check(first.running_mean, stored[prefix + "bn1_1_running_mean_after"], precision)
        check(first.running_var, stored[prefix + "bn1_1_running_var_after"], precision)


def test_parameter_counts_are_the_published_ones(golden):
    def count(model):
        return sum(parameter.numel() for parameter in model.parameters())

    description = golden("dhrnet_state_dict.json")
    assert count(released_network()) == description["num_parameters"] == 7_416_365
    assert count(DHRNet("plain", 10, (3, 32, 32), RELEASED_MEAN, RELEASED_STD, variant="paper")) == 8_006_957


def test_released_names_cover_the_network_and_nothing_else(golden):
    tensors = golden("dhrnet_state_dict.json")["state_dict"]
    own = released_state_dict({name: torch.zeros(shape) for name, shape, _ in tensors})
    expected = released_network().state_dict()
    assert {name: tuple(t.shape) for name, t in own.items()} == {name: tuple(t.shape) for name, t in expected.items()}
    torch.testing.assert_close(own["normalise.mean"], expected["normalise.mean"])
    with pytest.raises(UserError, match="layer4"):
        released_state_dict({"layer4.weight": torch.zeros(1)})


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("backbone", NAMES)
def test_shapes_and_gradients_of_every_backbone(backbone, variant):
    shape = SHAPES[backbone]
    model = network(backbone, variant=variant)
    output = model(images(shape))
    assert output.logits.shape == (4, 5)
    assert output.reconstruction.shape == output.target.shape == (4, *shape)
    sides = [z.shape[2] for z in output.latents]
    assert sides == sorted(sides) and all(z.shape[:2] == (4, 32) and z.min() >= 0 for z in output.latents)
    nonnegative = bool(output.reconstruction.min() >= 0)
    assert nonnegative == (variant == "released" and backbone != "densenet")
    (classification_loss(output, torch.arange(4)) + reconstruction_loss(output)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith(("bottlenecks", "expansions", "decoders")) and name.endswith("weight"):
            assert parameter.grad.abs().sum() > 0, name


def test_densenet_is_the_papers_with_registered_laterals():
    parts = build_network("densenet", 10, 3, 32)
    assert parts.channels == [784, 1552, 2320]
    model = network("densenet")
    for level, channels in enumerate((16 + 64, 16 + 128, 16 + 192)):
        assert model.state_dict()[f"bottlenecks.{level}.weight"].shape == (32, channels, 3, 3)
        assert model.state_dict()[f"expansions.{level}.weight"].shape == (channels, 32, 3, 3)
    laterals = {id(p) for part in (model.bottlenecks, model.expansions, model.decoders) for p in part.parameters()}
    assert laterals <= {id(p) for p in model.parameters()}


@pytest.mark.parametrize("backbone", NAMES)
def test_reconstruction_goes_through_the_latents_only_and_logits_past_them(backbone):
    model = network(backbone).eval()
    batch = images(SHAPES[backbone])
    before = model(batch)
    assert not torch.equal(before.reconstruction[0], before.reconstruction[1])
    with torch.no_grad():
        for bottleneck in model.bottlenecks:
            bottleneck.weight.zero_()
            bottleneck.bias.fill_(-1)
    after = model(batch)
    assert all(z.abs().max() == 0 for z in after.latents)
    torch.testing.assert_close(after.reconstruction[0], after.reconstruction[1])
    torch.testing.assert_close(after.logits, before.logits)


@pytest.mark.parametrize("backbone", ["plain", "convnet28", "convnet8"])
def test_dropout_is_off_in_evaluation_unless_asked_for(backbone):
    batch = images(SHAPES[backbone])
    for at_test in (False, True):
        model = network(backbone, dropout_at_test=at_test)
        assert not torch.equal(model(batch).logits, model(batch).logits)
        model.eval()
        first, second = model(batch), model(batch)
        for one, other in ((first.logits, second.logits), (first.latents[0], second.latents[0])):
            assert torch.equal(one, other) == (not at_test)


def test_plain_net_takes_images_of_64_pixels_and_of_three_quarters_of_its_size():
    large = network("plain", shape=(3, 64, 64))
    output = large(images((3, 64, 64)))
    assert output.latents[0].shape == (4, 32, 8, 8) and output.reconstruction.shape == (4, 3, 64, 64)
    output = network("plain")(images((3, 24, 24)))
    assert output.latents[0].shape == (4, 32, 3, 3) and output.reconstruction.shape == (4, 3, 24, 24)
    assert output.logits.shape == (4, 5)


def test_flatten_pools_foreign_sizes_and_leaves_its_own_alone():
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(Flatten(4)(x), x.flatten(1), rtol=0, atol=0)
    torch.testing.assert_close(Flatten(2)(x), functional.avg_pool2d(x, 2).flatten(1))


def test_crop_sees_the_centre_resized_and_densenet_its_own_pixels():
    batch = images((3, 32, 32))
    centre = batch[:, :, 2:30, 2:30]
    model = network("plain", crop_size=28).eval()
    whole, cropped = model(batch), model(centre)
    torch.testing.assert_close(whole.logits, cropped.logits)
    expected = functional.interpolate(model.normalise(centre), size=(32, 32), mode="bilinear")
    torch.testing.assert_close(whole.target, expected)
    dense = network("densenet", crop_size=28).eval()
    output = dense(batch)
    torch.testing.assert_close(output.target, dense.normalise(centre))
    assert output.reconstruction.shape == (4, 3, 28, 28)


def test_target_is_the_normalised_input_and_floats_pass():
    model = network("convnet8").eval()
    batch = images((1, 8, 8))
    normalised = (batch.float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(model(batch).target, normalised, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(normalised).target, normalised, rtol=0, atol=0)


def test_norm_none_has_no_batch_normalisation():
    kinds = {type(module).__name__ for module in network("convnet28", norm="none").modules()}
    assert "BatchNorm2d" not in kinds
    assert "BatchNorm2d" in {type(module).__name__ for module in network("convnet28").modules()}


def test_pooling_joins_levels_in_their_order():
    latents = [torch.randn(3, 2, 4, 4), torch.randn(3, 5, 8, 8)]
    for pooling, reduce in (("max", np.max), ("avg", np.mean)):
        expected = np.concatenate([reduce(z.numpy(), axis=(2, 3)) for z in latents], axis=1)
        np.testing.assert_allclose(pooled_latents(latents, pooling).numpy(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="max, avg"):
        pooled_latents(latents, "median")


def test_losses_are_means_and_computed_in_float32():
    logits, target = torch.randn(3, 4), torch.randn(3, 2, 4, 4)
    output = Output(logits, [], torch.zeros(3, 2, 4, 4), target)
    labels = torch.tensor([0, 1, 3])
    probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    expected = -np.log(probabilities[np.arange(3), labels.numpy()]).mean()
    assert classification_loss(output, labels).item() == pytest.approx(expected, rel=1e-5)
    assert reconstruction_loss(output).item() == pytest.approx((target.numpy() ** 2).mean(), rel=1e-5)
    half = Output(logits.bfloat16(), [], torch.ones(3, 2, 4, 4, dtype=torch.bfloat16), target)
    assert classification_loss(half, labels).dtype == reconstruction_loss(half).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"backbone": "plian"}, "nearest: plain"),
        ({"backbone": "plain", "shape": (1, 28, 28)}, "convnet28 fits"),
        ({"backbone": "densenet", "norm": "none"}, "plain nets"),
        ({"backbone": "plain", "variant": "original"}, "paper, released"),
        ({"backbone": "plain", "crop_size": 40}, "larger than the images"),
    ],
)
def test_wrong_networks_are_refused(options, expected):
    options = {"classes": 5, "shape": (3, 32, 32), "width": 4} | options
    shape = options["shape"]
    with pytest.raises(UserError, match=expected):
        DHRNet(mean=[0.5] * shape[0], std=[0.25] * shape[0], **options)
