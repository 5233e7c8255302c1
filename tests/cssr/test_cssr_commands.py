"""The original's command line: its README's commands, run.sh, collect_metrics.py, evaluation while training, `--test`."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from common import checkpoints
from common.arguments import run_script
from common.errors import UserError
from common.results import read_scores
from cssr import collect_metrics, expressions, main, test
from cssr.arguments import parse_arguments

SEED = ROOT.parent / "shared" / "seeds" / "cssr.txt"


@pytest.fixture(scope="module")
def run_on_digits(tmp_path_factory):
    """The README's training command on digits, as printed but for a short --configupdate: `(flags, directory)`."""
    directory = tmp_path_factory.mktemp("commands") / "rcssr_digits_a"
    flags = ["--gpu", "cpu", "--ds", "./exps/digits/spl_a.json", "--config", "./configs/rcssr/digits.json", "--save",
             "rcssr_digits_a", "--method", "cssr", "--run_dir", str(directory)]  # fmt: skip
    main.main([*flags, "--test_interval", "2", "--configupdate", "epoch_num:3"])
    return flags, directory


def metrics_of(directory):
    return json.loads((directory / "metrics.json").read_text())["scores"]["fused"]


def test_history_and_evaluation_say_the_same(run_on_digits):
    flags, directory = run_on_digits
    history = json.loads((directory / "hist.json").read_text())
    assert [entry["epoch"] for entry in history] == [0, 1, 2]
    assert [sorted(entry) for entry in history] == [
        ["epoch", "loss"], *2 * [["close acc", "epoch", "loss", "metrics", "open_detection", "open_reco"]]
    ]  # fmt: skip
    assert list(history[0]["loss"]) == ["Loss", "TrainAcc", "Learn Rate", "DataTime", "BatchTime"]
    assert all(0 < entry["loss"]["TrainAcc"] <= 1 and entry["loss"]["Learn Rate"] == 0.4 for entry in history)
    main.main([*flags, "--test"])
    by_test = metrics_of(directory)
    test.main(["--run_dir", str(directory)])
    assert metrics_of(directory) == by_test
    last = history[-1]["metrics"]
    for name in ("closed_accuracy", "auroc", "oscr", "macro_f1_test_quantile"):
        assert by_test["digits-unknown"][name] == pytest.approx(last[name], abs=1e-4), name
    assert history[-1]["open_detection"]["auroc"] == pytest.approx(last["auroc"], abs=1e-9)


def test_an_evaluation_that_was_interrupted_is_made_up_for(run_on_digits, tmp_path):
    flags, directory = run_on_digits
    again = tmp_path / "again"
    shutil.copytree(directory, again)
    history = json.loads((again / "hist.json").read_text())
    (again / "hist.json").write_text(json.dumps(history[:-1]))
    main.main([*flags[:-1], str(again), "--test_interval", "2", "--configupdate", "epoch_num:3", "--resume"])
    assert json.loads((again / "hist.json").read_text())[-1]["metrics"] == history[-1]["metrics"]


def test_evaluation_does_not_change_training(tmp_path):
    for name, interval in (("with", "1"), ("without", "0")):
        main.main(["--ds", "./exps/digits/first_6.json", "--test_interval", interval, "--max_epochs", "2", "--run_dir",
                   str(tmp_path / name)])  # fmt: skip
    assert not (tmp_path / "without" / "hist.json").exists()
    one, other = (checkpoints.load_weights(tmp_path / name, paper="cssr")[0] for name in ("with", "without"))
    assert all(np.array_equal(tensor, other[name]) for name, tensor in one.items())


def test_other_unknown_sets_of_an_experiment_file(run_on_digits, tmp_path):
    flags, directory = run_on_digits
    content = json.loads((ROOT / "cssr" / "exps" / "digits" / "spl_a.json").read_text())
    content["test"][0]["convert_class"][9] = -2  # class 9 is neither known nor tested
    (tmp_path / "fewer.json").write_text(json.dumps(content))
    test.main(["--run_dir", str(directory), "--ds", str(tmp_path / "fewer.json")])
    scores = read_scores(directory / "scores.npz")
    assert (scores["target"] == -1).sum() == sum(np.isin(digits_test_labels(), [0, 1, 8]))
    with pytest.raises(UserError, match=r"knows 6 classes of digits .* 10 of cifar10"):
        test.main(["--run_dir", str(directory), "--ds", "exps/cifar10/all_vs_svhn.json"])
    with pytest.raises(UserError, match="give one of them"):
        test.main(["--run_dir", str(directory), "--ds", "exps/digits/spl_a.json", "--unknown", "noise"])


