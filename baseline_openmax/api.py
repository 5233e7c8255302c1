"""Scores of a trained network in own code, in three lines; the sign is pytorch-ood's: larger = more likely unknown.

    from baseline_openmax.api import Detector
    detector = Detector("cifar10-a", score="mls")
    unknown_score = detector(images)                  # uint8 (N, C, H, W)
"""

from __future__ import annotations

import json
import re
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
        One of `baseline_openmax.arguments.HEADS`, or `openmax-tailN` of an evaluation; else the run's own head, else `mls`.
        It is computed with the settings of the run's last evaluation (temperature, ODIN's step, ...).
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
        from baseline_openmax.scoring import stored_settings
        from baseline_openmax.selection import FOLDER, best_of_run
        from baseline_openmax.settings import run_or_file
        from common.devices import Devices
        from common.errors import nearest
        from common.evaluation import Trained

        best = best_of_run(where)
        args = Namespace(checkpoint_path=str(best or run_or_file(where)), run_dir=None, save=None, record=None, dry_run=False,
                         subset=None, device=device, gpu=None, precision="fp32", compile=False)  # fmt: skip
        self.trained = Trained(args, "baseline_openmax")
        if best is not None:
            self.trained.directory = best.parent / FOLDER
        header = self.trained.header
        self.score = score or header.get("osr_head") or "mls"
        self._is_openmax = bool(re.fullmatch(r"openmax(-tail[1-9]\d*)?", self.score))
        if self.score not in HEADS and not self._is_openmax:
            raise UserError(f"no score {self.score!r}, choose from {', '.join(HEADS)}{nearest(self.score, HEADS)}")
        ours.check_scores([self.score], header)
        self.class_names = list(header["class_names"])
        folder = self.trained.files[0].parent if best is None else self.trained.directory
        self.temperature = stored_temperature(header, folder) or 1.0
        self.devices = Devices(args)
        self.model = ours.load_network(self.trained, self.devices)
        self.fitted, of_fitted = ours.load_fitted(folder / ours.FITTED_FILE)
        if self.score in ("kl", "openmax-simple") and self.score not in self.fitted:
            raise UserError(f"{self.score} is fitted on known images: run test.py --score {self.score} for this run once")
        self.openmax = None
        if self._is_openmax:
            self.openmax, fitted_at = self._openmax(folder)
            of_fitted = {"temperature": fitted_at}
        own = of_fitted if self._is_openmax or self.score in self.fitted else None
        self.scoring = stored_settings(self.trained, self._threshold_name(), own)
        self.fitted.setdefault("kplus1", 0.0)

    def _openmax(self, folder: Path):
        from baseline_openmax import evaluation as ours

        tail = self.score.partition("-tail")[2]
        settings = {"tail_size": int(tail)} if tail else {}
        found = ours.openmax_in(self.trained, settings) or ours.openmax_beside(folder, settings)
        if found is None:
            flag = f" --tail_size {tail}" if tail else ""
            raise UserError(f"{self.score} is fitted on training images: run main.py --fit_openmax, or"
                            f" test.py --score openmax{flag} once")  # fmt: skip
        return found

    def _threshold_name(self) -> str:
        """Name of the score in the last evaluation: one that had several tails says the tail, one with a single tail does not."""
        if not self._is_openmax:
            return self.score
        evaluated = self.trained.directory / "metrics.json"
        source = json.loads(evaluated.read_text()) if evaluated.exists() else self.trained.header
        known = source.get("thresholds", {})
        return next((name for name in (f"openmax-tail{self.openmax.tail_size}", "openmax") if name in known), self.score)

    def outputs(self, images) -> dict[str, np.ndarray]:
        """Logits `(N, K)` and what else the score is made of, for uint8 images `(N, C, H, W)`."""
        from baseline_openmax import evaluation as ours
        from common.inference import apply_batched

        pixels = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
        shape = tuple(self.trained.header["model"]["shape"])
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != shape:
            raise UserError(f"expected images uint8 (N, {', '.join(map(str, shape))}), got {pixels.dtype} {pixels.shape}")
        odin = (self.scoring["odin_temperature"], self.scoring["odin_step"]) if self.score == "odin" else None
        function = ours.forward(self.model, self.trained.header, self.devices, self.score == "openmax-simple", odin)
        return apply_batched(function, pixels, self.devices.device)

    def predict(self, images) -> np.ndarray:
        """Unknown score of each image, float64 `(N,)`; larger = more likely unknown."""
        return self.score_outputs(self.outputs(images))

    def score_outputs(self, outputs) -> np.ndarray:
        """Unknown score of what `outputs` returned, float64 `(N,)`; larger = more likely unknown."""
        from baseline_openmax.evaluation import scored

        name = "openmax" if self._is_openmax else self.score
        found = scored(name, outputs, self.fitted, self.openmax, temperature=self.scoring["temperature"])
        return np.asarray(found["unknown_score"])

    __call__ = predict

    def probabilities(self, images) -> np.ndarray:
        """Calibrated probabilities of the known classes, float64 `(N, K)`: softmax of the logits over the temperature."""
        from baseline_openmax.scores import log_softmax

        return np.exp(log_softmax(self.outputs(images)["logits"].astype(np.float64) / self.temperature))

    def threshold(self) -> float:
        """Threshold of the run's last evaluation: 95 % of the held-out known images lie below it."""
        return self.trained.threshold(self._threshold_name())

    def decide(self, images) -> np.ndarray:
        """Known class 0..K-1, or -1 where the score reaches the threshold, int64 `(N,)`."""
        outputs = self.outputs(images)
        return np.where(self.score_outputs(outputs) >= self.threshold(), -1, outputs["logits"].argmax(1))
