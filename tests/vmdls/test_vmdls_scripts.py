"""main.py and test.py on digits: figures, files, the original's flags, statistics made anew, bad input in one line."""

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoints
from common.arguments import run_script
from common.metrics import auroc, fpr95_known_positive
from common.results import read_scores
from vmdls.scores import cauroc

ROOT = Path(__file__).resolve().parents[2]
SCORES = ("vmdls", "mean", "g", "t1", "t2", "t3")
# What follows the network and data flags in the release's README, for its MNIST and CIFAR rows.
README_FLAGS = [
    "--max_epochs", "500", "--gpus", "0,", "--generation_epoch", "151", "--lower_bound", "0.05", "--step_size", "75",
    "--margin_max_distance", "32", "--data_transforms", "blob", "--kl_coeff", "0.1", "--lr", "0.1", "--lr", "0.001",
    "--margin_jump", "1.0", "--margins_epoch", "10", "--batch_classes", "1", "--sample_count", "4996",
    "--batch_size", "2500", "--num_workers", "8", "--offline",
]  # fmt: skip


def metrics_of(directory):
    return json.loads((Path(directory) / "metrics.json").read_text())


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A digits run of few epochs, evaluated with every score."""
    from vmdls import main, test

    directory = tmp_path_factory.mktemp("vmdls") / "run"
    main.main(["--preset", "digits", "--max_epochs", "8", "--run_dir", str(directory)])
    test.main(["--run_dir", str(directory), "--score", *SCORES, "--thresholding"])
    return directory


@pytest.fixture
def own_run(evaluated, tmp_path):
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(evaluated, tmp_path / "own"))


def rewrite(directory, change):
    """Change the tensors of a run's checkpoint."""
    tensors, header = checkpoints.load_weights(directory, paper="vmdls")
    change(tensors)
    checkpoints.save_weights(directory / "weights.safetensors", tensors, header)


def error_of(capsys, flags):
    from vmdls import test

    with pytest.raises(SystemExit) as left:
        run_script(test.main, [str(flag) for flag in flags])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1
    return error


def test_digits_are_told_from_unknown_ones(evaluated):
    found = metrics_of(evaluated)["scores"]
    assert set(found) == set(SCORES)
    values = found["vmdls"]["digits-unknown"]
    assert values["closed_accuracy"] >= 0.97 and values["auroc"] >= 0.95
    assert found["mean"]["digits-unknown"]["auroc"] >= 0.8


def test_scores_follow_from_the_log_likelihoods(evaluated):
    scores = read_scores(evaluated / "scores.npz")
    tensors, header = checkpoints.load_weights(evaluated, paper="vmdls")
    assert scores["logits"].dtype == scores["unknown_score"].dtype == np.float64
    highest = float(tensors["statistics.highest"])
    np.testing.assert_allclose(scores["unknown_score"], 1 + highest - scores["logits"].max(1), rtol=1e-12)
    for name in SCORES:
        single = read_scores(evaluated / ("scores.npz" if name == "vmdls" else f"scores_{name}.npz"))
        np.testing.assert_array_equal(single["prediction"], single["logits"].argmax(1))
        if name != "vmdls":
            np.testing.assert_array_equal(single["unknown_score"], -single["logits"].max(1))
    assert set(scores["split"]) == {0, 1}  # no training image is needed


