"""The class-specific auto-encoders of CSSR as one stacked computation over classes (Huang et al. 2022, section 3).

Class i has an auto-encoder A_i of 1x1 convolutions; it sees every position p of the feature map alone:

    A_i(z_p) = D_i tanh(E_i z_p),   e_i(p) = ||A_i(z_p) - z_p||_1   (or the squared 2-norm)

All classes are computed together from stacked weights, in blocks of positions and classes that stay small; the
backward pass computes the residuals of a block again where keeping `classes x positions x channels` numbers would be much.
"""

from __future__ import annotations

import math

import torch
from torch import nn

ERRORS = ("L1", "L2")

# Bytes of one block of residuals: on a CPU what its cache holds, on a GPU enough work to fill it.
BLOCK_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
# Residuals up to this many bytes in all are kept for the backward pass, more are computed again there.
KEEP_BYTES = 128 << 20


def blocks(rows: int, classes: int, channels: int, device: torch.device, itemsize: int = 4):
    """Yield `(class slice, row slice)` so that the residuals of a block take about `BLOCK_BYTES`.

    Classes are the outer loop: a block's weights are used for all rows before the next ones are fetched.
    """
    budget = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"]) // itemsize
    row_step = max(1, min(rows, budget // channels))
    class_step = max(1, min(classes, budget // (row_step * channels)))
    for first in range(0, classes, class_step):
        for row in range(0, rows, row_step):
            yield slice(first, min(first + class_step, classes)), slice(row, min(row + row_step, rows))


def hidden_activations(points: torch.Tensor, layers: list[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs of all layers but the last, each `(m, width, N)`, of points `(N, C)`; tanh after every layer."""
    first = layers[0]
    activations = [(first.reshape(-1, first.shape[2]) @ points.T).view(*first.shape[:2], -1).tanh_()]
    for weight in layers[1:-1]:
        activations.append(torch.bmm(weight, activations[-1]).tanh_())
    return activations


def residuals(points: torch.Tensor, layers: list[torch.Tensor], activations: list[torch.Tensor]) -> torch.Tensor:
    """Reconstruction minus point, `(m, N, C)`; with a single "layer" `(m, C)` the reconstruction is that constant."""
    if not activations:
        return layers[0].unsqueeze(1) - points
    minus = points.unsqueeze(0).expand(len(layers[-1]), -1, -1)
    return torch.baddbmm(minus, activations[-1].transpose(1, 2), layers[-1].transpose(1, 2), beta=-1)


def _block(points, layers):
    """Hidden activations and residuals of a block."""
    hidden = hidden_activations(points, layers) if layers[0].ndim == 3 else []
    return hidden, residuals(points, layers, hidden)


def _backward_block(points, layers, hidden, outer, point_grad, layer_grads) -> None:
    """Add the gradients of a block to `point_grad` and `layer_grads`, given that of its reconstructions `(m, N, C)`."""
    layer_grads[-1].baddbmm_(outer.transpose(1, 2), hidden[-1].transpose(1, 2))
    inner = torch.bmm(layers[-1].transpose(1, 2), outer.transpose(1, 2))  # (m, width, N)
    for number in range(len(hidden) - 1, 0, -1):
        inner.mul_(1 - hidden[number].square())
        layer_grads[number].baddbmm_(inner, hidden[number - 1].transpose(1, 2))
        inner = torch.bmm(layers[number].transpose(1, 2), inner)
    inner = inner.mul_(1 - hidden[0].square()).flatten(0, 1)  # (m width, N)
    layer_grads[0] += (inner @ points).view_as(layers[0])
    point_grad.addmm_(inner.T, layers[0].flatten(0, 1))


class StackedErrors(torch.autograd.Function):
    """Reconstruction errors `(m, N)` of points `(N, C)` under m stacked auto-encoders.

    `layers` are the weights in order, each `(m, out, in)`; or one `(m, C)`: the constant reconstructions of prototypes.
    """

    @staticmethod
    def forward(ctx, points, error, *layers):
        ctx.error = error
        ctx.save_for_backward(points, *layers)
        classes, rows = len(layers[0]), len(points)
        errors = points.new_empty(classes, rows)
        keeps = any(ctx.needs_input_grad) and classes * points.nbytes <= KEEP_BYTES
        ctx.kept = [] if keeps else None
        for chosen, row in blocks(rows, classes, points.shape[1], points.device, points.element_size()):
            hidden, difference = _block(points[row], [weight[chosen] for weight in layers])
            if keeps:
                ctx.kept.append((hidden, difference))
            if error == "L1":
                errors[chosen, row] = (difference.abs() if keeps else difference.abs_()).sum(2)
            else:
                errors[chosen, row] = (difference.square() if keeps else difference.square_()).sum(2)
        return errors

    @staticmethod
    def backward(ctx, grad):
        points, *layers = ctx.saved_tensors
        point_grad = torch.zeros_like(points)
        layer_grads = [torch.zeros_like(weight) for weight in layers]
        parts = blocks(len(points), len(layers[0]), points.shape[1], points.device, points.element_size())
        for number, (chosen, row) in enumerate(parts):
            part = [weight[chosen] for weight in layers]
            hidden, outer = ctx.kept[number] if ctx.kept is not None else _block(points[row], part)
            # d|r| = sign(r), d r^2 = 2 r; both times the gradient of the error.
            weight = grad[chosen, row].unsqueeze(2)
            outer = outer.sign().mul_(weight) if ctx.error == "L1" else outer * (2 * weight)
            point_grad[row] -= outer.sum(0)
            part_grads = [layer_grad[chosen] for layer_grad in layer_grads]
            if hidden:
                _backward_block(points[row], part, hidden, outer, point_grad[row], part_grads)
            else:
                part_grads[0] += outer.sum(1)
        return point_grad, None, *layer_grads


def uniform_stack(*shape: int) -> nn.Parameter:
    """Weights `(m, out, in)` as m separate 1x1 convolutions start in torch: uniform within 1 / sqrt(in)."""
    bound = 1 / math.sqrt(shape[-1])
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class ClassAutoencoders(nn.Module):
    """Errors of m class-specific auto-encoders at every position.

    Parameters
    ----------
    classes, channels : int
        m and C.
    latent : int
        Width k of the code; 0: no auto-encoder, one learnt prototype point per class.
    hidden : sequence of int
        Widths h1, h2, ... of hidden layers: C, h1, h2, ..., k and back; tanh after each layer but the last.
    error : str
        `L1`, or `L2` for the squared 2-norm over channels.
    """

    def __init__(self, classes: int, channels: int, latent: int = 64, hidden=(), error: str = "L1"):
        super().__init__()
        if error not in ERRORS:
            raise ValueError(f"unknown error measure {error!r}; choose from {', '.join(ERRORS)}")
        self.error = error
        if latent > 0:
            widths = [channels, *hidden, latent]
            down = list(zip(widths[1:], widths[:-1]))
            up = [(inputs, outputs) for outputs, inputs in reversed(down)]
            self.layers = nn.ParameterList(uniform_stack(classes, *shape) for shape in down + up)
        else:
            self.layers = nn.ParameterList([nn.Parameter(torch.rand(classes, channels))])

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Errors e `(N, m, H, W)` of a feature map `(N, C, H, W)`, in the precision of the weights."""
        count, channels, height, width = feature_map.shape
        points = feature_map.permute(0, 2, 3, 1).reshape(-1, channels).to(self.layers[0].dtype)
        errors = StackedErrors.apply(points, self.error, *self.layers)
        return errors.view(-1, count, height, width).transpose(0, 1)
