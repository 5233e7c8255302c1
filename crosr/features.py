"""What OpenMax sees of an image: logits y and pooled latents z; the pass that computes them, its cache, training statistics.

The activation vector is v = [y, z_L, ..., z_1] with every latent map pooled over positions. `training_statistics` turns the
training images into what a checkpoint keeps, so that scoring needs no training data.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from common.files import atomic
from common.inference import apply_batched, joined
from common.openmax import DISTANCES, OpenMax
from crosr.model import POOLINGS, pooled_latents

PREFIX = "statistics."
LOGITS, WITH_LATENTS = "logits", "logits+latents"
FEATURES = (LOGITS, WITH_LATENTS)
# A checkpoint keeps this many of the largest distances per class: every tail up to it is fitted from the file alone. With
# very many classes fewer, so that the distances (three feature sets, three distance types) stay below KEPT_BYTES.
KEPT_DISTANCES = 1000
KEPT_BYTES = 1_500_000


def forward(model, devices) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """The function of images that `FeatureFile.outputs` applies: logits `(N, K)`, latents pooled both ways `(N, D)`."""

    def apply(images: torch.Tensor) -> dict[str, torch.Tensor]:
        with devices.autocast():
            output = model(images)
        latents = [z.float() for z in output.latents]
        return {"logits": output.logits, **{f"latents_{pooling}": pooled_latents(latents, pooling) for pooling in POOLINGS}}

    return apply


def set_name(features: str, pooling: str) -> str:
    """Name of a feature set in statistics and caches: `logits`, `latents_max` or `latents_avg`; refuses others."""
    if features not in FEATURES or pooling not in POOLINGS:
        raise UserError(f"features must be one of {', '.join(FEATURES)} and pooling one of {', '.join(POOLINGS)},"
                        f" got {features!r} and {pooling!r}")
    return LOGITS if features == LOGITS else f"latents_{pooling}"


def activation_vectors(arrays: Mapping[str, np.ndarray], features: str = WITH_LATENTS, pooling: str = "max") -> np.ndarray:
    """v = y, or [y, pooled z], float64 `(N, K)` or `(N, K + D)`.

    Parameters
    ----------
    arrays : mapping
        `logits (N, K)`, `latents_max`, `latents_avg (N, D)` of `forward`.
    features : str
        `logits` or `logits+latents`.
    pooling : str
        `max` or `avg`.

    Raises
    ------
    UserError
        Latents are asked for and the arrays have none.
    """
    name, logits = set_name(features, pooling), np.asarray(arrays["logits"], dtype=np.float64)
    if features == LOGITS:
        return logits
    latents = arrays.get(name)
    if latents is None or not latents.shape[1]:
        raise UserError(f"{features} with {pooling} pooling wants latents, and there are logits only: --features {LOGITS}")
    return np.concatenate([logits, latents.astype(np.float64)], axis=1)


def kept_distances(classes: int) -> int:
    """How many of the largest distances per class a checkpoint keeps: the largest tail that it can fit."""
    sets = len(DISTANCES) * (1 + len(POOLINGS))
    return max(2, min(KEPT_DISTANCES, KEPT_BYTES // (8 * sets * classes)))


def statistics_of(
    arrays: Mapping[str, np.ndarray], labels: np.ndarray, largest: int = 0, correct_only: bool = True
) -> dict[str, np.ndarray]:
    """Statistics of training images from their network outputs.

    Parameters
    ----------
    arrays : mapping
        `logits`, and `latents_max`, `latents_avg` where the network has latents.
    labels : int array (N,)
    largest : int
        Keep at least this many distances per class.
    correct_only : bool
        False counts every image as correctly classified.

    Returns
    -------
    dict
        `used`, `labelled` int64 `(K,)`: correctly classified and all images; `max_logit_mean`, `max_logit_std` `(K,)` of the
        correctly classified ones (population standard deviation). For each feature set S (`logits`, `latents_max`,
        `latents_avg`): `S.means` `(K, D)` and `S.euclidean`, `S.cosine`, `S.eucos` `(K, M)`, the largest distances of
        correctly classified images to their class's mean, descending. All float64; NaN where a class has too few images.
    """
    classes, found = arrays["logits"].shape[1], {}
    largest = max(largest, kept_distances(classes))
    for features, pooling in [(LOGITS, POOLINGS[0]), *((WITH_LATENTS, pooling) for pooling in POOLINGS)]:
        name = set_name(features, pooling)
        if name not in arrays:
            continue
        vectors = activation_vectors(arrays, features, pooling)
        for distance in DISTANCES:
            openmax = OpenMax(distance=distance, correct_only=correct_only)
            calibration = openmax.calibrate(vectors, labels, vectors[:, :classes], largest)
            found[f"{name}.{distance}"] = calibration.distances[:, : max(2, calibration.used.max())]
        found[f"{name}.means"] = calibration.means
    found |= {"used": calibration.used, "labelled": calibration.labelled}
    logits = np.asarray(arrays["logits"], dtype=np.float64)
    kept = (logits.argmax(1) == labels) | (not correct_only)
    return found | max_logit_statistics(logits.max(1)[kept], labels[kept], classes)


def max_logit_statistics(largest: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Mean and population standard deviation of the largest logits `(N,)` by class, `(K,)` each; NaN for an absent class."""
    count = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(labels, largest, minlength=classes) / count
        square = np.bincount(labels, (largest - mean[labels]) ** 2, minlength=classes)
        return {"max_logit_mean": mean, "max_logit_std": np.sqrt(square / count)}


