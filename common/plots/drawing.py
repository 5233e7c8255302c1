"""Draw every figure of a run, or of several runs on one axis, into files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.arguments import ScriptParser
from common.plots import classes, curves, distributions, embedding
from common.plots.parts import Scores, test_part
from common.plots.reading import StoredRun, grouped, pick, read_run
from common.plots.style import save

CURVES = {
    "roc": curves.roc,
    "oscr": curves.oscr,
    "oscr_log": lambda runs: curves.oscr(runs, log=True),
    "f1_threshold": curves.f1_threshold,
    "precision_recall": curves.precision_recall,
}


def figures_of(scores: Scores, seed: int = 0, cache: Path | None = None) -> dict[str, Callable]:
    """Return `{name: function that draws it}` of every figure that these scores can give, in reading order."""
    drawn = {
        "histogram": lambda: distributions.histogram(scores),
        "scatter": lambda: distributions.scatter(scores, seed),
        **{name: (lambda draw=draw: draw(scores)) for name, draw in CURVES.items()},
        "confusion": lambda: classes.confusion_matrix(scores),
    }
    if "logits" in scores or "probabilities" in scores:
        drawn["reliability"] = lambda: classes.reliability(scores)
    if "features" in scores:
        drawn["tsne"] = lambda: embedding.tsne(scores, seed, cache)
    return drawn


def compared(runs: list[StoredRun], score: str | None = None) -> dict:
    """Return what the curve functions take for several runs: repetitions joined; one run: each of its scores."""
    if len(runs) == 1:
        return dict(runs[0].scores) if score is None else {score: pick(runs[0], score)}
    return {label: [pick(run, score) for run in members] for label, members in grouped(runs, score).items()}


def draw_run(run: StoredRun, folder: Path, score: str | None = None, seed: int = 0, svg: bool = False,
             only: list[str] | None = None) -> list[Path]:  # fmt: skip
    """Write the figures of one run; returns their paths."""
    scores = pick(run, score)
    test_part(scores)  # an error now, not after half of the figures
    drawn = figures_of(scores, seed, folder / "tsne.npz")
    if only and "tsne" in only:
        drawn["tsne"] = lambda: embedding.tsne(scores, seed, folder / "tsne.npz")
    if only and "reliability" in only:
        drawn["reliability"] = lambda: classes.reliability(scores)
    prefix = f"{score}_" if score else ""
    return [save(draw(), folder / f"{prefix}{name}.png", svg) for name, draw in drawn.items() if not only or name in only]


def get_args_parser(paper: str | None = None) -> ScriptParser:
    program = {"prog": "python -m common.plots"} if paper is None else {}
    about = "Draw every figure of a run, or of several runs on one axis, from scores.npz alone."
    parser = ScriptParser(description=about, **program)
    names = [*CURVES, "histogram", "scatter", "confusion", "reliability", "tsne"]
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory, name of a run, or scores file (.npz)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the figures; else figures/ of the (first) run")
    parser.add_argument("--score", metavar="NAME", help="which of the run's scores (test.py --score); else its own")
    parser.add_argument("--figures", nargs="+", choices=names, metavar="FIGURE", help=f"only these: {', '.join(names)}")
    parser.add_argument("--seed", type=int, default=0, help="seed of subsamples, jitter and t-SNE")
    parser.add_argument("--svg", action="store_true", help="write SVG beside PNG")
    return parser


def main(argv=None, paper: str | None = None) -> None:
    parser = get_args_parser(paper)
    args = parser.parse_args(argv)
    curves_only = [name for name in args.figures or CURVES if name in CURVES]
    if len(args.runs) > 1 and not curves_only:
        parser.error(f"several runs share an axis only in {', '.join(CURVES)}; give one run for {args.figures[0]}")
    runs = [read_run(where, paper) for where in args.runs]
    folder = args.out or runs[0].folder / "figures"
    if len(runs) == 1:
        written = draw_run(runs[0], folder, args.score, args.seed, args.svg, args.figures)
    else:
        together = compared(runs, args.score)
        written = [save(CURVES[name](together), folder / f"compare_{name}.png", args.svg) for name in curves_only]
    for path in written:
        print(path)
