"""CSSR's JSON configuration files (`configs/`): inheritance, `--configupdate`, and the flags that they set.

A file may name a parent in `inherit`, relative to the working directory or to this folder; its own values win, key by key
in dictionaries. Nothing in a file is ever evaluated: score expressions are looked up in `POINT_SCORES`, `INTEGRATIONS`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from common.errors import UserError, nearest

FOLDER = Path(__file__).resolve().parent

# Keys of the configuration files and the flags that they set.
CONFIG_FLAGS = {
    "learn_rate": "rate", "epoch_num": "max_epochs", "lr_decay": "lr_decay", "milestones": "milestones",
    "lr_schedule": "schedule", "warmup_epoch": "warmup_epoch", "batch_size": "batch_size", "backbone": "backbone",
    "cat_augmentation": "augment", "strong_option": "strong_option", "cust_aug_crop_withresize": "crop_with_resize",
    "customize_augment_postprocess": "postprocess", "manual_contrast": "manual_contrast", "arch_type": "arch_type",
    "score": "point_score", "integrate_score": "integrate_score", "enable_gram": "enable_gram",
}  # fmt: skip
POOL = "customize_augment_pool"
POOL_OPTIONS = (
    "AutoContrast", "BrightnessDark", "BrightnessLight", "BrightnessOverall", "Color", "ContrastLow", "ContrastHigh",
    "ContrastOverall", "Equalize", "Identity", "Posterize", "Rotate", "Sharpness", "SharpnessLarge", "Shear", "Solarize",
)  # fmt: skip
HEAD = "category_model"
HEAD_FLAGS = ("model", "ae_hidden", "ae_latent", "gamma", "error_measure", "projection_dim")
# Keys that the released files hold and no released code reads.
DEAD_KEYS = {
    "optimizer", "classification_hidden_dim", "rot_augmentation", "cate_rotaug_strategy", "cat_weight", "abs_logits",
    "aug_sublabel", "energy_T", "use_mpn_pooling", "mpn_group", "extra_augmentation", "oemth", "projection_dim",
    "category_model.simmeasure", "category_model.rc_act",
}  # fmt: skip
# What a value must be; booleans are no numbers here.
KINDS = {
    "learn_rate": float, "epoch_num": int, "lr_decay": float, "warmup_epoch": float, "batch_size": int, "backbone": str,
    "milestones": list, "cust_aug_crop_withresize": bool, "manual_contrast": bool, "enable_gram": bool,
    "category_model.ae_hidden": list, "category_model.ae_latent": int, "category_model.gamma": float,
    "category_model.projection_dim": int,
}  # fmt: skip
COUNTS = ("epoch_num", "batch_size")

# Released score expressions. R[0]: logit map of the predicted class, R[1]: mean |z_c|, R[2]: statistic of the class, R[3]: Gram
# statistic, R[4]: largest probability; means over the positions. S[0]: that score, S[1] and S[2]: the two statistics.
POINT_SCORES = ("R[0]", "R[0]/R[1]", "R[0]/R[1]/R[1]", "R[1]", "R[2]", "R[3]", "R[4]")
INTEGRATIONS = ("S[0]", "S[1]", "S[2]", "S[0]+S[1]", "S[0]+S[2]", "S[1]+S[2]", "S[0]+S[1]+S[2]")

_told: set[str] = set()


def locate(path: str | Path, named_in: str = "") -> Path:
    """A file of `configs/` or `exps/`, relative to the working directory or to this folder."""
    for candidate in (Path(path), FOLDER / path):
        if candidate.is_file():
            return candidate
    shipped = [file.relative_to(FOLDER).as_posix() for part in ("configs", "exps") for file in (FOLDER / part).rglob("*.json")]
    near = nearest(Path(path).as_posix(), sorted(shipped))
    because = f" that {named_in} inherits" if named_in else ""
    raise UserError(f"no file {path}{because} here or in {FOLDER.name}/{near}; configs/ and exps/ hold the shipped ones")


def read_json(path: Path) -> dict:
    """The JSON object in a file."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object")
    return content


def read_config(path: str, seen: tuple[Path, ...] = ()) -> dict:
    """A configuration with its `inherit` chain merged below it, dictionaries key by key."""
    file = locate(path, seen[-1].name if seen else "").resolve()
    if file in seen:
        raise UserError(f"configuration {path} inherits itself: {' -> '.join(p.name for p in (*seen, file))}")
    own = read_json(file)
    parent = own.pop("inherit", None)
    return _merged(read_config(parent, (*seen, file)), own) if parent else own


