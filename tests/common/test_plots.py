"""Figures show the numbers of common.metrics, come out the same every time, and refuse bad input in one line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common import metrics, plots
from common.errors import UserError
from common.plots import classes, curves, distributions, embedding, parts, reading, style
from common.plots import drawing as drawing_module
from common.results import write_scores

ROOT = Path(__file__).resolve().parents[2]


def make_scores(seed=0, count=600, features=False, classes=4):
    """Known and two unknown test sets, and held-out known samples; scores with ties."""
    rng = np.random.default_rng(seed)
    target = rng.integers(-1, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[target >= 0, target[target >= 0]] += 2.5
    split = np.where((target >= 0) & (rng.random(count) < 0.25), 1, 0).astype(np.int8)
    made = {
        "target": target, "prediction": logits.argmax(1), "unknown_score": np.round(-logits.max(1), 2), "split": split,
        "source": np.where(target < 0, rng.integers(1, 3, count), 0).astype(np.int16),
        "sources": np.array(["known set", "noise", "letters"]),
        "class_names": np.array([f"class {k}" for k in range(classes)]), "logits": logits,
    }  # fmt: skip
    return made | ({"features": rng.normal(size=(count, 8)) + 3 * target[:, None]} if features else {})


@pytest.fixture(scope="module")
def scores():
    return make_scores(features=True)


@pytest.fixture(scope="module")
def part(scores):
    return parts.test_part(scores)


def arrays_of(part):
    return part["target"], part["prediction"], part["unknown_score"]


def line(axes, label):
    (found,) = (one for one in axes.get_lines() if label in str(one.get_label()))
    return found.get_xdata(), found.get_ydata()


def test_roc_has_the_area_and_the_ring_of_the_metrics(scores, part):
    axes = plots.roc(scores).axes[0]
    x, y = line(axes, "AUROC")
    target, _, score = arrays_of(part)
    assert np.trapezoid(y, x) == pytest.approx(metrics.auroc(target, score), abs=1e-12)
    ring = next(one for one in axes.get_lines() if one.get_marker() == "o")
    assert ring.get_xdata()[0] == metrics.fpr95_known_positive(target, score)
    assert 0.95 <= ring.get_ydata()[0] < 0.97


def test_oscr_has_the_area_and_ends_at_the_closed_accuracy(scores, part):
    axes = plots.oscr(scores).axes[0]
    x, y = line(axes, "OSCR")
    assert np.trapezoid(y, x) == pytest.approx(metrics.oscr(*arrays_of(part)), abs=1e-12)
    arrow = next(one for one in axes.get_lines() if one.get_marker() == "<")
    assert y[-1] == arrow.get_ydata()[0] == metrics.closed_accuracy(*arrays_of(part)[:2])
    logarithmic = plots.oscr(scores, log=True).axes[0]
    assert logarithmic.get_xscale() == "log"
    assert (line(logarithmic, "OSCR")[0] > 0).all()


@pytest.mark.parametrize(("side", "area"), [("known", metrics.aupr_known), ("unknown", metrics.aupr_unknown)])
def test_precision_recall_sums_to_the_average_precision(scores, part, side, area):
    x, y = line(plots.precision_recall(scores).axes[("known", "unknown").index(side)], "AUPR")
    target, _, score = arrays_of(part)
    assert np.sum(np.diff(np.r_[0, x]) * y) == pytest.approx(area(target, score), abs=1e-12)


def test_confusion_matrix_shows_the_counts_at_the_validation_threshold(scores, part):
    axes = plots.confusion_matrix(scores).axes[0]
    threshold = metrics.thresholds(scores["target"], scores["unknown_score"], scores["split"])["validation"]
    target, prediction, score = arrays_of(part)
    counts = metrics.confusion(target, metrics.decide(prediction, score, threshold), 4)
    written = {(round(t.get_position()[1]), round(t.get_position()[0])): int(t.get_text())
               for t in axes.texts if t.get_text().isdigit()}  # fmt: skip
    assert written == {(r, c): n for (r, c), n in np.ndenumerate(counts) if n}
    assert f"{threshold:.4g}" in axes.get_title(loc="left")
    assert "held-out" in axes.get_title(loc="left")
    assert "given" in plots.confusion_matrix(scores, threshold=-1.0).axes[0].get_title(loc="left")


def test_reliability_bins_add_up_to_the_calibration_error(scores, part):
    count, confidence, accuracy = classes.reliability_bins(part)
    filled = count > 0
    gap = np.sum(count[filled] * np.abs(confidence - accuracy)[filled]) / count.sum()
    assert gap == pytest.approx(metrics.ece(part["target"], part["logits"]), abs=1e-12)
    probabilities = np.c_[np.exp(scores["logits"]) / np.exp(scores["logits"]).sum(1, keepdims=True) * 0.9,
                          np.full(len(scores["target"]), 0.1)]  # fmt: skip
    without = {k: v for k, v in scores.items() if k != "logits"} | {"probabilities": probabilities}
    np.testing.assert_allclose(classes.reliability_bins(parts.test_part(without))[1], confidence, rtol=1e-12)


def test_f1_curve_passes_through_the_metric_at_its_thresholds(scores, part):
    axes = plots.f1_threshold(scores).axes[0]
    x, y = line(axes, "macro-F1 over")
    target, prediction, score = arrays_of(part)
    for position in (0, 40, 90, len(x) - 1):
        decision = metrics.decide(prediction, score, x[position])
        assert y[position] == metrics.macro_f1(target, decision, 4)
    assert max(y) <= metrics.macro_f1_oracle(*arrays_of(part), 4).value + 1e-12


def test_histogram_shares_sum_to_one_and_lines_stand_at_the_thresholds(scores, part):
    edges = np.linspace(-2, -1, 11)
    assert distributions.shares(part["unknown_score"], edges).sum() == pytest.approx(1)
    axes = plots.histogram(scores).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    cuts = parts.cuts(scores)
    assert [cut.name for cut in cuts] == ["validation", "test_quantile", "oracle"]
    for cut in cuts:
        assert f"{cut.meaning}: {cut.value:.4g}" in labels
        assert any(list(one.get_xdata()) == [cut.value] * 2 for one in axes.get_lines())
    assert sum("unknown: " in text for text in labels) == 2


def test_scores_that_crowd_at_zero_get_a_logarithmic_axis(scores):
    crowded = dict(scores)
    crowded["unknown_score"] = np.where(scores["target"] < 0, 1.0, 1e-4) * np.exp(scores["unknown_score"])
    assert plots.histogram(crowded).axes[0].get_xscale() == "log"
    assert plots.scatter(crowded).axes[0].get_yscale() == "log"
    assert plots.histogram(scores).axes[0].get_xscale() == "linear"


def test_several_runs_share_an_axis_and_repetitions_become_a_band(scores, part):
    others = [make_scores(seed) for seed in (1, 2)]
    figure = plots.roc({"one": scores, "three": [scores, *others]})
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert any(text.startswith("three") and "±" in text and "n = 3" in text for text in labels)
    assert len(figure.axes[0].collections) == 1
    x, y = line(figure.axes[0], "three")
    curve_sets = [curves.acceptance(parts.test_part(one)) for one in (scores, *others)]
    at_half = np.mean([np.interp(x[200], c.fpr, c.ccr) for c in curve_sets])
    assert y[200] == pytest.approx(at_half, abs=0.02)
    for draw in (plots.oscr, plots.precision_recall, plots.f1_threshold):
        assert draw({"one": scores, "three": [scores, *others]}).axes[0].collections


def test_steps_and_lines_are_read_off_as_they_are_drawn():
    x, y = np.array([0.0, 0.5, 0.5, 1.0]), np.array([0.0, 0.2, 0.6, 1.0])
    np.testing.assert_allclose(curves.at_grid(x, y, np.array([0.0, 0.5, 0.75]), step=False), [0, 0.6, 0.8])
    np.testing.assert_allclose(curves.at_grid(x, y, np.array([0.1, 0.5, 0.75]), step=True), [0.2, 0.2, 1.0])


def test_tsne_is_seeded_cached_and_limited(scores, tmp_path, monkeypatch):
    cache = tmp_path / "tsne.npz"
    features = scores["features"][:60]
    first, backend = embedding.tsne_coordinates(features, cache=cache)
    again, _ = embedding.tsne_coordinates(features)
    np.testing.assert_array_equal(first.astype(np.float32), again.astype(np.float32))
    with np.load(cache) as stored:
        np.savez(cache, coordinates=stored["coordinates"] + 1, key=stored["key"])
    np.testing.assert_allclose(embedding.tsne_coordinates(features, cache=cache)[0], first + 1, rtol=1e-6)
    other = embedding.tsne_coordinates(features[:50], cache=cache)[0]  # other features: the cache does not answer
    assert len(other) == 50
    monkeypatch.setattr(embedding, "LARGEST", 80)
    axes = plots.tsne(scores).axes[0]
    assert sum(len(dots.get_offsets()) for dots in axes.collections) == 80
    assert backend in axes.get_title(loc="left")
    assert "80 of" in axes.get_title(loc="left")


def test_many_classes_and_sets_stay_drawable(monkeypatch):
    monkeypatch.setattr(embedding, "LARGEST", 150)
    many = make_scores(count=900, features=True, classes=60)
    many["sources"] = np.array([f"set {k}" for k in range(8)])
    many["source"] = np.where(many["target"] < 0, np.arange(900) % 7 + 1, 0).astype(np.int16)
    for draw in drawing_module.figures_of(many).values():
        draw().canvas.draw()


def test_same_scores_give_the_same_bytes(scores, tmp_path):
    for name in ("a", "b"):
        style.save(plots.scatter(scores), tmp_path / name / "scatter.png", svg=True)
    for ending in ("png", "svg"):
        first, second = ((tmp_path / name / f"scatter.{ending}").read_bytes() for name in "ab")
        assert first == second
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["scatter.png", "scatter.svg"]


@pytest.mark.parametrize(("kept", "lacking"), [("known", "unknown"), ("unknown", "known")])
def test_one_sided_scores_are_refused_in_words(scores, kept, lacking):
    mask = (scores["target"] >= 0) == (kept == "known")
    whole = ("sources", "class_names")
    one_sided = {k: v if k in whole else v[mask] for k, v in scores.items()}
    for draw in (plots.roc, plots.histogram, plots.confusion_matrix):
        with pytest.raises(UserError, match=f"only {kept} test samples.*need {lacking}"):
            draw(one_sided)


def test_missing_features_and_logits_are_refused_in_words(scores):
    bare = {k: v for k, v in scores.items() if k not in ("features", "logits")}
    with pytest.raises(UserError, match="no features, which t-SNE needs"):
        plots.tsne(bare)
    with pytest.raises(UserError, match="neither logits nor probabilities"):
        plots.reliability(bare)
    assert {"tsne", "reliability"}.isdisjoint(drawing_module.figures_of(bare))


def write_run(directory, scores, **config):
    import json

    write_scores(directory / "scores.npz", scores)
    (directory / "config.json").write_text(json.dumps({"rate": 0.1, "save": directory.name} | config))
    (directory / "meta.json").write_text(json.dumps({"paper": "baseline_openmax", "seed": config.get("seed", 0)}))
    return directory


def test_runs_that_differ_only_in_seed_or_split_are_repetitions(tmp_path):
    runs = [write_run(tmp_path / f"net-s{seed}", make_scores(seed), seed=seed, split=f"a-{seed}") for seed in range(3)]
    runs.append(write_run(tmp_path / "wide", make_scores(5), rate=0.2))
    groups = reading.grouped([reading.read_run(run) for run in runs])
    assert {label: len(members) for label, members in groups.items()} == {"net": 3, "wide": 1}


def run_cli(*words, cwd=ROOT):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, cwd=cwd, env=os.environ)


def test_script_draws_one_run_and_several(tmp_path):
    one = write_run(tmp_path / "one", make_scores(0), seed=0)
    two = write_run(tmp_path / "two", make_scores(1), seed=1)
    done = run_cli("baseline_openmax/plots.py", one)
    assert done.returncode == 0, done.stderr
    names = {path.stem for path in (one / "figures").glob("*.png")}
    assert names == {*drawing_module.CURVES, "histogram", "scatter", "confusion", "reliability"}
    done = run_cli("plots.py", one, two, "--figures", "roc", "--out", tmp_path / "both", cwd=ROOT / "baseline_openmax")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "both").iterdir()] == ["compare_roc.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no run or scores file 'nowhere'"),
        (["{empty}"], "has no scores.npz; python baseline_openmax/test.py --run_dir"),
        (["{full}", "--figures", "tsne"], "no features, which t-SNE needs"),
        (["{full}", "--score", "msp"], "has no score 'msp', choose from own score"),
        (["{full}", "{full}", "--figures", "confusion"], "several runs share an axis only in roc"),
    ],
)
def test_bad_input_is_one_line(tmp_path, words, said):
    (tmp_path / "empty").mkdir()
    full = write_run(tmp_path / "full", make_scores())
    done = run_cli("baseline_openmax/plots.py", *(w.format(empty=tmp_path / "empty", full=full) for w in words))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_window_system_and_no_global_figures(tmp_path):
    write_scores(tmp_path / "scores.npz", make_scores(count=200))
    code = ("import sys; from common.plots.drawing import main; import common.plots;"
            "assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules;"
            f"main([r'{tmp_path}']); assert 'matplotlib.pyplot' not in sys.modules")  # fmt: skip
    done = run_cli("-c", code)
    assert done.returncode == 0, done.stderr


def test_runs_of_other_scores_or_unknown_sets_are_no_repetitions(tmp_path):
    elsewhere = make_scores(2) | {"sources": np.array([f"other {name}" for name in make_scores(2)["sources"]])}
    runs = [write_run(tmp_path / f"net-s{seed}", scores, seed=seed) for seed, scores in enumerate((make_scores(0), elsewhere))]
    assert [len(members) for members in reading.grouped([reading.read_run(run) for run in runs]).values()] == [1, 1]


def test_a_name_that_several_papers_runs_have_is_asked_about(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROOT", tmp_path)
    for paper in ("crosr", "cssr"):
        write_run(tmp_path / "runs" / paper / "digits", make_scores(0))
    with pytest.raises(UserError, match=r"several runs are named 'digits', say which: runs/crosr/digits, runs/cssr/digits"):
        reading.locate("digits")
    assert reading.locate("digits", "cssr") == tmp_path / "runs" / "cssr" / "digits" == reading.locate("cssr/digits")


def test_scores_of_other_programs_need_three_arrays(tmp_path):
    """docs/metrics.md: target, prediction, unknown_score; known classes get numbers for names."""
    scores = make_scores(0)
    np.savez(tmp_path / "theirs.npz", **{name: scores[name] for name in ("target", "prediction", "unknown_score")})
    for command in (["report", tmp_path / "theirs.npz", "--out", tmp_path / "one.html"],
                    ["report", "--compare", tmp_path / "theirs.npz", tmp_path / "theirs.npz", "--out", tmp_path / "two.html"],
                    ["explorer", tmp_path / "theirs.npz", "--out", tmp_path / "explorer.html"]):  # fmt: skip
        done = run_cli("-m", f"common.{command[0]}", *command[1:])
        assert done.returncode == 0, done.stderr
    run = reading.read_run(tmp_path / "theirs.npz")
    assert run.own_scores["class_names"][0] == "class 0"
    drawn = drawing_module.draw_run(run, tmp_path / "figures")
    assert drawn and all(Path(path).exists() for path in drawn)


def test_the_readmes_own_method_runs(tmp_path):
    """The Python block of README's "I have my own method", as it stands."""
    blocks = [part.split("```")[0] for part in (ROOT / "README.md").read_text().split("```python\n")]
    (block,) = (block for block in blocks if "mine.npz" in block)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0 and 0.9 < float(done.stdout) < 1, done.stderr
