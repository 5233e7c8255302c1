"""main.py and test.py run as a user runs them, on digits; what they write obeys the contract; bad input is one line."""

import json

import numpy as np
import pytest


def test_digits_reach_the_demo_figures(trained):
    metrics = json.loads((trained / "metrics.json").read_text())["scores"]["mls"]
    (rest,) = (values for name, values in metrics.items() if name.startswith("digits"))
    assert rest["closed_accuracy"] >= 0.98
    assert rest["auroc"] >= 0.93


def test_scores_file_obeys_the_contract(trained):
    with np.load(trained / "scores.npz") as scores:
        count = len(scores["target"])
        kinds = {k: (scores[k].dtype, scores[k].shape) for k in ("target", "prediction", "unknown_score", "split", "source")}
        assert kinds == {"target": (np.int64, (count,)), "prediction": (np.int64, (count,)),
                         "unknown_score": (np.float64, (count,)), "split": (np.int8, (count,)),
                         "source": (np.int16, (count,))}  # fmt: skip
        assert set(np.unique(scores["target"])) == {-1, 0, 1, 2, 3, 4, 5}
        assert set(np.unique(scores["split"])) == {0, 1, 2}
        assert len(scores["sources"]) == scores["source"].max() + 1 == 5
        assert list(scores["class_names"]) == list("012345")
        assert (scores["target"][scores["split"] > 0] >= 0).all()
        np.testing.assert_array_equal(scores["unknown_score"], -scores["logits"].max(1).astype(np.float64))


def test_every_score_has_its_file(trained):
    for name in ("msp", "energy", "entropy", "margin"):
        with np.load(trained / f"scores_{name}.npz") as scores:
            assert np.isfinite(scores["unknown_score"]).all()


def test_same_seed_same_scores_and_other_seed_others(run, trained, tmp_path):
    scores = []
    for name, seed in (("a", 0), ("b", 1)):
        assert run("main.py", "--run_dir", tmp_path / name, "--seed", seed).returncode == 0
        assert run("test.py", "--run_dir", tmp_path / name, "--score", "mls", "--no_report").returncode == 0
        with np.load(tmp_path / name / "scores.npz") as stored:
            scores.append(stored["unknown_score"][stored["split"] == 0])
    with np.load(trained / "scores.npz") as stored:
        known_and_rest = stored["unknown_score"][(stored["split"] == 0) & (stored["source"] < 2)]
    np.testing.assert_array_equal(known_and_rest, scores[0])
    assert not np.array_equal(scores[0], scores[1])


def test_without_held_out_images_the_training_part_is_scored(run, tmp_path):
    assert run("main.py", "--run_dir", tmp_path / "r", "--validation_share", 0, "--max_epochs", 2).returncode == 0
    done = run("test.py", "--run_dir", tmp_path / "r", "--no_report")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())["scores"]["mls"]["all"]
    assert metrics["macro_f1_validation"] is None
    assert 0 < metrics["macro_f1_train"] <= 1


@pytest.mark.parametrize("preset", ["digits", "mnist", "laptop", "resnet18"])
def test_presets_parse_and_flags_beside_them_win(preset):
    from baseline_openmax.main import PRESETS, get_args_parser
    from common.arguments import parse

    args = parse(get_args_parser(), ["--preset", preset, "--max_epochs", "2"], PRESETS)
    assert args.max_epochs == 2
    for flag, value in PRESETS[preset].items():
        assert flag == "max_epochs" or getattr(args, flag) == value


BAD_MAIN = [
    (["--known_dataset", "cifar11"], "cifar10"),
    (["--split", "cssr-z"], "cssr-"),
    (["--split", "0-5,99"], "99"),
    (["--max_epochs", "0"], "at least 1"),
    (["--presett", "laptop"], "--preset"),
    (["--preset", "laptopp"], "nearest: laptop"),
    (["--validation_share", "1.5"], "share"),
    (["--device", "quantum"], "auto, cpu, cuda"),
    (["--resume"], "--resume needs --save"),
]


@pytest.mark.parametrize(("flags", "expected"), BAD_MAIN)
def test_bad_training_input_is_one_line_and_writes_nothing(run, flags, expected, tmp_path):
    directory = [] if flags == ["--resume"] else ["--run_dir", tmp_path / "run"]
    done = run("main.py", *directory, *flags)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_missing_data_says_what_to_fetch_and_where(run, tmp_path):
    done = run("main.py", "--preset", "laptop", "--run_dir", tmp_path / "run", "--data_dir", tmp_path / "empty")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "cifar-10-batches-py" in done.stderr and str(tmp_path / "empty") in done.stderr
    assert not (tmp_path / "run").exists()


