"""What the notebooks read: the best committed record by a rule, or a run; and the arrays that a record's scores file lacks.

    python notebooks/evidence.py                    # for every default record whose run is on this machine
    python notebooks/evidence.py crosr RUN          # of one run

A record holds metrics and compact scores, but no logits of large sets, activation vectors, images or training statistics.
What the figures need of those lies in `results/notebooks/<paper>-<record>.npz`, below one megabyte each; given a run, a notebook
computes the same arrays from it.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.arguments import ROOT, ScriptParser, run_script
from common.errors import UserError
from common.files import atomic
from common.results import COMPACT_BYTES, FAMILY, read_records, read_scores
from common.staleness import shown_recipe

FOLDER = ROOT / "results" / "notebooks"
PAPERS = ("crosr", "cssr", "vmdls", "baseline_openmax")
NATURAL = ("cifar10", "cifar100", "svhn", "tinyimagenet", "imagenet30", "imagenet")
# The method whose record names a run's evidence: the run's own score.
OWN = {"crosr": ("crosr",), "cssr": ("pcssr-fused", "rcssr-fused"), "vmdls": ("vmdls",), "baseline_openmax": ("mls",)}
DEMO = {"crosr": "crosr", "cssr": "pcssr", "vmdls": "vmdls", "baseline_openmax": "baseline_openmax"}


@dataclass
class Source:
    """Where a notebook's numbers come from.

    `records`: all scores of the run that are recorded (none for a run that is not); `run`: its directory, if that was given;
    `evidence`: arrays that the records lack.
    """

    paper: str
    title: str
    records: list[dict]
    run: Path | None
    evidence: dict[str, np.ndarray]

    def scores(self, method: str) -> dict[str, np.ndarray]:
        """Arrays of the scores file of a recorded method, or of a score of the run."""
        if self.run is not None:
            from common.plots import read_run
            from common.plots.reading import pick

            return pick(read_run(self.run), method)
        found = [record for record in self.records if record["method"] == method]
        if not found:
            raise UserError(f"no record of {method}, there are {', '.join(record['method'] for record in self.records)}")
        return read_scores((ROOT / found[0]["path"]).with_suffix(".npz"))

    @property
    def kind(self) -> str:
        """Of a CSSR network: pcssr, rcssr or linear."""
        return str(self.evidence["kind"])

    @property
    def own(self) -> str:
        """The method of the run's own score, for `scores`."""
        return self.methods[0] if self.run is not None else own_record(self.paper, self.records)["method"]

    @property
    def methods(self) -> list[str]:
        """Recorded methods, or the scores of the run."""
        if self.run is None:
            return [record["method"] for record in self.records]
        from common.plots import read_run

        return list(read_run(self.run).scores)


def groups(paper: str) -> list[list[dict]]:
    """Records of the same training run (table, data, split, seed), best group first.

    Natural images before MNIST before all others; then the run with most scores, then all classes known, then by name.
    """
    found: dict[tuple, list[dict]] = {}
    for record in read_records(paper):
        kind = record["method"].split("-")[0] if paper == "cssr" else ""
        found.setdefault((record["table"], record["data"], record["split"], record["seed"], kind), []).append(record)
    place = {**dict.fromkeys(NATURAL, 0), "mnist": 1}
    return sorted(found.values(), key=lambda group: (place.get(group[0]["data"], 2), -len(group),
                                                     group[0]["split"] != "all", group[0]["path"]))  # fmt: skip


def own_record(paper: str, group: list[dict]) -> dict | None:
    """The record of a group's own score, by which its evidence is named."""
    for start in OWN[paper]:
        named = [record for record in group if record["method"].startswith(start)]
        if named:
            return min(named, key=lambda record: len(record["method"]))
    return None


def evidence_file(paper: str, record: dict) -> Path:
    """Where the evidence of a record lies."""
    return FOLDER / f"{paper}-{Path(record['path']).stem}.npz"


