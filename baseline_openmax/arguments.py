"""The flags of `main.py`, and the combinations that are refused before anything runs."""

from __future__ import annotations

from baseline_openmax.presets import FINE_TUNED, PRESETS
from common.arguments import (
    ScriptParser,
    add_common_arguments,
    non_negative,
    parse,
    positive_int,
    share,
)

PAPER = "baseline_openmax"
HEADS = ("msp", "mls", "energy", "entropy", "margin", "gen", "odin", "kl", "openmax", "openmax-simple", "kplus1")
WAYS = ("placeholder", "mixup", "oe")
# Heads that can be trained with outliers, and what their loss does with them.
WITH_OUTLIERS = {"kplus1": "class K+1", "energy": "squared hinges on the energy", "msp": "uniform softmax"}
AUGMENTATIONS = ("none", "shift1", "flip+shift4", "alternating-flip+shift2", "shift4+randaugment", "flip+shift4+randaugment")


def yes_or_no(text: str) -> bool:
    """argparse type: `true` or `false`."""
    import argparse

    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text}")
    return text.lower() == "true"


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description="Train a classifier on the known classes; `test.py` turns it into open-set scores.")
    data = parser.add_argument_group("data")
    data.add_argument("--known_dataset", default="digits", help="data set of the known classes; own images: folder:PATH@SIZE")
    data.add_argument("--split", default="first-6", help="known classes: a named split (cssr-a, arpl-0, first-6), all, or 0-5,8")
    data.add_argument("--image_size", type=positive_int, metavar="PIXELS",
                      help="side to which images are resized in front of the backbone; else their own")
    data.add_argument("--augment", choices=AUGMENTATIONS, default="none",
                      help="augmentation of the training images; shiftN moves by up to N pixels")
    data.add_argument("--randaugment_n", type=positive_int, default=1, help="RandAugment: operations per image")
    data.add_argument("--randaugment_m", type=positive_int, default=9, help="RandAugment: strength, of 30")
    data.add_argument("--low_resolution_epochs", type=int, default=0, metavar="N",
                      help="train the first N epochs on images of three quarters of the size, at half the cost")
    _add_model(parser)
    _add_heads(parser)
    _add_optimisation(parser)
    evaluation = parser.add_argument_group("after training")
    evaluation.add_argument("--mirror_test", action="store_true", help="average the logits of an image and its mirror image")
    evaluation.add_argument("--calibration", choices=("temperature", "none"), default="temperature",
                            help="fit a temperature on held-out known images (calibration_info.json)")
    evaluation.add_argument("--fit_openmax", type=positive_int, nargs="?", const=20, metavar="TAIL",
                            help="fit OpenMax with this tail (without a number: 20) now; else test.py does")
    add_common_arguments(parser, PRESETS)
    return parser


def _add_model(parser: ScriptParser) -> None:
    model = parser.add_argument_group("model: backbone - neck - classifier")
    model.add_argument("--backbone", metavar="NAME",
                       help="convnet8, convnet28, vgg, speednet, classifier32, resnet18, resnet50, efficientnet_b0,"
                       " efficientnet_b4, vit_b16, vit_s16, vit_ti16, dinov2_s14 (b14, l14, g14), or timm:NAME;"
                       " else the one that fits the size")
    model.add_argument("--width", type=positive_int, help="channels of the backbone's first stage; else its own default")
    model.add_argument("--norm", choices=("batch", "none"), default="batch", help="normalisation in the plain nets")
    model.add_argument("--stem", choices=("small", "imagenet"),
                       help="start of a ResNet or EfficientNet of timm: full resolution, or as published;"
                       " else small below 64 pixels without published weights")
    model.add_argument("--pretrained", type=yes_or_no, default=False, metavar="true|false",
                       help="start from timm's published weights")
    model.add_argument("--backbone_weights", metavar="FILE", help="start from this file with weights of the timm network")
    model.add_argument("--frozen", action="store_true", help="do not train the backbone")
    model.add_argument("--neck", choices=("none", "linear", "mlp", "batch_norm"), default="none",
                       help="layer between features and classifier; batch_norm: linear, BatchNorm, ReLU")
    model.add_argument("--neck_dim", type=positive_int, default=512, help="outputs of the neck")
    model.add_argument("--classifier", choices=("linear", "weight_norm"), default="linear",
                       help="weight_norm: direction and length of the weights learn separately")
    model.add_argument("--logit_scale", type=float, default=1.0, help="factor on the logits; not 1: no bias")