def test_a_repeated_layer_is_modelled_once(evaluated):
    """The last map's mean is both t3 and g in this encoder, and the mean vector is an affine function of g."""
    tensors, header = checkpoints.load_weights(evaluated, paper="vmdls")
    column = tensors["statistics.column"]
    latent = header["model"]["latent_dim"]
    assert column.tolist() == [*range(128), *range(64, 128), *[-1] * latent]
    assert tensors["statistics.covariance"].shape == (6, 128 * 129 // 2)
    g, t3 = (read_scores(evaluated / f"scores_{name}.npz")["unknown_score"] for name in ("g", "t3"))
    np.testing.assert_array_equal(g, t3)


def table_of(path):
    with open(path) as lines:
        return {round(100 * float(row["tpr"])): row for row in csv.DictReader(lines)}


def test_tables_hold_the_metrics_own_figures(evaluated, own_run):
    from vmdls import test

    values = metrics_of(evaluated)["scores"]["vmdls"]["digits-unknown"]
    rows = table_of(evaluated / "thresholds.csv")
    assert set(rows[95]) == {"unknown", "threshold", "tpr", "fpr"} and len(rows) == 100
    assert float(rows[95]["fpr"]) == pytest.approx(values["fpr95_known_positive"], abs=1e-6)
    assert not (evaluated / "f1_by_threshold.csv").exists()
    test.main(["--run_dir", str(own_run), "--no_report"])
    rows = table_of(own_run / "f1_by_threshold.csv")
    assert float(rows[95]["macro_f1"]) == pytest.approx(values["macro_f1_test_quantile"], abs=1e-6)
    assert float(rows[100]["known_accuracy"]) == pytest.approx(values["closed_accuracy"], abs=1e-6)
    named = metrics_of(own_run)["f1_at_95_tpr"]["vmdls"]["digits-unknown"]
    assert named == {"threshold": float(rows[95]["threshold"]), "macro_f1": pytest.approx(float(rows[95]["macro_f1"]), abs=1e-6)}
    # Without ties CAUROC is OSCR over the closed accuracy.
    area = values["oscr"] / values["closed_accuracy"]
    assert metrics_of(evaluated)["cauroc"]["vmdls"]["digits-unknown"] == pytest.approx(area, abs=1e-9)


def test_figures_and_snapshots_are_files(evaluated):
    drawn = {path.name for path in (evaluated / "figures").iterdir()}
    assert {"roc.png", "f1_threshold.png", "histogram.png", "confusion.png"} <= drawn
    with np.load(evaluated / "latents" / "epoch-008.npz", allow_pickle=False) as stored:
        assert stored["mean"].shape == (len(stored["target"]), 16) and stored["class_mean"].shape == (6, 16)
        assert set(stored["target"].tolist()) == {-1, *range(6)}
    assert sum(path.stat().st_size for path in (evaluated / "latents").iterdir()) < 8 * 40_000


def test_covariances_that_are_not_stored_are_computed_and_said(own_run, capsys):
    from vmdls import test

    rewrite(own_run, lambda tensors: tensors.pop("statistics.covariance"))
    first = read_scores(own_run / "scores.npz")
    test.main(["--run_dir", str(own_run), "--no_report"])
    assert "computed from" in capsys.readouterr().out
    again = read_scores(own_run / "scores.npz")
    np.testing.assert_allclose(again["unknown_score"], first["unknown_score"], rtol=1e-9, atol=1e-6)


def test_a_stored_checkpoint_scores_without_training_data(evaluated, tmp_path, monkeypatch):
    from vmdls import scoring, test

    checkpoints.add(evaluated, "digits", tmp_path / "store")
    monkeypatch.setattr(scoring, "collect_statistics", None)
    test.main(["--checkpoint_path", str(tmp_path / "store" / "digits.safetensors"), "--run_dir", str(tmp_path / "out")])
    again, first = (read_scores(folder / "scores.npz") for folder in (tmp_path / "out", evaluated))
    assert np.corrcoef(again["unknown_score"], first["unknown_score"])[0, 1] > 0.999
    assert (again["prediction"] == first["prediction"]).mean() > 0.98


def test_the_originals_command_is_accepted_and_changes_nothing(evaluated, own_run, capsys):
    from vmdls import test

    network = ["--enc_type", "small", "--latent_dim", "16", "--enc_out_dim", "64", "--known_dataset", "digits",
               "--class_num", "6", "--input_height", "8", "--unknown_dataset", "rest"]  # fmt: skip
    test.main(["--checkpoint_path", str(own_run), *network, *README_FLAGS, "--no_report"])
    again, first = (read_scores(folder / "scores.npz") for folder in (own_run, evaluated))
    np.testing.assert_allclose(again["unknown_score"], first["unknown_score"], rtol=1e-6)


def test_switches_of_the_statistics(evaluated, own_run, capsys):
    from vmdls import test

    first = read_scores(evaluated / "scores.npz")

    def scored(*flags):
        test.main(["--run_dir", str(own_run), "--no_report", *flags])
        return read_scores(own_run / "scores.npz")["unknown_score"], metrics_of(own_run)["method"]

    shifted, method = scored("--transductive")
    assert method == "vmdls-transductive"
    assert "computed from" not in capsys.readouterr().out
    assert np.ptp(shifted - first["unknown_score"]) < 1e-9  # a constant: the ranking stays
    # One batch of every class's images is all there is to see, so nothing is overwritten ...
    visits, method = scored("--released_statistics", "--batch_classes", "6", "--sample_count", "111")
    assert method == "vmdls-released6x111" and "computed from" in capsys.readouterr().out
    # ... while in batches of 40 each class comes several times: half or less of its sums are left.
    overwritten, method = scored("--released_statistics")
    assert method == "vmdls-released10x40"
    assert np.corrcoef(visits, first["unknown_score"])[0, 1] > 0.9
    assert np.abs(overwritten - visits).mean() > 1
    shrunk, method = scored("--shrinkage", "0.2")
    assert method == "vmdls-shrinkage0.2" and np.abs(shrunk - first["unknown_score"]).mean() > 1
    redundant, method = scored("--keep_redundant")
    assert method == "vmdls-redundant"
    order = [values[first["split"] == 0].argsort().argsort() for values in (redundant, first["unknown_score"])]
    assert np.corrcoef(*order)[0, 1] > 0.98


def test_own_pictures(evaluated, own_run, tmp_path, capsys):
    from PIL import Image
    from sklearn.datasets import load_digits

    from vmdls import test

    for number in (0, 1):
        picture = (load_digits().images[number] * 255 / 16).round().astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    pictures = [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    test.main(["--run_dir", str(evaluated), "--images", *pictures])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("threshold" in line for line in lines)
    assert lines[0].split()[1] == "0" and lines[1].split()[1] == "1"
    test.main(["--run_dir", str(own_run), "--transductive", "--no_report"])
    capsys.readouterr()
    assert "belongs to vmdls-transductive, this is vmdls" in error_of(capsys, ["--run_dir", own_run, "--images", *pictures])


def test_records_name_score_and_switches(own_run, tmp_path, monkeypatch):
    from common import results
    from vmdls import test

    monkeypatch.setattr(results, "RECORDS", tmp_path / "records")
    test.main(
        ["--run_dir", str(own_run), "--score", "vmdls", "mean", "--transductive", "--record", "check", "--no_report"]
    )
    paths = sorted((tmp_path / "records" / "vmdls").glob("*.json"))
    assert [path.stem for path in paths] == [
        "check-digits-mean-first_6-s0", "check-digits-vmdls_transductive-first_6-s0"
    ]  # fmt: skip
    assert json.loads(paths[0].read_text())["backbone"] == "small"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--enc_type", "densenet"], "--enc_type densenet contradicts the checkpoint, which has small"),
        (["--latent_dim", "32"], "contradicts"),
        (["--enc_out_dim", "512"], "contradicts"),
        (["--class_num", "10"], "contradicts"),
        (["--input_height", "28"], "contradicts"),
        (["--known_dataset", "mnist"], "contradicts"),
        (["--first_conv"], "contradicts"),
        (["--unknown_dataset", "omniglott"], "nearest"),
        (["--shrinkage", "1.5"], "shrinkage"),
        (["--score", "vmdlss"], "vmdls"),
        (["--thresholdin"], "nearest: --thresholding"),
        (["--sample_count", "0"], "at least 1"),
        (["--unknown_dataset", "digits"], "overlap"),
        (["--thresholding", "--images", "a.png"], "leave out --images"),
        (["--ablation", "--transductive"], "leave out --transductive"),
        (["--ablation", "--score", "mean"], "name it with --score"),
        (["--ae_features", "--score", "mean"], "name it with --score"),
        (["--ae_weights", "x"], "goes with --ae_features"),
    ],
)
def test_bad_flags_are_one_line(evaluated, flags, expected, capsys):
    assert expected in error_of(capsys, ["--run_dir", evaluated, *flags])


