r"""Compare recipes without any unknown class: leave some known classes out of the training and score them as unknown.

    python baseline_openmax/tuning.py --candidates label_smoothing=0.1 rate=0.1,max_epochs=30 --save digits-tuning
    python baseline_openmax/tuning.py --preset laptop --candidates label_smoothing=0 --save laptop-tuning

Flags that are not its own go to main.py and make the first recipe; a candidate changes some of them. Known for the comparison
are held-out images of the classes trained on, unknown the training images of those left out: the split's test images and
unknown classes are never read. Runs that are there are kept.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from common.arguments import ROOT, ScriptParser, positive_int, run_script
from common.errors import UserError

BASE = "as-given"
FIELDS = ("candidate", "draw", "left_out", "score", "auroc", "closed_accuracy", "train_minutes")


def flags_of(candidate: str) -> list[str]:
    """main.py's flags of `label_smoothing=0,average_weights`: a name alone is a flag without value."""
    flags = []
    for word in filter(None, candidate.split(",")):
        name, equals, value = word.partition("=")
        if not re.fullmatch(r"[a-z]\w*", name) or bool(equals) != bool(value):
            raise UserError(f"--candidates expects NAME=VALUE,NAME=VALUE,... of main.py's flags, got {word!r}")
        flags += [f"--{name}", value] if equals else [f"--{name}"]
    return flags


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("--candidates", nargs="+", required=True, metavar="NAME=VALUE,...", help="changes of main.py's flags")
    parser.add_argument("--left_out", type=positive_int, default=2, metavar="N", help="known classes that are left out")
    parser.add_argument("--draws", type=positive_int, default=1, help="random choices of the classes that are left out")
    parser.add_argument("--score", nargs="+", default=["mls", "msp"], help="scores of test.py that need no fitting")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choices and of the trainings")
    parser.add_argument("--save", required=True, metavar="NAME", help="table and runs go to runs/baseline_openmax/NAME")
    parser.add_argument("--run_dir", type=Path, help="another folder for them")
    parser.add_argument("--record", metavar="NAME", help="write results/tuning/NAME.json, to be committed")
    return parser


def main(argv=None) -> None:
    args, passed = get_args_parser().parse_known_args(argv)
    from baseline_openmax import main as train
    from baseline_openmax.openness import draws_of
    from common.datasets import find_split
    from common.files import atomic, write_json
    from common.run import code_version, command_line

    recipes = {candidate: [*passed, *flags_of(candidate)] for candidate in ("", *args.candidates)}
    given = {candidate: train.parse_arguments(flags) for candidate, flags in recipes.items()}
    first = given[""]
    split = find_split(first.known_dataset, first.split, first.data_dir)
    if any((other.known_dataset, other.split) != (first.known_dataset, first.split) for other in given.values()):
        raise UserError("candidates must not change --known_dataset or --split: the images would differ")
    if not 1 <= args.left_out <= len(split.known) - 2:
        raise UserError(f"--left_out must be 1 to {len(split.known) - 2} for {split.name}, got {args.left_out}")
    folder = args.run_dir or ROOT / "runs" / "baseline_openmax" / args.save
    rows = []
    for number, kept in enumerate(draws_of(len(split.known), len(split.known) - args.left_out, args.draws, args.seed)):
        trained = [split.known[index] for index in kept]
        left_out = sorted(set(split.known) - set(trained))
        for candidate, flags in recipes.items():
            name = re.sub(r"[^\w.]+", "-", candidate) or BASE
            run = folder / f"{name}-{number}"
            again = [] if first.overwrite else ["--resume"]
            train.main([*flags, "--split", ",".join(map(str, trained)), "--seed", str(args.seed), "--run_dir", str(run), *again])
            evaluated = run / "dry_run" if first.dry_run else run
            found = scored(evaluated, args.score, given[candidate], trained, left_out, args.seed)
            rows += [{"candidate": candidate or BASE, "draw": number, "left_out": ",".join(map(str, left_out)), **row}
                     for row in found]  # fmt: skip
    with atomic(folder / "tuning.csv") as partial, open(partial, "w", newline="") as target:
        writer = csv.DictWriter(target, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))
    print(f"written: {folder / 'tuning.csv'}")
    if args.record:
        path = ROOT / "results" / "tuning" / f"{args.record}.json"
        command = command_line("baseline_openmax/tuning.py", argv)
        write_json(path, {"command": command, "code_version": code_version(), "split": split.name, "rows": rows})
        print(f"written: {path}")


def scored(run: Path, scores, given, trained: list[int], left_out: list[int], seed: int) -> list[dict]:
    """AUROC of each score, with closed accuracy and minutes: held-out images of `trained` against training ones of `left_out`."""
    import numpy as np

    from baseline_openmax.api import Detector
    from common.datasets import prepare
    from common.metrics import auroc

    if not given.validation_share:
        raise UserError("tuning needs held-out known images: --validation_share must be more than 0")
    same = {"root": given.data_dir, "seed": seed, "subset": 64 if given.dry_run else given.subset}
    known = prepare(given.known_dataset, trained, (), validation_share=given.validation_share, **same).validation
    unknown = prepare(given.known_dataset, left_out, (), validation_share=0.0, **same).train
    minutes = sum(json.loads(line)["seconds"] for line in (run / "log.jsonl").read_text().splitlines()) / 60
    rows = []
    for score in scores:
        detector = Detector(run, score, device=given.device)
        outputs = detector.outputs(known.pixels), detector.outputs(unknown.pixels)
        values = np.concatenate([detector.score_outputs(each) for each in outputs])
        target = np.concatenate((known.labels, np.full(len(unknown), -1)))
        accuracy = float((outputs[0]["logits"].argmax(1) == known.labels).mean())
        rows.append({"score": score, "auroc": auroc(target, values), "closed_accuracy": accuracy, "train_minutes": minutes})
    return rows


def table(rows: list[dict]) -> str:
    """Means over the draws as text, one line for each candidate and score."""
    width = max(len(row["candidate"]) for row in rows)
    lines = [f"{'candidate':{width}} {'score':8} {'AUROC':>7} {'accuracy':>9} {'minutes':>8}"]
    for candidate, score in dict.fromkeys((row["candidate"], row["score"]) for row in rows):
        own = [row for row in rows if (row["candidate"], row["score"]) == (candidate, score)]
        auroc, accuracy, minutes = (sum(row[name] for row in own) / len(own) for name in FIELDS[-3:])
        lines.append(f"{candidate:{width}} {score:8} {auroc:7.4f} {accuracy:9.4f} {minutes:8.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
