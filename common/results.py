"""Scores on disk, the record of a run, and tables made from records alone.

    python -m common.results table      # rewrite the generated tables of all README files and results/scores/
    python -m common.results check      # exit code 1 when a README table differs from its records
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from common.arguments import ROOT, ScriptParser, run_script
from common.errors import UserError
from common.files import atomic, plain, write_json

RECORDS = ROOT / "results" / "records"
COMPACT_BYTES = 1_000_000

# Splits of one published family are averaged: cssr-a to -e, arpl-0 to -4, ...; first-6 or 0-5 belong to none.
FAMILY = re.compile(r"^((?:cssr|arpl|cac)\b.*)-\w$")

SHOWN = {
    "closed_accuracy": "closed acc.",
    "auroc": "AUROC",
    "fpr95_known_positive": "FPR95",
    "oscr": "OSCR",
    "macro_f1_validation": "macro-F1",
}


def write_scores(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a `scores.npz` (DESIGN: contract) atomically, compressed."""
    needed = {"target", "prediction", "unknown_score", "split", "source", "sources", "class_names"}
    if missing := needed - set(arrays):
        raise ValueError(f"scores need {', '.join(sorted(missing))}")
    with atomic(path) as partial, open(partial, "wb") as target:
        np.savez_compressed(target, **arrays)


def read_scores(path: Path) -> dict[str, np.ndarray]:
    """Read a `scores.npz`; no pickled objects. What a file of another program may leave out is filled in (`completed`)."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable scores file ({error}); test.py writes it") from None
    return completed(arrays) if {"target", "prediction", "unknown_score"} <= set(arrays) else arrays


def completed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores with all arrays of the contract: all of them test images of one known and one unknown set, classes numbered."""
    from common.metrics.decisions import number_of_classes

    if "split" not in arrays:
        arrays["split"] = np.zeros(len(arrays["target"]), np.int8)
    if not {"source", "sources"} <= set(arrays):
        arrays["source"] = (arrays["target"] < 0).astype(np.int16)
        arrays["sources"] = np.array(["known", "unknown"])
    if "class_names" not in arrays:
        classes = number_of_classes(arrays["target"], arrays["prediction"], arrays.get("logits"), arrays.get("probabilities"))
        arrays["class_names"] = np.array([f"class {number}" for number in range(classes)])
    return arrays


def write_compact_scores(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the copy that is committed: no features, float32, logits only while the file stays under 1 MB.

    Scores keep their precision where rounding would make two different ones equal: no image may cross a threshold.
    """
    small = {"target": np.int16, "prediction": np.int16, "probabilities": np.float32, "parts": np.float32}
    exact = np.asarray(arrays["unknown_score"])
    if len(np.unique(exact.astype(np.float32))) == len(np.unique(exact)):
        small["unknown_score"] = np.float32
    kept = {k: v.astype(small.get(k, v.dtype)) for k, v in arrays.items() if k not in ("features", "logits")}
    if "logits" in arrays:
        write_scores(path, kept | {"logits": arrays["logits"].astype(np.float32)})
        if path.stat().st_size <= COMPACT_BYTES:
            return
    write_scores(path, kept)
    for large in ("probabilities", "parts"):
        if path.stat().st_size > COMPACT_BYTES and large in kept:
            del kept[large]
            write_scores(path, kept)
    if path.stat().st_size > COMPACT_BYTES:
        raise UserError(f"{path.name} would be {path.stat().st_size} bytes: evaluate fewer unknown sets in one record")


def record_path(paper: str, table: str, data: str, method: str, split: str, seed: int) -> Path:
    """Where a record lies: `results/records/<paper>/<table>-<data>-<method>-<split>-s<seed>.json`."""
    name = "-".join(re.sub(r"[^A-Za-z0-9.+_]+", "_", part) for part in (table, data, method, split.replace("-", "_")))
    return RECORDS / paper / f"{name}-s{seed}.json"


def write_record(path: Path, record: Mapping, scores: Mapping[str, np.ndarray]) -> None:
    """Write a record and, beside it, its compact scores (`.npz`)."""
    write_compact_scores(path.with_suffix(".npz"), scores)
    write_json(path, record)


def read_records(paper: str | None = None, **wanted) -> list[dict]:
    """All records (of one paper), in file order, whose fields equal `wanted`; each with its `path`."""
    records = []
    for path in sorted(RECORDS.glob(f"{paper or '*'}/*.json")):
        record = json.loads(path.read_text()) | {"path": str(path.relative_to(ROOT))}
        if all(record.get(key) == value for key, value in wanted.items()):
            records.append(record)
    return records


def by_source(metrics: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """Metrics of each unknown source; those of all sources together only where there is no single one."""
    return {source: values for source, values in metrics.items() if source != "all" or len(metrics) == 1}


def number(value: float | None, digits: int = 3) -> str:
    """A metric in a table: `.973`, `1.000`, or `–` where undefined."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def interval_cell(values: Iterable[float | None], groups: Iterable | None = None) -> str:
    """`mean ± half-width` of the 95 % t-interval over splits or seeds; the plain number for a single one (`groups`: repeated)."""
    from common.metrics import mean_interval

    values = list(values)
    pairs = [(value, group) for value, group in zip(values, groups or range(len(values))) if value is not None]
    if not pairs:
        return number(None)
    mean, low, _ = mean_interval([value for value, _ in pairs], groups=[group for _, group in pairs])
    return number(mean) if np.isnan(low) else f"{number(mean)} ± {number(mean - low)}"


def experiment(record: Mapping) -> tuple:
    """What a record's run was: two of one published list of splits may know the same classes, and are one experiment."""
    from common.datasets import find_split

    try:
        split = find_split(record["data"], record["split"])
    except UserError:  # classes of own images, or lists that are not here
        return record["split"], record["seed"]
    return split.known, split.unknown, split.unknown_dataset, record["seed"]


def count_cell(groups: Iterable) -> str:
    """Number of runs, and of different ones where a split comes twice."""
    groups = list(groups)
    different = len(set(groups))
    return str(len(groups)) + (f" ({different} different)" if different < len(groups) else "")


def grouped(records: list[dict]) -> dict[tuple, list[dict]]:
    """Runs of one method by (recipe, known data, splits, unknown set, score): their metrics and records."""
    from common.staleness import shown_recipe

    groups: dict[tuple, list[dict]] = {}
    for record in records:
        recipe, split = shown_recipe(record), FAMILY.sub(r"\1", record["split"])
        for source, values in by_source(record["metrics"]).items():
            key = (recipe, record["data"], split, source, record["method"])
            groups.setdefault(key, []).append({"values": values, "record": record})
    return groups


def runs_and_cells(members: list[dict], metrics: Iterable[str]) -> list[str]:
    """Number of runs, then mean ± interval of each metric."""
    same = [experiment(m["record"]) for m in members]
    return [count_cell(same), *(interval_cell((m["values"].get(name) for m in members), same) for name in metrics)]


def train_minutes(members: list[dict]) -> str:
    return f"{np.mean([m['record']['wall_seconds']['train'] / 60 for m in members]):.1f}"


def table_of(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    header = list(header)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, *rows]).replace("\n", "\n" + "|---" * len(header) + "|\n", 1)


