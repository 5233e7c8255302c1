"""Images that stay on the disk: ImageNet-sized sets decoded as they are needed, and memory-mapped features.

`StreamedPixels` stands where `Images` holds an array, so splits, hold-out and evaluation work on file lists alone; only the
batch at hand is in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from common.datasets import CATALOGUE, Images, open_folder
from common.datasets.batches import Batches, Draws, generator_for
from common.datasets.streaming import FileList, StreamedImages

# ImageNet's protocol: the shorter side is scaled to 256 pixels for a crop of 224.
RESIZE_FACTOR = 256 / 224


class StreamedPixels:
    """Pixels uint8 `(N, 3, size, size)` of image files, decoded when indexed: scaled, centre cut out.

    Parameters
    ----------
    files : FileList
    size : int
        Side length of the images given out.
    resize : int
        Length of the shorter side before the centre is cut out.
    workers : int
        Processes that decode; 0: this one.
    """

    ndim, dtype = 4, np.dtype(np.uint8)

    def __init__(self, files: FileList, size: int, resize: int, workers: int = 0):
        self.files, self.size, self.resize, self.workers = files, size, resize, workers
        self.images = StreamedImages(files, size, resize)
        self.shape = (len(files), 3, size, size)
        self._sequence, self._expected = None, (0, 0)

    def __len__(self) -> int:
        return len(self.files)

    def take(self, index) -> StreamedPixels:
        """The files at `index` (integers, booleans or a slice), in that order; nothing is decoded."""
        items = [self.files.items[i] for i in np.arange(len(self))[index]]
        return StreamedPixels(replace(self.files, items=items), self.size, self.resize, self.workers)

    def uncropped(self) -> StreamedPixels:
        """The same files without the cut from `resize` to `size`: what a random crop is drawn from."""
        return StreamedPixels(self.files, self.resize, self.resize, self.workers)

    def batches(self, lists: Iterable[list[int]]) -> Iterator[np.ndarray]:
        """Decoded batches of the given positions, read ahead by the workers."""
        loader = torch.utils.data.DataLoader(
            self.images, batch_sampler=list(lists), num_workers=self.workers, collate_fn=_stacked,
            generator=torch.Generator(),  # its own: reading images must not move the generator that dropout draws from
        )  # fmt: skip
        yield from loader

    def __getitem__(self, index) -> np.ndarray:
        """Decode a slice or positions; slices in sequence, as a pass over the set asks for them, are read ahead."""
        rows = range(len(self))[index] if isinstance(index, slice) else np.arange(len(self))[index].tolist()
        if not len(rows):
            return np.empty((0, *self.shape[1:]), self.dtype)
        if not isinstance(index, slice) or rows.step != 1:
            return next(self.batches([list(rows)]))
        if self._sequence is None or (rows.start, len(rows)) != self._expected:
            length = len(rows)
            lists = [list(range(i, min(i + length, len(self)))) for i in range(rows.start, len(self), length)]
            self._sequence = self.batches(lists)
        batch = next(self._sequence)
        self._expected = (rows.stop, min(len(rows), len(self) - rows.stop))
        if rows.stop == len(self):
            self._sequence = None  # the pass is over: its workers end
        return batch


def _stacked(items) -> np.ndarray:
    return np.stack([pixels.numpy() for pixels, _ in items])


class StreamedSet(Images):
    """`Images` whose pixels are `StreamedPixels`: subsets choose files."""

    def subset(self, index) -> StreamedSet:
        return replace(self, pixels=self.pixels.take(index), labels=self.labels[index])


def streams(dataset: str) -> bool:
    """Whether a data set is read from class folders while it is used, rather than held in memory."""
    return CATALOGUE[dataset].reader == "folder"


def open_set(dataset: str, train: bool, root, size: int | None = None, workers: int = 0) -> StreamedSet:
    """A folder data set as `Images` whose pixels are decoded on demand.

    Parameters
    ----------
    dataset : str
        Canonical name.
    train : bool
    root : path, optional
        Data folder.
    size : int, optional
        Side length of the images; else the data set's own (224).
    workers : int
        Processes that decode.
    """
    files = open_folder(dataset, train, root)
    size = size or CATALOGUE[dataset].shape[1]
    pixels = StreamedPixels(files, size, round(size * RESIZE_FACTOR), workers)
    labels = np.array([label for _, label in files.items], dtype=np.int64)
    folder = os.path.commonpath([path for path, _ in files.items])
    listing = hashlib.sha256()
    for path, _ in files.items:
        listing.update(f"{os.path.relpath(path, folder)}\n".encode())
    # Hashing the images would read the whole set: the list of their names stands for them.
    key = f"{dataset}/{'train' if train else 'test'} ({len(files)} files, names)"
    return StreamedSet(pixels, labels, files.classes, dataset, {key: f"sha256:{listing.hexdigest()}"})


@dataclass
class HostBatches(Batches):
    """Batches whose images lie outside the device: `StreamedPixels`, or a memory-mapped array.

    Parameters beside those of `Batches`
    ------------------------------------
    device : torch.device
        Where the batches go.
    views : sequence
        Further versions of `pixels`, one for each epoch in turn after it.
    """

    device: torch.device | str = "cpu"
    views: tuple = ()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield `(batch number, pixels, labels)` of one epoch, from batch `start` on."""
        versions = (self.pixels, *self.views)
        pixels = versions[epoch % len(versions)]
        order = torch.arange(len(self.labels))
        if self.shuffle:
            order = torch.randperm(len(order), generator=generator_for(self.seed, epoch))
        chosen = []
        for number in range(start, len(self)):
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            # Equal slices, so that the mean over processes is the mean over the batch: up to world_size - 1 images wait.
            share = len(index) // self.world_size
            if share:
                chosen.append((number, index, slice(self.rank * share, (self.rank + 1) * share)))
        wanted = (index[mine].tolist() for _, index, mine in chosen)
        read = pixels.batches(wanted) if hasattr(pixels, "batches") else (np.asarray(pixels[rows]) for rows in wanted)
        for (number, index, mine), array in zip(chosen, read):
            images = torch.from_numpy(array).to(self.device, non_blocking=True)
            if self.augment is not None:
                draws = Draws(generator_for(self.seed, epoch, number + 1), index, epoch, mine, self.device)
                images = self.augment(images, draws)
            yield number, images, self.labels[index[mine].to(self.labels.device)]
