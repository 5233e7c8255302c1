"""The rows that the papers published, the runs that reproduce them, and where each stands.

Every paper folder has a `rows.json`:

* `code`: files whose program (comments and docstrings aside) the numbers depend on, those of `training` and of `scoring`;
* `sources`: where published values were read, and how sure that is (`CERTAINTIES`);
* `runs`: a training and an evaluation command with the places `{split} {seed} {name}`, the splits and seeds they are
  repeated for, the data they need, minutes a run, and their worth (larger = earlier); `before`: commands whose runs
  (`--save NAME`) the evaluation needs too and that all its runs share;
* `tables`: titles of the published tables; `data_missing`: sets nobody had when the records were made;
* `rows`: one published value each (or none), the metric it is, and the records that answer it.
"""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path

from common import results
from common.arguments import ROOT
from common.errors import UserError, nearest

PAPERS = ("crosr", "cssr", "vmdls", "baseline_openmax")
REBUILT = " (rebuilt)"
EARLIER = " (earlier flags)"
# A rerun counts as reproduced inside its own 95 % interval or within this much of the published value.
MARGIN = {"auroc": 0.01, "closed_accuracy": 0.01, "oscr": 0.01}
OTHER_MARGIN = 0.02
# Spelt in several ways; what they mean is in the record's own fields and in the other flags.
SPELT = {"preset", "known_dataset", "split", "ds", "config"}
# Read in the paper or a transcription; in a later one; in a released program's pages and files; computed from those files;
# from memory; nowhere, as it is a row of this repository.
CERTAINTIES = ("paper", "quoted by", "program", "recomputed", "recalled", "no paper")


@dataclass(frozen=True)
class Recipe:
    """One entry of `runs`: commands that are repeated over splits and seeds."""

    paper: str
    id: str
    train: str
    test: str
    table: str
    data: tuple[str, ...]
    splits: tuple[str, ...]
    seeds: tuple[int, ...]
    device: str
    minutes: float
    worth: float
    note: str = ""
    before: tuple[str, ...] = ()

    def jobs(self, seeds: Iterable[int] | None = None) -> list[Job]:
        """Return its runs, splits outermost."""
        return [Job(self, split, seed) for split in self.splits for seed in (seeds or self.seeds)]


@dataclass(frozen=True)
class Job:
    """One training run and its evaluation."""

    recipe: Recipe
    split: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.recipe.id}-{self.split}-s{self.seed}".replace("/", "-")

    @property
    def train(self) -> list[str]:
        return self._filled(self.recipe.train)

    @property
    def test(self) -> list[str]:
        return self._filled(self.recipe.test)

    def _filled(self, command: str) -> list[str]:
        places = {"{split}": self.split, "{seed}": str(self.seed), "{name}": self.name}
        for place, value in places.items():
            command = command.replace(place, value)
        return shlex.split(command)

    def directory(self) -> Path:
        return ROOT / "runs" / self.recipe.paper / self.name


@dataclass(frozen=True)
class Answer:
    """Where a row's own value is found: a recipe's records, of one method, against one unknown set."""

    recipe: Recipe
    method: str
    unknown: str

    def record_file(self, job: Job) -> Path:
        data = self.recipe.data[0]
        return results.record_path(self.recipe.paper, self.recipe.table, data, self.method, job.split, job.seed)


@dataclass
class Row:
    """One published number and the records that answer it."""

    paper: str
    id: str
    table: str
    label: str
    known: str
    unknown: str
    metric: str
    published: float | None
    source: str
    certainty: str
    answers: list[Answer] = field(default_factory=list)
    reason: str = ""


@dataclass
class Ledger:
    """All rows and recipes of one paper folder."""

    paper: str
    code: dict[str, list[str]]
    sources: dict[str, dict]
    tables: dict[str, str]
    recipes: dict[str, Recipe]
    rows: list[Row]
    data_missing: list[str]


