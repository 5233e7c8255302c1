r"""Openness sweep: train with K of N classes known, for several K, and show what each score loses as the world opens.

    python baseline_openmax/openness.py --known_dataset digits --known_counts 2 4 6 8 --save digits-openness
    python baseline_openmax/openness.py --preset laptop --known_counts 2 4 6 8 --draws 3 --save cifar10-openness

Flags that are not its own go to main.py. Each draw orders the classes at random (seeded); its first K are known. Openness is
1 - sqrt(2 C_train / (C_test + C_target)) with C_train = C_target = K and C_test = N (Scheirer et al. 2013).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from common.arguments import ROOT, ScriptParser, positive_int, run_script
from common.errors import UserError

METRICS = ("closed_accuracy", "auroc", "fpr95_known_positive", "oscr", "macro_f1_validation")


def openness(train: int, test: int, target: int | None = None) -> float:
    """Openness of C_train training, C_test test and C_target target classes (default: C_train); 0 = closed, towards 1 = open."""
    target = train if target is None else target
    if not 0 < train <= test:
        raise UserError(f"openness: training classes must be 1 to {test}, got {train}")
    return 1 - (2 * train / (test + target)) ** 0.5


def draws_of(classes: int, count: int, draws: int, seed: int) -> list[list[int]]:
    """`count` known classes for each draw, independent of other seeds' draws.

    With the same seed the known classes of a larger count contain those of a smaller one.
    """
    import numpy as np

    orders = [np.random.RandomState([seed, number]).permutation(classes) for number in range(draws)]
    return [sorted(map(int, order[:count])) for order in orders]


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("--known_counts", nargs="+", type=positive_int, required=True, metavar="K", help="known classes")
    parser.add_argument("--draws", type=positive_int, default=1, help="random choices of the known classes for each K")
    parser.add_argument("--score", nargs="+", default=["mls", "msp"], help="scores of test.py")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choices and of the trainings")
    parser.add_argument("--save", required=True, metavar="NAME", help="table, figure and runs go to runs/baseline_openmax/NAME")
    parser.add_argument("--run_dir", type=Path, help="another folder for them")
    return parser


def main(argv=None) -> None:
    args, passed = get_args_parser().parse_known_args(argv)
    from baseline_openmax import main as train
    from baseline_openmax import test
    from common.datasets import class_count
    from common.files import atomic

    given = train.parse_arguments(passed)
    total = class_count(given.known_dataset)
    too_many = [count for count in args.known_counts if not 2 <= count < total]
    if too_many:
        raise UserError(f"--known_counts must be 2 to {total - 1} for {given.known_dataset}, got {too_many[0]}")
    folder = args.run_dir or ROOT / "runs" / "baseline_openmax" / args.save
    rows = []
    for count in args.known_counts:
        for number, known in enumerate(draws_of(total, count, args.draws, args.seed)):
            run = folder / f"k{count}-{number}"
            split = ",".join(map(str, known))
            where = ["--run_dir", str(run)]
            # A preset's own split is replaced: a flag beside a preset wins. A run that is there must have these flags.
            again = [] if given.overwrite else ["--resume"]
            train.main([*passed, *where, "--split", split, "--seed", str(args.seed), *again])
            test.main([*where, "--score", *args.score, "--no_report", *shared_flags(given)])
            evaluated = run / "dry_run" if given.dry_run else run
            found = json.loads((evaluated / "metrics.json").read_text())["scores"]
            for score in args.score:
                values = found[score]["all"]
                rows.append({"known": count, "draw": number, "classes": split, "openness": round(openness(count, total), 6),
                             "score": score, **{name: values[name] for name in METRICS}})  # fmt: skip
    with atomic(folder / "openness.csv") as partial, open(partial, "w", newline="") as target:
        writer = csv.DictWriter(target, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, folder / "openness.png")
    print(f"written: {folder / 'openness.csv'}, openness.png")


def shared_flags(given) -> list[str]:
    """Flags of the training that the evaluation needs too: where the data is, and the device."""
    flags = ["--device", given.device]
    for flag in ("data_dir", "gpu"):
        if getattr(given, flag) is not None:
            flags += [f"--{flag}", str(getattr(given, flag))]
    return flags + (["--dry_run"] if given.dry_run else [])


def draw(rows: list[dict], path: Path) -> None:
    """AUROC and OSCR against openness, one line per score: mean of the draws, with their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for axis, metric, label in zip(axes, ("auroc", "oscr"), ("AUROC", "OSCR")):
        for score in dict.fromkeys(row["score"] for row in rows):
            points: dict[float, list[float]] = {}
            for row in rows:
                if row["score"] == score:
                    points.setdefault(row["openness"], []).append(row[metric])
            x = sorted(points)
            mean = [sum(points[value]) / len(points[value]) for value in x]
            axis.plot(x, mean, marker="o", label=score)
            axis.fill_between(x, [min(points[v]) for v in x], [max(points[v]) for v in x], alpha=0.2)
        axis.set(xlabel="openness 1 - sqrt(2 K / (N + K))", ylabel=label)
        axis.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    run_script(main)
