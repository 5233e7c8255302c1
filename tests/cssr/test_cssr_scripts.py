"""main.py and test.py on digits: figures, files, `--test`, original flags, and bad input in one line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from common import checkpoints
from common.results import read_scores


def metrics_of(directory):
    return json.loads((directory / "metrics.json").read_text())["scores"]


@pytest.mark.parametrize("model", ["pcssr", "rcssr", "linear"])
def test_digits_reach_the_demo_figures(trained, model):
    values = metrics_of(trained[model])["fused"]["digits-unknown"]
    assert values["closed_accuracy"] >= 0.98
    assert values["auroc"] >= 0.93


def test_scores_hold_the_parts_and_the_fusion_follows_from_them(trained):
    scores = read_scores(trained["pcssr"] / "scores.npz")
    assert list(scores["part_names"]) == ["RRE", "FM", "S0", "S1", "S2"]
    assert scores["parts"].shape == (len(scores["target"]), 5)
    assert scores["unknown_score"].dtype == np.float64
    tensors, header = checkpoints.load_weights(trained["pcssr"], paper="cssr")
    mean, std = (tensors[f"statistics.{name}"].numpy() for name in ("mean", "std"))
    fused = ((scores["parts"][:, 2:].astype(np.float64) - mean) / (std + 1e-8)).sum(1)
    np.testing.assert_allclose(scores["unknown_score"], -fused, atol=1e-4)
    np.testing.assert_array_equal(scores["prediction"], scores["logits"].argmax(1))
    np.testing.assert_allclose(np.exp(scores["logits"].astype(np.float64)).sum(1), 1, atol=1e-5)
    for name, column in (("s0", 2), ("s1", 3), ("s2", 4)):
        single = read_scores(trained["pcssr"] / f"scores_{name}.npz")
        np.testing.assert_array_equal(single["unknown_score"], -scores["parts"][:, column].astype(np.float64))


def test_own_score_of_the_linear_baseline_is_its_largest_probability(trained):
    scores = read_scores(trained["linear"] / "scores.npz")
    largest = np.exp(scores["logits"].astype(np.float64)).max(1)
    np.testing.assert_allclose(np.exp(-scores["unknown_score"]), largest, atol=1e-6)
    assert np.isnan(scores["parts"][:, 0]).all()


def test_a_stored_checkpoint_scores_without_training_data(trained, tmp_path):
    """Only the test and held-out images are read: everything else is in the file."""
    from cssr import test

    folder = tmp_path / "store"
    checkpoints.add(trained["pcssr"], "digits", folder)
    test.main(["--checkpoint_path", str(folder / "digits.safetensors"), "--run_dir", str(tmp_path / "out")])
    again, first = (read_scores(d / "scores.npz") for d in (tmp_path / "out", trained["pcssr"]))
    assert set(again["split"]) == {0, 1}
    assert np.corrcoef(again["unknown_score"], first["unknown_score"])[0, 1] > 0.9999
    assert (again["prediction"] == first["prediction"]).mean() > 0.99


def test_released_statistics_move_the_constants(tmp_path):
    from cssr import main

    found = []
    for flags in ([], ["--released_statistics"]):
        directory = tmp_path / f"r{len(flags)}"
        main.main(["--run_dir", str(directory), "--max_epochs", "1", "--augment", "strong", *flags])
        found.append(checkpoints.load_weights(directory, paper="cssr")[0])
    clean, released = found
    np.testing.assert_array_equal(clean["statistics.class_share"], released["statistics.class_share"])
    assert not np.allclose(clean["statistics.mean"], released["statistics.mean"])


def test_interrupted_run_resumes_bit_for_bit(tmp_path):
    from common.errors import TimeUp
    from cssr import main

    flags = ["--max_epochs", "2", "--run_dir"]
    main.main([*flags, str(tmp_path / "whole")])
    with pytest.raises(TimeUp):
        main.main([*flags, str(tmp_path / "parts"), "--time_limit", "0.001"])
    main.main([*flags, str(tmp_path / "parts"), "--resume"])
    whole, parts = (checkpoints.load_weights(tmp_path / name, paper="cssr")[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(tensor, parts[name], err_msg=name)


def test_without_gram_there_is_no_s2(tmp_path):
    from common.errors import UserError
    from cssr import main, test

    main.main(["--run_dir", str(tmp_path / "run"), "--dry_run", "--without_gram"])
    test.main(["--run_dir", str(tmp_path / "run"), "--dry_run"])
    assert np.isfinite(read_scores(tmp_path / "run" / "dry_run" / "scores.npz")["unknown_score"]).all()
    with pytest.raises(UserError, match="without_gram"):
        test.main(["--run_dir", str(tmp_path / "run"), "--score", "s2"])


BAD = [
    (["--backbone", "resnet81"], "nearest: resnet18"),
    (["--model", "linear", "--ae_latent", "0"], "pcssr or rcssr"),
    (["--preset", "paper", "--low_resolution_epochs", "2"], "--augment strong"),
    (["--ds", "./configs/pcssr.json"], "no experiment"),
    (["--config", "./exps/digits/first_6.json"], "category_model"),
    (["--config", "./configs/nothing.json"], "no file"),
    (["--method", "ours"], "cssr"),
    (["--model", "pcsr"], "pcssr"),
]


@pytest.mark.parametrize(("flags", "expected"), BAD)
def test_bad_training_input_is_one_line_and_writes_nothing(flags, expected, tmp_path, capsys):
    from common.arguments import run_script
    from cssr import main

    with pytest.raises(SystemExit) as left:
        run_script(main.main, ["--run_dir", str(tmp_path / "run"), *flags])
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.count("\n") == 1 and expected in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["--save", "no-such-run"], "trains one"), ([], "name a run"), (["--run_dir", "LINEAR", "--score", "rre"], "linear")],
)
def test_bad_evaluation_input_is_one_line(trained, flags, expected, capsys):
    from common.arguments import run_script
    from cssr import test

    with pytest.raises(SystemExit) as left:
        run_script(test.main, [str(trained["linear"]) if flag == "LINEAR" else flag for flag in flags])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1 and expected in error


def test_scripts_run_as_a_user_runs_them(run, trained):
    """main.py itself runs in the tests of run.sh."""
    done = run("test.py", "--run_dir", trained["linear"], "--dry_run")
    assert done.returncode == 0 and "fused" in done.stdout, done.stderr
    for command in (["cssr/main.py"], ["-m", "cssr.main"], ["-m", "cssr.test"]):
        done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "--imagenet_path" in done.stdout, done.stderr


def test_own_pictures_are_judged(trained, tmp_path, capsys):
    """Test images stored as files get the verdict of their scores; a folder and a single file, any size."""
    from common.datasets import load
    from cssr import test

    images, folder = load("digits", False), tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        Image.fromarray(images.pixels[number, 0]).resize((32, 32), Image.NEAREST).save(folder / f"{number:02d}.png")
    capsys.readouterr()
    test.main(["--run_dir", str(trained["pcssr"]), "--images", str(folder), str(folder / "00.png")])
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert len(said) == 41 and said[0][1:] == said[40][1:] and said[0][0].endswith("00.png")
    right = [("unknown" if label > 5 else str(label)) == words[1] for label, words in zip(images.labels, said)]
    assert sum(right) >= 34
    threshold = json.loads((trained["pcssr"] / "metrics.json").read_text())["thresholds"]["fused"]["validation"]
    assert float(said[0][-1]) == pytest.approx(threshold, abs=1e-3)


def test_weights_of_another_number_of_classes_are_one_line(own_run, capsys):
    from common.arguments import run_script
    from cssr import test

    tensors, header = checkpoints.load_weights(own_run, paper="cssr")
    header["model"]["classes"] = 5
    checkpoints.save_weights(own_run / "weights.safetensors", tensors, header)
    with pytest.raises(SystemExit) as left:
        run_script(test.main, ["--run_dir", str(own_run)])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1 and "weights do not fit" in error and len(error) < 500


def test_records_name_model_and_score(own_run, tmp_path, monkeypatch):
    from common import results
    from cssr import test

    monkeypatch.setattr(results, "RECORDS", tmp_path / "records")
    test.main(["--run_dir", str(own_run), "--score", "fused", "--record", "check", "--no_report"])
    (path,) = (tmp_path / "records" / "cssr").glob("*.json")
    assert path.name == "check-digits-pcssr_fused-first_6-s0.json"
    record = json.loads(path.read_text())
    assert record["method"] == "pcssr-fused" and record["backbone"] == "convnet8"
    assert "parts" in results.read_scores(path.with_suffix(".npz"))
