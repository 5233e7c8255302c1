"""Run a trained VMDLS network over images: the pass that collects training statistics, and the arrays of `scores.npz`.

Statistics of the training images, as `statistics.*` tensors of a checkpoint (K classes, ensemble of D columns):

| name | shape | meaning |
|---|---|---|
| `column` | (D,) | place of every column of the ensemble among the D' modelled ones; g can share t3's; -1: none |
| `count` | (K,) | training images |
| `mean`, `covariance` | (K, D'), (K, D'(D'+1)/2) | Gaussians of the modelled columns, one triangle; or no covariance |
| `latent_mean`, `latent_covariance` | (K, d), (K, d(d+1)/2) | Gaussians of the mean vector alone |
| `highest` | () | largest log-likelihood of a training image under the Gaussian of its own class |
| `settings` | (5,) | see `Settings` |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from common.errors import UserError
from common.inference import TEST, apply_batched
from vmdls.scores import BLOCK_BYTES, ClassMoments, Gaussians, known_score, pack

PREFIX = "statistics."
# Triangles beyond this many bytes are not stored: a file of the checkpoint store stays under 25 MB.
STORED_BYTES = 24_000_000
# Two layers are one when they differ by less than this share of their spread: two ways to pool differ by rounding,
# in bfloat16 by almost a hundredth.
SAME_LAYER = 0.02


class Settings(NamedTuple):
    """How statistics are computed.

    `batch_classes`, `sample_count`: batches of the released pass (B_c, B_s); without `released` they mean nothing.
    """

    released: bool = False
    batch_classes: int = 10
    sample_count: int = 40
    shrinkage: float = 0.0
    keep_redundant: bool = False

    def canonical(self) -> Settings:
        return self if self.released else self._replace(batch_classes=0, sample_count=0)


def features_of(model, devices):
    """The function of images that `common.inference` applies: the feature ensemble, `(N, D)`."""

    def function(images):
        with devices.autocast():
            return {"features": model.features(images)}

    return function


def require_finite(features: np.ndarray, what: str) -> None:
    """Raise a `UserError` when features `(N, D)` hold NaN or infinity."""
    bad = ~np.isfinite(features).all(1)
    if bad.any():
        raise UserError(f"the features of {bad.sum()} of {len(bad)} {what} are NaN or infinite: the training diverged;"
                        " train again with a smaller --lr or --precision fp32")  # fmt: skip


def released_visits(labels: np.ndarray, batch_classes: int, sample_count: int, seed: int = 0) -> list[np.ndarray]:
    """Image numbers of every batch of the released program's statistics pass: classes 0, 1, 2, ... in turn.

    A batch has `batch_classes` classes and the next `sample_count` images of each one's shuffled list, shuffled
    anew when it has fewer left. The pass ends before the batch with which it would have shown as many images as there
    are. A class that is smaller than `sample_count` lowers it.
    """
    random = np.random.RandomState(seed)
    sizes = np.bincount(labels)
    classes, at_once, each = len(sizes), min(batch_classes, len(sizes)), min(sample_count, int(sizes.min()))
    lists = [random.permutation(np.flatnonzero(labels == label)) for label in range(classes)]
    used = np.zeros(classes, dtype=np.int64)
    visits, shown = [], 0
    while shown + at_once * each < len(labels):
        batch = []
        for label in (len(visits) * at_once + np.arange(at_once)) % classes:
            if used[label] + each > sizes[label]:
                lists[label], used[label] = random.permutation(lists[label]), 0
            batch.append(lists[label][used[label] : used[label] + each])
            used[label] += each
        visits.append(np.concatenate(batch))
        shown += at_once * each
    missing = np.setdiff1d(np.arange(classes), labels[np.concatenate(visits)] if visits else [])
    if len(missing):
        raise UserError(f"--released_statistics with {at_once} classes x {each} images a batch never reaches class"
                        f" {missing[0]} of {len(labels)} training images: lower --sample_count")  # fmt: skip
    return visits


def class_moments(
    features: torch.Tensor, labels: np.ndarray, groups: list[np.ndarray], device, released: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Counts, means and packed covariances (float32) of features `(n, D)`; classes in blocks that fit the memory."""
    classes, columns = int(labels.max()) + 1, features.shape[1]
    block = max(1, BLOCK_BYTES // (2 * 8 * columns**2))
    counts, means, triangles = [], [], []
    for start in range(0, classes, block):
        stop = min(start + block, classes)
        moments = ClassMoments(stop - start, columns, device, released)
        for group in groups:
            chosen = group[(labels[group] >= start) & (labels[group] < stop)]
            if len(chosen):
                chosen = torch.from_numpy(chosen)
                own = torch.from_numpy(labels)[chosen] - start
                moments.add(features[chosen].to(device), own.to(device))
        mean, covariance = moments.finish()
        counts.append(moments.count)
        means.append(mean)
        triangles.append(pack(covariance).float())
    return torch.cat(counts).cpu(), torch.cat(means).cpu(), torch.cat(triangles).cpu()


def columns_modelled(features: torch.Tensor, dimensions: Mapping[str, int], keep_redundant: bool) -> torch.Tensor:
    """`column` of the statistics for the training images' ensemble `(n, D)` with layers of these widths.

    The mean vector is an affine function of g: under a full Gaussian of [g, ...] it adds a constant to every
    log-likelihood. So does g where it is t3 again (DenseNet).
    """
    column = torch.arange(features.shape[1])
    if keep_redundant:
        return column
    parts = dict(zip(dimensions, features.split(list(dimensions.values()), 1)))
    places = dict(zip(dimensions, column.split(list(dimensions.values()))))  # views
    places["mean"].fill_(-1)
    if dimensions["t3"] == dimensions["g"]:
        spread = (parts["t3"] - parts["t3"].mean(0)).norm()
        if (parts["t3"] - parts["g"]).norm() <= SAME_LAYER * spread:
            places["g"].copy_(places["t3"])
    return column


def collect_statistics(
    model, images, devices, batch_size: int = 512, released: bool = False, batch_classes: int = 10,
    sample_count: int = 40, shrinkage: float = 0.0, keep_redundant: bool = False, seed: int = 0,
    stored_bytes: float = STORED_BYTES,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Statistics of un-augmented training images, as `statistics.*` tensors (see the head of this file).

    Parameters
    ----------
    model : VMDLS
        Put into evaluation mode.
    images : object with `pixels` `(n, C, H, W)` and `labels` `(n,)`
        The training part.
    devices : Devices
    batch_size : int
        Images at a time in the network.
    released : bool
        The released program's statistics (`--released_statistics`): a class that comes in several batches of
        `batch_classes` x `sample_count` images keeps the sums of its last one only, divided by the count of all.
    shrinkage : float
        Share of the class's mean variance that replaces its covariance, 0 to 1.
    keep_redundant : bool
        Model the mean vector and equal columns in the ensemble too.
    seed : int
        Of the released pass's shuffles.
    stored_bytes : float
        Larger covariances are left out of the result, with a note on stdout; infinity keeps them always.

    Raises
    ------
    UserError
        A class with fewer than 2 training images, or features that are not finite.
    """
    labels = np.asarray(images.labels)
    classes = len(model.class_means)
    sizes = np.bincount(labels, minlength=classes)
    if (sizes < 2).any():
        label = int((sizes < 2).argmax())
        raise UserError(f"class {label} has {sizes[label]} training image(s): a Gaussian needs at least 2, and many"
                        " more to be good; use more images or fewer classes")  # fmt: skip
    model.eval()
    found = apply_batched(features_of(model, devices), images.pixels, devices.device, batch_size, "statistics")
    require_finite(found["features"], "training images")
    features = torch.from_numpy(found["features"])
    settings = Settings(released, batch_classes, sample_count, shrinkage, keep_redundant).canonical()
    if released:
        groups = released_visits(labels, batch_classes, sample_count, seed)
    else:
        # In the order of the classes a batch holds one or two of them, which keeps the number of products small.
        order = labels.argsort(kind="stable")
        groups = np.split(order, range(4096, len(order), 4096))
    latent_dim = model.dimensions["mean"]
    column = columns_modelled(features, model.dimensions, keep_redundant)
    modelled = features[:, columns_of(column)]
    count, mean, covariance = class_moments(modelled, labels, groups, devices.device, released)
    latent = class_moments(features[:, -latent_dim:], labels, groups, devices.device, released)
    gaussians = Gaussians(mean.to(devices.device), covariance.to(devices.device), shrinkage)
    own = [gaussians.log_likelihood(modelled[labels == label], label).max() for label in range(classes)]
    found = {"column": column, "count": count, "mean": mean, "covariance": covariance, "latent_mean": latent[1],
             "latent_covariance": latent[2], "highest": torch.stack(own).max(),
             "settings": torch.tensor(settings, dtype=torch.float64)}  # fmt: skip
    if covariance.nbytes > stored_bytes:
        del found["covariance"]
        print(f"note: the covariances of {classes} classes x {modelled.shape[1]} columns"
              f" ({covariance.nbytes / 1e6:.0f} MB) are not stored in the checkpoint: test.py computes them from the"
              " training images")  # fmt: skip
    return {PREFIX + name: value for name, value in found.items()}


def columns_of(column: torch.Tensor) -> torch.Tensor:
    """Numbers of the modelled columns in the ensemble, ascending: the first of each place in `column`."""
    places = torch.arange(int(column.max()) + 1)
    return (column[None, :] == places[:, None]).int().argmax(1)


def statistics_for(
    model, tensors: Mapping[str, torch.Tensor], settings: Settings | None, train, devices, batch_size: int, seed: int
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Statistics by bare name: those of the checkpoint, or computed again from the training images, which is said.

    Computed again where the checkpoint holds no covariances or was made with other `settings` (none: its own).
    """
    stored = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
    own = None
    if "settings" in stored:
        values = stored["settings"].tolist()
        own = Settings(bool(values[0]), int(values[1]), int(values[2]), values[3], bool(values[4]))
    wanted = (settings or own or Settings()).canonical()
    if own == wanted and "covariance" in stored:
        return stored
    why = "the flags ask for other ones" if own not in (None, wanted) else "the checkpoint holds no covariances"
    print(f"note: statistics are computed from {len(train)} training images: {why}", flush=True)
    options = (
        wanted._asdict()
        if wanted.released
        else {"shrinkage": wanted.shrinkage, "keep_redundant": wanted.keep_redundant}
    )
    found = collect_statistics(model, train, devices, batch_size, seed=seed, stored_bytes=float("inf"), **options)
    return {key.removeprefix(PREFIX): value for key, value in found.items()}


def layer_gaussians(
    name: str, statistics: Mapping[str, torch.Tensor], dimensions: Mapping[str, int], device="cpu"
) -> tuple[torch.Tensor, Gaussians]:
    """Columns of the ensemble that the score `name` models, and their Gaussians.

    `vmdls`: all modelled columns; `mean`: the mean vector; `t1`, `t2`, `t3`, `g`: that layer, a marginal.
    """
    shrinkage = float(statistics["settings"][3])

    def gaussians(prefix: str) -> Gaussians:
        mean, covariance = (statistics[prefix + part].to(device) for part in ("mean", "covariance"))
        return Gaussians(mean, covariance, shrinkage)

    column = statistics["column"]
    if name == "mean":
        return torch.arange(len(column))[-dimensions["mean"] :], gaussians("latent_")
    ensemble, modelled = gaussians(""), columns_of(column)
    if name == "vmdls":
        return modelled, ensemble
    start = 0
    for layer, width in dimensions.items():
        if layer == name:
            places = torch.unique(column[start : start + width])
            return modelled[places], ensemble.marginal(places.to(device))
        start += width
    raise ValueError(f"no layer {name!r} among {', '.join(dimensions)}")


def scored(
    name: str, arrays: Mapping[str, np.ndarray], statistics: Mapping[str, torch.Tensor], dimensions: Mapping[str, int],
    device="cpu", transductive: bool = False,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Arrays of `scores.npz` for the score called `name`; log-likelihoods are its logits, their argmax its prediction.

    The paper's S is large for known images: `unknown_score` is its negative. Single layers have no constant: there it
    is minus the largest log-likelihood.
    """
    columns, gaussians = layer_gaussians(name, statistics, dimensions, device)
    logits = gaussians.log_likelihood(torch.from_numpy(arrays["features"])[:, columns]).numpy()
    kept = {key: value for key, value in arrays.items() if key != "features"}
    highest = -1.0
    if name == "vmdls":
        test = logits[arrays["split"] == TEST] if transductive else None
        highest = float(statistics["highest"]) if test is None else float(test.max())
    unknown_score = -known_score(logits, highest)
    return {**kept, "logits": logits, "prediction": logits.argmax(1), "unknown_score": unknown_score}
