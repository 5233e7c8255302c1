"""VMDLS's training recipe: augmentations, optimisers, rates, the training step, and weights to start from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from common.datasets.batches import generator_for
from common.errors import UserError
from common.training import AUGMENTATIONS as PLAIN_AUGMENTATIONS
from common.training import augmentation as plain_augmentation
from vmdls.losses import INITIAL_MARGIN, kl_closed, kl_sampled, kl_term, margin_at, metric_loss, sample
from vmdls.model import LatentGaussians

# The original's names; cifar_test and blob only normalise.
TRANSFORMS = ("mnist", "cifar", "cifar_test", "blob", *PLAIN_AUGMENTATIONS)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

# Encoder that fits a backbone of baseline_openmax, and where its parameters are called otherwise.
ENCODER_OF_BACKBONE = {"convnet8": "small", "speednet": "speednet", "resnet18": "resnet18"}
RESNET_NAMES = {"layers.0.": "conv1.", "layers.1.": "bn1.", **{f"layers.{i + 2}.": f"layer{i}." for i in (1, 2, 3, 4)}}


def augmentation(name: str, seed: int, image_size: int):
    """The training transform called `name`, None for none.

    `mnist`: rotation by up to 10 degrees, box of 95 to 100 % of the area resized to the image; `cifar`: shift by up to
    4 pixels into black, mirror image; the plain ones: `common.training.augmentation`.
    """
    from common.datasets.augment import Compose, RandomFlip, RandomResizedCrop, RandomRotation, RandomShift

    if name == "mnist":
        return Compose(RandomRotation(10), RandomResizedCrop(image_size, scale=(0.95, 1.0)))
    if name == "cifar":
        return Compose(RandomShift(4, "zero"), RandomFlip(0.5))
    return plain_augmentation(name, seed) if name in PLAIN_AUGMENTATIONS else None


def normalisation(name: str, images) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel that go with a transform; plain ones take those of the training images.

    Raises
    ------
    UserError
        The CIFAR constants for images of another number of channels.
    """
    channels = images.shape[0]
    if name in ("mnist", "blob"):
        return [0.5] * channels, [0.5] * channels
    if name in ("cifar", "cifar_test"):
        if channels != len(CIFAR_MEAN):
            raise UserError(f"--data_transforms {name} is for colour images, {images.name or 'these'} have {channels}"
                            " channel; take mnist, blob or none")
        return list(CIFAR_MEAN), list(CIFAR_STD)
    mean, std = images.mean_std()
    return [round(float(value), 6) for value in mean], [round(float(value), 6) for value in std]


def _optimizer(kind: str, parameters, rate: float) -> torch.optim.Optimizer:
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=rate)
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=1e-4)


def build_optimizers(model, args) -> tuple[torch.optim.Optimizer | None, torch.optim.Optimizer]:
    """Optimisers of the heads-only phase (None without `--finetune`) and of the whole network.

    `sgd`: momentum .9, Nesterov, weight decay 1e-4; `adam`: torch's defaults; both as released. `speed`: the encoder in
    the parameter groups of `common.recipes.speed_parameter_groups`, at `--lr` per 1,024 images; the heads in one of
    their own at `--head_lr` times 1 - momentum, decay 5e-4.
    """
    heads = [*model.mean_head.parameters(), *model.log_variance_head.parameters()]
    first = _optimizer(args.opt, heads, args.finetune_lr) if args.finetune else None
    if args.opt != "speed":
        return first, _optimizer(args.opt, [p for p in model.parameters() if p.requires_grad], args.lr)
    from common.recipes import speed_parameter_groups

    momentum = 0.85
    groups = speed_parameter_groups(
        model.encoder, rate=args.lr, momentum=momentum, batch_size=args.batch_classes * args.sample_count
    )
    groups.append({"params": heads, "lr": args.head_lr * (1 - momentum), "weight_decay": 5e-4})
    return first, torch.optim.SGD(groups, lr=args.lr, momentum=momentum, nesterov=True)


