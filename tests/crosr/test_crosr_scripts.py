"""test.py on digits: scores, files, cached network outputs, original flags, sweep, own pictures, bad input in one line."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

from common import checkpoints
from common.errors import UserError
from common.results import read_scores
from crosr import test as script

ALL = ["crosr", "openmax", "mls", "energy", "msp", "zscore", "zscore-onesided"]
TAG = "avgpool_20_softmax_before"


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """The run with every score, softmax before as the published results have it, and what the flags save."""
    directory = tmp_path_factory.mktemp("evaluated") / "digits"
    shutil.copytree(trained, directory)
    script.main(["--run_dir", str(directory), "--score", *ALL, "--tail_size", "20", "--apply_softmax_before",
                 "--save_openmax_scores", "--save_w_scores"])  # fmt: skip
    return directory


@pytest.fixture
def own(evaluated, tmp_path):
    """A copy of the evaluated run that a test may change."""
    return shutil.copytree(evaluated, tmp_path / "run")


def weights_of(directory):
    return checkpoints.load_weights(directory, paper="crosr")


def rewrite(directory, change):
    """Change the tensors of a run's weights."""
    tensors, header = weights_of(directory)
    checkpoints.save_weights(directory / "weights.safetensors", change(dict(tensors)), header)


def test_scores_obey_the_contract(evaluated):
    metrics = json.loads((evaluated / "metrics.json").read_text())["scores"]
    assert list(metrics) == ALL
    assert metrics["crosr"]["digits-unknown"]["closed_accuracy"] >= 0.97
    assert min(values["digits-unknown"]["auroc"] for values in metrics.values()) >= 0.85
    for name in ALL:
        scores = read_scores(evaluated / ("scores.npz" if name == "crosr" else f"scores_{name}.npz"))
        assert scores["unknown_score"].dtype == np.float64 and np.isfinite(scores["unknown_score"]).all()
        assert set(scores["split"]) == {0, 1} and scores["logits"].shape == (len(scores["target"]), 6)
        assert list(scores["sources"]) == ["digits", "digits-unknown", "digits validation"]
        np.testing.assert_array_equal(scores["prediction"], scores["logits"].argmax(1))
        if name in ("crosr", "openmax"):
            assert scores["probabilities"].shape == (len(scores["target"]), 7)
            np.testing.assert_allclose(scores["probabilities"].sum(1), 1)
            np.testing.assert_array_equal(scores["unknown_score"], scores["probabilities"][:, -1])
    np.testing.assert_array_equal(
        read_scores(evaluated / "scores_mls.npz")["unknown_score"], -scores["logits"].max(1).astype(np.float64)
    )


def test_latents_make_a_difference(evaluated):
    both, logits = (read_scores(evaluated / name)["probabilities"] for name in ("scores.npz", "scores_openmax.npz"))
    assert np.abs(both - logits).max() > 0.05


