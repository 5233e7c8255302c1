"""Scores of a trained CROSR network in own code, in three lines; larger = more likely unknown.

    from crosr.api import Detector
    detector = Detector("crosr-cifar10-10-plain", score="crosr")
    unknown_score = detector(images)                  # uint8 (N, C, H, W)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.detector import Detector as AnyDetector
from common.detector import arguments_of, require_score
from common.errors import UserError
from crosr.scores import NAMES, Variant, fit, score_names, scored, variants


class Detector(AnyDetector):
    """A trained network, its OpenMax, and one of its scores (see `common.detector.Detector`).

    Parameters
    ----------
    where, device
        See `common.detector.load`.
    score : str, optional
        One of `crosr.test.SCORE_NAMES`, or `crosr-tailN`, `openmax-tailN` of an evaluation with several tails; else `crosr`.
        OpenMax has the settings of the last evaluation, else the defaults of `test.py`.

    Raises
    ------
    UserError
        Nothing there, or a score that the network cannot give.
    """

    def __init__(self, where: str | Path, score: str | None = None, device: str = "auto"):
        from common.devices import Devices
        from common.evaluation import Trained
        from crosr.features import forward, stored_statistics
        from crosr.model import DHRNet
        from crosr.test import PAPER, SCORE_NAMES, get_args_parser

        name = score or "crosr"
        word, _, tail = name.partition("-tail")
        require_score(word if word in NAMES.values() and tail.isdigit() else name, SCORE_NAMES)
        args = get_args_parser().parse_args(arguments_of(PAPER, where, device, "--score", word))
        trained, devices = Trained(args, PAPER), Devices(args)
        if not tail and name not in trained.thresholds():  # of several tails the first is the run's own
            tail = next((other.partition("-tail")[2] for other in trained.thresholds() if other.startswith(f"{name}-tail")), "")
        args.tail_size = [int(tail)] if tail else args.tail_size
        args.alpha = min(args.alpha, len(trained.header["class_names"]))
        model = DHRNet(**trained.header["model"])
        trained.fill(model)
        found, _ = variants(args, len(trained.header["class_names"]))
        function = forward(devices.setup(model).eval(), devices)
        self._fill(args, trained, function, devices, found, stored_statistics(trained.tensors))

    @classmethod
    def of_evaluation(cls, args, trained, function, devices, found, statistics) -> Detector:
        """The detector of what `test.py` has made of its flags; of several scores the first counts."""
        detector, of_flags = cls.__new__(cls), found.get(score_names(args.score, found)[0])
        detector._fill(args, trained, function, devices, found, statistics)
        if of_flags is not None:
            now, then = settings_of(of_flags), settings_of(detector.variants[detector.score])
            if differing := {key: then[key] for key in then if then[key] != now[key]}:
                print(f"note: {detector.score} with the settings of the last evaluation: {told(differing)}")
        return detector

    def _fill(self, args, trained, function, devices, found, statistics) -> None:
        self.trained, self.function, self.statistics = trained, function, statistics
        self.device, self.batch_size = devices.device, args.batch_size
        self.score = score_names(args.score, found)[0]
        self.variants, self.fitted = {}, {}
        if self.score in found:
            self.score, variant = evaluated_variant(args, trained, self.score, found[self.score])
            self.variants = {self.score: variant}
            self.fitted = {self.score: fit(statistics, variant, self.class_names)}

    def network(self):
        """The function of a batch of images that gives logits and pooled latents."""
        return self.function

    def score_outputs(self, outputs) -> np.ndarray:
        """Unknown score of what `outputs` returned, float64 `(N,)`; larger = more likely unknown."""
        return scored(self.score, outputs, self.variants, self.fitted, self.statistics)["unknown_score"]


def evaluated_variant(args, trained, name: str, of_flags: Variant) -> tuple[str, Variant]:
    """Name and settings of an OpenMax score in the last evaluation: its threshold is right for these settings only.

    Flags that were left at their defaults give way to them, others are refused; without an evaluation, or with one that did
    not keep its settings, those of the flags count.
    """
    from crosr.test import get_args_parser

    known = trained.thresholds()
    name = next((other for other in (name, f"{name}-tail{of_flags.settings['tail_size']}") if other in known), name)
    scoring = dict(known.get(name, {}).get("scoring", {}))
    if not scoring:
        return name, of_flags
    evaluated = Variant(scoring.pop("features"), scoring.pop("pooling"), scoring)
    then, now = settings_of(evaluated), settings_of(of_flags)
    differing = {key: value for key, value in now.items() if value != then[key]}
    classes, untouched = len(trained.header["class_names"]), get_args_parser().parse_args(["--score", *args.score])
    untouched.alpha = min(untouched.alpha, classes)
    default, _ = variants(untouched, classes)
    usual = settings_of(next(iter(default.values())))
    asked = {key: value for key, value in differing.items() if value != usual[key]}
    if asked:
        own = told({key: then[key] for key in asked})
        raise UserError(f"the threshold of {name} belongs to {own}, the flags say {told(asked)}:"
                        " leave them out, or evaluate once without --images with them")  # fmt: skip
    return name, evaluated


def settings_of(variant: Variant) -> dict:
    """All settings of an OpenMax score by name, as `metrics.json` keeps them beside its threshold (`scoring`)."""
    return {"features": variant.features, "pooling": variant.pooling, **variant.settings}


def told(settings: dict) -> str:
    """Settings in words, for messages."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())
