r"""CROSR's scores: OpenMax on v = [y, z], and the baselines that crosr_bda compares it with; larger = more likely unknown.

With W_j(v) the Weibull probability of the distance of v to the mean of class j, r_j the weight of the rank of class j among
the logits y ((alpha + 1 - rank) / alpha, 0 beyond alpha) and p = softmax(y):

    softmax before   P_j = p_j (1 - r_j W_j),   P_unknown = sum_j max(p_j r_j W_j, 0)
    softmax after    P = softmax([y_j (1 - r_j W_j)], sum_j max(y_j r_j W_j, 0))

Ranks are those of y, distances those of v. Everything is fitted from the statistics of a checkpoint (`crosr.features`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.inference import TRAIN
from common.openmax import Calibration, OpenMax
from common.openmax_flags import openmax_settings, record_method
from common.scores import SCORES
from crosr.features import LOGITS, POOLINGS, WITH_LATENTS, activation_vectors, set_name, statistics_of

# OpenMax's score is called after what it sees.
NAMES = {WITH_LATENTS: "crosr", LOGITS: "openmax"}
PER_ROW = ("target", "prediction", "split", "source", "logits")


class Variant(NamedTuple):
    """One OpenMax score: its feature set, the pooling of the latents, constructor arguments of `OpenMax`."""

    features: str
    pooling: str
    settings: dict

    def vectors(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The activation vectors it works on, float64 `(N, D)`."""
        return activation_vectors(arrays, self.features, self.pooling)


def variants(args, classes: int) -> tuple[dict[str, Variant], Variant]:
    """The OpenMax scores of the flags by name, and what a sweep starts from (the first feature set and tail).

    `crosr` works on [y, z], `openmax` on y, each with `-tail20` where there are several tails. `--score crosr` stands for all
    of `--features`, `--score openmax` for the logits alone.
    """
    settings = openmax_settings(args, classes)
    asked = {"crosr": args.features, "openmax": [LOGITS]}
    sets = dict.fromkeys(features for word in args.score for features in asked.get(word, ()))
    found = {name.replace("openmax", NAMES[features], 1): Variant(features, args.pooling, values)
             for features in sets for name, values in settings.items()}  # fmt: skip
    return found, Variant(args.features[0], args.pooling, next(iter(settings.values())))


def score_names(asked: Sequence[str], found: Mapping[str, Variant]) -> list[str]:
    """Names of the scores to report, in the order asked for; each once."""
    names = []
    for word in asked:
        ours = [name for name, variant in found.items() if word == "crosr" or variant.features == LOGITS]
        names += ours if word in NAMES.values() else [word]
    return list(dict.fromkeys(names))


def record_name(name: str, found: Mapping[str, Variant], classes: int, defaults: Mapping) -> str:
    """Name of a score in records: an OpenMax score says its tail and what differs from the folder's `defaults`."""
    said = record_method(name, {key: variant.settings for key, variant in found.items()}, classes, **defaults)
    pooled = name in found and found[name].features == WITH_LATENTS and found[name].pooling != POOLINGS[0]
    return f"{said}-pooling_{found[name].pooling}" if pooled else said


def needs_training_images(statistics: Mapping[str, np.ndarray], tails: Sequence[int]) -> bool:
    """Whether a tail is larger than what the checkpoint holds (if any), although every class has images enough for it."""
    if not statistics:
        return True
    return max(tails, default=0) > stored_tail(statistics) and max(tails) <= statistics["used"].min()


def stored_tail(statistics: Mapping[str, np.ndarray]) -> int:
    """How many of the largest distances per class the statistics hold: the largest tail that they can fit."""
    return statistics[f"{LOGITS}.euclidean"].shape[1]


def statistics_for(
    stored: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], tails: Sequence[int], dry_run: bool = False
) -> Mapping[str, np.ndarray]:  # fmt: skip
    """The checkpoint's statistics, or those of the training rows of `arrays` where larger tails want them.

    A dry run has too few correctly classified images: there, all training images of `arrays` count.
    """
    if not dry_run and not needs_training_images(stored, tails):
        return stored
    train = arrays["split"] == TRAIN
    if not train.any():
        return stored
    outputs = {name: arrays[name][train] for name in arrays if name == "logits" or name.startswith("latents_")}
    return statistics_of(outputs, arrays["target"][train], largest=max(tails, default=0), correct_only=not dry_run)


