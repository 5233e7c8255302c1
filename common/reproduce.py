"""Every published row, one command each, and what came of it.

    python -m common.reproduce list [--paper cssr] [--table 1] [--data mnist] [--rows]
    python -m common.reproduce run laptop-cifar10-rcssr [--splits cssr-a] [--seeds 0,1,2] [--time_limit 60]
    python -m common.reproduce run --open --time_limit 600      # most valuable first; repeat the command to go on
    python -m common.reproduce table                            # results/README.md, results/*.csv, README tables, figure
    python -m common.reproduce run mnist-rcssr --splits cssr-a --again    # train it anew here and compare with the record
    python -m common.reproduce verify mnist-rcssr               # the committed checkpoint must give its record's numbers
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ledger, results, staleness
from common.arguments import ROOT, ScriptParser, run_script
from common.errors import TimeUp, UserError, nearest
from common.files import write_json

NEXT_SPLIT = 0.85  # a further split or seed is worth this much of the one before
# Half precision moves a stored network's scores a little; measured differences are below a third of this.
TOLERANCE = {"closed_accuracy": 0.002, "auroc": 0.003, "oscr": 0.003}
# Another machine rounds otherwise, and a training then ends about as far away as one with another seed: VMDLS's three seeds of
# MNIST differ by this much.
TOLERANCE_OF_TRAINING = {"closed_accuracy": 0.017, "auroc": 0.022, "oscr": 0.026}
AGAIN = "-again"


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(prog="python -m common.reproduce", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="action", required=True, parser_class=ScriptParser)
    listing = commands.add_parser("list", help="runs and where they stand; --rows: published rows")
    listing.add_argument("--rows", action="store_true", help="one line for each published row instead of each run")
    running = commands.add_parser("run", help="train and evaluate runs whose records are missing")
    running.add_argument("ids", nargs="*", metavar="ID", help="runs, or rows (all runs that answer them)")
    running.add_argument("--open", action="store_true", help="all open runs, most valuable first")
    running.add_argument("--stale", action="store_true", help="run again what is stale, too")
    running.add_argument("--again", action="store_true",
                         help=f"train recorded runs anew (as RUN{AGAIN}) and compare with their records, which stay as they are;"
                         " writes results/reruns/RUN.json")
    running.add_argument("--time_limit", type=float, metavar="MINUTES", help="stop after this long, to be repeated")
    running.add_argument("--resume", action="store_true", help="always done: an interrupted run goes on where it stopped")
    running.add_argument("--device", help="passed on to the scripts")
    running.add_argument("--shard", metavar="I/N", default="0/1", help="part I of N of the jobs, counted from 0")
    running.add_argument("--seeds", type=numbers, metavar="0,1,2", help="these seeds instead of the run's own")
    running.add_argument("--splits", type=lambda text: text.split(","), metavar="A,B", help="these splits only")
    running.add_argument("--kind", choices=("cpu", "gpu"), help="only runs meant for it")
    running.add_argument("--dry_run", action="store_true", help="start every script with one small batch; records nothing")
    verifying = commands.add_parser("verify", help="compare committed checkpoints with their records")
    verifying.add_argument("ids", nargs="+", metavar="ID", help="runs or rows")
    for each in (listing, running, verifying):
        each.add_argument("--data_dir", type=Path, help="where data sets are; else $OSR_DATA_DIR, else data/")
    for each in (listing, running):
        each.add_argument("--paper", choices=ledger.papers(), help="one paper folder only")
        each.add_argument("--table", help="one published table only (as in --rows)")
        each.add_argument("--data", help="one known data set only")
    commands.add_parser("table", help="write results/README.md, results/*.csv, the README tables and the figure")
    commands.add_parser("check", help="exit code 1 when a generated file differs from its records")
    return parser


def numbers(text: str) -> list[int]:
    """`0,1,2` as integers."""
    return [int(part) for part in text.split(",")]


def chosen_recipes(args, ids=()) -> list[tuple[ledger.Ledger, ledger.Recipe]]:
    """Recipes that the flags and ids name, in the order of the files.

    Raises
    ------
    UserError
        An id that is neither a run nor a row.
    """
    pairs, left = [], set(ids)
    for book in ledger.ledgers([args.paper] if getattr(args, "paper", None) else None):
        wanted = left_in(book, ids)
        left -= wanted["ids"]
        for recipe in book.recipes.values():
            rows = [row for row in book.rows if any(answer.recipe is recipe for answer in row.answers)]
            if ids and recipe.id not in wanted["recipes"]:
                continue
            if getattr(args, "table", None) and all(row.table != args.table for row in rows):
                continue
            if getattr(args, "data", None) and recipe.data[0] != args.data:
                continue
            pairs.append((book, recipe))
    if left:
        name = sorted(left)[0]
        known = [key for book in ledger.ledgers() for key in (*book.recipes, *(row.id for row in book.rows))]
        raise UserError(f"no run or row {name!r}{nearest(name, known)}; python -m common.reproduce list shows them")
    return pairs


def left_in(book: ledger.Ledger, ids) -> dict[str, set]:
    """The ids that a folder knows, and the recipes they mean."""
    found, recipes = set(), set()
    for name in ids:
        if name in book.recipes:
            found.add(name)
            recipes.add(name)
        for row in book.rows:
            if row.id == name:
                found.add(name)
                recipes |= {answer.recipe.id for answer in row.answers}
    return {"ids": found, "recipes": recipes}


def answers_of(book: ledger.Ledger, recipe: ledger.Recipe) -> list[ledger.Answer]:
    """What rows ask of a recipe, each once."""
    return list(dict.fromkeys(answer for row in book.rows for answer in row.answers if answer.recipe is recipe))


def list_runs(args) -> None:
    """Print each run: state, minutes, worth, what it is for."""
    print(f"{'run':34} {'paper':17} {'state':38} {'kind':4} {'min.':>6}  {'worth':>5}  reason")
    for book, recipe in chosen_recipes(args):
        states = [staleness.state(answers_of(book, recipe), job, book.code, args.data_dir) for job in recipe.jobs()]
        counted = {}
        for name, _ in states:
            counted[name] = counted.get(name, 0) + 1
        shown = ", ".join(f"{count} {name}" if len(states) > 1 else name for name, count in counted.items())
        reason = next((text for _, text in states if text), "")
        print(f"{recipe.id:34} {recipe.paper:17} {shown:38} {recipe.device:4} {recipe.minutes * len(states):6.0f}"
              f"  {recipe.worth:5g}  {reason}")  # fmt: skip


def list_rows(args) -> None:
    """Print each published row: value, certainty, ours, verdict."""
    from common.comparison import compared

    total = 0
    print(f"{'row':46} {'published':>9} {'ours':>14}  verdict")
    for book in ledger.ledgers([args.paper] if args.paper else None):
        for row in book.rows:
            if (args.table and row.table != args.table) or (args.data and row.known != args.data):
                continue
            found = compared(row, frozenset(book.data_missing))
            total += 1
            print(f"{row.paper + '/' + row.id:46} {results.number(row.published):>9} {found.ours:>14}  {found.verdict}")
    print(f"{total} rows")


def jobs_to_run(args) -> list[tuple[ledger.Ledger, ledger.Job]]:
    """Jobs without a record (or stale ones, when asked), most valuable first, of this shard."""
    if bool(args.ids) == args.open:
        raise UserError("name runs or rows, or give --open for all that are open")
    if args.again and args.open:
        raise UserError("--again compares with records: name runs or rows that have some, without --open")
    part, parts = shard(args.shard)
    jobs = []
    for book, recipe in chosen_recipes(args, args.ids):
        if args.kind and recipe.device != args.kind:
            continue
        for number, job in enumerate(recipe.jobs(args.seeds)):
            if args.splits and job.split not in args.splits:
                continue
            jobs.append((recipe.worth * NEXT_SPLIT**number, book, job))
    jobs.sort(key=lambda entry: -entry[0])
    chosen = []
    # Shards are made of all jobs, not of the open ones: what other machines have finished meanwhile moves no job elsewhere.
    for _, book, job in jobs[part::parts]:
        found, reason = staleness.state(answers_of(book, job.recipe), job, book.code, args.data_dir)
        if found == "data missing":
            print(f"{job.name}: data missing ({reason})", flush=True)
        elif args.again and not args.dry_run:
            if found == "open":
                print(f"{job.name}: no record to compare with", flush=True)
            else:
                chosen.append((book, job))
        elif found == "open" or args.dry_run or (found == "stale" and args.stale):
            chosen.append((book, job))
        elif args.ids:
            hint = " (--stale runs it again)" if found == "stale" else ""
            print(f"{job.name}: {found} {reason}".rstrip() + hint, flush=True)
    if not jobs:
        print("no run has these splits, tables and data", flush=True)
    return chosen


def shard(text: str) -> tuple[int, int]:
    """`I/N` as two integers."""
    try:
        part, parts = (int(value) for value in text.split("/"))
    except ValueError:
        part, parts = -1, 0
    if not 0 <= part < parts:
        raise UserError(f"--shard wants I/N with I from 0 to N - 1, got {text!r}")
    return part, parts


def run_jobs(args) -> None:
    """Train and evaluate; what was interrupted goes on, what is finished is not trained again."""
    begun, failed, differing, left = time.monotonic(), [], [], None
    for book, job in jobs_to_run(args):
        left = None if args.time_limit is None else args.time_limit - (time.monotonic() - begun) / 60
        if left is not None and left <= 0:
            break
        again = args.again or args.dry_run
        if not again and staleness.state(answers_of(book, job.recipe), job, book.code, args.data_dir)[0] == "done":
            continue  # another process was faster
        passed_on = ["--device", args.device] if args.device else []
        passed_on += ["--data_dir", str(args.data_dir)] if args.data_dir else []
        print(f"== {job.name}", flush=True)
        try:
            if args.dry_run:
                start_job(job, passed_on)
            elif not run_job(args, book, job, left, passed_on):
                differing.append(job.name)
        except TimeUp:
            left = 0.0
            break
        except UserError as error:
            print(f"failed: {error}", file=sys.stderr, flush=True)
            failed.append(job.name)
    if failed:
        raise UserError(f"{len(failed)} run(s) failed, their own messages are above: {', '.join(failed)}")
    if differing:
        raise UserError(f"{len(differing)} run(s) differ from their records, by what is said above: {', '.join(differing)}")
    if left is not None and left <= 0:
        raise TimeUp("time limit reached; repeat the command to go on")


def start_job(job: ledger.Job, passed_on: list[str]) -> None:
    """Start every script of a job with one small batch, in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        place = ["--run_dir", f"{folder}/run", "--dry_run", *passed_on]
        train, test = without(job.train, "--save"), without(without(job.test, "--save"), "--record")
        for number, (directory, command) in enumerate(job.before):
            beside = f"{folder}/before-{number}"
            execute([*without(command, "--save"), "--run_dir", beside, "--dry_run", *passed_on])
            train, test = (renamed(words, directory.name, beside) for words in (train, test))
        execute([*train, *place])
        execute([*test, *place])


