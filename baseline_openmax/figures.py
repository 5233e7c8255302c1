"""Why a BatchNorm network can be surer of noise than of images: the size of what its layers see, and its logits."""

from __future__ import annotations

import numpy as np

from common.plots import style


def sure_of_noise(layer_spread: np.ndarray, logits: dict[str, np.ndarray], pixels: dict[str, np.ndarray]):
    """Pictures, spread of every normalised layer, and the largest logits.

    Parameters
    ----------
    layer_spread : float array (2, L)
        Standard deviation of what each BatchNorm layer gives out before scale and shift: known images, noise.
    logits : mapping
        Name to logits `(n, K)`; their largest ones are drawn.
    pixels : mapping
        Name to one image `(C, H, W)`.
    """
    figure = style.new_figure(12, 4)
    grid = figure.add_gridspec(2, 3, width_ratios=(0.5, 1.1, 1.4))
    for row, (name, image) in enumerate(pixels.items()):
        axes = figure.add_subplot(grid[row, 0])
        picture = image.transpose(1, 2, 0).squeeze()
        axes.imshow(picture / max(picture.max(), 1), cmap="gray", interpolation="nearest")
        axes.set_title(name, fontsize=9, color=style.INK)
        axes.set_axis_off()
    axes = style.dress(figure.add_subplot(grid[:, 1]), "Normalised activations", "running statistics; 1 is what they aim at",
                       "BatchNorm layer", "root mean square")  # fmt: skip
    for index, (values, name) in enumerate(zip(layer_spread, ("known images", "noise"))):
        axes.plot(np.arange(1, len(values) + 1), values, marker="o", linewidth=2, label=name, **style.run_style(index))
    axes.set_ylim(0, 1.3 * layer_spread.max())
    axes.xaxis.get_major_locator().set_params(integer=True)
    style.legend(axes, loc="upper left")
    axes = style.dress(figure.add_subplot(grid[:, 2]), "Largest logit", "the larger, the surer the network", "largest logit",
                       "share per bin")  # fmt: skip
    largest = {name: values.max(1) for name, values in logits.items()}
    edges = np.linspace(min(v.min() for v in largest.values()), max(v.max() for v in largest.values()), 61)
    for (name, values), colour in zip(largest.items(), (style.KNOWN, style.UNKNOWN, style.GREEN)):
        axes.stairs(np.histogram(values, edges)[0] / len(values), edges, fill=True, alpha=0.5, color=colour, label=name)
    style.legend(axes, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1)
    return figure
