"""Networks in the release's own files: read weights-only, brought to this repository's form; nothing in them is executed.

The release's checkpoints could not be obtained, so this goes by the form of the network, not by known names: the encoder's
tensors by name, else in order where every shape fits; then two linear layers of shape (d, k), mean before log-variance.
"""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError

NEEDED = ("known_dataset", "enc_type", "latent_dim")


def imported(where: str, args, directory: Path) -> Path:
    """Write `weights.safetensors` to `directory` from a file of the release; returns its path and prints what was unused.

    Parameters
    ----------
    where : str
    args : Namespace
        Flags that describe the network: `known_dataset enc_type latent_dim class_num data_transforms first_conv maxpool1`.

    Raises
    ------
    UserError
        A describing flag is missing, the file cannot be read, or its tensors are of another network.
    """
    from common.checkpoints import save_weights
    from common.datasets import find_split, load, resolve_name
    from vmdls.model import VMDLS
    from vmdls.recipe import normalisation, read_weights

    missing = [f"--{flag}" for flag in NEEDED if getattr(args, flag) is None]
    if missing:
        raise UserError(f"{where} is a file of another program: say what it holds with {', '.join(missing)}")
    weights = read_weights(where)
    dataset = resolve_name(args.known_dataset)
    classes = args.class_num or 10
    test = load(dataset, False, root=args.data_dir)
    split = find_split(dataset, "all" if classes == len(test.classes) else f"first-{classes}")
    mean, std = normalisation("cifar" if test.shape[0] == 3 else "mnist", test)
    config = {"backbone": args.enc_type, "classes": classes, "shape": list(test.shape), "mean": mean, "std": std,
              "latent_dim": args.latent_dim, "first_conv": args.first_conv, "maxpool1": args.maxpool1}  # fmt: skip
    model = VMDLS(**config)
    unused = fill(model, weights)
    print(f"network from {where}; unused there: {', '.join(unused) or 'nothing'}")
    # Constructor arguments at their defaults: main.py --checkpoint_path compares them with its flags.
    config |= {"width": None, "released_slices": False, "dropout_at_test": False}
    # Trained on all training images, as its authors did: nothing was held out.
    header = {"paper": "vmdls", "model": config, "class_names": [test.classes[label] for label in split.known],
              "data": {"known_dataset": dataset, "split": split.name, "seed": 0, "validation_share": 0.0,
                       "subset": None}}  # fmt: skip
    path = directory / "weights.safetensors"
    save_weights(path, model.state_dict(), header)
    return path


def fill(model, weights) -> list[str]:
    """Fill a VMDLS network from foreign tensors; returns the names that were not used."""
    from vmdls.recipe import load_encoder

    tensors = {key.removeprefix("module.").removeprefix("model."): value for key, value in weights.tensors.items()}
    heads = {"mean_head": model.mean_head, "log_variance_head": model.log_variance_head}
    wanted = model.mean_head.weight.shape
    names = [key.removesuffix(".weight") for key, value in tensors.items()
             if value.shape == wanted and not key.startswith(("encoder.", "ae.")) and key.endswith(".weight")]  # fmt: skip
    if len(names) != len(heads):
        raise UserError(f"{weights.name} has {len(names)} linear layers of {wanted[1]} to {wanted[0]} numbers, expected 2"
                        " (mean and log-variance): is it a VMDLS checkpoint of this --enc_type and --latent_dim?")
    for name, head in zip(names, heads.values()):
        head.load_state_dict({"weight": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]})
    own = {key: value for key, value in tensors.items() if key.startswith("encoder.")}
    try:
        load_encoder(model.encoder, weights._replace(tensors=own))
        used = {f"encoder.{key}" for key in model.encoder.state_dict()}
    except UserError as error:
        used = _fill_in_order(model.encoder, own, error)
    used |= {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    return [key for key in tensors if key not in used]


def _fill_in_order(encoder, tensors, error: UserError) -> set[str]:
    """Fill an encoder whose layers are called otherwise, in order; the error of the names where shapes differ."""
    state = {key: value for key, value in encoder.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    if [value.shape for value in state.values()] != [value.shape for value in given.values()]:
        raise error
    encoder.load_state_dict(dict(zip(state, given.values())), strict=False)
    return set(given)
