"""From logits to unknown scores: the static scores, and OpenMax fitted on training logits or taken from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.inference import TRAIN
from common.openmax import OpenMax
from common.scores import SCORES

PREFIX = "statistics.openmax."


def fit_openmax(arrays: Mapping[str, np.ndarray], settings: dict, dry_run: bool = False) -> OpenMax:
    """Fit on the training part of scored arrays (`logits target split class_names`).

    A dry run has few images and hardly any that are classified correctly: there all count, and the tail shrinks to them.
    """
    train = arrays["split"] == TRAIN
    if not train.any():
        raise UserError("OpenMax is fitted on training logits, and none were scored")
    if dry_run:
        fewest = int(np.bincount(arrays["target"][train]).min())
        settings = settings | {"correct_only": False, "tail_size": min(settings["tail_size"], fewest)}
    names = [str(name) for name in arrays["class_names"]]
    return OpenMax(**settings).fit(arrays["logits"][train], arrays["target"][train], class_names=names)


def stored_openmax(tensors: Mapping, header: Mapping, settings: dict) -> OpenMax | None:
    """The OpenMax of a checkpoint, when it holds one fitted with these settings."""
    stored = header.get("openmax")
    if stored is None or any(stored[key] != value for key, value in settings.items()):
        return None
    arrays = {key[len(PREFIX) :]: value.numpy() for key, value in tensors.items() if key.startswith(PREFIX)}
    return OpenMax.from_state(arrays, stored)


def save_openmax(path: Path, model: OpenMax, paper: str) -> None:
    """Write the fitted state beside the weights; `python -m common.checkpoints add` takes it into the checkpoint."""
    import torch

    from common.checkpoints import save_weights

    tensors = {PREFIX + name: torch.from_numpy(np.array(value)) for name, value in model.state_dict().items()}
    save_weights(path, tensors, {"paper": paper, "openmax": model.settings})


def score_names(asked, settings) -> list[str]:
    """Names of the scores to report: `openmax` stands for all its settings."""
    return [name for word in asked for name in (settings if word == "openmax" else [word])]


def scored(name: str, arrays: Mapping[str, np.ndarray], openmax: OpenMax | None) -> dict[str, np.ndarray]:
    """Arrays of `scores.npz` for the score called `name`; OpenMax adds its K + 1 probabilities, unknown last."""
    if not name.startswith("openmax"):
        return {**arrays, "unknown_score": SCORES[name](arrays["logits"])}
    probabilities = openmax.probabilities(arrays["logits"])
    return {**arrays, "unknown_score": probabilities[:, -1], "probabilities": probabilities}
