"""Train CROSR's network: a classifier that also reconstructs its input; `test.py` turns it into open-set scores.

Yoshihashi, Shao, Kawakami, You, Iida, Naemura 2019, "Classification-Reconstruction Learning for Open-Set Recognition"
(CVPR).

    python crosr/main.py --preset digits                                  # digits 0-5 known, a few seconds
    python crosr/main.py --preset mnist --save mnist
    python crosr/main.py --preset laptop --save cifar10-laptop
    python crosr/main.py --preset released --save cifar10-released        # 500 epochs, for a GPU
"""

from __future__ import annotations

from common.arguments import ScriptParser, add_common_arguments, non_negative, parse, positive_int, run_script

PAPER = "crosr"
# Flags of the paper's augmentation and their values there; the crop is 28 of 32 pixels, 7/8 of the side.
PAPER_AUGMENTATION = {"random_angle": 15.0, "pca_sigma": 25.5, "expand_ratio": 1.2}
MNIST = {
    "known_dataset": "mnist", "split": "all", "max_epochs": 5, "batch_size": 128, "rate": 0.05, "schedule": "onecycle",
    "augment": "none",
}  # fmt: skip

PRESETS = {
    # scikit-learn's digits: what the demo runs.
    "digits": {
        "known_dataset": "digits", "split": "first-6", "max_epochs": 20, "batch_size": 64, "schedule": "onecycle",
        "augment": "none",
    },
    # MNIST, ten known classes: the paper's plain net a third as wide, 5 epochs in place of a full training.
    "mnist": MNIST | {"width": 32},
    # The same with the paper's width.
    "mnist-paper": MNIST | {"width": 100},
    # CIFAR-10, ten known classes, on two CPU cores: the released net, 9 epochs, 7 of them on smaller images, which end
    # at .83 of the held-out images, then 5 from a smaller rate down to 0.
    "laptop": {
        "backbone": "plain", "variant": "released", "max_epochs": 14, "batch_size": 256, "rate": 0.1,
        "schedule": "onecycle", "restart_epoch": 9, "restart_rate": 0.04, "augment": "alternating-flip+shift2",
        "low_resolution_epochs": 7, "precision": "auto",
    },
    # CIFAR-10 as in the PyTorch release and as in the authors' release.
    "released": {
        "backbone": "plain", "variant": "released", "normalisation": "released", "augment": "released",
        "lr_decay_epoch": 30, "validation_share": 0.0,
    },
    "paper": {
        "backbone": "plain", "variant": "paper", "normalisation": "data", "augment": "paper", "lr_decay_epoch": 25,
        "validation_share": 0.0,
    },
}  # fmt: skip


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    data = parser.add_argument_group("data")
    data.add_argument("--known_dataset", default="cifar10", help="data set of the known classes; own images: folder:PATH@SIZE")
    data.add_argument("--split", default="all",
                      help="known classes: a named split (cssr-a, arpl-0, first-6), all, or 0-5,8")
    data.add_argument("--no_shuffle", action="store_true",
                      help="training images in their stored order, as the release has them")
    data.add_argument("--validate_on_test", action="store_true",
                      help="log the accuracy on the test images too, as the release does; nothing is chosen by it")
    data.add_argument("--normalisation", choices=("data", "released"), default="data",
                      help="constants of the training images, or those of the release for CIFAR-10")
    add_augmentation_arguments(parser)
    model = parser.add_argument_group("model")
    model.add_argument("--backbone", "--network", dest="backbone",
                       help="plain, densenet, convnet28 or convnet8; else the one that fits the image size")
    model.add_argument("--variant", choices=("paper", "released"), default="paper",
                       help="paper: four convolutions in stage 3, linear reconstruction; released: three, ReLU on it")
    model.add_argument("--width", type=positive_int,
                       help="channels of the first stage (paper: 64, MNIST 100); densenet: growth rate (24)")
    model.add_argument("--norm", choices=("batch", "none"), default="batch", help="normalisation in the plain nets")
    model.add_argument("--dropout_at_test", action="store_true",
                       help="leave dropout on at inference, as the release does")
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--max_epochs", "--training_epoch", dest="max_epochs", type=positive_int, default=500,
                              help="passes over the training part")
    optimisation.add_argument("--batch_size", "--batchsize", dest="batch_size", type=positive_int, default=128,
                              help="images a step, all processes together")
    optimisation.add_argument("--rate", "--initial_lr", "--lr", dest="rate", type=non_negative, default=0.05,
                              help="learning rate of SGD")
    optimisation.add_argument("--momentum", type=non_negative, default=0.9, help="momentum of SGD")
    optimisation.add_argument("--weight_decay", type=non_negative, default=5e-4, help="weight decay of all parameters")
    optimisation.add_argument("--schedule", choices=("step", "onecycle", "cosine", "constant"), default="step",
                              help="course of the learning rate")
    optimisation.add_argument("--restart_epoch", type=positive_int, metavar="N",
                              help="the course ends after N epochs; the rest falls from --restart_rate to 0, half a cosine")
    optimisation.add_argument("--restart_rate", type=non_negative, help="rate at --restart_epoch; else --rate")
    optimisation.add_argument("--lr_decay_rate", type=non_negative, default=0.5, help="step: factor at each decay")
    optimisation.add_argument("--lr_decay_epoch", type=positive_int, default=30,
                              help="step: epochs from one decay to the next")
    optimisation.add_argument("--reconstruction_weight", "--rloss_weight", dest="reconstruction_weight",
                              type=non_negative, default=1.0,
                              help="weight of the reconstruction error in the loss; 0: classifier alone")
    optimisation.add_argument("--drop_last", action="store_true", help="leave out an incomplete last batch")
    add_common_arguments(parser, PRESETS)
    return parser


