"""Train CSSR: one auto-encoder per known class on a shared feature map; `test.py` turns it into open-set scores.

Huang, Wang, Hu, Cheng 2022, "Class-Specific Semantic Reconstruction for Open Set Recognition" (TPAMI).

    python cssr/main.py                                                   # pcssr on digits 0-5, a few seconds
    python cssr/main.py --preset mnist --split a --model rcssr --save mnist-rcssr-a
    python cssr/main.py --preset laptop --split a --model rcssr --save cifar10-rcssr-a
    python cssr/main.py --ds ./exps/cifar10/spl_a.json --config ./configs/rcssr/cifar10.json --save rcssr_cifar10_a --method cssr
    python cssr/main.py --ds ./exps/imagenet/vs_inaturalist.json --config ./configs/rcssr/imagenet.json \
        --save imagenet1k_rcssr --method cssr_ft
"""

from __future__ import annotations

import time

from common.arguments import run_script
from cssr.arguments import PAPER, parse_arguments, recorded


def model_settings(args, data) -> dict:
    """Constructor arguments of the network for a data set; refuses a frozen backbone without weights."""
    from common.errors import UserError, nearest
    from common.training import fitting_backbone
    from cssr.backbones import FOR_SIZE, NAMES
    from cssr.model import DEFAULT_GAMMA, DEFAULT_ORDER
    from cssr.pretrained import LARGE_IMAGES, TIMM, TORCHVISION, has_weights

    shape = data.train.pixels.shape[1:]
    backbone = fitting_backbone(args.backbone, shape[1], FOR_SIZE | LARGE_IMAGES)
    names = (*NAMES, *TORCHVISION)
    if backbone not in names and not backbone.startswith(TIMM):
        raise UserError(f"unknown backbone {backbone!r}, choose from {', '.join(names)}, {TIMM}NAME{nearest(backbone, names)}")
    frozen = args.method == "cssr_ft"
    if frozen and not args.backbone_weights and not has_weights(backbone):
        raise UserError(f"--method cssr_ft freezes the backbone, and {backbone} has no weights: give --backbone_weights,"
                        " a pretrained backbone (prt_pytorchr18, ...), or train it with --method cssr")  # fmt: skip
    mean, std = normalisation(args, data, backbone)
    settings = {"model": args.model, "backbone": backbone, "classes": len(data.class_names), "shape": list(map(int, shape)),
            "mean": [round(float(v), 6) for v in mean], "std": [round(float(v), 6) for v in std],
            "width": args.width, "norm": args.norm, "standard_wrn": args.standard_wrn,
            "projection_dim": args.projection_dim, "ae_hidden": list(args.ae_hidden), "ae_latent": args.ae_latent,
            "gamma": DEFAULT_GAMMA[args.model] if args.gamma is None else args.gamma,
            "error_measure": args.error_measure, "arch_type": args.arch_type or DEFAULT_ORDER[args.model],
            "mirror_test": args.mirror_test}  # fmt: skip
    return settings | ({"frozen": True} if frozen else {})


def normalisation(args, data, backbone: str):
    """Mean and deviation per channel: those that the backbone's weights were trained with, else as the flag says."""
    from common.checkpoints import load_weights
    from common.errors import UserError
    from cssr.pretrained import is_pretrained, is_state_dict, normalisation_of

    channels = data.train.pixels.shape[1]
    if is_pretrained(backbone):
        return normalisation_of(backbone)
    if args.backbone_weights and not is_state_dict(args.backbone_weights):
        header = load_weights(args.backbone_weights, paper=PAPER)[1]["model"]
        return header["mean"], header["std"]
    if args.normalisation == "data":
        if hasattr(data.train.pixels, "files"):
            raise UserError("--normalisation data needs images in memory; a streamed set takes the released constants")
        return data.train.mean_std()
    return [0.5] * channels, [0.25] * channels


