"""Batches of a data set that lives on the training device: seeded shuffle, augmentation per batch, exact resume.

Every random number of a batch is a function of (seed, epoch, batch number) alone and is drawn for the *global* batch
before a process takes its slice. So a run gives the same batches after a resume, and on one process or several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch


def generator_for(*keys: int) -> torch.Generator:
    """Return a CPU generator seeded by a tuple of integers (mixed, so that neighbouring keys give unrelated streams)."""
    state = 0x9E3779B97F4A7C15
    for key in keys:
        state = ((state ^ (int(key) & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return torch.Generator().manual_seed(state & 0x7FFFFFFFFFFFFFFF)


class Draws:
    """The random numbers of one batch.

    Parameters
    ----------
    generator : torch.Generator
        CPU generator of this batch.
    index : Tensor, int64 `(global_batch,)`
        Position in the data set of every image of the global batch.
    epoch : int
        Epoch number, from 0.
    rank_slice : slice
        The part of the global batch that this process computes.
    device : torch.device
        Where the numbers are wanted.
    """

    def __init__(self, generator, index, epoch: int, rank_slice: slice = slice(None), device="cpu"):
        self.generator, self.epoch, self.device = generator, epoch, torch.device(device)
        self._global_index, self._slice = index, rank_slice

    def _give(self, values: torch.Tensor) -> torch.Tensor:
        return values[self._slice].to(self.device, non_blocking=True)

    @property
    def index(self) -> torch.Tensor:
        """Data-set positions of this process's images, int64 `(batch,)`."""
        return self._give(self._global_index)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Uniform numbers in [low, high), float32 `(batch, *shape)`."""
        values = torch.rand(len(self._global_index), *shape, generator=self.generator)
        return self._give(values * (high - low) + low)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers, float32 `(batch, *shape)`."""
        return self._give(torch.randn(len(self._global_index), *shape, generator=self.generator))

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """Integers in [low, high), int64 `(batch, *shape)`."""
        return self._give(torch.randint(low, high, (len(self._global_index), *shape), generator=self.generator))

    def permutation(self, n: int) -> torch.Tensor:
        """One random order of n operations per image, int64 `(batch, n)`."""
        return self.uniform(n).argsort(dim=1)


@dataclass
class Batches:
    """Shuffled batches of images that are held on one device.

    Parameters
    ----------
    pixels : Tensor, uint8 or float32 `(N, C, H, W)`
    labels : Tensor, int64 `(N,)`
    batch_size : int
        Global batch size: the sum over all processes.
    seed : int
    augment : callable, optional
        `augment(pixels, draws) -> pixels`, applied to this process's part of the batch.
    shuffle, drop_last : bool
        `drop_last` leaves out an incomplete last batch.
    rank, world_size : int
        This process and the number of processes; each computes a contiguous slice of every global batch.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    batch_size: int
    seed: int = 0
    augment: Callable[[torch.Tensor, Draws], torch.Tensor] | None = None
    shuffle: bool = True
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must lie in 0..{self.world_size - 1}, got {self.rank}")
        if len(self.pixels) != len(self.labels):
            raise ValueError(f"{len(self.pixels)} images but {len(self.labels)} labels")

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        full, rest = divmod(len(self.labels), self.batch_size)
        return full if self.drop_last and full else full + (rest > 0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Yield `(batch number, pixels, labels)` of one epoch, from batch `start` on (resume in mid-epoch)."""
        count = len(self.labels)
        order = torch.arange(count)
        if self.shuffle:
            order = torch.randperm(count, generator=generator_for(self.seed, epoch))
        device = self.pixels.device
        for number in range(start, len(self)):
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            # Equal slices, so that the mean over processes is the mean over the batch: up to world_size - 1 images wait.
            share = len(index) // self.world_size
            if not share:
                continue
            mine = slice(self.rank * share, (self.rank + 1) * share)
            draws = Draws(generator_for(self.seed, epoch, number + 1), index, epoch, mine, device)
            chosen = draws.index
            pixels = self.pixels.index_select(0, chosen)  # many times faster than indexing with []
            if self.augment is not None:
                pixels = self.augment(pixels, draws)
            yield number, pixels, self.labels[chosen]
