"""What each method's training costs beside plain softmax training, measured in one run.

    python benchmarks/methods.py [--recipe laptop] [--rounds 2] [--out results/benchmarks/methods-laptop.json]

The recipe's own training commands (rows.json), on a seeded subset of their data, one after the other and round by round:
whole trainings with all their phases and the statistics that scoring needs, but without held-out images. A cost is a
training's wall time over that of plain softmax training in the same round; the median over rounds is kept. Times are
those of the scripts themselves, so loading Python's libraries does not count. A round of `laptop` takes ten to fifty
minutes on one core.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import head_to_head, ledger, results
from common.arguments import ScriptParser, positive_int, run_script
from common.errors import UserError
from common.reproduce import execute, without


def fields(table: str) -> dict[tuple[str, str], list[ledger.Recipe]]:
    """Runs of a recipe by data set and family of splits, the reference's first; only what several papers entered."""
    found: dict[tuple[str, str], dict[str, ledger.Recipe]] = {}
    for book in ledger.ledgers():
        for row in book.rows:
            for answer in row.answers:
                recipe = answer.recipe
                # What continues a network of the whole data refuses a subset of it.
                compared = answer.method in head_to_head.SCORES[book.paper] and "--start_from" not in recipe.train
                if compared and recipe.table == table:
                    key = recipe.data[0], results.FAMILY.sub(r"\1", recipe.splits[0])
                    found.setdefault(key, {})[recipe.id] = recipe
    several = {key: list(runs.values()) for key, runs in found.items() if len({run.paper for run in runs.values()}) > 1}
    return {key: sorted(runs, key=lambda run: run.paper != head_to_head.REFERENCE[0]) for key, runs in several.items()}


def seconds(recipe: ledger.Recipe, subset: int) -> float:
    """Wall time of one training on a subset, by its own record."""
    job = recipe.jobs()[0]
    with tempfile.TemporaryDirectory() as folder:
        execute([*without(job.train, "--save"), "--run_dir", folder, "--subset", str(subset), "--validation_share", "0"])
        return json.loads((Path(folder) / "meta.json").read_text())["wall_seconds"]


def costs(runs: Iterable[ledger.Recipe], rounds: int, subset: int) -> dict[str, dict]:
    """Cost of each run beside the first, and its seconds in every round; runs take turns."""
    taken: dict[str, list[float]] = {recipe.id: [] for recipe in runs}
    for number in range(rounds):
        for recipe in runs:
            taken[recipe.id].append(seconds(recipe, subset))
            print(f"round {number + 1}/{rounds}  {recipe.id:32} {taken[recipe.id][-1]:7.1f} s", flush=True)
    reference = next(iter(taken.values()))
    return {name: {"cost": statistics.median(own / other for own, other in zip(found, reference)), "seconds": found}
            for name, found in taken.items()}  # fmt: skip


def main(argv=None) -> None:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="laptop", help="the preset whose methods are compared")
    parser.add_argument("--rounds", type=positive_int, default=2, help="how often all of them train")
    parser.add_argument("--subset", type=positive_int, default=2560, help="training images; whole batches of every preset")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(argv)
    compared = fields(args.recipe)
    if not compared:
        raise UserError(f"no recipe {args.recipe!r} that several papers have; laptop and mnist are")
    measured = {}
    for runs in compared.values():
        measured |= costs(runs, args.rounds, args.subset)
    for name, found in measured.items():
        print(f"{name:32} {found['cost']:.2f} times plain softmax training")
    if args.out:
        import torch

        from common.devices import cpu_has_bf16
        from common.files import write_json
        from common.run import code_version

        about = {"threads": os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads(), "bfloat16": cpu_has_bf16(),
                 "capability": torch.backends.cpu.get_cpu_capability()}  # fmt: skip
        command = f"python benchmarks/methods.py --recipe {args.recipe} --rounds {args.rounds} --subset {args.subset}"
        write_json(args.out, {"command": command, "code_version": code_version(), "cpu": about, "torch": torch.__version__,
                              "subset": args.subset, "rounds": args.rounds, "runs": measured})  # fmt: skip


if __name__ == "__main__":
    run_script(main)