def run_job(args, book: ledger.Ledger, job: ledger.Job, left: float | None, passed_on: list[str]) -> bool:
    """Train and evaluate one job, within the minutes that are left; False if it was to be as recorded and is not."""
    train, test, own = job.train, job.test, job.directory()
    if args.again:
        own = own.with_name(job.name + AGAIN)
        train, test = (renamed(words, job.name, own.name) for words in (train, without(test, "--record")))
    if (args.stale or args.again) and begun_otherwise(own, job, book.code):
        shutil.rmtree(own)
    begun = time.monotonic()
    for directory, command in [*job.before, (own, train)]:
        if finished(directory):
            continue
        limit = ["--time_limit", f"{left - (time.monotonic() - begun) / 60:.2f}"] if left is not None else []
        execute([*command, "--resume", *limit, *passed_on])
        if not finished(directory):
            raise TimeUp("time limit reached")
    execute([*test, *passed_on])
    if not args.again:
        return True
    found, now = records_of(book, job), json.loads((own / "metrics.json").read_text())["scores"]
    write_json(ROOT / "results" / "reruns" / f"{job.name}.json", rerun(own, found, now))
    return compared_with_records(job.name, found, now, TOLERANCE_OF_TRAINING)


def rerun(directory: Path, found: list[dict], now: dict[str, dict]) -> dict:
    """Where a recorded run was trained, where anew, and what each metric is now minus what it was, by score and unknown set."""
    meta = json.loads((directory / "meta.json").read_text())
    moved = {entry["method"]: {source: {name: round(again[source][name] - values[name], 6) for name in TOLERANCE_OF_TRAINING
                                        if None not in (again[source][name], values[name])}
                               for source, values in entry["metrics"].items()}
             for entry in found for again in [now[entry.get("score", entry["method"])]]}  # fmt: skip
    where = ("device_name", "precision", "threads", "code_version")
    return {"recorded": {name: found[0][name] for name in where}, "again": {name: meta[name] for name in where},
            "command": meta["command"], "now_minus_recorded": moved}  # fmt: skip


