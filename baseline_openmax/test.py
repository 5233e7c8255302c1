"""Evaluate a trained classifier in the open set: scores of every image, metrics of every unknown set.

    python baseline_openmax/test.py --save NAME                                  # a run, its own unknown classes
    python baseline_openmax/test.py --save NAME --score mls msp energy --unknown omniglot noise
    python baseline_openmax/test.py --save NAME --select best                    # epoch chosen on held-out known images
"""

from __future__ import annotations

import time

from common.arguments import ScriptParser, add_common_arguments, parse, run_script

PAPER = "baseline_openmax"


def get_args_parser() -> ScriptParser:
    from baseline_openmax.arguments import HEADS
    from common.evaluation import add_evaluation_arguments
    from common.openmax_flags import add_openmax_arguments

    parser = ScriptParser(description=__doc__.split("\n")[0])
    evaluation = add_evaluation_arguments(parser, HEADS, ())
    parser.set_defaults(score=None)
    evaluation.add_argument("--select", choices=("last", "best"), default="last",
                            help="weights of the last epoch, or of the best one on held-out known images (results in RUN/best)")
    evaluation.add_argument("--calibrated_scores", action="store_true",
                            help="divide the logits by the calibrated temperature before scoring; else only NLL and ECE use it")
    evaluation.add_argument("--odin_temperature", type=float, default=1000.0, help="ODIN's temperature T")
    evaluation.add_argument("--odin_step", type=float, default=0.0014, help="ODIN's step epsilon, on normalised images")
    evaluation.add_argument("--simple_distance", choices=("euclidean", "cosine"), default="euclidean",
                            help="openmax-simple: distance of the features to the class means")
    evaluation.add_argument("--images", nargs="+", metavar="FILE|DIR",
                            help="judge own pictures instead: class or unknown at the threshold of the last evaluation")
    evaluation.add_argument("--save_features", action="store_true", help="keep the pooled features in scores.npz (for t-SNE)")
    add_openmax_arguments(parser)
    add_common_arguments(parser, train=False)
    return parser


def main(argv=None) -> None:
    args = parse(get_args_parser(), argv)
    from baseline_openmax import evaluation as ours
    from baseline_openmax.calibration import stored_temperature
    from baseline_openmax.heads import fit_openmax, save_openmax, score_names, stored_openmax
    from baseline_openmax.sweep import sweep
    from common.devices import Devices
    from common.errors import UserError
    from common.evaluation import parts_to_score, report
    from common.openmax_flags import openmax_settings, record_method
    from common.sweep import parse_sweep, write_sweep

    trained = selected(args)
    header, run_dir = trained.header, trained.directory
    args.score = args.score or default_scores(header)
    ours.check_scores(args.score, header)
    refuse_training_outliers(args.unknown, header)
    temperature = stored_temperature(header, trained.files[0].parent if args.select == "last" else None)
    if args.calibrated_scores and temperature is None:
        raise UserError("--calibrated_scores needs a run with calibration_info.json: main.py --calibration temperature")
    settings = openmax_settings(args, len(header["class_names"])) if "openmax" in args.score or args.sweep else {}
    first = next(iter(settings.values()), {})
    grid = parse_sweep(args.sweep, first) if args.sweep else None
    openmax = {name: stored_openmax(trained.tensors, header, values) for name, values in settings.items()}
    if args.select == "last" and not args.calibrated_scores:
        openmax = {name: found or ours.openmax_beside(run_dir, settings[name], own=True) for name, found in openmax.items()}
    devices = Devices(args)
    model = ours.load_network(trained, devices)
    if args.images:
        judge_images(args, trained, model, settings, openmax, devices)
        return
    begun = time.monotonic()
    data = trained.data(args)
    fits = grid is not None or None in openmax.values()
    parts = parts_to_score(args, data, fits or "openmax-simple" in args.score)
    arrays = ours.collect(model, header, devices, parts, args, args.score)
    calibration = None if temperature is None else ours.calibration_of_test(arrays, temperature)
    if args.calibrated_scores:
        arrays |= {key: arrays[key] / temperature for key in ("logits", "dummy") if key in arrays}
    openmax = {name: fitted or fit_openmax(arrays, settings[name], args.dry_run) for name, fitted in openmax.items()}
    fitted = ours.fit_scores(args.score, arrays, args.simple_distance, args.dry_run)
    seconds = time.monotonic() - begun

    names = score_names(args.score, openmax)
    report(args, trained, data, names,
           lambda name: ours.scored(name, arrays, fitted, openmax.get(name), args.save_features), seconds, argv,
           lambda name: record_method(name, settings, len(header["class_names"])))  # fmt: skip
    if calibration is not None:
        add_calibration(run_dir / "metrics.json", calibration)
    ours.save_fitted(run_dir / ours.FITTED_FILE, fitted)
    if fits:
        save_openmax(run_dir / ours.OPENMAX_FILE, next(iter(openmax.values())), PAPER)
    if grid is not None:
        write_sweep(sweep(arrays, first, grid), run_dir, list(grid))


