"""rows.json of every paper folder: commands that parse, answers that the commands write, values as published."""

from collections import Counter
from importlib import import_module

import pytest
import torch

from common import comparison, ledger, results, staleness
from common.arguments import ROOT, parse
from common.checkpoints import read_manifest
from common.datasets import find_split, resolve_name
from common.metrics import METRICS
from common.openmax_flags import openmax_settings, record_method

BOOKS = list(ledger.ledgers())
RECIPES = [pytest.param(book, recipe, id=recipe.id) for book in BOOKS for recipe in book.recipes.values()]
# What a paper measures and no record holds: such rows have no answer.
NOT_RECORDED = {"training_hours", "open_accuracy", "macro_f1_unstated"}


def arguments(job):
    """Flags of a job's two commands, by the scripts' own parsers."""
    paper = job.recipe.paper
    assert (job.train[0], job.test[0]) == (f"{paper}/main.py", f"{paper}/test.py")
    train = import_module(f"{paper}.main").parse_arguments(job.train[1:])
    return train, parse(import_module(f"{paper}.test").get_args_parser(), job.test[1:])


def methods(paper: str, train, test, classes: int) -> set[str]:
    """Names under which a test command records its scores."""
    if paper == "cssr":
        return {f"{train.model}-{score}" for score in test.score}
    if paper == "baseline_openmax":
        from baseline_openmax.heads import score_names

        settings = openmax_settings(test, classes)
        return {record_method(name, settings, classes) for name in score_names(test.score, settings)}
    if paper == "crosr":
        from crosr.scores import record_name, score_names, variants
        from crosr.test import OPENMAX_DEFAULTS

        found, _ = variants(test, classes)
        return {record_name(name, found, classes, OPENMAX_DEFAULTS) for name in score_names(test.score, found)}
    from vmdls.evaluation import Evaluation, wanted
    from vmdls.scoring import Settings

    evaluation, variants = Evaluation(test, None, None, None, {}, None), wanted(test).values()
    evaluation.statistics = {
        variant.settings: {"settings": torch.tensor((variant.settings or Settings()).canonical())} for variant in variants
    }
    return {evaluation.method(variant) for variant in variants}


def unknown_sets(split, given) -> set[str]:
    """Names under which a record holds the unknown sets of a test command; `all` is always there."""
    if given in (None, ["rest"]):
        other = split.unknown_dataset
        assert split.unknown or other, "nothing is unknown"
        return {"all", f"{other or split.dataset}-unknown" if split.unknown else other}
    return {"all", *map(resolve_name, given)}


