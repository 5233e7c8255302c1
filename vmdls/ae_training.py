"""Training of the auto-encoders: the flags, presets and the loop that train_resnet_ae.py and mnist_ae.py share.

Mean squared error over all elements of normalised, un-augmented images; Adam, a constant rate, or one that falls to 0.
Training images are those of the classifier: known classes only, without the held-out ones of the same `--seed`.
"""

from __future__ import annotations

from common.arguments import ScriptParser, add_common_arguments, non_negative, parse, positive_int
from vmdls.autoencoders import ENCODER_OF

PAPER = "vmdls"
# Spellings of --enc_type; mnist-conv and cifar are the encoders' names elsewhere.
SPELLINGS = {"mnist-conv": "mnist"}
COLOUR = {
    # 100 epochs at the release's rate and batch, on a GPU.
    "cifar10": {"dataset": "cifar10", "max_epochs": 100, "precision": "auto"},
    "cifar100": {"dataset": "cifar100", "split": "all", "max_epochs": 100, "precision": "auto"},
    # CIFAR-10 on two CPU cores, less than a quarter of an hour; the constants are those of main.py's laptop preset.
    "laptop": {
        "dataset": "cifar10", "enc_type": "small", "data_transforms": "none", "max_epochs": 8, "lr": 0.002,
        "schedule": "linear", "batch_size": 128,
    },
}  # fmt: skip
GREY = {
    # The supplement's network: a GPU.
    "mnist-cnn": {"max_epochs": 50, "precision": "auto"},
    # A third of its width, as main.py's preset of this name: some ten minutes on two CPU cores.
    "mnist": {
        "width": 32, "max_epochs": 6, "lr": 0.001, "schedule": "linear", "batch_size": 128, "init": "kaiming",
    },
    "digits": {
        "dataset": "digits", "split": "first-6", "enc_type": "small", "width": 16, "latent_dim": 16,
        "data_transforms": "none", "max_epochs": 30, "lr": 0.005, "schedule": "linear", "batch_size": 64,
    },
}  # fmt: skip
DEFAULTS = {
    "train_resnet_ae.py": {"dataset": "cifar10", "enc_type": "resnet18", "latent_dim": 256, "data_transforms": "cifar"},
    "mnist_ae.py": {"dataset": "mnist", "enc_type": "mnist", "latent_dim": 32, "data_transforms": "mnist"},
}
PRESETS = {"train_resnet_ae.py": COLOUR, "mnist_ae.py": GREY}
# What trains the auto-encoder of a known data set.
COMMANDS = {
    "mnist": "vmdls/mnist_ae.py --preset mnist", "digits": "vmdls/mnist_ae.py --preset digits",
    "cifar10": "vmdls/train_resnet_ae.py --preset laptop", "cifar100": "vmdls/train_resnet_ae.py --preset cifar100",
}  # fmt: skip


def run_name(dataset: str, split: str) -> str:
    """Name of the run that holds the auto-encoder of a known data set and split, where neither names another one."""
    return f"ae-{dataset}" + ("" if split == "all" else f"-{split}")


def training_command(dataset: str, split: str) -> str:
    """The command that trains the auto-encoder of a known data set and split."""
    command = COMMANDS.get(dataset, f"vmdls/train_resnet_ae.py --enc_type small --dataset {dataset}")
    return f"python {command}" + ("" if dataset == "digits" and split == "first-6" else f" --split {split}")


def get_args_parser(script: str) -> ScriptParser:
    """Flags of `train_resnet_ae.py` or `mnist_ae.py`: one set, with the defaults and presets of the script."""
    parser = ScriptParser(description=f"Train an auto-encoder that weights VMDLS's score ({script}).")
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", "--known_dataset", dest="known_dataset", default="mnist", help="images to reconstruct")
    data.add_argument("--split", default="all", help="known classes: all, a named split (cssr-a, first-6), or 0-5,8;"
                      " unknown classes must not be reconstructed well")
    data.add_argument("--data_transforms", choices=("mnist", "cifar", "none"), default="mnist",
                      help="normalisation, that of the classifier's flag of this name; nothing is augmented")
    model = parser.add_argument_group("model")
    model.add_argument("--enc_type", choices=("resnet18", "resnet50", "mnist", "mnist-conv", "small"), default="mnist",
                       help="network")
    model.add_argument("--enc_out_dim", type=positive_int, help="width of the encoder's output, checked")
    model.add_argument("--latent_dim", type=positive_int, default=256, help="width of the bottleneck")
    model.add_argument("--width", type=positive_int, help="channels of mnist (else 100) and of small (32)")
    model.add_argument("--first_conv", action="store_true", help="ResNets: 7x7 stem of stride 2")
    model.add_argument("--maxpool1", action="store_true", help="ResNets: 3x3 max-pool of stride 2 after the stem")
    model.add_argument("--init", choices=("released", "kaiming"), default="released",
                       help="start: the library's, as released, or He et al.'s for ReLU")
    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument("--max_epochs", type=positive_int, default=1000, help="passes over the training part")
    optimisation.add_argument("--lr", type=non_negative, default=1e-4, help="learning rate of Adam")
    optimisation.add_argument("--schedule", choices=("constant", "linear"), default="constant", help="course of the rate")
    optimisation.add_argument("--batch_size", type=positive_int, default=256, help="images a step")
    optimisation.add_argument("--num_workers", type=int, default=8, help="no effect: images are on the device")
    optimisation.add_argument("--offline", action="store_true", help="no effect: nothing is ever sent anywhere")
    add_common_arguments(parser, PRESETS[script])
    defaults = dict(DEFAULTS[script])
    parser.set_defaults(known_dataset=defaults.pop("dataset"), **defaults)
    return parser


