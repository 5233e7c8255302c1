"""What the training scripts share around their loop: data of the flags, named augmentations, accuracy on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from common.errors import UserError

AUGMENTATIONS = ("none", "shift1", "flip+shift4", "alternating-flip+shift2")


def load_data(args, unknown=()):
    """The open-set data of a run's flags (`known_dataset split validation_share subset seed`, 64 images in a dry run)."""
    from common.datasets import prepare

    subset = 64 if args.dry_run else args.subset
    return prepare(args.known_dataset, args.split, unknown, root=args.data_dir,
                   validation_share=args.validation_share, seed=args.seed, subset=subset)  # fmt: skip


def fitting_backbone(named: str | None, height: int, for_size: Mapping[int, str]) -> str:
    """The backbone that was named, else the one that fits the image height in pixels; a `UserError` when none does."""
    backbone = named or for_size.get(height)
    if backbone is None:
        raise UserError(f"no backbone fits images of {height} pixels by itself: name one with --backbone")
    return backbone


def augmentation(name: str, seed: int, low_resolution_epochs: int = 0):
    """The augmentation called `name`, at three quarters of the image size in the first epochs; None for none."""
    from common.datasets.augment import AlternatingFlip, Compose, LowResolution, RandomFlip, RandomShift

    policies = {
        "none": None,
        "shift1": RandomShift(1, "zero"),
        "flip+shift4": Compose(RandomFlip(0.5), RandomShift(4, "reflect")),
        "alternating-flip+shift2": Compose(AlternatingFlip(seed), RandomShift(2, "reflect")),
    }
    chosen = policies[name]
    if low_resolution_epochs:
        small = LowResolution(low_resolution_epochs)
        return Compose(chosen, small) if chosen else small
    return chosen


def training_batches(data, args, devices, augment):
    """`Batches` of the training part on the device, for the flags `batch_size seed drop_last`."""
    from common.datasets.batches import Batches

    return Batches(
        torch.from_numpy(data.train.pixels).to(devices.device),
        torch.from_numpy(data.train.labels).to(devices.device),
        args.batch_size,
        seed=args.seed,
        augment=augment,
        drop_last=args.drop_last,
        rank=devices.rank,
        world_size=devices.world_size,
    )


def closed_accuracy(model: torch.nn.Module, class_scores: Callable, images, devices) -> float:
    """Share of known images whose largest class score is the right one; NaN when there are no images.

    `class_scores(images) -> (N, K)` is called with the model in evaluation mode.
    """
    from common.inference import apply_batched

    if images is None or not len(images):
        return float("nan")
    model.eval()
    with devices.autocast():
        found = apply_batched(lambda x: {"class": class_scores(x).argmax(1)}, images.pixels, devices.device)
    model.train()
    return float(np.mean(found["class"] == images.labels))
