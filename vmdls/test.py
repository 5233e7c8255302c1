"""Evaluate a trained VMDLS network in the open set: Gaussians on its features, metrics of every unknown set.

    python vmdls/test.py --save NAME                          # the ensemble's score on a run's own unknown classes
    python vmdls/test.py --save NAME --score vmdls mean g --unknown omniglot mnist-noise noise
    python vmdls/test.py --save NAME --images my_digit.png    # class or "unknown" for own pictures
"""

from __future__ import annotations

import argparse
import json
import time

from common.arguments import ScriptParser, add_common_arguments, parse, positive_int, run_script, share

PAPER = "vmdls"
SCORE_NAMES = ("vmdls", "mean", "g", "t1", "t2", "t3")
TRANSFORMS = ("mnist", "cifar", "cifar_test", "blob", "emnist", "images", "toy")
# Flags of the release's test.py that only training reads, with their types; None: a switch.
TRAINING_ONLY = {
    "--margin_max_distance": float, "--margin_jumps": float, "--margin_jump": float, "--margins_epoch": int,
    "--margin_epochs": int, "--max_epochs": int, "--lr": float, "--kl_coeff": float, "--generation_epoch": int,
    "--lower_bound": float, "--step_size": int, "--step_gamma": float, "--opt": str, "--weights": str,
    "--finetune": None, "--finetune_lr": float, "--cov_scaling": float, "--recon_weight": float, "--gen_weight": float,
    "--num_workers": int, "--offline": None,
}  # fmt: skip
TABLE_SHARES = [number / 100 for number in range(1, 101)]


def get_args_parser() -> ScriptParser:
    from common.evaluation import add_evaluation_arguments

    parser = ScriptParser(description=__doc__.split("\n")[0])
    evaluation = add_evaluation_arguments(parser, SCORE_NAMES, ["vmdls"])
    evaluation.add_argument(
        "--images",
        nargs="+",
        metavar="FILE|DIR",
        help="judge own pictures instead: class or unknown at the threshold of the last evaluation",
    )
    evaluation.add_argument("--save_features", action="store_true", help="keep the feature ensemble in scores.npz")
    statistics = parser.add_argument_group("statistics and score")
    statistics.add_argument(
        "--transductive",
        action="store_true",
        help="take the score's constant from the test run, as released, not from the training images",
    )
    statistics.add_argument(
        "--released_statistics",
        action="store_true",
        help="overwrite the sums of a class that comes in several batches, as the release does",
    )
    statistics.add_argument(
        "--batch_classes",
        type=positive_int,
        default=10,
        metavar="B_c",
        help="classes a batch of the released statistics (its README: 1, 2, CIFAR-100 10)",
    )
    statistics.add_argument(
        "--sample_count",
        type=positive_int,
        default=40,
        metavar="B_s",
        help="images of a class in such a batch (its README: 4996, 2500, CIFAR-100 450)",
    )
    statistics.add_argument(
        "--shrinkage", type=share, help="share of each covariance replaced by its mean variance; else 0"
    )
    statistics.add_argument(
        "--keep_redundant",
        action="store_true",
        help="model the mean vector and equal columns in the ensemble too: same ranking, larger",
    )
    original = parser.add_argument_group("the original's flags")
    original.add_argument(
        "--unknown_dataset",
        dest="unknown",
        nargs="+",
        metavar="SET",
        default=argparse.SUPPRESS,
        help="same as --unknown",
    )
    original.add_argument(
        "--thresholding",
        action="store_true",
        help="write thresholds.csv: threshold, FPR, macro-F1 and accuracies at every hundredth of the TPR",
    )
    original.add_argument(
        "--ae_features", action="store_true", help="weight the score by the reconstruction of an auto-encoder"
    )
    original.add_argument("--data_transforms", choices=TRANSFORMS, help="no effect: nothing is augmented here")
    for flag, kind in (("--known_dataset", str), ("--enc_type", str), ("--latent_dim", int), ("--enc_out_dim", int),
                       ("--class_num", int), ("--input_height", int)):  # fmt: skip
        original.add_argument(flag, type=kind, help="must be that of the checkpoint")
    for flag in ("--first_conv", "--maxpool1"):
        original.add_argument(flag, action="store_true", help="must be that of the checkpoint")
    for flag, kind in TRAINING_ONLY.items():
        options = {"action": "store_true"} if kind is None else {"type": kind, "metavar": "..."}
        original.add_argument(flag, **options, help="no effect at test time")
    add_common_arguments(parser, train=False)
    return parser


