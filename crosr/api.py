"""Scores of a trained CROSR network in own code, in three lines; larger = more likely unknown.

    from crosr.api import Detector
    detector = Detector("crosr-cifar10-10-plain", score="crosr")
    unknown_score = detector(images)                  # uint8 (N, C, H, W)
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from common.detector import Detector as AnyDetector
from common.detector import arguments_of, require_score
from common.errors import UserError
from crosr.scores import NAMES, Variant, fit, score_names, scored, variants
from crosr.sweep import settings_of


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
        require_score(word if word in NAMES.values() and re.fullmatch("[1-9][0-9]*", tail) else name, SCORE_NAMES)
        args = get_args_parser().parse_args(arguments_of(PAPER, where, device, "--score", word))
        trained, devices = Trained(args, PAPER), Devices(args)
        args.alpha = min(args.alpha, len(trained.header["class_names"]))
        model = DHRNet(**trained.header["model"])
        trained.fill(model)
        found, _ = variants(args, len(trained.header["class_names"]))
        function = forward(devices.setup(model).eval(), devices)
        self._fill(args, trained, function, devices, found, stored_statistics(trained.tensors), int(tail or 0))

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

    def _fill(self, args, trained, function, devices, found, statistics, tail: int = 0) -> None:
        self.trained, self.function, self.statistics = trained, function, statistics
        self.device, self.batch_size = devices.device, args.batch_size
        self.score = score_names(args.score, found)[0]
        self.variants, self.fitted = {}, {}
        if self.score in found:
            self.score, variant = evaluated_variant(args, trained, self.score, found[self.score], tail)
            self.variants = {self.score: variant}
            self.fitted = {self.score: fit(statistics, variant, self.class_names)}

    def network(self):
        """The function of a batch of images that gives logits and pooled latents."""
        return self.function

    def score_outputs(self, outputs) -> np.ndarray:
        """Unknown score of what `outputs` returned, float64 `(N,)`; larger = more likely unknown."""
        return scored(self.score, outputs, self.variants, self.fitted, self.statistics)["unknown_score"]


def evaluated_variant(args, trained, name: str, of_flags: Variant, tail: int = 0) -> tuple[str, Variant]:
    """Name and settings of an OpenMax score in the last evaluation: its threshold is right for these settings only.

    Of several tails `tail` counts, else that of the flags, else the first. Flags that were left at their defaults give way to
    the settings, others are refused; without an evaluation those of the flags count.

    Raises
    ------
    UserError
        The evaluation had another tail than `tail`, other settings than the flags ask for, or did not keep its settings.
    """
    known = trained.thresholds()
    asked = f"{name}-tail{tail or of_flags.settings['tail_size']}"
    several = [other for other in known if other.startswith(f"{name}-tail") and not tail]
    name = next((other for other in (asked, name, *several) if other in known), asked if tail else name)
    if name not in known:
        settings = of_flags.settings | ({"tail_size": tail} if tail else {})
        return name, of_flags._replace(settings=settings)
    scoring = dict(known[name].get("scoring", {}))
    if not scoring:
        raise UserError(f"the last evaluation did not keep the settings of {name}, so its threshold cannot be used: evaluate the"
                        " network once more with test.py")  # fmt: skip
    evaluated = Variant(scoring.pop("features"), scoring.pop("pooling"), scoring)
    then, now = settings_of(evaluated), settings_of(of_flags)
    usual = settings_of(untouched_variant(args, len(trained.header["class_names"])))
    differing = {key: value for key, value in now.items() if value not in (then[key], usual[key])}
    if tail and tail != then["tail_size"]:
        differing["tail_size"] = tail
    if differing:
        own = told({key: then[key] for key in differing})
        raise UserError(f"the threshold of {name} belongs to {own}, asked for is {told(differing)}: leave it out, or evaluate"
                        " once with it")  # fmt: skip
    return name, evaluated


def untouched_variant(args, classes: int) -> Variant:
    """The first OpenMax score of the flags if nothing but `--score` were given."""
    from crosr.test import get_args_parser

    untouched = get_args_parser().parse_args(["--score", *args.score])
    untouched.alpha = min(untouched.alpha, classes)
    found, _ = variants(untouched, classes)
    return next(iter(found.values()))


def told(settings: dict) -> str:
    """Settings in words, for messages."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())
