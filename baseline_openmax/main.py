"""Train a softmax classifier on the known classes; `test.py` turns it into open-set scores.

The common ground of all comparisons: maximum logit and softmax scores of a plain, well-trained classifier
(Vaze et al. 2022, "Open-Set Recognition: a Good Closed-Set Classifier is All You Need?").

    python baseline_openmax/main.py                                     # digits 0-5 known, a few seconds
    python baseline_openmax/main.py --preset mnist --split cssr-a --save mnist-a
    python baseline_openmax/main.py --preset laptop --split cssr-a --save cifar10-a
"""

from __future__ import annotations

from common.arguments import (
    ScriptParser,
    add_common_arguments,
    non_negative,
    parse,
    positive_int,
    run_script,
    share,
)

PAPER = "baseline_openmax"

PRESETS = {
    # scikit-learn's digits: what the demo runs.
    "digits": {"known_dataset": "digits", "split": "first-6"},
    # MNIST, plain conv net of width 32, 5 epochs.
    "mnist": {"known_dataset": "mnist", "split": "all", "max_epochs": 5, "batch_size": 128, "rate": 0.05},
    # CIFAR-10 on two CPU cores: net and recipe in the spirit of Jordan 2024 (arXiv 2404.00498).
    "laptop": {
        "known_dataset": "cifar10", "split": "cssr-a", "backbone": "speednet", "max_epochs": 8, "batch_size": 512,
        "low_resolution_epochs": 4, "optimizer": "speed", "rate": 11.5, "momentum": 0.85, "weight_decay": 0.0153,
        "schedule": "triangular", "label_smoothing": 0.2, "augment": "alternating-flip+shift2",
        "average_weights": True, "mirror_test": True,
        "drop_last": True, "whitening_bias_epochs": 3, "logit_scale": 1 / 9, "precision": "auto",
    },
    # CIFAR-10 on a GPU: ResNet-18 with the small-image stem, 100 epochs.
    "resnet18": {
        "known_dataset": "cifar10", "split": "cssr-a", "backbone": "resnet18", "max_epochs": 100, "batch_size": 128,
        "optimizer": "sgd", "rate": 0.1, "weight_decay": 5e-4, "schedule": "cosine", "augment": "flip+shift4",
        "precision": "auto",
    },
}  # fmt: skip


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    data = parser.add_argument_group("data")
    data.add_argument("--known_dataset", default="digits", help="data set that holds the known classes")
    data.add_argument("--split", default="first-6", help="known classes: a named split (cssr-a, arpl-0, first-6), all, or 0-5,8")
    data.add_argument("--augment", choices=("none", "shift1", "flip+shift4", "alternating-flip+shift2"), default="none",
                      help="augmentation of the training images; shiftN moves by up to N pixels")
    data.add_argument("--low_resolution_epochs", type=int, default=0, metavar="N",
                      help="train the first N epochs on images of three quarters of the size, at half the cost")
    model = parser.add_argument_group("model")
    model.add_argument("--backbone", choices=("convnet8", "convnet28", "vgg", "speednet", "resnet18"),
                       help="network; else the one that fits the image size")
    model.add_argument("--width", type=positive_int, help="channels of the backbone's first stage; else its own default")
    model.add_argument("--norm", choices=("batch", "none"), default="batch", help="normalisation in the conv nets and VGG")
    model.add_argument("--logit_scale", type=float, default=1.0, help="factor on the logits; not 1: no bias")
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--max_epochs", type=positive_int, default=20, help="passes over the training part")
    optimisation.add_argument("--batch_size", type=positive_int, default=64, help="images a step, all processes together")
    optimisation.add_argument("--optimizer", choices=("sgd", "adam", "adamw", "speed"), default="sgd",
                              help="speed: the parameter groups of common/recipes.py")
    optimisation.add_argument("--rate", type=float, default=0.05, help="learning rate; speed: per 1,024 images")
    optimisation.add_argument("--momentum", type=float, default=0.9, help="momentum of sgd and speed")
    optimisation.add_argument("--weight_decay", type=non_negative, default=1e-4, help="weight decay")
    optimisation.add_argument("--schedule", choices=("constant", "cosine", "triangular", "onecycle", "step"), default="onecycle",
                              help="course of the learning rate over all steps")
    optimisation.add_argument("--label_smoothing", type=share, default=0.0, help="share of the target spread over all classes")
    optimisation.add_argument("--average_weights", action="store_true", help="pull weights to a running average every 5 steps")
    optimisation.add_argument("--whitening_bias_epochs", type=int, default=3,
                              help="epochs in which the speed net's stem bias is trained")
    optimisation.add_argument("--drop_last", action="store_true", help="leave out an incomplete last batch")
    evaluation = parser.add_argument_group("evaluation")
    evaluation.add_argument("--mirror_test", action="store_true", help="average the logits of an image and its mirror image")
    add_common_arguments(parser, PRESETS)
    return parser