def parse_arguments(script: str, argv):
    """Parse the flags of a script, resolve names, and name the run after its data where the user does not."""
    from common.datasets import find_split, resolve_name

    presets = {name: {**values, **({"known_dataset": values["dataset"]} if "dataset" in values else {})}
               for name, values in PRESETS[script].items()}  # fmt: skip
    for values in presets.values():
        values.pop("dataset", None)
    args = parse(get_args_parser(script), argv, presets)
    args.known_dataset = resolve_name(args.known_dataset)
    args.enc_type = SPELLINGS.get(args.enc_type, args.enc_type)
    args.split = find_split(args.known_dataset, args.split).name
    if args.save is None:
        args.save = run_name(args.known_dataset, args.split)
    return args


def model_settings(args, images) -> dict:
    """Constructor arguments of the auto-encoder; the class itself refuses sizes that do not fit."""
    from common.errors import UserError
    from vmdls.encoders import build_encoder
    from vmdls.recipe import normalisation

    shape = [int(side) for side in images.pixels.shape[1:]]
    mean, std = normalisation(args.data_transforms, images)
    if args.enc_out_dim is not None and args.enc_type in ENCODER_OF:
        dimension = build_encoder(ENCODER_OF[args.enc_type], shape[0], shape[1]).dimension
        if dimension != args.enc_out_dim:
            raise UserError(f"--enc_out_dim {args.enc_out_dim} does not fit --enc_type {args.enc_type}: its output has"
                            f" {dimension}")
    return {"autoencoder": args.enc_type, "shape": shape, "mean": mean, "std": std, "latent_dim": args.latent_dim,
            "width": args.width, "first_conv": args.first_conv, "maxpool1": args.maxpool1}  # fmt: skip


def reconstruction_loss(model, images, devices, batch_size: int) -> float:
    """Mean squared error over the held-out images; NaN when there are none."""
    import numpy as np

    from common.inference import apply_batched

    if images is None or not len(images):
        return float("nan")

    def errors(pixels):
        with devices.autocast():
            rebuilt = model(pixels)
        return {"error": (rebuilt.float() - model.normalise(pixels)).square().mean((1, 2, 3))}

    model.eval()
    found = apply_batched(errors, images.pixels, devices.device, batch_size, "validation")
    model.train()
    return float(np.mean(found["error"], dtype=np.float64))


def train(script: str, argv=None) -> None:
    """Train an auto-encoder with the flags of `script`; the run holds `weights.safetensors`.

    Raises
    ------
    UserError
        Bad flags, missing data, or a loss that is not finite.
    """
    args = parse_arguments(script, argv)
    import torch

    from common.datasets import find_split
    from common.devices import Devices
    from common.errors import UserError
    from common.run import Run, command_line
    from common.training import load_data, training_batches
    from vmdls.autoencoders import AutoEncoder, initialise_for_relu
    from vmdls.dry_run import enough_images
    from vmdls.recipe import rate_factor, set_rates

    args.drop_last = False
    classes = len(find_split(args.known_dataset, args.split).known)
    data, devices = load_data(enough_images(args, classes)), Devices(args)
    model_config = model_settings(args, data.train)
    run = Run.create(PAPER, args, devices, data.train.checksums, argv)
    if devices.rank == 0:
        run.meta["command"] = command_line(f"{PAPER}/{script}", argv)
    model = AutoEncoder(**model_config)
    if args.init == "kaiming":
        initialise_for_relu(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    called, stepper = devices.setup(model, optimizer)
    batches = training_batches(data, args, devices, None)
    run.track(model=model, optimizer=optimizer)

    for epoch in run.epochs(args.max_epochs):
        model.train()
        for images, _ in run.steps(batches, epoch):
            done = epoch + run.step / len(batches)
            set_rates(optimizer, rate_factor(args.schedule, done, args.max_epochs, 1, 1.0))
            with devices.autocast():
                rebuilt = called(images)
            loss = torch.nn.functional.mse_loss(rebuilt.float(), model.normalise(images))
            if not torch.isfinite(loss):
                raise UserError(f"the loss is {loss.item()} in epoch {epoch + 1}: the training diverged; lower --lr"
                                f" (now {args.lr:g}) or take --precision fp32")
            optimizer.zero_grad(set_to_none=True)
            devices.backward(loss)
            stepper.step()
            run.add(loss=loss)
        run.end_epoch(validation_loss=reconstruction_loss(model, data.validation, devices, args.batch_size))

    header = {"model": model_config, "class_names": list(data.class_names),
              "data": {"known_dataset": args.known_dataset, "split": data.split.name, "seed": args.seed,
                       "validation_share": args.validation_share, "subset": args.subset}}  # fmt: skip
    run.finish(model.state_dict(), header)
    if devices.rank == 0:
        print(f"trained: {run.directory}")
