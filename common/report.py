"""One self-contained page about a run, or one that compares runs; figures inside, no network needed.

    python -m common.report RUN [RUN ...]                         # RUN/report.html of each
    python -m common.report --compare DIR [DIR ...] --out FILE    # all methods in one table, joint ROC and OSCR
"""

from __future__ import annotations

import base64
import io
import shlex
import string
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from common.arguments import ScriptParser, run_script
from common.errors import UserError
from common.files import atomic
from common.results import SHOWN, interval_cell, number

HERE = Path(__file__).resolve().parent

# What each metric says in one line, and which direction is better. Formulas: common/metrics.
DEFINITIONS = {
    "closed_accuracy": ("known samples put into the right class, nothing rejected", "↑"),
    "auroc": ("a random unknown scores above a random known, ties one half; .5 = chance", "↑"),
    "aupr_known": ("average precision, known positive; chance = share of knowns", "↑"),
    "aupr_unknown": ("average precision, unknown positive; chance = share of unknowns", "↑"),
    "fpr95_known_positive": ("unknowns accepted where 95 % of the knowns are accepted", "↓"),
    "fpr95_unknown_positive": ("knowns rejected where 95 % of the unknowns are rejected", "↓"),
    "tnr95_known_positive": ("unknowns rejected where 95 % of the knowns are accepted", "↑"),
    "detection_accuracy": ("best mean of knowns accepted and unknowns rejected; threshold from test labels", "↑"),
    "oscr": ("area under known samples accepted and right against unknowns accepted", "↑"),
    "oscr_arpl": ("OSCR as the ARPL code sums it, for comparison with published tables", "↑"),
    "ccr_at_fpr_0.0001": ("knowns accepted and right while at most 0.01 % of unknowns are accepted", "↑"),
    "ccr_at_fpr_0.001": ("the same at 0.1 %", "↑"),
    "ccr_at_fpr_0.01": ("the same at 1 %", "↑"),
    "ccr_at_fpr_0.1": ("the same at 10 %", "↑"),
    "macro_f1_validation": ("mean F1 over known classes and unknown; threshold accepts 95 % of held-out knowns", "↑"),
    "macro_f1_train": ("the same, threshold accepts 95 % of the training samples", "↑"),
    "macro_f1_test_quantile": ("the same, threshold accepts 95 % of the test knowns (sees test data)", "↑"),
    "macro_f1_oracle": ("the same, best threshold on the test labels: an upper bound", "↑"),
    "macro_f1_argmax": ("the same, largest of K + 1 probabilities decides, no threshold", "↑"),
    "open_f_micro": ("F-measure of the known classes, counts summed, at the leading threshold", "↑"),
    "open_f_macro": ("F-measure of the known classes, averaged over classes, at the leading threshold", "↑"),
    "unknown_recall_at_95_seen_precision": ("unknowns rejected where 95 % of the accepted are known; not monotone", ""),
    "unknown_recall_at_95_seen_recall": ("unknowns rejected where 95 % of the knowns are accepted", "↑"),
    "nll": ("mean negative log-likelihood of the known samples, in nats", "↓"),
    "ece": ("expected calibration error of the known classes, 15 bins", "↓"),
}

CAPTIONS = {
    "histogram": "Score histogram. The further the groups stand apart, the easier the decision.",
    "scatter": "Score of single samples. Crosses are closed-set mistakes.",
    "roc": "ROC. The ring reads the FPR95 of the table.",
    "precision_recall": "Precision-recall, both polarities. They depend on how many unknowns there are.",
    "oscr": "OSCR. A known sample counts only when it is accepted and put into the right class.",
    "oscr_log": "OSCR with logarithmic false positive rate.",
    "f1_threshold": "F1 against the threshold: how much the choice of the threshold matters.",
    "confusion": "Confusion matrix with unknown as a class of its own.",
    "reliability": "Reliability of the probabilities over known classes.",
    "tsne": "t-SNE of the features.",
    "training": "Training log.",
}


class PageTemplate(string.Template):
    """A page with `@@{name}` placeholders: `$`, `{` and `%` belong to the page's own CSS and JavaScript."""

    delimiter = "@@"