def parse_arguments(argv=None):
    """Flags, with those of the preset as defaults."""
    return parse(get_args_parser(), argv, PRESETS)


def model_settings(args, data) -> dict:
    """Constructor arguments of the classifier for a data set; the backbone follows the image size when none is named."""
    from baseline_openmax.model import BACKBONE_FOR_SIZE
    from common.training import fitting_backbone

    shape = data.train.pixels.shape[1:]
    backbone = fitting_backbone(args.backbone, shape[1], BACKBONE_FOR_SIZE)
    mean, std = data.train.mean_std()
    return {"backbone": backbone, "classes": len(data.class_names), "shape": list(map(int, shape)),
            "mean": [round(float(v), 6) for v in mean], "std": [round(float(v), 6) for v in std],
            "width": args.width, "norm": args.norm, "logit_scale": args.logit_scale}  # fmt: skip


def main(argv=None) -> None:
    args = parse_arguments(argv)
    import torch
    from torch.nn import functional

    from baseline_openmax.model import Classifier
    from common.devices import Devices
    from common.recipes import Schedule, WeightAveraging, build_optimizer
    from common.run import Run
    from common.training import augmentation, closed_accuracy, load_data, training_batches

    data = load_data(args)
    devices = Devices(args)
    model_config = model_settings(args, data)
    run = Run.create(PAPER, args, devices, data.train.checksums, argv)
    model = Classifier(**model_config)
    stem = getattr(model.backbone, "whitening", None)
    if stem is not None:
        model.backbone.whiten(model.normalise(torch.from_numpy(data.train.pixels[:5000])))

    augment = augmentation(args.augment, args.seed, args.low_resolution_epochs)
    batches = training_batches(data, args, devices, augment)
    total = args.max_epochs * len(batches)
    optimizer = build_optimizer(
        model,
        args.optimizer,
        args.rate,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        batch_size=args.batch_size,
        stop_bias=None if stem is None else stem.bias,
        stop_at_step=args.whitening_bias_epochs * len(batches),
    )
    called, stepper = devices.setup(model, optimizer)
    schedule = Schedule(optimizer, args.schedule, total)
    run.track(model=model, optimizer=optimizer)
    averaging = None
    if args.average_weights:
        averaging = WeightAveraging(model, total)
        run.track(averaging=averaging)

    for epoch in run.epochs(args.max_epochs):
        model.train()
        for images, labels in run.steps(batches, epoch):
            step = epoch * len(batches) + run.step
            schedule.set(step)
            with devices.autocast():
                loss = functional.cross_entropy(called(images).float(), labels, label_smoothing=args.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            devices.backward(loss)
            stepper.step()
            run.add(loss=loss)
            if averaging is not None:
                averaging.update(step + 1)
        if averaging is not None and epoch + 1 == run.max_epochs:
            averaging.finish()
        run.end_epoch(validation_accuracy=closed_accuracy(model, model, data.validation, devices))

    header = {"model": model_config, "class_names": list(data.class_names), "mirror_test": args.mirror_test,
              "data": {"known_dataset": args.known_dataset, "split": data.split.name, "seed": args.seed,
                       "validation_share": args.validation_share, "subset": args.subset}}  # fmt: skip
    run.finish(model.state_dict(), header)
    if devices.rank == 0:
        print(f"trained: {run.directory}")


if __name__ == "__main__":
    run_script(main)
