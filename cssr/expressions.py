"""The released score expressions, from the outputs of `scoring.score_function`: a fixed set, nothing is evaluated.

`score` is S0: means over the positions of R[0] (logit map of the predicted class), R[1] (M, mean over channels of |z|), their
ratios, R[2] (S1), R[3] (S2) or R[4] (largest probability). `integrate_score` names the terms of the sum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from common.errors import UserError
from cssr.scores import PARTS, PREFIX
from cssr.scoring import scored

DEFAULT_SCORE = {"pcssr": "R[0]/R[1]/R[1]", "rcssr": "R[0]", "linear": "R[4]"}
DEFAULT_INTEGRATION = {"pcssr": "S[0]+S[1]+S[2]", "rcssr": "S[0]+S[1]+S[2]", "linear": "S[0]"}


def settings(kind: str, score: str | None, integration: str | None) -> dict:
    """What a checkpoint's header says about its own score: only what is not the model's default.

    Raises
    ------
    UserError
        An expression that this model's outputs do not hold.
    """
    score = None if score == DEFAULT_SCORE[kind] else score
    impossible = {"pcssr": (), "rcssr": ("R[0]/R[1]/R[1]",), "linear": ("R[0]/R[1]", "R[0]/R[1]/R[1]")}[kind]
    if score in impossible:
        raise UserError(f"score {score} is not one of {kind}: its default is {DEFAULT_SCORE[kind]}")
    integration = None if integration == DEFAULT_INTEGRATION[kind] else integration
    return {key: value for key, value in (("score", score), ("integrate_score", integration)) if value}


def terms_of(kind: str, own: Mapping) -> list[int]:
    """Numbers of the terms S[0], S[1], S[2] in the fused score that a header's settings name, else in the model's default."""
    return [int(digit) for digit in re.findall(r"\d", own.get("integrate_score") or DEFAULT_INTEGRATION[kind])]


def point_score(kind: str, expression: str | None, arrays: Mapping[str, np.ndarray], gamma: float, channels: int):
    """S0 by its expression, float64 `(N,)`, large for known images.

    Parameters
    ----------
    kind : str
    expression : str, optional
        Else that of the kind.
    arrays : mapping
        `parts`, `logits`, `mean_logits` of `scoring.score_function`.
    gamma : float
        Factor of the errors in the logits.
    channels : int
        C of the feature map.
    """
    parts = dict(zip(PARTS, arrays["parts"].astype(np.float64).T))
    if expression in (None, DEFAULT_SCORE[kind]):
        return parts["S0"]
    if expression == "R[0]":
        predicted = arrays["logits"].argmax(1)[:, None]
        return np.take_along_axis(arrays["mean_logits"], predicted, 1)[:, 0].astype(np.float64)
    if expression == "R[4]":
        return np.exp(arrays["logits"].max(1).astype(np.float64))
    # RRE = mean of e / ||z||_1 and FM = mean of ||z||_1, where R[0] = gamma e and R[1] = ||z||_1 / C.
    return {"R[0]/R[1]": parts["RRE"] * gamma * channels, "R[1]": parts["FM"] / channels, "R[2]": parts["S1"],
            "R[3]": parts["S2"]}[expression]  # fmt: skip


def own_score(header: Mapping, tensors: Mapping, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The known-ness that the header's expressions name, float64 `(N,)`."""
    kind, own = header["model"]["model"], header["score"]
    channels = tensors[f"{PREFIX}class_share"].shape[1]
    first = point_score(kind, own.get("score"), arrays, header["model"]["gamma"], channels)
    values = np.column_stack([first, arrays["parts"][:, -2:].astype(np.float64)])
    terms = terms_of(kind, own)
    if len(terms) == 1:
        return values[:, terms[0]]
    mean, std = (tensors[f"{PREFIX}{name}"].numpy().astype(np.float64).copy() for name in ("mean", "std"))
    if "score" in own:
        mean[0], std[0] = own["mean"], own["std"]
    return np.nansum(((values - mean) / (std + 1e-8))[:, terms], axis=1)


def scored_by(name: str, header: Mapping, tensors: Mapping, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`scoring.scored`, with the own score (`fused`) that the header names."""
    found = scored(name, header["model"]["model"], arrays)
    if name == "fused" and header.get("score"):
        found["unknown_score"] = -own_score(header, tensors, arrays)
    return found