def test_saved_arrays_give_the_probabilities_again(evaluated):
    """p_j (1 - r_j w_j) and the sum of p_j r_j w_j, from the file that the flags ask for."""
    with np.load(evaluated / f"crosr_{TAG}.npz") as stored:
        arrays = dict(stored)
    scores = read_scores(evaluated / "scores.npz")
    np.testing.assert_array_equal(arrays["openmax_scores"], scores["probabilities"])
    assert arrays["activation_vectors"].shape == (len(scores["target"]), 6 + 64)
    assert arrays["mean_activation_vectors"].shape == (6, 70)
    y = arrays["logits"].astype(np.float64)
    np.testing.assert_array_equal(arrays["activation_vectors"][:, :6], arrays["logits"])
    p = np.exp(y - y.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rank = (-y).argsort(1).argsort(1)
    share = p * (6 - rank) / 6 * arrays["w_scores"]
    np.testing.assert_allclose(arrays["openmax_scores"], np.c_[p - share, share.sum(1)], atol=1e-9)
    tensors, _ = weights_of(evaluated)
    np.testing.assert_array_equal(arrays["mean_activation_vectors"], tensors["statistics.latents_max.means"])
    with np.load(evaluated / f"openmax_{TAG}.npz") as stored:
        assert stored["activation_vectors"].shape[1] == 6


def test_tables_and_figures(evaluated):
    with open(evaluated / "per_class.csv") as source:
        rows = list(csv.DictReader(source))
    assert [(row["score"], row["class"]) for row in rows] == [
        (score, name) for score in ("crosr", "openmax") for name in (*"012345", "unknown")]  # fmt: skip
    metrics = json.loads((evaluated / "metrics.json").read_text())["scores"]
    for score in ("crosr", "openmax"):
        own = [row for row in rows if row["score"] == score]
        assert float(own[-1]["auroc"]) == pytest.approx(metrics[score]["digits-unknown"]["auroc"])
        macro = np.mean([float(row["f1_argmax"]) for row in own])
        assert macro == pytest.approx(metrics[score]["digits-unknown"]["macro_f1_argmax"])
        assert (evaluated / "figures" / f"openmax_scores_{score}_{TAG}.png").read_bytes().startswith(b"\x89PNG")
    info = json.loads((evaluated / "calibration_info.json").read_text())
    assert info["scores"]["crosr"]["tail_size"] == 20 and len(info["scores"]["openmax"]["weibull"]["scale"]) == 6
    assert (evaluated / "report.html").exists()


def test_a_second_call_runs_the_network_no_more(own, monkeypatch, capsys):
    from crosr.model import DHRNet

    def refuse(*_):
        raise AssertionError("the network ran again")

    monkeypatch.setattr(DHRNet, "forward", refuse)
    before, flags = read_scores(own / "scores.npz"), ["--run_dir", str(own), "--no_report"]
    script.main([*flags, "--tail_size", "20", "--apply_softmax_before", "--pooling", "avg",
                 "--features", "logits+latents", "logits"])  # fmt: skip
    printed = capsys.readouterr().out
    assert "all taken from features_avgpool.npz" in printed
    # The tables of the original, on standard output.
    assert "F1 (arg max)" in printed and "Cut-off" in printed and "weighted avg" in printed
    # --pooling really chooses; the logits do not depend on it.
    after = read_scores(own / "scores.npz")
    assert np.abs(after["probabilities"] - before["probabilities"]).max() > 1e-3
    np.testing.assert_array_equal(after["logits"], before["logits"])
    assert list(json.loads((own / "metrics.json").read_text())["scores"]) == ["crosr", "openmax"]
    # Other images, other weights, another tag: the network is needed.
    for changed in (["--unknown", "noise"], ["--subset", "60"], ["--feature_suffix", "other"]):
        with pytest.raises(AssertionError, match="ran again"):
            script.main([*flags, *changed])

    def moved(tensors):
        name = next(name for name in tensors if not name.startswith("statistics."))
        return tensors | {name: tensors[name] + 1e-3}

    rewrite(own, moved)
    with pytest.raises(AssertionError, match="ran again"):
        script.main(flags)
    assert "features_avgpool.npz is of other weights" in capsys.readouterr().out


def test_several_tails_and_a_sweep(own):
    flags = ["--run_dir", str(own), "--no_report", "--score", "crosr", "openmax", "mls", "--tail_size", "10", "20"]
    script.main([*flags, "--sweep", "tail_size=10,20", "distance=euclidean,eucos", "features=logits+latents,logits"])
    metrics = json.loads((own / "metrics.json").read_text())["scores"]
    assert list(metrics) == ["crosr-tail10", "crosr-tail20", "openmax-tail10", "openmax-tail20", "mls"]
    with open(own / "sweep.csv") as source:
        rows = list(csv.DictReader(source))
    assert len(rows) == 8 and (own / "figures" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    for row in rows:
        if row["distance"] == "euclidean":
            name = f"{'crosr' if row['features'] == 'logits+latents' else 'openmax'}-tail{row['tail_size']}"
            values = metrics[name]["digits-unknown"]
            for column in ("auroc", "macro_f1_argmax", "macro_f1_validation"):
                assert float(row[column]) == pytest.approx(values[column]), name
            assert int(row["true_positives"]) > 0 and 0 < float(row["accuracy"]) < 1


def test_a_stored_checkpoint_scores_without_training_data(own, tmp_path):
    checkpoints.add(own, "digits", tmp_path / "store")
    file = tmp_path / "store" / "digits.safetensors"
    script.main(["--checkpoint_path", str(file), "--run_dir", str(tmp_path / "out"), "--tail_size", "20",
                 "--apply_softmax_before"])  # fmt: skip
    again, first = (read_scores(d / "scores.npz") for d in (tmp_path / "out", own))
    assert set(again["split"]) == {0, 1}
    # Half precision moves the outputs a little; the statistics are the same.
    assert np.corrcoef(again["unknown_score"], first["unknown_score"])[0, 1] > 0.999
    assert (again["prediction"] == first["prediction"]).mean() > 0.99


def test_tails_beyond_the_checkpoint_use_the_training_images(own):
    """With statistics cut to ten distances, tail 20 is fitted from the training part and gives the same scores."""
    first = read_scores(own / "scores.npz")
    distances = ("euclidean", "cosine", "eucos")
    rewrite(own, lambda tensors: {k: v[:, :10] if k.endswith(distances) else v for k, v in tensors.items()})
    script.main(["--run_dir", str(own), "--tail_size", "20", "--apply_softmax_before", "--no_report"])
    again = read_scores(own / "scores.npz")
    assert set(again["split"]) == {0, 1, 2}
    rows = again["split"] < 2
    np.testing.assert_allclose(again["probabilities"][rows], first["probabilities"], atol=1e-9)


def test_a_checkpoint_without_statistics_is_fitted_on_the_training_images(own, tmp_path):
    first = read_scores(own / "scores.npz")
    rewrite(own, lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("statistics.")})
    script.main(["--run_dir", str(own), "--score", "crosr", "zscore", "--tail_size", "20", "--apply_softmax_before",
                 "--no_report"])  # fmt: skip
    again = read_scores(own / "scores.npz")
    np.testing.assert_allclose(again["probabilities"][again["split"] < 2], first["probabilities"], atol=1e-9)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--tail_size", "5000"], "is larger than class 0 '0' ("),
        (["--pooling", "median"], "invalid choice"),
        (["--features", "latents"], "invalid choice"),
        (["--feature_suffix", "../up"], "letters, digits"),
        (["--sweep", "tail=20"], "nearest: tail_size"),
        (["--sweep", "pooling=median"], "'median'"),
        (["--sweep", "tail_size=7000"], "tail_size 7000 is larger than"),
        (["--distance", "manhattan"], "invalid choice"),
        (["--unknown", "omniglott"], "omniglot"),
        (["--tail_size", "1"], "at least 2"),
    ],
)
def test_bad_input_is_one_line(own, flags, expected, capsys):
    from common.arguments import run_script

    with pytest.raises(SystemExit) as left:
        run_script(script.main, ["--run_dir", str(own), *flags])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1 and expected in error


