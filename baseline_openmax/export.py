"""Export evaluated runs: a CSV with OpenOOD's columns, or the files and names of deep-osr.

    python baseline_openmax/export.py openood NAME [NAME ...] --out table.csv
    python baseline_openmax/export.py deep-osr RUN        # RUN/eval_outputs/metrics_<RUN>.json, scores_<RUN>.npz
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.arguments import ScriptParser, run_script

PAPER = "baseline_openmax"
OPENOOD = ("dataset", "FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "CCR_4", "CCR_3", "CCR_2", "CCR_1", "ACC")


def openood_rows(scores, method: str = "") -> list[dict]:
    """One row per unknown set, in percent, under OpenOOD's names.

    Notes
    -----
    FPR@95 is OpenOOD's: unknown positive, the share of knowns rejected where 95 % of the unknowns are. AUPR_IN has the knowns
    positive. AUPR is average precision (steps) here and the trapezoid there; CCR_n is the rate at an unknown FPR of 1e-n.
    """
    from common import metrics

    rows = []
    for source, part in metrics.by_unknown_source(scores):
        t, p, u = (scores[key][part] for key in ("target", "prediction", "unknown_score"))
        values = [metrics.fpr95_unknown_positive(t, u), metrics.auroc(t, u), metrics.aupr_known(t, u), metrics.aupr_unknown(t, u)]
        values += [metrics.ccr_at_fpr(t, p, u, 10.0**-n) for n in (4, 3, 2, 1)]
        values.append(metrics.closed_accuracy(t, p))
        name = source + (f" {method}" if method else "")
        rows.append(dict(zip(OPENOOD, [name, *(f"{100 * value:.2f}" for value in values)])))
    return rows


def write_openood(runs: Sequence[str], out: Path) -> None:
    """Write the table of several runs, every score of each, atomically."""
    from common.files import atomic
    from common.plots.reading import read_run

    rows = []
    for where in runs:
        run = read_run(where, PAPER)
        for name, scores in run.scores.items():
            rows += [{"run": run.folder.name, "score": name} | row for row in openood_rows(scores)]
    with atomic(out) as partial, open(partial, "w", newline="") as target:
        writer = csv.DictWriter(target, ("run", "score", *OPENOOD))
        writer.writeheader()
        writer.writerows(rows)


def deep_osr_metrics(scores) -> dict:
    """The five numbers of deep-osr under its names, with the polarity that the names say (its program has AUPR exchanged).

    `u_recall_at_95_seen_prec` comes as the triple of unknown recall, known recall and seen precision; NaN where no threshold
    reaches it. The monotone `u_recall_at_95_seen_recall` stands beside it.
    """
    from common import metrics
    from common.inference import TEST

    test = scores["split"] == TEST
    target, prediction, u = scores["target"][test], scores["prediction"][test], scores["unknown_score"][test]
    point = metrics.seen_precision_point(target, u)
    return {
        "acc_known": metrics.closed_accuracy(target, prediction),
        "auroc": metrics.auroc(target, u),
        "aupr_in": metrics.aupr_known(target, u),
        "aupr_out": metrics.aupr_unknown(target, u),
        "u_recall_at_95_seen_prec": list(map(float, point[:3])),
        "u_recall_at_95_seen_recall": 1 - metrics.fpr95_known_positive(target, u),
    }


def temperature_of(folder: Path) -> float:
    """The calibrated temperature of a run, of its best weights for `RUN/best`; 1 where there is none."""
    from baseline_openmax.calibration import stored_temperature
    from baseline_openmax.selection import best_of_run
    from common.checkpoints import load_weights

    best = best_of_run(folder.resolve())
    header = {} if best is None else load_weights(best, paper=PAPER)[1]
    return stored_temperature(header, folder) or 1.0


def write_deep_osr(where: str) -> Path:
    """Write `eval_outputs/metrics_<RUN>.json` and `scores_<RUN>.npz` (probs, y_true, is_known, osr_scores, feats) of a run."""
    from baseline_openmax.scores import log_softmax
    from common.files import atomic, write_json
    from common.inference import TEST
    from common.plots.reading import pick, read_run

    run = read_run(where, PAPER)
    scores, name = pick(run, None), run.folder.name
    folder = run.folder / "eval_outputs"
    folder.mkdir(exist_ok=True)
    test = scores["split"] == TEST
    arrays = {"y_true": scores["target"][test], "is_known": scores["target"][test] >= 0,
              "osr_scores": scores["unknown_score"][test]}  # fmt: skip
    if "logits" in scores:
        temperature = temperature_of(run.folder)
        arrays["probs"] = np.exp(log_softmax(scores["logits"][test].astype(np.float64) / temperature))
    if "features" in scores:
        arrays["feats"] = scores["features"][test]
    with atomic(folder / f"scores_{name}.npz") as partial, open(partial, "wb") as target:
        np.savez_compressed(target, **arrays)
    write_json(folder / f"metrics_{name}.json", deep_osr_metrics(scores))
    return folder


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("form", choices=("openood", "deep-osr"), help="CSV with OpenOOD's columns, or deep-osr's files")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="evaluated runs: directories or names")
    parser.add_argument("--out", type=Path, help="openood: the CSV file; else openood.csv in the first run")
    return parser


def main(argv=None) -> None:
    args = get_args_parser().parse_args(argv)
    from common.plots.reading import read_run

    if args.form == "deep-osr":
        for where in args.runs:
            print(f"written: {write_deep_osr(where)}")
        return
    out = args.out or read_run(args.runs[0], PAPER).folder / "openood.csv"
    write_openood(args.runs, out)
    print(f"written: {out}")


if __name__ == "__main__":
    run_script(main)
