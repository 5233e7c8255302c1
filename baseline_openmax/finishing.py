"""What follows training: temperature, both sets of weights, and OpenMax when it is asked for."""

from __future__ import annotations

import copy

import numpy as np
import torch

from baseline_openmax.calibration import FILE as CALIBRATION
from baseline_openmax.calibration import calibration_report, halves
from baseline_openmax.selection import FILE as BEST
from common.errors import UserError


def predicted_classes(model, images, classes: int, devices) -> np.ndarray:
    """Known class of largest logit for each image, int64 `(N,)`; the network is left in training mode."""
    from common.inference import apply_batched

    model.eval()
    with devices.autocast():
        found = apply_batched(lambda x: {"class": model(x)[:, :classes].argmax(1)}, images.pixels, devices.device)
    model.train()
    return found["class"]


def class_logits(model, header, pixels, devices) -> np.ndarray:
    """Class logits as test.py computes them by default, in float32 whatever the training computes in; `(N, K)`."""
    from baseline_openmax.evaluation import forward
    from common.inference import apply_batched

    exact = copy.copy(devices)
    exact.precision = "fp32"
    model.eval()
    return apply_batched(forward(model, header, exact), pixels, devices.device)["logits"]


def is_finished(run, args) -> bool:
    """Whether a resumed run has all its epochs and all that `finish` writes."""
    from baseline_openmax.evaluation import OPENMAX_FILE

    wanted = ["weights.safetensors", *([OPENMAX_FILE] if args.fit_openmax else [])]
    ended = run.state is not None and run.epoch >= (1 if args.dry_run else args.max_epochs)
    return ended and all((run.directory / name).exists() for name in wanted)


def finish(run, args, model, best, header: dict, data, devices) -> None:
    """Write `weights.safetensors` (last epoch), `weights_best.safetensors`, `calibration_info.json`, `openmax.safetensors`.

    Raises
    ------
    UserError
        The temperature is out of bounds, or OpenMax cannot be fitted; all weights are written before that.
    """
    if devices.rank:
        return
    from common.checkpoints import save_weights
    from common.files import write_json

    last = {key: value.clone() for key, value in model.state_dict().items()}
    if best is not None and best.epoch >= 0:
        model.load_state_dict(best.weights)
        found, _ = temperature(args, model, header, data, devices)
        chosen = {"selection": {"epoch": best.epoch + 1, "accuracy": best.accuracy}} | calibrated(found)
        save_weights(run.directory / BEST, best.weights, {"paper": run.paper, **header, **chosen})
        model.load_state_dict(last)
    found, problem = temperature(args, model, header, data, devices)
    if found is not None:
        write_json(run.directory / CALIBRATION, found)
        print("temperature {temperature:.4f}  NLL {nll_before:.4f} -> {nll_after:.4f}"
              "  ECE {ece_before:.4f} -> {ece_after:.4f}  ({images} held-out images)".format(**found))
    elif problem is None and args.calibration != "none":
        held_out = 0 if data.validation is None else len(data.validation)
        print(f"note: no temperature: {held_out} held-out images are too few for a half of their own (--validation_share)")
    header = header | calibrated(found)
    run.finish(last, header)
    if problem is not None and not args.dry_run:
        raise UserError(f"{problem} (the weights are in {run.directory}; --calibration none trains without a temperature)")
    if args.fit_openmax:
        write_openmax(run, args, model, header, data, devices)


def calibrated(found: dict | None) -> dict:
    """What a header says of a fitted temperature."""
    return {} if found is None else {"calibration": {"temperature": found["temperature"]}}


def temperature(args, model, header, data, devices) -> tuple[dict | None, UserError | None]:
    """Calibration on the half of the held-out images that chooses no epoch, or what was wrong; None twice when none is asked."""
    if args.calibration == "none" or data.validation is None:
        return None, None
    _, kept = halves(data.validation.labels, args.seed)
    if not len(kept):
        return None, None
    logits = class_logits(model, header, data.validation.pixels[kept], devices)
    try:
        return calibration_report(logits, data.validation.labels[kept]), None
    except UserError as error:
        return None, error


def write_openmax(run, args, model, header, data, devices) -> None:
    """Fit OpenMax on the training logits with the default settings and store it beside the weights."""
    from baseline_openmax.evaluation import OPENMAX_FILE
    from baseline_openmax.heads import PREFIX, fit_openmax
    from common.checkpoints import save_weights
    from common.inference import TRAIN

    classes = len(data.class_names)
    arrays = {"logits": class_logits(model, header, data.train.pixels, devices), "target": data.train.labels,
              "split": np.full(len(data.train), TRAIN, dtype=np.int8), "class_names": np.array(data.class_names)}  # fmt: skip
    fitted = fit_openmax(arrays, {"tail_size": args.fit_openmax, "alpha": min(10, classes)}, args.dry_run)
    tensors = {PREFIX + name: torch.from_numpy(np.array(value)) for name, value in fitted.state_dict().items()}
    told = {"paper": run.paper, "openmax": fitted.settings, "fitted_by": "main.py"}
    save_weights(run.directory / OPENMAX_FILE, tensors, told)
    print(f"OpenMax fitted on {len(data.train)} training images, tail {fitted.tail_size}")
