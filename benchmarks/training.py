"""Training speed of the laptop preset's network on this machine, as ratios measured in one run.

    python benchmarks/training.py [--out results/benchmarks/training.json]

Compares images at full size with three quarters of it (the first epochs of the preset), memory kept by the C library with
memory given back (`common.devices.keep_memory`), and float32 with bfloat16. Two idle cores: about a minute.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from common.arguments import ScriptParser, positive_int, run_script

CASES = {
    "full size": {"size": 32, "keep": True, "bf16": False},
    "three quarters of the size": {"size": 24, "keep": True, "bf16": False},
    "full size, memory given back": {"size": 32, "keep": False, "bf16": False},
    "full size, bfloat16": {"size": 32, "keep": True, "bf16": True},
    "three quarters of the size, bfloat16": {"size": 24, "keep": True, "bf16": True},
}


def measure(size: int, keep: bool, bf16: bool, batch: int, steps: int) -> float:
    """Images a second of forward and backward passes of the speed net in this process; median over steps."""
    import torch

    from common.backbones import SpeedNet
    from common.devices import keep_memory

    if keep:
        keep_memory()
    torch.manual_seed(0)
    net = SpeedNet().to(memory_format=torch.channels_last)
    head = torch.nn.Linear(net.dimension, 6, bias=False)
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 6, (batch,))
    seconds = []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = torch.nn.functional.cross_entropy(head(net(images)).float() / 9, labels)
        loss.backward()
        seconds.append(time.perf_counter() - begun)
    return batch / statistics.median(seconds[1:])


def main(argv=None) -> None:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch_size", type=positive_int, default=512, help="images a step")
    parser.add_argument("--steps", type=positive_int, default=4, help="timed steps of each case")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--case", help="measure one case and print its images/s (used for each in a process of its own)")
    args = parser.parse_args(argv)
    if args.case:
        print(measure(**CASES[args.case], batch=args.batch_size, steps=args.steps))
        return
    from baseline_openmax.presets import PRESETS
    from common.devices import cpu_has_bf16
    from common.files import write_json
    from common.run import code_version

    rates = {}
    for name, case in CASES.items():
        if case["bf16"] and not cpu_has_bf16():
            print(f"{name:36} skipped: this CPU has no bfloat16 arithmetic (emulation is several times slower)")
            continue
        command = [sys.executable, __file__, "--case", name, "--batch_size", str(args.batch_size), "--steps", str(args.steps)]
        rates[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{name:36} {rates[name]:7.0f} images/s   {rates[name] / rates['full size']:.2f} of full size", flush=True)
    epoch_images = 27_000  # a CIFAR-10 split of six classes less a tenth held out
    short = PRESETS["laptop"]["low_resolution_epochs"]
    full = PRESETS["laptop"]["max_epochs"] - short
    taken = ", bfloat16" if cpu_has_bf16() else ""  # as the preset does: --precision auto
    minutes = epoch_images * (short / rates[f"three quarters of the size{taken}"] + full / rates[f"full size{taken}"]) / 60
    print(f"the preset's {short} + {full} epochs over {epoch_images:,} images at these rates: {minutes:.1f} minutes")
    if args.out:
        import torch

        about = {"threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()}
        ratios = {name: rate / rates["full size"] for name, rate in rates.items()}
        write_json(args.out, {"command": "python benchmarks/training.py", "code_version": code_version(), "cpu": about,
                              "torch": torch.__version__, "batch_size": args.batch_size, "images_per_second": rates,
                              "ratios": ratios, "minutes_of_preset": minutes})  # fmt: skip


if __name__ == "__main__":
    run_script(main)
