"""A trained network and its scores: outputs of images, what is fitted on known ones, every unknown score by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from baseline_openmax import heads, scores
from baseline_openmax.model import mirrored
from common.errors import UserError
from common.inference import TEST, TRAIN, VALIDATION, apply_batched, joined

OPENMAX_FILE, FITTED_FILE = "openmax.safetensors", "fitted_scores.npz"
# Outputs that scores are made of and that scores.npz does not hold.
INNER = ("dummy", "odin")


def forward(model, header, devices, features: bool = False, odin: tuple[float, float] | None = None):
    """Function from images to what is kept of them.

    Parameters
    ----------
    features : bool
        The pooled features too.
    odin : (temperature, step), optional
        The logits of the perturbed images, divided by the temperature, too.
    """
    from baseline_openmax.network import dummies_of
    from baseline_openmax.odin import odin_logits

    classes, dummies = len(header["class_names"]), dummies_of(header["model"])

    def network(images):
        return mirrored(model, images) if header["mirror_test"] else model(images)

    def apply(images):
        entering: list[torch.Tensor] = []
        with devices.autocast():
            hook = model.classifier.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
            outputs = network(images)
            hook.remove()
            found = {"logits": outputs[:, :classes]}
            if dummies:
                found["dummy"] = outputs[:, classes:].max(1).values
            if features:
                # Of the first pass, which is that of the images as they are, not mirrored.
                found["features"] = entering[0]
            if odin is not None:
                normalised = model.normalise(images)
                found["odin"] = odin_logits(lambda x: network(x)[:, :classes], normalised, *odin)
        return found

    return apply


def collect(model, header, devices, parts, args, names, settings: Mapping) -> dict[str, np.ndarray]:
    """Outputs of all parts with their `target split source sources`; ODIN's only where its scores are wanted."""
    features = args.save_features or "openmax-simple" in names
    odin = (settings["odin_temperature"], settings["odin_step"]) if "odin" in names else None
    thresholds_from_train = args.train_scores or not any(code == VALIDATION for _, code, _ in parts)
    collected = []
    for name, code, images in parts:
        wanted = odin if code != TRAIN or thresholds_from_train else None
        function = forward(model, header, devices, features, wanted)
        found = apply_batched(function, images.pixels, devices.device, args.batch_size, name)
        if odin is not None and wanted is None:
            found["odin"] = np.full_like(found["logits"], np.nan)
        collected.append(found)
    arrays = joined(collected, parts)
    arrays["prediction"] = arrays["logits"].argmax(1)
    arrays["class_names"] = np.array(header["class_names"])
    return arrays


def divided(arrays: Mapping[str, np.ndarray], temperature: float) -> dict[str, np.ndarray]:
    """The arrays with every kind of logits over the temperature, in float64; as they are where it is 1."""
    if temperature == 1.0:
        return dict(arrays)
    return {key: value / np.float64(temperature) if key in ("logits", *INNER) else value for key, value in arrays.items()}


def fit_scores(names, arrays: Mapping[str, np.ndarray], distance: str, dry_run: bool = False) -> dict[str, object]:
    """Fit what the asked scores need on known images: KL's posteriors on held-out ones, means on training ones."""
    fitted: dict[str, object] = {}
    split = arrays["split"]
    if "kl" in names:
        held_out = split == (VALIDATION if (split == VALIDATION).any() else TRAIN)
        fitted["kl"] = scores.KLMatching().fit(arrays["logits"][held_out])
    if "openmax-simple" in names:
        train = split == TRAIN
        fitted["openmax-simple"] = scores.MeanActivation(distance).fit(
            arrays["features"][train], arrays["target"][train], arrays["logits"][train], list(arrays["class_names"]), not dry_run
        )
    if "kplus1" in names:
        held_out = split == (VALIDATION if (split == VALIDATION).any() else TRAIN)
        fitted["kplus1"] = scores.dummy_bias(arrays["logits"][held_out], arrays["dummy"][held_out])
    return fitted


def scored(
    name: str, arrays: Mapping[str, np.ndarray], fitted: Mapping, openmax=None, features: bool = False, temperature: float = 1.0
) -> dict:
    """Arrays of `scores.npz` for the score called `name`; K+1 adds its probabilities, unknown last, like OpenMax.

    The score is that of the logits over the temperature; the stored `logits` are always the plain ones.
    """
    kept = {key: value for key, value in arrays.items() if key not in INNER and (features or key != "features")}
    used = divided(arrays, temperature)
    logits = used["logits"]
    if name == "gen":
        return kept | {"unknown_score": scores.gen(logits)}
    if name == "kl":
        return kept | {"unknown_score": fitted["kl"].score(logits)}
    if name == "openmax-simple":
        return kept | {"unknown_score": fitted["openmax-simple"].score(used["features"])}
    if name == "kplus1":
        probabilities = scores.kplus1_probabilities(logits, used["dummy"], fitted["kplus1"])
        return kept | {"unknown_score": scores.kplus1(logits, used["dummy"]), "probabilities": probabilities}
    if name == "odin":
        from common.scores import msp

        there = np.isfinite(used["odin"]).all(axis=1)
        per_image = [key for key in kept if key not in ("sources", "class_names")]
        kept |= {key: kept[key][there] for key in per_image}
        return kept | {"unknown_score": msp(used["odin"][there])}
    return heads.scored(name, kept | {"logits": logits}, openmax) | {"logits": arrays["logits"]}


