"""Time and memory of CSSR's stacked head and batched scores against loops over classes, as ratios in one run.

    python benchmarks/cssr.py

Heads: forward and backward of the stacked auto-encoders against one pair of 1x1 convolutions per class, the two taking
turns; peak memory is that of one such step in a fresh process, beyond what the process held before. Scores: statistics and
scores of 10,000 feature maps against loops over classes with boolean masks and full Gram matrices. Results are compared as
well, so that equal work is timed.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.devices import keep_memory
from cssr.autoencoders import ClassAutoencoders
from cssr.model import log_probabilities
from cssr.scores import ClassStatistics, parts_of

# Classes, batch, channels, side of the map, width of the code; repeats.
HEADS = {6: (128, 256, 8, 64, 5), 20: (128, 512, 4, 64, 5), 100: (32, 512, 4, 64, 3), 1000: (8, 512, 7, 16, 1)}


def seconds(*functions: Callable[[], object], repeats: int) -> list[float]:
    """Shortest wall time of each function; they take turns, so that other load on the machine meets all of them."""
    best = [float("inf")] * len(functions)
    for _ in range(repeats):
        for number, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


def loop_head(x, encoders, decoders):
    """Errors of one class after the other."""
    errors = []
    for encoder, decoder in zip(encoders, decoders):
        code = torch.tanh(functional.conv2d(x, encoder[:, :, None, None]))
        errors.append((functional.conv2d(code, decoder[:, :, None, None]) - x).abs().sum(1))
    return torch.stack(errors, 1)


def head_steps(classes: int):
    """Return one training step of the stacked head and of the loop; each gives the gradient of the map."""
    batch, channels, side, latent, _ = HEADS[classes]
    torch.manual_seed(0)
    net = ClassAutoencoders(classes, channels, latent)
    x = torch.randn(batch, channels, side, side).relu()
    encoders, decoders = ([w.detach().clone().requires_grad_() for w in layer] for layer in net.layers)

    def step(head):
        z = x.clone().requires_grad_()
        log_p = log_probabilities((-0.1 * head(z)).clamp(-100, 100), "softmax_avg")
        functional.nll_loss(log_p, torch.arange(batch) % classes).backward()
        return z.grad

    return lambda: step(net), lambda: step(lambda z: loop_head(z, encoders, decoders))


def peak_megabytes(classes: int, which: str) -> float:
    """Peak resident memory that one step adds, in MB, measured in a process of its own."""
    done = subprocess.run([sys.executable, __file__, str(classes), which], capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak_resident() -> float:
    """Peak resident memory of this process in MB.

    Linux: VmHWM, since a child's ru_maxrss starts at what its parent held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def measure_peak(classes: int, which: str) -> None:
    step = head_steps(classes)[which == "loop"]
    before = peak_resident()
    step()
    print(peak_resident() - before)


def compare_heads() -> None:
    for classes in HEADS:
        stacked, loop = head_steps(classes)
        ours, theirs = stacked(), loop()  # also warms both up
        difference = (ours - theirs).norm() / theirs.norm()
        ours, theirs = seconds(stacked, loop, repeats=HEADS[classes][-1])
        print(f"head, {classes} classes: stacked {ours * 1e3:.0f} ms, loop {theirs * 1e3:.0f} ms, ratio {theirs / ours:.2f}x;"
              f" peak {peak_megabytes(classes, 'stacked'):.0f} MB against {peak_megabytes(classes, 'loop'):.0f} MB;"
              f" relative difference {difference:.0e}", flush=True)  # fmt: skip


def full_gram(x):
    powers = x.flatten(2) ** 8
    return torch.bmm(powers, powers.transpose(1, 2)) ** (1 / 8)


def loop_scores(x, logit_map, log_p, batch: int = 128):
    """S0, S1, S2 (pcssr) as programs with a mask for each class and batch compute them."""
    classes, channels = log_p.shape[1], x.shape[1]
    predicted = log_p.argmax(1)
    magnitude, grams = [], []
    for label in range(classes):
        magnitude.append(x[predicted == label].abs().mean((0, 2, 3)))
        total = torch.zeros(channels, channels)
        for part, labels in zip(x.split(batch), predicted.split(batch)):
            total += full_gram(part[labels == label]).sum(0)
        grams.append(total / (predicted == label).sum())
    share = torch.stack(magnitude)
    share = share / share.sum(0)
    result = torch.zeros(len(x), 3)
    for start in range(0, len(x), batch):
        z, labels = x[start : start + batch], predicted[start : start + batch]
        for label in range(classes):
            mask = labels == label
            rows = torch.arange(start, start + len(z))[mask]
            result[rows, 0] = (logit_map[rows, label] / z[mask].abs().mean(1) ** 2).mean((1, 2))
            result[rows, 1] = (share[label][:, None, None] * z[mask]).mean((1, 2, 3))
            result[rows, 2] = (full_gram(z[mask]) * grams[label]).sum((1, 2))
    return result


def compare_scores(count: int = 10_000, classes: int = 6, channels: int = 128, side: int = 4) -> None:
    torch.manual_seed(0)
    x = torch.rand(count, channels, side, side) + 0.1
    logit_map = -5 * torch.rand(count, classes, side, side)
    log_p = log_probabilities(logit_map, "softmax_avg")

    def ours():
        sums = ClassStatistics(classes, channels)
        found = []
        for part, chosen in zip(x.split(512), log_p.argmax(1).split(512)):
            sums.add(part, chosen)
        statistics = sums.finish()
        for part in zip(x.split(512), logit_map.split(512), log_p.split(512)):
            found.append(parts_of("pcssr", *part, statistics)[:, 2:])
        return torch.cat(found)

    expected = loop_scores(x, logit_map, log_p)
    difference = ((ours() - expected).abs() / expected.abs()).max()
    mine, theirs = seconds(ours, lambda: loop_scores(x, logit_map, log_p), repeats=1)
    print(f"statistics and scores of {count} maps: ours {mine:.2f} s, loops {theirs:.2f} s, ratio {theirs / mine:.1f}x,"
          f" largest relative difference {difference:.0e}", flush=True)  # fmt: skip


def main() -> None:
    keep_memory()
    with torch.no_grad():
        compare_scores()
    compare_heads()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure_peak(int(sys.argv[1]), sys.argv[2])
    else:
        main()
