"""The best epoch by accuracy on held-out *known* images: what `test.py --select best` takes. No unknown image is ever seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.arguments import ROOT

FILE = "weights_best.safetensors"
FOLDER = "best"


def best_of_run(where: str | Path) -> Path | None:
    """The best weights of a run, named by their file or by the folder of their results (`RUN/best`); None for anything else.

    RUN is a path, or the name the run was saved under.
    """
    named = ROOT / "runs" / "baseline_openmax" / where
    path = named if named.exists() and not Path(where).exists() else Path(where)
    file = path if path.name == FILE else path.parent / FILE if path.name == FOLDER else None
    return file if file is not None and file.is_file() and (file.parent / "config.json").exists() else None


class BestWeights:
    """Weights of the epoch with the highest accuracy so far, the first of equal ones; a resume restores them.

    Parameters
    ----------
    model : nn.Module
    images, labels : arrays
        The half of the held-out known images that chooses. Label -1 (unknown) is refused.
    """

    def __init__(self, model: torch.nn.Module, images: np.ndarray, labels: np.ndarray):
        if (np.asarray(labels) < 0).any():
            raise ValueError("model selection must not see unknown images (label -1)")
        self.model, self.images, self.labels = model, images, labels
        self.accuracy, self.epoch, self.weights = -1.0, -1, {}

    def update(self, epoch: int, prediction: np.ndarray) -> float:
        """Note the accuracy of an epoch's predictions of the images; returns it (NaN without images)."""
        if not len(self.labels):
            return float("nan")
        accuracy = float(np.mean(prediction == self.labels))
        if accuracy > self.accuracy:
            self.accuracy, self.epoch = accuracy, epoch
            self.weights = {key: value.detach().to("cpu", copy=True) for key, value in self.model.state_dict().items()}
        return accuracy

    def state_dict(self) -> dict:
        return {"accuracy": self.accuracy, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.accuracy, self.epoch, self.weights = state["accuracy"], state["epoch"], dict(state["weights"])
