"""What a score was computed with stays with it: temperature, ODIN's step, distance, tail, and which weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from baseline_openmax import export
from baseline_openmax import main as train
from baseline_openmax import test as evaluate
from baseline_openmax.api import Detector
from baseline_openmax.scores import KLMatching, log_softmax
from common.checkpoints import load_weights, save_weights
from common.errors import UserError
from common.openmax import OpenMax

HEADS = ["mls", "msp", "kl", "odin", "openmax", "openmax-simple"]
T = 2.5


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A digits run whose headers say temperature 2.5 (last epoch) and 1.7 (best): digits alone would give 1."""
    directory = tmp_path_factory.mktemp("runs") / "plain"
    train.main(["--run_dir", str(directory), "--max_epochs", "4"])
    for name, temperature in (("weights.safetensors", T), ("weights_best.safetensors", 1.7)):
        tensors, header = load_weights(directory / name, paper="baseline_openmax")
        save_weights(directory / name, tensors, header | {"calibration": {"temperature": temperature}})
    return directory


@pytest.fixture(scope="module")
def calibrated(plain, tmp_path_factory):
    directory = Path(shutil.copytree(plain, tmp_path_factory.mktemp("runs") / "calibrated"))
    evaluate.main(["--run_dir", str(directory), "--score", *HEADS, "--tail_size", "15", "--calibrated_scores", "--train_scores",
                   "--odin_step", "0.004", "--simple_distance", "cosine", "--no_report"])  # fmt: skip
    return directory


@pytest.fixture(scope="module")
def pixels():
    from common.datasets import prepare

    return prepare("digits", "first-6").unknown["digits-unknown"].pixels


def stored(directory, name=None):
    with np.load(directory / ("scores.npz" if name is None else f"scores_{name}.npz")) as found:
        return {key: found[key] for key in found.files}


def test_calibrated_scores_are_of_divided_logits_and_the_stored_ones_stay_plain(plain, calibrated, tmp_path):
    flags = ["--checkpoint_path", str(plain), "--run_dir", str(tmp_path), "--no_report", "--train_scores"]
    evaluate.main([*flags, "--score", "mls", "odin", "--odin_step", "0.004"])
    for name in (None, "odin"):
        assert (stored(calibrated, name)["logits"] == stored(tmp_path, name)["logits"]).all()
    logits = stored(calibrated, "kl")["logits"] / np.float64(T)
    split, target = stored(calibrated, "kl")["split"], stored(calibrated, "kl")["target"]
    np.testing.assert_allclose(stored(calibrated)["unknown_score"], -logits.max(1))
    kl = KLMatching().fit(logits[split == 1])
    np.testing.assert_allclose(stored(calibrated, "kl")["unknown_score"], kl.score(logits), atol=1e-12)
    openmax = OpenMax(tail_size=15, alpha=6).fit(logits[split == 2], target[split == 2])
    np.testing.assert_allclose(stored(calibrated, "openmax")["probabilities"], openmax.probabilities(logits), atol=1e-12)
    odin = [stored(d, "odin") for d in (calibrated, tmp_path)]
    assert not np.allclose(odin[0]["unknown_score"], odin[1]["unknown_score"], rtol=1e-6, atol=0)


def test_thresholds_say_what_they_belong_to(calibrated):
    thresholds = json.loads((calibrated / "metrics.json").read_text())["thresholds"]
    assert thresholds["mls"]["scoring"] == {"temperature": T}
    assert thresholds["odin"]["scoring"] == {"temperature": T, "odin_temperature": 1000.0, "odin_step": 0.004}
    assert thresholds["openmax-simple"]["scoring"] == {"simple_distance": "cosine"}


@pytest.mark.parametrize("score", HEADS)
def test_detector_and_single_pictures_use_the_settings_of_the_threshold(calibrated, pixels, score):
    scores = stored(calibrated, None if score == "mls" else score)
    expected = scores["unknown_score"][(scores["split"] == 0) & (scores["target"] < 0)]
    detector = Detector(calibrated, score=score)
    np.testing.assert_allclose(detector(pixels), expected, atol=1e-5)
    decided = detector.decide(pixels)
    assert ((decided == -1) == (expected >= detector.threshold())).mean() > 0.99
    expected = np.exp(log_softmax(detector.outputs(pixels)["logits"].astype(np.float64) / T))
    np.testing.assert_allclose(detector.probabilities(pixels), expected)


