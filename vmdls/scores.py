"""VMDLS's scores of an image: one full Gaussian per class on the ensemble of features, and what follows from them.

Dinari and Freifeld 2022. With the feature ensemble t = [t1, t2, t3, g, mean] of an image and m_c, S_c of class c:

    l_c(x) = -1/2 [ (t - m_c)' (S_c + jitter)^-1 (t - m_c) + log det(S_c + jitter) + D log 2 pi ]
    class  = argmax_c l_c(x)
    S(x)   = w(x) (max_c l_c(x) - M*),  larger = more known;  w(x) = r(x) / max r, or 1 without auto-encoder (VMDLS_b)

r(x) is the mean squared difference of the first-block features of the image and of its reconstruction. Everything
here is float64; covariances are kept as one triangle, row by row.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from common.errors import UserError
from common.metrics.checks import labels as checked_labels
from common.metrics.checks import scores as checked_scores

JITTER = 1e-6
# Bytes of covariance matrices or whitened features that are held at a time.
BLOCK_BYTES = 256 << 20
# Rows of a whitening matrix at a time: below the diagonal most of a strip is not zero.
STRIP = 100


def triangle(columns: int, device=None) -> torch.Tensor:
    """Row and column, int64 `(2, D (D + 1) / 2)`, of every stored entry of a symmetric `(D, D)` matrix."""
    return torch.triu_indices(columns, columns, device=device)


def pack(matrices: torch.Tensor) -> torch.Tensor:
    """Upper triangles `(K, D (D + 1) / 2)` of symmetric matrices `(K, D, D)`."""
    row, column = triangle(matrices.shape[-1], matrices.device)
    return matrices[:, row, column]


def unpack(triangles: torch.Tensor, columns: int) -> torch.Tensor:
    """Symmetric matrices, float64 `(K, D, D)`, of upper triangles `(K, D (D + 1) / 2)`."""
    row, column = triangle(columns, triangles.device)
    matrices = torch.zeros(len(triangles), columns, columns, dtype=torch.float64, device=triangles.device)
    matrices[:, row, column] = triangles.double()
    matrices[:, column, row] = triangles.double()
    return matrices


class ClassMoments:
    """Mean and covariance of the features of each class, added up over batches of any composition.

    Batches are merged by their own means and scatter matrices (Chan, Golub and LeVeque 1983), so nothing cancels where
    the means are large against the spread.

    Parameters
    ----------
    classes, columns : int
    released : bool
        As the released program does: a batch that holds a class *replaces* that class's sums, while its count grows on.
        Right only for a class that one batch holds completely.

    Attributes
    ----------
    count : Tensor, int64 `(K,)`
    mean : Tensor, float64 `(K, D)`
    scatter : Tensor, float64 `(K, D, D)`
        Sums of (t - m)(t - m)'.
    """

    def __init__(self, classes: int, columns: int, device="cpu", released: bool = False):
        self.released = released
        self.count = torch.zeros(classes, dtype=torch.int64, device=device)
        self.last = torch.zeros_like(self.count)
        self.mean = torch.zeros(classes, columns, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(classes, columns, columns, dtype=torch.float64, device=device)

    def add(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Add images with features `(N, D)` and labels `(N,)`."""
        order = labels.argsort(stable=True)
        sizes = torch.bincount(labels, minlength=len(self.count))
        members = features[order].double().split(sizes.tolist())
        # One product per class that occurs: the whole costs N D^2, however many classes there are.
        for label in sizes.nonzero().flatten().tolist():
            part, size = members[label], int(sizes[label])
            mean = part.mean(0)
            centred = part - mean
            scatter = centred.T @ centred
            before = 0 if self.released else int(self.count[label])
            if before:
                gap, share = mean - self.mean[label], size / (before + size)
                self.scatter[label] += scatter + before * share * torch.outer(gap, gap)
                self.mean[label] += share * gap
            else:
                self.scatter[label], self.mean[label] = scatter, mean
            self.count[label] += size
            self.last[label] = size

    def finish(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Means `(K, D)` and biased covariances `(K, D, D)`; zero for a class without images."""
        count = self.count.clamp_min(1).double()
        if not self.released:
            return self.mean.clone(), self.scatter / count[:, None, None]
        # Sums of the last batch divided by the count of all: with two halves, half the mean and a distorted covariance.
        share = self.last.double() / count
        outer = self.mean[:, :, None] * self.mean[:, None, :]
        covariance = self.scatter / count[:, None, None] + (share - share**2)[:, None, None] * outer
        return share[:, None] * self.mean, covariance


class Gaussians:
    """A full Gaussian per class.

    Parameters
    ----------
    mean : Tensor, float64 `(K, D)`
    covariance : Tensor `(K, D (D + 1) / 2)`
        Upper triangles.
    shrinkage : float
        s in S <- (1 - s) S + s tr(S) / D I, before the jitter; 0 leaves S alone.

    Attributes
    ----------
    steps : int
        Multiples of 1e-6 on the diagonal of every class: the fewest with which all Cholesky decompositions exist, and
        two more (the released rule; there in float32).
    """

    def __init__(self, mean: torch.Tensor, covariance: torch.Tensor, shrinkage: float = 0.0):
        if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise UserError("the Gaussians hold NaN or infinity: train again, or compute the statistics again")
        self.mean, self.covariance, self.shrinkage = mean, covariance, shrinkage
        self.columns = mean.shape[1]
        self.block = max(1, BLOCK_BYTES // (3 * 8 * self.columns**2))  # three matrices of a class at a time
        self.steps = self._needed_steps() + 2

    def _matrices(self, classes: slice) -> torch.Tensor:
        matrices = unpack(self.covariance[classes], self.columns)
        if self.shrinkage:
            diagonal = matrices.diagonal(dim1=1, dim2=2)
            middle = diagonal.mean(1, keepdim=True)
            matrices *= 1 - self.shrinkage
            diagonal += self.shrinkage * middle
        return matrices

    def _blocks(self) -> list[slice]:
        return [slice(start, start + self.block) for start in range(0, len(self.mean), self.block)]

    def _needed_steps(self) -> int:
        """Fewest multiples of the jitter that make every matrix positive definite."""
        needed = 0
        for classes in self._blocks():
            matrices = self._matrices(classes)

            def fails(steps, matrices=matrices):
                jittered = matrices.clone()
                jittered.diagonal(dim1=1, dim2=2).add_(steps * JITTER)
                return bool(torch.linalg.cholesky_ex(jittered).info.any())

            # Doubling, then halving the interval: the same number as counting up one by one.
            high = max(needed, 1)
            if not fails(needed):
                continue
            low = needed
            while fails(high):
                low, high = high, 2 * high
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if fails(middle) else (low, middle)
            needed = high
        return needed

    def _whitening(self, classes: slice, centre: torch.Tensor):
        """Constants `(K,)`, and strips of the map to whitened features: a matrix `(columns, K s)`, an offset `(K s,)`.

        A strip holds the next s rows of L^-1 of all classes, S = L L', without the columns that are 0 in all of them.
        So whitening is a few large matrix products, which run several times faster than triangular solves.
        """
        factor = self._matrices(classes)
        factor.diagonal(dim1=1, dim2=2).add_(self.steps * JITTER)
        factor = torch.linalg.cholesky(factor)
        constant = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1) + self.columns * math.log(2 * math.pi)
        inverse = torch.linalg.solve_triangular(factor, torch.eye(self.columns).to(factor), upper=False)
        offset = (inverse @ (centre - self.mean[classes])[:, :, None])[:, :, 0]
        strips = []
        for start in range(0, self.columns, STRIP):
            rows = slice(start, start + STRIP)
            matrix = inverse[:, rows, : rows.stop].flatten(0, 1).contiguous().T
            strips.append((matrix, offset[:, rows].flatten()))
        return constant, strips

    def log_likelihood(self, features, label: int | None = None, batch: int = 2048) -> torch.Tensor:
        """Log-likelihoods l_c, float64 `(N, K)` on the CPU, of features `(N, D)`; `(N, 1)` of the class `label`."""
        features = torch.as_tensor(features)
        blocks = self._blocks() if label is None else [slice(label, label + 1)]
        first = blocks[0].start
        found = torch.empty(len(features), len(self.mean) if label is None else 1, dtype=torch.float64)
        centre = self.mean.mean(0)
        for classes in blocks:
            constant, strips = self._whitening(classes, centre)
            for start in range(0, len(features), batch):
                part = features[start : start + batch].to(centre) - centre
                distance = constant.repeat(len(part), 1)
                for matrix, offset in strips:
                    white = torch.addmm(offset, part[:, : len(matrix)], matrix)
                    distance += white.square_().unflatten(1, (len(constant), -1)).sum(2)
                columns = slice(classes.start - first, classes.stop - first)
                found[start : start + batch, columns] = (-0.5 * distance).cpu()
        return found

    def marginal(self, columns: torch.Tensor) -> Gaussians:
        """The Gaussians of some of the columns, int64 `(d,)` in ascending order, with a jitter of their own."""
        row, column = columns[triangle(len(columns), columns.device)]
        entry = row * self.columns - row * (row - 1) // 2 + column - row
        return Gaussians(self.mean[:, columns], self.covariance[:, entry], self.shrinkage)


def reconstruction_error(features: np.ndarray, reconstructed: np.ndarray) -> np.ndarray:
    """r(x), float64 `(N,)`: mean squared difference of first-block features `(N, C)` of image and reconstruction."""
    return np.square(np.asarray(features, np.float64) - reconstructed).mean(1)


def known_score(log_likelihood: np.ndarray, highest: float, weight: np.ndarray | None = None) -> np.ndarray:
    """S(x) = w(x) (max_c l_c(x) - M*), float64 `(N,)`, larger = more known, with M* = 1 + `highest`.

    Parameters
    ----------
    log_likelihood : array `(N, K)`
    highest : float
        Largest log-likelihood of the training images (inductive) or of the test run itself (transductive, as released).
    weight : array `(N,)`, optional
        w = r(x) / (largest r of the same images as `highest`); none: 1, the variant VMDLS_b.

    Notes
    -----
    A weight must multiply something negative, or a bad reconstruction would make an image more known: with training
    constants max l - M* can exceed -1 on a test image and is cut there; without weights nothing is cut or tied.
    """
    below = np.asarray(log_likelihood, np.float64).max(1) - (1.0 + highest)
    return below if weight is None else weight * np.minimum(below, -1.0)


def cauroc(target, prediction, unknown_score) -> float:
    """The release's CAUROC: area under the acceptance rate of the *correctly classified* known images, against FPR.

    Summed by rectangles with the rate at the higher threshold: a right known image counts against every unknown one
    that is strictly less known, equal scores count only at the very first threshold. Without ties it is
    `common.metrics.oscr` divided by the closed accuracy.

    Parameters
    ----------
    target, prediction, unknown_score : arrays (N,)
        As in `common.metrics`.

    Returns
    -------
    float
        NaN without unknown images or without a right known one.
    """
    target = checked_labels(target, "target")
    prediction = checked_labels(prediction, "prediction", length=len(target))
    unknown_score = checked_scores(unknown_score, length=len(target))
    right = np.sort(unknown_score[(target >= 0) & (prediction == target)])
    unknown = unknown_score[target < 0]
    if not len(right) or not len(unknown):
        return float("nan")
    first = unknown_score.min()
    pairs = np.searchsorted(right, unknown, side="left").sum(dtype=np.int64)
    pairs += np.count_nonzero(unknown == first) * np.count_nonzero(right == first)
    return float(pairs / (len(right) * len(unknown)))


def threshold_table(target, prediction, unknown_score, thresholds, classes: int) -> np.ndarray:
    """What the release tabulates for T thresholds, float64 `(T, 3)`: macro-F1, known accuracy, unknown accuracy.

    Accepted where the unknown score is below the threshold. Known accuracy: known images accepted and classified right;
    unknown accuracy: unknown images rejected; macro-F1 as `common.metrics.macro_f1`. One sort and cumulative counts
    serve all thresholds. NaN where the target holds no known or no unknown image.
    """
    target = checked_labels(target, "target", classes=classes)
    prediction = checked_labels(prediction, "prediction", length=len(target), lowest=0, classes=classes)
    unknown_score = checked_scores(unknown_score, length=len(target))
    thresholds = np.asarray(thresholds, np.float64)
    true = np.bincount(np.where(target < 0, classes, target), minlength=classes + 1)
    if not true[-1] or not true[:-1].any():
        return np.full((len(thresholds), 3), np.nan)
    order = np.argsort(thresholds)
    # An image is accepted at the sorted thresholds from `first` on.
    first = np.searchsorted(thresholds[order], unknown_score, side="right")

    def accepted(chosen: np.ndarray) -> np.ndarray:
        cells = first[chosen] * classes + prediction[chosen]
        counts = np.bincount(cells, minlength=(len(thresholds) + 1) * classes).reshape(-1, classes)
        return counts.cumsum(0)[:-1]  # (T, K): how many of them are accepted as each class

    decided, hits = accepted(target >= -1), accepted(prediction == target)
    unknown_hits = true[-1] - accepted(target < 0).sum(1)
    present = true[:-1] > 0
    f1 = (2 * hits[:, present] / (true[:-1][present] + decided[:, present])).sum(1)
    f1 += 2 * unknown_hits / (true[-1] + len(target) - decided.sum(1))
    table = np.empty((len(thresholds), 3))
    table[order] = np.stack((f1 / (present.sum() + 1), hits.sum(1) / true[:-1].sum(), unknown_hits / true[-1]), axis=1)
    return table
