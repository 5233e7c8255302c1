"""Class-balanced batches: B_c classes drawn without replacement, B_s images of each, on the training device.

An epoch ends before the batch with which it would have shown as many images as there are, so it has
(n - 1) // (B_c B_s) batches. Every random number is a function of (seed, epoch, batch number), as in
`common.datasets.batches`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from common.datasets.batches import Draws, generator_for
from common.errors import UserError


def balanced_indices(
    labels: torch.Tensor, batch_classes: int, samples: int, generator: torch.Generator
) -> torch.Tensor:
    """Positions of the images of every batch of one epoch, int64 `(batches, B_c B_s)`, grouped by class within a batch.

    A class gives the next `samples` images of its shuffled list; when fewer are left, the list is shuffled anew.

    Parameters
    ----------
    labels : Tensor, int64 `(n,)`
        On the CPU, every class from 0 to K - 1 at least `samples` times.
    batch_classes, samples : int
        B_c, B_s.
    """
    sizes = torch.bincount(labels)
    batches = (len(labels) - 1) // (batch_classes * samples)
    drawn = torch.rand(batches, len(sizes), generator=generator).argsort(1)[:, :batch_classes]
    result = torch.empty(batches, batch_classes, samples, dtype=torch.int64)
    for label, size in enumerate(sizes.tolist()):
        places = drawn == label
        visits, at_once = int(places.sum()), size // samples
        shuffles = -(-visits // at_once)
        lists = torch.rand(shuffles, size, generator=generator).argsort(1)[:, : at_once * samples]
        own = (labels == label).nonzero()[:, 0]
        result[places] = own[lists.reshape(-1, samples)[:visits]]
    return result.flatten(1)


@dataclass
class BalancedBatches:
    """Class-balanced batches of images that are held on one device.

    Parameters
    ----------
    pixels : Tensor, uint8 `(n, C, H, W)`
    labels : Tensor, int64 `(n,)`
    batch_classes, sample_count : int
        B_c and the starting B_s; all processes together.
    seed : int
    augment : callable, optional
        `augment(pixels, draws) -> pixels`.
    sample_count_final : int, optional
        B_s from epoch `sample_count_epoch` on (paper: five times the starting one); None: it never grows, as released.
    sample_count_epoch : int
    rank, world_size : int
        This process and the number of processes; each computes a contiguous slice of every batch.

    Raises
    ------
    UserError
        More classes a batch than there are, a class with fewer than B_s images, too few images for one batch, or a
        batch that the processes cannot share equally.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    batch_classes: int
    sample_count: int
    seed: int = 0
    augment: Callable[[torch.Tensor, Draws], torch.Tensor] | None = None
    sample_count_final: int | None = None
    sample_count_epoch: int = 150
    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        self._on_cpu = self.labels.cpu()
        self._next = 0
        sizes = torch.bincount(self._on_cpu)
        if self.batch_classes > len(sizes):
            raise UserError(f"--batch_classes {self.batch_classes}: there are only {len(sizes)} known classes;"
                            " take at most that many")
        for flag, samples in (("--sample_count", self.sample_count), ("--sample_count_final", self.sample_count_final)):
            if samples is None:
                continue
            size, label = (int(value) for value in sizes.min(0))
            batch = self.batch_classes * samples
            if size < samples:
                raise UserError(f"{flag} {samples}: class {label} has only {size} training images;"
                                f" lower it to at most {size}")
            if len(self.labels) <= batch:
                raise UserError(f"{len(self.labels)} training images give no batch of {self.batch_classes} classes"
                                f" x {samples}: lower --batch_classes or {flag}")
            if batch % self.world_size:
                raise UserError(f"{self.world_size} processes cannot share a batch of {self.batch_classes} classes"
                                f" x {samples} equally: change --batch_classes, {flag} or --devices")

    def samples(self, epoch: int) -> int:
        """B_s in `epoch`."""
        grown = self.sample_count_final is not None and epoch >= self.sample_count_epoch
        return self.sample_count_final if grown else self.sample_count

    def count(self, epoch: int) -> int:
        """Number of batches in `epoch`."""
        return (len(self.labels) - 1) // (self.batch_classes * self.samples(epoch))

    def begin(self, epoch: int) -> None:
        """Say which epoch comes next: `len` counts its batches."""
        self._next = epoch

    def __len__(self) -> int:
        """Number of batches in the next epoch."""
        return self.count(self._next)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield `(batch number, pixels, labels)` of one epoch, from batch `start` on (resume in mid-epoch)."""
        generator = generator_for(self.seed, epoch)
        indices = balanced_indices(self._on_cpu, self.batch_classes, self.samples(epoch), generator)
        share = indices.shape[1] // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        for number in range(start, len(indices)):
            draws = Draws(generator_for(self.seed, epoch, number + 1), indices[number], epoch, mine, self.pixels.device)
            chosen = draws.index
            pixels = self.pixels.index_select(0, chosen)
            if self.augment is not None:
                pixels = self.augment(pixels, draws)
            yield number, pixels, self.labels[chosen]