def read(paper: str, path: Path | None = None) -> Ledger:
    """Read and check the `rows.json` of a paper folder.

    Raises
    ------
    UserError
        No such file, an unknown field, a row that names a recipe or source that is not there, or a repeated id.
    """
    path = path or ROOT / paper / "rows.json"
    if not path.exists():
        raise UserError(f"{paper} has no rows.json; papers with rows: {', '.join(papers()) or 'none'}")
    stored = json.loads(path.read_text())
    recipes = {}
    for name, entry in stored["runs"].items():
        lists = {key: tuple(entry.get(key, ())) for key in ("data", "splits", "seeds", "before")}
        recipes[name] = Recipe(paper=paper, id=name, **{**entry, **lists})
    rows, seen = [], set()
    for entry in stored["rows"]:
        where = f"{path.name}, row {entry['id']}"
        if entry["id"] in seen:
            raise UserError(f"{where}: the id is used twice")
        seen.add(entry["id"])
        source = stored["sources"].get(entry["source"])
        if source is None or source["certainty"] not in CERTAINTIES:
            raise UserError(f"{where}: no source {entry['source']!r} with a certainty of {', '.join(CERTAINTIES)}")
        answers = []
        for answer in entry.get("answers", []):
            if answer["run"] not in recipes:
                raise UserError(f"{where}: no run {answer['run']!r}{nearest(answer['run'], recipes)}")
            answers.append(Answer(recipes[answer["run"]], answer["method"], answer.get("unknown", entry["unknown"])))
        if not answers and not entry.get("reason"):
            raise UserError(f"{where}: neither a run answers it nor a reason says why none does")
        rows.append(Row(paper, entry["id"], entry["table"], entry["label"], entry["known"], entry["unknown"],
                        entry["metric"], entry["published"], source["text"], source["certainty"], answers,
                        entry.get("reason", "")))  # fmt: skip
    return Ledger(paper, stored["code"], stored["sources"], stored["tables"], recipes, rows,
                  stored.get("data_missing", []))  # fmt: skip


def papers() -> list[str]:
    """Folders that have a `rows.json`."""
    return [paper for paper in PAPERS if (ROOT / paper / "rows.json").exists()]


def ledgers(wanted: Iterable[str] | None = None) -> Iterator[Ledger]:
    """Ledgers of the wanted papers, else of all that have one."""
    for paper in wanted or papers():
        yield read(paper)


def methods_of(ledger: Ledger) -> dict[str, set[tuple[str, str]]]:
    """For each recipe the (method, unknown set) pairs that rows ask of it."""
    asked: dict[str, set] = {name: set() for name in ledger.recipes}
    for row in ledger.rows:
        for answer in row.answers:
            asked[answer.recipe.id].add((answer.method, answer.unknown))
    return asked


def source_of(record: dict, unknown: str) -> str | None:
    """Name under which a record holds an unknown set (rebuilt sets say so), or None."""
    return next((name for name in (unknown, unknown + REBUILT) if name in record["metrics"]), None)


def record(answer: Answer, job: Job) -> dict | None:
    """The record that answers, or None; a record without that unknown set does not answer."""
    path = answer.record_file(job)
    if not path.exists():
        return None
    found = json.loads(path.read_text()) | {"path": path.relative_to(ROOT).as_posix()}
    return found if source_of(found, answer.unknown) else None


def records(answer: Answer) -> list[dict]:
    """All records that answer, over splits and seeds; further seeds than the recipe's count as well.

    Those with the recipe's flags of today; only where there is none, those with earlier ones.
    """
    found = []
    for split in answer.recipe.splits:
        stem = answer.record_file(Job(answer.recipe, split, 0)).name.removesuffix("s0.json")
        folder = results.RECORDS / answer.recipe.paper
        numbers = sorted(int(p.stem.removeprefix(stem + "s")) for p in folder.glob(f"{stem}s*.json")
                         if p.stem.removeprefix(stem + "s").isdigit())  # fmt: skip
        found += [entry for seed in numbers if (entry := record(answer, Job(answer.recipe, split, seed)))]
    return [entry for entry in found if shown_recipe(entry) == entry["table"]] or found


def missing_data(job: Job, root: Path | None = None) -> list[str]:
    """What a job needs and is not here: data sets, or a known set whose split has classes that are not here."""
    from common.datasets import data_root, resolve_name
    from common.datasets.presence import absent_classes, part_path

    root = data_root(root)
    known, *unknown = job.recipe.data
    needed = [(known, True), (known, False), *((name, False) for name in unknown)]
    absent = [name for name, train in needed if part_path(resolve_name(name), train, root) is None]
    if known not in absent and (classes := absent_classes(resolve_name(known), job.split, root)):
        absent.append(f"{known} ({classes} classes of {job.split})")
    return list(dict.fromkeys(absent))


def staleness(found: dict, job: Job, code: Mapping[str, Iterable[str]]) -> str:
    """Why a record no longer answers for its command: flags, data or program changed since; empty if it does.

    `scoring: ...` means that a new evaluation of the trained run is enough.
    """
    training, scoring = found["code_version"], found.get("evaluation_code_version", found["code_version"])
    return (
        _changed_flags(found, job)
        or _changed_data(found)
        or _changed_code("code", training, code["training"])
        or _changed_code("scoring", scoring, code["scoring"])
    )


