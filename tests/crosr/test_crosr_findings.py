"""The published analysis from the published arrays: tail table, per-class table, z-scores, findings; and findings of a run."""

import json

import numpy as np
import pytest

from common.errors import UserError
from common.metrics import auroc
from crosr import findings, per_class
from crosr.features import max_logit_statistics, statistics_of
from crosr.findings import Evaluated, check
from crosr.scores import Variant, fit, zscore
from crosr.sweep import sweep

CLASSES = [str(k) for k in range(10)]
SETTINGS = {"tail_size": 100, "alpha": 10, "distance": "euclidean", "softmax": "before", "clip": "zero"}

# README of crosr_bda: accuracy, F1 by arg max, ROC-AUC, Youden cut, F1 at the cut; classes 0-9 and unknown.
PUBLISHED_TABLE = [
    [0.9680, 0.7388, 0.9898, 0.1655, 0.6840],
    [0.9700, 0.7590, 0.9921, 0.2405, 0.7317],
    [0.9394, 0.5903, 0.9718, 0.1709, 0.5048],
    [0.8037, 0.2791, 0.8946, 0.0689, 0.2358],
    [0.9579, 0.6835, 0.9846, 0.2542, 0.6454],
    [0.9583, 0.6685, 0.9740, 0.1080, 0.5659],
    [0.9419, 0.6085, 0.9794, 0.4328, 0.6226],
    [0.9826, 0.8417, 0.9922, 0.1173, 0.7561],
    [0.9619, 0.7098, 0.9894, 0.1991, 0.6588],
    [0.9136, 0.5180, 0.9795, 0.4124, 0.5288],
    [0.4973, 0.0055, 0.8834, 0.0004, 0.8326],
]

# Recomputed from the published logits, Euclidean: tail, unknown found, known rejected, AUROC, accuracy, F1 unknown, macro-F1.
# The rows of tails 20, 100 and 1000, of three distances, are in own_formula_distance_metrics.npz.
TAIL_TABLE = [
    (200, 820, 209, 0.861, 0.481, 0.149, 0.606),
    (500, 3007, 676, 0.833, 0.573, 0.440, 0.663),
    (2000, 7267, 2640, 0.795, 0.712, 0.730, 0.718),
    (4000, 8907, 4669, 0.777, 0.704, 0.756, 0.649),
]
COUNTS, RATES = ("true_positives", "false_positives"), ("auroc", "accuracy", "f1_unknown", "macro_f1_argmax")


class Logits:
    """The published logits as an evaluation lays them out, and their statistics."""

    def __init__(self, stored):
        logits = np.concatenate([stored["test_logits"], stored["outlier_logits"]])
        target = np.r_[stored["test_labels"].astype(np.int64), np.full(len(stored["outlier_logits"]), -1)]
        self.arrays = {"logits": logits, "target": target, "prediction": logits.argmax(1), "split": np.zeros(20000, np.int8)}
        train = {"logits": stored["train_logits"]}, stored["train_labels"].astype(np.int64)
        self.statistics = statistics_of(*train)
        self.larger = statistics_of(*train, largest=4000)

    def rows(self, grid, statistics=None, **changed):
        variant = Variant("logits", "max", SETTINGS | changed)
        return sweep(self.arrays, statistics or self.statistics, variant, grid, CLASSES)


@pytest.fixture(scope="module")
def published_logits(golden):
    return Logits(golden("crosr_logits.npz"))


@pytest.fixture(scope="module")
def published_scores(golden):
    stored = golden("crosr_published_scores.npz")
    labels = stored["labels"].astype(np.int64)
    scores = stored["scores"].astype(np.float64)
    scores[:, -1] = stored["p_unknown_f64"]
    return np.where(labels == 10, -1, labels), scores


def test_golden_tail_table(published_logits):
    """The checkpoint's statistics reach tail 1000; larger ones are fitted from the training logits."""
    rows = published_logits.rows({"tail_size": [200, 500]})
    rows += published_logits.rows({"tail_size": [2000, 4000]}, published_logits.larger)
    for row, (tail, *expected) in zip(rows, TAIL_TABLE, strict=True):
        assert row["tail_size"] == tail
        assert [row[name] for name in COUNTS] == pytest.approx(expected[:2], abs=1), tail
        assert [row[name] for name in RATES] == pytest.approx(expected[2:], abs=5.1e-4), tail


