"""Train a classifier on the known classes, softmax or K+1; `test.py` turns it into open-set scores.

The common ground of all comparisons: maximum logit and softmax scores of a plain, well-trained classifier
(Vaze et al. 2022, "Open-Set Recognition: a Good Closed-Set Classifier is All You Need?").

    python baseline_openmax/main.py                                     # digits 0-5 known, a few seconds
    python baseline_openmax/main.py --preset mnist --split cssr-a --save mnist-a
    python baseline_openmax/main.py --preset laptop --split cssr-a --save cifar10-a
    python baseline_openmax/main.py --kplus1 placeholder mixup --mixup_weight 0.1
    python baseline_openmax/main.py --preset strong-cifar10 --split arpl-0 --save strong-0
"""

from __future__ import annotations

from baseline_openmax.arguments import PAPER, get_args_parser, parse_arguments
from baseline_openmax.presets import PRESETS
from baseline_openmax.settings import model_settings
from common.arguments import run_script

__all__ = ["PAPER", "PRESETS", "get_args_parser", "main", "model_settings", "parse_arguments"]


def main(argv=None) -> None:
    args = parse_arguments(argv)
    import torch

    from baseline_openmax.calibration import halves
    from baseline_openmax.finishing import finish, is_finished, predicted_classes
    from baseline_openmax.objectives import Objective
    from baseline_openmax.outliers import OutlierBatches, load_outliers
    from baseline_openmax.overlap import check_training_outliers
    from baseline_openmax.recipe import augmentation, schedule
    from baseline_openmax.selection import BestWeights
    from baseline_openmax.settings import data_settings, new_network, outliers_shown, run_or_file
    from common.checkpoints import origin
    from common.devices import Devices
    from common.recipes import WeightAveraging, build_optimizer
    from common.run import Run, seed_everything
    from common.training import load_data, training_batches

    data = load_data(args)
    devices = Devices(args)
    model_config = model_settings(args, data)
    if args.outliers:
        check_training_outliers(args.outliers, data)
    outliers = load_outliers(args.outliers, data, args) if args.outliers else None
    shown = outliers_shown(args)
    policy = augmentation(args)
    # What can fail on bad input comes before the run's directory; the random state goes on where the first weights left it.
    seed_everything(args.seed)
    model = new_network(args, model_config, data)
    drawn_up_to = torch.get_rng_state()
    stem = getattr(model.backbone, "whitening", None)

    batches = training_batches(data, args, devices, policy)
    total = args.max_epochs * len(batches)
    optimizer = build_optimizer(
        model,
        args.optimizer,
        args.rate,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        batch_size=args.batch_size,
        stop_bias=None if stem is None or args.frozen else stem.bias,
        stop_at_step=args.whitening_bias_epochs * len(batches),
    )
    called, stepper = devices.setup(model, optimizer)
    course = schedule(optimizer, args, len(batches))
    started_from = origin(run_or_file(args.start_from)) if args.start_from else None
    run = Run.create(PAPER, args, devices, data.train.checksums, argv, started_from)
    torch.set_rng_state(drawn_up_to)
    held_out = data.validation
    chooses, _ = halves(held_out.labels, args.seed) if held_out is not None else ([], [])
    best = BestWeights(model, held_out.pixels[chooses], held_out.labels[chooses]) if held_out is not None else None
    run.track(model=model, optimizer=optimizer)
    if best is not None:
        run.track(best=best)
    averaging = None
    if args.average_weights:
        averaging = WeightAveraging(model, total)
        run.track(averaging=averaging)
    if is_finished(run, args):
        print(f"already trained: {run.directory}")
        return
    classes = len(data.class_names)
    drawn = None if outliers is None else OutlierBatches(outliers.to(devices.device), args.seed, policy)
    objective = Objective(args, classes, model, drawn)

    for epoch in run.epochs(args.max_epochs):
        model.train()
        for images, labels in run.steps(batches, epoch):
            step = epoch * len(batches) + run.step
            course.set(step)
            with devices.autocast():
                loss = objective(called, images, labels, step, epoch)
            optimizer.zero_grad(set_to_none=True)
            devices.backward(loss)
            stepper.step()
            run.add(loss=loss)
            if averaging is not None:
                averaging.update(step + 1)
        if averaging is not None and epoch + 1 == run.max_epochs:
            averaging.finish()
        accuracy = float("nan")
        if best is not None:
            predicted = predicted_classes(model, held_out, classes, devices)
            accuracy = float((predicted == held_out.labels).mean())
            best.update(epoch, predicted[chooses])
        run.end_epoch(validation_accuracy=accuracy)

    header = {"model": model_config, "class_names": list(data.class_names), "mirror_test": args.mirror_test,
              "data": data_settings(args, data)}  # fmt: skip
    for name, value in (("osr_head", args.osr_head), ("kplus1", args.kplus1), ("outliers", shown)):
        if value:
            header[name] = value
    finish(run, args, model, best, header, data, devices)
    if devices.rank == 0:
        print(f"trained: {run.directory}")


if __name__ == "__main__":
    run_script(main)
