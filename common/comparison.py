"""Published beside ours: the files that `python -m common.reproduce table` generates from rows and records alone."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

from common import head_to_head, ledger, results, staleness
from common.arguments import ROOT
from common.errors import UserError
from common.files import atomic

FIGURE = ROOT / "results" / "figures" / "paper_vs_ours.png"
BLOCK = re.compile(r"(<!-- ledger:(?P<query>[^>]*?) -->\n)(?P<body>.*?)(<!-- end ledger -->)", re.S)
METRIC_NAMES = {
    "auroc": "AUROC", "closed_accuracy": "closed acc.", "macro_f1_test_quantile": "macro-F1 at 95 % of test knowns",
    "macro_f1_oracle": "macro-F1, best threshold", "macro_f1_argmax": "macro-F1, argmax", "oscr": "OSCR",
    "tnr95_known_positive": "TNR at 95 % TPR", "detection_accuracy": "detection acc.", "aupr_known": "AUPR known",
    "aupr_unknown": "AUPR unknown", "macro_f1_validation": "macro-F1, held-out threshold",
    "macro_f1_unstated": "macro-F1, rule not stated", "open_accuracy": "open acc.", "training_hours": "training hours",
    "fpr95_known_positive": "FPR95, known positive", "fpr95_unknown_positive": "FPR95, unknown positive",
    "unknown_recall_at_95_seen_precision": "unknown recall at 95 % known precision",
}  # fmt: skip
# Verdicts on a published value that has a record, as they begin.
JUDGED = ("reproduced", "in the interval", "better", "worse")
HONEST = "macro_f1_validation"
# Unknown recall where 95 % of what is called known is known falls as detectors improve: deep-osr's metric, as it defines it.
SMALLER_IS_BETTER = {"fpr95_known_positive", "fpr95_unknown_positive", "training_hours", "unknown_recall_at_95_seen_precision"}


class Comparison(NamedTuple):
    """A row's own value: mean and half of its 95 % interval (None for a single run), runs, recipe, verdict."""

    mean: float | None
    half: float | None
    honest: float | None
    count: int
    recipe: str
    verdict: str

    @property
    def ours(self) -> str:
        if self.mean is None:
            return "not run"
        return results.number(self.mean) + (f" ± {results.number(self.half)}" if self.half is not None else "")


def compared(row: ledger.Row, absent: frozenset[str] = frozenset()) -> Comparison:
    """Compare a row with the records of the first of its recipes that has any.

    Parameters
    ----------
    row : Row
        One published value.
    absent : frozenset of str
        Data sets that nobody had when the records were made.
    """
    from common.metrics import mean_interval

    for answer in row.answers:
        found = staleness.current(ledger.records(answer))
        holding = [r for r in found if r["metrics"][ledger.source_of(r, answer.unknown)].get(row.metric) is not None]
        values = [r["metrics"][ledger.source_of(r, answer.unknown)][row.metric] for r in holding]
        if not values:
            continue
        same = [results.experiment(r) for r in holding]
        mean, low, _ = mean_interval(values, groups=same)
        half = mean - low if len(set(same)) > 1 else None
        honest = [v for r in found if (v := r["metrics"][ledger.source_of(r, answer.unknown)].get(HONEST)) is not None]
        beside = sum(honest) / len(honest) if honest and row.metric.startswith("macro_f1") else None
        remarks = [answer.recipe.note] if answer.recipe.note else []
        wanted = {(split, seed) for split in answer.recipe.splits for seed in answer.recipe.seeds}
        missing = wanted - {(r["split"], r["seed"]) for r in found}
        if missing:
            remarks.append(f"{len(wanted) - len(missing)} of {len(wanted)} runs")
        if len(set(same)) < len(same):
            remarks.append(f"{len(set(same))} different runs: the published list has a split twice")
        if staleness.shown_recipe(found[0]) != found[0]["table"]:
            remarks.append("trained with earlier flags")
        rebuilt = sum(ledger.source_of(r, answer.unknown) != answer.unknown for r in found)
        if rebuilt:
            remarks.append("rebuilt data" if rebuilt == len(found) else f"rebuilt data in {rebuilt}")
        text = "; ".join([judged(row, mean, None if missing else half), *remarks])
        return Comparison(mean, half, beside, len(values), answer.recipe.id, text)
    if not row.answers:
        return Comparison(None, None, None, 0, "", f"not comparable: {row.reason}")
    needed = [name for name in (*row.answers[0].recipe.data[:1], row.unknown) if name in absent]
    verdict = f"data missing: {', '.join(dict.fromkeys(needed))}" if needed else "not run"
    return Comparison(None, None, None, 0, "", verdict)


def judged(row: ledger.Row, mean: float, half: float | None) -> str:
    """`reproduced` within the margin, else `better` or `worse by`, and whether the interval (half of it), if wide, holds it."""
    if row.published is None:
        return "no published value"
    difference = mean - row.published
    gain = -difference if row.metric in SMALLER_IS_BETTER else difference
    if abs(difference) <= ledger.MARGIN.get(row.metric, ledger.OTHER_MARGIN):
        return "reproduced"
    by = f"{'better' if gain > 0 else 'worse'} by {results.number(abs(difference))}"
    return f"in the interval, {by}" if abs(difference) <= (half or 0.0) else by