def training_statistics(model, train_images, devices, batch_size: int = 512) -> dict[str, torch.Tensor]:
    """All that scoring needs of the training images, as `statistics.*` tensors of a checkpoint.

    Parameters
    ----------
    model : DHRNet
        Evaluated in evaluation mode; its mode is left as it was.
    train_images : Images
        `pixels` uint8 `(N, C, H, W)` and `labels` `(N,)`, without augmentation.
    devices : Devices
    batch_size : int

    Returns
    -------
    dict
        See `statistics_of`; every name begins with `statistics.`.
    """
    mode = model.training
    model.eval()
    arrays = apply_batched(forward(model, devices), train_images.pixels, devices.device, batch_size, "training statistics")
    model.train(mode)
    found = statistics_of(arrays, train_images.labels)
    return {PREFIX + name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in found.items()}


def stored_statistics(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The statistics of a checkpoint's tensors as arrays, names without the prefix."""
    return {name[len(PREFIX) :]: value.numpy() for name, value in tensors.items() if name.startswith(PREFIX)}


def pixel_digest(pixels: np.ndarray) -> str:
    """Digest of the images themselves: whatever gives other pixels (subset, crop, seed, another file) gives another one."""
    digest = hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels))
    return digest.hexdigest()[:16]


class FeatureFile:
    """Network outputs of image sets in `features_<suffix>.npz`, each set under the digest of its pixels.

    Parameters
    ----------
    path : Path
    network : str
        What identifies weights and arithmetic; the content of a file of another network is stale and is not used.
    """

    def __init__(self, path: Path, network: str):
        self.path, self.network = Path(path), network
        self.sets: dict[str, dict[str, np.ndarray]] = {}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                if str(stored["network"]) != self.network:
                    print(f"features: {self.path.name} is of other weights or arithmetic; computed again")
                    return
                for name in stored.files:
                    digest, _, key = name.partition(".")
                    if key:
                        self.sets.setdefault(digest, {})[key] = stored[name]
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            print(f"features: {self.path.name} is not readable; computed again")
            self.sets = {}

    def _write(self) -> None:
        named = {f"{digest}.{key}": value for digest, one in self.sets.items() for key, value in one.items()}
        with atomic(self.path) as partial, open(partial, "wb") as target:
            np.savez_compressed(target, network=np.array(self.network), **named)

    def outputs(self, function, parts: Sequence[tuple], device, batch_size: int = 512) -> tuple[dict, list[str]]:
        """Outputs of all parts as `common.inference.outputs` lays them out, and the parts' digests.

        `function` (see `forward`) is applied to the sets that the file lacks; the file is then written again.
        """
        digests = [pixel_digest(images.pixels) for _, _, images in parts]
        computed = []
        for digest, (name, _, images) in zip(digests, parts):
            if digest not in self.sets:
                self.sets[digest] = apply_batched(function, images.pixels, device, batch_size, name)
                computed.append(name)
        if computed:
            self._write()
        came = f"computed for {', '.join(computed)}, kept in" if computed else "all taken from"
        print(f"features: {came} {self.path.name}")
        return joined([self.sets[digest] for digest in digests], parts), digests
