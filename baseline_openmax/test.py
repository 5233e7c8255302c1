"""Evaluate a trained classifier in the open set: scores of every image, metrics of every unknown set.

    python baseline_openmax/test.py --save NAME                                  # a run, its own unknown classes
    python baseline_openmax/test.py --save NAME --score mls msp energy --unknown omniglot noise
"""

from __future__ import annotations

import time

from common.arguments import ScriptParser, add_common_arguments, parse, run_script

PAPER = "baseline_openmax"
SCORE_NAMES = ("msp", "mls", "energy", "entropy", "margin", "openmax")


def get_args_parser() -> ScriptParser:
    from common.evaluation import add_evaluation_arguments
    from common.openmax_flags import add_openmax_arguments

    parser = ScriptParser(description=__doc__.split("\n")[0])
    evaluation = add_evaluation_arguments(parser, SCORE_NAMES, ["mls", "msp"])
    evaluation.add_argument("--images", nargs="+", metavar="FILE|DIR",
                            help="judge own pictures instead: class or unknown at the threshold of the last evaluation")
    evaluation.add_argument("--save_features", action="store_true", help="keep the pooled features in scores.npz (for t-SNE)")
    add_openmax_arguments(parser)
    add_common_arguments(parser, train=False)
    return parser


def main(argv=None) -> None:
    args = parse(get_args_parser(), argv)
    import numpy as np

    from baseline_openmax.heads import fit_openmax, save_openmax, score_names, scored, stored_openmax
    from baseline_openmax.model import Classifier
    from baseline_openmax.sweep import sweep
    from common.devices import Devices
    from common.evaluation import Trained, parts_to_score, report
    from common.inference import outputs
    from common.openmax_flags import openmax_settings, record_method
    from common.sweep import parse_sweep, write_sweep

    trained = Trained(args, PAPER)
    header, run_dir = trained.header, trained.directory
    settings = openmax_settings(args, len(header["class_names"])) if "openmax" in args.score or args.sweep else {}
    first = next(iter(settings.values()), {})
    grid = parse_sweep(args.sweep, first) if args.sweep else None
    openmax = {name: stored_openmax(trained.tensors, header, values) for name, values in settings.items()}
    model = Classifier(**header["model"])
    trained.fill(model)
    devices = Devices(args)
    model = devices.setup(model).eval()
    if args.images:
        judge_images(args, trained, model, settings, openmax, devices)
        return
    begun = time.monotonic()
    data = trained.data(args)
    fits = grid is not None or None in openmax.values()
    function = forward(model, header, devices, args.save_features)
    arrays = outputs(function, parts_to_score(args, data, fits), devices.device, args.batch_size)
    arrays["prediction"] = arrays["logits"].argmax(1)
    arrays["class_names"] = np.array(data.class_names)
    openmax = {name: fitted or fit_openmax(arrays, settings[name], args.dry_run) for name, fitted in openmax.items()}
    seconds = time.monotonic() - begun

    names = score_names(args.score, openmax)
    report(args, trained, data, names, lambda name: scored(name, arrays, openmax.get(name)), seconds, argv,
           lambda name: record_method(name, settings, len(header["class_names"])))  # fmt: skip
    if fits:
        save_openmax(run_dir / "openmax.safetensors", next(iter(openmax.values())), PAPER)
    if grid is not None:
        write_sweep(sweep(arrays, first, grid), run_dir, list(grid))


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


def judge_images(args, trained, model, settings, openmax, devices) -> None:
    """Print class or "unknown" for the user's own pictures, at the threshold that accepts 95 % of held-out knowns."""
    from baseline_openmax.heads import score_names, scored, stored_openmax
    from common.checkpoints import load_weights
    from common.errors import UserError
    from common.inference import apply_batched
    from common.own_images import read_images, verdict_lines

    header, beside = trained.header, trained.directory / "openmax.safetensors"
    name = score_names(args.score, openmax)[0]
    threshold, fitted = trained.threshold(name), openmax.get(name)
    if name in openmax and fitted is None and beside.exists():
        fitted = stored_openmax(*load_weights(beside, paper=PAPER), settings[name])
    if name in openmax and fitted is None:
        raise UserError(f"{name} was not fitted with these settings: evaluate once without --images, with the same flags")
    names, pixels = read_images(args.images, tuple(header["model"]["shape"]))
    arrays = apply_batched(forward(model, header, devices), pixels, devices.device, args.batch_size)
    unknown_score = scored(name, arrays, fitted)["unknown_score"]
    prediction = arrays["logits"].argmax(1)
    print("\n".join(verdict_lines(names, prediction, unknown_score, threshold, header["class_names"], name)))


if __name__ == "__main__":
    run_script(main)
