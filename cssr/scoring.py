"""Run a trained CSSR network over images: the pass that collects training statistics, and the outputs of `scores.npz`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from common.scores import mls, msp
from cssr.model import CSSR, log_probabilities
from cssr.scores import PARTS, PREFIX, Maps, fused, parts_of, training_statistics


def maps_of(model: CSSR, images: torch.Tensor, devices) -> Maps:
    """Feature map, logit map and log-probabilities of a batch of images, for scoring."""
    with devices.autocast():
        feature_map = model.evaluation_map(images)
    logit_map = model.logit_map(feature_map)
    return feature_map, logit_map, log_probabilities(logit_map, model.arch_type)


def collect_statistics(
    model: CSSR, pixels: np.ndarray, devices, augmented=None, with_gram: bool = True, batch_size: int = 512
) -> dict[str, torch.Tensor]:
    """Statistics of the training images as `statistics.*` tensors (see `cssr.scores.training_statistics`).

    `augmented`: training batches, for mu and sigma from augmented images (`--released_statistics`).
    """

    @torch.no_grad()
    def passes() -> Iterator[Maps]:
        for start in range(0, len(pixels), batch_size):
            yield maps_of(model, torch.from_numpy(pixels[start : start + batch_size]).to(devices.device), devices)

    @torch.no_grad()
    def augmented_pass() -> Iterator[Maps]:
        for _, images, _ in augmented.epoch(0):
            yield maps_of(model, images, devices)

    again = None if augmented is None else augmented_pass()
    return training_statistics(model, passes, again, with_gram)


def score_function(model: CSSR, statistics: Mapping[str, torch.Tensor], devices):
    """The function of images that `common.inference.outputs` applies: log-probabilities, largest logits, parts, features."""
    gamma = abs(model.head.scale)
    stored = {key.removeprefix(PREFIX): value for key, value in statistics.items() if key.startswith(PREFIX)}
    stored = {key: value.to(devices.device) for key, value in stored.items()}

    def function(images):
        feature_map, logit_map, log_p = maps_of(model, images, devices)
        parts = parts_of(model.kind, feature_map, logit_map, log_p, stored, gamma)
        return {"logits": log_p, "mean_logits": logit_map.mean((2, 3)), "parts": parts,
                "fused": fused(parts, stored["mean"], stored["std"])}  # fmt: skip

    return function


def scored(name: str, kind: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of `scores.npz` for the score called `name`.

    The paper's scores are large for known images; `unknown_score` is their negative. The linear baseline's own score is its
    largest probability, here as `msp` on the logarithmic scale (same order, no ties).
    """
    kept = {key: value for key, value in arrays.items() if key not in ("fused", "mean_logits")}
    kept["part_names"] = np.array(PARTS)
    if name == "msp" or (name == "fused" and kind == "linear"):
        unknown = msp(arrays["logits"])
    elif name == "mls":
        unknown = mls(arrays["mean_logits"])
    elif name == "fused":
        unknown = -arrays["fused"]
    else:
        unknown = -arrays["parts"][:, PARTS.index(name.upper())]
    return {**kept, "unknown_score": unknown.astype(np.float64)}
