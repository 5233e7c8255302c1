"""How fast the metrics are, as ratios measured in one run on this machine.

    python benchmarks/metrics.py

Compared on 1,000,000 samples: `oscr` and `auroc` with `sklearn.metrics.roc_auc_score`, `aupr_unknown` with
`average_precision_score`; on 20,000 samples: `macro_f1_oracle`, which looks at every threshold, with
scikit-learn's `f1_score` at 200 of them, and `oscr` with the pairwise definition. Results are compared as
well.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.metrics import aupr_unknown, auroc, decide, evaluate, macro_f1_oracle, oscr


def seconds(function: Callable[[], float], repeats: int = 3) -> tuple[float, float]:
    """Return the shortest of `repeats` wall times, and the last result."""
    best, result = float("inf"), float("nan")
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def report(name: str, ours: tuple[float, float], theirs: tuple[float, float]) -> None:
    """Print one line: both times, their ratio, and how far the results lie apart."""
    print(
        f"{name}: ours {ours[0] * 1e3:.1f} ms, theirs {theirs[0] * 1e3:.1f} ms, "
        f"ratio {theirs[0] / ours[0]:.1f}x, difference {abs(ours[1] - theirs[1]):.1e}"
    )


def made_scores(samples: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return target, prediction and unknown score: half unknown, about nine in ten predictions right."""
    generator = np.random.default_rng(0)
    target = generator.integers(0, classes, samples)
    prediction = np.where(generator.random(samples) < 0.9, target, generator.integers(0, classes, samples))
    target[generator.random(samples) < 0.5] = -1
    return target, prediction, generator.normal(size=samples) + (target < 0)


def pairwise_oscr(target: np.ndarray, prediction: np.ndarray, unknown_score: np.ndarray) -> float:
    """OSCR by its definition: every correct known sample against every unknown one."""
    known, unknown = target >= 0, unknown_score[target < 0]
    total = 0.0
    for score in unknown_score[known & (target == prediction)]:
        total += np.count_nonzero(score < unknown) + 0.5 * np.count_nonzero(score == unknown)
    return total / (known.sum() * len(unknown))


def sampled_oracle(target: np.ndarray, prediction: np.ndarray, unknown_score: np.ndarray) -> float:
    """Largest macro-F1 over 200 thresholds, one scikit-learn call each."""
    from sklearn.metrics import f1_score

    cuts = np.quantile(unknown_score, np.linspace(0, 1, 200))
    return max(f1_score(target, decide(prediction, unknown_score, cut), average="macro") for cut in cuts)


def main() -> None:
    large, small = made_scores(1_000_000), made_scores(20_000)
    report(
        "oscr, 20,000 samples, against the pairwise definition",
        seconds(lambda: oscr(*small)),
        seconds(lambda: pairwise_oscr(*small), 1),
    )
    spent, _ = seconds(lambda: evaluate(*large)["oscr"], 1)
    print(f"evaluate (every metric), 1,000,000 samples: {spent:.1f} s")
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score
    except ImportError as error:
        print(f"comparisons with scikit-learn: skipped, {error}")
        return
    target, _, unknown_score = large
    is_unknown = target < 0
    peer = seconds(lambda: roc_auc_score(is_unknown, unknown_score))
    report(
        "auroc, 1,000,000 samples, against roc_auc_score", seconds(lambda: auroc(target, unknown_score)), peer
    )
    spent, _ = seconds(lambda: oscr(*large))
    share = spent / peer[0]
    print(
        f"oscr, 1,000,000 samples: {spent * 1e3:.1f} ms = {share:.2f} of the time of roc_auc_score (goal: 1)"
    )
    report(
        "aupr_unknown, 1,000,000 samples, against average_precision_score",
        seconds(lambda: aupr_unknown(target, unknown_score)),
        seconds(lambda: average_precision_score(is_unknown, unknown_score)),
    )
    report(
        "macro_f1_oracle, 20,000 samples, all thresholds, against 200 calls of f1_score",
        seconds(lambda: macro_f1_oracle(*small, classes=10).value),
        seconds(lambda: sampled_oracle(*small), 1),
    )


if __name__ == "__main__":
    main()