def check_scores(names, header: Mapping) -> None:
    """Refuse scores that this network cannot give."""
    from baseline_openmax.network import dummies_of

    if "kplus1" in names and not dummies_of(header["model"]):
        raise UserError("--score kplus1 needs a network trained with --kplus1 placeholder, mixup or oe; this one has K outputs")


def save_fitted(path: Path, fitted: Mapping, temperature: float = 1.0) -> None:
    """Write what `fit_scores` gave for logits over the temperature, so that single pictures can be scored without the data."""
    arrays = {}
    if "kl" in fitted:
        arrays["kl"] = fitted["kl"].posteriors
    if "openmax-simple" in fitted:
        arrays["means"] = fitted["openmax-simple"].means
        arrays["distance"] = np.array(fitted["openmax-simple"].distance)
    if "kplus1" in fitted:
        arrays["bias"] = np.array(fitted["kplus1"])
    if arrays:
        np.savez(path, **arrays, temperature=np.float64(temperature))


def load_fitted(path: Path) -> tuple[dict[str, object], dict]:
    """What `save_fitted` wrote, and the scoring settings it belongs to; empty where there is no file."""
    if not path.exists():
        return {}, {}
    fitted: dict[str, object] = {}
    settings: dict[str, object] = {}
    with np.load(path, allow_pickle=False) as stored:
        if "temperature" in stored:
            settings["temperature"] = float(stored["temperature"])
        if "kl" in stored:
            fitted["kl"] = scores.KLMatching()
            fitted["kl"].posteriors = stored["kl"]
        if "means" in stored:
            settings["simple_distance"] = str(stored["distance"])
            fitted["openmax-simple"] = scores.MeanActivation(settings["simple_distance"])
            fitted["openmax-simple"].means = stored["means"]
        if "bias" in stored:
            fitted["kplus1"] = float(stored["bias"])
    return fitted, settings


def openmax_file(directory: Path, name: str = "openmax") -> Path:
    """Where the OpenMax of a score is stored: `openmax.safetensors`, further tails in files of their own."""
    return directory / (OPENMAX_FILE if name == "openmax" else f"{name}.safetensors")


def save_openmax(path: Path, model, temperature: float = 1.0) -> None:
    """Write a fitted OpenMax, and the temperature of its logits where that is not 1."""
    from common.checkpoints import load_weights, save_weights

    heads.save_openmax(path, model, "baseline_openmax")
    if temperature != 1.0:
        tensors, header = load_weights(path, paper="baseline_openmax")
        save_weights(path, tensors, header | {"openmax_temperature": temperature})


def openmax_in(trained, settings: Mapping, temperature: float | None = None):
    """`(OpenMax, temperature of its logits)` inside a checkpoint; None where it has none of these settings (and temperature)."""
    return _openmax(trained.tensors, trained.header, settings, temperature)


def openmax_beside(directory: Path, settings: Mapping, temperature: float | None = None, own: bool = False):
    """The same for a run's files `openmax*.safetensors`; `own`: only if training itself fitted it."""
    from common.checkpoints import load_weights

    for path in [directory / OPENMAX_FILE, *sorted(directory.glob("openmax-tail*.safetensors"))]:
        if path.exists():
            tensors, header = load_weights(path, paper="baseline_openmax")
            found = _openmax(tensors, header, settings, temperature)
            if found is not None and (not own or header.get("fitted_by") == "main.py"):
                return found
    return None


def _openmax(tensors: Mapping, header: Mapping, settings: Mapping, temperature: float | None):
    fitted_at = header.get("openmax_temperature", 1.0)
    found = heads.stored_openmax(tensors, header, settings)
    return None if found is None or temperature not in (None, fitted_at) else (found, fitted_at)


def calibration_of_test(arrays: Mapping[str, np.ndarray], temperature: float) -> dict[str, float]:
    """NLL and ECE of the known test images without and with the temperature."""
    from common.metrics import ece, nll

    test = arrays["split"] == TEST
    target, logits = arrays["target"][test], arrays["logits"][test].astype(np.float64)
    return {"temperature": temperature, "nll_before": nll(target, logits), "nll_after": nll(target, logits / temperature),
            "ece_before": ece(target, logits), "ece_after": ece(target, logits / temperature)}  # fmt: skip


def load_network(trained, devices) -> torch.nn.Module:
    """The network of a checkpoint with its weights, on the device, in evaluation mode."""
    from baseline_openmax.network import build_network

    model = build_network(trained.header["model"])
    trained.fill(model)
    return devices.setup(model).eval()
