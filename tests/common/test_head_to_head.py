"""The table of methods on the same runs: grouping, pairing, order, and the interval of a single run."""

import json

import numpy as np
import pytest

from common import comparison, head_to_head, results

METRICS = {"closed_accuracy": 0.9, "oscr": 0.8}


def record(paper, method, auroc, split="cssr-a", seed=0, **changed):
    metrics = {"cifar10-unknown": METRICS | {"auroc": auroc}}
    return {"paper": paper, "method": method, "table": "any", "data": "cifar10", "split": split, "seed": seed,
            "backbone": "speednet", "metrics": metrics, "precision": "fp32", "flags": {}} | changed  # fmt: skip


def both(splits="ab", gain=0.02):
    reference = [record("baseline_openmax", "mls", 0.8 + 0.05 * i, f"cssr-{s}") for i, s in enumerate(splits)]
    ours = [record("cssr", "pcssr-fused", 0.8 + 0.05 * i + gain + 0.001 * i, f"cssr-{s}") for i, s in enumerate(splits)]
    return reference + ours


def test_methods_are_sorted_and_differences_are_paired():
    (field, methods), *others = head_to_head.fields(both()).items()
    assert field == ("any", "cifar10", "cssr", "cifar10-unknown") and not others
    first, second = head_to_head.entries(field, methods)
    assert (first.paper, first.runs) == ("cssr", 2) and second.method == "mls"
    assert second.difference == "reference"
    # Splits lie .05 apart, the method .02: the paired interval is a tenth of the unpaired one.
    assert first.difference in {"+.020 ± .006", "+.021 ± .006"}


def test_only_runs_that_both_have_are_paired():
    runs = [*both("ab"), record("cssr", "pcssr-fused", 0.1, "cssr-c")]
    (field, methods), = head_to_head.fields(runs).items()
    first = next(e for e in head_to_head.entries(field, methods) if e.paper == "cssr")
    assert first.runs == 3 and first.difference.startswith("+.02")


def test_a_method_with_one_easy_split_is_not_ranked_by_its_mean():
    better = [record("vmdls", "vmdls", 0.81 + 0.05 * i, f"cssr-{split}") for i, split in enumerate("ab")]
    elsewhere = record("cssr", "rcssr-fused", 0.99, "cssr-d")
    (field, methods), = head_to_head.fields([*both("ab")[:2], *better, elsewhere]).items()
    assert [entry.method for entry in head_to_head.entries(field, methods)] == ["vmdls", "mls", "rcssr-fused"]
    last = head_to_head.entries(field, methods)[-1]
    assert last.count == "1: cssr-d" and np.isnan(last.gain)


def test_a_field_needs_the_reference_and_another_paper():
    assert not head_to_head.fields(both()[:2]) and not head_to_head.fields(both()[2:])
    assert head_to_head.markdown(both()[:2]) == "not run"
    assert "pcssr-fused" in head_to_head.markdown(both(), table="any", splits="cssr")
    assert head_to_head.markdown(both(), table="mnist") == "not run"


def test_methods_outside_the_headline_do_not_enter():
    assert not head_to_head.fields([*both()[:2], record("cssr", "pcssr-s1", 0.9)])


def test_costs_come_from_the_benchmark_and_weights_of_another_run_are_said(tmp_path, monkeypatch):
    runs = [*both("ab"), record("vmdls", "vmdls", 0.85, "cssr-c", flags={"weights": "baseline"}, precision="bf16"),
            record("vmdls", "vmdls", 0.85, "cssr-d", flags={"weights": "baseline"})]  # fmt: skip
    runs = [run | {"table": "laptop"} for run in runs]
    monkeypatch.setattr(head_to_head, "COSTS", tmp_path)
    monkeypatch.setattr(head_to_head.staleness, "shown_recipe", lambda entry: entry["table"])
    lines = head_to_head.markdown(runs).splitlines()
    assert [line.endswith("| fp32 | – |") for line in lines[4:6]] == [True, True]
    measured = {"laptop-cifar10-softmax": 1.0, "laptop-cifar10-vmdls": 0.94, "laptop-cifar10-10-pcssr": 9.0}
    costs = {"runs": {name: {"cost": cost} for name, cost in measured.items()}}
    (tmp_path / "methods-laptop.json").write_text(json.dumps(costs))
    pcssr, reference, vmdls = head_to_head.markdown(runs).splitlines()[4:]
    assert vmdls.endswith("| bf16, fp32 | 1 + 0.9 |") and "| – |" in vmdls
    assert reference.endswith("| fp32 | 1.0 |") and pcssr.endswith("| fp32 | – |")  # measured with ten classes only


