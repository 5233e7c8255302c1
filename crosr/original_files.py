"""The PyTorch re-implementation's own weights (`model.pt`, `dhr_net.pt`): read weights-only, brought to this repository's form.

The file holds a dictionary with `model_state_dict`, or the tensors themselves; nothing in it is executed. Training images are
not needed to read it, but its statistics are: the first evaluation computes them from the CIFAR-10 training images.
"""

from __future__ import annotations

import pickle
from pathlib import Path

from common.errors import UserError


def imported(where: str, args, directory: Path) -> Path:
    """Write `weights.safetensors` to `directory` from a file of the release; returns its path.

    The release has one network: ten classes of CIFAR-10, 32x32, trained on all training images.

    Parameters
    ----------
    where : str
        A torch file.
    args : Namespace
        `data_dir`.

    Raises
    ------
    UserError
        The file cannot be read, or its tensors are of another network.
    """
    import torch

    from common.checkpoints import save_weights
    from common.datasets import load
    from crosr.model import RELEASED_MEAN, RELEASED_STD, DHRNet, released_state_dict

    try:
        content = torch.load(where, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(f"{where} cannot be read as weights alone: {str(error).splitlines()[0]}") from None
    tensors = content.get("model_state_dict", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise UserError(f"{where} holds no tensors by name: expected the model_state_dict of the released DHRNet")
    names = load("cifar10", False, root=args.data_dir).classes
    config = {"backbone": "plain", "classes": len(names), "shape": [3, 32, 32], "mean": list(RELEASED_MEAN),
              "std": list(RELEASED_STD), "width": None, "norm": "batch", "variant": "released",
              "dropout_at_test": False, "crop_size": None}  # fmt: skip
    model = DHRNet(**config)
    try:
        model.load_state_dict(released_state_dict(tensors))
    except RuntimeError as error:
        raise UserError(f"{where} is not the released DHRNet: {str(error).splitlines()[-1].strip()}") from None
    # Trained on all training images, as its authors did: nothing was held out.
    header = {"paper": "crosr", "model": config, "class_names": list(names),
              "data": {"known_dataset": "cifar10", "split": "all", "seed": 0, "validation_share": 0.0,
                       "subset": None}}  # fmt: skip
    path = directory / "weights.safetensors"
    save_weights(path, model.state_dict(), header)
    return path
