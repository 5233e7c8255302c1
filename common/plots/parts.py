"""What every figure takes from a scores file: its test samples, its thresholds, the range that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from common.errors import UserError
from common.metrics import macro_f1_oracle, thresholds

Scores = Mapping[str, np.ndarray]

THRESHOLDS = {
    "validation": "95 % of held-out knowns accepted",
    "train": "95 % of training samples accepted",
    "test_quantile": "95 % of test knowns accepted",
    "oracle": "best macro-F1 on the test set",
}


class Threshold(NamedTuple):
    """A threshold on the unknown score, by the suffix of `macro_f1_*`, and where it comes from."""

    name: str
    value: float

    @property
    def meaning(self) -> str:
        return THRESHOLDS[self.name]


def test_part(scores: Scores) -> dict[str, np.ndarray]:
    """Return the test samples (split 0) of every per-sample array; the other entries unchanged.

    Raises
    ------
    UserError
        The test part has no known or no unknown samples: nothing of open-set recognition can be drawn.
    """
    length = len(scores["target"])
    test = scores["split"] == 0 if "split" in scores else np.ones(length, dtype=bool)
    whole = ("sources", "class_names", "part_names")
    part = {key: value if key in whole or not value.ndim else value[test] for key, value in scores.items()}
    part["unknown_score"] = part["unknown_score"].astype(np.float64)
    unknown = int((part["target"] < 0).sum())
    if unknown in (0, len(part["target"])):
        have, lack = ("known", "unknown") if unknown == 0 else ("unknown", "known")
        raise UserError(f"the scores hold only {have} test samples, the figures need {lack} ones too;"
                        " test.py --unknown SET ... scores unknown sets")  # fmt: skip
    return part


def class_names(scores: Scores) -> list[str]:
    """Names of the K known classes."""
    return [str(name) for name in scores["class_names"]]


def cuts(scores: Scores, oracle: bool = True) -> list[Threshold]:
    """Return the defined thresholds; the first is the one that leads (validation, else train, else test)."""
    found = thresholds(scores["target"], scores["unknown_score"], scores.get("split"))
    if oracle:
        part = test_part(scores)
        arrays = (part["target"], part["prediction"], part["unknown_score"])
        found["oracle"] = macro_f1_oracle(*arrays, len(scores["class_names"])).threshold
    return [Threshold(name, found[name]) for name in THRESHOLDS if np.isfinite(found.get(name, np.nan))]


def needs_log_axis(part: Scores) -> bool:
    """True for positive scores whose known samples crowd at zero (such as `msp`): a logarithmic axis shows them."""
    values = part["unknown_score"]
    return bool(values.min() > 0 and np.median(values[part["target"] >= 0]) * 50 < values.max())


def shown_range(unknown_score: np.ndarray, log: bool) -> tuple[float, float]:
    """Range of the score axis: all samples, unless a few far ones would squeeze the rest."""
    values = np.log10(unknown_score) if log else unknown_score
    low, high = float(values.min()), float(values.max())
    inner = np.quantile(values, [0.002, 0.998])
    middle = inner[1] - inner[0]
    if middle > 0:
        low, high = max(low, inner[0] - 0.25 * middle), min(high, inner[1] + 0.25 * middle)
    if low == high:
        low, high = low - 0.5, high + 0.5
    return (10**low, 10**high) if log else (low, high)


def unknown_sources(part: Scores, limit: int = 4) -> list[tuple[str, np.ndarray]]:
    """`(name, mask)` of each source of unknown samples, largest first; those beyond `limit` joined as "other"."""
    unknown = part["target"] < 0
    if "source" not in part:
        return [("unknown", unknown)]
    codes, counts = np.unique(part["source"][unknown], return_counts=True)
    codes = codes[np.argsort(-counts, kind="stable")]
    if len(codes) > limit:
        codes, rest = codes[: limit - 1], codes[limit - 1 :]
    else:
        rest = codes[:0]
    found = [(str(part["sources"][code]), unknown & (part["source"] == code)) for code in codes]
    if len(rest):
        found.append((f"{len(rest)} other sets", unknown & np.isin(part["source"], rest)))
    return found


def subsample(mask: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """Indices of at most `limit` true entries, drawn without replacement with a fixed seed, ascending."""
    found = np.flatnonzero(mask)
    if len(found) <= limit:
        return found
    return np.sort(np.random.default_rng(seed).choice(found, limit, replace=False))
