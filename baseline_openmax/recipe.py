"""Pieces of training recipes: cosine with warm restarts, and augmentations with RandAugment."""

from __future__ import annotations

import math

import torch

from common.errors import UserError


class RestartSchedule:
    """Cosine with warm restarts after a linear warm-up: the course of Vaze et al. 2022.

    The steps after the warm-up are cut into `restarts + 1` equal parts; in each the factor falls from 1 to 0 along half a
    cosine. During the warm-up it rises linearly from 1 / warm-up to 1.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    total, warmup : int
        Optimiser steps.
    restarts : int
        How often the cosine begins anew.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total: int, restarts: int = 2, warmup: int = 0):
        if restarts < 0 or warmup < 0 or warmup >= max(total, 1):
            raise UserError(f"schedule restarts: {restarts} restarts and {warmup} warm-up steps do not fit {total} steps")
        self.optimizer, self.total, self.restarts, self.warmup = optimizer, total, restarts, warmup
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def factor(self, step: int) -> float:
        """Factor on the learning rate at optimiser step `step`, from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        length = (self.total - self.warmup) / (self.restarts + 1)
        done = min((step - self.warmup) / length, self.restarts + 1 - 1e-9)
        return 0.5 * (1 + math.cos(math.pi * (done % 1.0)))

    def set(self, step: int) -> float:
        """Set the rates for optimiser step `step` (from 0) and return the factor."""
        factor = self.factor(step)
        for group in self.optimizer.param_groups:
            stopped = step >= group.get("stop_at_step", math.inf)
            group["lr"] = 0.0 if stopped else group["initial_lr"] * factor
        return factor


def schedule(optimizer, args, steps: int):
    """The course of the learning rate that the flags name, for `steps` steps an epoch."""
    from common.recipes import Schedule

    if args.schedule != "restarts":
        return Schedule(optimizer, args.schedule, args.max_epochs * steps)
    warmup = 0 if args.dry_run else args.warmup_epochs * steps
    return RestartSchedule(optimizer, args.max_epochs * steps, args.restarts, warmup)


def augmentation(args):
    """The augmentation that the flags name; None for none."""
    from common import training
    from common.datasets.augment import Compose, LowResolution, RandomFlip, RandomShift
    from common.datasets.randaugment import RandAugment

    if not args.augment.endswith("+randaugment"):
        return training.augmentation(args.augment, args.seed, args.low_resolution_epochs)
    if args.randaugment_m > 30:
        raise UserError(f"--randaugment_m is a strength of 30 at most, got {args.randaugment_m}")
    flip = [RandomFlip(0.5)] if args.augment.startswith("flip") else []
    small = [LowResolution(args.low_resolution_epochs)] if args.low_resolution_epochs else []
    chosen = RandAugment(args.randaugment_n, args.randaugment_m, "torchvision")
    return Compose(*flip, RandomShift(4, "zero"), chosen, *small)
