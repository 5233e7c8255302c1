"""Scores of a trained VMDLS network in own code, in three lines; larger = more likely unknown.

    from vmdls.api import Detector
    detector = Detector("vmdls-cifar10-cssr-a-speednet")
    unknown_score = detector(images)                  # uint8 (N, C, H, W)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.detector import FlagDetector, arguments_of, require_score
from common.errors import UserError


class Detector(FlagDetector):
    """A trained network, its Gaussians, and one of its scores (see `common.detector.Detector`).

    Parameters
    ----------
    where, device
        See `common.detector.load`.
    score : str, optional
        One of `vmdls.evaluation_arguments.SCORE_NAMES`; else `vmdls`, weighted by the auto-encoder where the last evaluation
        was.

    Raises
    ------
    UserError
        Nothing there, or the last evaluation computed the score in a way that single images cannot have or that flags of
        `test.py` chose.
    """

    def __init__(self, where: str | Path, score: str | None = None, device: str = "auto"):
        from common.evaluation import Trained
        from vmdls.evaluation_arguments import PAPER, SCORE_NAMES, parse_arguments

        score = require_score(score or "vmdls", SCORE_NAMES)
        args = parse_arguments(arguments_of(PAPER, where, device, "--score", score))
        scoring = evaluated_as(Trained(args, PAPER), score)
        if "autoencoder" in scoring:
            args.ae_features, args.ae_weights = True, scoring["autoencoder"]
        self._open(args)

    def _open(self, args) -> None:
        from common.devices import Devices
        from vmdls.evaluation import Evaluation, wanted
        from vmdls.test import trained_network

        if args.transductive:
            raise UserError("--transductive takes its constants from a test set: it does not go with single images")
        self.score, self.variant = next(iter(wanted(args).items()))
        self.devices = Devices(args)
        self.device, self.batch_size = self.devices.device, args.batch_size
        self.trained, self.model, self.rebuilder, weights = trained_network(args, self.devices)
        scoring = evaluated_as(self.trained, self.score)
        if self.variant.weighted and (not scoring or scoring.get("autoencoder") != located(weights)):
            raise UserError(f"the last evaluation did not weight {self.score} by {weights}: evaluate once with --ae_features")
        stored = self.variant.settings is None and "statistics.covariance" in self.trained.tensors
        train = None if stored else self.trained.data(args).train
        self.evaluation = Evaluation(args, self.model, self.rebuilder, self.devices, self.trained.tensors, train)
        self.evaluation.largest = scoring.get("largest_training_error")
        self.evaluation.prepare([self.variant])
        method = self.evaluation.method(self.variant)
        if scoring and method != scoring["method"]:
            raise UserError(f"the threshold of {self.score} belongs to {scoring['method']}, this is {method}: give test.py"
                            " --images the flags of that evaluation, or evaluate once more without --transductive")  # fmt: skip

    def network(self):
        """The function of a batch of images that gives the feature ensemble, and what the auto-encoder made of the images."""
        from vmdls.weighting import outputs_of

        return outputs_of(self.model, self.rebuilder, self.devices)

    def score_outputs(self, outputs) -> np.ndarray:
        """Unknown score of what `outputs` returned, float64 `(N,)`; larger = more likely unknown."""
        return self.judge(outputs)[0]

    def judge(self, outputs) -> tuple[np.ndarray, np.ndarray]:
        """Unknown score, and the known class whose Gaussian is likeliest, float64 and int64 `(N,)`."""
        from common.inference import TEST
        from vmdls.scoring import require_finite

        require_finite(outputs["features"], "images")
        arrays = {**outputs, "split": np.full(len(outputs["features"]), TEST, np.int8)}
        found = self.evaluation.scored(self.variant, arrays)
        return found["unknown_score"], found["prediction"]


def evaluated_as(trained, score: str) -> dict:
    """How the last evaluation computed a score (`scoring` beside its threshold); empty where there was none.

    `method`, and for weighted scores `autoencoder` and `largest_training_error`.
    """
    known = trained.thresholds().get(score)
    return {} if known is None else known.get("scoring", {"method": score})


def located(weights: str) -> str:
    """Weights that are a path as an absolute one, so that another working directory finds them; other names as they are."""
    return str(Path(weights).resolve()) if Path(weights).exists() else weights
