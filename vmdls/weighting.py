"""Reconstruction weights of the score (`--ae_features`): which auto-encoder, what it rebuilds, and the weighted score.

With t1 the pooled first-block features of the trained encoder and x' the auto-encoder's reconstruction of x,

    r(x) = mean over channels of (t1(x) - t1(x'))^2,    S(x) = w(x) (max_c l_c(x) - M*),    w(x) = r(x) / max r

max r is that of the training images, or of the test run with `--transductive`, as released. Dinari and Freifeld 2022.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from common.errors import UserError
from common.inference import TEST, apply_batched
from vmdls.ae_training import run_name, training_command
from vmdls.autoencoders import AutoEncoder
from vmdls.names import available
from vmdls.scores import known_score, reconstruction_error
from vmdls.scoring import features_of


class Rebuilder:
    """An auto-encoder beside the classifier whose first block judges its reconstructions.

    Parameters
    ----------
    model : VMDLS
    autoencoder : AutoEncoder
    devices : Devices
    """

    def __init__(self, model, autoencoder: AutoEncoder, devices):
        self.model, self.devices = model, devices
        self.autoencoder = devices.setup(autoencoder).eval()

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstructions of images, float32 `(N, C, H, W)`, in the classifier's normalisation."""
        here, there = self.model.normalise, self.autoencoder.normalise
        # An auto-encoder of other constants sees and gives other floats for the same picture.
        scale, shift = there.std / here.std, (there.mean - here.mean) / here.std
        with self.devices.autocast():
            rebuilt = self.autoencoder((here(images) - shift) / scale)
        return rebuilt.float() * scale + shift

    def first_layer(self, images: torch.Tensor) -> torch.Tensor:
        """t1(x'), `(N, C_1)`."""
        rebuilt = self.reconstruct(images)
        with self.devices.autocast():
            return self.model.first_layer(rebuilt)


def load_autoencoder(where: str | None, header: Mapping) -> tuple[AutoEncoder, str]:
    """The auto-encoder for a classifier of this header, and what it was loaded from.

    Parameters
    ----------
    where : str, optional
        `--ae_weights`: run directory, file, name of a run or in the manifest; none: the one of the known data set.
    header : mapping
        Header of the classifier's checkpoint.

    Raises
    ------
    UserError
        Nothing there (says what trains it), not an auto-encoder, of another data set, of classes that are unknown here,
        or for images of another size.
    """
    from common.checkpoints import load_weights

    config = header["data"]
    dataset, split = config["known_dataset"], config["split"]
    name = where or run_name(dataset, split)
    found = available(name)
    if found is None:
        what = "" if where else f" (--ae_weights names another one than {name})"
        raise UserError(f"no auto-encoder {name!r} for {dataset}, split {split}: {training_command(dataset, split)}"
                        f" trains it{what}")
    tensors, its = load_weights(found, paper="vmdls")
    if "autoencoder" not in its["model"]:
        raise UserError(f"{name} is a VMDLS classifier, not an auto-encoder: {training_command(dataset, split)} trains one")
    if its["data"]["known_dataset"] != dataset:
        raise UserError(f"{name} is an auto-encoder of {its['data']['known_dataset']}, the known data set is {dataset}:"
                        f" {training_command(dataset, split)} trains one")
    if list(its["model"]["shape"]) != list(header["model"]["shape"]):
        raise UserError(f"{name} is for images {its['model']['shape']}, the network's are {header['model']['shape']}")
    strangers = [label for label in its["class_names"] if label not in header["class_names"]]
    if strangers:
        raise UserError(f"{name} was trained on classes that are unknown in split {split}: {', '.join(strangers[:5])};"
                        f" {training_command(dataset, split)} trains one of the same split")
    if config["validation_share"] and any(its["data"][key] != config[key] for key in ("seed", "validation_share")):
        print(f"note: {name} was trained with other held-out images (seed {its['data']['seed']}): it has seen some that"
              " choose the threshold here")  # fmt: skip
    autoencoder = AutoEncoder(**its["model"])
    try:
        autoencoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{name}: weights do not fit the auto-encoder of their header: {error}") from None
    return autoencoder, found


def outputs_of(model, rebuilder: Rebuilder | None, devices):
    """The function of images that `common.inference` applies: `features`, and `rebuilt`, t1 of the reconstruction."""
    features = features_of(model, devices)
    if rebuilder is None:
        return features
    return lambda images: {**features(images), "rebuilt": rebuilder.first_layer(images)}


def errors_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """r(x), float64 `(N,)`, of the arrays that `outputs_of` gave.

    Raises
    ------
    UserError
        A reconstruction is not finite.
    """
    rebuilt = arrays["rebuilt"]
    if not np.isfinite(rebuilt).all():
        raise UserError("reconstructions are NaN or infinite: train the auto-encoder again with a smaller --lr")
    return reconstruction_error(arrays["features"][:, : rebuilt.shape[1]], rebuilt)


def largest_error(model, rebuilder: Rebuilder, images, devices, batch_size: int) -> float:
    """The largest r of the training images."""
    found = apply_batched(outputs_of(model, rebuilder, devices), images.pixels, devices.device, batch_size, "training r")
    return float(errors_of(found).max())


def weighted(
    result: Mapping[str, np.ndarray], error: np.ndarray, highest: float, largest: float, transductive: bool
) -> dict[str, np.ndarray]:  # fmt: skip
    """Arrays of `scores.npz` with weights, from those of the score `vmdls` without: log-likelihoods and r stay visible.

    Parameters
    ----------
    result : mapping
        What `vmdls.scoring.scored` gave.
    error : array `(N,)`
        r(x).
    highest, largest : float
        Largest log-likelihood and r of the training images.
    transductive : bool
        Take both from the test images in `result` instead.
    """
    if transductive:
        test = result["split"] == TEST
        highest, largest = float(result["logits"][test].max()), float(error[test].max())
    # Perfect reconstructions everywhere would weigh everything by 0 / 0.
    weight = error / max(largest, np.finfo(np.float64).tiny)
    return {**result, "unknown_score": -known_score(result["logits"], highest, weight),
            "parts": np.stack((result["logits"].max(1), error), axis=1),
            "part_names": np.array(["largest log-likelihood", "reconstruction error"])}  # fmt: skip