def fill_page(template: str, **values: str) -> str:
    """Return the template file of this folder with its placeholders filled; values are HTML already."""
    return PageTemplate((HERE / template).read_text(encoding="utf-8")).substitute(values)


def table(rows: Iterable[Iterable[str]], head: Iterable[str] = (), kind: str = "") -> str:
    """An HTML table of cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    top = f"<thead><tr>{top}</tr></thead>" if top else ""
    return f'<div class="scroll"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


def picture(figure, name: str) -> str:
    """An HTML figure with the image inside as base64 and its caption."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    text = escape(CAPTIONS[name])
    return f'<figure id="{name}"><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def evaluated(arrays: Mapping) -> dict[str, dict[str, float]]:
    """`evaluate_file` of arrays in memory: all unknown sets together, then each alone."""
    import tempfile

    from common.metrics import evaluate_file
    from common.results import write_scores

    kept = {key: value for key, value in arrays.items() if key not in ("features", "parts", "part_names")}
    with tempfile.TemporaryDirectory() as folder:
        write_scores(Path(folder) / "scores.npz", kept)
        return evaluate_file(Path(folder) / "scores.npz")


def shown(value: float | None) -> str:
    """A metric in a table cell; a dash where it is undefined."""
    return number(None if value is None or value != value else value)


def what_ran(run) -> str:
    """Table of how the run came about: what `meta.json` says, in words."""
    meta = run.meta
    minutes = meta.get("wall_seconds")
    minutes = minutes.get("train") if isinstance(minutes, dict) else minutes
    memory, speed = meta.get("peak_memory_bytes"), meta.get("images_per_second")
    device = ", ".join(str(meta[key]) for key in ("device", "device_name", "precision") if meta.get(key))
    threads = f"{meta['threads']} thread(s)" if meta.get("threads") else ""
    rows = {
        "Trained by": f"<code>{escape(str(meta['command']))}</code>" if meta.get("command") else "",
        "Scored by": f"<code>{escape(run.test_command)}</code>" if run.test_command else "",
        "Seed": escape(str(meta.get("seed", ""))),
        "Started": escape(str(meta.get("start", "")).replace("T", " ")),
        "Code version": f"<code>{escape(str(meta['code_version']))}</code>" if meta.get("code_version") else "",
        "Device": escape(", ".join(text for text in (device, threads) if text)),
        "Training time": f"{minutes / 60:.1f} minutes" if minutes else "",
        "Speed": f"{speed:,.0f} images/s" if speed else "",
        "Peak memory": f"{memory / 2**20:,.0f} MiB" if memory else "",
        "Data": "<br>".join(f"{escape(str(name))} <code>{escape(str(value))}</code>"
                            for name, value in meta.get("data_checksums", {}).items()),
        "Libraries": escape(", ".join(f"{name} {version}" for name, version in meta.get("versions", {}).items())),
    }  # fmt: skip
    filled = [(name, text) for name, text in rows.items() if text]
    if not filled:
        return "<p>There is no meta.json beside these scores, so nothing is known about how they came about.</p>"
    flags = shlex.join(f"{name}={value}" for name, value in run.config.items())
    details = f"<details><summary>All flags</summary><p><code>{escape(flags)}</code></p></details>" if flags else ""
    return table(filled, kind="facts") + details


def metric_rows(found: Mapping[str, Mapping[str, float]]) -> str:
    """Table of every metric with its definition, one column per unknown set."""
    from common.metrics import METRICS

    sources = list(found) if len(found) != 2 else [name for name in found if name != "all"]
    rows = []
    for name in METRICS:
        meaning, better = DEFINITIONS[name]
        values = [f'<span class="number">{shown(found[source][name])}</span>' for source in sources]
        rows.append([f"<code>{name}</code>", better, *values, f'<span class="meaning">{escape(meaning)}</span>'])
    titles = ["all unknown sets" if source == "all" else escape(source) for source in sources]
    return table(rows, ["metric", "", *titles, "definition"], "metrics")