def test_every_paper_has_rows_with_ids_of_their_own():
    assert {book.paper for book in BOOKS} == set(ledger.PAPERS)
    assert sum(len(book.rows) for book in BOOKS) >= 100
    names = Counter(name for book in BOOKS for name in (*book.recipes, *(row.id for row in book.rows)))
    assert not [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize(("book", "recipe"), RECIPES)
def test_commands_parse_and_write_what_rows_ask_for(book, recipe):
    asked = ledger.methods_of(book)[recipe.id]
    assert asked, "no row is answered by this run"
    for job in recipe.jobs():
        train, test = arguments(job)
        split = find_split(train.known_dataset, train.split)
        assert (train.save, test.save, train.seed, split.name) == (job.name, job.name, job.seed, job.split)
        assert (resolve_name(train.known_dataset), test.record) == (recipe.data[0], recipe.table)
        unknown = unknown_sets(split, test.unknown)
        elsewhere = unknown - {"all", f"{recipe.data[0]}-unknown"}
        assert {name.removesuffix("-unknown") for name in elsewhere} == set(recipe.data[1:])
        names = methods(recipe.paper, train, test, len(split.known))
        written = {(method, name) for method in names for name in unknown}
        assert asked <= written, f"not written: {asked - written}"


def test_no_two_runs_write_the_same_record():
    for book in BOOKS:
        paths = Counter()
        for name, pairs in ledger.methods_of(book).items():
            recipe = book.recipes[name]
            answers = [ledger.Answer(recipe, method, "") for method in {method for method, _ in pairs}]
            paths.update(answer.record_file(job) for answer in answers for job in recipe.jobs())
        assert not [path.name for path, count in paths.items() if count > 1]


@pytest.mark.parametrize("book", [pytest.param(book, id=book.paper) for book in BOOKS])
def test_rows_use_known_names(book):
    assert set(book.code) == {"training", "scoring"}
    for file, _, name in (entry.partition("#") for files in book.code.values() for entry in files):
        assert (ROOT / file).is_file(), file
        assert not name or name in {key.partition("[")[0] for key in staleness._program_now(file)}, (file, name)
    assert set(book.tables) == {row.table for row in book.rows}
    for row in book.rows:
        assert row.metric in METRICS or (row.metric in NOT_RECORDED and not row.answers), row.id
        assert row.published is None or row.certainty != "no paper", row.id
        assert row.metric not in METRICS or row.published is None or 0 <= row.published <= 1, row.id
    for recipe in book.recipes.values():
        assert recipe.device in ("cpu", "gpu") and recipe.minutes > 0 and all(map(resolve_name, recipe.data))
    for row in book.rows:
        assert {answer.recipe.data[0] for answer in row.answers} <= {row.known}, row.id


@pytest.mark.parametrize("book", [pytest.param(book, id=book.paper) for book in BOOKS])
def test_no_record_uses_a_set_that_is_listed_as_missing(book):
    assert {resolve_name(name) for name in book.data_missing} == set(book.data_missing)
    for record in results.read_records(book.paper):
        used = {record["data"], *(name.removesuffix(ledger.REBUILT) for name in record["metrics"])}
        assert not used & set(book.data_missing), record["path"]


@pytest.mark.parametrize(
    ("metric", "mean", "said"),
    [("auroc", 0.8, "better by .100"), ("auroc", 0.6, "worse by .100"), ("auroc", 0.705, "reproduced"),
     ("fpr95_known_positive", 0.6, "better by .100"), ("fpr95_known_positive", 0.8, "worse by .100")],
)  # fmt: skip
def test_verdicts_know_which_way_is_better(metric, mean, said):
    row = ledger.Row("p", "i", "t", "l", "k", "u", metric, 0.7, "s", "paper")
    assert comparison.judged(row, mean, None) == said


def test_wide_tables_have_published_and_ours_side_by_side():
    book = next(book for book in BOOKS if book.paper == "cssr")
    table = next(iter(book.tables))
    rows = [row for row in book.rows if row.table == table]
    title, _, header, _, *body = comparison.wide(book, table).splitlines()
    assert title.startswith(f"**{book.tables[table]}") and len(body) == len({row.label for row in rows})
    columns = {(row.known, row.unknown, row.metric) for row in rows}
    assert {line.count(" | ") for line in (header, *body)} == {len(columns)}
    published = next(row for row in rows if row.published is not None)
    line = next(line for line in body if line.startswith(f"| {published.label} |"))
    assert f" {results.number(published.published)} → " in line
    block = f"<!-- ledger: paper=cssr table={table} view=wide -->\nold\n<!-- end ledger -->\n"
    assert comparison.wide(book, table) in comparison.filled(block)


def test_the_table_of_weights_shows_what_the_manifest_expects():
    rows = dict(line.strip("| ").split(" | ", 1) for line in comparison.weights().splitlines()[2:])
    manifest = read_manifest()
    assert rows.keys() == {f"`{name}`" for name in manifest}
    for name, entry in manifest.items():
        numbers = {results.number(v["closed_accuracy"]) for sets in entry["expected"].values() for v in sets.values()}
        *_, accuracy, aurocs = rows[f"`{name}`"].split(" | ")
        assert accuracy in (numbers or {"–"}) and (aurocs != "–") == bool(numbers)
    assert "mls: " in rows["`baseline-cifar10-10-speednet`"]


def test_records_with_earlier_flags_stand_apart():
    found = next(r for r in results.read_records("baseline_openmax", table="digits", method="mls", seed=0))
    assert staleness.shown_recipe(found) == "digits"
    earlier = found | {"flags": found["flags"] | {"max_epochs": 1}}
    assert staleness.shown_recipe(earlier) == "digits (earlier flags)"
    table = results.markdown_table([found, earlier]).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in table] == ["digits", "digits (earlier flags)"]
    assert staleness.shown_recipe({"paper": "baseline_openmax", "table": "mine", "data": "digits", "split": "first-6"}) == "mine"


