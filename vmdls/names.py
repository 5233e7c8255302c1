"""Names under which the release's commands ask for weights, and what gives them here."""

from __future__ import annotations

from pathlib import Path

from common.arguments import ROOT
from common.errors import UserError

# Networks of the release's test commands, by file name without its ending: the preset of main.py that trains each.
PRESET_OF = {
    "cifar10_densenet": "cifar10-densenet", "cifar10_resnet": "cifar10-resnet18", "cifar10_vgg": "cifar10-vgg",
    "cifar10_wresnet": "cifar10-wresnet", "cifar100_densenet": "cifar100-densenet", "cnn_mnist": "mnist-cnn",
}  # fmt: skip
# Softmax-trained encoders of its fine-tuning commands.
SOFTMAX_TRAINED = {
    "checkpoint_100.pth.tar": "ODIN's CIFAR-100 DenseNet-BC-100 (README, fine-tuning weights)",
    "finetuning_wideresnet.tar": "the release's softmax-trained WRN-28-10 (README, fine-tuning weights)",
}


def available(name: str) -> str | None:
    """What `--checkpoint_path` and `--ae_weights` can load for a name: a path, a run or a manifest entry; None: nothing.

    The ending of a file name does not count for runs and manifest entries, nor the difference of `_` and `-`.
    """
    from common.checkpoints import read_manifest

    if Path(name).exists():
        return name
    stem = Path(name).stem if name.endswith((".ckpt", ".tar", ".pth", ".safetensors")) else name
    spellings = dict.fromkeys((name, stem, stem.replace("_", "-"), stem.replace("-", "_")))
    runs = (ROOT / "runs" / "vmdls" / spelling for spelling in spellings)
    if run := next((run for run in runs if (run / "weights.safetensors").exists()), None):
        return str(run)
    manifest = read_manifest()
    return next((entry for s in spellings for entry in (s, f"vmdls-{s}") if entry in manifest), None)


def checkpoint(name: str) -> str:
    """What to load for `--checkpoint_path`; a `UserError` for a file of the release that is not here says what trains it."""
    found = available(name)
    preset = PRESET_OF.get(Path(name).stem)
    if found is None and preset:
        raise UserError(f"no {name} here, neither file nor run: python vmdls/main.py --preset {preset} --save"
                        f" {Path(name).stem} trains it")
    return found or name


def require_softmax_weights(name: str) -> None:
    """Raise a `UserError` that says what to do when fine-tuning weights of the release's commands are not here."""
    what = SOFTMAX_TRAINED.get(Path(name).name)
    if what and not Path(name).exists():
        raise UserError(f"no {name} here: it is {what}; put the file there, or train a softmax net with"
                        " baseline_openmax/main.py and name its run, or leave out --weights and --finetune")
