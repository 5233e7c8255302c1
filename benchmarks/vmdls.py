"""Time and memory of VMDLS's metric loss, scores and threshold metrics against the usual ways, as ratios in one run.

    python benchmarks/vmdls.py [--quick]

Metric loss: forward and backward over all triplets of a batch against listing the triplets with
pytorch-metric-learning, as the released program does; the two take turns. Peak memory is that of one such step in a
fresh process, beyond what it held before. Scores: Gaussian log-likelihoods of 20,000 images, DenseNet's 974 columns,
10 classes, against one torch MultivariateNormal per class. Threshold metrics of 20,000 images: sorting against a loop
over 100,000 thresholds, and cumulative counts for 1,000 thresholds against as many scikit-learn calls. Results are
compared as well, so that equal work is timed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.arguments import ScriptParser
from common.devices import keep_memory
from vmdls.losses import metric_loss
from vmdls.scores import Gaussians, cauroc, threshold_table, unpack
from vmdls.scoring import class_moments, columns_modelled, columns_of

CLASSES, DIMENSION, MARGIN = 10, 32, 32.15
DENSENET = {"t1": 108, "t2": 150, "t3": 342, "g": 342, "mean": DIMENSION}


def seconds(*functions: Callable[[], object], repeats: int) -> list[float]:
    """Shortest wall time of each function; they take turns, so that other load on the machine meets all of them."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for number, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


def listed_triplets_loss(embeddings, labels, margin: float):
    """The same loss with every triplet as three entries of index vectors."""
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_triplets_indices

    distances = LpDistance()(embeddings)
    anchor, positive, negative = get_all_triplets_indices(labels)
    to_negative = distances[anchor, negative]
    values = (distances[anchor, positive] - to_negative + 0.1).relu() + (margin - to_negative).relu()
    return values[values > 0].mean()


def loss_step(which: str, size: int) -> Callable[[], torch.Tensor]:
    """One forward and backward pass of `ours` or `listed` on `size` embeddings; gives the gradient."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) % CLASSES
    centres = torch.randn(CLASSES, DIMENSION, generator=generator)
    embeddings = centres[labels] + torch.randn(size, DIMENSION, generator=generator)

    def step():
        points = embeddings.clone().requires_grad_()
        loss = (
            metric_loss(points, labels, MARGIN).loss
            if which == "ours"
            else listed_triplets_loss(points, labels, MARGIN)
        )
        loss.backward()
        return points.grad

    return step


def memory_now(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process in MB."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def print_peak(which: str, size: int) -> None:
    """Print the resident memory that one step adds at its peak, in MB; a small step first loads what is loaded once."""
    loss_step(which, 40)()
    step = loss_step(which, size)
    before = memory_now("VmRSS")
    # Without the reset the peak of the imports could hide that of the step.
    Path("/proc/self/clear_refs").write_text("5")
    step()
    print(memory_now("VmHWM") - before)


def peak_megabytes(which: str, size: int) -> str:
    """`print_peak` of a process of its own, as text."""
    if not Path("/proc/self/clear_refs").exists():
        return "unmeasured"
    command = [sys.executable, __file__, "--peak", which, "--size", str(size)]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"{float(done.stdout):.0f} MB" if done.returncode == 0 else "unmeasured"


def compare_losses(quick: bool) -> None:
    try:
        import pytorch_metric_learning  # noqa: F401
    except ImportError as error:
        print(f"metric loss against listed triplets: skipped, {error}")
    else:
        for size in (400,) if quick else (400, 640):
            ours, listed = loss_step("ours", size), loss_step("listed", size)
            difference = (ours() - listed()).norm() / listed().norm()
            mine, theirs = seconds(ours, listed, repeats=3)
            print(f"metric loss, N = {size}, d = {DIMENSION}: ours {mine * 1e3:.0f} ms, {peak_megabytes('ours', size)};"
                  f" listed triplets {theirs * 1e3:.0f} ms, {peak_megabytes('listed', size)}; ratio"
                  f" {theirs / mine:.0f}x; gradients differ by {difference:.0e}", flush=True)  # fmt: skip
    for size in (500, 1000) if quick else (500, 1000, 2000, 4000):
        step = loss_step("ours", size)
        step()
        (spent,) = seconds(step, repeats=2)
        per_class = size // CLASSES
        print(f"metric loss, N = {size}: ours {spent * 1e3:.0f} ms, {peak_megabytes('ours', size)} for"
              f" {size * (per_class - 1) * (size - per_class):,} triplets", flush=True)  # fmt: skip


def made_features(count: int, seed: int):
    """Features with DenseNet's columns (t1 108, t2 150, t3 342, g = t3, mean 32 from g), and classes."""
    generator = torch.Generator().manual_seed(0)
    mixing = 0.3 * torch.randn(600, 600, generator=generator) / 600**0.5 + torch.eye(600)
    centre = torch.randn(CLASSES, 600, generator=generator)
    head = torch.randn(342, DIMENSION, generator=generator) / 342**0.5
    generator.manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    base = centre[labels] + torch.randn(count, 600, generator=generator) @ mixing
    g = base[:, 258:]
    return torch.cat((base, g, g @ head), 1), labels.numpy()


