"""Train CSSR: one auto-encoder per known class on a shared feature map; `test.py` turns it into open-set scores.

Huang, Wang, Hu, Cheng 2022, "Class-Specific Semantic Reconstruction for Open Set Recognition" (TPAMI).

    python cssr/main.py                                                   # pcssr on digits 0-5, a few seconds
    python cssr/main.py --preset mnist --split a --model rcssr --save mnist-rcssr-a
    python cssr/main.py --preset laptop --split a --model rcssr --save cifar10-rcssr-a
    python cssr/main.py --ds ./exps/cifar10/spl_a.json --config ./configs/rcssr/cifar10.json --save rcssr_cifar10_a --method cssr
"""

from __future__ import annotations

from common.arguments import ScriptParser, add_common_arguments, non_negative, parse, positive_int, run_script

PAPER = "cssr"
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
        "known_dataset": "cifar10", "split": "cssr-a", "backbone": "speednet", "max_epochs": 8, "batch_size": 512,
        "optimizer": "speed", "rate": 11.5, "momentum": 0.85, "weight_decay": 0.0153, "schedule": "triangular",
        "augment": "alternating-flip+shift2", "average_weights": True, "mirror_test": True, "drop_last": True,
        "whitening_bias_epochs": 3, "low_resolution_epochs": 4, "normalisation": "data", "precision": "auto",
    },
    # CIFAR-10 as released (configs/*/cifar10.json), and with the momentum and milestones that the paper names.
    "released": PAPER_CIFAR | {"milestones": [120, 190]},
    "paper": PAPER_CIFAR | {"milestones": [130, 190], "momentum": 0.9},
}  # fmt: skip


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    original = parser.add_argument_group("the original's flags")
    original.add_argument("--ds", metavar="FILE", help="experiment: ./exps/<data>/spl_<a-e>.json; sets data set and split")
    original.add_argument("--config", metavar="FILE", help="model: ./configs/<model>/<data>.json; presets and flags win over it")
    original.add_argument("--method", choices=("cssr",), default="cssr", help="train backbone and heads from scratch")
    original.add_argument("--test", action="store_true", help="evaluate the trained run instead, as test.py does")
    data = parser.add_argument_group("data")
    data.add_argument("--known_dataset", default="digits", help="data set that holds the known classes")
    data.add_argument("--split", default="first-6", help="known classes: a named split (a-e, arpl-0, first-6), all, or 0-5,8")
    data.add_argument("--augment", default="none",
                      choices=("none", "shift1", "flip+shift4", "alternating-flip+shift2", "simple", "strong"),
                      help="augmentation of the training images; strong: the paper's; shiftN moves by up to N pixels")
    data.add_argument("--low_resolution_epochs", type=int, default=0, metavar="N",
                      help="train the first N epochs on images of three quarters of the size, at half the cost")
    data.add_argument("--normalisation", choices=("original", "data"), default="original",
                      help="original: mean .5, standard deviation .25; data: those of the training images")
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
    model.add_argument("--gamma", type=float, help="factor on the errors; else .1, linear: 1")
    model.add_argument("--error_measure", choices=("L1", "L2"), default="L1", help="norm of the error; L2: squared")
    model.add_argument("--arch_type", choices=("softmax_avg", "avg_softmax"),
                       help="softmax before or after the mean over positions; else before, linear: after")
    add_optimisation_arguments(parser)
    scoring = parser.add_argument_group("scoring")
    scoring.add_argument("--mirror_test", action="store_true", help="score an image together with its mirror image")
    scoring.add_argument("--without_gram", dest="enable_gram", action="store_false",
                         help="leave out S2, whose statistics grow with classes x channels^2")
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
    optimisation.add_argument("--rate", type=float, default=0.4, help="learning rate; speed: per 1,024 images")
    optimisation.add_argument("--head_rate", type=float, default=0.4, help="speed: effective learning rate of the heads")
    optimisation.add_argument("--momentum", type=float, default=0.0, help="momentum; the paper names .9, the release has none")
    optimisation.add_argument("--weight_decay", type=non_negative, default=5e-4, help="weight decay of all parameters")
    optimisation.add_argument("--schedule", choices=("multi_step", "constant", "cosine", "triangular", "onecycle"),
                              default="multi_step", help="course of the learning rate")
    optimisation.add_argument("--milestones", type=int, nargs="+", metavar="EPOCH",
                              help="multi_step: epochs of the decays; else .6 and .95 of all (120 and 190 of 200)")
    optimisation.add_argument("--lr_decay", type=float, default=0.1, help="multi_step: factor at a milestone")
    optimisation.add_argument("--warmup_epoch", type=non_negative, default=0, help="multi_step: epochs of linear warm-up")
    optimisation.add_argument("--average_weights", action="store_true", help="pull weights to a running average every 5 steps")
    optimisation.add_argument("--whitening_bias_epochs", type=int, default=3,
                              help="epochs in which the speed net's stem bias is trained")
    optimisation.add_argument("--drop_last", action="store_true", help="leave out an incomplete last batch")


def parse_arguments(argv=None):
    """Flags, with those of `--config` as defaults and the data of `--ds`."""
    import argparse

    parser = get_args_parser()
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    config = first.parse_known_args(argv)[0].config
    if config:
        from cssr.recipe import flags_of_config

        parser.set_defaults(**flags_of_config(config))
    args = parse(parser, argv, PRESETS)
    if args.ds:
        from cssr.recipe import data_of_experiment

        args.known_dataset, args.split = data_of_experiment(args.ds)
    if args.low_resolution_epochs and args.augment in ("simple", "strong"):
        parser.error(f"--low_resolution_epochs goes with the plain augmentations, not with --augment {args.augment}")
    if args.model == "linear" and (args.ae_hidden or args.ae_latent <= 0):
        parser.error("--model linear has no auto-encoders: --ae_hidden and --ae_latent 0 go with pcssr or rcssr")
    return args


