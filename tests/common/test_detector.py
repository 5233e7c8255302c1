"""Detectors of all folders: the scores, classes and thresholds of `test.py`, from runs and from committed checkpoints."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import detector as common_detector
from common.arguments import ROOT
from common.checkpoints import add, read_header, read_manifest
from common.datasets import prepare
from common.detector import load, paper_of
from common.errors import UserError

TRAINING = {"baseline_openmax": ["--max_epochs", "2"], "crosr": ["--max_epochs", "6"], "cssr": ["--model", "rcssr"],
            "vmdls": []}  # fmt: skip
EVALUATION = {
    "baseline_openmax": ["--score", "mls", "openmax", "--tail_size", "15"],
    "crosr": ["--score", "crosr", "openmax", "mls", "zscore", "--tail_size", "15", "25", "--apply_softmax_before"],
    "cssr": ["--score", "fused", "s1", "mls"],
    "vmdls": ["--score", "vmdls", "mean"],
}
SCORES = [("baseline_openmax", "mls"), ("baseline_openmax", "openmax"), ("crosr", "crosr-tail15"), ("crosr", "crosr-tail25"),
          ("crosr", "openmax-tail15"), ("crosr", "mls"), ("crosr", "zscore"), ("cssr", "fused"), ("cssr", "s1"), ("cssr", "mls"),
          ("vmdls", "vmdls"), ("vmdls", "mean")]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A trained and evaluated digits run of every folder."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for paper, flags in TRAINING.items():
        found[paper] = folder / paper
        import_module(f"{paper}.main").main(["--preset", "digits", *flags, "--run_dir", str(found[paper])])
        import_module(f"{paper}.test").main(["--run_dir", str(found[paper]), "--no_report", *EVALUATION[paper]])
    return found


@pytest.fixture(scope="module")
def digits():
    return prepare("digits", "first-6")


def stored(run: Path, score: str):
    """Test rows of a score's file."""
    named = run / f"scores_{score}.npz"
    with np.load(named if named.exists() else run / "scores.npz") as arrays:
        return {key: arrays[key][arrays["split"] == 0] for key in ("target", "prediction", "unknown_score")}


@pytest.mark.parametrize(("paper", "score"), SCORES)
def test_scores_classes_and_decisions_are_those_of_the_evaluation(runs, digits, paper, score):
    detector = load(runs[paper], score)
    assert type(detector).__module__ == f"{paper}.api" and detector.shape == (1, 8, 8) and len(detector.class_names) == 6
    images = np.concatenate([digits.test.pixels, digits.unknown["digits-unknown"].pixels])
    expected = stored(runs[paper], score)
    threshold = json.loads((runs[paper] / "metrics.json").read_text())["thresholds"][score]["validation"]
    np.testing.assert_allclose(detector(images), expected["unknown_score"], rtol=1e-4, atol=1e-5)
    assert detector.threshold() == threshold
    decided = detector.decide(images)
    clear = np.abs(expected["unknown_score"] - threshold) > 1e-3 * np.abs(expected["unknown_score"]) + 1e-4
    assert clear.mean() > 0.9
    said = np.where(expected["unknown_score"] >= threshold, -1, expected["prediction"])
    assert (decided == said)[clear].all() and (decided == -1).any() and (decided >= 0).any()


@pytest.mark.parametrize("paper", TRAINING)
def test_without_a_score_it_is_the_folders_own(runs, paper):
    own = {"baseline_openmax": "mls", "crosr": "crosr-tail15", "cssr": "fused", "vmdls": "vmdls"}
    assert load(runs[paper]).score == own[paper]


def test_wrong_images_scores_and_names_are_one_clear_line(runs):
    for run in runs.values():
        with pytest.raises(UserError, match=r"expected images uint8 \(N, 1, 8, 8\), got float32"):
            load(run).predict(np.zeros((2, 1, 8, 8), np.float32))
        with pytest.raises(UserError, match=r"got uint8 \(0, 1, 8, 8\)"):
            load(run)(np.zeros((0, 1, 8, 8), np.uint8))
        with pytest.raises(UserError, match="no score 'mlss', choose from"):
            load(run, "mlss")
    with pytest.raises(UserError, match=r"no run, file or checkpoint 'cssr-mnist-cssr-a-rcsr-convnet28'.*nearest"):
        load("cssr-mnist-cssr-a-rcsr-convnet28")


