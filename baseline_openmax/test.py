"""Evaluate a trained classifier in the open set: scores of every image, metrics of every unknown set.

    python baseline_openmax/test.py --save NAME                                  # a run, its own unknown classes
    python baseline_openmax/test.py --save NAME --score mls msp energy --unknown omniglot noise
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from common.arguments import ScriptParser, add_common_arguments, parse, positive_int, run_script

PAPER = "baseline_openmax"
SCORE_NAMES = ("msp", "mls", "energy", "entropy", "margin", "openmax")


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint_path", help="run directory, weights file or manifest name; else the run")
    evaluation = parser.add_argument_group("evaluation")
    evaluation.add_argument("--score", nargs="+", choices=SCORE_NAMES, default=["mls", "msp"],
                            help="unknown scores; the first is the run's own (scores.npz)")
    evaluation.add_argument("--unknown", nargs="+", default=["rest"], metavar="SET",
                            help="unknown sets: rest (the unknown classes of the known data set) or data set names")
    evaluation.add_argument("--batch_size", type=positive_int, default=512, help="images at a time")
    evaluation.add_argument("--released_noise", action="store_true", help="noise sets in the float ranges of the VMDLS release")
    evaluation.add_argument("--odin_crop", choices=("center", "resize", "native"), default="center",
                            help="36x36 ODIN crops: cut to the centre, resized, or as they are")
    evaluation.add_argument("--images", nargs="+", metavar="FILE|DIR",
                            help="judge own pictures instead: class or unknown at the threshold of the last evaluation")
    evaluation.add_argument("--save_features", action="store_true", help="keep the pooled features in scores.npz (for t-SNE)")
    evaluation.add_argument("--no_report", action="store_true", help="do not write report.html")
    evaluation.add_argument("--train_scores", action="store_true",
                            help="score the training part too (always done without held-out images)")
    openmax = parser.add_argument_group("OpenMax (Bendale and Boult 2016)")
    openmax.add_argument("--tail_size", type=positive_int, nargs="+", default=[20],
                         help="largest distances per class in the fit (eta); several give a score each")
    openmax.add_argument("--alpha", type=positive_int, default=10, help="number of top classes that are revised")
    openmax.add_argument("--distance", choices=("eucos", "euclidean", "cosine"), default="eucos",
                         help="distance to the mean; eucos = Euclidean/200 + cosine")
    openmax.add_argument("--alpha_rule", choices=("code", "paper"), default="code",
                         help="rank weights: (alpha+1-i)/alpha as released, (alpha-i)/alpha as printed")
    openmax.add_argument("--translation", type=float, default=1.0, help="where the smallest tail distance is moved to")
    openmax.add_argument("--softmax", choices=("after", "before"), default="after", help="revise logits, or probabilities")
    openmax.add_argument("--clip", choices=("none", "zero"), default="none", help="negative contributions to unknown: keep or 0")
    openmax.add_argument("--weibull", choices=("newton", "libmr"), default="newton", help="fitter of the tails")
    openmax.add_argument("--sweep", nargs="+", metavar="NAME=V,V",
                         help="OpenMax over a grid, e.g. tail_size=20,50,100 distance=eucos,euclidean: table and figure")
    evaluation.add_argument("--record", metavar="TABLE", help="write records and compact scores under results/records")
    add_common_arguments(parser, train=False)
    return parser


def main(argv=None) -> None:
    args = parse(get_args_parser(), argv)
    from baseline_openmax.heads import fit_openmax, openmax_settings, save_openmax, stored_openmax
    from baseline_openmax.sweep import parse_sweep, sweep, write_sweep
    from common.checkpoints import find, load_weights
    from common.devices import Devices
    from common.errors import UserError
    from common.run import find_run

    if args.checkpoint_path:
        source = args.checkpoint_path
    elif args.save or args.run_dir:
        source = find_run(PAPER, args.run_dir or args.save)
    else:
        raise UserError("name a run with --save or --run_dir, or weights with --checkpoint_path")
    tensors, header = load_weights(source, paper=PAPER)
    files = find(source)
    run_dir = output_directory(args, files)
    settings = openmax_settings(args, len(header["class_names"])) if "openmax" in args.score or args.sweep else {}
    first = next(iter(settings.values()), {})
    grid = parse_sweep(args.sweep, first) if args.sweep else None
    openmax = {name: stored_openmax(tensors, header, values) for name, values in settings.items()}
    if args.images and (run_dir / "openmax.safetensors").exists():
        stored = load_weights(run_dir / "openmax.safetensors", paper=PAPER)
        openmax = {name: stored_openmax(*stored, values) for name, values in settings.items()}
    devices = Devices(args)
    if args.images:
        judge_images(args, build(tensors, header, devices), header, openmax, run_dir, devices)
        return
    begun = time.monotonic()
    fits = grid is not None or None in openmax.values()
    arrays, data = score(args, build(tensors, header, devices), header, devices, fits)
    openmax = {name: model or fit_openmax(arrays, settings[name]) for name, model in openmax.items()}
    seconds = time.monotonic() - begun
    run_dir.mkdir(parents=True, exist_ok=True)
    if fits:
        save_openmax(run_dir / "openmax.safetensors", next(iter(openmax.values())), PAPER)
    report(args, run_dir, header, arrays, openmax, data, files, seconds, argv)
    if grid is not None:
        write_sweep(sweep(arrays, first, grid), run_dir)
    print(f"written: {run_dir}")


def output_directory(args, files) -> Path:
    """Where results go: the run itself; for a bare checkpoint `--run_dir`, else `runs/baseline_openmax/<--save or its name>`."""
    from common.arguments import ROOT
    from common.errors import UserError

    in_run = (files[0].parent / "meta.json").exists()
    if in_run and not (args.checkpoint_path and (args.run_dir or args.save)):
        return files[0].parent
    if args.record:
        raise UserError("--record needs a trained run: name it with --save or --run_dir, without --checkpoint_path")
    return args.run_dir or ROOT / "runs" / PAPER / (args.save or f"test-{files[0].stem}")


def build(tensors, header, devices):
    """The trained network of a checkpoint, ready to evaluate."""
    from baseline_openmax.model import Classifier
    from common.errors import UserError

    model = Classifier(**header["model"])
    try:
        model.load_state_dict({key: value for key, value in tensors.items() if not key.startswith("statistics.")})
    except RuntimeError as error:
        raise UserError(f"weights do not fit the network of their header: {error}") from None
    return devices.setup(model).eval()


def forward(model, header, devices, features: bool = False):
    """Function from images to what is kept of them: logits, and pooled features when asked."""
    from baseline_openmax.model import mirrored

    def apply(images):
        with devices.autocast():
            found = {"logits": mirrored(model, images) if header["mirror_test"] else model(images)}
            if features:
                found["features"] = model.features(images)
        return found

    return apply


def score(args, model, header, devices, with_train):
    """Logits of all parts; returns the arrays of `scores.npz` without a score, and the data."""
    import numpy as np

    from common.datasets import prepare
    from common.errors import UserError
    from common.inference import evaluation_parts, outputs

    config = header["data"]
    subset = 64 if args.dry_run else args.subset or config["subset"]
    data = prepare(config["known_dataset"], config["split"], args.unknown, root=args.data_dir,
                   validation_share=config["validation_share"], seed=config["seed"], subset=subset,
                   released_noise=args.released_noise, odin_crop=args.odin_crop)  # fmt: skip
    if list(data.class_names) != header["class_names"]:
        raise UserError(f"the checkpoint knows {header['class_names']}, the data gives {list(data.class_names)}")
    without_validation = data.validation is None or not len(data.validation)
    parts = evaluation_parts(data, with_train or args.train_scores or without_validation)
    arrays = outputs(forward(model, header, devices, args.save_features), parts, devices.device, args.batch_size)
    arrays["prediction"] = arrays["logits"].argmax(1)
    arrays["class_names"] = np.array(data.class_names)
    return arrays, data


def judge_images(args, model, header, openmax, run_dir, devices) -> None:
    """Print class or "unknown" for the user's own pictures, at the threshold that accepts 95 % of held-out knowns."""
    from baseline_openmax.heads import score_names, scored
    from common.errors import UserError
    from common.inference import apply_batched
    from common.own_images import read_images, verdict_lines

    name, evaluated = score_names(args.score, openmax)[0], run_dir / "metrics.json"
    stored = json.loads(evaluated.read_text()).get("thresholds", {}) if evaluated.exists() else header.get("thresholds", {})
    found = stored.get(name, {})
    threshold = found.get("validation") if found.get("validation") is not None else found.get("train")
    if threshold is None or (name in openmax and openmax[name] is None):
        raise UserError(f"no {name} threshold is known for this network: evaluate it once without --images, with --score {name}")
    names, pixels = read_images(args.images, tuple(header["model"]["shape"]))
    arrays = apply_batched(forward(model, header, devices), pixels, devices.device, args.batch_size)
    unknown_score = scored(name, arrays, openmax.get(name))["unknown_score"]
    prediction = arrays["logits"].argmax(1)
    print("\n".join(verdict_lines(names, prediction, unknown_score, threshold, header["class_names"], name)))


