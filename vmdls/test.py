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


def trained_network(args, devices):
    """`(Trained, VMDLS, Rebuilder or None, name of its weights)` of the flags; networks on the device, in evaluation mode."""
    from common.evaluation import Trained
    from vmdls.model import VMDLS
    from vmdls.weighting import Rebuilder, load_autoencoder

    trained = Trained(args, PAPER)
    require_classifier(trained.header)
    model = VMDLS(**trained.header["model"])
    check_flags(args, trained.header, model.dimensions)
    trained.fill(model)
    model = devices.setup(model).eval()
    if not (args.ae_features or args.ablation):
        return trained, model, None, None
    autoencoder, weights = load_autoencoder(args.ae_weights, trained.header)
    return trained, model, Rebuilder(model, autoencoder, devices), weights


def main(argv=None) -> None:
    args = parse_arguments(argv)
    import numpy as np

    from common.detector import verdicts
    from common.devices import Devices
    from common.evaluation import parts_to_score, report
    from common.inference import outputs
    from vmdls.api import Detector
    from vmdls.dry_run import enough_images
    from vmdls.evaluation import Evaluation, wanted
    from vmdls.scoring import require_finite
    from vmdls.tables import write_tables
    from vmdls.weighting import outputs_of

    if args.images:
        print("\n".join(verdicts(Detector.from_arguments(args), args.images)))
        return
    devices = Devices(args)
    trained, model, rebuilder, weights = trained_network(args, devices)
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
    remember_settings(trained.directory, evaluation, variants, weights)
    if not args.no_report and not args.dry_run:
        from common.plots.drawing import draw_run
        from common.plots.reading import read_run

        draw_run(read_run(trained.directory), trained.directory / "figures", seed=args.seed)


def remember_settings(directory, evaluation, variants, weights: str | None) -> None:
    """Add to metrics.json what each threshold belongs to (`scoring`): method, auto-encoder, its largest training error."""
    from common.files import write_json
    from vmdls.api import located

    metrics = json.loads((directory / "metrics.json").read_text())
    for name, variant in variants.items():
        scoring = {"method": evaluation.method(variant)}
        if variant.weighted:
            scoring |= {"autoencoder": located(weights), "largest_training_error": evaluation.largest}
        metrics["thresholds"][name]["scoring"] = scoring
    write_json(directory / "metrics.json", metrics)


if __name__ == "__main__":
    run_script(main)