def test_runs_of_one_name_in_two_folders_are_asked_about(runs, tmp_path, monkeypatch):
    for paper in ("cssr", "vmdls"):
        shutil.copytree(runs[paper], tmp_path / "runs" / paper / "both")
    shutil.copytree(runs["crosr"], tmp_path / "runs" / "crosr" / "one")
    monkeypatch.setattr(common_detector, "ROOT", tmp_path)
    assert paper_of("one") == "crosr" and paper_of(tmp_path / "runs" / "vmdls" / "both") == "vmdls"
    with pytest.raises(UserError, match="several runs are named 'both', say which: runs/cssr/both, runs/vmdls/both"):
        paper_of("both")


def test_the_score_not_evaluated_yet_has_no_threshold(runs, digits):
    with pytest.raises(UserError, match="no s2 threshold is known"):
        load(runs["cssr"], "s2").decide(digits.test.pixels)


def test_weighted_evaluations_give_weighted_scores(runs, digits, tmp_path, monkeypatch):
    from vmdls import mnist_ae, test

    run = Path(shutil.copytree(runs["vmdls"], tmp_path / "run"))
    mnist_ae.main(["--preset", "digits", "--max_epochs", "1", "--run_dir", str(tmp_path / "ae")])
    flags = ["--ae_features", "--ae_weights", str(tmp_path / "ae"), "--no_report"]
    test.main(["--run_dir", str(run), *flags])
    plain, weighted = load(runs["vmdls"]), load(run)
    expected = stored(run, "vmdls")["unknown_score"]
    images = np.concatenate([digits.test.pixels, digits.unknown["digits-unknown"].pixels])
    np.testing.assert_allclose(weighted(images), expected, rtol=1e-4)
    assert not np.allclose(plain(images), expected, rtol=1e-2)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_allclose(load(run / "weights.safetensors")(images), expected, rtol=1e-4)
    add(run, "vmdls-weighted", tmp_path / "checkpoints")
    scoring = read_header(tmp_path / "checkpoints" / "vmdls-weighted.safetensors")["thresholds"]["vmdls"]["scoring"]
    assert scoring["method"] == "vmdls-weighted" and Path(scoring["autoencoder"]) == tmp_path / "ae"
    test.main(["--run_dir", str(run), "--transductive", *flags])
    with pytest.raises(UserError, match="belongs to vmdls-weighted-transductive, this is vmdls-weighted"):
        load(run)


def test_an_explicit_tail_is_that_tail_or_refused(runs, tmp_path):
    from baseline_openmax import test as baseline
    from crosr import test as crosr

    run = Path(shutil.copytree(runs["crosr"], tmp_path / "crosr"))
    crosr.main(["--run_dir", str(run), "--no_report", "--tail_size", "20"])
    assert load(run, "crosr-tail20").variants["crosr"].settings["tail_size"] == 20
    for tail in (100, 30):
        with pytest.raises(UserError, match=f"belongs to tail_size 20, asked for is tail_size {tail}"):
            load(run, f"crosr-tail{tail}")
    for wrong in ("crosr-tail0", "crosr-tail²", "mls-tail20"):
        with pytest.raises(UserError, match="no score"):
            load(run, wrong)
    run = Path(shutil.copytree(runs["baseline_openmax"], tmp_path / "baseline"))
    for tails in (["20", "50"], ["30"]):
        baseline.main(["--run_dir", str(run), "--no_report", "--score", "openmax", "--tail_size", *tails])
    assert load(run, "openmax-tail30").threshold() == load(run, "openmax").threshold()
    with pytest.raises(UserError, match=r"no openmax-tail50 threshold is known .*--score openmax --tail_size 50"):
        load(run, "openmax-tail50").threshold()  # its file is that of the evaluation before


def test_a_threshold_without_its_settings_is_not_used(runs, tmp_path):
    run = Path(shutil.copytree(runs["crosr"], tmp_path / "run"))
    metrics = json.loads((run / "metrics.json").read_text())
    for values in metrics["thresholds"].values():
        values.pop("scoring", None)
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match=r"did not keep the settings of crosr-tail15.*evaluate the network once more"):
        load(run)
    assert load(run, "mls").threshold() == metrics["thresholds"]["mls"]["validation"]


