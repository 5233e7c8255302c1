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
                            help="score the logits over the calibrated temperature (stored logits stay plain); else only"
                            " NLL and ECE use it")
    evaluation.add_argument("--odin_temperature", type=float, help="ODIN's temperature T; else 1000")
    evaluation.add_argument("--odin_step", type=float, help="ODIN's step epsilon, on normalised images; else .0014")
    evaluation.add_argument("--simple_distance", choices=("euclidean", "cosine"),
                            help="openmax-simple: distance of the features to the class means; else euclidean")
    evaluation.add_argument("--images", nargs="+", metavar="FILE|DIR",
                            help="judge own pictures instead: class or unknown at the threshold of the last evaluation")
    evaluation.add_argument("--save_features", action="store_true", help="keep the pooled features in scores.npz (for t-SNE)")
    add_openmax_arguments(parser)
    add_common_arguments(parser, train=False)
    return parser


def main(argv=None) -> None:
    args = parse(get_args_parser(), argv)
    from baseline_openmax import evaluation as ours
    from baseline_openmax import scoring
    from baseline_openmax.calibration import stored_temperature
    from baseline_openmax.heads import fit_openmax, score_names
    from baseline_openmax.overlap import refuse_training_outliers
    from baseline_openmax.sweep import sweep
    from common.devices import Devices
    from common.evaluation import parts_to_score, report
    from common.openmax_flags import openmax_settings, record_method
    from common.sweep import parse_sweep, write_sweep

    trained = selected(args)
    header, run_dir = trained.header, trained.directory
    args.score = args.score or default_scores(header)
    ours.check_scores(args.score, header)
    refuse_training_outliers(args.unknown, header)
    settings = openmax_settings(args, len(header["class_names"])) if "openmax" in args.score or args.sweep else {}
    devices = Devices(args)
    if args.images:
        judge_images(args, trained, settings, devices)
        return
    calibrated = stored_temperature(header, trained.files[0].parent if args.select == "last" else None)
    chosen = scoring.settings_of(args, calibrated)
    temperature = chosen["temperature"]
    first = next(iter(settings.values()), {})
    grid = parse_sweep(args.sweep, first) if args.sweep else None
    stored = {name: ours.openmax_in(trained, values, temperature) for name, values in settings.items()}
    if args.select == "last":
        stored = {name: found or ours.openmax_beside(run_dir, settings[name], temperature, own=True)
                  for name, found in stored.items()}  # fmt: skip
    model = ours.load_network(trained, devices)
    begun = time.monotonic()
    data = trained.data(args)
    fits = grid is not None or None in stored.values()
    parts = parts_to_score(args, data, fits or "openmax-simple" in args.score)
    arrays = ours.collect(model, header, devices, parts, args, args.score, chosen)
    calibration = None if calibrated is None else ours.calibration_of_test(arrays, calibrated)
    scaled = ours.divided(arrays, temperature)
    openmax = {name: found[0] if found else fit_openmax(scaled, settings[name], args.dry_run) for name, found in stored.items()}
    fitted = ours.fit_scores(args.score, scaled, chosen["simple_distance"], args.dry_run)
    seconds = time.monotonic() - begun

    def named(name: str) -> str:
        method = record_method(name, settings, len(header["class_names"]))
        return scoring.record_name(method, name, chosen, args.calibrated_scores)

    names = score_names(args.score, openmax)
    report(args, trained, data, names,
           lambda name: ours.scored(name, arrays, fitted, openmax.get(name), args.save_features, temperature), seconds, argv,
           named)  # fmt: skip
    complete_metrics(run_dir / "metrics.json", {name: scoring.concerning(name, chosen) for name in names}, calibration)
    ours.save_fitted(run_dir / ours.FITTED_FILE, fitted, temperature)
    for number, (name, found) in enumerate(stored.items()):
        if found is None:
            ours.save_openmax(ours.openmax_file(run_dir, name if number else "openmax"), openmax[name], temperature)
    if grid is not None:
        write_sweep(sweep(scaled, first, grid, args.dry_run), run_dir, list(grid))


def selected(args):
    """The checkpoint that the flags name: weights of the last epoch, or of the best one."""
    from baseline_openmax.selection import FILE, FOLDER, best_of_run
    from common.errors import UserError
    from common.evaluation import Trained
    from common.run import find_run

    where = args.checkpoint_path or args.run_dir or args.save
    if where and (best := best_of_run(where)):
        args.select, where = "best", best.parent
    if args.select == "last":
        return Trained(args, PAPER)
    if not where:
        raise UserError("name a run with --save or --run_dir")
    if args.record:
        raise UserError("--record keeps the last epoch's weights: leave out --select best")
    run = find_run(PAPER, where)
    if not (run / FILE).exists():
        raise UserError(f"{run} has no {FILE}: main.py writes it where --validation_share is above 0")
    elsewhere = args.checkpoint_path and (args.run_dir or args.save)
    args.checkpoint_path = str(run / FILE)
    if not elsewhere:
        args.run_dir, args.save = run / FOLDER, None
    return Trained(args, PAPER)


def default_scores(header) -> list[str]:
    """The run's own head first, where it has one; else maximum logit and softmax."""
    own = header.get("osr_head")
    return list(dict.fromkeys([own, "mls"])) if own else ["mls", "msp"]


def complete_metrics(path, settings: dict, calibration: dict | None) -> None:
    """Add to `metrics.json` what each threshold belongs to (`scoring`), and NLL and ECE before and after the temperature."""
    import json

    from common.files import write_json

    found = json.loads(path.read_text())
    for name, values in settings.items():
        found["thresholds"][name]["scoring"] = values
    write_json(path, found if calibration is None else found | {"calibration": calibration})


def judge_images(args, trained, openmax_settings, devices) -> None:
    """Print class or "unknown" for the user's own pictures, at the threshold that accepts 95 % of held-out knowns.

    Scores are made with the settings that the threshold belongs to; flags that say otherwise are refused.
    """
    from baseline_openmax import evaluation as ours
    from baseline_openmax import scoring
    from baseline_openmax.heads import score_names
    from common.errors import UserError
    from common.inference import apply_batched
    from common.own_images import read_images, verdict_lines

    header = trained.header
    name = score_names(args.score, openmax_settings)[0]
    threshold = trained.threshold(name)
    fitted, of_fitted = ours.load_fitted(trained.directory / ours.FITTED_FILE)
    chosen = scoring.stored_settings(trained, name, of_fitted if name in fitted else None)
    scoring.refuse_contradiction(args, name, chosen)
    state, temperature = None, chosen["temperature"]
    if name in openmax_settings:
        values = openmax_settings[name]
        found = ours.openmax_in(trained, values, temperature) or ours.openmax_beside(trained.directory, values, temperature)
        state = found and found[0]
    if (name in openmax_settings and state is None) or (name in ("kl", "openmax-simple", "kplus1") and name not in fitted):
        raise UserError(f"{name} was not fitted with these settings: evaluate once without --images, with the same flags")
    names, pixels = read_images(args.images, tuple(header["model"]["shape"]))
    odin = (chosen["odin_temperature"], chosen["odin_step"]) if name == "odin" else None
    model = ours.load_network(trained, devices)
    function = ours.forward(model, header, devices, name == "openmax-simple", odin)
    arrays = apply_batched(function, pixels, devices.device, args.batch_size)
    unknown_score = ours.scored(name, arrays, fitted, state, temperature=temperature)["unknown_score"]
    prediction = arrays["logits"].argmax(1)
    print("\n".join(verdict_lines(names, prediction, unknown_score, threshold, header["class_names"], name)))


if __name__ == "__main__":
    run_script(main)
