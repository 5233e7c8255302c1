"""The figures of crosr_bda's notebook, and those that show its mechanism; from arrays alone.

Titles and axis names are those of the published figures, spelling included, so that the two can be laid side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common.plots import style

# Names of the published files; `openmax_scores` takes tail size and softmax.
FILES = {
    "openmax_scores": "openmax_scores_maxpool_{tail}_softmax_{softmax}.png",
    "largest_logits": "activation_values_argmax_unnormalized_values.png",
    "w_scores": "w_score_values_pred_class.png",
    "mean_vector": "mav_class_{label}.png",
    "normal_fit": "normal_distribution_fitting_for_classes.png",
    "baseline_scores": "baseline_scores.png",
}


def in_order(target: np.ndarray) -> np.ndarray:
    """Order of the published scatters: known images class by class, then the unknown ones."""
    return np.argsort(np.where(target < 0, np.iinfo(np.int64).max, target), kind="stable")


def size_of(target: np.ndarray) -> float:
    """Diameter of a mark in points: small where there are thousands."""
    return float(np.sqrt(np.clip(2e4 / len(target), 2.5, 14)))


def _scatter(values, target, title: str, note: str, x: str, colours=None):
    order = in_order(target)
    known = int((target >= 0).sum())
    figure = style.new_figure(10, 4.2)
    axes = style.dress(figure.add_subplot(), title, note, x, "Value")
    place, size = np.arange(len(order)), size_of(target) ** 2
    sides = ((place < known, style.KNOWN, "in_dist_scores"), (place >= known, style.UNKNOWN, "open_set_scores"))
    for chosen, colour, label in sides:
        axes.scatter(place[chosen], values[order][chosen], s=size, linewidths=0, alpha=0.55, label=label,
                     **({"color": colour} if colours is None else {"color": colours[order][chosen]}))  # fmt: skip
    axes.axvline(known, color=style.FAINT, linewidth=0.8)
    axes.margins(x=0.01)
    return figure, axes


def openmax_scores(p_unknown: np.ndarray, target: np.ndarray):
    """Scatter of p(unknown) of every test image `(N,)`, known ones left."""
    figure, axes = _scatter(p_unknown, target, "OpenMax Scores of outlying class",
                            "probability of unknown; left of the line: known test images", "Index")  # fmt: skip
    axes.set_ylim(-0.02, 1.02)
    style.legend(axes, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=6 / size_of(target))
    return figure


def largest_logits(logits: np.ndarray, target: np.ndarray, class_names: Sequence[str]):
    """Scatter of the largest logit of every test image, `logits (N, K)`, coloured by predicted class."""
    from matplotlib import colormaps
    from matplotlib.lines import Line2D

    predicted = logits.argmax(1)
    palette = colormaps["tab10"](np.arange(len(class_names)) % 10)
    figure, axes = _scatter(
        logits.max(1), target, "Unnormalized Logit Value of class with highest score",
        "for inlying (left) and outyling (right) datapoints; colour: predicted class", "Position", palette[predicted],
    )  # fmt: skip
    marks = [Line2D([], [], marker="o", linestyle="", color=palette[k], label=name) for k, name in enumerate(class_names)]
    style.legend(axes, handles=marks, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def outlier_classes(predicted: np.ndarray, class_names: Sequence[str]):
    """Bar chart of the classes that unknown images, predicted as `predicted (N,)`, fall into."""
    counts = np.bincount(predicted, minlength=len(class_names))
    figure = style.new_figure(7, 3.8)
    axes = style.dress(figure.add_subplot(), "Predicted class of the outliers", f"{len(predicted):,} unknown images",
                       "class", "count")  # fmt: skip
    bars = axes.bar(range(len(counts)), counts, color=style.KNOWN)
    axes.bar_label(bars, fontsize=8, color=style.INK)
    axes.set_xticks(range(len(counts)), class_names, rotation=30 if max(map(len, class_names)) > 3 else 0)
    return figure


def mean_vector(mean: np.ndarray, classes: int, label: int, name: str):
    """The mean activation vector `(D,)` of a class, every entry with its index; logits first, then z_L to z_1."""
    figure = style.new_figure(11, 4.2)
    title = f"Latent representations of Mean Activation Vector (MAV) of class {label}"
    axes = style.dress(figure.add_subplot(), title, f"class {label}: {name}; dotted: where the logits end", "Index", "Value")
    index = np.arange(len(mean))
    logits = index < classes
    axes.vlines(index, 0, mean, color=style.GRID, linewidth=1, zorder=0.5)
    axes.scatter(index[logits], mean[logits], s=16, color=style.UNKNOWN, label="logits")
    axes.scatter(index[~logits], mean[~logits], s=12, color=style.KNOWN, label="pooled latents")
    for place, value in zip(index, mean):
        axes.annotate(str(place), (place, value), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=5.5,
                      color=style.INK)  # fmt: skip
    axes.axvline(classes - 0.5, color=style.FAINT, linewidth=0.9, linestyle=":")
    axes.margins(x=0.01)
    style.legend(axes, loc="upper right")
    return figure


def mean_vectors(means: np.ndarray, classes: int, class_names: Sequence[str]):
    """The mean activation vectors `(K, D)` of all classes as one image."""
    figure = style.new_figure(11, 1.6 + 0.24 * len(means))
    axes = style.dress(figure.add_subplot(), "Mean activation vectors of all classes",
                       "dotted: where the logits end; white: 0", "Index", "", grid=False)  # fmt: skip
    largest = np.abs(means).max()
    image = axes.imshow(means, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
    axes.axvline(classes - 0.5, color=style.INK, linewidth=1, linestyle=":")
    axes.set_yticks(range(len(means)), class_names)
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01).outline.set_visible(False)
    return figure


def w_scores(w_predicted: np.ndarray, target: np.ndarray):
    """Scatter of the w-score of the predicted class `(N,)`."""
    figure, axes = _scatter(w_predicted, target, "W-Scores (outlyingness) of predicted class",
                            "for inlying (left) and outlying (right) datapoints", "Position")  # fmt: skip
    axes.set_ylim(-0.02, 1.02)
    return figure


def normal_fit(train: np.ndarray, outliers: np.ndarray, mean: float, deviation: float, name: str):
    """Histograms of the largest logit: training images of a class, outliers predicted as it, the fitted normal density."""
    figure = style.new_figure(7, 4)
    title = f"Fit results for class {name}: mu = {mean:.2f}, std = {deviation:.2f}"
    note = f"{len(train):,} correctly classified training images, {len(outliers):,} outliers predicted as this class"
    axes = style.dress(figure.add_subplot(), title, note, "largest logit", "density")
    axes.hist(train, bins=25, density=True, alpha=0.6, color=style.GREEN, label="training images")
    if len(outliers):
        axes.hist(outliers, bins=25, density=True, alpha=0.6, color=style.UNKNOWN, label="outliers")
    x = np.linspace(*axes.get_xlim(), 300)
    density = np.exp(-(((x - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
    axes.plot(x, density, color=style.BLACK, linewidth=2, label="normal density")
    style.legend(axes, loc="upper right")
    return figure


def baseline_scores(score: np.ndarray, target: np.ndarray):
    """Scatter of the z-score baseline `(N,)`."""
    figure, axes = _scatter(score, target, "Baseline Scores for outlier identification",
                            "distance of the largest logit to its class's mean, in standard deviations", "Index")  # fmt: skip
    axes.set_ylim(-0.1, float(np.quantile(score, 0.999)) * 1.1)
    style.legend(axes, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=6 / size_of(target))
    return figure


def settings_study(rows: Sequence[Mapping], known: int, unknown: int):
    """Unknown images found, known ones rejected and AUROC against the tail size, a line for each distance.

    `rows`: `tail_size`, `distance`, `true_positives`, `false_positives`, `auroc`; `known`, `unknown`: images of each side.
    """
    figure = style.new_figure(11, 3.9)
    panels = (("true_positives", "Unknown images found", unknown), ("false_positives", "Known images rejected", known),
              ("auroc", "AUROC of p(unknown)", 1))  # fmt: skip
    for axes, (key, title, total) in zip(figure.subplots(1, 3), panels):
        style.dress(axes, title, "by arg max over K + 1" if total > 1 else "no threshold", "tail size",
                    "AUROC" if total == 1 else "share of the side")  # fmt: skip
        for index, distance in enumerate(dict.fromkeys(row["distance"] for row in rows)):
            line = [row for row in rows if row["distance"] == distance]
            axes.plot([row["tail_size"] for row in line], [row[key] / total for row in line], marker="o", markersize=4,
                      label=distance, **style.run_style(index))  # fmt: skip
        axes.set(xscale="log")
        tails = sorted({row["tail_size"] for row in rows})
        axes.set_xticks(tails, [str(tail) for tail in tails], rotation=45)
        axes.minorticks_off()
    style.legend(axes, loc="best")
    return figure


def far_tail(distance, own_logit, tail: int, outliers, name: str):
    """Who owns the tail of a class: distance to its mean against own logit, and where the outliers lie.

    Parameters
    ----------
    distance, own_logit : float arrays (n,)
        Of the class's correctly classified training images.
    tail : int
        Largest distances that the Weibull distribution is fitted to.
    outliers : float array (m,)
        Distances of the unknown images predicted as the class.
    name : str
    """
    order = np.argsort(distance)
    far = order[-tail:]
    start = distance[far[0]]
    figure = style.new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    style.dress(left, f"Who is in the tail of class {name}",
                f"correctly classified training images; red: the {tail} farthest from the mean",
                "distance to the class's mean", "own logit")  # fmt: skip
    left.scatter(distance[order[:-tail]], own_logit[order[:-tail]], s=5, alpha=0.35, linewidths=0, color=style.KNOWN)
    left.scatter(distance[far], own_logit[far], s=9, alpha=0.8, linewidths=0, color=style.UNKNOWN)
    left.axhline(own_logit.mean(), color=style.INK, linewidth=1, linestyle="--",
                 label=f"mean of the class {own_logit.mean():.1f}")  # fmt: skip
    left.axhline(own_logit[far].mean(), color=style.UNKNOWN, linewidth=1.2, linestyle="--",
                 label=f"mean of the tail {own_logit[far].mean():.1f}")  # fmt: skip
    style.legend(left, loc="best")
    style.dress(right, f"Where the outliers of class {name} lie", "where a Weibull tail begins, w is still about 0",
                "distance to the class's mean", "share per bin")  # fmt: skip
    edges = np.linspace(0, max(distance.max(), outliers.max(initial=0)), 50)
    sides = ((distance, style.KNOWN, "training images"), (outliers, style.UNKNOWN, "outliers predicted as it"))
    for values, colour, label in sides:
        share = np.histogram(values, edges)[0] / max(len(values), 1)
        right.stairs(share, edges, fill=True, alpha=0.45, color=colour, label=f"{label} ({len(values):,})")
    right.axvline(start, color=style.INK, linewidth=1.3, linestyle="--", label=f"the tail begins at {start:.1f}")
    style.legend(right, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return figure


def walk(pixels: np.ndarray, logits: np.ndarray, w: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]):
    """One outlier on its way through OpenMax: image `(C, H, W)`, logits `(K,)`, w-scores `(K,)`, probabilities `(K + 1,)`."""
    figure = style.new_figure(12, 3.6)
    picture, *panels = figure.subplots(1, 4, width_ratios=(0.75, 1, 1, 1.1))
    image = pixels.transpose(1, 2, 0).squeeze()
    picture.imshow(image / max(image.max(), 1), cmap="gray", interpolation="nearest")
    picture.set_axis_off()
    style.dress(picture, "1. The outlier", "as the network sees it", "", "", grid=False)
    best = int(logits.argmax())
    shown = (("2. Logits", "red: predicted class", logits, class_names),
             ("3.-6. w-scores", "1: far from the class", w, class_names),
             ("7. Probabilities", "unknown is last", probabilities, [*class_names, "unknown"]))  # fmt: skip
    for axes, (title, note, values, names) in zip(panels, shown):
        style.dress(axes, title, note, "", "")
        colours = [style.UNKNOWN if k == best else style.KNOWN for k in range(len(values))]
        axes.barh(range(len(values)), values, color=colours)
        axes.set_yticks(range(len(values)), names, fontsize=7.5)
        axes.invert_yaxis()
    return figure
