"""Train VMDLS: a latent space shaped by triplets and class Gaussians; `test.py` turns it into open-set scores.

Dinari and Freifeld 2022, "Variational- and Metric-based Deep Latent Space for Out-of-Distribution Detection" (UAI).

    python vmdls/main.py --preset digits                                  # digits 0-5 known, a few seconds
    python vmdls/main.py --preset mnist --save mnist
    python vmdls/main.py --preset laptop --save cifar10-a                 # fine-tunes a softmax-trained net
    python vmdls/main.py --enc_type vgg --latent_dim 32 --max_epochs 500 --known_dataset cifar_known --lr 0.001
        --data_transforms cifar --opt adam --batch_classes 8 --sample_count 8 --margins_epoch 10 --generation_epoch 0
"""

from __future__ import annotations

from common.arguments import run_script
from vmdls.arguments import ENCODERS, PAPER, PRESETS, get_args_parser, parse_arguments

__all__ = ["ENCODERS", "PAPER", "PRESETS", "get_args_parser", "main", "parse_arguments"]


def starting_point(args, data):
    """Weights that `--weights` or `--checkpoint_path` name, or None; knowledge of unknown classes is refused."""
    import tempfile
    from pathlib import Path

    from common.checkpoints import is_torch_file, load_weights
    from vmdls.evaluation_arguments import require_classifier
    from vmdls.names import checkpoint, require_softmax_weights
    from vmdls.original_files import imported
    from vmdls.recipe import Weights, read_weights, require_same_knowledge

    if args.weights:
        require_softmax_weights(args.weights)
        start = read_weights(args.weights)
    elif args.checkpoint_path and is_torch_file(args.checkpoint_path):
        with tempfile.TemporaryDirectory() as folder:
            converted = imported(args.checkpoint_path, args, Path(folder))
            start = Weights(*load_weights(converted, paper=PAPER), args.checkpoint_path)
    elif args.checkpoint_path:
        start = Weights(*load_weights(checkpoint(args.checkpoint_path), paper=PAPER), args.checkpoint_path)
        require_classifier(start.header)
    else:
        return None
    require_same_knowledge(start, data, args)
    return start


def started_from(args) -> str | None:
    """SHA-256 of the weights that training starts from, for the records; None for random ones."""
    from common.checkpoints import origin
    from vmdls.names import checkpoint

    return origin(args.weights or checkpoint(args.checkpoint_path)) if args.weights or args.checkpoint_path else None


def model_settings(args, data, start) -> dict:
    """Constructor arguments of the network for a data set and the weights it starts from."""
    from common.errors import UserError
    from vmdls.encoders import build_encoder
    from vmdls.recipe import encoder_settings, normalisation

    shape = [int(side) for side in data.train.pixels.shape[1:]]
    if args.input_height not in (None, shape[1]):
        raise UserError(f"--input_height {args.input_height}: images of {args.known_dataset} have {shape[1]} pixels")
    mean, std = normalisation(args.data_transforms, data.train)
    config = {"backbone": args.enc_type, "classes": len(data.class_names), "shape": shape, "mean": mean, "std": std,
              "latent_dim": args.latent_dim, "width": args.width, "first_conv": args.first_conv,
              "maxpool1": args.maxpool1, "released_slices": args.released_slices,
              "dropout_at_test": args.dropout_at_test}  # fmt: skip
    if args.weights:
        config |= encoder_settings(start, args.enc_type)
    elif start is not None:
        config |= {key: start.header["model"][key] for key in ("mean", "std")}
    options = ("width", "first_conv", "maxpool1", "released_slices", "dropout_at_test")
    dimension = build_encoder(args.enc_type, shape[0], shape[1], **{key: config[key] for key in options}).dimension
    if args.enc_out_dim not in (None, dimension):
        raise UserError(f"--enc_out_dim {args.enc_out_dim} does not fit --enc_type {args.enc_type}:"
                        f" its output has {dimension}")
    return config