def fit(statistics: Mapping[str, np.ndarray], variant: Variant, class_names: Sequence[str]) -> OpenMax:
    """Fit the variant's OpenMax from statistics, without any training image.

    Raises
    ------
    UserError
        Latents are asked for and the run has none; a class has fewer correctly classified images than the tail (names class
        and count); the tail is larger than what the checkpoint holds.
    """
    name, settings = set_name(variant.features, variant.pooling), variant.settings
    if f"{name}.means" not in statistics:
        if not statistics:
            raise UserError("the checkpoint holds no training statistics: evaluate it on its data, not on pictures alone")
        raise UserError(f"the run has no statistics of {variant.features} with {variant.pooling} pooling: its network has no"
                        f" latents; --features {LOGITS} works on the logits alone")
    model = OpenMax(**settings)
    if needs_training_images(statistics, [model.tail_size]):
        raise UserError(f"--tail_size {model.tail_size} is larger than the {stored_tail(statistics)} distances per class that"
                        " the checkpoint holds, and no training images were given: lower it or give them (--data_dir)")
    means, distances = statistics[f"{name}.means"], statistics[f"{name}.{model.distance}"]
    calibration = Calibration(means, distances, statistics["used"], statistics["labelled"])
    return model.fit_calibration(calibration, class_names)


def check(statistics: Mapping[str, np.ndarray], asked: Iterable[Variant], class_names: Sequence[str], dry_run: bool) -> None:
    """Raise what `fit` will raise for these variants, before the network runs."""
    for variant in asked:
        if dry_run or needs_training_images(statistics, [variant.settings["tail_size"]]):
            OpenMax(**variant.settings)
        else:
            fit(statistics, variant, class_names)


def zscore(logits, mean, std, classes=None, two_sided: bool = True) -> np.ndarray:
    """Distance of the largest logit to what is usual in a class, in standard deviations: |m - mu_c| / sd_c, or (mu_c - m) / sd_c.

    Parameters
    ----------
    logits : float array (N, K)
    mean, std : float arrays (K,)
        Of the largest logit of each class's correctly classified training images.
    classes : int array (N,), optional
        The class c of each image; default: the predicted one. (crosr_bda takes the true class of known images, which a score
        cannot know.)
    two_sided : bool
        True as released: larger *and* smaller logits than usual count as unknown. False: smaller ones only.

    Returns
    -------
    float64 array (N,)
    """
    logits = np.asarray(logits, dtype=np.float64)
    classes = logits.argmax(1) if classes is None else classes
    bad = np.flatnonzero(~(np.asarray(std) > 0))
    if len(bad):
        raise UserError(f"zscore: class {bad[0]} has no spread of largest logits: it needs correctly classified training images")
    below = (np.asarray(mean)[classes] - logits.max(1)) / np.asarray(std)[classes]
    return np.abs(below) if two_sided else below


def scored(
    name: str, arrays: Mapping[str, np.ndarray], found: Mapping[str, Variant], fitted: Mapping[str, OpenMax], statistics
) -> dict[str, np.ndarray]:  # fmt: skip
    """Arrays of `scores.npz` for the score called `name`; OpenMax adds its K + 1 probabilities, unknown last."""
    kept = {key: arrays[key] for key in (*PER_ROW, "sources", "class_names") if key in arrays}
    if name in fitted:
        probabilities = fitted[name].probabilities(found[name].vectors(arrays))
        return {**kept, "unknown_score": probabilities[:, -1], "probabilities": probabilities}
    if name.startswith("zscore"):
        mean, std = statistics["max_logit_mean"], statistics["max_logit_std"]
        return {**kept, "unknown_score": zscore(arrays["logits"], mean, std, two_sided=name == "zscore")}
    return {**kept, "unknown_score": SCORES[name](arrays["logits"])}
