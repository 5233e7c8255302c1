"""The stacked head against the released program's numbers, a per-class loop, and numerical derivatives."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from cssr import autoencoders
from cssr.autoencoders import ClassAutoencoders
from cssr.model import LinearHead, ReconstructionHead, log_probabilities

CASES = [
    *(f"{model}_{error}_{order}_small" for model in ("pcssr", "rcssr") for error in ("L1", "L2")
      for order in ("softmax_avg", "avg_softmax")),
    "pcssr_L1_softmax_avg_wide", "rcssr_L1_softmax_avg_wide", "pcssr_L2_softmax_avg_wide",
    "linear_avg_softmax_small", "linear_softmax_avg_small", "pcssr_L1_clamp", "rcssr_L1_clamp",
    "pcssr_L1_hidden_layers", "pcssr_L1_prototype_point",
]  # fmt: skip


def weight_names(case):
    """Names of the case's weights, in the order of the head's parameters."""
    if "linear_weight" in case:
        return ["linear_weight"]
    if "center" in case:
        return ["center"]
    if "encoder_weight" in case:
        return ["encoder_weight", "decoder_weight"]
    depth = len(case.config["ae_hidden"]) + 1
    return [f"{side}_weight_{i}" for side in ("encoder", "decoder") for i in range(depth)]


def head_of(case, dtype):
    """A head of the case's settings that holds its weights."""
    config = case.config
    channels = config["shape"][1]
    if config["model"] == "linear":
        head = LinearHead(config["num_classes"], channels, config["gamma"])
    else:
        head = ReconstructionHead(
            config["model"], config["num_classes"], channels, config["ae_latent"], config["ae_hidden"],
            config["gamma"], config["error_measure"],
        )  # fmt: skip
    for parameter, name in zip(head.parameters(), weight_names(case), strict=True):
        assert parameter.shape == case[name].shape
        parameter.data = torch.from_numpy(case[name]).to(dtype)
    return head


def near(found, expected, relative):
    """Largest difference at most `relative` times the largest expected value."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=relative * max(np.abs(expected).max(), 1e-30))


@pytest.mark.parametrize("keep_bytes", [0, 128 << 20], ids=["recomputed", "kept"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", CASES)
def test_head_equals_the_released_program(golden, name, dtype, keep_bytes, monkeypatch):
    monkeypatch.setattr(autoencoders, "KEEP_BYTES", keep_bytes)
    monkeypatch.setitem(autoencoders.BLOCK_BYTES, "cpu", 40 * 64 * 8)  # many blocks, rows and classes cut unevenly
    case = golden(f"head/{name}")
    prefix, tolerance, gradient = ("f64_", 1e-9, 1e-9) if dtype == torch.float64 else ("", 2e-5, 1e-4)
    head = head_of(case, dtype)
    x = torch.from_numpy(case["x"]).to(dtype).requires_grad_()
    logit_map = head(x)
    log_p = log_probabilities(logit_map, case.config["order"])
    loss = functional.nll_loss(log_p, torch.from_numpy(case["y"]))
    loss.backward()
    if prefix + "error_map" in case:
        near(head.autoencoders(x).detach(), case[prefix + "error_map"], tolerance)
        clamped = float((logit_map.detach().abs() >= 100).double().mean())
        assert clamped == pytest.approx(float(case[prefix + "clamped_fraction"]), abs=1e-6)
    near(logit_map.detach(), case[prefix + "logit_map"], tolerance)
    near(log_p.detach().exp(), case[prefix + "prob"], tolerance)
    np.testing.assert_array_equal(log_p.argmax(1), case[prefix + "pred"])
    near(loss.detach(), case[prefix + "loss"], tolerance)
    near(x.grad, case[prefix + "grad_x"], gradient)
    for parameter, weight in zip(head.parameters(), weight_names(case), strict=True):
        near(parameter.grad, case[f"{prefix}grad_{weight}"], gradient)


def loop_errors(x, layers, error):
    """One convolution after the other for each class, as modules would do it."""
    maps = []
    for weights in zip(*layers):
        out = x
        for number, weight in enumerate(weights):
            out = functional.conv2d(out, weight[:, :, None, None])
            out = torch.tanh(out) if number < len(weights) - 1 else out
        maps.append((out - x).abs().sum(1) if error == "L1" else (out - x).square().sum(1))
    return torch.stack(maps, 1)


@pytest.mark.parametrize("gamma", [0.1, 20.0], ids=["free", "clamped"])
@pytest.mark.parametrize("error", ["L1", "L2"])
@pytest.mark.parametrize("model", ["pcssr", "rcssr"])
def test_stacked_head_equals_a_loop_over_classes(model, error, gamma):
    torch.manual_seed(0)
    head = ReconstructionHead(model, 7, 12, 5, (9,), gamma, error).double()
    layers = [weight.detach().clone().requires_grad_() for weight in head.autoencoders.layers]
    x = torch.randn(3, 12, 4, 5, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    sign = 1 if model == "rcssr" else -1
    expected = (sign * gamma * loop_errors(b, layers, error)).clamp(-100, 100)
    found = head(a)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert bool((found.detach().abs() == 100).any()) == (gamma > 1)
    pull = torch.randn_like(expected)
    (found * pull).sum().backward()
    (expected * pull).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)
    for stacked, looped in zip(head.autoencoders.layers, layers):
        torch.testing.assert_close(stacked.grad, looped.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("keep_bytes", [0, 1 << 20], ids=["recomputed", "kept"])
@pytest.mark.parametrize("hidden", [(), (4,)])
@pytest.mark.parametrize("latent", [0, 3])
@pytest.mark.parametrize("error", ["L1", "L2"])
def test_gradients_equal_differences(error, latent, hidden, keep_bytes, monkeypatch):
    monkeypatch.setattr(autoencoders, "KEEP_BYTES", keep_bytes)
    torch.manual_seed(1)
    net = ClassAutoencoders(3, 5, latent, hidden, error).double()
    x = torch.randn(2, 5, 2, 2, dtype=torch.float64, requires_grad=True)

    def errors(x, *layers):
        return torch.func.functional_call(net, {f"layers.{i}": w for i, w in enumerate(layers)}, (x,))

    assert torch.autograd.gradcheck(errors, (x, *net.layers))


def test_backward_may_run_twice():
    net = ClassAutoencoders(2, 4, 3).double()
    x = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    total = net(x).sum()
    (first,) = torch.autograd.grad(total, x, retain_graph=True)
    (second,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_blocks_cover_every_class_and_row_once(monkeypatch):
    monkeypatch.setitem(autoencoders.BLOCK_BYTES, "cpu", 4 * 64 * 10)
    seen = np.zeros((7, 23), int)
    for chosen, rows in autoencoders.blocks(23, 7, 64, torch.device("cpu")):
        seen[chosen, rows] += 1
        assert (chosen.stop - chosen.start) * (rows.stop - rows.start) <= 10
    assert (seen == 1).all()


def test_memory_stays_bounded_with_many_classes():
    """Neither pass holds the residuals of all classes: 300 classes of 4,096 rows with 128 channels would be 630 MB."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.untyped_storage().nbytes())
            return result

    net = ClassAutoencoders(300, 128, 4)
    x = torch.randn(64, 128, 8, 8, requires_grad=True)
    with Watch():
        net(x).sum().backward()
    assert largest <= 2 * autoencoders.BLOCK_BYTES["cpu"] + 300 * 4096 * 4


