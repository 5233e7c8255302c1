"""Tables of the runs of `run.sh`: a metric of the last epoch, and of the best one, which the test set selected.

    python cssr/collect_metrics.py
    python cssr/collect_metrics.py --metric open_reco.macro_f1 --datasets digits --splits a
"""

from __future__ import annotations

import json
from pathlib import Path

from common.arguments import ROOT, ScriptParser, run_script
from common.errors import UserError

METHODS = ("linear", "pcssr", "rcssr")
DATASETS = ("cifar10", "svhn", "tinyimagenet")
SPLITS = ("a", "b", "c", "d", "e")
LAST, BEST = "Last Epoch", "Best Epoch (selected on the test set)"


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "cssr", metavar="DIR", help="folder of the runs")
    parser.add_argument("--metric", default="open_detection.auroc", help="key of hist.json; parts with dots between them")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="models")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), help="data sets")
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), help="splits")
    return parser


def values_of(path: Path, metric: str) -> dict[str, float | None]:
    """Last and best value of a metric in a `hist.json`, None where there is none."""
    from cssr.history import last_and_best

    if not path.exists():
        return dict.fromkeys((LAST, BEST))
    try:
        return dict(zip((LAST, BEST), last_and_best(json.loads(path.read_text()), metric)))
    except (ValueError, AttributeError):
        raise UserError(f"{path} is no hist.json: expected a JSON list with an entry for each epoch") from None


def number(value: float | None) -> str:
    """Four decimals, `-` for what is not there."""
    return "-" if value is None else f"{value:.4f}"


def table(args, dataset: str, epoch: str) -> list[str]:
    """Lines of one table: the average over the splits that are there, then each split."""
    lines = ["\t".join(("method", "average", *args.splits))]
    for method in args.methods:
        paths = [args.runs / f"{method}_{dataset}_{split}" / "hist.json" for split in args.splits]
        values = [values_of(path, args.metric)[epoch] for path in paths]
        present = [value for value in values if value is not None]
        average = number(sum(present) / len(present) if present else None)
        short = "" if len(present) in (0, len(values)) else f" (of {len(present)})"
        lines.append("\t".join((method, average + short, *map(number, values))))
    return lines


def main(argv=None) -> None:
    args = get_args_parser().parse_args(argv)
    for epoch in (LAST, BEST):
        for dataset in args.datasets:
            print(f"{epoch}: {args.metric} on {dataset}")
            print("\n".join(table(args, dataset, epoch)), end="\n\n")


if __name__ == "__main__":
    run_script(main)