def test_own_pictures_are_scored_as_evaluated_and_contradictions_refused(calibrated, plain, pixels, tmp_path, capsys):
    Image.fromarray(pixels[0, 0]).save(tmp_path / "a.png")
    flags = ["--images", str(tmp_path / "a.png")]
    for score in ("mls", "odin"):
        evaluate.main(["--run_dir", str(calibrated), "--score", score, *flags])
        words = capsys.readouterr().out.splitlines()[-1].split()
        expected = float(Detector(calibrated, score=score)(pixels[:1])[0])
        assert float(words[words.index(score) + 1]) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(UserError, match=r"belongs to .*odin_step 0.004, the flags say odin_step 0.001"):
        evaluate.main(["--run_dir", str(calibrated), "--score", "odin", "--odin_step", "0.001", *flags])
    own = Path(shutil.copytree(plain, tmp_path / "own"))
    evaluate.main(["--run_dir", str(own), "--score", "mls", "--no_report"])
    with pytest.raises(UserError, match="the flags say temperature calibrated"):
        evaluate.main(["--run_dir", str(own), "--score", "mls", "--calibrated_scores", *flags])


def test_a_threshold_and_a_fit_of_other_settings_are_refused(calibrated, tmp_path):
    own = Path(shutil.copytree(calibrated, tmp_path / "own"))
    fitted = dict(np.load(own / "fitted_scores.npz"))
    np.savez(own / "fitted_scores.npz", **fitted | {"temperature": 1.0})
    with pytest.raises(UserError, match=r"threshold belongs to temperature 2\.5, what was fitted to temperature 1\.0"):
        Detector(own, score="kl")


def test_deep_osr_export_divides_once(calibrated, plain, tmp_path):
    own = Path(shutil.copytree(calibrated, tmp_path / "own"))
    (own / "calibration_info.json").write_text(json.dumps({"temperature": T}))
    folder = export.write_deep_osr(str(own))
    scores = stored(own)
    logits = scores["logits"][scores["split"] == 0].astype(np.float64)
    with np.load(folder / "scores_own.npz") as found:
        np.testing.assert_allclose(found["probs"], np.exp(log_softmax(logits / T)))


def test_records_name_what_departs_and_never_replace_the_plain_one(plain, tmp_path, monkeypatch):
    from common import results

    monkeypatch.setattr(results, "RECORDS", tmp_path / "records")
    own = Path(shutil.copytree(plain, tmp_path / "own"))
    flags = ["--run_dir", str(own), "--score", "msp", "odin", "openmax-simple", "--record", "check", "--no_report"]
    evaluate.main(flags)
    evaluate.main([*flags, "--calibrated_scores", "--odin_step", "0.004", "--simple_distance", "cosine"])
    found = {json.loads(path.read_text())["method"] for path in (tmp_path / "records").rglob("*.json")}
    assert found == {"msp", "odin", "openmax-simple", "msp-calibrated", "odin-calibrated-step0.004", "openmax-simple-cosine"}


def test_best_weights_named_by_their_file_use_their_own_results(plain, pixels, tmp_path):
    own = Path(shutil.copytree(plain, tmp_path / "own"))
    best = own / "weights_best.safetensors"
    evaluate.main(["--run_dir", str(own), "--score", "mls", "--no_report"])
    before = (own / "metrics.json").read_text()
    evaluate.main(["--checkpoint_path", str(best), "--score", "kl", "openmax", "--tail_size", "10", "--no_report"])
    assert (own / "metrics.json").read_text() == before and (own / "best" / "openmax.safetensors").exists()
    for where in (best, own / "best"):
        detector = Detector(where, score="openmax")
        assert detector.temperature == 1.7 and detector.openmax.tail_size == 10
        thresholds = json.loads((own / "best" / "metrics.json").read_text())["thresholds"]
        assert detector.threshold() == thresholds["openmax"]["validation"]
        np.testing.assert_array_equal(Detector(where, score="kl").fitted["kl"].posteriors,
                                      np.load(own / "best" / "fitted_scores.npz")["kl"])  # fmt: skip
    with pytest.raises(UserError, match="leave out --select best"):
        evaluate.main(["--checkpoint_path", str(best), "--record", "check"])
    folder = export.write_deep_osr(str(own / "best"))
    scores = stored(own / "best")
    logits = scores["logits"][scores["split"] == 0].astype(np.float64)
    with np.load(folder / "scores_best.npz") as found:
        np.testing.assert_allclose(found["probs"], np.exp(log_softmax(logits / 1.7)))


def test_every_tail_of_an_evaluation_is_a_score_of_the_detector(plain, pixels, tmp_path):
    own = Path(shutil.copytree(plain, tmp_path / "own"))
    evaluate.main(["--run_dir", str(own), "--score", "openmax", "--tail_size", "20", "40", "--no_report"])
    thresholds = json.loads((own / "metrics.json").read_text())["thresholds"]
    for tail, name in ((20, None), (40, "openmax-tail40")):
        scores = stored(own, name)
        detector = Detector(own, score=f"openmax-tail{tail}")
        expected = scores["unknown_score"][(scores["split"] == 0) & (scores["target"] < 0)]
        np.testing.assert_allclose(detector(pixels), expected, atol=1e-5)
        assert detector.threshold() == thresholds[f"openmax-tail{tail}"]["validation"]
    with pytest.raises(UserError, match=r"openmax-tail7 is fitted .*--tail_size 7"):
        Detector(own, score="openmax-tail7")
