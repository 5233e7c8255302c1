"""CSSR's reconstruction errors as images: where in a picture which class's auto-encoder fails."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.plots import style


def error_maps(pixels: np.ndarray, maps: np.ndarray, predicted: np.ndarray, label: np.ndarray, class_names: Sequence[str],
               kind: str):  # fmt: skip
    """One row per image: the image, then the error of each class's auto-encoder at every position of the feature map.

    Parameters
    ----------
    pixels : uint8 array (n, C, H, W)
    maps : float array (n, K, h, w)
        Errors e_i(p); one colour scale per row, as images differ in the size of their features.
    predicted, label : int arrays (n,)
        Predicted class; true class, -1 unknown.
    class_names : sequence of str
        K names.
    kind : str
        `pcssr`: the predicted class has the smallest error; `rcssr`: the largest.
    """
    rows, columns = len(pixels), len(class_names) + 1
    figure = style.new_figure(1.12 * columns + 0.9, 1.08 * rows + 0.75)
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, (image, errors) in enumerate(zip(pixels, maps)):
        first, *others = panels[row]
        picture = image.transpose(1, 2, 0).squeeze()
        first.imshow(picture / max(picture.max(), 1), cmap="gray", interpolation="nearest")
        name = "unknown" if label[row] < 0 else class_names[label[row]]
        first.set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center",
                         color=style.UNKNOWN if label[row] < 0 else style.INK)  # fmt: skip
        for k, axes in enumerate(others):
            axes.imshow(errors[k], cmap="viridis", vmin=errors.min(), vmax=errors.max(), interpolation="nearest")
            axes.set_xlabel(f"{errors[k].mean():.3g}", fontsize=6.5, labelpad=1)
            for spine in axes.spines.values():
                spine.set(visible=k == predicted[row], color=style.VERMILION, linewidth=2.6)
    for axes, name in zip(panels[0], ["image", *class_names]):
        axes.set_title(name, fontsize=8.5, color=style.INK)
    for axes in panels.ravel():
        axes.set(xticks=[], yticks=[])
    extreme = "smallest" if kind == "pcssr" else "largest"
    figure.suptitle(f"{kind}: error of each class's auto-encoder (bright = large; number: mean)\nframe: predicted class, the one"
                    f" with the {extreme} error", x=0.01, ha="left", fontsize=9, color=style.FAINT)  # fmt: skip
    return figure
