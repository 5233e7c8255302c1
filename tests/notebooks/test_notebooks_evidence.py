"""What the notebooks read and draw: the rule that chooses records, evidence files, figures, numbers beside the slider."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from common import metrics, results
from common.errors import UserError
from common.plots import comparison, notebook
from crosr import figures as crosr_figures

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))

import evidence  # noqa: E402
import gather  # noqa: E402


def record(folder, paper, data, method, split="all", table="t"):
    path = folder / paper / f"{table}-{data}-{method}-{split}-s0.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["python x/main.py", f"python x/test.py --save {data}-{split} --score mls"]
    path.write_text(json.dumps({"paper": paper, "table": table, "data": data, "split": split, "seed": 0, "method": method,
                                "metrics": {"all": {}}, "commands": command, "checkpoint_sha256": ["first"]}))  # fmt: skip


def arrays_of(count):
    return {"target": np.zeros(count), "checkpoint": np.array("first")}


@pytest.fixture
def records(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    monkeypatch.setattr(evidence, "FOLDER", tmp_path / "evidence")
    return tmp_path / "records"


def test_natural_images_come_before_mnist_before_the_rest(records):
    for data in ("digits", "mnist", "cifar10"):
        record(records, "crosr", data, "crosr")
    record(records, "crosr", "mnist", "mls")
    assert [group[0]["data"] for group in evidence.groups("crosr")] == ["cifar10", "mnist", "digits"]


def test_the_best_record_with_evidence_is_read_and_a_better_one_named(records):
    for data in ("mnist", "cifar10"):
        record(records, "crosr", data, "crosr")
    mnist = evidence.own_record("crosr", evidence.groups("crosr")[1])
    evidence.write_evidence(evidence.evidence_file("crosr", mnist), arrays_of(3), {})
    source = evidence.read("crosr")
    assert source.own == "crosr" and "mnist" in source.title
    assert "python notebooks/evidence.py crosr runs/crosr/cifar10-all" in source.title


def test_a_later_record_takes_over_by_itself(records):
    record(records, "crosr", "mnist", "crosr")
    (mnist,) = evidence.groups("crosr")
    evidence.write_evidence(evidence.evidence_file("crosr", mnist[0]), arrays_of(3), {})
    record(records, "crosr", "cifar10", "crosr")
    cifar = evidence.groups("crosr")[0]
    evidence.write_evidence(evidence.evidence_file("crosr", cifar[0]), arrays_of(2), {})
    assert len(evidence.read("crosr").evidence["target"]) == 2


def test_evidence_of_an_earlier_network_of_that_name_does_not_count(records):
    record(records, "crosr", "mnist", "crosr")
    record(records, "crosr", "cifar10", "crosr")
    for group, checkpoint in zip(evidence.groups("crosr"), ("earlier", "first")):
        arrays = {"target": np.zeros(3), "checkpoint": np.array(checkpoint)}
        evidence.write_evidence(evidence.evidence_file("crosr", group[0]), arrays, {})
    assert "mnist" in evidence.read("crosr").title and "no evidence yet" in evidence.read("crosr").title


def test_without_records_and_demo_one_line_says_what_to_do(records):
    with pytest.raises(UserError, match="make demo"):
        evidence.read("vmdls")


def test_a_run_that_is_not_evaluated_is_refused(tmp_path):
    with pytest.raises(UserError, match="not an evaluated run"):
        evidence.read("crosr", str(tmp_path))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=40))
def test_steps_lose_at_most_half_a_step(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("evidence") / "e.npz"
    array = np.array(values)
    evidence.write_evidence(path, {"logits": array, "target": np.arange(3)}, {"logits": 32767})
    found = evidence.read_evidence(path)
    assert np.abs(found["logits"] - array).max() <= 0.5001 * max(np.abs(array).max(), 1e-300) / 32767 + 1e-12
    assert found["target"].tolist() == [0, 1, 2]


def test_evidence_that_is_too_large_is_refused(tmp_path):
    with pytest.raises(UserError, match="bytes"):
        evidence.write_evidence(tmp_path / "e.npz", {"x": np.random.default_rng(0).random(200_000)}, {})


def test_linear_reconstruction_is_exact_for_images_in_the_plane_of_the_training_images():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 128, (2, 1, 4, 4))
    weights = rng.random((50, 2))
    train = np.rint(np.tensordot(weights, corners, 1)).astype(np.uint8)
    rebuilt = gather.linear_reconstruction(train, train, share=0.9999)
    assert np.abs(rebuilt.astype(int) - train).max() <= 1
    other = rng.integers(0, 256, (5, 1, 4, 4), dtype=np.uint8)
    assert np.abs(gather.linear_reconstruction(train, other, share=0.9999).astype(int) - other).mean() > 10


def test_separation_grows_with_the_distance_of_the_classes():
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1, -1], 50)
    points = rng.normal(size=(150, 3))
    near, far = points + (target == 1)[:, None], points + 9 * (target == 1)[:, None]
    assert evidence.separation(far, target) > 3 * evidence.separation(near, target)


def made_scores(seed=0, count=400):
    rng = np.random.default_rng(seed)
    target = rng.integers(-1, 3, count)
    return {"target": target, "prediction": np.where(rng.random(count) < 0.9, np.maximum(target, 0), 1),
            "unknown_score": rng.normal(size=count) + 2 * (target < 0), "split": np.zeros(count, np.int8),
            "source": np.zeros(count, np.int16), "sources": np.array(["a"]),
            "class_names": np.array(["x", "y", "z"])}  # fmt: skip


def test_numbers_beside_the_slider_are_those_of_the_metrics():
    scores = made_scores()
    found = notebook.at_threshold(scores, 0.7)
    decision = metrics.decide(scores["prediction"], scores["unknown_score"], 0.7)
    assert found["macro-F1"] == metrics.macro_f1(scores["target"], decision, 3)
    assert found["unknown accepted"] == np.mean(scores["unknown_score"][scores["target"] < 0] < 0.7)


def test_the_slider_moves_the_numbers_below_it():
    box = notebook.threshold_slider(made_scores())
    slider, text = box.children
    before = text.value
    slider.value = slider.max
    assert text.value != before and "1.000" in text.value


def test_rank_correlation_is_spearmans():
    first, second = made_scores(0), made_scores(0)
    second["unknown_score"] = second["unknown_score"] ** 2
    found = comparison.rank_correlation({"a": first, "b": second})
    assert found[0, 1] == pytest.approx(spearmanr(first["unknown_score"], second["unknown_score"])[0])
    with pytest.raises(ValueError, match="different test images"):
        comparison.rank_correlation({"a": first, "b": made_scores(1)})


def test_a_verdict_says_what_was_computed(monkeypatch):
    said = []
    monkeypatch.setattr(notebook, "say", said.append)
    for holds in (True, False, None):
        notebook.verdict("F1", holds, "AUROC .9")
    assert [text.split(".**")[0] for text in said] == [
        "**F1: holds here", "**F1: does not hold here", "**F1: cannot be asked here",
    ]  # fmt: skip


def test_published_scatters_have_the_published_titles_and_axes():
    target = np.array([1, -1, 0, -1, 1])
    logits = np.random.default_rng(0).normal(size=(5, 2))
    expected = {
        crosr_figures.openmax_scores: ((np.linspace(0, 1, 5), target), "OpenMax Scores of outlying class", "Index"),
        crosr_figures.largest_logits: (
            (logits, target, "ab"), "Unnormalized Logit Value of class with highest score", "Position"
        ),
        crosr_figures.w_scores: ((np.linspace(0, 1, 5), target), "W-Scores (outlyingness) of predicted class", "Position"),
        crosr_figures.baseline_scores: ((np.linspace(0, 3, 5), target), "Baseline Scores for outlier identification", "Index"),
    }
    for draw, (arguments, title, x) in expected.items():
        (axes,) = draw(*arguments).axes
        assert title in [text.get_text() for text in axes.texts]
        assert (axes.get_xlabel(), axes.get_ylabel()) == (x, "Value")
    assert target[crosr_figures.in_order(target)].tolist() == [0, 1, 1, -1, -1]


def test_every_entry_of_a_mean_vector_is_numbered():
    (axes,) = crosr_figures.mean_vector(np.arange(8.0), 3, 1, "b").axes
    assert [str(index) for index in range(8)] == [text.get_text() for text in axes.texts if text.get_text().isdigit()]


def test_small_images_are_png():
    figure = comparison.bars({"a": 0.5, "b": 0.7}, "title", "note", "x")
    data = notebook.small_png(figure)
    assert data.startswith(b"\x89PNG") and len(data) < 40_000


def test_splits_are_compared_within_one_recipe_and_family(records):
    """A run with all classes known is no split, and a variant of a recipe is not the recipe."""
    for split in ("all", "cssr-a", "cssr-b"):
        for method in ("mls", "fused"):
            record(records, "cssr", "cifar10", method, split, "laptop")
    record(records, "cssr", "cifar10", "mls", "cssr-a", "laptop-full")
    found = evidence.by_split(("mls", "fused"))
    assert {method: [(entry["table"], entry["split"]) for entry in entries] for method, entries in found.items()} == {
        method: [("laptop", "cssr-a"), ("laptop", "cssr-b")] for method in ("mls", "fused")}  # fmt: skip


def test_methods_side_by_side_are_of_one_recipe(monkeypatch):
    import side_by_side

    found = {}
    monkeypatch.setattr(side_by_side, "_read", lambda key, methods: found.setdefault(key, methods))
    side_by_side.of_records()
    assert found
    for key, methods in found.items():
        tables = {entry["table"] for members in methods.values() for entry in members.values()}
        assert tables == {key[3]}