def test_a_checkpoint_without_latents_says_so(own):
    rewrite(own, lambda tensors: {k: v for k, v in tensors.items() if "latents_" not in k})
    script.main(["--run_dir", str(own), "--features", "logits", "--tail_size", "20", "--no_report"])
    assert list(json.loads((own / "metrics.json").read_text())["scores"]) == ["openmax"]
    with pytest.raises(UserError, match="no latents; --features logits"):
        script.main(["--run_dir", str(own), "--no_report"])


def test_dropout_at_test_is_drawn_from_the_seed(own):
    """With dropout left on, another seed is another evaluation, the same one the same."""
    tensors, header = weights_of(own)
    header["model"]["dropout_at_test"] = True
    checkpoints.save_weights(own / "weights.safetensors", tensors, header)
    found = []
    for seed in ("0", "1", "0"):
        script.main(["--run_dir", str(own), "--tail_size", "20", "--seed", seed, "--no_report"])
        found.append(read_scores(own / "scores.npz")["logits"])
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])


def test_own_pictures_are_judged(own, tmp_path, capsys):
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number in (0, 9):
        image = digits.images[list(digits.target).index(number)]
        Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((80, 80)).save(tmp_path / f"{number}.png")
    pictures = [str(tmp_path / "0.png"), str(tmp_path / "9.png")]
    script.main(["--run_dir", str(own), "--tail_size", "20", "--apply_softmax_before", "--images", *pictures])
    lines = [line for line in capsys.readouterr().out.splitlines() if ".png" in line]
    threshold = json.loads((own / "metrics.json").read_text())["thresholds"]["crosr"]["validation"]
    assert len(lines) == 2 and all(f"threshold {threshold:12.6g}" in line for line in lines)
    assert lines[0].split()[1] == "0"
    (own / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"evaluate it once, test.py --score crosr$"):
        script.main(["--run_dir", str(own), "--images", *pictures])