def markdown_table(records: list[dict], metrics: Mapping[str, str] = SHOWN) -> str:
    """Markdown rows (table, known, unknown, method; mean ± 95 % interval over splits and seeds) of records."""
    rows = ([table, f"{data}, {split}", source, method, *runs_and_cells(members, metrics), train_minutes(members)]
            for (table, data, split, source, method), members in grouped(records).items())  # fmt: skip
    return table_of(["recipe", "known", "unknown", "score", "runs", *metrics.values(), "train min."], rows)


def wide_tables(records: list[dict], metrics: Mapping[str, str] = SHOWN) -> str:
    """A Markdown table for each recipe and known data: AUROC on every unknown set, or all metrics where there is one set."""
    fields: dict[tuple, dict[str, dict[str, list[dict]]]] = {}
    for (table, data, split, source, method), members in grouped(records).items():
        fields.setdefault((table, data, split), {}).setdefault(method, {})[source] = members
    parts = []
    # The embedded data, which everybody can run in seconds, say least: they come last.
    for (table, data, split), methods in sorted(fields.items(), key=lambda item: item[0][1] == "digits"):
        sources = list(dict.fromkeys(source for found in methods.values() for source in found))
        if len(sources) == 1:
            title, columns = f"unknown: {sources[0]}", [*metrics.values(), "train min."]
        else:
            title, columns = "AUROC by unknown set", ["closed acc.", *sources]
        rows = []
        for method, found in methods.items():
            members = next(iter(found.values()))
            if len(sources) == 1:
                rows.append([method, *runs_and_cells(members, metrics), train_minutes(members)])
            else:
                aurocs = (runs_and_cells(found[s], ["auroc"])[1] if s in found else "–" for s in sources)
                rows.append([method, *runs_and_cells(members, ["closed_accuracy"]), *aurocs])
        caption = f"**known: {data}, {split}; {title}; recipe {table}**"
        parts.append(f"{caption}\n\n{table_of(['score', 'runs', *columns], rows)}")
    return "\n\n".join(parts)


BLOCK = re.compile(r"(<!-- records:(?P<query>[^>]*?) -->\n)(?P<body>.*?)(<!-- end records -->)", re.S)


def filled(text: str) -> str:
    """Fill every `<!-- records: paper=... key=value -->` block of a markdown text from the records.

    `view=wide`: a table for each recipe and known data, unknown sets side by side; else one table of all scores and metrics.
    """

    def fill(match):
        query = dict(pair.split("=", 1) for pair in match["query"].split())
        table = wide_tables if query.pop("view", None) == "wide" else markdown_table
        records = read_records(query.pop("paper", None), **query)
        body = table(records) if records else "not run"
        return f"{match[1]}{body}\n{match[4]}"

    return BLOCK.sub(fill, text)


def pages() -> list[Path]:
    """The Markdown files that have generated blocks."""
    return [ROOT / "README.md", *sorted(ROOT.glob("*/README.md")), *sorted(ROOT.glob("results/scores/*.md"))]


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(prog="python -m common.results", description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("table", "check"), help="rewrite the README tables, or compare them")
    return parser


def main(argv=None) -> None:
    args = get_args_parser().parse_args(argv)
    differing = []
    for path in pages():
        text = path.read_text()
        if filled(text) != text:
            differing.append(str(path.relative_to(ROOT)))
            if args.action == "table":
                with atomic(path) as partial:
                    partial.write_text(filled(text))
    if args.action == "check" and differing:
        print(f"tables that differ from their records: {', '.join(differing)}; run python -m common.results table")
        sys.exit(1)
    print(f"{len(differing)} file(s) rewritten" if args.action == "table" else "all tables equal their records")


def record_of(run_meta: Mapping, **values) -> dict:
    """Fields of a record that come from the training run's meta.json, joined with `values`."""
    taken = ("seed", "code_version", "versions", "device", "device_name", "precision", "threads", "images_per_second")
    return plain({**values, **{key: run_meta.get(key) for key in taken}, "data_checksums": run_meta["data_checksums"]})


if __name__ == "__main__":
    run_script(main)
