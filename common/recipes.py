"""Optimisers and schedules, written once: the plain ones by name, and the speed recipe of the `laptop` presets.

The speed recipe follows Jordan 2024 (arXiv 2404.00498): Nesterov SGD with decoupled rates for biases, a triangular rate,
weights pulled to a running average every few steps. Losses are means over the batch; the rates are converted accordingly.
"""

from __future__ import annotations

import math

import torch

SCHEDULES = ("constant", "cosine", "triangular", "onecycle", "step")


def schedule_factor(
    name: str,
    step: int,
    total: int,
    *,
    warmup: float = 0.23,
    start: float = 0.2,
    end: float = 0.07,
    milestones: tuple[float, ...] = (0.6, 0.8, 0.9),
    decay: float = 0.1,
) -> float:
    """Factor on the learning rate at `step` of `total` optimiser steps.

    Parameters
    ----------
    name : str
        `constant`; `cosine` (1 to 0); `triangular` (`start` to 1 over the share `warmup` of the run, then to `end`, both
        linear); `onecycle` (`start` to 1 over `warmup`, then half a cosine to `end`); `step` (times `decay` at each of
        `milestones`, shares of the run).
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; choose from {', '.join(SCHEDULES)}")
    done = min(step / max(total, 1), 1.0)
    if name == "constant":
        return 1.0
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if name == "step":
        return decay ** sum(done >= m for m in milestones)
    if done < warmup:
        return start + (1 - start) * done / warmup
    fall = (done - warmup) / (1 - warmup)
    if name == "triangular":
        return 1 + (end - 1) * fall
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * fall))


class Schedule:
    """Set the rate of every parameter group before each step; state is the optimiser's own `initial_lr` and the step.

    A group may carry `stop_at_step`: from that step on its rate is zero (the whitening bias of the speed net).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, name: str, total: int, **options):
        self.optimizer, self.name, self.total, self.options = optimizer, name, total, options
        schedule_factor(name, 0, total, **options)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def set(self, step: int) -> float:
        """Set the rates for optimiser step `step` (from 0) and return the factor."""
        factor = schedule_factor(self.name, step, self.total, **self.options)
        for group in self.optimizer.param_groups:
            stopped = step >= group.get("stop_at_step", math.inf)
            group["lr"] = 0.0 if stopped else group["initial_lr"] * factor
        return factor


def speed_parameter_groups(
    model: torch.nn.Module,
    *,
    rate: float = 11.5,
    decay: float = 0.0153,
    momentum: float = 0.85,
    batch_size: int = 1024,
    bias_factor: float = 64.0,
    stop_bias: torch.nn.Parameter | None = None,
    stop_at_step: int = 0,
) -> list[dict]:
    """Parameter groups of the speed recipe for `torch.optim.SGD(groups, momentum=momentum, nesterov=True)`.

    `rate` and `decay` are per 1,024 images with the momentum's sum divided out (Jordan 2024: 11.5 and .0153); biases and
    BatchNorm shifts (one-dimensional parameters) learn `bias_factor` times faster with the same decay per step.
    `stop_bias` is trained only up to `stop_at_step`. Losses must be means over the batch.
    """
    effective = 1 + 1 / (1 - momentum)
    learning_rate = rate * batch_size / 1024 / effective
    step_decay = decay * batch_size / 1024 / effective
    trained = [p for p in model.parameters() if p.requires_grad]
    biases = [p for p in trained if p.ndim == 1 and p is not stop_bias]
    others = [p for p in trained if p.ndim > 1]
    bias_rate = learning_rate * bias_factor
    groups = [
        {"params": others, "lr": learning_rate, "weight_decay": step_decay / learning_rate},
        {"params": biases, "lr": bias_rate, "weight_decay": step_decay / bias_rate},
    ]
    if stop_bias is not None:
        groups.append(
            {
                "params": [stop_bias],
                "lr": bias_rate,
                "weight_decay": step_decay / bias_rate,
                "stop_at_step": stop_at_step,
            }
        )
    return [group for group in groups if group["params"]]


class WeightAveraging:
    """Pull weights and buffers to a running average every few steps (the speed recipe's averaging, Jordan 2024).

    The decay grows with training, `.95^every (step / total)^3`; `finish` replaces the weights by the average.
    """

    def __init__(self, model: torch.nn.Module, total: int, every: int = 5):
        self.model, self.total, self.every = model, total, every
        self.average = {k: v.detach().clone() for k, v in self._floats().items()}

    def _floats(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in self.model.state_dict().items() if v.is_floating_point()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call after optimiser step number `step` (from 1)."""
        if step % self.every == 0:
            self._pull(0.95**self.every * (step / self.total) ** 3)

    @torch.no_grad()
    def finish(self) -> None:
        """Replace the model's weights by the average."""
        self._pull(1.0)

    def _pull(self, decay: float) -> None:
        for key, value in self._floats().items():
            average = self.average[key]
            average.lerp_(value, 1 - decay)
            value.copy_(average)

    def state_dict(self) -> dict:
        return {"average": self.average}

    def load_state_dict(self, state: dict) -> None:
        for key, value in state["average"].items():
            self.average[key].copy_(value)


def build_optimizer(
    model: torch.nn.Module,
    name: str,
    rate: float,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 128,
    stop_bias: torch.nn.Parameter | None = None,
    stop_at_step: int = 0,
) -> torch.optim.Optimizer:
    """Return the optimiser called `name`: `sgd` (Nesterov when there is momentum), `adam`, `adamw` or `speed`."""
    if name == "speed":
        groups = speed_parameter_groups(
            model,
            rate=rate,
            decay=weight_decay,
            momentum=momentum,
            batch_size=batch_size,
            stop_bias=stop_bias,
            stop_at_step=stop_at_step,
        )
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay
        )
    if name in ("adam", "adamw"):
        kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
        return kind(parameters, lr=rate, weight_decay=weight_decay)
    raise ValueError(f"unknown optimiser {name!r}; choose from adam, adamw, sgd, speed")