def has_evidence(paper: str, record: dict) -> bool:
    """Whether there is evidence of the network that the record is of: a run made anew has the old one's name."""
    path = evidence_file(paper, record)
    if not path.exists():
        return False
    with np.load(path, allow_pickle=False) as stored:
        return "checkpoint" in stored.files and str(stored["checkpoint"]) == record["checkpoint_sha256"][0]


def relative(path: Path) -> str:
    """A path as the notebooks print it: below the repository, or its last folder."""
    path = Path(path).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def read(paper: str, run: str = "") -> Source:
    """What a notebook works on.

    Parameters
    ----------
    paper : str
        Folder of the paper.
    run : str
        A run directory, or the path of a record (`.json`); empty: the best record that has its evidence, else the demo's run.

    Raises
    ------
    UserError
        No such run, no evidence beside a record, or neither a record nor the demo's run is there.
    """
    if run and Path(run).suffix != ".json":
        return _of_run(paper, Path(run))
    lacking = ""
    for group in groups(paper):
        record = own_record(paper, group)
        if record is None or (run and (ROOT / record["path"]) != Path(run).resolve()):
            continue
        path = evidence_file(paper, record)
        if has_evidence(paper, record):
            title = f"{paper}: record `{Path(record['path']).stem}` and `{relative(path)}`{lacking}"
            return Source(paper, title, group, None, read_evidence(path))
        command = f"python notebooks/evidence.py {paper} runs/{paper}/{run_name(record)}"
        if run:
            raise UserError(f"{relative(path)} is not there or of another network; {command} writes it")
        lacking += f" (a better record, `{Path(record['path']).stem}`, has no evidence yet: `{command}`)"
    if run:
        raise UserError(f"{run} is not the record of a {paper} score named {' or '.join(OWN[paper])}")
    demo = ROOT / "runs" / "demo" / DEMO[paper]
    if not (demo / "scores.npz").exists():
        raise UserError(f"{paper} has neither a record with evidence nor a run of the demo: make demo")
    return _of_run(paper, demo)


def _of_run(paper: str, directory: Path) -> Source:
    import gather

    if not (directory / "scores.npz").exists():
        raise UserError(f"{relative(directory)} is not an evaluated run: python {paper}/test.py --run_dir {directory}")
    return Source(paper, f"{paper}: run `{relative(directory)}`", [], directory, gather.OF[paper](directory))


def beside(source: Source) -> list[Source]:
    """A CSSR source and those of the other kinds of network on the same data, where their evidence is there."""
    found = [source]
    if source.run is not None:
        others = [source.run.parent / name for name in ("pcssr", "rcssr")]
        found += [_of_run(source.paper, path) for path in others if path != source.run and (path / "scores.npz").exists()]
        return found
    same = ("table", "data", "split", "seed")
    for group in groups(source.paper):
        record = own_record(source.paper, group)
        alike = record and shown_recipe(record) == shown_recipe(source.records[0])
        if alike and group != source.records and all(record[key] == source.records[0][key] for key in same):
            path = evidence_file(source.paper, record)
            if has_evidence(source.paper, record):
                title = f"record `{Path(record['path']).stem}`"
                found.append(Source(source.paper, title, group, None, read_evidence(path)))
    return found


def linear_of(source: Source) -> dict | None:
    """The record of the largest logit of the linear head on a recorded CSSR source's data, or None."""
    if not source.records:
        return None
    wanted = {key: source.records[0][key] for key in ("table", "data", "split", "seed")}
    found = read_records(source.paper, method="linear-mls", **wanted)
    return next((record for record in found if shown_recipe(record) == shown_recipe(source.records[0])), None)