def _changed_flags(found: dict, job: Job) -> str:
    if "flags" not in found:
        return "command: the record is older than the flags it should hold"
    from common.run import FREE_FLAGS

    now = _flags_now(job.recipe.paper, tuple(job.train[1:]))
    differing = [f"--{name} was {value}, is {now[name]}" for name, value in found["flags"].items()
                 if name in now and name not in FREE_FLAGS | SPELT and now[name] != value]  # fmt: skip
    return f"command: {'; '.join(differing)}" if differing else ""


@cache
def _flags_now(paper: str, command: tuple[str, ...]) -> dict:
    from common.files import plain

    return plain(vars(import_module(f"{paper}.main").parse_arguments(list(command))))


def shown_recipe(found: dict) -> str:
    """Name of a record's recipe in tables: its own, or one that says that the recipe's flags are others today.

    What was trained with earlier flags must not be averaged with what was not.
    """
    of_paper = _read_once(found["paper"]).recipes.values() if found["paper"] in papers() else ()
    fitting = [recipe for recipe in of_paper if (recipe.table, recipe.data[0]) == (found["table"], found["data"])
               and found["split"] in recipe.splits]  # fmt: skip
    changed = fitting and all(_changed_flags(found, Job(recipe, found["split"], found["seed"])) for recipe in fitting)
    return found["table"] + (EARLIER if changed else "")


_read_once = cache(read)


def _changed_data(found: dict) -> str:
    from common.datasets import data_root
    from common.datasets.checksums import MD5

    sums = dict(found["data_checksums"])
    for each in found.get("unknown_checksums", {}).values():
        sums |= each
    for name, value in sums.items():
        if name in MD5 and value.startswith("md5:") and value != f"md5:{MD5[name]}":
            return f"data: {name}"
        path = data_root() / name
        if value.startswith("sha256:") and path.is_file() and _sha256(path) != value.removeprefix("sha256:"):
            return f"data: {name}"
    return ""


@cache
def _sha256(path: Path) -> str:
    from common.files import sha256

    return sha256(path)


def _changed_code(what: str, version: str, files: Iterable[str]) -> str:
    """Files, with the names in them, that do something else than at the record's commit; new names change nothing."""
    commit, changed = version.split("+")[0], []
    for file in files:
        then, now = _program_at(commit, file), _program_now(file)
        names = [name for name, program in (then or {}).items() if now.get(name) != program]
        if names:
            changed.append(f"{file} ({', '.join(names)})")
    return f"{what}: {', '.join(changed)}" if changed else ""


@cache
def _program_now(file: str) -> dict[str, str]:
    path = ROOT / file
    return _program(path.read_text()) if path.exists() else {}


@cache
def _program_at(version: str, file: str) -> dict[str, str] | None:
    """The program of a file at a commit; None where git does not know (no repository, shallow clone)."""
    command = ["git", "-C", str(ROOT), "show", f"{version}:{file}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return _program(done.stdout) if done.returncode == 0 else None


def _program(text: str) -> dict[str, str]:
    """Syntax tree of each top-level name of a Python file, without imports, docstrings and what comments can change.

    Methods that only declare (abstract, or nothing but `raise NotImplementedError`) compute nothing and are left out too.
    Other statements of the top level stand together under `module`.
    """
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value.value = ""
        if isinstance(node, ast.ClassDef):
            node.body = [statement for statement in node.body if not _only_declares(statement)]
    program: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        name = getattr(node, "name", None) or getattr(targets[0], "id", None) or "module"
        program[name] = program.get(name, "") + ast.dump(node)
    return program


def _only_declares(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.FunctionDef):
        return False
    if any(ast.unparse(decorator).endswith("abstractmethod") for decorator in statement.decorator_list):
        return True
    return ast.unparse(statement.body[-1]) == "raise NotImplementedError" and len(statement.body) <= 2


def state(answers: Iterable[Answer], job: Job, code: Mapping[str, Iterable[str]], root: Path | None = None) -> tuple[str, str]:
    """State of one job for the answers asked of it: done, stale, data missing or open; and the reason."""
    found = [record(answer, job) for answer in answers]
    if found and all(found):
        reason = next((text for entry in found if (text := staleness(entry, job, code))), "")
        return ("stale", reason) if reason else ("done", "")
    absent = missing_data(job, root)
    if absent:
        return "data missing", ", ".join(absent)
    have = sum(entry is not None for entry in found)
    return "open", f"{have} of {len(found)} scores recorded" if have else ""
