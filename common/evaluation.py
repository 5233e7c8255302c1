"""What the evaluation scripts share: their flags, finding the trained run, the data of its header, reports and records."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from common.arguments import ROOT, ScriptParser, positive_int
from common.errors import UserError


def add_evaluation_arguments(parser: ScriptParser, scores: Sequence[str], default: Sequence[str], unknown_rule: str = ""):
    """Add the flags of an evaluation; returns the argument group, for a folder's own ones.

    `unknown_rule` says in words what a folder takes when `--unknown` is not given (then None); else it is `rest`.
    """
    parser.add_argument("--checkpoint_path", help="run directory, weights file or manifest name; else the run")
    group = parser.add_argument_group("evaluation")
    group.add_argument("--score", nargs="+", choices=scores, default=list(default),
                       help="unknown scores; the first is the run's own (scores.npz)")
    group.add_argument("--unknown", nargs="+", default=None if unknown_rule else ["rest"], metavar="SET",
                       help="unknown sets: rest (the unknown classes of the known data set), data set names, folder:PATH"
                       + (f"; else {unknown_rule}" if unknown_rule else ""))
    group.add_argument("--batch_size", type=positive_int, default=512, help="images at a time")
    group.add_argument("--released_noise", action="store_true", help="noise sets in the float ranges of the VMDLS release")
    group.add_argument("--odin_crop", choices=("center", "resize", "native"), default="center",
                       help="36x36 ODIN crops: cut to the centre, resized, or as they are")
    group.add_argument("--train_scores", action="store_true",
                       help="score the training part too (always done without held-out images)")
    group.add_argument("--no_report", action="store_true", help="do not write report.html")
    group.add_argument("--record", metavar="TABLE", help="write records and compact scores under results/records")
    return group


class Trained:
    """The checkpoint that an evaluation's flags name.

    Attributes
    ----------
    tensors, header : dict
        Weights and statistics by name; plain values.
    files : list of Path
        Its files.
    directory : Path
        Where results go: the run itself; for a bare checkpoint `--run_dir`, else `runs/<paper>/<--save or its name>`.
    """

    def __init__(self, args, paper: str):
        from common.checkpoints import find, load_weights
        from common.run import find_run

        if args.checkpoint_path:
            source = args.checkpoint_path
        elif args.save or args.run_dir:
            source = find_run(paper, args.run_dir or args.save)
        else:
            raise UserError("name a run with --save or --run_dir, or weights with --checkpoint_path")
        if args.record and (args.dry_run or args.subset):
            raise UserError("--record wants the whole evaluation: leave out --dry_run and --subset")
        if args.record:
            refuse_incomplete_training(source)
        self.paper = paper
        source = self._brought_over(args, source)
        self.tensors, self.header = load_weights(source, paper=paper)
        self.files = find(source)
        self.directory = self._directory(args) / ("dry_run" if args.dry_run else "")

    def _brought_over(self, args, source):
        """A weights file of the paper's original program becomes a checkpoint of ours, in the directory of results."""
        from common.checkpoints import is_torch_file

        if not is_torch_file(source):
            return source
        if importlib.util.find_spec(f"{self.paper}.original_files") is None:
            raise UserError(f"{source} is a file of another program: {self.paper}/test.py reads runs and checkpoints of"
                            f" {self.paper}/main.py")
        reader = importlib.import_module(f"{self.paper}.original_files")
        args.run_dir = args.run_dir or ROOT / "runs" / self.paper / (args.save or f"test-{Path(source).stem}")
        return reader.imported(source, args, args.run_dir / "imported")

    def _directory(self, args) -> Path:
        in_run = (self.files[0].parent / "meta.json").exists()
        if in_run and not (args.checkpoint_path and (args.run_dir or args.save)):
            return self.files[0].parent
        if args.record:
            raise UserError("--record needs a trained run: name it with --save or --run_dir, without --checkpoint_path")
        return args.run_dir or ROOT / "runs" / self.paper / (args.save or f"test-{self.files[0].stem}")

    def data(self, args):
        """The open-set data that the header names, with the unknown sets of the flags; its classes must be the header's."""
        from common.datasets import prepare

        config = self.header["data"]
        subset = 64 if args.dry_run else args.subset or config["subset"]
        data = prepare(config["known_dataset"], config["split"], args.unknown, root=args.data_dir,
                       validation_share=config["validation_share"], seed=config["seed"], subset=subset,
                       released_noise=args.released_noise, odin_crop=args.odin_crop)  # fmt: skip
        if list(data.class_names) != self.header["class_names"]:
            raise UserError(f"the checkpoint knows {self.header['class_names']}, the data gives {list(data.class_names)}")
        return data

    def thresholds(self) -> dict[str, dict]:
        """Thresholds of the last evaluation by score, with the settings of the score (`scoring`) where a folder has some."""
        evaluated = self.directory / "metrics.json"
        stored = json.loads(evaluated.read_text()) if evaluated.exists() else self.header
        return stored.get("thresholds", {})

    def threshold(self, score: str) -> float:
        """Threshold of a score that accepts 95 % of the held-out (else the training) known images, of its last evaluation."""
        found = self.thresholds().get(score, {})
        threshold = found.get("validation") if found.get("validation") is not None else found.get("train")
        if threshold is None:
            name, _, tail = score.partition("-tail")
            flags = f"--score {name} --tail_size {tail}" if tail else f"--score {name}"
            raise UserError(f"no {score} threshold is known for this network: evaluate it once, test.py {flags}")
        return threshold

    def fill(self, model) -> None:
        """Load the weights (everything but `statistics.*`) into the network of the header."""
        try:
            model.load_state_dict({key: value for key, value in self.tensors.items() if not key.startswith("statistics.")})
        except RuntimeError as error:
            raise UserError(f"weights do not fit the network of their header: {error}") from None


