"""Find runs and read what they left: all their scores, and the JSON files that tell how they came about."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import numpy as np

from common.arguments import ROOT
from common.errors import UserError
from common.results import read_scores

# Flags that make two runs repetitions of one experiment; those that only say where and how it computes come on top.
REPETITION_FLAGS = {"seed", "split"}


@dataclass
class StoredRun:
    """A run on disk: `scores` by name, the run's own score first."""

    path: Path
    scores: dict[str, dict[str, np.ndarray]]
    meta: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)
    test_command: str = ""

    @property
    def name(self) -> str:
        return self.path.stem if self.path.suffix == ".npz" else self.path.resolve().name

    @property
    def title(self) -> str:
        """Name with the paper's folder before it, where that is known."""
        paper = self.meta.get("paper")
        return self.name if paper in (None, self.name) else f"{paper} / {self.name}"

    @property
    def folder(self) -> Path:
        """Where pages and figures of this run go: the run itself, or the folder of its scores file."""
        return self.path.parent if self.path.suffix == ".npz" else self.path

    def page(self, kind: str) -> Path:
        """Where a page of this run lies: `report.html` in the run, `NAME.report.html` beside a scores file `NAME.npz`."""
        return self.folder / f"{kind}.html" if self.path.suffix != ".npz" else self.path.with_suffix(f".{kind}.html")

    @property
    def own_scores(self) -> dict[str, np.ndarray]:
        return next(iter(self.scores.values()))


def locate(where: str | Path, paper: str | None = None) -> Path:
    """Return the run directory or scores file that `where` names.

    Parameters
    ----------
    where : str or path
        A scores file (`.npz`), a run directory, or the name of a run under `runs/<paper>/`.
    paper : str, optional
        Folder of the paper; without it all papers' runs are searched for the name.
    """
    where = Path(where)
    if where.suffix == ".npz" and where.is_file():
        return where
    candidates = [where, ROOT / "runs" / where]
    named = sorted((ROOT / "runs").glob(f"{paper or '*'}/{where.name}")) if len(where.parts) == 1 else []
    if len(named) > 1 and not any(path.is_dir() for path in candidates):
        said = ", ".join(str(path.relative_to(ROOT)) for path in named)
        raise UserError(f"several runs are named {str(where)!r}, say which: {said}")
    found = [path for path in (*candidates, *named) if path.is_dir()]
    for path in found:
        if (path / "scores.npz").is_file():
            return path
    script = f"{paper}/test.py" if paper else "test.py"
    if found:
        raise UserError(f"run {found[0]} has no scores.npz; python {script} --run_dir {found[0]} writes it")
    raise UserError(f"no run or scores file {str(where)!r} here or under {ROOT / 'runs'}")


def read_run(where: str | Path, paper: str | None = None) -> StoredRun:
    """Read the scores and descriptions of a run (see `locate`)."""
    path = locate(where, paper)
    if path.suffix == ".npz":
        return StoredRun(path, {path.stem.removeprefix("scores_"): read_scores(path)}, meta=_json(path.with_suffix(".json")))
    named = {file.stem.removeprefix("scores_"): file for file in sorted(path.glob("scores_*.npz"))}
    # metrics.json lists the scores in the order asked for; the first is the one in scores.npz.
    evaluation = _json(path / "metrics.json")
    listed = list(evaluation.get("scores", {}))
    own = next((name for name in listed if name not in named), "own score")
    files = {own: path / "scores.npz"} | {name: named[name] for name in listed if name in named} | named
    log = path / "log.jsonl"
    return StoredRun(
        path,
        {name: read_scores(file) for name, file in files.items()},
        meta=_json(path / "meta.json"),
        config=_json(path / "config.json"),
        log=[json.loads(line) for line in log.read_text().splitlines()] if log.exists() else [],
        test_command=evaluation.get("command", ""),
    )


def pick(run: StoredRun, score: str | None) -> dict[str, np.ndarray]:
    """Return the scores of that name, or the run's own."""
    if score is None:
        return run.own_scores
    if score not in run.scores:
        raise UserError(f"{run.path} has no score {score!r}, choose from {', '.join(run.scores)};"
                        f" test.py --score {score} writes it")  # fmt: skip
    return run.scores[score]


def grouped(runs: list[StoredRun], score: str | None = None) -> dict[str, list[StoredRun]]:
    """Join runs that differ only in seed or split (their curves become a mean with a band); keys are labels.

    Runs whose score (`score`, else each one's own) or unknown sets differ are never joined.
    """
    from common.run import FREE_FLAGS

    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        kept = {k: v for k, v in run.config.items() if k not in FREE_FLAGS | REPETITION_FLAGS}
        # A run without a config cannot be told to be a repetition of anything.
        scored = [score or next(iter(run.scores)), [str(source) for source in pick(run, score).get("sources", ())]]
        key = json.dumps([run.meta.get("paper"), scored, kept], sort_keys=True) if run.config else str(run.path.resolve())
        groups.setdefault(key, []).append(run)
    labelled: dict[str, list[StoredRun]] = {}
    for members in groups.values():
        label = members[0].name
        if len(members) > 1:  # what the names have in common, without the beginning of a seed or split
            letters = takewhile(lambda column: len(set(column)) == 1, zip(*(run.name for run in members)))
            common = "".join(column[0] for column in letters)
            label = re.sub(r"[-_. ]+(s|seed|split)?[-_. ]*$", "", common) or label
        labelled[label if label not in labelled else str(members[0].path)] = members
    return labelled


def _json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({error})") from None
