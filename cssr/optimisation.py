"""CSSR's optimisers and its learning-rate schedule."""

from __future__ import annotations

import torch

# Images that the rate of `--method cssr_ft` is meant for.
HEAD_BATCH = 128


def build_optimizer(model, args, steps_per_epoch: int) -> torch.optim.SGD:
    """SGD over all parameters as released, or the speed recipe for the backbone with a plain rate for the head.

    `speed`: the head learns at `head_rate` times (1 - momentum), decay 5e-4, in a group of its own: the speed recipe's
    rates are made for convolutions that start as identities. With `--method cssr_ft` the rate is per 128 images.
    """
    if args.method == "cssr_ft":
        trained = [p for p in model.parameters() if p.requires_grad]
        rate = args.rate * args.batch_size / HEAD_BATCH
        return torch.optim.SGD(trained, lr=rate, momentum=args.momentum, weight_decay=args.weight_decay)
    if args.optimizer == "sgd":
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=args.rate, momentum=args.momentum, weight_decay=args.weight_decay)
    from common.recipes import speed_parameter_groups

    stem = getattr(model.backbone, "whitening", None)
    groups = speed_parameter_groups(
        model.backbone, rate=args.rate, decay=args.weight_decay, momentum=args.momentum, batch_size=args.batch_size,
        stop_bias=None if stem is None else stem.bias, stop_at_step=args.whitening_bias_epochs * steps_per_epoch,
    )  # fmt: skip
    head_rate = args.head_rate * (1 - args.momentum)
    groups.append({"params": list(model.head.parameters()), "lr": head_rate, "weight_decay": 5e-4})
    return torch.optim.SGD(groups, lr=args.rate, momentum=args.momentum, nesterov=True)


def multi_step_factor(epoch: int, step: int, steps: int, milestones, decay: float = 0.1, warmup: float = 0) -> float:
    """Factor on the rate at `step` of `steps` in `epoch`: linear from 0 over `warmup` epochs, then `decay` per milestone.

    Warm-up is inclusive as released: the first step after it has the full rate even if a milestone has passed.
    """
    done = epoch + step / steps
    if warmup > 0 and done <= warmup:
        return done / warmup
    return decay ** sum(epoch >= milestone for milestone in milestones)


class MultiStep:
    """Set the rates of all groups before each step; the released schedule `multi_step`."""

    def __init__(self, optimizer, steps: int, milestones, decay: float, warmup: float):
        self.optimizer, self.steps = optimizer, steps
        self.milestones, self.decay, self.warmup = milestones, decay, warmup
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def set(self, step: int) -> None:
        """Set the rates for optimiser step `step`, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps)
        factor = multi_step_factor(epoch, within, self.steps, self.milestones, self.decay, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