def add_augmentation_arguments(parser: ScriptParser) -> None:
    group = parser.add_argument_group("augmentation")
    group.add_argument("--augment", default="released",
                       choices=("none", "shift1", "flip+shift4", "alternating-flip+shift2", "released", "paper"),
                       help="released: jitter, affine map, flip; paper: the authors', with the flags below")
    group.add_argument("--random_angle", type=non_negative, metavar="DEGREES", help="paper: largest rotation; else 15")
    group.add_argument("--pca_sigma", type=non_negative, metavar="LEVELS",
                       help="paper: standard deviation of the colour shift, levels of 0..255; else 25.5")
    group.add_argument("--expand_ratio", type=non_negative, metavar="RATIO", help="paper: largest expansion; else 1.2")
    group.add_argument("--crop_size", type=positive_int, nargs="+", metavar="PIXELS",
                       help="paper: side of the crop (28, or 28 28); else 7/8 of the image's")
    group.add_argument("--low_resolution_epochs", type=int, default=0, metavar="N",
                       help="train the first N epochs on images of three quarters of the size, at half the cost")


def parse_arguments(argv=None):
    """Flags, with those of the paper's augmentation filled in where it is chosen and refused where it is not."""
    parser = get_args_parser()
    args = parse(parser, argv, PRESETS)
    if (args.crop_size and len(set(args.crop_size)) > 1) or len(args.crop_size or ()) > 2:
        parser.error(f"--crop_size expects one side, or twice the same, got {args.crop_size}")
    args.crop_size = args.crop_size[0] if args.crop_size else None
    given = [flag for flag in (*PAPER_AUGMENTATION, "crop_size") if getattr(args, flag) is not None]
    if args.augment != "paper" and given:
        parser.error(f"--{given[0]} belongs to --augment paper, not to --augment {args.augment}")
    if args.restart_rate is not None and not args.restart_epoch:
        parser.error("--restart_rate is where the rate begins again: --restart_epoch says when")
    if args.low_resolution_epochs and args.augment in ("released", "paper"):
        parser.error(f"--low_resolution_epochs goes with the plain augmentations, not with --augment {args.augment}")
    if args.augment == "paper":
        for flag, value in PAPER_AUGMENTATION.items():
            setattr(args, flag, value if getattr(args, flag) is None else getattr(args, flag))
    return args


