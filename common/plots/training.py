"""The training log as a figure."""

from __future__ import annotations

from common.plots import style


def training(log: list[dict]):
    """Loss and, where logged, validation accuracy against the epoch.

    Parameters
    ----------
    log : list of dict
        Lines of `log.jsonl`: `epoch` from 0, `loss`, optionally `validation_accuracy`.

    Returns
    -------
    matplotlib Figure
    """
    figure = style.new_figure(6.4, 4.6)
    axes = style.dress(figure.add_subplot(), "Training", "loss: mean over the epoch; validation: held-out known samples",
                       "epochs done", "training loss")  # fmt: skip
    epochs = [line["epoch"] + 1 for line in log]
    axes.plot(epochs, [line.get("loss") for line in log], linewidth=2, label="training loss", **style.run_style(0))
    handles = axes.get_lines()
    accuracy = [line.get("validation_accuracy") for line in log]
    if all(isinstance(value, (int, float)) for value in accuracy):
        right = style.dress(axes.twinx(), "", "", "", "validation accuracy", grid=False)
        right.spines[["left", "bottom"]].set_visible(False)
        right.spines["right"].set_visible(True)
        handles = [*handles, *right.plot(epochs, accuracy, linewidth=2, label="validation accuracy", **style.run_style(1))]
        right.set_ylim(0, 1.02)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    style.legend(axes, handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return figure