def build_schedule(optimizer, args, steps: int):
    """The course of the learning rate over all steps."""
    from common.recipes import Schedule
    from cssr.optimisation import MultiStep

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
    from common.training import closed_accuracy
    from cssr.data import open_set_data, place_data_sets, unknown_sets
    from cssr.evaluation import Evaluation
    from cssr.expressions import settings as own_score
    from cssr.optimisation import build_optimizer
    from cssr.pretrained import build_network, fill_backbone, read_backbone
    from cssr.training import augmentation_of, batches_of, features_of

    place_data_sets(args)
    unknown = unknown_sets(args) if args.test_interval else []
    data = open_set_data(args.known_dataset, args.split, unknown, args, validation_share=args.validation_share,
                         seed=args.seed, subset=args.subset)  # fmt: skip
    devices = Devices(args)
    model_config, scoring = model_settings(args, data), own_score(args.model, args.point_score, args.integrate_score)
    weights = read_backbone(model_config, args)
    run = Run.create(PAPER, recorded(args), devices, data.train.checksums, argv)
    model = build_network(model_config)
    fill_backbone(model, weights)
    if weights is None and hasattr(model.backbone, "whiten"):
        model.backbone.whiten(model.normalise(torch.from_numpy(data.train.pixels[:5000])))
    augment = augmentation_of(args, data, model)
    data, views = features_of(data, model, augment, args, devices, run)
    batches = batches_of(data, views, args, devices, augment)
    optimizer = build_optimizer(model, args, len(batches))
    called, stepper = devices.setup(model, optimizer)
    schedule = build_schedule(optimizer, args, len(batches))
    run.track(model=model, optimizer=optimizer)
    averaging = None
    if args.average_weights:
        averaging = WeightAveraging(model, args.max_epochs * len(batches))
        run.track(averaging=averaging)
    header = {"model": model_config, "class_names": list(data.class_names),
              "data": {"known_dataset": args.known_dataset, "split": data.split.name, "seed": args.seed,
                       "validation_share": args.validation_share, "subset": args.subset}}  # fmt: skip
    special = {key: getattr(args, key) for key in ("unknown_sets", "image_size", "feature_views")}
    header["data"] |= {key: value for key, value in special.items() if value is not None}
    header |= {"score": scoring} if scoring else {}
    evaluation = Evaluation(run, args, header, data, devices.exact(), model, batches)
    evaluation.make_up(args.max_epochs, optimizer.param_groups[0]["lr"])

    for epoch in run.epochs(args.max_epochs):
        model.train()
        waiting = time.perf_counter()
        for images, labels in run.steps(batches, epoch):
            step = epoch * len(batches) + run.step
            waited = time.perf_counter() - waiting
            schedule.set(step)
            with devices.autocast():
                log_p = called(images)
                loss = functional.nll_loss(log_p, labels)
            optimizer.zero_grad(set_to_none=True)
            devices.backward(loss)
            stepper.step()
            run.add(loss=loss)
            evaluation.add_step(log_p, labels, waited)
            if averaging is not None:
                averaging.update(step + 1)
            waiting = time.perf_counter()
        if averaging is not None and epoch + 1 == run.max_epochs:
            averaging.finish()
        line = run.end_epoch(validation_accuracy=closed_accuracy(model, model, data.validation, devices))
        evaluation.end_epoch(line, optimizer.param_groups[0]["lr"])

    if devices.rank == 0:
        evaluation.finish()
        run.finish(model.state_dict() | evaluation.statistics(), header)
        print(f"trained: {run.directory}")


def evaluation_flags(args) -> list[str]:
    """What `--test` passes on to test.py."""
    from cssr.data import PATHS

    flags = ["--device", args.device, "--precision", args.precision, "--seed", str(args.seed)]
    passed = ("save", "run_dir", "data_dir", "gpu", "subset", "ds", "workers", "feature_dir", *PATHS)
    flags += [str(part) for name in passed if getattr(args, name) is not None for part in (f"--{name}", getattr(args, name))]
    return flags + (["--dry_run"] if args.dry_run else [])


if __name__ == "__main__":
    run_script(main)
