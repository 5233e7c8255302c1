"""Scores of a trained network in own code, in three lines; the sign is pytorch-ood's: larger = more likely unknown.

    from baseline_openmax.api import Detector
    detector = Detector("cifar10-a", score="mls")
    unknown_score = detector(images)                  # uint8 (N, C, H, W)
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError


class Detector:
    """A trained network and one of its scores.

    Parameters
    ----------
    where : str or path
        Run directory, name of a run, weights file, or name in `checkpoints/MANIFEST.json`.
    score : str, optional
        One of `baseline_openmax.arguments.HEADS`; else the run's own head, else `mls`.
    device : str
        `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises
    ------
    UserError
        Nothing there, or a score that the checkpoint cannot give: unknown, or fitted by `test.py` first.

    Notes
    -----
    As with pytorch-ood's detectors, `predict(images)` returns the scores and labels below 0 mean unknown (`decide`).
    """

    def __init__(self, where: str | Path, score: str | None = None, device: str = "auto"):
        from baseline_openmax import evaluation as ours
        from baseline_openmax.arguments import HEADS
        from baseline_openmax.calibration import stored_temperature
        from baseline_openmax.settings import run_or_file
        from common.devices import Devices
        from common.errors import nearest
        from common.evaluation import Trained

        args = Namespace(checkpoint_path=str(run_or_file(where)), run_dir=None, save=None, record=None, dry_run=False,
                         subset=None, device=device, gpu=None, precision="fp32", compile=False)  # fmt: skip
        self.trained = Trained(args, "baseline_openmax")
        header = self.trained.header
        self.score = score or header.get("osr_head") or "mls"
        if self.score not in HEADS:
            raise UserError(f"no score {self.score!r}, choose from {', '.join(HEADS)}{nearest(self.score, HEADS)}")
        ours.check_scores([self.score], header)
        self.class_names = list(header["class_names"])
        self.temperature = stored_temperature(header, self.trained.files[0].parent) or 1.0
        self.devices = Devices(args)
        self.model = ours.load_network(self.trained, self.devices)
        folder = self.trained.files[0].parent
        self.fitted = ours.load_fitted(folder / ours.FITTED_FILE)
        self.openmax = self._openmax(folder) if self.score == "openmax" else None
        if self.score in ("kl", "openmax-simple") and self.score not in self.fitted:
            raise UserError(f"{self.score} is fitted on known images: run test.py --score {self.score} for this run once")
        self.fitted.setdefault("kplus1", 0.0)

    def _openmax(self, folder: Path):
        from baseline_openmax import evaluation as ours
        from baseline_openmax.heads import stored_openmax

        found = stored_openmax(self.trained.tensors, self.trained.header, {}) or ours.openmax_beside(folder, {})
        if found is None:
            raise UserError("openmax is fitted on training images: run main.py --fit_openmax, or test.py --score openmax once")
        return found

    def outputs(self, images) -> dict[str, np.ndarray]:
        """Logits `(N, K)` and what else the score is made of, for uint8 images `(N, C, H, W)`."""
        from baseline_openmax import evaluation as ours
        from common.inference import apply_batched

        pixels = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
        shape = tuple(self.trained.header["model"]["shape"])
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != shape:
            raise UserError(f"expected images uint8 (N, {', '.join(map(str, shape))}), got {pixels.dtype} {pixels.shape}")
        odin = (1000.0, 0.0014) if self.score == "odin" else None
        function = ours.forward(self.model, self.trained.header, self.devices, self.score == "openmax-simple", odin)
        return apply_batched(function, pixels, self.devices.device)

    def predict(self, images) -> np.ndarray:
        """Unknown score of each image, float64 `(N,)`; larger = more likely unknown."""
        from baseline_openmax.evaluation import scored

        return np.asarray(scored(self.score, self.outputs(images), self.fitted, self.openmax)["unknown_score"])

    __call__ = predict

    def probabilities(self, images) -> np.ndarray:
        """Calibrated probabilities of the known classes, float64 `(N, K)`: softmax of the logits over the temperature."""
        from baseline_openmax.scores import log_softmax

        return np.exp(log_softmax(self.outputs(images)["logits"].astype(np.float64) / self.temperature))

    def threshold(self) -> float:
        """Threshold of the run's last evaluation: 95 % of the held-out known images lie below it."""
        return self.trained.threshold(self.score)

    def decide(self, images) -> np.ndarray:
        """Known class 0..K-1, or -1 where the score reaches the threshold, int64 `(N,)`."""
        outputs = self.outputs(images)
        from baseline_openmax.evaluation import scored

        unknown_score = scored(self.score, outputs, self.fitted, self.openmax)["unknown_score"]
        return np.where(unknown_score >= self.threshold(), -1, outputs["logits"].argmax(1))