def test_golden_distances_and_softmax_orders(published_logits, golden):
    stored = golden("own_formula_distance_metrics.npz")
    column = {str(name): place for place, name in enumerate(stored["metric_names"])}
    theirs = ("n_unknown_out", "n_unknown_in", "auroc_unknown", "accuracy_20000", "f1_class10_argmax", "macro_f1_11")
    for softmax in ("before", "after"):
        grid = {"distance": ["euclidean", "eucos"], "tail_size": [20, 100, 1000]}
        rows = published_logits.rows(grid, softmax=softmax)
        rows += published_logits.rows({"distance": ["cosine"], "tail_size": [20, 100]}, softmax=softmax)
        assert len(rows) == 8
        for row in rows:
            key = f"{row['distance'].replace('euclidean', 'euclid')}_t{row['tail_size']}_{softmax}"
            expected = [stored[key][column[name]] for name in theirs]
            assert [row[name] for name in COUNTS] == pytest.approx(expected[:2], abs=1), key
            assert [row[name] for name in RATES] == pytest.approx(expected[2:], abs=1e-4), key


def test_golden_softmax_after(published_logits):
    rows = published_logits.rows({"tail_size": [20, 100, 200]}, softmax="after")
    assert [row["auroc"] for row in rows] == pytest.approx([0.914, 0.901, 0.878], abs=5.1e-4)
    assert [(row["true_positives"], row["false_positives"]) for row in rows[1:]] == [(81, 122), (1387, 319)]


def test_golden_zscores(published_logits, golden):
    stored = golden("metrics_golden.npz")
    arrays, statistics = published_logits.arrays, published_logits.statistics
    mean, std = statistics["max_logit_mean"], statistics["max_logit_std"]
    np.testing.assert_allclose([mean, std], stored["max_logit_mu_sd_train"], rtol=1e-12)
    target, logits = arrays["target"], arrays["logits"]
    released = np.where(target < 0, arrays["prediction"], target)
    assert auroc(target, zscore(logits, mean, std, released)) == pytest.approx(0.819, abs=5e-4)
    assert auroc(target, zscore(logits, mean, std, released, two_sided=False)) == pytest.approx(0.895, abs=5e-4)
    for name, two_sided in (("abs", True), ("onesided", False)):
        found = auroc(target, zscore(logits, mean, std, two_sided=two_sided))
        assert found == pytest.approx(stored[f"baseline_z_predicted_{name}"][0], abs=1e-9)


def test_golden_per_class_table(published_scores, tmp_path):
    """All 55 cells of the README to 4 decimals, in the array, the printed table and the file."""
    target, scores = published_scores
    arrays = {"target": target, "probabilities": scores, "split": np.zeros(20000, np.int8),
              "source": np.where(target < 0, 1, 0), "sources": np.array(["cifar10", "imagenet-crop"])}  # fmt: skip
    tables = per_class.tables(arrays)
    assert list(tables) == ["imagenet-crop"]
    table, report = tables["imagenet-crop"]
    columns = (table.accuracy, table.f1_argmax, table.auroc, table.youden_cut, table.f1_at_cut)
    np.testing.assert_allclose(np.array(columns).T, PUBLISHED_TABLE, atol=5.1e-5)
    printed = per_class.one_vs_rest_text(table, CLASSES).splitlines()
    cells = np.array([[float(cell) for cell in line.split()[1:]] for line in printed[1:]])
    np.testing.assert_allclose(cells, PUBLISHED_TABLE, atol=1.01e-4)
    # The report of the same array, as scikit-learn lays it out: accuracy .45, macro .49 .81 .58, weighted .38 .45 .32.
    lines = per_class.report_text(report, CLASSES).splitlines()
    assert lines[-3].split() == ["accuracy", "0.45", "20000"]
    assert lines[-2].split() == ["macro", "avg", "0.49", "0.81", "0.58", "20000"]
    assert lines[-1].split() == ["weighted", "avg", "0.38", "0.45", "0.32", "20000"]
    assert lines[5].split()[0] == "3" and lines[5].split()[-1] == "1000"
    per_class.write_tables(tmp_path / "per_class.csv", {"crosr": tables}, CLASSES)
    stored = np.genfromtxt(tmp_path / "per_class.csv", delimiter=",", skip_header=1, usecols=range(3, 8))
    np.testing.assert_allclose(stored, PUBLISHED_TABLE, atol=5.1e-5)


def by_name(rows):
    return {row["name"]: row for row in rows}


