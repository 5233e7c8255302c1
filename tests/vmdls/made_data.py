"""Made-up images under the names of real data sets, and untrained networks in the files that commands ask for."""

import numpy as np
import torch

from common.checkpoints import save_weights
from common.datasets import class_count
from common.datasets.images import Images

GREY = ("mnist", "omniglot", "noise", "mnist-noise", "kmnist")


def made_images(name, train, root=None, *, keep=None, **options):
    """In place of `common.datasets.readers.load`: small images whose brightness follows the class."""
    labelled = name in ("mnist", "cifar10", "cifar100")
    classes = class_count(name) if labelled else 1
    shape = (1, 28, 28) if name in GREY else (3, 32, 32)
    labels = np.arange(8 * classes if labelled else 60) % classes
    pixels = np.random.default_rng(train).integers(0, 120, (len(labels), *shape))
    pixels = (pixels + 135 * labels[:, None, None, None] // classes).astype(np.uint8)
    images = Images(pixels, labels.astype(np.int64), tuple(f"{name} {label}" for label in range(classes)), name)
    return images if keep is None else images.of_classes(keep)


def replace_data(monkeypatch, folder):
    """Let every data set be made up, and dry runs as small as a Gaussian a class allows."""
    from common.datasets import preparation, presence
    from vmdls import dry_run

    monkeypatch.setattr(preparation, "load", made_images)
    monkeypatch.setattr(presence, "part_path", lambda name, train, root: folder)
    monkeypatch.setattr(dry_run, "IMAGES", 30)
    monkeypatch.setattr(dry_run, "PER_CLASS", 3)


def names_of(dataset):
    return [f"{dataset} {label}" for label in range(class_count(dataset))]


def calibrate(network, images):
    """Let BatchNorm see some images: random layers blow up otherwise."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(images)


def untrained(path, backbone, dataset, latent_dim, **options):
    """A VMDLS checkpoint of random weights for all classes of a data set."""
    from vmdls.model import VMDLS

    shape = (1, 28, 28) if dataset in GREY else (3, 32, 32)
    config = {"backbone": backbone, "classes": class_count(dataset), "shape": shape, "mean": [0.5] * shape[0],
              "std": [0.5] * shape[0], "latent_dim": latent_dim, **options}  # fmt: skip
    data = {"known_dataset": dataset, "split": "all", "seed": 0, "validation_share": 0.1, "subset": None}
    header = {"paper": "vmdls", "model": config, "class_names": names_of(dataset), "data": data}
    model = VMDLS(**config)
    calibrate(model, torch.from_numpy(made_images(dataset, True).pixels[:8]))
    save_weights(path, model.state_dict(), header)


def untrained_autoencoder(path, dataset, shape, class_names, mean=0.5, std=0.5, seed=0, split="all"):
    """A small auto-encoder of random weights."""
    from vmdls.autoencoders import AutoEncoder

    config = {"autoencoder": "small", "shape": shape, "mean": [mean] * shape[0], "std": [std] * shape[0],
              "latent_dim": 8, "width": 4}  # fmt: skip
    data = {"known_dataset": dataset, "split": split, "seed": seed, "validation_share": 0.1, "subset": None}
    header = {"paper": "vmdls", "model": config, "class_names": list(class_names), "data": data}
    save_weights(path, AutoEncoder(**config).state_dict(), header)
