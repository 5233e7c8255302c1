"""Evaluate a trained CROSR network in the open set: OpenMax on [y, z] (the original's compute_openmax), and its baselines.

    python crosr/test.py --save NAME                                    # p(unknown) of OpenMax on logits and latents
    python crosr/test.py --save NAME --score crosr openmax mls zscore --tail_size 20 100 --apply_softmax_before
    python crosr/test.py --save NAME --sweep tail_size=20,100,500 distance=euclidean,eucos

Network outputs are computed once and kept in `features_<feature_suffix>.npz` of the run.
"""

from __future__ import annotations

import argparse
import json
import re
import time

from common.arguments import ScriptParser, add_common_arguments, parse, run_script

PAPER = "crosr"
SCORE_NAMES = ("crosr", "openmax", "mls", "energy", "msp", "zscore", "zscore-onesided")
OPENMAX_DEFAULTS = {"distance": "euclidean", "clip": "zero"}
# Unknown set where every class is known; noise for others.
UNKNOWN_OF = {"cifar10": "imagenet-crop", "cifar100": "imagenet-crop", "svhn": "imagenet-crop", "mnist": "omniglot"}
UNKNOWN_RULE = ("rest where the split leaves classes unknown, imagenet-crop for cifar10, cifar100 and svhn, omniglot for mnist,"
                " noise for other sets")  # fmt: skip


def suffix(text: str) -> str:
    """argparse type: part of a file name."""
    if not re.fullmatch(r"[A-Za-z0-9._+-]+", text):
        raise argparse.ArgumentTypeError(f"expected letters, digits and . _ + - only, got {text!r}")
    return text


def get_args_parser() -> ScriptParser:
    from common.evaluation import add_evaluation_arguments
    from common.openmax_flags import add_openmax_arguments

    parser = ScriptParser(description=__doc__.split("\n")[0])
    evaluation = add_evaluation_arguments(parser, SCORE_NAMES, ["crosr"], UNKNOWN_RULE)
    evaluation.add_argument("--images", nargs="+", metavar="FILE|DIR",
                            help="judge own pictures instead: class or unknown at the threshold of the last evaluation")
    original = parser.add_argument_group("the original's flags")
    original.add_argument("--feature_suffix", type=suffix, default="avgpool",
                          help="tag of the file of network outputs; it holds both poolings, --pooling chooses")
    original.add_argument("--apply_softmax_before", dest="softmax", action="store_const", const="before",
                          default=argparse.SUPPRESS,
                          help="softmax before the recalibration (--softmax before), else after it")
    original.add_argument("--save_openmax_scores", action="store_true",
                          help="write the K + 1 probabilities of every image to a file of their own")
    original.add_argument("--save_w_scores", action="store_true",
                          help="write w-scores, activation vectors and their class means to that file")
    vectors = parser.add_argument_group("activation vectors")
    vectors.add_argument("--pooling", choices=("max", "avg"), default="max", help="pooling of the latent maps over positions")
    vectors.add_argument("--features", nargs="+", choices=("logits", "logits+latents"), default=["logits+latents"],
                         help="what --score crosr takes distances of: y or [y, z]; several give a score each")
    add_openmax_arguments(parser, tail_size=[100], **OPENMAX_DEFAULTS)
    add_common_arguments(parser, train=False)
    return parser


def default_unknown(known_dataset: str, split: str) -> list[str]:
    """The unknown sets of an evaluation without `--unknown`; see `UNKNOWN_RULE`."""
    from common.datasets import find_split, resolve_name

    dataset = resolve_name(known_dataset)
    chosen = find_split(dataset, split)
    return ["rest"] if chosen.unknown or chosen.unknown_dataset else [UNKNOWN_OF.get(dataset, "noise")]


def check_sizes(unknown, model_config) -> None:
    """Refuse images (native crops of 36 pixels) that the decoder cannot halve and double again."""
    from common.errors import UserError
    from crosr.networks import STRIDE

    step = STRIDE[model_config["backbone"]]
    for name, images in unknown.items():
        if any(side % step for side in images.shape[1:]) and not model_config["crop_size"]:
            raise UserError(f"{name} has images of {images.shape[1]} pixels, backbone {model_config['backbone']} wants multiples"
                            f" of {step}: --odin_crop center or resize")