def test_golden_findings_of_the_published_scores(published_scores, golden):
    target, scores = published_scores
    found, stored = by_name(check(Evaluated(target, CLASSES, probabilities=scores))), golden("metrics_golden.npz")
    values = {name: row["values"] for name, row in found.items()}
    assert values["F1"]["auroc"] == pytest.approx(float(stored["auroc"]), abs=1e-9)
    assert values["F1"]["aupr_unknown"] == pytest.approx(0.8106, abs=5e-5)
    assert values["F1"]["fpr95_unknown_positive"] == pytest.approx(0.335, abs=5e-4)
    assert values["F2"]["f1_unknown"] == pytest.approx(0.0055, abs=5e-5)
    assert (values["F2"]["found"], values["F2"]["false_alarms"]) == (28, 82)
    assert values["F3"]["accuracy"] == pytest.approx(0.44735, abs=1e-9)
    assert values["F3"]["closed_accuracy"] == pytest.approx(0.8998, abs=1e-9)
    macro = [values["F3"][f"macro_{name}"] for name in ("precision", "recall", "f1")]
    np.testing.assert_allclose(macro, stored["classification_report_macro_weighted"][0], atol=1e-7)
    assert values["F4"]["youden_cut"] == pytest.approx(3.70e-4, abs=5e-7)
    assert values["F4"]["tpr_at_cut"] == pytest.approx(0.8887) and values["F4"]["fpr_at_cut"] == pytest.approx(0.246)
    assert values["F4"]["f1_at_cut"] == pytest.approx(0.8326, abs=5e-5)
    assert (values["F9"]["most_predicted"], values["F9"]["taken"]) == (3, 3530)
    assert values["F10"]["spearman_one_minus_known"] == pytest.approx(0.86, abs=5e-3)
    assert {name for name, row in found.items() if row["verdict"] == "holds"} == {"F1", "F2", "F3", "F4", "F9", "F10"}
    assert {row["verdict"] for name, row in found.items() if name in ("F5", "F6", "F7", "F8")} == {"not applicable"}


def test_golden_findings_of_the_published_logits(published_logits):
    arrays, statistics = published_logits.arrays, published_logits.statistics
    model = fit(statistics, Variant("logits", "max", SETTINGS), CLASSES)
    tails = [(row["tail_size"], row["true_positives"], row["false_positives"])
             for row in published_logits.rows({"tail_size": [20, 100, 200]})]  # fmt: skip
    one = Evaluated(
        arrays["target"], CLASSES, model.probabilities(arrays["logits"].astype(float)), arrays["logits"],
        model.tail_probabilities(arrays["logits"]), None, (statistics["max_logit_mean"], statistics["max_logit_std"]), tails,
    )  # fmt: skip
    found = by_name(check(one))
    values = {name: row["values"] for name, row in found.items()}
    expected = {"mean_known": 14.0, "mean_unknown": 5.8}
    assert {name: round(values["F5"][name], 1) for name in expected} == expected
    expected = {"auroc_mls": 0.914, "auroc_energy": 0.916, "auroc_msp": 0.867, "auroc_z_two_sided_released": 0.819,
                "auroc_z_one_sided_released": 0.895, "auroc_z_two_sided": 0.817, "auroc_z_one_sided": 0.894,
                "auroc_p_unknown": 0.881}  # fmt: skip
    assert {name: round(values["F5"][name], 3) for name in expected} == expected
    assert values["F6"]["share_unknown"] == pytest.approx(0.898, abs=5e-4)
    assert values["F6"]["share_known"] == pytest.approx(0.967, abs=5e-4)
    assert values["F6"]["auroc"] == pytest.approx(0.54, abs=5e-3)
    assert values["F9"]["taken"] == 3531 and values["F9"]["most_predicted"] == values["F9"]["lowest_logits"] == 3
    assert values["F9"]["mean_largest_logit"] == pytest.approx(9.83, abs=5e-3)
    assert all(row["verdict"] == ("not applicable" if name == "F7" else "holds") for name, row in found.items())


