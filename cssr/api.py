"""Scores of a trained CSSR network in own code, in three lines; larger = more likely unknown.

    from cssr.api import Detector
    detector = Detector("cssr-cifar10-cssr-a-rcssr-speednet", score="fused")
    unknown_score = detector(images)                  # uint8 (N, C, H, W)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.detector import FlagDetector, arguments_of, require_score


class Detector(FlagDetector):
    """A trained network with class auto-encoders, and one of its scores (see `common.detector.Detector`).

    Parameters
    ----------
    where, device
        See `common.detector.load`.
    score : str, optional
        One of `cssr.test.SCORE_NAMES`; else `fused`.

    Raises
    ------
    UserError
        Nothing there, or a score that the network cannot give.
    """

    def __init__(self, where: str | Path, score: str | None = None, device: str = "auto"):
        from cssr.test import PAPER, SCORE_NAMES, get_args_parser

        score = require_score(score or "fused", SCORE_NAMES)
        self._open(get_args_parser().parse_args(arguments_of(PAPER, where, device, "--score", score)))

    def _open(self, args) -> None:
        from common.devices import Devices
        from cssr.test import trained_network

        self.score = args.score[0]
        self.devices = Devices(args)
        self.device, self.batch_size = self.devices.device, args.batch_size
        self.trained, self.model = trained_network(args, self.devices)

    def network(self):
        """The function of a batch of images that gives log-probabilities, logits and the parts of the scores."""
        from cssr.scoring import score_function

        return score_function(self.model, self.trained.tensors, self.devices)

    def score_outputs(self, outputs) -> np.ndarray:
        """Unknown score of what `outputs` returned, float64 `(N,)`; larger = more likely unknown."""
        from cssr.expressions import scored_by

        return scored_by(self.score, self.trained.header, self.trained.tensors, outputs)["unknown_score"]