def comparison_rows(methods: Mapping[str, list[Mapping[str, float]]], what: str = "method",
                    minutes: Mapping[str, str] | None = None) -> str:  # fmt: skip
    """Table of the leading metrics, one row per method; the best value of each column is bold."""
    columns = {}
    for name in SHOWN:
        means = {m: float(sum(v[name] for v in values) / len(values)) for m, values in methods.items()}
        defined = [value for value in means.values() if value == value]
        best = (max if DEFINITIONS[name][1] == "↑" else min)(defined, default=None)
        columns[name] = {method: best is not None and round(value, 3) == round(best, 3) for method, value in means.items()}
    rows = []
    for method, values in methods.items():
        cells = []
        for name in SHOWN:
            text = interval_cell(v[name] for v in values) if all(v[name] == v[name] for v in values) else "–"
            bold = ' class="number best"' if columns[name][method] and len(methods) > 1 else ' class="number"'
            cells.append(f"<span{bold}>{text}</span>")
        rows.append([escape(method), *cells, *([minutes.get(method, "–")] if minutes else [])])
    head = [what, *(f"{label} {DEFINITIONS[name][1]}" for name, label in SHOWN.items())]
    return table(rows, [*head, *(["train min."] if minutes else [])], "metrics")


def definitions_of_shown() -> str:
    """The definitions of the leading metrics as one line of HTML."""
    return "; ".join(f"<b>{label}</b> {escape(DEFINITIONS[name][0])}" for name, label in SHOWN.items())


def cards(values: Mapping[str, float]) -> str:
    """The leading metrics as large numbers."""
    return "".join(
        f'<div class="card"><b>{shown(values[name])}</b><span>{label} {DEFINITIONS[name][1]}</span></div>'
        for name, label in SHOWN.items()
    )


def sample_counts(arrays: Mapping) -> str:
    """How many test samples of which kind, in words."""
    from common.plots.parts import test_part, unknown_sources

    part = test_part(arrays)
    unknown = ", ".join(f"{int(mask.sum()):,} {escape(name)}" for name, mask in unknown_sources(part, limit=8))
    names = ", ".join(escape(str(name)) for name in arrays["class_names"][:20])
    more = f" and {len(arrays['class_names']) - 20} more" if len(arrays["class_names"]) > 20 else ""
    return (f"{int((part['target'] >= 0).sum()):,} known test samples of {len(arrays['class_names'])} classes"
            f" ({names}{more}); unknown: {unknown}")  # fmt: skip


def run_page(run, seed: int = 0) -> str:
    """The report of one run as HTML."""
    from common.plots.drawing import CURVES, figures_of
    from common.plots.training import training

    own = next(iter(run.scores))
    counts = sample_counts(run.own_scores)
    found = {name: evaluated(arrays) for name, arrays in run.scores.items()}
    parts = [f'<div class="cards">{cards(found[own]["all"])}</div>', f'<p class="note">{definitions_of_shown()}.</p>']
    if len(found) > 1:
        parts.append("<h2>Scores of this run</h2>")
        parts.append(comparison_rows({name: [values["all"]] for name, values in found.items()}, "score"))
        pictures = [picture(CURVES[name](run.scores), name) for name in ("roc", "oscr")]
        parts.append(f'<div class="figures">{"".join(pictures)}</div>')
    parts.append(f"<h2>Figures: score {escape(own)}</h2>")
    drawn = figures_of(run.own_scores, seed, run.folder / "figures" / "tsne.npz")
    already = ("roc", "oscr") if len(found) > 1 else ()
    pictures = [picture(draw(), name) for name, draw in drawn.items() if name not in already]
    if any("loss" in line for line in run.log):
        pictures.append(picture(training(run.log), "training"))
    parts.append(f'<div class="figures">{"".join(pictures)}</div>')
    if run.page("explorer").exists():
        name = escape(run.page("explorer").name)
        parts.insert(2, f'<p><a href="{name}">Threshold explorer</a>: move the threshold and see every number follow.</p>')
    parts.append(f"<h2>All metrics: score {escape(own)}</h2>{metric_rows(found[own])}")
    parts.append(f"<h2>What ran</h2>{what_ran(run)}")
    return fill_page("report.html", title=escape(run.title), subtitle=f"{counts}. Own score: {escape(own)}.", body="".join(parts))