def report(args, run_dir, header, arrays, openmax, data, files, seconds, argv) -> None:
    """Write `scores*.npz`, `metrics.json` and, when asked, records; print a table."""
    from baseline_openmax.heads import score_names, scored
    from common import results
    from common.files import write_json
    from common.metrics import evaluate_file, thresholds
    from common.run import command_line

    all_metrics, thresholds_of = {}, {}
    print(f"{'score':16} {'unknown':28} {'closed accuracy':>15} {'AUROC':>7} {'FPR95':>7} {'OSCR':>7} {'macro-F1':>9}")
    for number, name in enumerate(score_names(args.score, openmax)):
        path = run_dir / ("scores.npz" if number == 0 else f"scores_{name}.npz")
        result = scored(name, arrays, openmax.get(name))
        results.write_scores(path, result)
        all_metrics[name] = evaluate_file(path)
        thresholds_of[name] = thresholds(result["target"], result["unknown_score"], result["split"])
        for unknown, values in results.by_source(all_metrics[name]).items():
            print(f"{name:16} {unknown:28} {values['closed_accuracy']:15.4f} {values['auroc']:7.4f}"
                  f" {values['fpr95_known_positive']:7.4f} {values['oscr']:7.4f} {values['macro_f1_validation']:9.4f}")
        if args.record:
            write_record(args, run_dir, header, name, all_metrics[name], result, data, files, seconds, argv)
    write_json(run_dir / "metrics.json", {"scores": all_metrics, "thresholds": thresholds_of, "command": command_line(argv)})
    if not args.no_report and not args.dry_run and (run_dir / "meta.json").exists():
        from common.report import write_report

        write_report(run_dir)


def write_record(args, run_dir, header, name, metrics, result, data, files, seconds, argv) -> None:
    """Write the record of one score of a trained run, with its compact scores beside it."""
    from common import results
    from common.files import sha256
    from common.run import command_line

    meta = json.loads((run_dir / "meta.json").read_text())
    config = header["data"]
    method = f"openmax-tail{args.tail_size[0]}" if name == "openmax" else name
    path = results.record_path(PAPER, args.record, config["known_dataset"], method, config["split"], config["seed"])
    record = results.record_of(
        meta,
        paper=PAPER,
        table=args.record,
        data=config["known_dataset"],
        split=config["split"],
        method=method,
        backbone=header["model"]["backbone"],
        metrics=metrics,
        commands=[meta["command"], command_line(argv)],
        wall_seconds={"train": meta["wall_seconds"], "test": round(seconds, 2)},
        checkpoint_sha256=[sha256(file) for file in files],
        unknown_checksums={source: images.checksums for source, images in data.unknown.items()},
    )
    if name != "mls":
        # The logits are the same for every score: one committed copy, beside the record of the maximum logit, is enough.
        result = {key: value for key, value in result.items() if key != "logits"}
    results.write_record(path, record, result)


if __name__ == "__main__":
    run_script(main)
