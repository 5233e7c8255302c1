"""OpenMax on [y, z] over a grid of settings: images decided as unknown by arg max, and the usual metrics, for every one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common import sweep as sweeps
from common.inference import TEST, TRAIN
from common.metrics import class_report, decide_argmax
from crosr.scores import Variant, fit, scored


def settings_of(variant: Variant) -> dict:
    """What a sweep can vary, and `metrics.json` keeps beside a threshold: the settings of OpenMax, `pooling` and `features`."""
    return {**variant.settings, "pooling": variant.pooling, "features": variant.features}


def varied(variant: Variant, chosen: Mapping) -> Variant:
    """The variant with the chosen settings, pooling and features in place of its own."""
    own = settings_of(variant) | dict(chosen)
    return Variant(own.pop("features"), own.pop("pooling"), own)


def counts(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Decisions by arg max over K + 1 on the test images.

    Unknown images found (true positives), known ones rejected (false positives), share of right decisions, F1 of "unknown".
    """
    test = arrays["split"] == TEST
    target, decision = arrays["target"][test], decide_argmax(arrays["probabilities"][test])
    report = class_report(target, decision, arrays["probabilities"].shape[1] - 1)
    found, alarms = ((decision < 0) & (target < 0)).sum(), ((decision < 0) & (target >= 0)).sum()
    return {"true_positives": int(found), "false_positives": int(alarms), "accuracy": report.accuracy,
            "f1_unknown": float(report.f1[-1])}  # fmt: skip


def sweep(
    arrays: Mapping[str, np.ndarray], statistics: Mapping[str, np.ndarray], variant: Variant, grid: Mapping[str, list],
    class_names: Sequence[str],
) -> list[dict]:  # fmt: skip
    """Fit and evaluate every combination of the grid; rows of settings, counts and metrics.

    Parameters
    ----------
    arrays : mapping
        Network outputs (`logits`, `latents_*`) with `target`, `prediction`, `split`.
    statistics : mapping
        See `crosr.features.statistics_of`; must reach the grid's largest tail.
    variant : Variant
        What is not varied.
    grid : mapping
        Setting (those of `settings_of`) to its values.
    class_names : sequence of str
    """
    rows = arrays["split"] != TRAIN
    evaluated = {key: value[rows] for key, value in arrays.items() if key not in ("sources", "class_names")}

    def result(chosen: dict) -> dict[str, np.ndarray]:
        one = varied(variant, chosen)
        return scored("openmax", evaluated, {"openmax": one}, {"openmax": fit(statistics, one, class_names)}, statistics)

    return sweeps.sweep(grid, result, counts)
