"""CSSR's training recipe: augmentation, optimisers, schedule, and the released configuration files as flags."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from common.errors import UserError, nearest
from common.training import AUGMENTATIONS as PLAIN_AUGMENTATIONS
from common.training import augmentation as plain_augmentation

AUGMENTATIONS = (*PLAIN_AUGMENTATIONS, "simple", "strong")
FOLDER = Path(__file__).resolve().parent

# Keys of the released configuration files and the flags that they set.
CONFIG_FLAGS = {
    "learn_rate": "rate", "epoch_num": "max_epochs", "lr_decay": "lr_decay", "milestones": "milestones",
    "warmup_epoch": "warmup_epoch", "batch_size": "batch_size", "backbone": "backbone", "cat_augmentation": "augment",
    "arch_type": "arch_type", "enable_gram": "enable_gram",
}  # fmt: skip
HEAD_FLAGS = ("model", "ae_hidden", "ae_latent", "gamma", "error_measure", "projection_dim")


class ManualContrast:
    """Normalise, then multiply each image by one number drawn from `low` .. `high` (float images: network inputs)."""

    def __init__(self, normalise, low: float = 0.1, high: float = 2.0):
        self.normalise, self.low, self.high = normalise, low, high

    def __call__(self, pixels, draws):
        return self.normalise(pixels) * draws.uniform(1, 1, 1, low=self.low, high=self.high)

    def __repr__(self):
        return f"ManualContrast(low={self.low}, high={self.high})"


def augmentation(name: str, seed: int, low_resolution_epochs: int, image_size: int, normalise):
    """The augmentation called `name`; `strong` and `simple` are the released ones for small images.

    `strong`: flip, reflected shift by an eighth of the size, two operations of the reduced RandAugment list, cutout of half
    the size in grey, contrast; `simple`: flip, shift, contrast.
    """
    if name in PLAIN_AUGMENTATIONS:
        return plain_augmentation(name, seed, low_resolution_epochs)
    from common.datasets.augment import Compose, Cutout, RandomFlip, RandomShift
    from common.datasets.randaugment import RandAugment

    policies = [RandomFlip(0.5), RandomShift(image_size // 8, "reflect")]
    if name == "strong":
        policies += [RandAugment(2, 10, "cssr"), Cutout(image_size // 2)]
    return Compose(*policies, ManualContrast(normalise))


def build_optimizer(model, args, steps_per_epoch: int) -> torch.optim.SGD:
    """SGD over all parameters as released, or the speed recipe for the backbone with a plain rate for the head.

    `speed`: the head learns at `head_rate` times (1 - momentum), decay 5e-4, in a group of its own: the speed recipe's
    rates are made for convolutions that start as identities.
    """
    if args.optimizer == "sgd":
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=args.rate, momentum=args.momentum, weight_decay=args.weight_decay)
    from common.recipes import speed_parameter_groups

    stem = getattr(model.backbone, "whitening", None)
    groups = speed_parameter_groups(
        model.backbone, rate=args.rate, decay=args.weight_decay, momentum=args.momentum, batch_size=args.batch_size,
        stop_bias=None if stem is None else stem.bias, stop_at_step=args.whitening_bias_epochs * steps_per_epoch,
    )  # fmt: skip
    head_rate = args.head_rate * (1 - args.momentum)
    groups.append({"params": list(model.head.parameters()), "lr": head_rate, "weight_decay": 5e-4})
    return torch.optim.SGD(groups, lr=args.rate, momentum=args.momentum, nesterov=True)


def multi_step_factor(epoch: int, step: int, steps: int, milestones, decay: float = 0.1, warmup: float = 0) -> float:
    """Factor on the rate at `step` of `steps` in `epoch`: linear from 0 over `warmup` epochs, then `decay` per milestone.

    Warm-up is inclusive as released: the first step after it has the full rate even if a milestone has passed.
    """
    done = epoch + step / steps
    if warmup > 0 and done <= warmup:
        return done / warmup
    return decay ** sum(epoch >= milestone for milestone in milestones)


class MultiStep:
    """Set the rates of all groups before each step; the released schedule `multi_step`."""

    def __init__(self, optimizer, steps: int, milestones, decay: float, warmup: float):
        self.optimizer, self.steps = optimizer, steps
        self.milestones, self.decay, self.warmup = milestones, decay, warmup
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def set(self, step: int) -> None:
        """Set the rates for optimiser step `step`, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps)
        factor = multi_step_factor(epoch, within, self.steps, self.milestones, self.decay, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def locate(path: str) -> Path:
    """A configuration file, relative to the working directory or to this folder."""
    for candidate in (Path(path), FOLDER / path):
        if candidate.is_file():
            return candidate
    folder = (FOLDER / path).parent
    near = nearest(Path(path).name, [file.name for file in folder.glob("*.json")]) if folder.is_dir() else ""
    raise UserError(f"no file {path} here or in {FOLDER.name}/{near}; configs/ and exps/ hold the shipped ones")


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object")
    return content


def read_config(path: str, seen: tuple[Path, ...] = ()) -> dict:
    """A configuration with its `inherit` chain merged below it, dictionaries key by key."""
    file = locate(path).resolve()
    if file in seen:
        raise UserError(f"configuration {path} inherits itself: {' -> '.join(p.name for p in (*seen, file))}")
    own = _read_json(file)
    parent = own.pop("inherit", None)
    return _merged(read_config(parent, (*seen, file)), own) if parent else own


def _merged(below: dict, above: dict) -> dict:
    both = {key: _merged(below[key], above[key]) for key in below.keys() & above.keys()
            if isinstance(below[key], dict) and isinstance(above[key], dict)}  # fmt: skip
    return below | above | both


def flags_of_config(path: str) -> dict:
    """Flag values that a configuration file sets."""
    config = read_config(path)
    head = config.get("category_model")
    if not isinstance(head, dict) or "model" not in head:
        raise UserError(f"{path} has no category_model: --config takes a file of configs/, --ds one of exps/")
    flags = {flag: config[key] for key, flag in CONFIG_FLAGS.items() if key in config}
    flags["schedule"] = config.get("lr_schedule", "multi_step")
    return flags | {key: head[key] for key in HEAD_FLAGS if key in head}


def data_of_experiment(path: str) -> tuple[str, str]:
    """Known data set and split of an experiment file (`train` entries with `dataset`, `convert_class`, `keep_class`)."""
    content = _read_json(locate(path))
    try:
        (entry,) = content["train"]
        keep = set(entry["keep_class"])
        known = [index for index, label in enumerate(entry["convert_class"]) if label in keep and label >= 0]
        labels = [entry["convert_class"][index] for index in known]
        dataset = entry["dataset"]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is no experiment: expected one train entry with dataset, convert_class and keep_class;"
                        " --ds takes a file of exps/, --config one of configs/") from None
    if labels != list(range(len(known))):
        raise UserError(f"{path}: known classes must become 0, 1, ... in ascending order, got {labels}")
    from common.datasets import find_split, split_names

    named = [name for name in split_names(dataset) if name.startswith("cssr-")]
    for name in (*named, f"first-{len(known)}", known):
        split = find_split(dataset, name)
        if list(split.known) == known:
            break
    return split.dataset, split.name