def absent_data(book: ledger.Ledger) -> frozenset[str]:
    """Data sets that the folder's rows.json declares as not at hand."""
    return frozenset(book.data_missing)


def markdown(book: ledger.Ledger, table: str | None = None) -> str:
    """Markdown tables of a paper's rows, one for each published table."""
    parts = []
    for name, title in book.tables.items():
        rows = [row for row in book.rows if row.table == name]
        if table not in (None, name) or not rows:
            continue
        cells = []
        for row in rows:
            found = compared(row, absent_data(book))
            honest = results.number(found.honest) if found.honest is not None else ""
            metric = METRIC_NAMES[row.metric]
            published = "none" if row.published is None else results.number(row.published)
            cells.append([row.label, row.known, row.unknown, metric, published, row.certainty, found.ours,
                          str(found.count or ""), honest, found.verdict])  # fmt: skip
        header = ["row", "known", "unknown", "metric", "published", "read in", "ours", "runs", "held-out macro-F1", "verdict"]
        parts.append(f"**{title}**\n\n{results.table_of(header, cells)}")
    return "\n\n".join(parts)


def wide(book: ledger.Ledger, table: str) -> str:
    """A Markdown table of a paper's table: rows by label, a column for each unknown set and metric, `published → ours`."""
    rows = [row for row in book.rows if row.table == table]
    columns = list(dict.fromkeys((row.known, row.unknown, row.metric) for row in rows))
    known = "" if len({row.known for row in rows}) > 1 else f"; known: {rows[0].known}"
    cells: dict[str, dict[tuple, str]] = {}
    for row in rows:
        ours = compared(row, absent_data(book)).ours or "not run"
        text = ours if row.published is None else f"{results.number(row.published)} → {ours}"
        cells.setdefault(row.label, {})[row.known, row.unknown, row.metric] = text
    header = ["", *(f"{'' if known else f'{k} / '}{unknown}, {METRIC_NAMES[metric]}" for k, unknown, metric in columns)]
    body = ([label, *(found.get(column, "–") for column in columns)] for label, found in cells.items())
    return f"**{book.tables[table]}{known}**\n\n{results.table_of(header, body)}"


def as_csv(book: ledger.Ledger) -> str:
    """All rows of a paper as comma-separated values, full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "table", "label", "known", "unknown", "metric", "published", "certainty", "source", "ours",
                     "half_interval", "runs", "macro_f1_validation", "recipe", "verdict"])  # fmt: skip
    for row in book.rows:
        found = compared(row, absent_data(book))
        cells = [None if value is None else round(value, 6) for value in (found.mean, found.half)]
        honest = None if found.honest is None else round(found.honest, 6)
        writer.writerow([row.id, row.table, row.label, row.known, row.unknown, row.metric, row.published, row.certainty,
                         row.source, *cells, found.count, honest, found.recipe, found.verdict])  # fmt: skip
    return text.getvalue()


def summary(books: list[ledger.Ledger]) -> str:
    """How many rows there are and what became of them, as a Markdown table; of those judged, how many by recalled values."""
    kinds = (*JUDGED, "no published value", "not run", "data missing", "not comparable")
    rows = []
    for book in books:
        verdicts = [(compared(row, absent_data(book)).verdict, row.certainty) for row in book.rows]
        cells = []
        for kind in kinds:
            found = [certainty for verdict, certainty in verdicts if verdict.startswith(kind)]
            recalled = found.count("recalled") if kind in JUDGED else 0
            cells.append(f"{len(found)} ({recalled} recalled)" if recalled else str(len(found)))
        rows.append([book.paper, str(len(book.rows)), *cells])
    return results.table_of(["paper", "rows", *kinds], rows)


def page(books: list[ledger.Ledger]) -> str:
    """The text of results/README.md."""
    parts = [PREFACE, summary(books), "![published and ours, row by row](figures/paper_vs_ours.png)"]
    parts += [HEAD_TO_HEAD, head_to_head.markdown()]
    for book in books:
        parts += [f"## {book.paper}", markdown(book)]
    return "\n\n".join(parts) + "\n"


PREFACE = """# Published and ours

Generated by `python -m common.reproduce table` from each folder's `rows.json` and the records in `records/`; nothing here is
typed by hand. *Read in*: `paper` = read in the paper or a transcription of it, `quoted by` = in a later paper, `program` =
in the pages or files of a released program, `recomputed` = computed from such files, `recalled` = from memory, unverified,
`no paper` = a row of this repository. *Ours*: mean ± half of the 95 % t-interval over splits and
seeds (a split that a published list holds twice is one observation of it). The verdict is `reproduced` when the published value
lies within .010 (AUROC, accuracy, OSCR) or .020 (other metrics) of ours, `in the interval` when it is farther away but inside
the interval over all runs of its recipe, which is wide where splits differ: undecided rather than confirmed. Remarks behind it
name a reduced recipe, missing runs, or data that were rebuilt. Beside a macro-F1 in a paper's convention stands the one whose
threshold comes from held-out known images. Every metric of every recorded score is in [scores/](scores/)."""


HEAD_TO_HEAD = """## Head to head