def digits_test_labels():
    from common.datasets import load

    return load("digits", False).labels


def test_a_checkpoint_of_other_classes_is_refused(run_on_digits):
    with pytest.raises(UserError, match="knows 6 classes of digits"):
        main.main(["--ds", "./exps/digits/first_6.json", "--run_dir", str(run_on_digits[1]), "--test"])


def test_score_expressions_reach_the_checkpoint(tmp_path):
    """S0 = R[0] and two terms: constants over the training images are in the header, so its term has mean 0, deviation 1."""
    directory = tmp_path / "run"
    main.main(["--run_dir", str(directory), "--max_epochs", "1", "--point_score", "R[0]", "--integrate_score", "S[0]+S[2]"])
    test.main(["--run_dir", str(directory), "--train_scores", "--no_report"])
    tensors, header = checkpoints.load_weights(directory, paper="cssr")
    assert header["score"].keys() == {"score", "integrate_score", "mean", "std"} and header["score"]["mean"] < 0
    scores = read_scores(directory / "scores.npz")
    train = scores["split"] == 2
    mean, std = (tensors[f"statistics.{name}"].numpy()[2] for name in ("mean", "std"))
    first = -scores["unknown_score"] - (scores["parts"][:, 4].astype(np.float64) - mean) / (std + 1e-8)
    assert first[train].mean() == pytest.approx(0, abs=1e-4) and first[train].std() == pytest.approx(1, abs=1e-4)
    assert expressions.settings("pcssr", "R[0]/R[1]/R[1]", "S[0]+S[1]+S[2]") == {}
    with pytest.raises(UserError, match="not one of rcssr"):
        expressions.settings("rcssr", "R[0]/R[1]/R[1]", None)


def test_expressions_equal_their_definitions():
    random = np.random.RandomState(0)
    logits, mean_logits, parts = random.randn(5, 3), random.randn(5, 3), random.randn(5, 5)
    arrays = {"logits": logits, "mean_logits": mean_logits, "parts": parts}

    def score(expression, kind="pcssr"):
        return expressions.point_score(kind, expression, arrays, gamma=0.1, channels=8)

    best = logits.argmax(1)
    np.testing.assert_array_equal(score("R[0]"), mean_logits[np.arange(5), best])
    np.testing.assert_allclose(score("R[4]"), np.exp(logits.max(1)))
    np.testing.assert_allclose(score("R[0]/R[1]"), parts[:, 0] * 0.8)
    np.testing.assert_allclose(score("R[1]"), parts[:, 1] / 8)
    for expression, column in (("R[2]", 3), ("R[3]", 4), (None, 2), ("R[0]/R[1]/R[1]", 2)):
        np.testing.assert_array_equal(score(expression), parts[:, column])


@pytest.mark.parametrize(("given", "expected"), [("0", ("0", "auto")), ("01", ("0", "auto")), ("cpu", (None, "cpu")),
                                                 ("0,", ("0,", "auto")), ("-1", ("-1", "auto"))])  # fmt: skip
def test_the_originals_gpu_flag(given, expected):
    args = parse_arguments(["--gpu", given])
    assert (args.gpu, args.device) == expected


