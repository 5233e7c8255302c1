"""Figures from saved scores alone: no model, no data, no GPU.

Every function takes the arrays of a `scores.npz` (`common.results.read_scores`) and returns a matplotlib `Figure`;
`save` writes it. The curves take several runs as well, with bands over seeds and splits (`common.plots.curves`)::

    from common.plots import read_run, roc, save
    save(roc({"mls": read_run("a").own_scores, "msp": read_run("b").own_scores}), "roc.png")

`python -m common.plots RUN [RUN ...]` draws everything into `RUN/figures`.
"""

from common.plots.classes import confusion_matrix, reliability
from common.plots.curves import f1_threshold, oscr, precision_recall, roc
from common.plots.distributions import histogram, scatter
from common.plots.drawing import figures_of
from common.plots.embedding import tsne
from common.plots.reading import read_run
from common.plots.style import save

__all__ = [
    "confusion_matrix",
    "f1_threshold",
    "figures_of",
    "histogram",
    "oscr",
    "precision_recall",
    "read_run",
    "reliability",
    "roc",
    "save",
    "scatter",
    "tsne",
]
