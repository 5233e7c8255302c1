"""The flags of CSSR's `main.py`: the original's, presets, and which of them exclude each other."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.arguments import ScriptParser, add_common_arguments, non_negative, parse, positive_int
from common.errors import nearest
from cssr.configuration import INTEGRATIONS, POINT_SCORES, POOL_OPTIONS, flags_of_config
from cssr.data import PATHS, add_path_arguments, whole_number

PAPER = "cssr"
DESCRIPTION = "Train CSSR: one auto-encoder per known class on a shared feature map; test.py turns it into open-set scores."
# Released weight decay of the heads on a frozen backbone.
FROZEN_DECAY = 1e-4
MODELS = ("pcssr", "rcssr", "linear")
PAPER_CIFAR = {
    "known_dataset": "cifar10", "split": "cssr-a", "backbone": "wideresnet40-4", "max_epochs": 200, "augment": "strong",
    "validation_share": 0.0,
}  # fmt: skip

PRESETS = {
    # scikit-learn's digits: what the demo runs.
    "digits": {"known_dataset": "digits", "split": "first-6"},
    # MNIST, plain conv net of width 32, 5 epochs.
    "mnist": {"known_dataset": "mnist", "split": "cssr-a", "max_epochs": 5, "rate": 0.1},
    # CIFAR-10 on two CPU cores: the paper's head and loss on the net and recipe of baseline_openmax's laptop preset.
    "laptop": {
        "known_dataset": "cifar10", "split": "cssr-a", "backbone": "speednet", "max_epochs": 7, "batch_size": 512,
        "optimizer": "speed", "rate": 11.5, "momentum": 0.85, "weight_decay": 0.0153, "schedule": "triangular",
        "augment": "alternating-flip+shift2", "average_weights": True, "mirror_test": True, "drop_last": True,
        "whitening_bias_epochs": 3, "low_resolution_epochs": 5, "normalisation": "data", "precision": "auto",
    },
    # CIFAR-10 as released (configs/*/cifar10.json), and with the momentum and milestones that the paper names.
    "released": PAPER_CIFAR | {"milestones": [120, 190]},
    "paper": PAPER_CIFAR | {"milestones": [130, 190], "momentum": 0.9},
}  # fmt: skip


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=DESCRIPTION)
    original = parser.add_argument_group("the original's flags")
    original.add_argument("--ds", metavar="FILE", help="experiment: ./exps/<data>/spl_<a-e>.json; sets known and unknown data")
    original.add_argument("--config", metavar="FILE",
                          help="model: ./configs/<model>/<data>.json, trained on all images; presets and flags win over it")
    original.add_argument("--configupdate", metavar="KEY:VALUE,...", help="change values of --config: category_model.gamma:.2")
    original.add_argument("--method", choices=("cssr", "cssr_ft"), default="cssr",
                          help="cssr: train backbone and heads; cssr_ft: heads on a frozen, pretrained backbone")
    original.add_argument("--test", action="store_true", help="evaluate the trained run instead, as test.py does")
    original.add_argument("--test_interval", type=whole_number, metavar="N",
                          help="evaluate every N epochs and at the end into hist.json, 0: never; else 1 with --ds, 0 without")
    data = parser.add_argument_group("data")
    data.add_argument("--known_dataset", default="digits", help="data set of the known classes; own images: folder:PATH@SIZE")
    data.add_argument("--split", default="first-6", help="known classes: a named split (a-e, arpl-0, first-6), all, or 0-5,8")
    data.add_argument("--augment", default="none",
                      choices=("none", "shift1", "flip+shift4", "alternating-flip+shift2", "simple", "strong"),
                      help="augmentation of the training images; strong: the paper's; shiftN moves by up to N pixels")
    data.add_argument("--low_resolution_epochs", type=whole_number, default=0, metavar="N",
                      help="train the first N epochs on images of three quarters of the size, at half the cost")
    data.add_argument("--normalisation", choices=("original", "data"), default="original",
                      help="original: mean .5, standard deviation .25; data: those of the training images")
    add_path_arguments(parser)
    add_augmentation_arguments(parser)
    add_frozen_arguments(parser)
    model = parser.add_argument_group("model")
    model.add_argument("--model", choices=MODELS, default="pcssr",
                       help="pcssr: small error = own class (CSSR); rcssr: large error (RCSSR); linear: the baseline")
    model.add_argument("--backbone", help="network; else the one that fits the image size")
    model.add_argument("--width", type=positive_int, help="channels of a plain net's first stage; else its own default")
    model.add_argument("--norm", choices=("batch", "none"), default="batch", help="normalisation in the small conv nets")
    model.add_argument("--standard_wrn", action="store_true",
                       help="normalise the input of the width-changing blocks too; the release does not")
    model.add_argument("--projection_dim", type=int, default=-1, help="channels of a 1x1 projection after the backbone; -1: none")
    model.add_argument("--ae_latent", type=int, default=64, help="width of the code (k); 0: one prototype point per class")
    model.add_argument("--ae_hidden", type=positive_int, nargs="*", default=[], help="widths of the auto-encoders' hidden layers")
    model.add_argument("--gamma", type=non_negative, help="factor on the errors; else .1, linear: 1")
    model.add_argument("--error_measure", choices=("L1", "L2"), default="L1", help="norm of the error; L2: squared")
    model.add_argument("--arch_type", choices=("softmax_avg", "avg_softmax"),
                       help="softmax before or after the mean over positions; else before, linear: after")
    add_optimisation_arguments(parser)
    scoring = parser.add_argument_group("scoring")
    scoring.add_argument("--mirror_test", action="store_true", help="score an image together with its mirror image")
    scoring.add_argument("--without_gram", dest="enable_gram", action="store_false",
                         help="leave out S2, whose statistics grow with classes x channels^2")
    scoring.add_argument("--point_score", choices=POINT_SCORES, metavar="EXPRESSION",
                         help="released expression of S0: %(choices)s; else that of the model")
    scoring.add_argument("--integrate_score", choices=INTEGRATIONS, metavar="EXPRESSION",
                         help="terms of the fused score: %(choices)s; else all three, linear and cssr_ft: S[0]")
    scoring.add_argument("--released_statistics", action="store_true",
                         help="normalise the scores on augmented training images, in a second pass")
    add_common_arguments(parser, PRESETS)
    return parser


def add_optimisation_arguments(parser: ScriptParser) -> None:
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--max_epochs", type=positive_int, default=20, help="passes over the training part")
    optimisation.add_argument("--batch_size", type=positive_int, default=128, help="images a step, all processes together")
    optimisation.add_argument("--optimizer", choices=("sgd", "speed"), default="sgd",
                              help="speed: the parameter groups of common/recipes.py, the heads in their own")
    optimisation.add_argument("--rate", type=non_negative, default=0.4, help="learning rate; speed: per 1,024 images")
    optimisation.add_argument("--head_rate", type=non_negative, default=0.4, help="speed: effective learning rate of the heads")
    optimisation.add_argument("--momentum", type=non_negative, default=0.0, help="momentum; the paper: .9, the release: none")
    optimisation.add_argument("--weight_decay", type=non_negative, default=5e-4, help="weight decay of all parameters")
    optimisation.add_argument("--schedule", choices=("multi_step", "constant", "cosine", "triangular", "onecycle"),
                              default="multi_step", help="course of the learning rate")
    optimisation.add_argument("--milestones", type=whole_number, nargs="+", metavar="EPOCH",
                              help="multi_step: epochs of the decays; else .6 and .95 of all (120 and 190 of 200)")
    optimisation.add_argument("--lr_decay", type=non_negative, default=0.1, help="multi_step: factor at a milestone")
    optimisation.add_argument("--warmup_epoch", type=non_negative, default=0, help="multi_step: epochs of linear warm-up")
    optimisation.add_argument("--average_weights", action="store_true", help="pull weights to a running average every 5 steps")
    optimisation.add_argument("--whitening_bias_epochs", type=whole_number, default=3,
                              help="epochs in which the speed net's stem bias is trained")
    optimisation.add_argument("--drop_last", action="store_true", help="leave out an incomplete last batch")


def add_augmentation_arguments(parser: ScriptParser) -> None:
    group = parser.add_argument_group("released augmentation (--augment simple, strong)")
    group.add_argument("--strong_option", choices=("CUST", "RA", "NONE"),
                       help="strong: reduced RandAugment list, FixMatch's list with cutout, or neither; else CUST")
    group.add_argument("--augment_pool", nargs="+", choices=POOL_OPTIONS, metavar="NAME",
                       help="operations of the reduced list (customize_augment_pool), of %(choices)s; else the released ones")
    group.add_argument("--postprocess", choices=("cutout", "none"), help="after the reduced list; else cutout")
    group.add_argument("--crop_with_resize", action=argparse.BooleanOptionalAction,
                       help="crop at a random scale instead of shifting; images above 200 pixels always are")
    group.add_argument("--manual_contrast", action=argparse.BooleanOptionalAction,
                       help="multiply each normalised image by a number from .1 to 2; else it is")


def add_frozen_arguments(parser: ScriptParser) -> None:
    group = parser.add_argument_group("frozen backbone (--method cssr_ft)")
    group.add_argument("--backbone_weights", metavar="WHERE",
                       help="run, checkpoint or .pth file for the backbone; else the published weights of its name")
    group.add_argument("--feature_dir", type=Path, metavar="DIR",
                       help="where feature maps are kept; else $OSR_FEATURE_DIR, else runs/cssr/features")
    group.add_argument("--feature_views", type=whole_number, metavar="N",
                       help="versions of each image whose features are kept: the image itself, then augmented ones; 0: none kept,"
                       " images are augmented and computed anew in every epoch; else 1")


def parse_arguments(argv=None):
    """Flags, with those of `--config` as defaults and the data of `--ds`."""
    parser = get_args_parser()
    first = ScriptParser(add_help=False)
    for flag in ("--config", "--configupdate", "--method", "--ds", "--known_dataset", "--split"):
        first.add_argument(flag)
    early = first.parse_known_args(argv)[0]
    if early.ds and (early.known_dataset or early.split):
        parser.error("--ds names known data and classes: leave out --known_dataset and --split")
    if early.configupdate and not early.config:
        parser.error("--configupdate changes values of a configuration: give --config FILE with it")
    frozen = early.method == "cssr_ft"
    if early.config:
        parser.set_defaults(**flags_of_config(early.config, early.configupdate or ""), validation_share=0.0)
    if frozen:
        # The release integrates no further scores here, whatever the configuration says.
        parser.set_defaults(weight_decay=FROZEN_DECAY, integrate_score="S[0]")
    args = parse(parser, argv, PRESETS)
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        for one in value if isinstance(value, list) else [value]:
            # argparse checks what is typed; this checks what a configuration file sets.
            if action.choices and one is not None and one not in action.choices:
                parser.error(f"{args.config}: {one!r} is none of {', '.join(action.choices)}{nearest(str(one), action.choices)}")
    check_combinations(parser, args)
    args.gpu, args.device = chosen_gpu(args.gpu, args.device)
    if args.test_interval is None:
        args.test_interval = 1 if args.ds else None
    args.unknown_sets = None
    if args.ds:
        from cssr.experiments import is_rest, read_experiment

        experiment = read_experiment(args.ds)
        args.known_dataset, args.split = experiment.dataset, experiment.split
        if not is_rest(experiment):
            args.unknown_sets = [vars(part) for part in experiment.unknown]
    return args


def recorded(args) -> argparse.Namespace:
    """The flags without those that say where things are and how many processes read: a run may go on with others."""
    places = {*PATHS, "feature_dir", "workers"}
    return argparse.Namespace(**{name: value for name, value in vars(args).items() if name not in places})


def check_combinations(parser: ScriptParser, args) -> None:
    """Refuse flags that exclude each other."""
    if args.low_resolution_epochs and args.augment in ("simple", "strong"):
        parser.error(f"--low_resolution_epochs goes with the plain augmentations, not with --augment {args.augment}")
    if args.low_resolution_epochs and args.released_statistics:
        parser.error("--released_statistics takes its constants from images as the first epoch has them: with"
                     " --low_resolution_epochs those are small; --low_resolution_epochs 0, or leave it out")
    if args.model == "linear" and (args.ae_hidden or args.ae_latent <= 0):
        parser.error("--model linear has no auto-encoders: --ae_hidden and --ae_latent 0 go with pcssr or rcssr")
    if args.method == "cssr_ft":
        for flag in ("mirror_test", "released_statistics", "low_resolution_epochs", "average_weights"):
            if getattr(args, flag):
                parser.error(f"--{flag} goes with --method cssr: cssr_ft works on features of the images as they are")
        if args.optimizer != "sgd":
            parser.error("--method cssr_ft trains its heads with --optimizer sgd")
    elif args.feature_views is not None or args.feature_dir:
        parser.error("--feature_views and --feature_dir go with --method cssr_ft: features change while the backbone is trained")
    if args.optimizer == "speed" and args.whitening_bias_epochs and args.schedule == "multi_step":
        parser.error("--optimizer speed wants --schedule triangular (or another but multi_step, which cannot stop the whitening"
                     " bias by itself), or --whitening_bias_epochs 0")


def chosen_gpu(gpu: str | None, device: str) -> tuple[str | None, str]:
    """The original's `--gpu`: a digit for each GPU, or cpu; a run computes on the first."""
    if gpu == "cpu":
        return None, "cpu"
    if gpu and len(gpu) > 1 and gpu.isdigit():
        print(f"note: --gpu {gpu} names GPUs {', '.join(gpu)}; the run computes on the first (--device cuda:{gpu}: that one)")
        return gpu[0], device
    return gpu, device