def test_every_record_belongs_to_a_run():
    """No result lies beside the tables: its recipe, data and split are those of a run that rows ask for."""
    known = {(book.paper, recipe.table, recipe.data[0], split)
             for book in BOOKS for recipe in book.recipes.values() for split in recipe.splits}  # fmt: skip
    fields = ("paper", "table", "data", "split")
    found = {record["path"]: tuple(record[field] for field in fields) for record in results.read_records()}
    assert found and not [path for path, key in found.items() if key not in known]


@pytest.mark.parametrize(
    ("paper", "label", "known", "unknown", "metric", "value"),
    [
        ("cssr", "RCSSR", "cifar10", "cifar10-unknown", "auroc", 0.915),
        ("cssr", "CSSR", "tinyimagenet", "tinyimagenet-unknown", "auroc", 0.823),
        ("cssr", "PROSER", "cifar10", "lsun-crop", "macro_f1_unstated", 0.867),
        ("cssr", "RCSSR", "cifar10", "svhn", "detection_accuracy", 0.957),
        ("cssr", "CSSR, MSE", "cifar10", "imagenet-fix", "auroc", 0.944),
        ("cssr", "Linear, SM-AP", "cifar10", "none", "closed_accuracy", 0.9696),
        ("cssr", "Linear: FM", "imagenet30", "imagenet30-unknown", "auroc", 0.393),
        ("cssr", "RCSSR", "imagenet", "inaturalist", "tnr95_known_positive", 0.738),
        ("crosr", "DHRNet, CROSR", "cifar10", "lsun-resize", "macro_f1_oracle", 0.749),
        ("crosr", "CROSR", "svhn", "svhn-unknown", "auroc", 0.899),
        ("crosr", "DHRNet, CROSR", "mnist", "omniglot", "macro_f1_argmax", 0.793),
        ("vmdls", "VMDLS", "cifar10", "imagenet-resize", "tnr95_known_positive", 0.959),
        ("vmdls", "Mahalanobis*", "cifar100", "lsun-crop", "tnr95_known_positive", 0.316),
        ("vmdls", "VMDLS_b", "cifar100", "imagenet-resize", "auroc", 0.949),
        ("baseline_openmax", "Baseline MLS", "cifar10", "cifar10-unknown", "auroc", 0.936),
        ("baseline_openmax", "Supervised, OpenMax", "mnist", "noise", "macro_f1_argmax", 0.89),
        ("baseline_openmax", "ResNet-50, their score (ours: energy, else MLS)", "cifar10", "cifar10-unknown", "auroc", 0.2583),
    ],
)  # fmt: skip
def test_published_values(paper, label, known, unknown, metric, value):
    wanted = (label, known, unknown, metric)
    rows = [row for row in ledger.read(paper).rows if (row.label, row.known, row.unknown, row.metric) == wanted]
    assert [row.published for row in rows] == [value]


def test_values_agree_with_the_means_and_gains_that_the_papers_state():
    """CSSR's text: RCSSR gains 8.3 points of mean macro-F1 over PROSER; its Table 4 prints the mean of each row."""
    rows = ledger.read("cssr").rows
    table = [row for row in rows if row.table == "2" and row.published is not None]
    own, peer = (sum(row.published for row in table if row.label == label) for label in ("RCSSR", "PROSER"))
    assert (own - peer) / 4 == pytest.approx(0.083, abs=5e-4)
    differing = []
    table = [row for row in rows if row.table == "4" and row.metric == "auroc"]
    for label in {row.label for row in table}:
        cells = {row.unknown: row.published for row in table if row.label == label}
        printed = cells.pop("mean of the five")
        if abs(sum(cells.values()) / 5 - printed) > 6e-4:
            differing.append(label)
    assert differing == ["RCSSR"]
