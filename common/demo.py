"""Train and evaluate every method on the embedded `digits` set (known 0-5, unknown 6-9) and print one table.

    python -m common.demo
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from pathlib import Path

from common.arguments import ROOT, ScriptParser, run_script
from common.report import write_comparison
from common.results import SHOWN, number

# Run name, folder, flags of main.py, scores and further flags of test.py: a run is trained once and scored in every way.
# OpenMax's tail is 20 of the hundred images a class has here.
METHODS = (
    ("baseline_openmax", "baseline_openmax", [], ["mls", "msp", "energy", "entropy", "margin", "openmax"], []),
    ("crosr", "crosr", ["--preset", "digits"], ["crosr", "openmax", "mls"], ["--tail_size", "20", "--apply_softmax_before"]),
    ("pcssr", "cssr", ["--model", "pcssr"], ["fused", "msp"], []),
    ("rcssr", "cssr", ["--model", "rcssr"], ["fused", "msp"], []),
    ("vmdls", "vmdls", ["--preset", "digits"], ["vmdls", "mean"], []),
)


def run_method(
    folder: str, flags: list[str], scores: list[str], test_flags: list[str], directory: Path
) -> tuple[dict, float]:  # fmt: skip
    """Train and evaluate one method; returns `metrics.json`'s scores and the seconds it took."""
    from importlib import import_module

    begun = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        import_module(f"{folder}.main").main(["--run_dir", str(directory), "--overwrite", *flags])
        import_module(f"{folder}.test").main(["--run_dir", str(directory), "--score", *scores, "--no_report", *test_flags])
    metrics = json.loads((directory / "metrics.json").read_text())["scores"]
    return metrics, time.monotonic() - begun


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(prog="python -m common.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "demo", help="folder of the demo's runs")
    return parser


def main(argv=None) -> None:
    args = get_args_parser().parse_args(argv)
    print("digits (1,797 scans, 8x8): known 0-5, unknown 6-9, seed 0", flush=True)
    columns = [*SHOWN.values(), "seconds"]
    print(f"{'method':28}" + "".join(f"{column:>13}" for column in columns), flush=True)
    for run, folder, flags, scores, test_flags in METHODS:
        metrics, seconds = run_method(folder, flags, scores, test_flags, args.runs / run)
        for position, name in enumerate(scores):
            cells = [number(metrics[name]["all"][key]) for key in SHOWN]
            cells.append(f"{seconds:.1f}" if position == 0 else '"')
            print(f"{run + ' ' + name:28}" + "".join(f"{cell:>13}" for cell in cells), flush=True)
    page = args.runs / "report.html"
    write_comparison([args.runs / run for run, *_ in METHODS], page)
    print(f"report: {page}")
    print(f"runs: {args.runs}   scores.npz, metrics.json, weights.safetensors of each")


if __name__ == "__main__":
    run_script(main)