The methods on the same data and splits, each in its recipe of that name, by their difference to the maximum logit of plain
softmax training (means of different numbers of splits cannot be ranked). It is taken run by run: ± is half of the 95 %
t-interval over runs, or, for a single run, of DeLong's interval over the test images ("images"), which knows nothing of
the chance of training. *Arithmetic*: bf16 where the CPU has it. *Cost*: a training's wall time over that of plain softmax
training, measured in one run by `benchmarks/methods.py`; `1 +`: after the reference's training; –: not measured."""


def findings(names: list[str]) -> str:
    """Statements of `results/findings/PAPER/NAME.json`, with what each run found and its verdict, as a Markdown table."""
    files = [json.loads((ROOT / "results" / "findings" / f"{name}.json").read_text()) for name in names]
    cells = ([*(rows[0][key] for key in ("name", "statement", "published")),
              *(f"**{row['verdict']}**: {row['ours']}" for row in rows)]
             for rows in zip(*(file["findings"] for file in files)))  # fmt: skip
    return results.table_of(["", "statement", "published", *(file["title"] for file in files)], cells)


def weights() -> str:
    """The committed checkpoints, with what their records hold for the first score of the head to head, as a Markdown table."""
    from common.checkpoints import read_manifest

    records = {(record["paper"], Path(record["path"]).stem): record for record in results.read_records()}
    rows = []
    for name, entry in read_manifest().items():
        found = [records[entry["paper"], stem] for stem in entry["expected"] if (entry["paper"], stem) in records]
        record = next((r for method in head_to_head.SCORES[entry["paper"]] for r in found if r["method"] == method), None)
        size = f"{sum(file['size'] for file in entry['files']) / 1e6:.1f}"
        if record:
            by_set = results.by_source(record["metrics"])
            accuracy = results.number(next(iter(by_set.values()))["closed_accuracy"])
            aurocs = ", ".join(f"{source} {results.number(values['auroc'])}" for source, values in by_set.items())
            rows.append([f"`{name}`", size, f"{record['data']}, {record['split']}", accuracy, f"{record['method']}: {aurocs}"])
        else:
            rows.append([f"`{name}`", size, "an auto-encoder", "–", "–"])
    return results.table_of(["name", "MB", "known", "closed acc.", "AUROC"], rows)


def filled(text: str) -> str:
    """Fill every `<!-- ledger: ... -->` block of a Markdown text.

    `paper=NAME` (and `table=NAME`): that paper's rows, with `view=wide` the unknown sets side by side; `summary=yes`: the
    counts of verdicts; `head_to_head=RECIPE` (and `splits=FAMILY`): the methods beside each other; `overview=RECIPE`: their
    differences in one table; `findings=PAPER/NAME,PAPER/NAME`: statements checked on runs; `checkpoints=yes`: the
    committed weights.
    """

    def fill(match):
        query = dict(pair.split("=", 1) for pair in match["query"].split())
        if query.get("summary"):
            return f"{match[1]}{summary(list(ledger.ledgers()))}\n{match[4]}"
        if query.get("head_to_head"):
            return f"{match[1]}{head_to_head.markdown(table=query['head_to_head'], splits=query.get('splits'))}\n{match[4]}"
        if query.get("overview"):
            return f"{match[1]}{head_to_head.overview(query['overview'])}\n{match[4]}"
        if query.get("checkpoints"):
            return f"{match[1]}{weights()}\n{match[4]}"
        if query.get("findings"):
            return f"{match[1]}{findings(query['findings'].split(','))}\n{match[4]}"
        shown = wide if query.get("view") == "wide" else markdown
        return f"{match[1]}{shown(ledger.read(query['paper']), query.get('table'))}\n{match[4]}"

    return BLOCK.sub(fill, text)


def generated() -> dict[Path, str]:
    """Every generated text file and its content now."""
    books = list(ledger.ledgers())
    files = {ROOT / "results" / f"{book.paper}.csv": as_csv(book) for book in books}
    files[ROOT / "results" / "README.md"] = page(books)
    for path in results.pages():
        if path not in files:
            files[path] = filled(results.filled(path.read_text()))
    return files


def write() -> None:
    """Write all generated files and the figure."""
    count = 0
    for path, text in generated().items():
        if not path.exists() or path.read_text() != text:
            count += 1
            with atomic(path) as partial:
                partial.write_text(text)
    from common.plots.ledger import draw

    draw(list(ledger.ledgers()), FIGURE)
    print(f"{count} file(s) rewritten; {FIGURE.relative_to(ROOT)}")


def check() -> None:
    """Raise a `UserError` when a generated text differs from its records."""
    wrong = [str(path.relative_to(ROOT)) for path, text in generated().items()
             if not path.exists() or path.read_text() != text]  # fmt: skip
    if wrong:
        raise UserError(f"differ from rows and records: {', '.join(wrong)}; run python -m common.reproduce table")
    print("all generated files equal their records")
