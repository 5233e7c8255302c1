"""What an unknown score was computed with: temperature of the logits, ODIN's settings, distance to the class means.

`metrics.json` keeps these settings beside the threshold of each score, and so do the files of what was fitted: a threshold is
only right for scores of the same settings.
"""

from __future__ import annotations

from collections.abc import Mapping

from common.errors import UserError

DEFAULTS = {"temperature": 1.0, "odin_temperature": 1000.0, "odin_step": 0.0014, "simple_distance": "euclidean"}
# Settings beyond the temperature, by score.
OWN = {"odin": ("odin_temperature", "odin_step"), "openmax-simple": ("simple_distance",)}


def settings_of(args, temperature: float | None) -> dict:
    """All settings from the flags of `test.py`; `temperature` is the calibrated one, used with `--calibrated_scores`."""
    given = {name: getattr(args, name) for name in DEFAULTS if getattr(args, name, None) is not None}
    if args.calibrated_scores:
        if temperature is None:
            raise UserError("--calibrated_scores needs a run with a temperature: main.py --calibration temperature and"
                            " enough --validation_share")
        given["temperature"] = temperature
    return DEFAULTS | given


def concerning(name: str, settings: Mapping) -> dict:
    """The settings that change the score `name`; those of distances to feature means are free of the temperature."""
    names = OWN.get(name, ()) if name == "openmax-simple" else ("temperature", *OWN.get(name, ()))
    return {key: settings[key] for key in names}


def record_name(method: str, score: str, settings: Mapping, calibrated: bool) -> str:
    """The method's name in records, with every setting of the score that departs from the published one."""
    own = concerning(score, settings)
    parts = [method, "calibrated"] if calibrated and "temperature" in own else [method]
    for key, spelt in (("odin_temperature", "temperature"), ("odin_step", "step"), ("simple_distance", "")):
        if key in own and own[key] != DEFAULTS[key]:
            parts.append(f"{spelt}{own[key]:g}" if spelt else own[key])
    return "-".join(parts)


def stored_settings(trained, name: str, fitted: Mapping | None = None) -> dict:
    """Settings of the last evaluation of the score `name`: of its threshold, and of what was fitted for it.

    Parameters
    ----------
    trained : common.evaluation.Trained
    name : str
        A score's name as in `metrics.json`.
    fitted : mapping, optional
        Settings that are stored with what was fitted for the score.

    Raises
    ------
    UserError
        The two contradict each other.
    """
    import json

    evaluated = trained.directory / "metrics.json"
    source = json.loads(evaluated.read_text()) if evaluated.exists() else trained.header
    threshold = source.get("thresholds", {}).get(name)
    of_threshold = None if threshold is None else concerning(name, DEFAULTS | threshold.get("scoring", {}))
    of_fitted = None if fitted is None else concerning(name, DEFAULTS | dict(fitted))
    if of_threshold is not None and of_fitted is not None and of_threshold != of_fitted:
        raise UserError(f"{name}: its threshold belongs to {told(of_threshold)}, what was fitted to {told(of_fitted)}:"
                        f" evaluate once more with test.py --score {name.partition('-tail')[0]}")
    return DEFAULTS | (of_threshold or of_fitted or {})


def refuse_contradiction(args, name: str, stored: Mapping) -> None:
    """Raise a `UserError` when flags ask for other settings than those the threshold of the score belongs to."""
    own = concerning(name, stored)
    other = {key: getattr(args, key) for key in own if getattr(args, key, None) not in (None, own[key])}
    if args.calibrated_scores and own.get("temperature") == 1.0:
        other["temperature"] = "calibrated"
    if other:
        raise UserError(f"the threshold of {name} belongs to {told(own)}, the flags say {told(other)}:"
                        " leave them out, or evaluate once without --images with them")


def told(settings: Mapping) -> str:
    """Settings in words, for messages."""
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "the features alone"