def begun_otherwise(directory: Path, job: ledger.Job, code) -> bool:
    """Whether a directory holds a training that the job's recipe would do otherwise today: other flags, start or program."""
    from common.run import FREE_FLAGS

    config, meta = (directory / name for name in ("config.json", "meta.json"))
    if not (config.exists() and meta.exists()):
        return False
    about = json.loads(meta.read_text())
    flags = {name: value for name, value in json.loads(config.read_text()).items() if name not in FREE_FLAGS}
    found = about | {"flags": flags, "paper": job.recipe.paper}
    return bool(staleness.changed_training(found, job, code))


def finished(directory: Path) -> bool:
    """Whether the run in a directory has been trained to its end."""
    meta = directory / "meta.json"
    return meta.exists() and json.loads(meta.read_text()).get("finished", False)


def without(command: list[str], flag: str) -> list[str]:
    """A command without a flag and its value."""
    if flag not in command:
        return command
    place = command.index(flag)
    return command[:place] + command[place + 2 :]


def renamed(command: list[str], name: str, other: str) -> list[str]:
    """A command in which a run has another name."""
    return [other if word == name else word for word in command]


def execute(command: list[str]) -> None:
    """Run one of our scripts as a user does; a failure is a `UserError` with its command."""
    done = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], cwd=ROOT, check=False)
    if done.returncode:
        raise UserError(f"exit code {done.returncode}: python {' '.join(command)}")


