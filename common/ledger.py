"""The rows that the papers published, the runs that reproduce them, and where each stands.

Every paper folder has a `rows.json`:

* `code`: files whose program (comments and docstrings aside) the numbers depend on, those of `training` and of `scoring`;
* `sources`: where published values were read, and how sure that is (`CERTAINTIES`);
* `runs`: a training and an evaluation command with the places `{split} {seed} {name}`, the splits and seeds they are
  repeated for, the data they need, minutes a run, and their worth (larger = earlier); `before`: commands whose runs
  (`--save NAME`, with the same places) training or evaluation needs;
* `tables`: titles of the published tables; `data_missing`: sets nobody had when the records were made;
* `rows`: one published value each (or none), the metric it is, and the records that answer it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common import results
from common.arguments import ROOT
from common.errors import UserError, nearest

PAPERS = ("crosr", "cssr", "vmdls", "baseline_openmax")
REBUILT = " (rebuilt)"
# A rerun counts as reproduced within this much of the published value.
MARGIN = {"auroc": 0.01, "closed_accuracy": 0.01, "oscr": 0.01}
OTHER_MARGIN = 0.02
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

    @property
    def before(self) -> list[tuple[Path, list[str]]]:
        """Directory and command of each run that this one needs."""
        commands = [self._filled(command) for command in self.recipe.before]
        names = [command[command.index("--save") + 1] for command in commands]
        return [(ROOT / "runs" / command[0].split("/")[0] / name, command) for name, command in zip(names, commands)]

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
    """All records that answer, over splits and seeds; further seeds than the recipe's count as well."""
    found = []
    for split in answer.recipe.splits:
        stem = answer.record_file(Job(answer.recipe, split, 0)).name.removesuffix("s0.json")
        folder = results.RECORDS / answer.recipe.paper
        numbers = sorted(int(p.stem.removeprefix(stem + "s")) for p in folder.glob(f"{stem}s*.json")
                         if p.stem.removeprefix(stem + "s").isdigit())  # fmt: skip
        found += [entry for seed in numbers if (entry := record(answer, Job(answer.recipe, split, seed)))]
    return found


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