def model_settings(args, data) -> dict:
    """Constructor arguments of the network for a data set; checks that the images fit it."""
    from common.errors import UserError
    from common.training import fitting_backbone
    from crosr.model import RELEASED_MEAN, RELEASED_STD
    from crosr.networks import FOR_SIZE, STRIDE

    channels, height, width = map(int, data.train.pixels.shape[1:])
    backbone = fitting_backbone(args.backbone, height, FOR_SIZE)
    if args.normalisation == "released" and channels != 3:
        raise UserError(f"--normalisation released is for three colour channels, the images have {channels}: take data")
    mean, std = (RELEASED_MEAN, RELEASED_STD) if args.normalisation == "released" else data.train.mean_std()
    small = 3 * height // 4
    if args.low_resolution_epochs and small % STRIDE.get(backbone, 1):
        raise UserError(f"--low_resolution_epochs makes images of {small} pixels, backbone {backbone} wants multiples"
                        f" of {STRIDE[backbone]}: leave it out")
    crop_size = (args.crop_size or 7 * height // 8) if args.augment == "paper" else None
    return {"backbone": backbone, "classes": len(data.class_names), "shape": [channels, height, width],
            "mean": [round(float(v), 6) for v in mean], "std": [round(float(v), 6) for v in std],
            "width": args.width, "norm": args.norm, "variant": args.variant, "dropout_at_test": args.dropout_at_test,
            "crop_size": crop_size}  # fmt: skip


def build_augmentation(args, model_config):
    """The policy of the flags; None for none."""
    from crosr.augmentation import augmentation

    paper = {}
    if args.augment == "paper":
        paper = {flag: getattr(args, flag) for flag in PAPER_AUGMENTATION} | {"crop_size": model_config["crop_size"]}
    return augmentation(args.augment, args.seed, args.low_resolution_epochs, mean=model_config["mean"], **paper)


def build_schedules(optimizer, args, steps: int) -> list:
    """The course of the learning rate, and the one after a restart: `(first step, factor on --rate, schedule)` each.

    `step`: times `lr_decay_rate` every `lr_decay_epoch` epochs; `steps` is an epoch's number.
    """
    from common.recipes import Schedule

    epochs = min(args.restart_epoch or args.max_epochs, args.max_epochs)
    options = {}
    if args.schedule == "step":
        decays = range(args.lr_decay_epoch, epochs, args.lr_decay_epoch)
        options = {"milestones": tuple(epoch / epochs for epoch in decays), "decay": args.lr_decay_rate}
    schedules = [(0, 1.0, Schedule(optimizer, args.schedule, epochs * steps, **options))]
    if epochs < args.max_epochs:
        scale = 1.0 if args.restart_rate is None else args.restart_rate / args.rate
        schedules.append((epochs * steps, scale, Schedule(optimizer, "cosine", (args.max_epochs - epochs) * steps)))
    return schedules


def set_rate(schedules: list, step: int) -> None:
    """Set the learning rate for an optimiser step, counted from 0 over the whole training."""
    first, scale, schedule = next(part for part in reversed(schedules) if part[0] <= step)
    schedule.set(step - first)
    for group in schedule.optimizer.param_groups:
        group["lr"] *= scale


def settle_skipped(run) -> dict:
    """Make the epoch's means those of the batches that were trained on; what to log of the skipped ones.

    Raises
    ------
    UserError
        No batch of the epoch had a finite loss.
    """
    from common.errors import UserError

    skipped = int(run.sums.pop("skipped_batches"))
    if not skipped:
        return {}
    if skipped == run.step:
        raise UserError(f"epoch {run.epoch + 1}: the loss of all {skipped} batches is not a finite number; the training"
                        " has diverged: begin again with a smaller --rate")
    print(f"warning: epoch {run.epoch + 1}: {skipped} of {run.step} batches skipped, their loss is not a finite number")
    run.sums = {name: total * run.step / (run.step - skipped) for name, total in run.sums.items()}
    return {"skipped_batches": skipped}


def main(argv=None) -> None:
    args = parse_arguments(argv)
    import torch

    from common.devices import Devices
    from common.run import Run
    from common.training import closed_accuracy, load_data, training_batches
    from crosr.features import training_statistics
    from crosr.model import DHRNet, classification_loss, reconstruction_loss

    data = load_data(args)
    devices = Devices(args)
    model_config = model_settings(args, data)
    augment = build_augmentation(args, model_config)
    torch.manual_seed(args.seed)
    model = DHRNet(**model_config)
    run = Run.create(PAPER, args, devices, data.train.checksums, argv)
    batches = training_batches(data, args, devices, augment)
    batches.shuffle = not args.no_shuffle
    optimizer = torch.optim.SGD(model.parameters(), args.rate, args.momentum, weight_decay=args.weight_decay)
    called, stepper = devices.setup(model, optimizer)
    schedules = build_schedules(optimizer, args, len(batches))
    run.track(model=model, optimizer=optimizer)
    if args.validate_on_test and devices.rank == 0:
        print("note: test_accuracy is for monitoring only; no choice depends on it, and test.py reports the last epoch")

    def accuracies() -> dict[str, float]:
        parts = {"validation_accuracy": data.validation}
        if args.validate_on_test:
            parts["test_accuracy"] = data.test
        return {name: closed_accuracy(model, lambda x: model(x).logits, part, devices) for name, part in parts.items()}

    for epoch in run.epochs(args.max_epochs):
        model.train()
        for images, labels in run.steps(batches, epoch):
            set_rate(schedules, epoch * len(batches) + run.step)
            with devices.autocast():
                output = called(images)
            classification, reconstruction = classification_loss(output, labels), reconstruction_loss(output)
            loss = classification + args.reconstruction_weight * reconstruction
            # The mean over processes, so that all of them skip or none does.
            finite = devices.mean(loss.detach()).isfinite()
            run.add(skipped_batches=~finite)
            if not finite:
                continue
            optimizer.zero_grad(set_to_none=True)
            devices.backward(loss)
            stepper.step()
            run.add(loss=loss, classification_loss=classification, reconstruction_loss=reconstruction)
        skipped = settle_skipped(run)
        run.end_epoch(**accuracies(), **skipped)

    header = {"model": model_config, "class_names": list(data.class_names),
              "data": {"known_dataset": args.known_dataset, "split": data.split.name, "seed": args.seed,
                       "validation_share": args.validation_share, "subset": args.subset}}  # fmt: skip
    if devices.rank == 0:
        statistics = training_statistics(model.eval(), data.train, devices.exact())
        run.finish(model.state_dict() | statistics, header)
        print(f"trained: {run.directory}")


if __name__ == "__main__":
    run_script(main)
