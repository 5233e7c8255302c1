"""The flags of vmdls/test.py, presets for the test commands of the release's README, and checks against a checkpoint."""

from __future__ import annotations

import argparse
import sys

from common.arguments import ScriptParser, add_common_arguments, parse, positive_int, share

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
# The README's test commands, by the preset of main.py that trains their networks.
RELEASED_PASS = {"batch_classes": 1, "sample_count": 4996, "batch_size": 2500, "ae_features": True}
PRESETS = {
    "cifar10-densenet": RELEASED_PASS | {"checkpoint_path": "cifar10_densenet.ckpt", "unknown": ["imagenet-resize"]},
    "cifar10-resnet18": RELEASED_PASS | {"checkpoint_path": "cifar10_resnet.ckpt", "unknown": ["lsun-crop"]},
    "cifar10-vgg": RELEASED_PASS | {
        "checkpoint_path": "cifar10_vgg.ckpt", "unknown": ["imagenet-crop"], "sample_count": 2500,
    },
    "cifar10-wresnet": RELEASED_PASS | {
        "checkpoint_path": "cifar10_wresnet.ckpt", "unknown": ["imagenet-crop"], "batch_classes": 2,
        "sample_count": 2500, "batch_size": 2000, "ae_features": False,
    },
    "cifar100-densenet": RELEASED_PASS | {
        "checkpoint_path": "cifar100_densenet.ckpt", "unknown": ["lsun-resize"], "batch_classes": 10,
        "sample_count": 450, "batch_size": 500,
    },
    "mnist-cnn": RELEASED_PASS | {"checkpoint_path": "cnn_mnist.ckpt", "unknown": ["omniglot"]},
}  # fmt: skip


def get_args_parser() -> ScriptParser:
    from common.evaluation import add_evaluation_arguments

    parser = ScriptParser(description="Evaluate a trained VMDLS network in the open set.")
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
        help="take the score's constants from the test run, as released, not from the training images",
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
        help="most images of a class in such a batch (its README: 4996, 2500, CIFAR-100 450); the network sees"
        " --batch_size at a time",
    )
    statistics.add_argument(
        "--shrinkage", type=share, help="share of each covariance replaced by its mean variance; else 0"
    )
    statistics.add_argument(
        "--keep_redundant",
        action="store_true",
        help="model the mean vector and equal columns in the ensemble too: same ranking, larger",
    )
    statistics.add_argument(
        "--ablation",
        action="store_true",
        help="score vmdls in six ways: with and without weights, constants of training or test, statistics right or"
        " as released (with --batch_classes, --sample_count)",
    )
    statistics.add_argument(
        "--ae_weights",
        metavar="WHERE",
        help="auto-encoder: run directory, file, name of a run or in the manifest; else ae-<known data set>[-<split>]",
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
        help="write thresholds.csv (threshold, TPR, FPR), not f1_by_threshold.csv; a row for every hundredth of the TPR",
    )
    original.add_argument(
        "--ae_features", action="store_true", help="weight the score by the reconstruction of an auto-encoder"
    )
    original.add_argument(
        "--log_tsne", action="store_true", help="draw the test images' features in the plane (t-SNE); keeps the features"
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
    add_common_arguments(parser, PRESETS, train=False)
    return parser


def parse_arguments(argv):
    """Parse the flags, resolve names of checkpoints, refuse wrong combinations."""
    from vmdls.names import checkpoint

    parser = get_args_parser()
    args = parse(parser, argv, PRESETS)
    words = sys.argv[1:] if argv is None else argv
    if args.preset and (args.save or args.run_dir) and not any(word.startswith("--checkpoint_path") for word in words):
        args.checkpoint_path = None
    if args.preset and "--ae_features" not in words and (args.ablation or "vmdls" not in args.score):
        args.ae_features = False  # a preset's default gives way to flags that exclude it
    if args.checkpoint_path:
        args.checkpoint_path = checkpoint(args.checkpoint_path)
    if args.thresholding and args.images:
        parser.error("--thresholding makes a table of an evaluation's scores: leave out --images")
    departures = {"--ae_features": args.ae_features, "--transductive": args.transductive,
                  "--released_statistics": args.released_statistics, "--images": args.images}  # fmt: skip
    if args.ablation and (flag := next((name for name, given in departures.items() if given), None)):
        parser.error(f"--ablation scores every variant itself: leave out {flag}")
    if args.ablation and "vmdls" not in args.score:
        parser.error("--ablation is about the score vmdls: name it with --score")
    if args.ae_features and "vmdls" not in args.score:
        parser.error("--ae_features weights the score vmdls: name it with --score")
    if args.ae_weights and not (args.ae_features or args.ablation):
        parser.error("--ae_weights goes with --ae_features")
    args.save_features |= args.log_tsne
    return args


def require_classifier(header) -> None:
    """Raise a `UserError` when a checkpoint is an auto-encoder."""
    from common.errors import UserError

    if "backbone" not in header["model"]:
        raise UserError("this checkpoint is an auto-encoder: it goes to --ae_weights; --checkpoint_path, --save and"
                        " --run_dir want a network that vmdls/main.py trained")  # fmt: skip


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
