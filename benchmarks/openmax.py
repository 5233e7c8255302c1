"""How much faster OpenMax is than other programs, as ratios measured in one run on this machine.

    python benchmarks/openmax.py

Compared: applying to 20,000 x 10 logits with pytorch-ood (its own `predict_logits`) and with a loop over
samples that asks libmr for every class, as the published programs do; fitting 50,000 x 10 logits with a
loop over samples for the distances and libmr for the tails. Results are compared as well, so that equal
work is timed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.openmax import OpenMax

CLASSES, TAIL = 10, 20


def seconds(function: Callable[[], object], repeats: int) -> tuple[float, object]:
    """Return the shortest of `repeats` wall times, and the last result."""
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        best = min(best, time.perf_counter() - start)
    return best, result


def report(name: str, ours: float, theirs: float, goal: float, difference: float) -> None:
    """Print one line: both times, their ratio beside its goal, and how far the results lie apart."""
    print(
        f"{name}: ours {ours * 1e3:.1f} ms, theirs {theirs * 1e3:.0f} ms, ratio {theirs / ours:.0f}x "
        f"(goal {goal:.0f}x), largest difference {difference:.1e}"
    )


def made_logits(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (N, K) that look like a trained classifier's, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(samples) % CLASSES
    logits = generator.normal(scale=2.0, size=(samples, CLASSES))
    logits[np.arange(samples), labels] += generator.gamma(9.0, 1.2, size=samples)
    return logits, labels


def compare_apply_pytorch_ood(logits: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> None:
    """pytorch-ood: translation 10000, Euclidean distance, all samples."""
    try:
        import torch
        from pytorch_ood.detector import OpenMax as Peer
    except ImportError as error:
        print(f"apply 20,000 x 10 against pytorch-ood: skipped, {error}")
        return
    fitted = (
        logits[:2000],
        labels[:2000],
    )  # its fit is slow; the fitted parameters do not change the work timed here
    peer = Peer(None, tailsize=TAIL, alpha=CLASSES, euclid_weight=1.0)
    peer.fit_logits(torch.tensor(fitted[0]), torch.tensor(fitted[1]))
    theirs, expected = seconds(lambda: peer.predict_logits(torch.tensor(queries)).numpy(), 1)
    model = OpenMax(TAIL, CLASSES, "euclidean", translation=10000, correct_only=False).fit(*fitted)
    ours, found = seconds(lambda: model.unknown_probability(queries), 25)
    report("apply 20,000 x 10 against pytorch-ood", ours, theirs, 200, np.abs(found - expected).max())


def compare_apply_libmr(model: OpenMax, queries: np.ndarray) -> None:
    """Per sample: rank, distance and w-score of every class, revision, softmax."""
    import libmr

    fits = []
    for scale, shape, small in zip(model.tails.scale, model.tails.shape, model.tails.small):
        fits.append(libmr.MR())
        fits[-1].set_params(scale, shape, 1, 1, small)

    def loop() -> np.ndarray:
        result = np.empty((len(queries), CLASSES + 1))
        for row, logits in enumerate(queries):
            weight = np.empty(CLASSES)
            for rank, label in enumerate(logits.argsort()[::-1]):
                score = fits[label].w_score(np.linalg.norm(logits - model.means[label]))
                weight[label] = 1 - (CLASSES - rank) / CLASSES * score
            revised = np.append(logits * weight, np.sum(logits * (1 - weight)))
            exponential = np.exp(revised - revised.max())
            result[row] = exponential / exponential.sum()
        return result

    theirs, expected = seconds(loop, 2)
    ours, found = seconds(lambda: model.probabilities(queries), 25)
    report("apply 20,000 x 10 against a loop with libmr", ours, theirs, 50, np.abs(found - expected).max())


def compare_fit_libmr(logits: np.ndarray, labels: np.ndarray) -> None:
    """Per sample a distance, per class libmr on all its distances."""
    import libmr

    def loop() -> np.ndarray:
        correct = logits.argmax(axis=1) == labels
        means = [logits[correct & (labels == label)].mean(axis=0) for label in range(CLASSES)]
        distances: list[list[float]] = [[] for _ in range(CLASSES)]
        for row, label in zip(logits[correct], labels[correct]):
            distances[label].append(np.linalg.norm(row - means[label]))
        parameters = []
        for values in distances:
            fit = libmr.MR()
            fit.fit_high(np.array(values), TAIL)
            parameters.append(fit.get_params()[:2])
        return np.array(parameters)

    theirs, expected = seconds(loop, 2)
    ours, model = seconds(lambda: OpenMax(TAIL, CLASSES, "euclidean").fit(logits, labels), 15)
    found = np.stack([model.tails.scale, model.tails.shape], axis=1)
    difference = np.abs(found / expected - 1).max()
    report("fit 50,000 x 10 against distances per sample + libmr", ours, theirs, 5, difference)


def main() -> None:
    logits, labels = made_logits(50_000, seed=0)
    queries, _ = made_logits(20_000, seed=1)
    queries[::2] = np.random.default_rng(2).normal(scale=3.0, size=queries[::2].shape)
    try:
        import libmr  # noqa: F401
    except ImportError as error:
        print(f"comparisons with libmr: skipped, {error}")
    else:
        compare_apply_libmr(OpenMax(TAIL, CLASSES, "euclidean").fit(logits, labels), queries)
        compare_fit_libmr(logits, labels)
    compare_apply_pytorch_ood(logits, labels, queries)


if __name__ == "__main__":
    main()
