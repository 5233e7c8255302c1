"""CSSR's three scores of an image, their training statistics and their fusion (Huang et al. 2022; larger = more known).

With feature map z, predicted class y, its logit map l_y, and M(p) = mean over channels of |z_c(p)|:

    S0 = mean over p of l_y(p) / M(p)^2    pcssr        mean over p of l_y(p)    rcssr        max_i P_i    linear
    S1 = mean over c, p of A~_y[c] z_c(p)               A~: share of class y in the mean |z_c| of all classes
    S2 = sum over c, d of G(z)_cd G^_y_cd               G(z)_cd = (sum over p of z_c(p)^8 z_d(p)^8)^(1/8), G^_y its mean

A~ and G^ are taken over the training images *predicted* as the class. Fusion: S = sum over j of (S_j - mu_j) / (sigma_j +
1e-8), mu and sigma over the training images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

SCORES = ("S0", "S1", "S2")
PARTS = ("RRE", "FM", *SCORES)
PREFIX = "statistics."
# Bytes of Gram matrices held at a time, and of feature maps that are kept for the normalising pass.
GRAM_BYTES = 64 << 20
KEPT_BYTES = 2 << 30


def triangle(channels: int, device=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the upper triangle in a flattened `(C, C)` matrix, and how often each entry counts (1 or 2)."""
    row, column = torch.triu_indices(channels, channels, device=device)
    return row * channels + column, torch.where(row == column, 1.0, 2.0)


