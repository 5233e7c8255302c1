"""Evaluate a trained VMDLS network in the open set: Gaussians on its features, metrics of every unknown set.

    python vmdls/test.py --save NAME                          # the ensemble's score on a run's own unknown classes
    python vmdls/test.py --save NAME --ae_features --unknown omniglot mnist-noise noise
    python vmdls/test.py --save NAME --score vmdls mean g --ablation --unknown omniglot
    python vmdls/test.py --save NAME --images my_digit.png    # class or "unknown" for own pictures
"""

from __future__ import annotations

import json
import time

from common.arguments import run_script
from vmdls.evaluation_arguments import PAPER, check_flags, get_args_parser, parse_arguments, require_classifier

__all__ = ["PAPER", "get_args_parser", "main", "parse_arguments"]


def main(argv=None) -> None:
    args = parse_arguments(argv)
    import numpy as np

    from common.devices import Devices
    from common.evaluation import Trained, parts_to_score, report
    from common.inference import outputs
    from vmdls.dry_run import enough_images
    from vmdls.evaluation import Evaluation, wanted
    from vmdls.model import VMDLS
    from vmdls.scoring import require_finite
    from vmdls.tables import write_tables
    from vmdls.weighting import Rebuilder, load_autoencoder, outputs_of

    trained = Trained(args, PAPER)
    require_classifier(trained.header)
    model = VMDLS(**trained.header["model"])
    check_flags(args, trained.header, model.dimensions)
    trained.fill(model)
    devices = Devices(args)
    model = devices.setup(model).eval()
    rebuilder, weights = None, None
    if args.ae_features or args.ablation:
        autoencoder, weights = load_autoencoder(args.ae_weights, trained.header)
        rebuilder = Rebuilder(model, autoencoder, devices)
    if args.images:
        judge_images(args, trained, model, rebuilder, weights, devices)
        return
    data = trained.data(enough_images(args, len(trained.header["class_names"])))
    begun = time.monotonic()
    evaluation = Evaluation(args, model, rebuilder, devices, trained.tensors, data.train)
    variants = wanted(args)
    evaluation.prepare(variants.values())
    arrays = outputs(outputs_of(model, rebuilder, devices), parts_to_score(args, data), devices.device, args.batch_size)
    require_finite(arrays["features"], "images")
    arrays["class_names"] = np.array(data.class_names)
    found = {name: evaluation.scored(variant, arrays) for name, variant in variants.items()}
    first = next(iter(variants))
    if args.save_features:
        found[first]["features"] = arrays["features"]
    seconds = time.monotonic() - begun
    methods = {name: evaluation.method(variant) for name, variant in variants.items()}
    report(args, trained, data, list(variants), found.get, seconds, argv, methods.get)
    print(f"written: {write_tables(trained.directory, found, first, methods, args.thresholding)}")
    if rebuilder is not None:
        remember_weights(trained.directory, weights, evaluation.largest)
    if not args.no_report and not args.dry_run:
        from common.plots.drawing import draw_run
        from common.plots.reading import read_run

        draw_run(read_run(trained.directory), trained.directory / "figures", seed=args.seed)


def remember_weights(directory, weights: str, largest: float) -> None:
    """Add to metrics.json which auto-encoder weighted the scores and its largest training error, for `--images`."""
    from common.files import write_json

    metrics = json.loads((directory / "metrics.json").read_text())
    metrics["reconstruction"] = {"autoencoder": weights, "largest_training_error": largest}
    write_json(directory / "metrics.json", metrics)


def judge_images(args, trained, model, rebuilder, weights, devices) -> None:
    """Print class or "unknown" for the user's own pictures, at the threshold that accepts 95 % of held-out knowns."""
    import numpy as np

    from common.errors import UserError
    from common.inference import TEST, apply_batched
    from common.own_images import read_images, verdict_lines
    from vmdls.evaluation import Evaluation, wanted
    from vmdls.scoring import require_finite
    from vmdls.weighting import outputs_of

    name, variant = next(iter(wanted(args).items()))
    threshold = trained.threshold(name)
    if args.transductive:
        raise UserError("--transductive takes its constants from a test set: it does not go with --images")
    names, pixels = read_images(args.images, tuple(trained.header["model"]["shape"]))
    stored = variant.settings is None and "statistics.covariance" in trained.tensors
    train = None if stored else trained.data(args).train
    evaluation = Evaluation(args, model, rebuilder, devices, trained.tensors, train)
    evaluated = trained.directory / "metrics.json"
    last = json.loads(evaluated.read_text()) if evaluated.exists() else {}
    used = last.get("reconstruction", {})
    if variant.weighted:
        if used.get("autoencoder") != weights:
            raise UserError(f"the last evaluation did not use the auto-encoder {weights}: evaluate once without --images")
        evaluation.largest = used["largest_training_error"]
    evaluation.prepare([variant])
    method = last.get("methods", {}).get(name, name)
    if method != evaluation.method(variant):
        raise UserError(f"the last evaluation was of {method}: evaluate again without --transductive, with the same flags of the"
                        " statistics")  # fmt: skip
    arrays = apply_batched(outputs_of(model, rebuilder, devices), pixels, devices.device, args.batch_size)
    require_finite(arrays["features"], "images")
    arrays["split"] = np.full(len(pixels), TEST, np.int8)
    result = evaluation.scored(variant, arrays)
    print("\n".join(verdict_lines(names, result["prediction"], result["unknown_score"], threshold,
                                  trained.header["class_names"], name)))  # fmt: skip


if __name__ == "__main__":
    run_script(main)