def main(argv=None) -> None:
    args = parse(get_args_parser(), argv)
    import numpy as np
    import torch

    from common.devices import Devices
    from common.evaluation import Trained, parts_to_score, report
    from common.files import sha256, write_json
    from common.sweep import combinations, parse_sweep, write_sweep
    from crosr.features import FeatureFile, forward, stored_statistics
    from crosr.model import DHRNet
    from crosr.scores import (
        check,
        fit,
        needs_training_images,
        record_name,
        score_names,
        scored,
        statistics_for,
        variants,
    )
    from crosr.sweep import settings_of, sweep, varied

    trained = Trained(args, PAPER)
    header, classes = trained.header, len(trained.header["class_names"])
    args.unknown = args.unknown or default_unknown(header["data"]["known_dataset"], header["data"]["split"])
    found, base = variants(args, classes)
    grid = parse_sweep(args.sweep, settings_of(base)) if args.sweep else {}
    if args.dry_run and "tail_size" in grid:
        grid["tail_size"] = [base.settings["tail_size"]]
    asked = [*found.values(), *(varied(base, chosen) for chosen in combinations(grid) if chosen)]
    tails = [variant.settings["tail_size"] for variant in asked]
    stored = stored_statistics(trained.tensors)
    check(stored, asked, header["class_names"], args.dry_run)
    model = DHRNet(**header["model"])
    trained.fill(model)
    devices = Devices(args)
    model = devices.setup(model).eval()
    if args.images:
        judge_images(args, trained, forward(model, devices), devices, found, stored)
        return
    begun = time.monotonic()
    data = trained.data(args)
    check_sizes(data.unknown, header["model"])
    torch.manual_seed(args.seed)  # of the dropout of runs with --dropout_at_test
    drawn = f"dropout {args.seed}" if header["model"].get("dropout_at_test") else ""
    network = " ".join([*map(sha256, trained.files), devices.precision, drawn])
    features = FeatureFile(trained.directory / f"features_{args.feature_suffix}.npz", network)
    parts = parts_to_score(args, data, args.dry_run or needs_training_images(stored, tails))
    arrays, digests = features.outputs(forward(model, devices), parts, devices.device, args.batch_size)
    arrays["prediction"] = arrays["logits"].argmax(1)
    arrays["class_names"] = np.array(data.class_names)
    statistics = statistics_for(stored, arrays, tails, args.dry_run)
    fitted = {name: fit(statistics, variant, data.class_names) for name, variant in found.items()}
    seconds = time.monotonic() - begun

    results: dict[str, dict] = {}

    def result(name: str) -> dict:
        results[name] = scored(name, arrays, found, fitted, statistics)
        return results[name]

    report(args, trained, data, score_names(args.score, found), result, seconds, argv,
           lambda name: record_name(name, found, classes, OPENMAX_DEFAULTS))  # fmt: skip
    write_openmax_files(args, trained.directory, arrays, found, fitted, results)
    computed = {"feature_file": features.path.name, "network": network, "parts": list(zip(arrays["sources"], digests))}
    write_json(trained.directory / "calibration_info.json", computed | {"scores": calibration_info(found, fitted)})
    if grid:
        write_sweep(sweep(arrays, statistics, base, grid, data.class_names), trained.directory, list(grid))


def write_openmax_files(args, directory, arrays, found, fitted, results) -> None:
    """Per-class tables, figures and the files that are asked for, of every OpenMax score; prints the first one's tables.

    `metrics.json` gets the settings (`scoring`) that each threshold belongs to.
    """
    from common.files import write_json
    from crosr.per_class import one_vs_rest_text, report_text, tables, write_tables
    from crosr.sweep import settings_of

    evaluated = json.loads((directory / "metrics.json").read_text())
    for name, variant in found.items():
        evaluated["thresholds"][name]["scoring"] = settings_of(variant)
    write_json(directory / "metrics.json", evaluated)
    (directory / "per_class.csv").unlink(missing_ok=True)
    names = [str(name) for name in arrays["class_names"]]
    of_score = {name: tables(results[name]) for name in found}
    for source, (table, report) in next(iter(of_score.values()), {}).items():
        print(f"\n{next(iter(of_score))}, unknown: {source}\n{one_vs_rest_text(table, names)}\n\n{report_text(report, names)}")
    if of_score:
        write_tables(directory / "per_class.csv", of_score, names)
    for name, variant in found.items():
        settings = variant.settings
        tag = f"{name.partition('-')[0]}_{args.feature_suffix}_{settings['tail_size']}_softmax_{settings['softmax']}"
        if not (args.no_report or args.dry_run):
            write_scatter(directory / "figures" / f"openmax_scores_{tag}.png", results[name])
        if args.save_openmax_scores or args.save_w_scores:
            write_arrays(args, directory / f"{tag}.npz", arrays, variant, fitted[name], results[name])


def calibration_info(found, fitted) -> dict[str, dict]:
    """Settings and Weibull parameters per class of every OpenMax score."""
    return {name: {"features": variant.features, "pooling": variant.pooling, **variant.settings,
                   "weibull": {key: value for key, value in fitted[name].state_dict().items() if key != "means"}}
            for name, variant in found.items()}  # fmt: skip


def write_scatter(path, result) -> None:
    """Draw p(unknown) of single test images, as the original always does."""
    from common.plots.distributions import scatter
    from common.plots.style import save

    save(scatter(result), path)


def write_arrays(args, path, arrays, variant, fitted, result) -> None:
    """Write what `--save_openmax_scores` and `--save_w_scores` ask for into one `.npz`; rows as in `scores.npz`.

    `openmax_scores (N, K + 1)`; `w_scores (N, K)`, `activation_vectors (N, D)`, `mean_activation_vectors (K, D)`, `logits`.
    """
    import numpy as np

    from common.files import atomic

    kept = {key: arrays[key] for key in ("target", "prediction", "split", "source", "sources", "class_names")}
    if args.save_openmax_scores:
        kept["openmax_scores"] = result["probabilities"]
    if args.save_w_scores:
        vectors = variant.vectors(arrays)
        kept |= {"w_scores": fitted.tail_probabilities(vectors), "activation_vectors": vectors.astype(np.float32),
                 "mean_activation_vectors": fitted.means, "logits": arrays["logits"]}  # fmt: skip
    with atomic(path) as partial, open(partial, "wb") as target:
        np.savez_compressed(target, **kept)
    print(f"written: {path}")


def judge_images(args, trained, function, devices, found, statistics) -> None:
    """Print class or "unknown" for the user's own pictures, at the threshold that accepts 95 % of held-out knowns."""
    from common.detector import verdicts
    from crosr.api import Detector

    detector = Detector.of_evaluation(args, trained, function, devices, found, statistics)
    print("\n".join(verdicts(detector, args.images)))


if __name__ == "__main__":
    run_script(main)