def _merged(below: dict, above: dict) -> dict:
    both = {key: _merged(below[key], above[key]) for key in below.keys() & above.keys()
            if isinstance(below[key], dict) and isinstance(above[key], dict)}  # fmt: skip
    return below | above | both


def flattened(config: dict, prefix: str = "") -> dict:
    """Values by dotted key."""
    flat = {}
    for key, value in config.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def updated(config: dict, text: str) -> dict:
    """A configuration with `--configupdate key:value,...` applied: dotted keys, values of the type that is there.

    Raises
    ------
    UserError
        No `key:value`, a key that the configuration lacks (with the nearest ones), a list, or a value of another type.
    """
    config = _merged(config, {})
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, colon, value = item.partition(":")
        if not colon:
            raise UserError(f"--configupdate expects key:value,key:value, got {item!r}")
        flat = flattened(config)
        if key in DEAD_KEYS - flat.keys():
            config = config | {key: value}  # told as without effect, as it is where a file holds it
            continue
        if key not in flat:
            raise UserError(f"--configupdate {key}: the configuration has no such key{nearest(key, flat)}")
        *groups, last = key.split(".")
        place = config
        for group in groups:
            # A copy on the way down, so that the given configuration stays as it is.
            place[group] = dict(place[group])
            place = place[group]
        place[last] = _cast(key, value, place[last])
    return config


def _cast(key: str, text: str, old):
    """The value that `text` means where `old` was."""
    kind = type(old)
    if kind is list:
        raise UserError(f"--configupdate {key}: a list cannot be overridden here; use its flag (see --help) or a file")
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"--configupdate {key} expects True or False, got {text!r}")
        return text.lower() == "true"
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        raise UserError(f"--configupdate {key} expects {kind.__name__} as {old!r} is, got {text!r}") from None


def _check_kinds(path: str, flat: dict) -> None:
    """Refuse values of another type than their key's, and counts below 1."""
    for key, kind in KINDS.items():
        value = flat.get(key)
        allowed = (int, float) if kind is float else kind
        wrong = value is not None and (not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)))
        if wrong:
            raise UserError(f"{path}: {key} must be of type {kind.__name__}, got {value!r}")
        numbers = value if kind is list and value else []
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            raise UserError(f"{path}: {key} must hold whole numbers, got {value!r}")
    for key in COUNTS:
        if flat.get(key) is not None and flat[key] < 1:
            raise UserError(f"{path}: {key} must be at least 1, got {flat[key]}")


def _tell_dead_keys(path: str, flat: dict) -> None:
    """Name keys without effect, once in a process for each set of them."""
    alive = {*CONFIG_FLAGS, *(f"{HEAD}.{flag}" for flag in HEAD_FLAGS)}
    dead = sorted(key for key in flat if key not in alive and not key.startswith(f"{POOL}."))
    note = ", ".join(dead)
    if dead and note not in _told:
        _told.add(note)
        unknown = [key for key in dead if key not in DEAD_KEYS]
        hint = nearest(unknown[0], alive) if unknown else ""
        print(f"note: {path}: keys without effect: {note}{hint}", file=sys.stderr)


def flags_of_config(path: str, update: str = "") -> dict:
    """Flag values that a configuration file, with `--configupdate` on it, sets."""
    config = updated(read_config(path), update)
    head = config.get(HEAD)
    if not isinstance(head, dict) or "model" not in head:
        raise UserError(f"{path} has no {HEAD}: --config takes a file of configs/, --ds one of exps/")
    flat = flattened(config)
    _check_kinds(path, flat)
    _tell_dead_keys(path, flat)
    flags = {flag: config[key] for key, flag in CONFIG_FLAGS.items() if key in config}
    flags |= {key: head[key] for key in HEAD_FLAGS if key in head}
    for flag, expressions in (("point_score", POINT_SCORES), ("integrate_score", INTEGRATIONS)):
        if flag in flags:
            flags[flag] = known_expression(str(flags[flag]), expressions)
    if isinstance(config.get(POOL), dict):
        flags["augment_pool"] = [name for name, wanted in config[POOL].items() if wanted]
    return flags


def known_expression(text: str, expressions: tuple[str, ...]) -> str:
    """The score expression, without spaces; a `UserError` for one that is not in the set."""
    expression = text.replace(" ", "")
    if expression == "R[0]/R[2]":
        # configs/pcssr/imagenet.json of the release: R[2] is 0 for a frozen backbone, so every score was infinite.
        raise UserError("score R[0]/R[2] divides by the constant 0 of --method cssr_ft; use R[0]/R[1]/R[1]")
    if expression not in expressions:
        raise UserError(f"score expression {text!r} is none of {', '.join(expressions)}{nearest(expression, expressions)}")
    return expression