def gram(feature_map: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Upper triangle of G(z), `(N, C (C + 1) / 2)` float, of feature maps `(N, C, h, w)`.

    G(s z) = s^2 G(z), so each map is scaled to a largest value of 1 first: 16th powers neither overflow nor need more
    than single precision.
    """
    points = feature_map.flatten(2)
    points = points if points.dtype == torch.float64 else points.float()
    size = points.abs().amax((1, 2)).clamp_min(torch.finfo(points.dtype).tiny)
    powers = (points / size[:, None, None]).square_().square_().square_()
    products = torch.bmm(powers, powers.transpose(1, 2)).flatten(1)
    products = products.gather(1, upper.expand(len(points), -1))  # several times faster than index_select here
    return products.sqrt_().sqrt_().sqrt_().mul_(size.square()[:, None])


def image_blocks(feature_map: torch.Tensor) -> int:
    """Images whose Gram matrices fit `GRAM_BYTES`."""
    return max(1, GRAM_BYTES // (feature_map.element_size() * feature_map.shape[1] ** 2))


class ClassStatistics:
    """Sums over training images by predicted class, and what S1 and S2 need of them.

    Parameters
    ----------
    classes, channels : int
    with_gram : bool
        False leaves S2 out (with 1,000 classes the Gram matrices alone take gigabytes).

    Attributes
    ----------
    count : Tensor, float64 `(m,)`
        Images predicted as each class.
    magnitude : Tensor, float64 `(m, C)`
        Sums over those images of the mean over positions of |z_c|.
    gram : Tensor, float64 `(m, C (C + 1) / 2)`
        Sums of G(z), upper triangles.
    """

    def __init__(self, classes: int, channels: int, device="cpu", with_gram: bool = True):
        self.count = torch.zeros(classes, dtype=torch.float64, device=device)
        self.magnitude = torch.zeros(classes, channels, dtype=torch.float64, device=device)
        self.upper, _ = triangle(channels, device)
        size = len(self.upper) if with_gram else 0
        self.gram = torch.zeros(classes, size, dtype=torch.float64, device=device)

    def add(self, feature_map: torch.Tensor, prediction: torch.Tensor) -> None:
        """Add images with feature maps `(N, C, h, w)` that were predicted as `prediction` `(N,)`."""
        self.count += torch.bincount(prediction, minlength=len(self.count))
        self.magnitude.index_add_(0, prediction, feature_map.abs().mean((2, 3)).double())
        if not self.gram.shape[1]:
            return
        step = image_blocks(feature_map)
        for part, predicted in zip(feature_map.split(step), prediction.split(step)):
            values = gram(part, self.upper)
            # A product with the one-hot matrix: the sum by class in one go; index_add_ takes ten times as long.
            members = torch.nn.functional.one_hot(predicted, len(self.count)).T.to(values)
            self.gram += (members @ values).double()

    def finish(self) -> dict[str, torch.Tensor]:
        """Class shares `(m, C)` (columns sum to 1), mean Gram triangles, and counts.

        A class that was never predicted has zero rows; a channel that is dead for all classes has share 0.
        """
        count = self.count.clamp_min(1)[:, None]
        magnitude = self.magnitude / count
        total = magnitude.sum(0)
        share = magnitude / torch.where(total > 0, total, 1.0)
        return {"class_share": share, "gram_mean": self.gram / count, "class_count": self.count}


def parts_of(
    kind: str,
    feature_map: torch.Tensor,
    logit_map: torch.Tensor,
    log_probabilities: torch.Tensor,
    statistics: Mapping[str, torch.Tensor],
    gamma: float = 0.1,
) -> torch.Tensor:
    """RRE, FM, S0, S1, S2 of images, float64 `(N, 5)`; larger = more known in every column.

    Parameters
    ----------
    kind : str
        `pcssr`, `rcssr` or `linear`.
    feature_map, logit_map : Tensor `(N, C, h, w)`, `(N, m, h, w)`
    log_probabilities : Tensor `(N, m)`
    statistics : mapping
        `class_share`, `gram_mean` of `ClassStatistics.finish`.
    gamma : float
        Factor of the errors in the logits, for RRE.

    Notes
    -----
    The paper's ablation names: FM is the mean over positions of ||z_p||_1; RRE that of the error over ||z_p||_1, here
    negative for pcssr, where a small error is known. Positions with ||z_p|| = 0 count 0 in both ratios. NaN: RRE of the
    linear model, S2 without Gram statistics.
    """
    best, prediction = log_probabilities.max(1)
    chosen = logit_map.flatten(2).gather(1, prediction[:, None, None].expand(-1, -1, logit_map[0, 0].numel()))[:, 0]
    chosen = chosen.double()  # (N, positions)
    magnitude = feature_map.abs().sum(1).flatten(1).double()  # ||z_p||_1
    mean_magnitude = magnitude / feature_map.shape[1]
    alive = magnitude > 0
    first = {
        "pcssr": lambda: torch.where(alive, chosen / mean_magnitude.square(), 0.0).mean(1),
        "rcssr": lambda: chosen.mean(1),
        "linear": lambda: best.double().exp(),
    }[kind]()
    relative = torch.full_like(first, torch.nan)
    if kind != "linear":
        relative = torch.where(alive, chosen / (gamma * magnitude), 0.0).mean(1)
    share = statistics["class_share"].to(first)[prediction]
    second = (share * feature_map.mean((2, 3), dtype=torch.float64)).mean(1)
    third = gram_score(feature_map, prediction, statistics["gram_mean"])
    return torch.stack((relative, magnitude.mean(1), first, second, third), dim=1)


def gram_score(feature_map: torch.Tensor, prediction: torch.Tensor, gram_mean: torch.Tensor) -> torch.Tensor:
    """S2 of images, float64 `(N,)`; NaN when there are no Gram statistics."""
    if not gram_mean.shape[1]:
        return torch.full((len(feature_map),), torch.nan, dtype=torch.float64, device=feature_map.device)
    upper, weight = triangle(feature_map.shape[1], feature_map.device)
    step, scores = image_blocks(feature_map), []
    kind = torch.float64 if feature_map.dtype == torch.float64 else torch.float32
    weighted = gram_mean.to(feature_map.device, kind) * weight.to(kind)
    for part, predicted in zip(feature_map.split(step), prediction.split(step)):
        every_class = gram(part, upper) @ weighted.T  # cheaper than fetching each image's own row
        scores.append(every_class.gather(1, predicted[:, None])[:, 0].double())
    return torch.cat(scores)


def fused(parts: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """S = sum over S0, S1, S2 of (S_j - mu_j) / (sigma_j + 1e-8), `(N,)`; terms that are NaN are left out."""
    terms = (parts[:, -len(SCORES) :] - mean) / (std + 1e-8)
    return terms.nansum(1)


Maps = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def training_statistics(
    model, passes: Callable[[], Iterable[Maps]], augmented: Iterable[Maps] | None = None, with_gram: bool = True
) -> dict[str, torch.Tensor]:
    """All that scoring needs of the training images, as `statistics.*` tensors of a checkpoint.

    Parameters
    ----------
    model : CSSR
    passes : callable
        Returns an iterator over `(feature map, logit map, log-probabilities)` of the un-augmented training images, in
        batches. Called once when their feature maps fit `KEPT_BYTES`, else twice.
    augmented : iterable, optional
        The same of augmented images: mu and sigma are then measured there, as the release does.
    with_gram : bool

    Returns
    -------
    dict
        `statistics.class_share` `(m, C)`, `.gram_mean` `(m, C (C + 1) / 2)`, `.class_count` `(m,)`, `.mean` and `.std`
        `(3,)` of S0, S1, S2 (population standard deviation).
    """
    sums, kept, size = None, [], 0
    for maps in passes():
        feature_map, _, log_p = maps
        if sums is None:
            sums = ClassStatistics(log_p.shape[1], feature_map.shape[1], feature_map.device, with_gram)
        sums.add(feature_map, log_p.argmax(1))
        size += feature_map.nbytes
        if kept is not None and augmented is None:
            kept = [*kept, maps] if size <= KEPT_BYTES else None
    statistics = sums.finish()
    second_pass = augmented if augmented is not None else kept if kept is not None else passes()
    gamma = abs(model.head.scale)
    scores = torch.cat([parts_of(model.kind, *maps, statistics, gamma) for maps in second_pass])[:, -len(SCORES) :]
    statistics |= {"mean": scores.mean(0), "std": scores.std(0, correction=0)}
    kinds = {"mean": torch.float64, "std": torch.float64}
    return {PREFIX + name: value.to(kinds.get(name, torch.float32)).cpu() for name, value in statistics.items()}
