"""Feature maps of a frozen backbone, computed once and kept in memory-mapped files that several runs share.

A cache is a folder named after what it depends on (weights, precision, images, augmentation) with `features.npy`, half
precision `(N, C, h, w)`, and `progress.json`, which says how many images are done: a killed run goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common.datasets import Images, OpenSetData
from common.datasets.batches import Draws, generator_for
from common.errors import TimeUp, UserError
from common.files import write_json

# Images whose features are computed at a time, and seconds between two records of how far a cache is.
BATCH = 128
RECORD_SECONDS = 10


def digest_of(images: Images) -> str:
    """SHA-256 of what a set shows: its pixels, or the files they are decoded from and their size."""
    total = hashlib.sha256()
    if isinstance(images.pixels, np.ndarray):
        total.update(str((images.pixels.shape, images.pixels.dtype)).encode())
        total.update(np.ascontiguousarray(images.pixels).data)
    else:
        pixels = images.pixels
        total.update(f"{pixels.size} {pixels.resize}\n".encode())
        for path, _ in pixels.files.items:
            total.update(f"{path}\n".encode())
    return total.hexdigest()


def digest_of_network(model) -> str:
    """SHA-256 of the frozen backbone's weights and of its normalisation."""
    total = hashlib.sha256()
    for part in (model.backbone, model.normalise):
        for name, tensor in part.state_dict().items():
            total.update(name.encode())
            total.update(tensor.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()


class FeatureCache:
    """Features of a frozen network on the disk.

    Parameters
    ----------
    folder : Path
        Where the caches lie, one folder each.
    model : CSSR
        Frozen, on its device.
    devices : Devices
    minutes : float, optional
        Raise `TimeUp` after so long; what is done is kept.
    """

    def __init__(self, folder: Path, model, devices, minutes: float | None = None):
        self.folder, self.model, self.devices = Path(folder), model, devices
        self.network = digest_of_network(model)
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes

    def features_of(self, images: Images, augment=None, view: int = 0, seed: int = 0) -> Images:
        """The same set with memory-mapped feature maps, float16 `(N, C, h, w)`, in place of pixels.

        Parameters
        ----------
        images : Images
        augment : policy, optional
            Random augmentation, drawn once for this `view` (0 is the images as they are) with `seed`.
        """
        from filelock import FileLock

        said = {"network": self.network, "precision": self.devices.precision, "images": digest_of(images),
                "augment": repr(augment), "view": view, "seed": seed if augment else 0}  # fmt: skip
        key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
        place = self.folder / f"{(images.name or 'images').replace(' ', '_')}-{key}"
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "lock"):  # runs that start at once compute it once
            self._complete(place, images, said, augment, view, seed)
        # Copy-on-write: torch wants writable memory, the file stays as it is.
        features = np.load(place / "features.npy", mmap_mode="c")
        return Images(features, images.labels, images.classes, images.name, images.checksums)

    def _complete(self, place: Path, images: Images, said: dict, augment, view: int, seed: int) -> None:
        """Compute what is missing of one cache."""
        progress, count = place / "progress.json", len(images)
        there = progress.exists() and (place / "features.npy").exists()
        done = json.loads(progress.read_text())["done"] if there else 0
        if done == count:
            return
        stored, recorded = None, time.monotonic()
        for start, found in self._computed(images, done, augment, view, seed):
            if stored is None:
                stored = self._open(place, (count, *found.shape[1:]), done)
            stored[start : start + len(found)] = found
            done = start + len(found)
            late = self.deadline is not None and time.monotonic() > self.deadline
            if late or done == count or time.monotonic() - recorded > RECORD_SECONDS:
                stored.flush()
                write_json(progress, {"done": done, "of": count, **said})
                recorded = time.monotonic()
            if late and done < count:
                raise TimeUp(f"time limit reached with {done} of {count} features of {images.name} in {place};"
                             " the same command with --resume goes on")  # fmt: skip

    def _open(self, place: Path, shape: tuple[int, ...], done: int) -> np.memmap:
        """The file of the features, made at the start, with room for all of them."""
        path = place / "features.npy"
        if done:
            return np.load(path, mmap_mode="r+")
        needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(place).free
        if needed > free:
            raise UserError(f"features of {shape[0]} images take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {place}:"
                            " give --feature_dir DIR, or --feature_views 0 to compute them anew in every epoch")
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)

    @torch.no_grad()
    def _computed(self, images: Images, start: int, augment, view: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
        from tqdm import tqdm

        pixels = images.pixels.uncropped() if augment is not None and hasattr(images.pixels, "uncropped") else images.pixels
        network = self.model.eval()
        label = f"features of {images.name}" + (f", view {view}" if view else "")
        for first in tqdm(range(start, len(images), BATCH), desc=label, delay=2, leave=False, disable=None):
            batch = torch.from_numpy(pixels[first : first + BATCH]).to(self.devices.device)
            if augment is not None:
                index = torch.arange(first, first + len(batch))
                # Keyed by the first image alone, so that a resumed cache holds what an uninterrupted one would.
                batch = augment(batch, Draws(generator_for(seed, view, first + 1), index, view, device=self.devices.device))
            with self.devices.autocast():
                found = network.backbone_map(batch)
            limit = torch.finfo(torch.float16).max
            yield first, found.float().clamp(-limit, limit).half().cpu().numpy()


def with_features(data: OpenSetData, cache: FeatureCache, views: int, augment, seed: int) -> tuple[OpenSetData, tuple]:
    """The data with features in place of pixels, and the features of `views - 1` augmented versions of the training part."""
    parts = {name: getattr(data, name) and cache.features_of(getattr(data, name)) for name in ("train", "validation", "test")}
    outliers = {name: cache.features_of(images) for name, images in data.unknown.items()}
    further = tuple(cache.features_of(data.train, augment, view, seed).pixels for view in range(1, views))
    return replace(data, **parts, unknown=outliers), further


def default_folder() -> Path:
    """`$OSR_FEATURE_DIR`, else `runs/cssr/features`."""
    from common.arguments import ROOT

    named = os.environ.get("OSR_FEATURE_DIR")
    return Path(named).expanduser() if named else ROOT / "runs" / "cssr" / "features"