def rate_factor(schedule: str, epochs: float, total: float, step_size: int, gamma: float) -> float:
    """Factor on the learning rate after `epochs` of `total` epochs (fractions count) of the whole network's phase.

    `step`: times `gamma` after every `step_size` epochs; `linear`: from 1 to 0; `constant`: 1.
    """
    if schedule == "step":
        return gamma ** int(epochs // step_size)
    return max(1 - epochs / total, 0.0) if schedule == "linear" else 1.0


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Multiply the initial rate of every group by `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


class Trainer:
    """The optimisation of one run: losses over the batch of all processes, and the phase the network is in."""

    def __init__(self, model, args, devices):
        self.model, self.args, self.devices = model, args, devices
        self.head_optimizer, self.optimizer = build_optimizers(model, args)
        self.called, self.stepper = devices.setup(model, self.optimizer)
        self.gaussians = LatentGaussians(model.class_means, args.lower_bound)
        self.alone = args.finetune_epochs if args.finetune else 0  # epochs of the heads-only phase

    def tracked(self) -> dict:
        """What a resume must restore."""
        tracked = {"model": self.model, "optimizer": self.optimizer, "gaussians": self.gaussians}
        return tracked | ({"head_optimizer": self.head_optimizer} if self.alone else {})

    def begin(self, epoch: int) -> None:
        """Set phase, margin and KL weight of an epoch."""
        args = self.args
        self.model.freeze(epoch < self.alone)
        self.model.train()
        initial = args.margin_max_distance if args.checkpoint_path else INITIAL_MARGIN
        self.margin = margin_at(epoch, args.margins_epoch, args.margin_jumps, args.margin_max_distance, initial)
        self.kl_weight = args.kl_coeff if epoch >= args.generation_epoch else 0.0
        self.epoch = epoch

    def step(self, images, labels, number: int, share: float) -> dict:
        """One optimiser step on batch `number`, after `share` of the epoch's steps; returns what the log averages."""
        args, frozen = self.args, self.model.frozen
        optimizer = self.head_optimizer if frozen else self.optimizer
        if not frozen:
            done = self.epoch - self.alone + share
            total = args.max_epochs - self.alone
            set_rates(optimizer, rate_factor(args.schedule, done, total, args.step_size, args.step_gamma))
        with self.devices.autocast():
            # Distributed training would wait for the frozen encoder's gradients: that phase goes round its wrapper.
            mean, log_variance = (self.model if frozen else self.called)(images)
        loss, values = self.losses(*(self._gathered(part) for part in (mean, log_variance, labels)), number)
        optimizer.zero_grad(set_to_none=True)
        self.devices.backward(loss)
        if frozen:
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = self.devices.mean(parameter.grad)
            optimizer.step()
        else:
            self.stepper.step()
        return values

    def losses(self, mean, log_variance, labels, number: int):
        """Loss of the whole batch `number`, and the values for the log; counts the sampled z for the class means."""
        args, means = self.args, self.model.class_means
        noise = torch.randn(mean.shape, generator=generator_for(args.seed, self.epoch, number + 1, 1)).to(mean.device)
        z = sample(mean, log_variance, noise)
        metric, active = metric_loss(z, labels, self.margin, normalise=not args.euclidean)
        gaussian = (mean, log_variance, means[labels])
        kl = kl_term(kl_sampled(z, *gaussian) if args.kl_samples else kl_closed(*gaussian), labels, len(means))
        loss = metric + self.kl_weight * kl if self.kl_weight else metric
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} in batch {number + 1} of epoch {self.epoch + 1}: embeddings are"
                            f" NaN or infinite, the training diverged; lower --lr (now {args.lr:g}) or --kl_coeff,"
                            " or take --precision fp32")
        self.gaussians.add(z, labels)
        return loss, {"loss": loss, "metric": metric, "kl": kl, "active": active}

    def _gathered(self, values):
        """The values of all processes, with gradients; a process's own part comes back in its place."""
        if self.devices.world_size == 1:
            return values
        return self.devices.fabric.all_gather(values, sync_grads=values.is_floating_point()).flatten(0, 1)

    def end_epoch(self) -> None:
        """Class means of the epoch, for the KL term of the next one."""
        self.model.class_means.copy_(self.gaussians.end_epoch())


class Weights(NamedTuple):
    """Tensors of a checkpoint to start from, its header (empty for files of others) and what to call it."""

    tensors: dict[str, torch.Tensor]
    header: dict
    name: str


def read_weights(where: str) -> Weights:
    """Weights for `--weights`: a baseline run, its file or manifest name, or another program's torch file.

    A torch file is read weights-only (nothing in it is executed); its `state_dict` is taken where it has one.

    Raises
    ------
    UserError
        Missing, damaged, or no set of tensors.
    """
    path = Path(where)
    if not path.is_file() or path.suffix == ".safetensors":
        from common.checkpoints import load_weights

        return Weights(*load_weights(where, paper="baseline_openmax"), str(where))
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds on foreign files
        reason = str(error).split("\n")[0]
        raise UserError(f"{where} cannot be read as weights ({type(error).__name__}: {reason}); expected a torch file"
                        " of tensors, a baseline run, or a name in checkpoints/MANIFEST.json") from None
    content = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"{where} holds no tensors by name: expected a state_dict")
    return Weights(tensors, {}, str(where))


def require_same_knowledge(weights: Weights, data, args) -> None:
    """Refuse weights trained on classes that are unknown here; say when they have seen held-out images of this run."""
    seen = weights.header.get("data")
    if seen is None or seen["known_dataset"] != args.known_dataset:
        return
    unknown = [name for name in weights.header["class_names"] if name not in data.class_names]
    if unknown:
        raise UserError(f"{weights.name} was trained on classes that are unknown in split {data.split.name}:"
                        f" {', '.join(unknown[:5])}; start from weights of the same split")
    same = (seen["seed"], seen["validation_share"]) == (args.seed, args.validation_share)
    if args.validation_share and not same:
        print(f"note: {weights.name} was trained with other held-out images (seed {seen['seed']}, share"
              f" {seen['validation_share']}): it has seen some that choose the threshold here")


def encoder_settings(weights: Weights, enc_type: str) -> dict:
    """Model settings that must follow baseline weights: normalisation and width; `{}` for another program's file.

    Raises
    ------
    UserError
        The weights are of another network than `enc_type`.
    """
    if not weights.header:
        return {}
    config = weights.header["model"]
    fits = ENCODER_OF_BACKBONE.get(config["backbone"])
    if fits != enc_type or config["norm"] != "batch":
        choice = f"--enc_type {fits} takes it" if fits and config["norm"] == "batch" else "no encoder here takes it"
        raise UserError(f"{weights.name} holds a {config['backbone']} ({config['norm']} norm), not a {enc_type}:"
                        f" {choice}")
    width = config["width"] if enc_type in ("small", "speednet") else None
    return {"mean": config["mean"], "std": config["std"], "width": width}


def load_encoder(encoder: torch.nn.Module, weights: Weights) -> list[str]:
    """Load the encoder's tensors by name and return the names in `weights` that were not used.

    Wrappers' prefixes (`module.`, `model.`, `encoder.`, `backbone.`) do not count.

    Raises
    ------
    UserError
        A tensor of the encoder is missing or has another shape.
    """
    renamed = {}
    for key in weights.tensors:
        name = re.sub(r"^((module|model|encoder|backbone)\.)+", "", key)
        if weights.header and weights.header["model"]["backbone"] == "resnet18":
            old = next((old for old in RESNET_NAMES if name.startswith(old)), "")
            name = RESNET_NAMES.get(old, "") + name.removeprefix(old)
        renamed[name] = key
    own = encoder.state_dict()
    # Files from before torch 0.4.1 do not count batches; nothing here depends on that number.
    missing = [name for name in own if name not in renamed and not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"{weights.name} lacks {len(missing)} of the encoder's {len(own)} tensors:"
                        f" {', '.join(missing[:3])}; is it a checkpoint of the same --enc_type?")
    found = {name: weights.tensors[renamed[name]] for name in own if name in renamed}
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"{weights.name}: {name} has shape {tuple(tensor.shape)},"
                            f" the encoder wants {tuple(own[name].shape)}")
    encoder.load_state_dict(own | found)
    return [key for name, key in renamed.items() if name not in own]


def load_model(model: torch.nn.Module, config: dict, weights: Weights) -> None:
    """Load a whole VMDLS checkpoint for `--checkpoint_path`.

    Raises
    ------
    UserError
        It was trained with other settings of the network.
    """
    theirs = weights.header["model"]
    differing = [key for key in config if key not in ("mean", "std", "dropout_at_test") and theirs[key] != config[key]]
    if differing:
        said = ", ".join(f"{key} {theirs[key]} there, {config[key]} here" for key in differing)
        raise UserError(f"{weights.name} is of another network: {said}")
    model.load_state_dict({key: value for key, value in weights.tensors.items() if not key.startswith("statistics.")})