def check_flags(args, header, dimensions) -> None:
    """Raise a `UserError` where an original flag contradicts the checkpoint."""
    from common.datasets.catalogue import resolve_name
    from common.errors import UserError

    model = header["model"]
    checkpoint = {
        "known_dataset": resolve_name(header["data"]["known_dataset"]), "enc_type": model["backbone"],
        "latent_dim": dimensions["mean"], "enc_out_dim": dimensions["g"], "class_num": len(header["class_names"]),
        "input_height": model["shape"][1],
    }  # fmt: skip
    for flag, own in checkpoint.items():
        given = getattr(args, flag)
        given = resolve_name(given) if flag == "known_dataset" and given else given
        if given is not None and given != own:
            raise UserError(f"--{flag} {given} contradicts the checkpoint, which has {own}: leave the flag out")
    for flag in ("first_conv", "maxpool1"):
        if getattr(args, flag) and not model.get(flag):
            raise UserError(
                f"--{flag} contradicts the checkpoint, whose encoder was trained without it: leave the flag out"
            )
    if args.ae_features:
        raise UserError("--ae_features: the checkpoint holds no auto-encoder; without the flag the score is VMDLS_b")


def wanted_settings(args):
    """Settings of the statistics that the flags ask for; None: those of the checkpoint."""
    from vmdls.scoring import Settings

    if not (args.released_statistics or args.keep_redundant or args.shrinkage is not None):
        return None
    return Settings(
        args.released_statistics, args.batch_classes, args.sample_count, args.shrinkage or 0.0, args.keep_redundant
    )


def main(argv=None) -> None:
    args = parse(get_args_parser(), argv)
    import numpy as np

    from common.devices import Devices
    from common.evaluation import Trained, parts_to_score, report
    from common.inference import outputs
    from vmdls.model import VMDLS
    from vmdls.scoring import features_of, require_finite, scored, statistics_for

    trained = Trained(args, PAPER)
    model = VMDLS(**trained.header["model"])
    check_flags(args, trained.header, model.dimensions)
    trained.fill(model)
    devices = Devices(args)
    model = devices.setup(model).eval()
    if args.images:
        judge_images(args, trained, model, devices)
        return
    data = trained.data(args)
    begun = time.monotonic()
    statistics = statistics_for(
        model, trained.tensors, wanted_settings(args), data.train, devices, args.batch_size, args.seed
    )
    arrays = outputs(features_of(model, devices), parts_to_score(args, data), devices.device, args.batch_size)
    require_finite(arrays["features"], "images")
    arrays["class_names"] = np.array(data.class_names)
    found = {
        name: scored(name, arrays, statistics, model.dimensions, devices.device, args.transductive)
        for name in args.score
    }
    if args.save_features:
        found[args.score[0]]["features"] = arrays["features"]
    seconds = time.monotonic() - begun

    def method(name: str) -> str:
        return record_method(name, statistics, args.transductive)

    report(args, trained, data, args.score, found.get, seconds, argv, method)
    write_released_figures(args, trained.directory, found, method(args.score[0]))


def record_method(name: str, statistics, transductive: bool) -> str:
    """Name of a score in records; what departs from the defaults is part of it, so that records are never mixed."""
    from vmdls.scoring import Settings

    settings = Settings(*statistics["settings"].tolist())
    parts = [name]
    if settings.released:
        parts.append(f"released{settings.batch_classes:.0f}x{settings.sample_count:.0f}")
    if settings.shrinkage:
        parts.append(f"shrinkage{settings.shrinkage:g}")
    if settings.keep_redundant:
        parts.append("redundant")
    return "-".join(parts + ["transductive"] * (transductive and name == "vmdls"))


