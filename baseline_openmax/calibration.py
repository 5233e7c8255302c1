"""Temperature scaling (Guo et al. 2017): one number T that makes softmax(z / T) believable, fitted on held-out known images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

from common.errors import UserError
from common.metrics import ece, nll

BOUNDS = (0.05, 20.0)
FILE = "calibration_info.json"


def fit_temperature(logits, target) -> float:
    """The temperature T > 0 of least negative log-likelihood of softmax(z / T); log T is what is searched.

    Parameters
    ----------
    logits : float array (N, K)
        Of known images that were not trained on.
    target : int array (N,)
        Their classes 0..K-1.

    Returns
    -------
    float
        1.0 where every image is classified correctly: the likelihood then grows without end as T falls, so no T is best.

    Raises
    ------
    UserError
        No images, or T outside [.05, 20]: logits of that scale come from a network or a file that is wrong.
    """
    logits, target = np.asarray(logits, dtype=np.float64), np.asarray(target)
    if not len(target):
        raise UserError("temperature: no held-out known images; train with --validation_share above 0")
    own = logits[np.arange(len(target)), target]
    rivals = np.where(np.arange(logits.shape[1]) == target[:, None], -np.inf, logits).max(1)
    if (own > rivals).all():
        return 1.0
    low, high = np.log(BOUNDS[0]) - 2, np.log(BOUNDS[1]) + 2
    found = minimize_scalar(lambda x: nll(target, logits / np.exp(x)), bounds=(low, high), method="bounded",
                            options={"xatol": 1e-8})  # fmt: skip
    temperature = float(np.exp(found.x))
    if not BOUNDS[0] <= temperature <= BOUNDS[1]:
        raise UserError(f"temperature {temperature:.4g} is outside [{BOUNDS[0]}, {BOUNDS[1]}]: the logits of the"
                        " held-out images are not those of a trained classifier; look at --logit_scale and the log")
    return temperature


def calibration_report(logits, target) -> dict:
    """What `calibration_info.json` holds: method, temperature, number of images, NLL and ECE (15 bins) before and after."""
    temperature = fit_temperature(logits, target)
    logits = np.asarray(logits, dtype=np.float64)
    return {
        "method": "temperature_scaling",
        "temperature": temperature,
        "images": len(target),
        "nll_before": nll(target, logits),
        "nll_after": nll(target, logits / temperature),
        "ece_before": ece(target, logits),
        "ece_after": ece(target, logits / temperature),
    }


def stored_temperature(header: dict, directory: Path | None = None) -> float | None:
    """Temperature of a checkpoint's header, else of `calibration_info.json` in its run; None where neither has one."""
    import json

    if "calibration" in header:
        return float(header["calibration"]["temperature"])
    path = None if directory is None else Path(directory) / FILE
    if path is None or not path.exists():
        return None
    temperature = json.loads(path.read_text()).get("temperature")
    if not isinstance(temperature, int | float) or not BOUNDS[0] <= temperature <= BOUNDS[1]:
        raise UserError(f"{path}: temperature must lie in [{BOUNDS[0]}, {BOUNDS[1]}], got {temperature}")
    return float(temperature)


def halves(labels, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of two disjoint, stratified halves of the held-out images: for choosing an epoch, and for the temperature."""
    from common.datasets.images import class_ranks

    rank, _, _ = class_ranks(np.asarray(labels), seed + 1)
    return np.flatnonzero(rank % 2 == 0), np.flatnonzero(rank % 2 == 1)