def test_absent_gpu_warns_and_uses_the_cpu(run, tmp_path):
    done = run("main.py", "--run_dir", tmp_path / "run", "--gpu", "0,", "--dry_run", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0
    assert "using the CPU" in done.stderr


BAD_TEST = [
    (["--save", "no-such-run"], "trains one"),
    ([], "name a run"),
    (["--checkpoint_path", "no-such-name"], "no run, file or checkpoint"),
    (["--checkpoint_path", "TRAINED", "--unknown", "digits"], "digits"),
    (["--checkpoint_path", "TRAINED", "--unknown", "omniglott"], "omniglot"),
    (["--checkpoint_path", "TRAINED", "--score", "best"], "invalid choice"),
]


@pytest.mark.parametrize(("flags", "expected"), BAD_TEST)
def test_bad_evaluation_input_is_one_line(run, flags, expected, own_run):
    done = run("test.py", *[own_run if flag == "TRAINED" else flag for flag in flags])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and expected in done.stderr


def test_truncated_weights_are_refused(run, trained, tmp_path):
    whole = (trained / "weights.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    done = run("test.py", "--checkpoint_path", tmp_path / "half.safetensors")
    assert done.returncode == 2 and "not a whole safetensors" in done.stderr


def test_records_hold_what_the_commands_wrote(run, own_run, tmp_path, monkeypatch):
    """`--record` writes metrics, commands and compact scores; run in process so that the records go elsewhere."""
    from baseline_openmax import test as script
    from common import results

    monkeypatch.setattr(results, "RECORDS", tmp_path / "records")
    script.main(["--run_dir", str(own_run), "--score", "energy", "mls", "--record", "check", "--no_report"])
    path, other = sorted((tmp_path / "records" / "baseline_openmax").glob("*.json"))
    assert other.name == "check-digits-mls-first_6-s0.json"
    assert path.name == "check-digits-energy-first_6-s0.json"
    record = json.loads(path.read_text())
    assert record["commands"][0].startswith("python baseline_openmax/main.py")
    assert "--record check" in record["commands"][1]
    assert record["metrics"]["digits-unknown"]["auroc"] > 0.9
    assert record["data_checksums"] and record["checkpoint_sha256"] and record["wall_seconds"]["train"] > 0
    assert "logits" in results.read_scores(path.with_suffix(".npz"))
    assert "logits" not in results.read_scores(other.with_suffix(".npz"))


@pytest.fixture
def pictures(tmp_path):
    """A zero and a nine of the digits set as enlarged PNG files."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in (0, 9):
        image = digits.images[list(digits.target).index(number)]
        Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((100, 80)).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("score", ["mls", "openmax"])
def test_own_pictures_are_judged_at_the_validation_threshold(run, trained, pictures, score):
    done = run("test.py", "--run_dir", trained, "--score", score, "--images", pictures)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if ".png" in line]
    assert len(lines) == 2
    threshold = json.loads((trained / "metrics.json").read_text())["thresholds"][score]["validation"]
    assert all(f"{threshold:.4f}" in line for line in lines)
    if score == "mls":  # OpenMax, fitted on so few images, accepts this nine
        assert lines[0].split()[1] == "0" and "unknown (" in lines[1]


def test_own_pictures_need_a_threshold(run, own_run, pictures):
    (own_run / "metrics.json").unlink()
    done = run("test.py", "--run_dir", own_run, "--images", pictures)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "evaluate it once, test.py --score" in done.stderr


def test_the_report_and_features_are_written(run, own_run):
    done = run("test.py", "--run_dir", own_run, "--score", "mls", "--save_features")
    assert done.returncode == 0, done.stderr
    with np.load(own_run / "scores.npz") as scores:
        assert scores["features"].shape == (len(scores["target"]), 64)
    page = (own_run / "report.html").read_text()
    assert "data:image/png;base64" in page and "http://" not in page.replace("http://www.w3.org", "")


def test_dry_runs_and_subsets_leave_the_real_evaluation_alone(run, own_run):
    before = (own_run / "metrics.json").read_text()
    done = run("test.py", "--run_dir", own_run, "--score", "mls", "openmax", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert (own_run / "metrics.json").read_text() == before and (own_run / "dry_run" / "metrics.json").exists()
    for flags in (["--dry_run"], ["--subset", "50"]):
        done = run("test.py", "--run_dir", own_run, "--record", "check", *flags)
        assert done.returncode == 2 and "--record wants the whole evaluation" in done.stderr


def test_a_new_evaluation_removes_the_scores_of_the_old(run, own_run):
    assert (own_run / "scores_msp.npz").exists()
    assert run("test.py", "--run_dir", own_run, "--score", "mls", "--no_report").returncode == 0
    assert not list(own_run.glob("scores_*.npz"))


def test_openmax_records_name_what_is_not_the_default():
    from common.openmax_flags import record_method

    settings = {"openmax": {"tail_size": 50, "alpha": 6, "distance": "cosine", "softmax": "after"}}
    assert record_method("openmax", settings, 6) == "openmax-tail50-distance_cosine"
    assert record_method("mls", settings, 6) == "mls"


@pytest.mark.parametrize("flag", [["--dry_run"], ["--subset", "300"]])
def test_records_are_of_whole_trainings(run, tmp_path, flag):
    assert run("main.py", "--run_dir", tmp_path / "part", "--max_epochs", "1", *flag).returncode == 0
    done = run("test.py", "--run_dir", tmp_path / "part", "--record", "check")
    assert done.returncode == 2 and f"was trained with {flag[0]}" in done.stderr and done.stderr.count("\n") == 1


def test_an_evaluation_says_which_scores_it_replaces(run, own_run):
    done = run("test.py", "--run_dir", own_run, "--score", "mls", "msp", "--no_report")
    assert "not scored again (--score would): energy, entropy, margin, openmax" in done.stdout, done.stdout


def test_a_record_of_other_unknown_sets_is_refused_before_anything_is_written(own_run, tmp_path, monkeypatch):
    from baseline_openmax import test as script
    from common import results
    from common.errors import UserError

    monkeypatch.setattr(results, "RECORDS", tmp_path / "records")
    flags = ["--run_dir", str(own_run), "--score", "mls", "msp", "--record", "check", "--no_report"]
    script.main([*flags, "--unknown", "rest"])
    before = {path: path.read_bytes() for path in [*own_run.glob("*.npz"), own_run / "metrics.json"]}
    with pytest.raises(UserError, match="is the record of other unknown sets"):
        script.main([*flags, "--unknown", "rest", "noise"])
    assert before == {path: path.read_bytes() for path in [*own_run.glob("*.npz"), own_run / "metrics.json"]}
    assert len(list((tmp_path / "records").rglob("*.json"))) == 2