@pytest.mark.parametrize("order", ["softmax_avg", "avg_softmax"])
def test_loss_survives_probabilities_that_underflow(order):
    """At a gap of 1,000 the released product of one-hot and log is NaN; on the logarithmic scale loss and gradient are exact."""
    logit_map = torch.zeros(1, 2, 2, 2)
    logit_map[0, 1] = -1000.0
    logit_map.requires_grad_()
    log_p = log_probabilities(logit_map, order)
    functional.nll_loss(log_p, torch.tensor([1])).backward()
    assert log_p[0].tolist() == pytest.approx([0.0, -1000.0])
    assert torch.isfinite(logit_map.grad).all()
    assert logit_map.grad[0, 1].sum().item() == pytest.approx(-1.0, abs=1e-4)


def test_softmax_order_matters_and_is_what_it_says():
    logit_map = torch.tensor([[[[0.0, 4.0]], [[1.0, 0.0]]]], dtype=torch.float64)  # 2 classes, 2 positions
    softmax = [1 / (1 + math.e), 1 / (1 + math.exp(-4))]
    before = log_probabilities(logit_map, "softmax_avg").exp()
    assert before[0, 0].item() == pytest.approx(sum(softmax) / 2)
    after = log_probabilities(logit_map, "avg_softmax").exp()
    assert after[0, 0].item() == pytest.approx(1 / (1 + math.exp(-1.5)))


def test_weights_start_as_convolutions_do():
    torch.manual_seed(0)
    net = ClassAutoencoders(50, 16, 4)
    encoder, decoder = net.layers
    assert encoder.shape == (50, 4, 16) and decoder.shape == (50, 16, 4)
    assert encoder.abs().max() <= 0.25 and encoder.abs().max() > 0.24
    assert decoder.abs().max() <= 0.5 and decoder.abs().max() > 0.48
    prototypes = ClassAutoencoders(50, 16, 0).layers[0]
    assert prototypes.shape == (50, 16) and prototypes.min() >= 0 and prototypes.max() > 0.9


def test_unknown_error_measure_names_the_choices():
    with pytest.raises(ValueError, match="L1, L2"):
        ClassAutoencoders(2, 3, 2, error="L3")