def balanced_batches(args, data, devices):
    """Class-balanced batches of the training part on the device; a dry run takes what its few images allow."""
    import numpy as np
    import torch

    from vmdls.recipe import augmentation
    from vmdls.sampling import BalancedBatches

    classes, samples, final = args.batch_classes, args.sample_count, args.sample_count_final
    if args.dry_run:
        sizes = np.bincount(data.train.labels)
        classes = min(classes, len(sizes))
        samples, final = max(min(samples, sizes.min(), (len(data.train) - 1) // classes), 1), None
    return BalancedBatches(
        torch.from_numpy(data.train.pixels).to(devices.device), torch.from_numpy(data.train.labels).to(devices.device),
        classes, int(samples), args.seed, augmentation(args.data_transforms, args.seed, data.train.shape[1]),
        final, args.sample_count_epoch, devices.rank, devices.world_size,
    )  # fmt: skip


def validation_figures(model, gaussians, images, devices, batch_size: int) -> dict[str, float]:
    """On held-out images, by the latent mean alone: accuracy without rejection, and the share that is not rejected."""
    import numpy as np

    from common.inference import apply_batched

    if images is None or not len(images):
        return {"validation_accuracy": float("nan"), "validation_accepted": float("nan")}

    def decisions(pixels):
        with devices.autocast():
            mean, _ = model(pixels)
        return dict(zip(("best", "reached"), gaussians.decide(mean)))

    model.eval()
    found = apply_batched(decisions, images.pixels, devices.device, batch_size, "validation")
    return {"validation_accuracy": float(np.mean(found["best"] == images.labels)),
            "validation_accepted": float(np.mean(found["reached"] < len(gaussians.mean)))}  # fmt: skip


def main(argv=None) -> None:
    args = parse_arguments(argv)
    import torch

    from common.devices import Devices
    from common.run import Run
    from common.training import load_data
    from vmdls.dry_run import enough_images
    from vmdls.encoders import initialise_kaiming
    from vmdls.model import VMDLS
    from vmdls.monitoring import Monitor
    from vmdls.recipe import Trainer, load_encoder, load_model
    from vmdls.scoring import collect_statistics

    data = load_data(enough_images(args, args.class_num))
    devices = Devices(args)
    start = starting_point(args, data)
    model_config = model_settings(args, data, start)
    batches = balanced_batches(args, data, devices)
    run = Run.create(PAPER, args, devices, data.train.checksums, argv, started_from(args))
    model = VMDLS(**model_config)
    if args.init == "kaiming":
        initialise_kaiming(model.encoder)
    if args.weights:
        unused = load_encoder(model.encoder, start)
        print(f"encoder from {start.name}; unused there: {', '.join(unused) or 'nothing'}")
    elif start is not None:
        load_model(model, model_config, start)
    elif hasattr(model.encoder, "whiten"):
        model.encoder.whiten(model.normalise(torch.from_numpy(data.train.pixels[:5000])))
    trainer = Trainer(model, args, devices)
    run.track(**trainer.tracked())
    monitor = Monitor(args, data, devices, run.directory, argv)

    for epoch in run.epochs(args.max_epochs):
        batches.begin(epoch)
        trainer.begin(epoch)
        for images, labels in run.steps(batches, epoch):
            run.add(**trainer.step(images, labels, run.step, run.step / len(batches)))
            if args.dry_run and 0 < trainer.alone < args.max_epochs:
                trainer.begin(trainer.alone)  # a step of the second phase too
                trainer.step(images, labels, run.step, 0.0)
        trainer.end_epoch()
        figures = validation_figures(model, trainer.gaussians, data.validation, devices, args.batch_size)
        run.end_epoch(margin=trainer.margin, **figures, **monitor.watch(epoch, model, trainer.gaussians))

    header = {"model": model_config, "class_names": list(data.class_names),
              "data": {"known_dataset": args.known_dataset, "split": data.split.name, "seed": args.seed,
                       "validation_share": args.validation_share, "subset": args.subset}}  # fmt: skip
    model.freeze(False)
    statistics = collect_statistics(model.eval(), data.train, devices.exact(), args.batch_size)
    run.finish(model.state_dict() | statistics, header)
    if devices.rank == 0:
        print(f"trained: {run.directory}")


if __name__ == "__main__":
    run_script(main)
