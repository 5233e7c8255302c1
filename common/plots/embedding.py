"""t-SNE of the features: what the network places near what."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import atomic
from common.plots import style
from common.plots.parts import Scores, class_names, subsample, test_part

LARGEST = 5000
FEWEST = 5


def tsne_coordinates(features: np.ndarray, seed: int = 0, cache: Path | None = None) -> tuple[np.ndarray, str]:
    """Place features in the plane with t-SNE (PCA start, fixed seed).

    Parameters
    ----------
    features : float array (N, D)
    seed : int, default 0
    cache : path, optional
        An `.npz` that keeps the coordinates; used again only for the same features, seed and back end.

    Returns
    -------
    (float array (N, 2), str)
        Coordinates, and the back end that computed them: openTSNE where it is installed (faster from a few
        thousand samples on), else scikit-learn.
    """
    backend = "openTSNE" if importlib.util.find_spec("openTSNE") else "scikit-learn"
    features = np.ascontiguousarray(features, dtype=np.float32)
    key = hashlib.sha256(features.tobytes() + f"{features.shape} {seed} {backend}".encode()).hexdigest()
    if cache is not None and cache.exists():
        with np.load(cache, allow_pickle=False) as stored:
            if str(stored["key"]) == key:
                return stored["coordinates"], backend
    perplexity = float(min(30, max(2, len(features) / 4 - 1)))
    if backend == "openTSNE":
        from openTSNE import TSNE

        coordinates = np.asarray(TSNE(perplexity=perplexity, initialization="pca", random_state=seed).fit(features))
    else:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        # One thread: sums do not depend on the machine, and threads that wait for each other on busy cores take minutes.
        with threadpool_limits(1):
            coordinates = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)
    if cache is not None:
        with atomic(cache) as partial, open(partial, "wb") as target:
            np.savez_compressed(target, coordinates=coordinates.astype(np.float32), key=key)
    return coordinates, backend


def tsne(scores: Scores, seed: int = 0, cache: Path | None = None):
    """t-SNE map of the features of the test samples: known ones coloured by class, unknown ones as crosses.

    Parameters
    ----------
    scores : mapping
        Arrays of one `scores.npz` with `features` (N, D).
    seed : int, default 0
        Of the subsample (at most 5,000) and of t-SNE.
    cache : path, optional
        See `tsne_coordinates`.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    UserError
        The scores hold no features, or too few samples.
    """
    if "features" not in scores:
        raise UserError("the scores hold no features, which t-SNE needs; the test.py of a method that keeps features"
                        " writes them, the compact copies beside records never have them")  # fmt: skip
    part = test_part(scores)
    chosen = _chosen(part["target"], seed)
    if len(chosen) < FEWEST:
        raise UserError(f"t-SNE needs at least {FEWEST} test samples, the scores hold {len(chosen)}")
    coordinates, backend = tsne_coordinates(part["features"][chosen].reshape(len(chosen), -1), seed, cache)
    target, names = part["target"][chosen], class_names(scores)
    figure = style.new_figure(7.4, 5.6)
    total = len(part["target"])
    axes = style.dress(figure.add_subplot(), "t-SNE of the features",
                       f"{len(chosen):,} of {total:,} test samples, seed {seed}, {backend}; distances between groups mean little",
                       "", "", grid=False)  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    unknown = target < 0
    axes.scatter(*coordinates[unknown].T, s=16, color=style.BLACK, marker="x", linewidths=0.8, alpha=0.55, label="unknown")
    many = len(names) > len(style.CYCLE[:-1]) * len(style.MARKERS)
    for label, name in enumerate(names):
        look = _class_look(label, len(names), many)
        axes.scatter(*coordinates[target == label].T, s=13, alpha=0.85, linewidths=0, label=None if many else name, **look)
    style.legend(axes, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.6, ncols=1 + len(names) // 22)
    return figure


def _chosen(target: np.ndarray, seed: int) -> np.ndarray:
    """At most `LARGEST` samples; the smaller side, known or unknown, keeps up to half of the places."""
    sides = sorted((target >= 0, target < 0), key=np.count_nonzero)
    smaller = subsample(sides[0], LARGEST // 2, seed)
    return np.sort(np.r_[smaller, subsample(sides[1], LARGEST - len(smaller), seed)])


def _class_look(label: int, count: int, many: bool) -> dict:
    """Colour and marker of a known class; with too many classes to tell apart, a colour of a continuous map."""
    if many:
        from matplotlib import colormaps

        return {"color": [colormaps["viridis"](label / max(count - 1, 1))], "marker": "o"}
    colours = style.CYCLE[:-1]  # black is the unknown samples'
    return {"color": colours[label % len(colours)], "marker": style.MARKERS[label // len(colours)]}
