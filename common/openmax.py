r"""OpenMax (Bendale and Boult, CVPR 2016): far samples give part of their activation to a class "unknown".

Calibration: the mean activation vector \(\mu_j\) of the correctly classified training samples of each
class, and a Weibull distribution fitted to the largest distances of those samples to it. Inference: the
classes are ranked by logit; for rank i = 1..alpha the activation of class j loses the share a_i W_j(x),
where W_j is the Weibull probability of the distance of x to \(\mu_j\), and "unknown" gains what they lose.

Published variants, all selectable here:

* alpha rule: `code` a_i = (alpha + 1 - i) / alpha, as every released program computes; `paper` a_i =
  (alpha - i) / alpha, as printed, which leaves the last rank alone. (The paper also prints the survival
  function for W; taken literally that suppresses samples near the mean, and no program does it.)
* softmax: `after` the recalibration of logits (OpenMax), or `before` it, of probabilities (CROSR).
* clip: `none`, or `zero`: a negative logit takes nothing from "unknown" (crosr_bda). Without it a negative
  activation that is suppressed lowers "unknown"; in both cases it is itself raised towards 0.
* translation: see `common.weibull`. Scaling all distances equals changing it: both are saved with the model.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from common import weibull
from common.errors import UserError, nearest

DISTANCES = ("euclidean", "cosine", "eucos")
ALPHA_RULES = ("code", "paper")
SOFTMAX = ("after", "before")
CLIPS = ("none", "zero")
_EUCOS_DIVISOR = 200.0  # the constant of the authors' program
_BLOCK = 2**16  # numbers per block of rows: 512 kB stay in the cache, which halves the time of a fit


class Calibration(NamedTuple):
    """What the tails are fitted to: kept in a checkpoint, it fits any tail of up to M distances without the samples.

    `means` (K, D) and `distances` (K, M), the largest of each class, descending; NaN where a class has too few samples.
    `used`, `labelled` (K,): samples that count (correctly classified ones), and all samples of the class.
    """

    means: np.ndarray
    distances: np.ndarray
    used: np.ndarray
    labelled: np.ndarray


class OpenMax:
    """Extreme-value recalibration of a classifier with K known classes; see the module's first lines.

    Parameters
    ----------
    tail_size : int, default 20
        Largest distances per class the Weibull distribution is fitted to (eta).
    alpha : int, default 10
        Number of top-ranked classes that are revised; more than K is reduced to K with a warning.
    distance : {"eucos", "euclidean", "cosine"}
        Distance to the mean, the same at fit and query. eucos = Euclidean / 200 + cosine; cosine = 1 - cos.
    alpha_rule : {"code", "paper"}
        Weights of the ranks.
    translation : float, default 1
        Where the smallest tail distance is moved to before the fit.
    softmax : {"after", "before"}
        Recalibrate logits, or probabilities.
    clip : {"none", "zero"}
        Whether negative contributions to "unknown" count as 0.
    backend : {"newton", "libmr"}
        Fitter of `common.weibull`.
    correct_only : bool, default True
        Calibrate on correctly classified samples only, as the paper says; False takes all (pytorch-ood).

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1, 2], 100)
    >>> logits = 8 * np.eye(3)[labels] + generator.normal(size=(300, 3))
    >>> model = OpenMax(tail_size=20, alpha=3, distance="euclidean").fit(logits, labels)
    >>> model.probabilities([[8.0, 0.0, 0.0], [2.0, 2.0, 2.0]]).round(2).tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.02, 0.03, 0.06, 0.89]]
    """

    def __init__(
        self,
        tail_size: int = 20,
        alpha: int = 10,
        distance: str = "eucos",
        alpha_rule: str = "code",
        translation: float = 1,
        softmax: str = "after",
        clip: str = "none",
        backend: str = "newton",
        correct_only: bool = True,
    ):
        for name, value, choices in (
            ("distance", distance, DISTANCES),
            ("alpha_rule", alpha_rule, ALPHA_RULES),
            ("softmax", softmax, SOFTMAX),
            ("clip", clip, CLIPS),
            ("backend", backend, weibull.BACKENDS),
        ):
            if value not in choices:
                listed = f"{', '.join(choices)}, got {value!r}{nearest(str(value), choices)}"
                raise UserError(f"openmax: {name} must be one of {listed}")
        if tail_size < 2 or alpha < 1:
            raise UserError(f"openmax: tail_size must be at least 2, alpha at least 1; got {tail_size}, {alpha}")
        self.tail_size, self.alpha, self.distance, self.alpha_rule = tail_size, alpha, distance, alpha_rule
        self.translation, self.softmax, self.clip = translation, softmax, clip
        self.backend, self.correct_only = backend, correct_only
        self.logits_lead: bool | None = None  # the first K features are the logits; known once fitted
        self.means = np.empty((0, 0))
        self.tails: weibull.Weibull | None = None

    def fit(self, features, labels, logits=None, class_names: Sequence[str] | None = None) -> OpenMax:
        """Compute mean activation vectors and fit the tails.

        Parameters
        ----------
        features : float array (N, D)
            Activation vectors: the logits, or any vectors of which distances are taken (CROSR: [logits,
            latents]).
        labels : int array (N,)
            Known classes 0..K-1.
        logits : float array (N, K), optional
            What ranks and recalibrates the classes; default: `features`.
        class_names : sequence of str, optional
            For error messages.

        Returns
        -------
        OpenMax
            The object itself.

        Raises
        ------
        UserError
            When a class has fewer (correctly classified) samples than the tail, or a constant tail.
        """
        calibration = self.calibrate(features, labels, logits, self.tail_size)
        classes = len(calibration.used)
        leads = logits is None or np.array_equal(np.asarray(features)[:, :classes], logits)
        return self.fit_calibration(calibration, class_names, logits_lead=bool(leads))

    def calibrate(self, features, labels, logits=None, largest: int | None = None) -> Calibration:
        """Return the means and, per class, the `largest` (default: all) distances to them; parameters as in `fit`."""
        features = _finite(features, "features")
        logits = features if logits is None else _finite(logits, "logits", rows=len(features))
        classes = logits.shape[1]
        labels = _labels(labels, len(features), classes)
        kept = np.flatnonzero((logits.argmax(axis=1) == labels) | (not self.correct_only))
        kept = kept[np.argsort(labels[kept], kind="stable")]
        used = np.bincount(labels[kept], minlength=classes)
        starts, present = np.r_[0, np.cumsum(used)[:-1]], used > 0
        means = np.full((classes, features.shape[1]), np.nan)
        means[present] = np.add.reduceat(features[kept], starts[present], axis=0) / used[present, None]
        distance = np.empty(len(kept))
        for rows in _blocks(len(kept), features.shape[1]):
            own = labels[kept[rows], None]
            distance[rows] = self._distances(features[kept[rows]], own, means)[:, 0]
        # Within each class the largest distances first; the tails are then one rectangle.
        order = np.argsort(-distance)
        distance = distance[order[np.argsort(labels[kept[order]], kind="stable")]]
        rank = np.arange(used.max(initial=0) if largest is None else largest)
        place = np.where(rank < used[:, None], starts[:, None] + rank, len(kept))  # beyond the last: NaN
        largest_distances = np.append(distance, np.nan)[place]
        return Calibration(means, largest_distances, used, np.bincount(labels, minlength=classes))

    def fit_calibration(
        self, calibration: Calibration, class_names: Sequence[str] | None = None, logits_lead: bool = True
    ) -> OpenMax:
        """Fit the tails to the distances of `calibrate`; errors as in `fit`. `logits_lead`: the features begin with them."""
        classes = len(calibration.used)
        names = _names(class_names, classes)
        if self.alpha > classes:
            warnings.warn(f"openmax: alpha {self.alpha} exceeds the {classes} classes; {classes} is used", stacklevel=3)
            self.alpha = classes
        self._check_counts(calibration, names)
        self.means, self.logits_lead = calibration.means, logits_lead
        tails = calibration.distances[:, : self.tail_size]
        self.tails = weibull.fit_tails(tails, translation=self.translation, backend=self.backend, names=names)
        return self

    def probabilities(self, features, logits=None) -> np.ndarray:
        """Return OpenMax probabilities (N, K + 1), unknown **last**; every row sums to 1.

        Parameters
        ----------
        features : float array (N, D)
            As in `fit`.
        logits : float array (N, K), optional
            Default: the first K features, where they were the logits at fit.
        """
        features, logits = self._query(features, logits)
        result = np.empty((len(logits), logits.shape[1] + 1))
        width = features.shape[1] * (1 if self._few_classes() else self.alpha)
        for rows in _blocks(len(logits), width):
            result[rows] = self._recalibrated(features[rows], logits[rows])
        return result

    def unknown_probability(self, features, logits=None) -> np.ndarray:
        """Return the probability of "unknown" (N,), the unknown score: larger = more likely unknown."""
        return self.probabilities(features, logits)[:, -1]

    def predict(self, features, logits=None, epsilon: float = 0.0) -> np.ndarray:
        """Return the class of largest probability; -1 where it is "unknown" or less probable than epsilon."""
        probabilities = self.probabilities(features, logits)
        best = probabilities.argmax(axis=1)
        rejected = (best == probabilities.shape[1] - 1) | (probabilities.max(axis=1) < epsilon)
        return np.where(rejected, -1, best)

    def tail_probabilities(self, features) -> np.ndarray:
        """Return W (N, K): the Weibull probability of the distance to each class mean (libmr's w-score)."""
        features = self._checked_features(features)
        return self.tails.cdf(self._every_distance(features))

    @property
    def settings(self) -> dict:
        """Everything but the arrays, as plain values that JSON can hold."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in (*list(names)[1:], "logits_lead")}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the fitted float64 arrays: means (K, D), scale, shape and small (K,)."""
        self._check_fitted()
        return {
            "means": self.means,
            "scale": self.tails.scale,
            "shape": self.tails.shape,
            "small": self.tails.small,
        }

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], settings: Mapping) -> OpenMax:
        """Build a fitted model from `state_dict()` and `settings`; its output is equal bit for bit."""
        values = dict(settings)
        logits_lead = values.pop("logits_lead")
        model = cls(**values)
        model.logits_lead = logits_lead
        means, *fitted = (
            np.asarray(arrays[name], dtype=np.float64) for name in ("means", "scale", "shape", "small")
        )
        model.means, model.tails = means, weibull.Weibull(*fitted, float(model.translation))
        return model

    def _recalibrated(self, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        activation = _softmax(logits) if self.softmax == "before" else logits
        moved = activation * self._shares(features, logits)
        revised = np.empty((len(logits), logits.shape[1] + 1))
        np.subtract(activation, moved, out=revised[:, :-1])
        revised[:, -1] = (np.maximum(moved, 0.0) if self.clip == "zero" else moved).sum(axis=1)
        return revised if self.softmax == "before" else _softmax(revised)

    def _shares(self, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Return a_i W_j(x) for the class j of each rank i up to alpha, 0 for all others, (N, K)."""
        ranked = np.argsort(-logits, axis=1, kind="stable")[:, : self.alpha]  # (N, alpha)
        weights = np.broadcast_to(self._rank_weights(), ranked.shape)
        if not self._few_classes():
            weights = weights * self._ranked_tail_cdf(features, ranked)
        shares = np.zeros(logits.size)
        # Flat positions: three times as fast as put_along_axis.
        shares[(ranked + np.arange(0, logits.size, logits.shape[1])[:, None]).ravel()] = weights.ravel()
        shares = shares.reshape(logits.shape)
        if self._few_classes():
            shares *= self.tails.cdf(self._every_distance(features))
        return shares

    def _few_classes(self) -> bool:
        """Whether the distances to all classes are less work than those to the ranked classes of each row."""
        return 2 * self.alpha >= len(self.means)

    def _rank_weights(self) -> np.ndarray:
        rank = np.arange(1, self.alpha + 1)
        return (self.alpha - rank + (self.alpha_rule == "code")) / self.alpha

    def _ranked_tail_cdf(self, features: np.ndarray, ranked: np.ndarray) -> np.ndarray:
        """Return W of classes ranked[n] for row n, (N, R)."""
        fitted = self.tails
        chosen = weibull.Weibull(
            fitted.scale[ranked], fitted.shape[ranked], fitted.small[ranked], fitted.translation
        )
        return chosen.cdf(self._distances(features, ranked, self.means))

    def _every_distance(self, features: np.ndarray) -> np.ndarray:
        """Return the distances to all means (N, K); `cdist` sums squares directly, as `_distances` does."""
        euclidean = cosine = 0.0
        if self.distance != "cosine":
            euclidean = cdist(features, self.means)
        if self.distance != "euclidean":
            lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(self.means, axis=1)
            cosine = _cosine_distance(features @ self.means.T, lengths)
        return self._combined(euclidean, cosine)

    def _distances(self, features: np.ndarray, columns: np.ndarray, means: np.ndarray) -> np.ndarray:
        """Return the distances of row n to the means of classes columns[n], (N, R)."""
        ours, centres = features[:, None, :], means[columns]
        euclidean = cosine = 0.0
        if self.distance != "cosine":
            difference = ours - centres
            euclidean = np.sqrt(np.einsum("nrd,nrd->nr", difference, difference))
        if self.distance != "euclidean":
            lengths = np.linalg.norm(ours, axis=2) * np.linalg.norm(centres, axis=2)
            cosine = _cosine_distance(np.einsum("nrd,nrd->nr", centres, ours), lengths)
        return self._combined(euclidean, cosine)

    def _combined(self, euclidean, cosine) -> np.ndarray:
        if self.distance == "eucos":
            return euclidean / _EUCOS_DIVISOR + cosine
        return euclidean if self.distance == "euclidean" else cosine

    def _query(self, features, logits) -> tuple[np.ndarray, np.ndarray]:
        features = self._checked_features(features)
        if logits is None:
            if not self.logits_lead:
                raise UserError("openmax: this model was fitted with separate logits; pass logits as well")
            return features, features[:, : len(self.means)]
        logits = _finite(logits, "logits", rows=len(features))
        if logits.shape[1] != len(self.means):
            raise UserError(f"openmax: fitted with {len(self.means)} classes, got logits of {logits.shape[1]}")
        return features, logits

    def _checked_features(self, features) -> np.ndarray:
        self._check_fitted()
        features = _finite(features, "features")
        if features.shape[1] != self.means.shape[1]:
            raise UserError(f"openmax: fitted with {self.means.shape[1]} features, got {features.shape[1]}")
        return features

    def _check_fitted(self) -> None:
        if self.tails is None:
            raise UserError("openmax: not fitted; call fit(features, labels) or from_state(arrays, settings) first")

    def _check_counts(self, calibration: Calibration, names: Sequence[str]) -> None:
        used, labelled = calibration.used, calibration.labelled
        short = np.flatnonzero(used < self.tail_size)
        if len(short):
            kind = "correctly classified" if self.correct_only else "labelled"
            listed = ", ".join(f"{names[c]} ({used[c]} {kind} of {labelled[c]})" for c in short[:5])
            more = f" and {len(short) - 5} more" if len(short) > 5 else ""
            problem = f"tail_size {self.tail_size} is larger than {listed}{more}"
            raise UserError(f"openmax: {problem}; lower it or give more samples")
        if calibration.distances.shape[1] < self.tail_size:
            stored = calibration.distances.shape[1]
            raise UserError(f"openmax: tail_size {self.tail_size} is larger than the {stored} distances per class stored")


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Yield slices of rows that hold about _BLOCK numbers each."""
    step = max(1, _BLOCK // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def _cosine_distance(product: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    # A vector of zeros has no direction: it counts as orthogonal to everything.
    return 1.0 - np.divide(product, lengths, out=np.zeros_like(product), where=lengths > 0)


def _softmax(values: np.ndarray) -> np.ndarray:
    exponential = np.array(values.T, order="C")  # sums down a column are faster than along a short row
    exponential -= exponential.max(axis=0)
    np.exp(exponential, out=exponential)
    exponential /= exponential.sum(axis=0)
    return exponential.T


def _finite(values, name: str, rows: int | None = None) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.shape[1] or (rows is not None and len(array) != rows):
        expected = "(N, columns)" if rows is None else f"({rows}, columns)"
        raise UserError(f"openmax: {name} must have shape {expected}, got {array.shape}")
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise UserError(f"openmax: {name}: {bad.sum()} rows hold NaN or infinity (first: row {bad.argmax()})")
    return array


def _labels(values, length: int, classes: int) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (length,) or not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"openmax: labels must be {length} whole numbers, got {array.dtype} of shape {array.shape}"
        )
    if not length or array.min() < 0 or array.max() >= classes:
        shown = f"{array.min()}..{array.max()}" if length else "none"
        raise UserError(f"openmax: labels must lie in 0..{classes - 1} (known classes only), got {shown}")
    return array.astype(np.int64)


def _names(class_names: Sequence[str] | None, classes: int) -> list[str]:
    if class_names is None:
        return [f"class {index}" for index in range(classes)]
    if len(class_names) != classes:
        raise UserError(f"openmax: {classes} classes, but {len(class_names)} class names")
    return [f"class {index} '{name}'" for index, name in enumerate(class_names)]