def test_what_goes_on_from_a_recipes_networks_stands_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(head_to_head, "COSTS", tmp_path)
    monkeypatch.setattr(head_to_head.staleness, "shown_recipe", lambda entry: entry["table"])
    plain = [run | {"table": "laptop"} for run in both("ab")]
    flags = {"start_from": "net"}
    tuned = [record("baseline_openmax", method, 0.9 + i / 100, f"cssr-{split}", table="laptop-proser", flags=flags)
             for i, split in enumerate("ab") for method in ("kplus1", "mls")]  # fmt: skip
    costs = {"runs": {"laptop-cifar10-softmax": {"cost": 1.0}, "laptop-cifar10-proser": {"cost": 2.5}}}
    (tmp_path / "methods-laptop.json").write_text(json.dumps(costs))
    (field, methods), = head_to_head.fields(plain + tuned).items()
    found = {(entry.paper, entry.method): entry for entry in head_to_head.entries(field, methods)}
    assert field.table == "laptop" and {method for _, method in found} == {"mls", "kplus1", "pcssr-fused"}
    reference, tuned = found["baseline_openmax", "mls"], found["baseline_openmax", "kplus1"]
    assert tuned.gain == pytest.approx(0.08) and tuned.cost == "1 + 2.5"
    assert reference.auroc.startswith(".825") and reference.cost == "1.0"


def scores(directory, name, unknown_score):
    count = len(unknown_score)
    target = np.r_[np.zeros(count // 2, int), -np.ones(count - count // 2, int)]
    arrays = {"target": target, "prediction": np.zeros(count, int), "unknown_score": unknown_score,
              "split": np.zeros(count, np.int8), "source": (target < 0).astype(np.int16),
              "sources": np.array(["cifar10", "cifar10-unknown"]), "class_names": np.array(["cat"])}  # fmt: skip
    results.write_scores(directory / f"{name}.npz", arrays)
    return target


def test_a_single_run_takes_the_interval_over_images(tmp_path, monkeypatch):
    monkeypatch.setattr(head_to_head, "ROOT", tmp_path)
    generator = np.random.default_rng(0)
    weak = generator.normal(np.repeat([0, 1], 200))
    strong = weak + np.repeat([0, 0.5], 200)
    target = scores(tmp_path, "weak", weak)
    scores(tmp_path, "strong", strong)
    from common.metrics import auroc, auroc_difference

    runs = [record("baseline_openmax", "mls", auroc(target, weak), path="weak.json"),
            record("cssr", "pcssr-fused", auroc(target, strong), path="strong.json")]  # fmt: skip
    (field, methods), = head_to_head.fields(runs).items()
    found = auroc_difference(target, strong, weak)
    expected = f"+{results.number(found.estimate)} ± {results.number(found.high - found.estimate)} (images)"
    assert head_to_head.entries(field, methods)[0].difference == expected


def test_readme_blocks_name_recipe_and_splits(monkeypatch):
    monkeypatch.setattr(results, "read_records", lambda *_, **__: both())
    text = "<!-- ledger: head_to_head=any splits=cssr -->\nold\n<!-- end ledger -->\n"
    filled = comparison.filled(text)
    assert "pcssr-fused" in filled and "old" not in filled and comparison.filled(filled) == filled


@pytest.mark.parametrize("paper", head_to_head.SCORES)
def test_headline_scores_exist_in_the_ledger(paper):
    from common import ledger

    asked = {answer.method for row in ledger.read(paper).rows for answer in row.answers}
    assert set(head_to_head.SCORES[paper]) <= asked


def test_overview_has_one_row_a_method_and_bold_for_what_is_surely_above(monkeypatch):
    """Bold needs several runs: an interval over images says nothing of another training."""
    runs = [*both("abc"), record("vmdls", "vmdls", 0.95), record("vmdls", "vmdls", 0.83, "cssr-b"),
            record("crosr", "mls", 0.9)]  # fmt: skip
    for entry in runs[:1] + runs[-1:]:
        entry["metrics"]["noise"] = METRICS | {"auroc": entry["metrics"]["cifar10-unknown"]["auroc"]}
    target, weak = np.repeat([0, -1], 50), np.linspace(0, 1, 100) % 0.7
    monkeypatch.setattr(head_to_head, "images", lambda entry, _: (target, weak + (entry["paper"] == "crosr") * (target < 0)))
    header, _, *lines = head_to_head.overview("any", runs).splitlines()
    assert header.endswith("| cifar10, cssr / cifar10-unknown: 3 runs | cifar10, cssr / noise: 1 run |")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    cells = {tuple(row[:2]): row[3:] for row in rows}
    assert rows[0] == ["baseline_openmax", "mls", "–", "AUROC .850 ± .124", "AUROC .800"]
    assert cells["cssr", "pcssr-fused"] == ["**+.021 ± .002**", "–"]
    assert cells["vmdls", "vmdls"][0].startswith("+.065 ± 1.") and cells["vmdls", "vmdls"][0].endswith("(2)")
    first, second = cells["crosr", "mls"]
    assert first.endswith("(images) (1)") and second.startswith("+") and second.endswith("(images)")
    assert head_to_head.overview("mnist", runs) == "not run"