def _add_heads(parser: ScriptParser) -> None:
    head = parser.add_argument_group("open-set head")
    head.add_argument("--osr_head", choices=HEADS,
                      help="score that test.py reports first; kplus1, and energy or msp with --outliers, change the training")
    head.add_argument("--kplus1", nargs="+", choices=WAYS, help="how class K+1 is trained (PROSER: placeholder mixup);"
                      " else placeholder, or oe with --outliers")
    head.add_argument("--dummies", type=positive_int, default=1, metavar="C", help="dummy logits; the largest counts (C)")
    head.add_argument("--placeholder_weight", type=non_negative, default=1.0, metavar="BETA",
                      help="weight of the loss without the true class (beta)")
    head.add_argument("--mixup_weight", type=non_negative, default=0.01, metavar="GAMMA", help="weight of mixed maps (gamma)")
    head.add_argument("--mixup_alpha", type=float, default=1.0, metavar="ALPHA", help="shares are drawn from Beta(alpha, alpha)")
    head.add_argument("--outliers", nargs="+", metavar="SET",
                      help="outlier images for training: data set names, noise, gaussian-noise, or shuffled"
                      " (blocks of the training images in random order); never classes of the test")
    head.add_argument("--outlier_weight", type=non_negative, metavar="LAMBDA",
                      help="weight of the outliers' loss; else 1 (kplus1), .5 (msp), .1 (energy)")
    head.add_argument("--known_margin", type=float, default=-23.0, help="energy: known images are pushed below this (m_in)")
    head.add_argument("--unknown_margin", type=float, default=-5.0, help="energy: outliers are pushed above this (m_out)")
    head.add_argument("--start_from", metavar="RUN", help="start from the weights of a run, file or checkpoint of this folder")


def _add_optimisation(parser: ScriptParser) -> None:
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--max_epochs", type=positive_int, default=20, help="passes over the training part")
    optimisation.add_argument("--batch_size", type=positive_int, default=64, help="images a step, all processes together")
    optimisation.add_argument("--optimizer", choices=("sgd", "adam", "adamw", "speed"), default="sgd",
                              help="speed: the parameter groups of common/recipes.py")
    optimisation.add_argument("--rate", type=non_negative, default=0.05, help="learning rate; speed: per 1,024 images")
    optimisation.add_argument("--momentum", type=non_negative, default=0.9, help="momentum of sgd and speed")
    optimisation.add_argument("--weight_decay", type=non_negative, default=1e-4, help="weight decay")
    optimisation.add_argument("--schedule", choices=("constant", "cosine", "triangular", "onecycle", "step", "restarts"),
                              default="onecycle", help="course of the learning rate over all steps")
    optimisation.add_argument("--restarts", type=int, default=2, help="schedule restarts: how often the cosine begins anew")
    optimisation.add_argument("--warmup_epochs", type=int, default=0, help="schedule restarts: epochs of linear rise")
    optimisation.add_argument("--label_smoothing", type=share, default=0.0, help="share of the target spread over all classes")
    optimisation.add_argument("--average_weights", action="store_true", help="pull weights to a running average every 5 steps")
    optimisation.add_argument("--whitening_bias_epochs", type=int, default=3,
                              help="epochs in which the speed net's stem bias is trained")
    optimisation.add_argument("--drop_last", action="store_true", help="leave out an incomplete last batch")


def parse_arguments(argv=None):
    """Flags, with those of the preset as defaults; wrong combinations end here."""
    parser = get_args_parser()
    args = parse(parser, argv, PRESETS)
    if args.preset in FINE_TUNED and not args.start_from:
        parser.error(f"--preset {args.preset} fine-tunes a trained network: name it with --start_from RUN")
    if args.kplus1 and args.osr_head not in (None, "kplus1"):
        parser.error(f"--kplus1 trains the head kplus1, but --osr_head is {args.osr_head}")
    if args.kplus1:
        args.osr_head = "kplus1"
    elif args.osr_head == "kplus1":
        args.kplus1 = ["oe"] if args.outliers else ["placeholder"]
    if args.outliers and args.osr_head not in WITH_OUTLIERS:
        parser.error(f"--outliers needs --osr_head {', '.join(WITH_OUTLIERS)}: no other loss uses outliers")
    if args.outliers and args.osr_head == "kplus1" and "oe" not in args.kplus1:
        parser.error("--outliers with --osr_head kplus1 needs --kplus1 oe")
    if args.kplus1 and "oe" in args.kplus1 and not args.outliers:
        parser.error("--kplus1 oe needs --outliers SET, e.g. noise or shuffled")
    if args.kplus1 and "mixup" in args.kplus1 and args.compile:
        parser.error("--kplus1 mixup changes the network's middle while it runs: leave out --compile")
    if (args.kplus1 or args.outliers) and args.devices * args.num_nodes > 1:
        parser.error("--kplus1 and --outliers train in one process: leave out --devices and --num_nodes")
    if not args.mixup_alpha > 0:
        parser.error(f"--mixup_alpha must be above 0, got {args.mixup_alpha}")
    if args.outliers and args.osr_head == "energy" and not args.known_margin < args.unknown_margin:
        parser.error(f"--known_margin {args.known_margin} must lie below --unknown_margin {args.unknown_margin}")
    if args.frozen and not (args.pretrained or args.backbone_weights or args.start_from):
        parser.error("--frozen keeps random weights: give --pretrained true, --backbone_weights FILE or --start_from RUN")
    if args.pretrained and args.backbone_weights:
        parser.error("--pretrained true and --backbone_weights exclude each other: both say where weights come from")
    return args