def test_missing_data_is_replaced_in_dry_runs_only(tmp_path, capsys):
    flags = ["--ds", "./exps/svhn/spl_a.json", "--config", "./configs/linear/svhn.json", "--data_dir", str(tmp_path / "nothing"),
             "--backbone", "resnet18a", "--configupdate", "batch_size:8", "--run_dir", str(tmp_path / "run")]  # fmt: skip
    with pytest.raises(UserError, match="svhn"):
        main.main(flags)
    assert not (tmp_path / "run").exists()
    main.main([*flags, "--dry_run"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "this dry run takes random images" in error
    main.main([*flags, "--dry_run", "--test"])
    assert (tmp_path / "run" / "dry_run" / "scores.npz").exists()


def test_every_command_of_the_originals_readme_parses(monkeypatch):
    """Every `python main.py` line parses as printed from the root; the dry runs are test_run_sh's and the frozen tests'."""
    if not SEED.exists():
        pytest.skip(f"the original's README is not in {SEED.parent}")
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^python main\.py (.*)$", SEED.read_text(), re.M)
    assert len(commands) == 3
    filled = {"{DATASET}": "./exps/digits/spl_c.json", "{MODEL}": "./configs/pcssr/digits.json", "{SAVING_NAME}": "name"}
    for command in commands:
        for name, value in filled.items():
            command = command.replace(name, value)
        args = parse_arguments(command.split())
        assert args.gpu == "0" and args.save in ("name", "imagenet1k_rcssr") and args.test == ("--test" in command)
    assert (args.known_dataset, args.backbone) == ("digits", "convnet8")


def shell(*flags, **environment):
    command = ["sh", str(ROOT / "cssr" / "run.sh"), *map(str, flags)]
    environment = os.environ | {"PYTHON": sys.executable, "GPU": "cpu"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_run_sh_lists_45_runs_with_names_of_their_own():
    commands = shell("--list").stdout.splitlines()
    names = [re.search(r"--save (\S+)", command)[1] for command in commands]
    assert len(set(names)) == 45 and "rcssr_tinyimagenet_e" in names
    for command in commands:
        args = parse_arguments(command.split()[2:])
        assert args.save == f"{args.model}_{args.known_dataset}_{args.split[-1]}" and args.test_interval == 2
    parts = [set(shell("--list", "--shard", f"{part}/4").stdout.splitlines()) for part in range(1, 5)]
    assert set.union(*parts) == set(commands) and sum(map(len, parts)) == 45


def test_run_sh_trains_skips_and_repeats(tmp_path):
    flags = ("--runs", tmp_path, "--datasets", "digits", "--splits", "a b", "--models", "linear", "-j", 2, "--max_epochs", 1,
             "--milestones", 1)  # fmt: skip
    done = shell(*flags)
    assert done.returncode == 0 and "2 runs done" in done.stdout, done.stderr
    shutil.rmtree(tmp_path / "linear_digits_b")
    (tmp_path / "linear_digits_b").write_text("in the way")
    failed = shell(*flags)
    assert failed.returncode == 1 and "finished before: linear_digits_a" in failed.stdout
    assert "failed: linear_digits_b" in failed.stderr and "1 of 1 runs failed" in failed.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--shard", "5/4"], "i from 1 to n"), (["--shard", "4"], "i/n"), (["-j"], "a value"), (["-j", "0"], "from 1 on"),
     (["--save", "x"], "sets --save")],
)  # fmt: skip
def test_run_sh_refuses(flags, message):
    done = shell(*flags)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_run_sh_dry_run_covers_all_45_runs(tmp_path):
    done = shell("--dry_run", "--runs", tmp_path, "-j", 2)
    assert done.returncode == 0 and "45 runs done" in done.stdout, done.stderr
    assert len(list((tmp_path / "dry_run").glob("*/hist.json"))) == 45


def test_collect_metrics_names_last_and_best(tmp_path, capsys):
    for split, values in (("a", (0.5, 0.9, 0.8)), ("b", (0.4, 0.6, 0.7))):
        folder = tmp_path / f"rcssr_digits_{split}"
        folder.mkdir()
        entries = [{"epoch": epoch, "open_detection": {"auroc": value}} for epoch, value in enumerate(values)]
        (folder / "hist.json").write_text(json.dumps(entries))
    collect_metrics.main(["--runs", str(tmp_path), "--datasets", "digits", "--splits", "a", "b", "c", "--methods", "rcssr"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Last Epoch: open_detection.auroc on digits" and "selected on the test set" in lines[4]
    assert lines[1].split("\t") == ["method", "average", "a", "b", "c"]
    assert lines[2].split("\t") == ["rcssr", "0.7500 (of 2)", "0.8000", "0.7000", "-"]
    assert lines[6].split("\t") == ["rcssr", "0.8000 (of 2)", "0.9000", "0.7000", "-"]


BAD = [
    (["--configupdate", "epoch_num:1"], "give --config"),
    (["--config", "./configs/pcssr/digits.json", "--configupdate", "epoch_nmu:1"], "nearest: epoch_num"),
    (["--ds", "./configs/pcssr.json"], "no experiment"),
    (["--config", "./exps/digits/first_6.json"], "category_model"),
    (["--point_score", "R[0]-R[1]"], "invalid choice"),
    (["--method", "cssr_ft", "--mirror_test"], "goes with --method cssr"),
    (["--method", "cssr_ft", "--optimizer", "speed"], "--optimizer sgd"),
    (["--feature_views", "2"], "go with --method cssr_ft"),
    (["--augment", "strong", "--augment_pool", "Colour"], "invalid choice: 'Colour'"),
    (["--model", "rcssr", "--point_score", "R[0]/R[1]/R[1]"], "not one of rcssr"),
]


@pytest.mark.parametrize(("flags", "expected"), BAD)
def test_bad_flags_are_one_line_and_write_nothing(flags, expected, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        run_script(main.main, ["--run_dir", str(tmp_path / "run"), *flags])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1 and expected in error
    assert not (tmp_path / "run").exists()
