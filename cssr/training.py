"""Batches for CSSR's training loop: images on the device, streamed files, or features of a frozen backbone."""

from __future__ import annotations

import numpy as np
import torch

from common.datasets import OpenSetData
from common.training import training_batches
from cssr.augmentation import augmentation


def augmentation_of(args, data: OpenSetData, model):
    """The augmentation that the flags name; streamed images are cropped at a random scale."""
    options = {"strong_option": args.strong_option, "pool": args.augment_pool, "postprocess": args.postprocess,
               "crop_with_resize": args.crop_with_resize, "manual_contrast": args.manual_contrast}  # fmt: skip
    if hasattr(data.train.pixels, "files"):
        options["crop_with_resize"] = True
    given = {name: value for name, value in options.items() if value is not None}
    size = int(data.train.pixels.shape[2])
    return augmentation(args.augment, args.seed, args.low_resolution_epochs, size, model.normalise, **given)


def features_of(data: OpenSetData, model, augment, args, devices, run) -> tuple[OpenSetData, tuple]:
    """With `--method cssr_ft` the data with cached features in place of pixels, and those of augmented versions.

    `--feature_views 0`, and every other method, leave the data alone.
    """
    views = 1 if args.feature_views is None else args.feature_views
    if args.method != "cssr_ft" or not views:
        return data, ()
    from cssr.features import FeatureCache, default_folder, with_features

    if args.augment != "none" and views == 1 and devices.rank == 0:
        print("note: features are of the images as they are; --feature_views N adds augmented ones, 0 augments in every epoch")
    folder = run.directory / "features" if args.dry_run else args.feature_dir or default_folder()
    cache = FeatureCache(folder, model.to(devices.device), devices, args.time_limit)
    return with_features(data, cache, views, augment, args.seed)


def batches_of(data: OpenSetData, views: tuple, args, devices, augment):
    """Training batches: on the device where the images are in memory, else read batch by batch."""
    pixels = data.train.pixels
    featured = isinstance(pixels, np.memmap)
    if isinstance(pixels, np.ndarray) and not featured:
        return training_batches(data, args, devices, augment)
    from cssr.streaming import HostBatches

    if not featured and args.augment in ("simple", "strong"):
        pixels = pixels.uncropped()
    labels = torch.from_numpy(data.train.labels).to(devices.device)
    return HostBatches(
        pixels, labels, args.batch_size, seed=args.seed, augment=None if featured else augment, drop_last=args.drop_last,
        rank=devices.rank, world_size=devices.world_size, device=devices.device, views=views,
    )  # fmt: skip
