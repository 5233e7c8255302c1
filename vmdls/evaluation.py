"""The variants of the score that one evaluation gives, and what they share: statistics, constants, weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from vmdls.scoring import Settings, scored, statistics_for
from vmdls.weighting import errors_of, largest_error, weighted


class Variant(NamedTuple):
    """A score and how it is computed; `settings` of its statistics, None for those of the checkpoint."""

    score: str
    settings: Settings | None = None
    weighted: bool = False
    transductive: bool = False


def wanted(args) -> dict[str, Variant]:
    """Variants by the name that reports give them, in the order of `--score`; `--ablation` adds those of `vmdls`."""
    other = args.released_statistics or args.keep_redundant or args.shrinkage is not None
    settings = None
    if other:
        settings = Settings(args.released_statistics, args.batch_classes, args.sample_count, args.shrinkage or 0.0,
                            args.keep_redundant)  # fmt: skip
    found = {}
    for name in args.score:
        own = name == "vmdls"
        found[name] = Variant(name, settings, own and args.ae_features, own and args.transductive)
    if args.ablation:
        plain = found["vmdls"]
        base = settings or Settings()
        released = base._replace(released=True, batch_classes=args.batch_classes, sample_count=args.sample_count)
        found |= {
            "weighted": plain._replace(weighted=True),
            "weighted-transductive": plain._replace(weighted=True, transductive=True),
            "released": plain._replace(settings=released),
            "weighted-released": plain._replace(settings=released, weighted=True),
            "weighted-released-transductive": Variant("vmdls", released, True, True),
        }
    return found


class Evaluation:
    """Scores of one network.

    Parameters
    ----------
    args : Namespace
        Flags `batch_size seed`.
    model : VMDLS
    rebuilder : Rebuilder or None
        For weighted variants.
    devices : Devices
    tensors : mapping
        Of the checkpoint; its `statistics.*` are used where they are those that a variant asks for.
    train : Images or None
        Training images, for other statistics and for the largest r; None where `largest` is set from elsewhere.

    Attributes
    ----------
    largest : float or None
        Largest r of the training images.
    """

    def __init__(self, args, model, rebuilder, devices, tensors, train):
        self.args, self.model, self.rebuilder, self.devices = args, model, rebuilder, devices
        self.tensors, self.train = tensors, train
        self.statistics: dict[Settings | None, Mapping] = {}
        self.largest: float | None = None

    def prepare(self, variants: Iterable[Variant]) -> None:
        """Compute, before any test image is seen, the statistics and constants that the variants ask for."""
        args = self.args
        for variant in variants:
            if variant.settings not in self.statistics:
                self.statistics[variant.settings] = statistics_for(
                    self.model, self.tensors, variant.settings, self.train, self.devices, args.batch_size, args.seed
                )
            if variant.weighted and self.largest is None:
                self.largest = largest_error(self.model, self.rebuilder, self.train, self.devices, args.batch_size)

    def scored(self, variant: Variant, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays of `scores.npz` of a variant, from what `weighting.outputs_of` gave."""
        statistics, kept = self.statistics[variant.settings], {k: v for k, v in arrays.items() if k != "rebuilt"}
        # The weights have their own way of the transductive constants.
        shifted = variant.transductive and not variant.weighted
        result = scored(variant.score, kept, statistics, self.model.dimensions, self.devices.device, shifted)
        if not variant.weighted:
            return result
        return weighted(result, errors_of(arrays), float(statistics["highest"]), self.largest, variant.transductive)

    def method(self, variant: Variant) -> str:
        """Name of a variant in records; what departs from the defaults is part of it, so that records are never mixed."""
        settings = Settings(*self.statistics[variant.settings]["settings"].tolist())
        parts = [variant.score] + ["weighted"] * variant.weighted
        if settings.released:
            parts.append(f"released{settings.batch_classes:.0f}x{settings.sample_count:.0f}")
        if settings.shrinkage:
            parts.append(f"shrinkage{settings.shrinkage:g}")
        if settings.keep_redundant:
            parts.append("redundant")
        return "-".join(parts + ["transductive"] * variant.transductive)