def refuse_incomplete_training(directory) -> None:
    """A `UserError` if a run was trained on a part of its data only: records are of whole trainings."""
    config = Path(directory) / "config.json"
    flags = json.loads(config.read_text()) if config.exists() else {}
    for flag in ("dry_run", "subset"):
        if flags.get(flag):
            raise UserError(f"--record wants a whole training: {directory} was trained with --{flag}")


def parts_to_score(args, data, with_train: bool = False):
    """`evaluation_parts`, with the training part when it is asked for or no images were held out."""
    from common.inference import evaluation_parts

    without_validation = data.validation is None or not len(data.validation)
    return evaluation_parts(data, with_train or args.train_scores or without_validation)


def report(
    args, trained: Trained, data, names: Sequence[str], scored: Callable[[str], Mapping], seconds: float, argv,
    method: Callable[[str], str] = str,
) -> None:  # fmt: skip
    """Write `scores*.npz`, `metrics.json`, `report.html` and, when asked, records; print a table.

    Parameters
    ----------
    names : sequence of str
        Scores to report; the first is the run's own.
    scored : callable
        Name of a score to the arrays of its `scores.npz`.
    seconds : float
        Wall time of scoring, for the record.
    method : callable
        Name of a score to the method's name in records.
    """
    from common import results
    from common.files import write_json
    from common.metrics import evaluate_file, thresholds
    from common.run import command_line

    if args.record:
        for name in names:
            refuse_other_unknown_sets(record_file(args, trained, method(name)), data)
    trained.directory.mkdir(parents=True, exist_ok=True)
    gone = sorted(stale.stem.removeprefix("scores_") for stale in trained.directory.glob("scores_*.npz"))
    for name in gone:
        (trained.directory / f"scores_{name}.npz").unlink()  # an earlier evaluation may be of other unknown sets
    if lost := [name for name in gone if name not in names]:
        print(f"note: this evaluation replaces the last one; not scored again (--score would): {', '.join(lost)}")
    all_metrics, thresholds_of = {}, {}
    print(f"{'score':16} {'unknown':28} {'closed accuracy':>15} {'AUROC':>7} {'FPR95':>7} {'OSCR':>7} {'macro-F1':>9}")
    for number, name in enumerate(names):
        path = trained.directory / ("scores.npz" if number == 0 else f"scores_{name}.npz")
        result = scored(name)
        results.write_scores(path, result)
        all_metrics[name] = evaluate_file(path)
        thresholds_of[name] = thresholds(result["target"], result["unknown_score"], result["split"])
        for unknown, values in results.by_source(all_metrics[name]).items():
            print(f"{name:16} {unknown:28} {values['closed_accuracy']:15.4f} {values['auroc']:7.4f}"
                  f" {values['fpr95_known_positive']:7.4f} {values['oscr']:7.4f} {values['macro_f1_validation']:9.4f}")
        if args.record:
            # Logits and parts are the same for every score: one committed copy, with the first score, is enough.
            if number:
                result = {key: value for key, value in result.items() if key not in ("logits", "parts", "part_names")}
            write_record(args, trained, data, name, method(name), all_metrics[name], result, seconds, argv)
    found = {"scores": all_metrics, "thresholds": thresholds_of, "command": command_line(f"{trained.paper}/test.py", argv)}
    write_json(trained.directory / "metrics.json", found)
    if not args.no_report and not args.dry_run and (trained.directory / "meta.json").exists():
        from common.report import write_report

        write_report(trained.directory)
    print(f"written: {trained.directory}")


def record_file(args, trained: Trained, method: str) -> Path:
    """Where the record of a method of this run lies."""
    from common import results

    config = trained.header["data"]
    return results.record_path(trained.paper, args.record, config["known_dataset"], method, config["split"], config["seed"])


def refuse_other_unknown_sets(path: Path, data) -> None:
    """A `UserError` if the record that is there is of other unknown sets: it would be lost."""
    now = {"all", *(images.name or name for name, images in data.unknown.items())}
    if path.exists() and set(json.loads(path.read_text())["metrics"]) != now:
        raise UserError(f"{path.name} is the record of other unknown sets: delete it, or give --record another name")


def write_record(args, trained: Trained, data, score: str, method: str, metrics, result, seconds: float, argv) -> None:
    """Write the record of one score of a trained run, with its compact scores beside it."""
    from common import results
    from common.files import sha256
    from common.run import FREE_FLAGS, code_version, command_line

    meta = json.loads((trained.directory / "meta.json").read_text())
    flags = json.loads((trained.directory / "config.json").read_text())
    config = trained.header["data"]
    path = record_file(args, trained, method)
    record = results.record_of(
        meta,
        paper=trained.paper,
        table=args.record,
        data=config["known_dataset"],
        split=config["split"],
        method=method,
        score=score,
        backbone=trained.header["model"]["backbone"],
        metrics=metrics,
        flags={name: value for name, value in flags.items() if name not in FREE_FLAGS},
        commands=[meta["command"], command_line(f"{trained.paper}/test.py", argv)],
        evaluation_code_version=code_version(),
        wall_seconds={"train": meta["wall_seconds"], "test": round(seconds, 2)},
        checkpoint_sha256=[sha256(file) for file in trained.files],
        **({"started_from": meta["started_from"]} if "started_from" in meta else {}),
        unknown_checksums={source: images.checksums for source, images in data.unknown.items()},
    )
    results.write_record(path, record, result)
