"""OpenMax over a grid of settings, from logits that were computed once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from baseline_openmax.heads import fit_openmax, scored
from common import sweep as sweeps
from common.inference import TRAIN


def sweep(arrays: Mapping[str, np.ndarray], settings: dict, grid: Mapping[str, list], dry_run: bool = False) -> list[dict]:
    """Fit and evaluate every combination of the grid; rows of settings and metrics."""
    evaluated = {key: value[arrays["split"] != TRAIN] for key, value in arrays.items() if key not in ("sources", "class_names")}
    return sweeps.sweep(grid, lambda chosen: scored("openmax", evaluated, fit_openmax(arrays, settings | chosen, dry_run)))
