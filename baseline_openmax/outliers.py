"""Outlier images for training (outlier exposure), and the refusal of sets that show what the test calls unknown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from common.errors import UserError

SHUFFLED = "shuffled"


def shuffled_blocks(pixels: np.ndarray, seed: int, grid: int = 4) -> np.ndarray:
    """Images whose `grid` x `grid` blocks stand in a random order, each image its own; uint8 `(N, C, H, W)`.

    They have the colours and edges of the known images and not their shapes. A border that the grid leaves over stays.
    """
    count, channels, height, width = pixels.shape
    h, w = height // grid, width // grid
    if not h or not w:
        raise UserError(f"outliers shuffled: images of {height}x{width} are too small for {grid}x{grid} blocks")
    inner = pixels[:, :, : grid * h, : grid * w].reshape(count, channels, grid, h, grid, w)
    blocks = inner.transpose(0, 2, 4, 1, 3, 5).reshape(count, grid * grid, channels, h, w)
    order = np.random.RandomState(seed).random_sample((count, grid * grid)).argsort(1)
    blocks = np.take_along_axis(blocks, order[:, :, None, None, None], axis=1)
    result = pixels.copy()
    inner = blocks.reshape(count, grid, grid, channels, h, w).transpose(0, 3, 1, 4, 2, 5)
    result[:, :, : grid * h, : grid * w] = inner.reshape(count, channels, grid * h, grid * w)
    return result


def refuse_overlap(name: str, outlier_classes: Sequence[str], dataset: str, split, class_names: Sequence[str]) -> None:
    """Raise a `UserError` when an outlier set shows known classes or classes that the split leaves unknown.

    Parameters
    ----------
    name : str
        Canonical name of the outlier set.
    outlier_classes : sequence of str
        Names of its classes; may be empty.
    dataset, split
        Known data set and its `Split`.
    class_names : sequence of str
        Names of all classes of the known data set, known and unknown.
    """
    from common.datasets.preparation import MADE_FROM

    advice = "outlier exposure with classes of the test measures nothing: choose another set, noise or shuffled"
    if name == dataset:
        raise UserError(f"outliers {name}: they are images of the known data set itself; {advice}")
    if split.unknown_dataset is not None and name == split.unknown_dataset:
        raise UserError(f"outliers {name}: the unknown classes of split {split.name} come from it; {advice}")
    if dataset in MADE_FROM.get(name, ()) or name in MADE_FROM.get(dataset, ()):
        raise UserError(f"outliers {name}: made from images of the classes of {dataset}; {advice}")
    hidden = [] if split.unknown_dataset else sorted({class_names[k] for k in split.unknown} & set(outlier_classes))
    if hidden:
        raise UserError(f"outliers {name}: they show test unknowns ({', '.join(hidden[:5])}); {advice}")
    shared = sorted({class_names[k] for k in split.known} & set(outlier_classes))
    if shared:
        raise UserError(f"outliers {name}: they show known classes ({', '.join(shared[:5])}); {advice}")


def load_outliers(names: Sequence[str], data, args) -> torch.Tensor:
    """All outlier images in the shape of the known ones, uint8 `(N, C, H, W)`.

    Of data sets with a training part that part is taken where it is here, else the test part; noise gets a seed of its own,
    so that noise as test set consists of other images.

    Raises
    ------
    UserError
        Overlap with the test (`refuse_overlap`), an unknown name, data that is not here.
    """
    from common.datasets import CATALOGUE, data_root, load, match_shape, resolve_name
    from common.datasets.presence import part_path

    shape, parts = data.train.shape, []
    limit = 64 if args.dry_run else args.subset
    class_names = load(data.dataset, False, args.data_dir, keep=data.split.known[:1]).classes
    for given in names:
        if given == SHUFFLED:
            parts.append(shuffled_blocks(data.train.pixels, args.seed))
            continue
        name = resolve_name(given)
        here = [part_path(name, part, data_root(args.data_dir)) is not None for part in (True, False)]
        train = CATALOGUE[name].train > 0 and here != [False, True]
        refuse_overlap(name, (), data.dataset, data.split, class_names)
        images = load(name, train, args.data_dir, seed=args.seed + 7919, shape=shape, size=shape[1])
        refuse_overlap(name, images.classes, data.dataset, data.split, class_names)
        parts.append(match_shape(images, shape).pixels[:limit])
    return torch.from_numpy(np.concatenate(parts))


class OutlierBatches:
    """Random outlier images for every step, drawn with replacement; a function of (seed, step) alone, so a resume has the same.

    Parameters
    ----------
    pixels : Tensor, uint8 `(N, C, H, W)`
    seed : int
    augment : callable, optional
        As of `common.datasets.batches.Batches`.
    """

    def __init__(self, pixels: torch.Tensor, seed: int, augment=None):
        self.pixels, self.seed, self.augment = pixels, seed, augment

    def draw(self, count: int, step: int, epoch: int) -> torch.Tensor:
        """`count` images for optimiser step `step` of `epoch`, uint8 `(count, C, H, W)`."""
        from common.datasets.batches import Draws, generator_for

        generator = generator_for(self.seed, step, 104729)
        index = torch.randint(0, len(self.pixels), (count,), generator=generator)
        draws = Draws(generator, index, epoch, slice(None), self.pixels.device)
        images = self.pixels.index_select(0, draws.index)
        return images if self.augment is None else self.augment(images, draws)