def records_of(book: ledger.Ledger, job: ledger.Job) -> list[dict]:
    """The records of a job that rows ask for, each once."""
    found = [entry for answer in answers_of(book, job.recipe) if (entry := ledger.record(answer, job))]
    return list({entry["path"]: entry for entry in found}.values())


def verify(args) -> None:
    """Evaluate committed checkpoints anew and compare with their records; exit code 1 when one differs."""
    from common.checkpoints import read_manifest

    manifest, checked, broken = read_manifest(), 0, 0
    for book, recipe in chosen_recipes(args, args.ids):
        for job in recipe.jobs():
            found = records_of(book, job)
            name = next((key for key, entry in manifest.items()
                         if found and entry.get("trained_sha256") in found[0]["checkpoint_sha256"]), None)  # fmt: skip
            if name is None:
                continue
            checked += 1
            with tempfile.TemporaryDirectory() as folder:
                flags = without(without(job.test, "--save"), "--record")
                data = ["--data_dir", str(args.data_dir)] if args.data_dir else []
                execute([*flags, "--checkpoint_path", name, "--run_dir", folder, "--no_report", *data])
                again = json.loads((Path(folder) / "metrics.json").read_text())["scores"]
            broken += not compared_with_records(name, found, again, TOLERANCE)
    if not checked:
        raise UserError("none of these runs has both a record and a committed checkpoint")
    sys.exit(1 if broken else 0)


def compared_with_records(name: str, found: list[dict], now: dict[str, dict], tolerance: dict[str, float]) -> bool:
    """Print what differs between records and the metrics of each score now; True if all are within the tolerance."""
    broken = False
    for entry in found:
        problems, largest = differences(entry["metrics"], now[entry.get("score", entry["method"])], tolerance)
        as_recorded = f"as recorded; largest difference {largest}" if largest else "as recorded, to the digit"
        print(f"{name}: {entry['method']} {'; '.join(problems) or as_recorded}", flush=True)
        broken |= bool(problems)
    return not broken


def differences(recorded: dict, found: dict, tolerance: dict[str, float]) -> tuple[list[str], str]:
    """Metrics that differ by more than the tolerance, and the largest difference of any of them (empty: none)."""
    cells = [(_apart(values[metric], found[source][metric]), metric, source)
             for source, values in recorded.items() for metric in tolerance]  # fmt: skip
    problems = [
        f"{metric} against {source}: recorded {results.number(recorded[source][metric], 4)}, now"
        f" {results.number(found[source][metric], 4)} (more than {tolerance[metric]:g} apart)"
        for difference, metric, source in cells
        if difference > tolerance[metric]
    ]
    most, metric, source = max(cells)
    return problems, f"{most:.1g} ({metric} against {source})" if most else ""


def _apart(then: float | None, now: float | None) -> float:
    """Difference of two values of a metric; a value that is defined on one side only is infinitely far away."""
    if then is None or now is None:
        return 0.0 if then is now else float("inf")
    return abs(then - now)


def main(argv=None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.action == "list":
        (list_rows if args.rows else list_runs)(args)
    elif args.action == "run":
        run_jobs(args)
    elif args.action == "verify":
        verify(args)
    else:
        from common.comparison import check, write

        (write if args.action == "table" else check)()


if __name__ == "__main__":
    run_script(main)