def comparison_page(runs: list) -> str:
    """The comparing report as HTML: repetitions joined, one row per method and score."""
    from common.plots.drawing import CURVES, compared
    from common.plots.reading import grouped

    groups = grouped(runs)
    methods, minutes = {}, {}
    for label, members in groups.items():
        for name in members[0].scores:
            repeated = [member.scores[name] for member in members if name in member.scores]
            method = label if len(members[0].scores) == 1 else f"{label}  {name}"
            methods[method] = [evaluated(arrays)["all"] for arrays in repeated]
            seconds = [member.meta.get("wall_seconds") for member in members]
            if all(isinstance(value, (int, float)) for value in seconds):
                minutes[method] = f'<span class="number">{sum(seconds) / len(seconds) / 60:.1f}</span>'
    parts = [comparison_rows(methods, minutes=minutes), f'<p class="note">{definitions_of_shown()}.']
    if any(len(members) > 1 for members in groups.values()):
        parts.append(" Runs that differ only in seed or split are joined: mean ± 95 % t-interval.")
    parts.append("</p>" + "".join(f'<p class="warning">{line}</p>' for line in differences(runs)))
    joint = compared(runs)
    pictures = [picture(CURVES[name](joint), name) for name in ("roc", "oscr", "oscr_log", "f1_threshold")]
    note = "" if len(runs) == 1 else '<p class="note">One curve per method: its own score (scores.npz).</p>'
    parts.append(f'<h2>Curves</h2>{note}<div class="figures">{"".join(pictures)}</div><h2>What ran</h2>')
    parts += [f"<h3>{escape(run.title)}</h3>{what_ran(run)}" for run in runs]
    counts = f"{len(runs)} run(s). {sample_counts(runs[0].own_scores)}."
    return fill_page("report.html", title="Methods compared", subtitle=counts, body="".join(parts))


def differences(runs: list) -> list[str]:
    """What keeps the runs from being compared fairly, in words: other classes, other test samples."""
    from common.plots.parts import test_part

    first, found = runs[0], []
    for run in runs[1:]:
        a, b = test_part(first.own_scores), test_part(run.own_scores)
        if [str(n) for n in a["class_names"]] != [str(n) for n in b["class_names"]]:
            found.append(f"{escape(run.title)} knows other classes than {escape(first.title)}: not the same task.")
        for side, mask in (("known", lambda part: part["target"] >= 0), ("unknown", lambda part: part["target"] < 0)):
            ours, theirs = int(mask(a).sum()), int(mask(b).sum())
            if ours != theirs:
                found.append(f"{escape(run.title)} was tested on {theirs:,} {side} samples, {escape(first.title)} on {ours:,}.")
    return found


def write_report(where, out: str | Path | None = None, seed: int = 0) -> Path:
    """Write the page of a run (directory, name or scores file) to `out`, else `report.html`; returns its path."""
    from common.plots.reading import read_run

    run = read_run(where)
    return write_page(Path(out) if out else run.page("report"), run_page(run, seed))


def write_comparison(where: Iterable, out: str | Path) -> Path:
    """Write the page that compares several runs to the file `out`; returns its path."""
    from common.plots.reading import read_run

    return write_page(Path(out), comparison_page([read_run(one) for one in where]))


def write_page(path: Path, text: str) -> Path:
    """Write a page whole or not at all."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(prog="python -m common.report", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run directory, name of a run, or scores file (.npz)")
    parser.add_argument("--compare", nargs="+", default=[], metavar="DIR", help="runs to compare on one page")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file of the page: the comparing one, or that of one run")
    parser.add_argument("--seed", type=int, default=0, help="seed of subsamples, jitter and t-SNE in the figures")
    return parser


def main(argv=None) -> None:
    args = get_args_parser().parse_args(argv)
    if not args.runs and not args.compare:
        raise UserError("name runs to report on, or --compare DIR ... --out FILE")
    if args.compare and not args.out:
        raise UserError("--compare DIR ... needs --out FILE, the page to write")
    if args.out and len(args.runs) + bool(args.compare) > 1:
        raise UserError("--out names one page; give one run, or --compare, with it")
    for where in args.runs:
        print(write_report(where, args.out, args.seed))
    if args.compare:
        print(write_comparison(args.compare, args.out))


if __name__ == "__main__":
    run_script(main)