def by_split(methods: tuple[str, ...], paper: str = "cssr") -> dict[str, list[dict]]:
    """Records of each method over the family of splits, in one recipe, with most splits that all methods share."""
    tables: dict[tuple, dict[str, list[dict]]] = {}
    for record in read_records(paper):
        if record["method"] in methods:
            family = record["table"], record["data"], FAMILY.sub(r"\1", record["split"])
            tables.setdefault(family, {}).setdefault(record["method"], []).append(record)
    shared = [found for found in tables.values() if len(found) == len(methods)]
    most = max(shared, key=lambda found: min(len({record["split"] for record in records}) for records in found.values()))
    return {method: most[method] for method in methods}


def scores_of(record: dict) -> Path:
    """The compact scores beside a record."""
    return (ROOT / record["path"]).with_suffix(".npz")


def separation(points: np.ndarray, target: np.ndarray) -> float:
    """Mean distance between class means in units of the root mean square distance of points to the mean of their class."""
    known = target >= 0
    labels = np.unique(target[known])
    means = np.stack([points[target == label].mean(0) for label in labels])
    within = np.sqrt(np.mean(np.square(points[known] - means[np.searchsorted(labels, target[known])]).sum(1)))
    between = np.linalg.norm(means[:, None] - means[None], axis=2)[~np.eye(len(labels), dtype=bool)].mean()
    return float(between / within)


def run_name(record: dict) -> str:
    """Name under which the record's run was saved."""
    words = shlex.split(record["commands"][1])
    return words[words.index("--save") + 1] if "--save" in words else Path(words[words.index("--run_dir") + 1]).name


def read_evidence(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an evidence file; numbers that were stored as steps are float64 again."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    for key in [key for key in arrays if key.endswith(".step")]:
        name = key.removesuffix(".step")
        arrays[name] = arrays[name] * float(arrays.pop(key))
    return arrays


def write_evidence(path: Path, arrays: dict[str, np.ndarray], levels: dict[str, int]) -> None:
    """Write an evidence file; the arrays named in `levels` are rounded to so many steps of their largest value."""
    packed = dict(arrays)
    for name in levels.keys() & packed.keys():
        if packed[name].size:
            step = float(np.abs(packed[name]).max() or 1.0) / levels[name]
            packed |= {name: np.rint(packed[name] / step).astype(np.int16), f"{name}.step": np.array(step)}
    with atomic(path) as partial, open(partial, "wb") as target:
        np.savez_compressed(target, **packed)
    if path.stat().st_size > COMPACT_BYTES:
        size = path.stat().st_size
        path.unlink()
        raise UserError(f"{relative(path)} would have {size:,} bytes, more than {COMPACT_BYTES:,}")


def write_for(paper: str, directory: Path, record: dict) -> None:
    """Compute and write the evidence of a record from its run."""
    import gather

    arrays = gather.OF[paper](directory) | {"checkpoint": np.array(record["checkpoint_sha256"][0])}
    write_evidence(evidence_file(paper, record), arrays, gather.LEVELS)
    print(f"written: {relative(evidence_file(paper, record))}")


def write_missing() -> None:
    """Write the evidence of each paper's best record, where it is missing and the run is on this machine."""
    for paper in PAPERS:
        own = [record for group in groups(paper) if (record := own_record(paper, group))]
        for record in own[:1]:
            directory = ROOT / "runs" / paper / run_name(record)
            if not has_evidence(paper, record) and (directory / "scores.npz").exists():
                write_for(paper, directory, record)


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("paper", nargs="?", choices=PAPERS)
    parser.add_argument("run", nargs="?", type=Path, help="evaluated and recorded run")
    return parser


def main(argv=None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.paper is None:
        write_missing()
        return
    if args.run is None:
        raise UserError(f"name a run of {args.paper} that is recorded")
    own = [record for group in groups(args.paper) if (record := own_record(args.paper, group))]
    named = [record for record in own if run_name(record) == args.run.name]
    if not named:
        raise UserError(f"no record is of a run called {args.run.name}; recorded: {', '.join(map(run_name, own))}")
    write_for(args.paper, args.run, named[0])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    run_script(main)