def distribution_loop(mean, covariance, features, steps: int = 0):
    """Log-likelihoods class by class with `MultivariateNormal`; the diagonal's jitter is doubled until it accepts."""
    identity = torch.eye(features.shape[1], dtype=features.dtype)
    steps = max(steps, 1)
    while torch.linalg.cholesky_ex(covariance + steps * 1e-6 * identity).info.any():
        steps *= 2
    columns = []
    for label in range(CLASSES):
        matrix = covariance[label] + steps * 1e-6 * identity
        normal = torch.distributions.MultivariateNormal(mean[label], matrix, validate_args=False)
        columns.append(normal.log_prob(features))
    return torch.stack(columns, 1)


def compare_scores(quick: bool) -> None:
    features, labels = made_features(20_000, 1)
    test, _ = made_features(2_000 if quick else 20_000, 2)
    kept = columns_of(columns_modelled(features, DENSENET, False))
    order = [labels.argsort(kind="stable")]
    small = Gaussians(*class_moments(features[:, kept], labels, order, "cpu", False)[1:])
    full = Gaussians(*class_moments(features, labels, order, "cpu", False)[1:])
    covariance = unpack(full.covariance, features.shape[1])
    functions = {
        "loop, float64": lambda: distribution_loop(full.mean, covariance, test.double(), full.steps),
        "loop, float32": lambda: distribution_loop(full.mean.float(), covariance.float(), test),
        "ours, all columns": lambda: full.log_likelihood(test),
        f"ours, the {len(kept)} columns that are not redundant": lambda: small.log_likelihood(test[:, kept]),
    }
    print(f"log-likelihoods of {len(test)} x {features.shape[1]} x {CLASSES}, Gaussians given:")
    found = [function() for function in functions.values()]
    times = seconds(*functions.values(), repeats=1 if quick else 3)
    for name, own, spent in zip(functions, found, times):
        same = (own.argmax(1) == found[0].argmax(1)).double().mean()
        gap = (own - own.mean()) - (found[0] - found[0].mean())
        print(f"  {name:46} {spent:6.2f} s, ratio {times[0] / spent:.1f}x; classes equal {same:.4f}, difference but for a"
              f" constant {gap.abs().max() / found[0].std():.0e} of the spread", flush=True)  # fmt: skip


def scan(target, right, known_score, thresholds):
    """AUROC by trapezoids, CAUROC by rectangles, and FPR at 95 % TPR, one pass over the arrays for each threshold."""
    known, unknown, correct = known_score[target >= 0], known_score[target < 0], known_score[right]
    rates = np.array([[np.mean(part >= cut) for part in (known, unknown, correct)] for cut in thresholds])
    tpr, fpr, own = np.concatenate((np.ones((1, 3)), rates, np.zeros((1, 3)))).T
    return -np.trapezoid(tpr, fpr), -np.sum(np.diff(fpr) * own[1:]), rates[rates[:, 0] >= 0.95][-1, 1]


def compare_metrics(quick: bool, count: int = 20_000) -> None:
    from sklearn.metrics import f1_score

    from common.metrics import auroc, fpr95_known_positive

    generator = np.random.default_rng(0)
    prediction = generator.integers(0, CLASSES, count)
    target = np.where(np.arange(count) % 2, prediction, -1)
    target[1::20] = (target[1::20] + 1) % CLASSES
    unknown_score = 1 + generator.gamma(2, 20, count) + np.where(target < 0, 60, 0)
    right = (target >= 0) & (prediction == target)
    thresholds = -np.geomspace(unknown_score.max(), unknown_score.min(), 2_000 if quick else 100_000)

    def ranked():
        own = cauroc(target, prediction, unknown_score)
        return auroc(target, unknown_score), own, fpr95_known_positive(target, unknown_score)

    start = time.perf_counter()
    scanned = scan(target, right, -unknown_score, thresholds)
    theirs = time.perf_counter() - start
    difference = np.abs(np.subtract(ranked(), scanned)).max()
    (mine,) = seconds(ranked, repeats=5)
    print(f"AUROC, CAUROC, FPR95 of {count} images: sorted {mine * 1e3:.1f} ms, exact; {len(thresholds)} thresholds"
          f" {theirs:.1f} s; ratio {theirs / mine:.0f}x; difference {difference:.0e}", flush=True)  # fmt: skip

    table_cuts = np.arange(1.0, 101 if quick else 1001)

    def calls():
        return [f1_score(target, np.where(unknown_score < cut, prediction, -1), average="macro") for cut in table_cuts]

    def table():
        return threshold_table(target, prediction, unknown_score, table_cuts, CLASSES)

    difference = np.abs(table()[:, 0] - calls()).max()
    mine, theirs = seconds(table, calls, repeats=1)
    print(f"macro-F1, accuracies at {len(table_cuts)} thresholds: cumulative counts {mine * 1e3:.1f} ms, scikit-learn"
          f" calls {theirs:.1f} s; ratio {theirs / mine:.0f}x; difference {difference:.0e}", flush=True)  # fmt: skip


def main(argv=None) -> None:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    parser.add_argument(
        "--peak", choices=("ours", "listed"), help="print the peak memory of one loss step (used internally)"
    )
    parser.add_argument("--size", type=int, default=400, help="batch size for --peak")
    args = parser.parse_args(argv)
    if args.peak:
        print_peak(args.peak, args.size)
        return
    keep_memory()
    compare_losses(args.quick)
    with torch.no_grad():
        compare_scores(args.quick)
    compare_metrics(args.quick)


if __name__ == "__main__":
    main()
