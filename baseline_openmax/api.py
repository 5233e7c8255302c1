"""Scores of a trained softmax network in own code, in three lines; larger = more likely unknown.

    from baseline_openmax.api import Detector
    detector = Detector("cifar10-a", score="mls")
    unknown_score = detector(images)                  # uint8 (N, C, H, W)
"""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import numpy as np

from common.detector import Detector as AnyDetector
from common.detector import require_score
from common.errors import UserError


class Detector(AnyDetector):
    """A trained softmax network and one of its scores (see `common.detector.Detector` for what it can do).

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
    """

    def __init__(self, where: str | Path, score: str | None = None, device: str = "auto"):
        from baseline_openmax import evaluation as ours
        from baseline_openmax.arguments import HEADS
        from baseline_openmax.calibration import stored_temperature
        from baseline_openmax.scoring import stored_settings
        from baseline_openmax.selection import FOLDER, best_of_run
        from baseline_openmax.settings import run_or_file
        from common.devices import Devices
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
        if not self._is_openmax:
            require_score(self.score, HEADS)
        ours.check_scores([self.score], header)
        folder = self.folder = self.trained.files[0].parent if best is None else self.trained.directory
        self.temperature = stored_temperature(header, folder) or 1.0
        self.devices = Devices(args)
        self.device = self.devices.device
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
        from baseline_openmax import evaluation as ours

        known, name = self.trained.thresholds(), f"openmax-tail{self.openmax.tail_size}"
        if name in known:
            return name
        found = ours.openmax_in(self.trained, {}) or ours.openmax_beside(self.folder, {})
        evaluated = found is not None and found[0].tail_size == self.openmax.tail_size
        return "openmax" if "openmax" in known and evaluated else name if self.score != "openmax" else self.score

    def network(self):
        """The function of a batch of images that gives the logits `(N, K)` and what else the score is made of."""
        from baseline_openmax import evaluation as ours

        odin = (self.scoring["odin_temperature"], self.scoring["odin_step"]) if self.score == "odin" else None
        return ours.forward(self.model, self.trained.header, self.devices, self.score == "openmax-simple", odin)

    def score_outputs(self, outputs) -> np.ndarray:
        """Unknown score of what `outputs` returned, float64 `(N,)`; larger = more likely unknown."""
        from baseline_openmax.evaluation import scored

        name = "openmax" if self._is_openmax else self.score
        found = scored(name, outputs, self.fitted, self.openmax, temperature=self.scoring["temperature"])
        return np.asarray(found["unknown_score"])

    def probabilities(self, images) -> np.ndarray:
        """Calibrated probabilities of the known classes, float64 `(N, K)`: softmax of the logits over the temperature."""
        from baseline_openmax.scores import log_softmax

        return np.exp(log_softmax(self.outputs(images)["logits"].astype(np.float64) / self.temperature))

    def threshold(self) -> float:
        """Threshold of the run's last evaluation: 95 % of the held-out known images lie below it."""
        return self.trained.threshold(self._threshold_name())
