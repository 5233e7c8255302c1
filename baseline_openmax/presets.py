"""The named rows: what `--preset` sets. Flags beside a preset win."""

from __future__ import annotations

# CIFAR-10 on two CPU cores, ten minutes a split: net and recipe in the spirit of Jordan 2024 (arXiv 2404.00498). Without its
# label smoothing, and five short epochs of seven: chosen with tuning.py on known classes alone (results/tuning/laptop.json).
LAPTOP = {
    "known_dataset": "cifar10", "split": "cssr-a", "backbone": "speednet", "max_epochs": 7, "batch_size": 512,
    "low_resolution_epochs": 5, "optimizer": "speed", "rate": 11.5, "momentum": 0.85, "weight_decay": 0.0153,
    "schedule": "triangular", "label_smoothing": 0.0, "augment": "alternating-flip+shift2",
    "average_weights": True, "mirror_test": True,
    "drop_last": True, "whitening_bias_epochs": 3, "logit_scale": 1 / 9, "precision": "auto",
}  # fmt: skip

DIGITS = {"known_dataset": "digits", "split": "first-6"}

# "A good closed-set classifier is all you need" (Vaze et al. 2022): classifier32, SGD, one RandAugment operation, cosine with
# two warm restarts after a warm-up, weight decay 1e-4, batches of 128, 600 epochs, all images. Further flags: the set's own.
STRONG = {
    "backbone": "classifier32", "image_size": 32, "max_epochs": 600, "batch_size": 128, "optimizer": "sgd", "rate": 0.1,
    "momentum": 0.9, "weight_decay": 1e-4, "schedule": "restarts", "restarts": 2, "warmup_epochs": 20,
    "label_smoothing": 0.0, "randaugment_n": 1, "precision": "auto", "validation_share": 0.0,
}  # fmt: skip
NATURAL = STRONG | {"augment": "flip+shift4+randaugment", "randaugment_m": 6, "known_dataset": "cifar10"}

# From a trained network on: ten epochs at a hundredth of the rate, as PROSER does.
FINE_TUNING = {"max_epochs": 10, "schedule": "cosine", "low_resolution_epochs": 0, "whitening_bias_epochs": 0}

# Presets that continue a trained network: they are nothing without --start_from.
FINE_TUNED = ("laptop-proser",)

PRESETS = {
    # scikit-learn's digits: what the demo runs.
    "digits": DIGITS,
    # The same with each way to train for the unknown; images made of the training images' shuffled blocks are the outliers.
    "digits-placeholder": DIGITS | {"osr_head": "kplus1", "kplus1": ["placeholder"], "dummies": 3},
    "digits-mixup": DIGITS | {"osr_head": "kplus1", "kplus1": ["mixup"], "mixup_weight": 0.1},
    "digits-proser": DIGITS | {"osr_head": "kplus1", "kplus1": ["placeholder", "mixup"], "mixup_weight": 0.1, "dummies": 3},
    "digits-oe": DIGITS | {"osr_head": "kplus1", "kplus1": ["oe"], "outliers": ["shuffled"]},
    "digits-uniform": DIGITS | {"osr_head": "msp", "outliers": ["shuffled"]},
    "digits-energy": DIGITS | {"osr_head": "energy", "outliers": ["shuffled"],
                               "known_margin": -8.0, "unknown_margin": -4.0},
    # MNIST, plain conv net of width 32, 5 epochs.
    "mnist": {"known_dataset": "mnist", "split": "all", "max_epochs": 5, "batch_size": 128, "rate": 0.05},
    "laptop": LAPTOP,
    # The same on a GPU: compiled, larger batches, every epoch at full size.
    "fast": LAPTOP | {"batch_size": 1024, "low_resolution_epochs": 0, "max_epochs": 10, "precision": "bf16",
                      "compile": True},
    # K+1 fine-tuning of a laptop network: --start_from names it.
    "laptop-proser": LAPTOP | FINE_TUNING | {"osr_head": "kplus1", "kplus1": ["placeholder", "mixup"], "rate": 0.115,
                                             "dummies": 1, "mixup_weight": 0.01, "average_weights": False},
    # CIFAR-10 on a GPU: ResNet-18 with the small-image stem, 100 epochs.
    "resnet18": {
        "known_dataset": "cifar10", "split": "cssr-a", "backbone": "resnet18", "max_epochs": 100, "batch_size": 128,
        "optimizer": "sgd", "rate": 0.1, "weight_decay": 5e-4, "schedule": "cosine", "augment": "flip+shift4",
        "precision": "auto",
    },
    # deep-osr's experiment: ResNet-50, neck of 512, AdamW; random weights and small-image stem unless asked otherwise.
    "cifar10_resnet50_energy": {
        "known_dataset": "cifar10", "split": "first-8", "backbone": "resnet50", "neck": "batch_norm", "neck_dim": 512,
        "classifier": "weight_norm", "osr_head": "energy", "max_epochs": 50, "batch_size": 128, "optimizer": "adamw",
        "rate": 1e-3, "weight_decay": 1e-5, "schedule": "cosine", "label_smoothing": 0.05, "augment": "flip+shift4",
        "precision": "auto",
    },
    # The strong baseline on the six standard protocols; splits arpl-0 to arpl-4 are those of Vaze et al. too.
    "strong-mnist": STRONG | {"known_dataset": "mnist", "split": "arpl-0", "augment": "shift4+randaugment", "randaugment_m": 8},
    "strong-svhn": STRONG | {"known_dataset": "svhn", "split": "arpl-0", "augment": "shift4+randaugment", "randaugment_m": 18},
    "strong-cifar10": NATURAL | {"split": "arpl-0"},
    "strong-cifar-plus10": NATURAL | {"split": "arpl-plus10-0"},
    "strong-cifar-plus50": NATURAL | {"split": "arpl-plus50-0"},
    "strong-tinyimagenet": NATURAL | {"known_dataset": "tinyimagenet", "split": "arpl-0", "image_size": 64, "rate": 0.01,
                                      "randaugment_m": 9, "label_smoothing": 0.9},
}  # fmt: skip