def model_settings(args, data) -> dict:
    """Constructor arguments of the network for a data set."""
    from common.errors import UserError, nearest
    from common.training import fitting_backbone
    from cssr.backbones import FOR_SIZE, NAMES
    from cssr.model import DEFAULT_GAMMA, DEFAULT_ORDER

    shape = data.train.pixels.shape[1:]
    backbone = fitting_backbone(args.backbone, shape[1], FOR_SIZE)
    if backbone not in NAMES:
        raise UserError(f"unknown backbone {backbone!r}, choose from {', '.join(NAMES)}{nearest(backbone, NAMES)}")
    mean, std = data.train.mean_std() if args.normalisation == "data" else ([0.5] * shape[0], [0.25] * shape[0])
    return {"model": args.model, "backbone": backbone, "classes": len(data.class_names), "shape": list(map(int, shape)),
            "mean": [round(float(v), 6) for v in mean], "std": [round(float(v), 6) for v in std],
            "width": args.width, "norm": args.norm, "standard_wrn": args.standard_wrn,
            "projection_dim": args.projection_dim, "ae_hidden": list(args.ae_hidden), "ae_latent": args.ae_latent,
            "gamma": DEFAULT_GAMMA[args.model] if args.gamma is None else args.gamma,
            "error_measure": args.error_measure, "arch_type": args.arch_type or DEFAULT_ORDER[args.model],
            "mirror_test": args.mirror_test}  # fmt: skip


def build_schedule(optimizer, args, steps: int):
    """The course of the learning rate over all steps."""
    from common.recipes import Schedule
    from cssr.recipe import MultiStep

    if args.schedule != "multi_step":
        return Schedule(optimizer, args.schedule, args.max_epochs * steps)
    milestones = args.milestones or [round(0.6 * args.max_epochs), round(0.95 * args.max_epochs)]
    return MultiStep(optimizer, steps, milestones, args.lr_decay, args.warmup_epoch)


def main(argv=None) -> None:
    args = parse_arguments(argv)
    if args.test:
        from cssr.test import main as evaluate

        return evaluate(evaluation_flags(args))
    import torch
    from torch.nn import functional

    from common.devices import Devices
    from common.recipes import WeightAveraging
    from common.run import Run
    from common.training import closed_accuracy, load_data, training_batches
    from cssr.model import CSSR
    from cssr.recipe import augmentation, build_optimizer
    from cssr.scoring import collect_statistics

    data = load_data(args)
    devices = Devices(args)
    model_config = model_settings(args, data)
    run = Run.create(PAPER, args, devices, data.train.checksums, argv)
    model = CSSR(**model_config)
    if hasattr(model.backbone, "whiten"):
        model.backbone.whiten(model.normalise(torch.from_numpy(data.train.pixels[:5000])))
    size = model_config["shape"][1]
    augment = augmentation(args.augment, args.seed, args.low_resolution_epochs, size, model.normalise)
    batches = training_batches(data, args, devices, augment)
    optimizer = build_optimizer(model, args, len(batches))
    called, stepper = devices.setup(model, optimizer)
    schedule = build_schedule(optimizer, args, len(batches))
    run.track(model=model, optimizer=optimizer)
    averaging = None
    if args.average_weights:
        averaging = WeightAveraging(model, args.max_epochs * len(batches))
        run.track(averaging=averaging)

    for epoch in run.epochs(args.max_epochs):
        model.train()
        for images, labels in run.steps(batches, epoch):
            step = epoch * len(batches) + run.step
            schedule.set(step)
            with devices.autocast():
                loss = functional.nll_loss(called(images), labels)
            optimizer.zero_grad(set_to_none=True)
            devices.backward(loss)
            stepper.step()
            run.add(loss=loss)
            if averaging is not None:
                averaging.update(step + 1)
        if averaging is not None and epoch + 1 == run.max_epochs:
            averaging.finish()
        run.end_epoch(validation_accuracy=closed_accuracy(model, model, data.validation, devices))

    header = {"model": model_config, "class_names": list(data.class_names),
              "data": {"known_dataset": args.known_dataset, "split": data.split.name, "seed": args.seed,
                       "validation_share": args.validation_share, "subset": args.subset}}  # fmt: skip
    if devices.rank == 0:
        normalising = batches if args.released_statistics else None
        statistics = collect_statistics(model.eval(), data.train.pixels, devices, normalising, args.enable_gram)
        run.finish(model.state_dict() | statistics, header)
        print(f"trained: {run.directory}")


def evaluation_flags(args) -> list[str]:
    """What `--test` passes on to test.py."""
    flags = ["--device", args.device, "--precision", args.precision, "--seed", str(args.seed)]
    named = {"--save": args.save, "--run_dir": args.run_dir, "--data_dir": args.data_dir, "--gpu": args.gpu,
             "--subset": args.subset}  # fmt: skip
    flags += [str(part) for flag, value in named.items() if value is not None for part in (flag, value)]
    return flags + (["--dry_run"] if args.dry_run else [])


if __name__ == "__main__":
    run_script(main)