def test_records_say_what_is_not_the_default(own, tmp_path, monkeypatch):
    from common import results

    monkeypatch.setattr(results, "RECORDS", tmp_path / "records")
    flags = ["--run_dir", str(own), "--record", "check", "--no_report", "--score", "crosr", "openmax", "--tail_size", "20"]
    script.main([*flags, "--apply_softmax_before", "--pooling", "avg"])
    paths = sorted((tmp_path / "records" / "crosr").glob("*.json"))
    assert [path.name for path in paths] == [
        "check-digits-crosr_tail20_softmax_before_pooling_avg-first_6-s0.json",
        "check-digits-openmax_tail20_softmax_before-first_6-s0.json",
    ]
    record = json.loads(paths[0].read_text())
    assert record["backbone"] == "convnet8" and "--apply_softmax_before" in record["commands"][1]
    assert "probabilities" in results.read_scores(paths[0].with_suffix(".npz"))


@pytest.mark.parametrize(
    ("known", "split", "expected"),
    [("cifar10", "all", "imagenet-crop"), ("cifar10", "cssr-a", "rest"), ("mnist", "all", "omniglot"),
     ("svhn", "all", "imagenet-crop"), ("digits", "all", "noise"), ("digits", "first-6", "rest")],
)  # fmt: skip
def test_default_unknown_set(known, split, expected):
    assert script.default_unknown(known, split) == [expected]


def test_images_that_the_decoder_cannot_take_are_refused():
    from common.datasets import Images

    native = {"imagenet-crop": Images(np.zeros((2, 3, 36, 36), np.uint8), np.full(2, -1), ())}
    with pytest.raises(UserError, match="36 pixels, backbone plain wants multiples of 8: --odin_crop center or resize"):
        script.check_sizes(native, {"backbone": "plain", "crop_size": None})
    script.check_sizes(native, {"backbone": "plain", "crop_size": 28})
    script.check_sizes(native, {"backbone": "densenet", "crop_size": None})


def test_scripts_run_as_a_user_runs_them(run, tmp_path):
    done = run("main.py", "--preset", "digits", "--run_dir", tmp_path / "run", "--dry_run")
    assert done.returncode == 0, done.stderr
    done = run("test.py", "--run_dir", tmp_path / "run", "--score", "crosr", "zscore", "--dry_run")
    assert done.returncode == 0 and "zscore" in done.stdout, done.stderr
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["epoch"] == 1
    assert (tmp_path / "run" / "dry_run" / "per_class.csv").exists()