def made(count=400, classes=4):
    generator = np.random.default_rng(0)
    target = np.r_[generator.integers(0, classes, count // 2), np.full(count // 2, -1)]
    probabilities = generator.dirichlet(np.ones(classes + 1), count)
    return target, [str(k) for k in range(classes)], probabilities


def test_verdicts_turn_with_the_data():
    """Each finding in a case made to contradict it."""
    target, names, probabilities = made()
    unknown = target < 0
    perfect = np.full((400, 5), 0.01)
    perfect[np.arange(400), np.where(unknown, 4, target)] = 0.96
    logits = np.where(unknown[:, None], 20.0, 1.0) + np.eye(5)[np.where(unknown, 0, target)][:, :4]
    means = np.zeros((4, 64))
    one = Evaluated(target, names, perfect, logits, np.where(unknown[:, None], 0.9, 0.0) * np.ones((400, 4)), means + 1,
                    tails=[(20, 5, 9), (50, 9, 5)])  # fmt: skip
    found = by_name(check(one))
    verdicts = {name: row["verdict"] for name, row in found.items()}
    assert verdicts["F1"] == "holds" and found["F1"]["values"]["auroc"] == 1
    assert {verdicts[name] for name in ("F2", "F3", "F4", "F5", "F6", "F7", "F8")} == {"does not hold"}
    means[:, 32:33] = 1
    dead = by_name(check(Evaluated(target, names, probabilities, latent_means=means)))
    assert dead["F1"]["verdict"] == "does not hold" and dead["F7"]["verdict"] == "holds"
    assert dead["F7"]["values"] == {"share": 63 / 64, "share_z2": 1.0, "share_z1": 31 / 32}


def test_max_logit_statistics_of_an_absent_class():
    found = max_logit_statistics(np.array([1.0, 3.0]), np.array([0, 0]), 2)
    assert found["max_logit_mean"][0] == 2 and found["max_logit_std"][0] == 1
    assert np.isnan(found["max_logit_mean"][1]) and np.isnan(found["max_logit_std"][1])


def test_findings_of_a_run(own_run, capsys, tmp_path, monkeypatch):
    from common import comparison
    from crosr import test as script

    with pytest.raises(UserError, match="has not been evaluated"):
        findings.main([str(own_run)])
    script.main(["--run_dir", str(own_run), "--score", "mls", "crosr", "openmax", "--tail_size", "20", "--no_report",
                 "--unknown", "rest", "noise"])  # fmt: skip
    capsys.readouterr()
    for module in (findings, comparison):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    findings.main([str(own_run), "--unknown", "digits-unknown", "--record", "own"])
    table = comparison.filled("<!-- ledger: findings=crosr/own -->\nold\n<!-- end ledger -->\n")
    printed = capsys.readouterr().out
    stored = json.loads((own_run / "findings.json").read_text())
    assert [row["name"] for row in stored["findings"]] == [f"F{number}" for number in range(1, 11)]
    assert stored["score"] == "crosr" and not any(row["verdict"] == "not applicable" for row in stored["findings"])
    metrics = json.loads((own_run / "metrics.json").read_text())["scores"]
    values = by_name(stored["findings"])
    assert values["F1"]["values"]["auroc"] == pytest.approx(metrics["crosr"]["digits-unknown"]["auroc"])
    assert values["F5"]["values"]["auroc_mls"] == pytest.approx(metrics["mls"]["digits-unknown"]["auroc"], abs=1e-6)
    assert all(f"{row['name']} " in printed and row["ours"] in printed for row in stored["findings"])
    page = (own_run / "findings.md").read_text()
    assert page.count("\n| F") == 10 and "[R]" in page
    assert "own: digits-unknown" in table and all(f"**{row['verdict']}**: {row['ours']} |" in table for row in stored["findings"])
    # F8's row of the evaluated tail counts what arg max over the saved probabilities does.
    from common.metrics import decide_argmax
    from common.results import read_scores

    scores = read_scores(own_run / "scores_crosr.npz")
    rows = (scores["split"] == 0) & (scores["source"] < 2)
    decision, target = decide_argmax(scores["probabilities"][rows]), scores["target"][rows]
    assert values["F8"]["values"]["found_20"] == ((decision < 0) & (target < 0)).sum()
    assert values["F8"]["values"]["false_alarms_20"] == ((decision < 0) & (target >= 0)).sum()

    findings.main([str(own_run), "--score", "openmax"])
    stored = by_name(json.loads((own_run / "findings.json").read_text())["findings"])
    assert stored["F7"]["verdict"] == "not applicable"
    for flags, expected in ((["--score", "mls"], "choose from crosr, openmax"), (["--unknown", "noises"], "nearest: noise")):
        with pytest.raises(UserError, match=expected):
            findings.main([str(own_run), *flags])
    (own_run / "features_avgpool.npz").unlink()
    with pytest.raises(UserError, match="not those of the evaluation"):
        findings.main([str(own_run)])
    script.main(["--run_dir", str(own_run), "--score", "mls", "--no_report"])
    with pytest.raises(UserError, match="without an OpenMax score"):
        findings.main([str(own_run)])