def by_unknown_source(result):
    """Yield name, target, prediction and unknown score of the known test images with each unknown source's."""
    import numpy as np

    from common.inference import TEST

    test = result["split"] == TEST
    for source in np.unique(result["source"][test & (result["target"] < 0)]):
        kept = test & ((result["target"] >= 0) | (result["source"] == source))
        yield (
            str(result["sources"][source]),
            *(result[name][kept] for name in ("target", "prediction", "unknown_score")),
        )


def write_released_figures(args, directory, found, method: str) -> None:
    """Add the release's CAUROC, and which method the thresholds are of, to metrics.json.

    With `--thresholding` write thresholds.csv of the first score.
    """
    import numpy as np

    from common.files import write_json
    from common.metrics import threshold_accepting
    from vmdls.scores import cauroc, threshold_table

    metrics = json.loads((directory / "metrics.json").read_text())
    metrics["method"] = method
    metrics["cauroc"] = {
        name: {source: cauroc(*arrays) for source, *arrays in by_unknown_source(result)}
        for name, result in found.items()
    }
    write_json(directory / "metrics.json", metrics)
    if not args.thresholding:
        return
    lines = ["unknown,threshold,tpr,fpr,macro_f1,known_accuracy,unknown_accuracy"]
    result = found[args.score[0]]
    for source, target, prediction, unknown_score in by_unknown_source(result):
        known = unknown_score[target >= 0]
        cuts = np.array([threshold_accepting(known, part) for part in TABLE_SHARES])
        rates = np.searchsorted(np.sort(known), cuts, side="left") / len(known)
        table = threshold_table(target, prediction, unknown_score, cuts, len(result["class_names"]))
        for cut, rate, (f1, known_accuracy, unknown_accuracy) in zip(cuts, rates, table):
            lines.append(f"{source},{float(cut)!r},{rate:.6f},{1 - unknown_accuracy:.6f},{f1:.6f},{known_accuracy:.6f},"
                         f"{unknown_accuracy:.6f}")  # fmt: skip
    (directory / "thresholds.csv").write_text("\n".join(lines) + "\n")
    print(f"written: {directory / 'thresholds.csv'}")


def judge_images(args, trained, model, devices) -> None:
    """Print class or "unknown" for the user's own pictures, at the threshold that accepts 95 % of held-out knowns."""
    import numpy as np

    from common.errors import UserError
    from common.inference import TEST, apply_batched
    from common.own_images import read_images, verdict_lines
    from vmdls.scoring import features_of, require_finite, scored, statistics_for

    name, settings = args.score[0], wanted_settings(args)
    threshold = trained.threshold(name)
    if args.transductive:
        raise UserError("--transductive takes its constant from a test set: it does not go with --images")
    names, pixels = read_images(args.images, tuple(trained.header["model"]["shape"]))
    stored = settings is None and "statistics.covariance" in trained.tensors
    train = None if stored else trained.data(args).train
    statistics = statistics_for(model, trained.tensors, settings, train, devices, args.batch_size, args.seed)
    evaluated = trained.directory / "metrics.json"
    its_method = json.loads(evaluated.read_text())["method"] if evaluated.exists() else name
    if its_method != record_method(name, statistics, False):
        raise UserError(f"the last evaluation was of {its_method}: evaluate again without --transductive, with the same"
                        " --score and the same flags of the statistics")  # fmt: skip
    arrays = apply_batched(features_of(model, devices), pixels, devices.device, args.batch_size)
    require_finite(arrays["features"], "images")
    arrays["split"] = np.full(len(pixels), TEST, np.int8)
    result = scored(name, arrays, statistics, model.dimensions, devices.device)
    print("\n".join(verdict_lines(names, result["prediction"], result["unknown_score"], threshold,
                                  trained.header["class_names"], name)))  # fmt: skip


if __name__ == "__main__":
    run_script(main)