def selected(args):
    """The checkpoint that the flags name: weights of the last epoch, or of the best one."""
    from baseline_openmax.selection import FILE
    from common.errors import UserError
    from common.evaluation import Trained

    if args.select == "last":
        return Trained(args, PAPER)
    from common.run import find_run

    where = args.checkpoint_path or args.run_dir or args.save
    if not where:
        raise UserError("name a run with --save or --run_dir")
    if args.record:
        raise UserError("--record keeps the last epoch's weights: leave out --select best")
    run = find_run(PAPER, where)
    if not (run / FILE).exists():
        raise UserError(f"{run} has no {FILE}: main.py writes it where --validation_share is above 0")
    args.checkpoint_path, args.run_dir, args.save = str(run / FILE), run / "best", None
    return Trained(args, PAPER)


def default_scores(header) -> list[str]:
    """The run's own head first, where it has one; else maximum logit and softmax."""
    own = header.get("osr_head")
    return list(dict.fromkeys([own, "mls"])) if own else ["mls", "msp"]


def refuse_training_outliers(unknown, header) -> None:
    """A set that served as outliers in training is no unknown set any more."""
    from common.datasets import resolve_name
    from common.errors import UserError

    used = {resolve_name(name) for name in header.get("outliers", ()) if name != "shuffled"}
    for name in unknown or ():
        if name != "rest" and not name.endswith("unknown") and resolve_name(name) in used - {"noise", "gaussian-noise"}:
            raise UserError(f"unknown set {name} was shown in training as outliers: its result would measure nothing")


def add_calibration(path, calibration: dict) -> None:
    """Add NLL and ECE before and after the temperature to `metrics.json`."""
    import json

    from common.files import write_json

    write_json(path, json.loads(path.read_text()) | {"calibration": calibration})


def judge_images(args, trained, model, settings, openmax, devices) -> None:
    """Print class or "unknown" for the user's own pictures, at the threshold that accepts 95 % of held-out knowns."""
    from baseline_openmax import evaluation as ours
    from baseline_openmax.heads import score_names
    from common.errors import UserError
    from common.inference import apply_batched
    from common.own_images import read_images, verdict_lines

    header = trained.header
    name = score_names(args.score, openmax)[0]
    threshold, state = trained.threshold(name), openmax.get(name)
    if name in openmax and state is None:
        state = ours.openmax_beside(trained.directory, settings[name])
    fitted = ours.load_fitted(trained.directory / ours.FITTED_FILE)
    if (name in openmax and state is None) or (name in ("kl", "openmax-simple", "kplus1") and name not in fitted):
        raise UserError(f"{name} was not fitted with these settings: evaluate once without --images, with the same flags")
    names, pixels = read_images(args.images, tuple(header["model"]["shape"]))
    odin = (args.odin_temperature, args.odin_step) if name == "odin" else None
    function = ours.forward(model, header, devices, name == "openmax-simple", odin)
    arrays = apply_batched(function, pixels, devices.device, args.batch_size)
    unknown_score = ours.scored(name, arrays, fitted, state)["unknown_score"]
    prediction = arrays["logits"].argmax(1)
    print("\n".join(verdict_lines(names, prediction, unknown_score, threshold, header["class_names"], name)))


if __name__ == "__main__":
    run_script(main)