@pytest.mark.parametrize("paper", TRAINING)
def test_without_an_evaluation_there_are_scores_and_no_threshold(runs, digits, tmp_path, paper):
    run = Path(shutil.copytree(runs[paper], tmp_path / "run"))
    (run / "metrics.json").unlink()
    detector = load(run, "crosr-tail15" if paper == "crosr" else None)  # the default tail does not fit two hundred images
    np.testing.assert_allclose(detector(digits.test.pixels), load(run, detector.score)(digits.test.pixels))
    with pytest.raises(UserError, match=r"threshold is known for this network: evaluate it once, test.py --score"):
        detector.threshold()


def test_files_best_epochs_and_names_in_folders(runs, tmp_path, monkeypatch):
    from baseline_openmax import test

    run = Path(shutil.copytree(runs["baseline_openmax"], tmp_path / "run"))
    test.main(["--run_dir", str(run), "--select", "best", "--score", "mls", "--no_report"])
    best = load(run / "best")
    assert best.trained.directory == run / "best" and load(run / "weights_best.safetensors").threshold() == best.threshold()
    assert paper_of(run / "weights.safetensors") == "baseline_openmax"
    (tmp_path / "net.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="file of another program: name the folder"):
        load(tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"no run, file or checkpoint '\*'"):
        load("*")
    shutil.copytree(run, tmp_path / "runs" / "baseline_openmax" / "group" / "one")
    monkeypatch.setattr(common_detector, "ROOT", tmp_path)
    assert paper_of("group/one") == paper_of("group/one/best") == "baseline_openmax"


def test_crosr_pictures_are_judged_with_the_settings_of_the_threshold(runs, tmp_path, capsys):
    from crosr import test

    run = Path(shutil.copytree(runs["crosr"], tmp_path / "run"))
    test.main(["--run_dir", str(run), "--no_report", "--tail_size", "25", "--apply_softmax_before"])
    picture = np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8) * 3
    Image.fromarray(picture[0, 0]).save(tmp_path / "a.png")
    capsys.readouterr()
    said = []
    for flags in ([], ["--tail_size", "25", "--apply_softmax_before"]):
        test.main(["--run_dir", str(run), *flags, "--images", str(tmp_path / "a.png")])
        said.append([line for line in capsys.readouterr().out.splitlines() if '--alpha' not in line])
    assert said[0][-1] == said[1][-1] and len(said[1]) == 1
    assert "with the settings of the last evaluation: tail_size 25, softmax before" in said[0][0]
    score = float(said[0][-1].split(" crosr ")[1].split()[0])
    assert score == pytest.approx(float(load(run)(picture)[0]), rel=1e-4)
    with pytest.raises(UserError, match="belongs to tail_size 25, asked for is tail_size 20"):
        test.main(["--run_dir", str(run), "--tail_size", "20", "--images", str(tmp_path / "a.png")])


@pytest.mark.parametrize("name", [name for name, entry in read_manifest().items() if "-ae-" not in name])
def test_committed_checkpoints_are_detectors(name):
    detector = load(name)
    images = np.random.default_rng(0).integers(0, 256, (3, *detector.shape), np.uint8)
    assert np.isfinite(detector(images)).all() and np.isfinite(detector.threshold())
    assert detector.decide(images).min() >= -1
    if name.startswith("crosr"):
        assert detector.trained.thresholds()["crosr"]["scoring"]["softmax"] == "before"


def test_pictures_on_the_command_line(runs, tmp_path):
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "dark.png")

    def call(*words):
        command = [sys.executable, "-m", "common.detector", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    done = call(runs["cssr"], tmp_path / "dark.png", "--score", "s1")
    assert done.returncode == 0 and done.stdout.count("\n") == 1 and "s1" in done.stdout and "threshold" in done.stdout
    done = call(runs["cssr"], tmp_path / "light.png")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "light.png is not there" in done.stderr


def test_the_readmes_own_program_runs(tmp_path):
    """The Python block of README's "I have my own program", as it stands."""
    blocks = [part.split("```")[0] for part in (ROOT / "README.md").read_text().split("```python\n")]
    (block,) = (block for block in blocks if "common.detector" in block)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0 and len(done.stdout.strip("[]\n").split()) == 5, done.stderr
