"""Evaluate a trained classifier in the open set: scores of every image, metrics of every unknown set.

    python baseline_openmax/test.py --save NAME                                  # a run, its own unknown classes
    python baseline_openmax/test.py --save NAME --score mls msp energy --unknown omniglot noise
"""

from __future__ import annotations

import time

from common.arguments import ScriptParser, add_common_arguments, parse, positive_int, run_script

PAPER = "baseline_openmax"
SCORE_NAMES = ("msp", "mls", "energy", "entropy", "margin")


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint_path", help="run directory, weights file, or a name in checkpoints/MANIFEST.json; else the run")
    evaluation = parser.add_argument_group("evaluation")
    evaluation.add_argument("--score", nargs="+", choices=SCORE_NAMES, default=["mls", "msp"],
                            help="unknown scores; the first is the run's own (scores.npz)")
    evaluation.add_argument("--unknown", nargs="+", default=["rest"], metavar="SET",
                            help="unknown sets: rest (the unknown classes of the known data set) or data set names")
    evaluation.add_argument("--batch_size", type=positive_int, default=512, help="images at a time")
    evaluation.add_argument("--released_noise", action="store_true", help="noise sets in the float ranges of the VMDLS release")
    evaluation.add_argument("--odin_crop", choices=("center", "resize", "native"), default="center",
                            help="36x36 ODIN crops: cut to the centre, resized, or as they are")
    evaluation.add_argument("--train_scores", action="store_true",
                            help="score the training part too (always done without held-out images)")
    evaluation.add_argument("--record", metavar="TABLE", help="write records and compact scores under results/records")
    add_common_arguments(parser, train=False)
    return parser


def main(argv=None) -> None:
    args = parse(get_args_parser(), argv)
    from common.checkpoints import find, load_weights
    from common.devices import Devices
    from common.errors import UserError
    from common.run import find_run

    run_dir = None
    if args.save or args.run_dir:
        run_dir = find_run(PAPER, args.run_dir or args.save)
    elif not args.checkpoint_path:
        raise UserError("name a run with --save or --run_dir, or weights with --checkpoint_path")
    source = args.checkpoint_path or run_dir
    tensors, header = load_weights(source, paper=PAPER)
    devices = Devices(args)
    begun = time.monotonic()
    scores, data = score(args, tensors, header, devices)
    seconds = time.monotonic() - begun
    if run_dir is None:
        run_dir = find(source)[0].parent if find(source)[0].name == "weights.safetensors" else None
    report(args, run_dir, header, scores, data, find(source), seconds, argv)


def score(args, tensors, header, devices):
    """Logits of all parts; returns the arrays of `scores.npz` without a score, and the data."""
    from baseline_openmax.model import Classifier, mirrored
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
    model = Classifier(**header["model"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"weights do not fit the network of their header: {error}") from None
    model = devices.setup(model).eval()

    def logits(images):
        with devices.autocast():
            return {"logits": mirrored(model, images) if header["mirror_test"] else model(images)}

    without_validation = data.validation is None or not len(data.validation)
    parts = evaluation_parts(data, args.train_scores or without_validation)
    arrays = outputs(logits, parts, devices.device, args.batch_size)
    arrays["prediction"] = arrays["logits"].argmax(1)
    arrays["class_names"] = data.class_names if not isinstance(data.class_names, tuple) else list(data.class_names)
    return arrays, data


def report(args, run_dir, header, arrays, data, files, seconds, argv) -> None:
    """Write `scores*.npz`, `metrics.json` and, when asked, records; print a table."""
    import json

    from common import results
    from common.arguments import ROOT
    from common.files import write_json
    from common.metrics import evaluate_file
    from common.run import command_line
    from common.scores import SCORES

    if run_dir is None:
        run_dir = args.run_dir or ROOT / "runs" / PAPER / f"test-{time.strftime('%Y%m%d-%H%M%S')}"
        run_dir.mkdir(parents=True, exist_ok=True)
    all_metrics = {}
    print(f"{'score':8} {'unknown':28} {'closed accuracy':>15} {'AUROC':>7} {'FPR95':>7} {'OSCR':>7} {'macro-F1':>9}")
    for number, name in enumerate(args.score):
        path = run_dir / ("scores.npz" if number == 0 else f"scores_{name}.npz")
        scored = arrays | {"unknown_score": SCORES[name](arrays["logits"])}
        results.write_scores(path, scored)
        all_metrics[name] = evaluate_file(path)
        for unknown, values in all_metrics[name].items():
            print(f"{name:8} {unknown:28} {values['closed_accuracy']:15.4f} {values['auroc']:7.4f}"
                  f" {values['fpr95_known_positive']:7.4f} {values['oscr']:7.4f} {values['macro_f1_validation']:9.4f}")
        if args.record:
            meta = json.loads((run_dir / "meta.json").read_text())
            config = header["data"]
            target = results.record_path(PAPER, args.record, config["known_dataset"], name, config["split"], config["seed"])
            record = results.record_of(
                meta, paper=PAPER, table=args.record, data=config["known_dataset"], split=config["split"], method=name,
                metrics=all_metrics[name], backbone=header["model"]["backbone"],
                commands=[meta["command"], command_line(argv)],
                wall_seconds={"train": meta["wall_seconds"], "test": round(seconds, 2)},
                checkpoint_sha256=[results_sha(file) for file in files],
                unknown_checksums={k: v.checksums for k, v in data.unknown.items()},
            )  # fmt: skip
            results.write_record(target, record, scored)
    write_json(run_dir / "metrics.json", {"scores": all_metrics, "command": command_line(argv)})
    print(f"written: {run_dir}")


def results_sha(file) -> str:
    """SHA-256 of a weights file."""
    from common.files import sha256

    return sha256(file)


if __name__ == "__main__":
    run_script(main)