def test_pictures_before_any_evaluation_ask_for_one(own_run, capsys):
    (own_run / "metrics.json").unlink()
    assert "evaluate it once" in error_of(capsys, ["--run_dir", own_run, "--images", "a.png"])


def test_weights_that_are_not_finite_are_one_line(own_run, capsys):
    rewrite(own_run, lambda tensors: tensors["mean_head.bias"].fill_(torch.nan))
    assert "NaN or infinite" in error_of(capsys, ["--run_dir", own_run])


def test_another_network_than_the_headers_is_one_line(own_run, capsys):
    rewrite(own_run, lambda tensors: tensors.pop("mean_head.bias"))
    assert "do not fit" in error_of(capsys, ["--run_dir", own_run])


def test_scripts_run_as_a_user_runs_them(tmp_path):
    def run(script, *flags):
        command = [sys.executable, str(ROOT / "vmdls" / script), "--run_dir", str(tmp_path / "run"), *flags]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ, cwd=tmp_path)

    done = run("main.py", "--preset", "digits", "--dry_run")
    assert done.returncode == 0, done.stderr
    done = run("test.py", "--dry_run", "--score", "vmdls", "mean", "--thresholding")
    assert done.returncode == 0 and "vmdls" in done.stdout, done.stderr
    assert (tmp_path / "run" / "dry_run" / "thresholds.csv").exists()


def test_benchmark_compares_equal_work():
    """The loss that lists its triplets and ours give one gradient; the scan over thresholds nears the exact metrics."""
    pytest.importorskip("pytorch_metric_learning")
    spec = importlib.util.spec_from_file_location("vmdls_benchmark", ROOT / "benchmarks" / "vmdls.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    ours, listed = (benchmark.loss_step(which, 60)() for which in ("ours", "listed"))
    torch.testing.assert_close(ours, listed, rtol=1e-3, atol=1e-6)
    target, score = np.array([0, 1, 1, -1, -1]), np.array([1.0, 2.0, 4.0, 3.0, 5.0])
    prediction = np.array([0, 1, 0, 0, 0])
    found = benchmark.scan(target, (target >= 0) & (prediction == target), -score, -np.unique(score)[::-1])
    expected = auroc(target, score), cauroc(target, prediction, score), fpr95_known_positive(target, score)
    np.testing.assert_allclose(found, expected, atol=1e-12)
