"""The original's command line: its README's commands, run.sh, collect_metrics.py, evaluation while training, `--test`."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT

from common import checkpoints
from common.arguments import run_script
from common.errors import UserError
from common.results import read_scores
from cssr import collect_metrics, expressions, main, test
from cssr.arguments import parse_arguments
from cssr.evaluation import Evaluation

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
    assert (directory / "report.html").exists()
    test.main(["--run_dir", str(directory), "--no_report"])
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


def test_a_run_killed_in_an_evaluation_misses_no_epoch(tmp_path, monkeypatch):
    """The state after epoch 1 is there, its entry is not: resuming writes it before it goes on."""
    flags = ["--ds", "./exps/digits/spl_a.json", "--max_epochs", "3", "--save_every", "0", "--run_dir"]
    main.main([*flags, str(tmp_path / "whole")])
    original, calls = Evaluation._evaluate, []

    def killed(self):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Evaluation, "_evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        main.main([*flags, str(tmp_path / "parts")])
    assert len(json.loads((tmp_path / "parts" / "hist.json").read_text())) == 1
    main.main([*flags, str(tmp_path / "parts"), "--resume"])
    whole, parts = (json.loads((tmp_path / name / "hist.json").read_text()) for name in ("whole", "parts"))
    for one, other in zip(whole, parts, strict=True):
        assert one["metrics"] == other["metrics"] and one["loss"]["Loss"] == other["loss"]["Loss"]
        assert one["loss"]["Learn Rate"] == other["loss"]["Learn Rate"]


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
    test.main(["--run_dir", str(directory), "--ds", str(tmp_path / "fewer.json"), "--no_report"])
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


FILLED = {"{DATASET}": "./exps/digits/spl_c.json", "{MODEL}": "./configs/pcssr/digits.json", "{SAVING_NAME}": "name"}


@pytest.fixture
def printed():
    """Flags of every `python main.py` line of the original's README, its placeholders filled with digits."""
    if not SEED.exists():
        pytest.skip(f"the original's README is not in {SEED.parent}")
    commands = re.findall(r"^python main\.py (.*)$", SEED.read_text(), re.M)
    assert len(commands) == 3
    for name, value in FILLED.items():
        commands = [command.replace(name, value) for command in commands]
    return [command.split() for command in commands]


@pytest.mark.parametrize("folder", [ROOT, ROOT / "cssr"], ids=["root", "folder"])
def test_commands_of_the_originals_readme_start_as_printed(printed, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    for command in printed:
        args = parse_arguments(command)
        assert args.gpu == "0" and args.save in ("name", "imagenet1k_rcssr") and args.test == ("--test" in command)
    train, evaluate = (next(c for c in printed if "name" in c and ("--test" in c) == test) for test in (False, True))
    for command in (train, evaluate):
        main.main([*command, "--dry_run", "--run_dir", str(tmp_path)])
    assert (tmp_path / "hist.json").exists() and (tmp_path / "dry_run" / "scores.npz").exists()


def unreachable(*_, **__):
    raise OSError("no connection")


@pytest.mark.slow
def test_the_originals_imagenet_command_starts_as_printed(printed, tmp_path, monkeypatch, capsys):
    """Full size and 1,000 classes, random images and weights where there are none."""
    monkeypatch.chdir(ROOT / "cssr")
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    (command,) = (command for command in printed if "cssr_ft" in command)
    flags = [*command, "--data_dir", str(tmp_path / "nothing"), "--dry_run", "--run_dir", str(tmp_path / "run")]
    main.main(flags)
    main.main([*flags, "--test"])
    assert (tmp_path / "run" / "dry_run" / "scores.npz").exists()
    error = capsys.readouterr().err
    assert "random images" in error and "random weights" in error


# Stands for the interpreter: notes the command and finishes the run, but for those that end in $BROKEN; with $WAIT it goes on
# until it is stopped.
STAND_IN = """#!/bin/sh
for directory; do :; done
echo "$@" >> "$COMMANDS"
[ -z "${WAIT:-}" ] || { echo $$ >> "$COMMANDS.pid"; exec sleep 60; }
case $directory in *"${BROKEN:-/}") echo "broken on purpose"; exit 2;; esac
mkdir -p "$directory" && echo '{"finished": true}' > "$directory/meta.json" && : > "$directory/config.json"
"""


@pytest.fixture
def shell(tmp_path):
    """Run `run.sh`, with this interpreter or with the stand-in."""

    def start(*flags, real=False, popen=False, **environment):
        (tmp_path / "python").write_text(STAND_IN)
        (tmp_path / "python").chmod(0o755)
        python = sys.executable if real else str(tmp_path / "python")
        environment = os.environ | {"PYTHON": python, "GPU": "cpu", "COMMANDS": str(tmp_path / "commands")} | environment
        command = ["sh", str(ROOT / "cssr" / "run.sh"), *map(str, flags)]
        if popen:
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    return start


def saved(commands) -> list[str]:
    return [re.search(r"--save (\S+)", command)[1] for command in commands]


def test_run_sh_lists_45_runs_with_names_of_their_own(shell):
    commands = shell("--list").stdout.splitlines()
    names = saved(commands)
    assert len(set(names)) == 45 and "rcssr_tinyimagenet_e" in names
    for command in commands:
        args = parse_arguments(command.split()[2:])
        assert args.save == f"{args.model}_{args.known_dataset}_{args.split[-1]}" and args.test_interval == 2
    parts = [set(shell("--list", "--shard", f"{part}/4").stdout.splitlines()) for part in range(1, 5)]
    assert set.union(*parts) == set(commands) and sum(map(len, parts)) == 45


def test_run_sh_starts_all_45_runs_once(shell, tmp_path):
    done = shell("--dry_run", "--runs", tmp_path / "runs", "-j", 3)
    assert done.returncode == 0 and "45 runs done" in done.stdout, done.stderr
    commands = (tmp_path / "commands").read_text().splitlines()
    assert len(set(saved(commands))) == len(commands) == 45 and all(" --dry_run " in command for command in commands)
    assert all(command.endswith(f"--run_dir {tmp_path}/runs/dry_run/{name}") for command, name in zip(commands, saved(commands)))


def test_run_sh_skips_resumes_and_repeats(shell, tmp_path):
    runs = tmp_path / "runs"
    flags = ("--runs", runs, "--datasets", "digits", "--splits", "a b c", "--models", "linear", "-j", 2)
    (runs / "linear_digits_a").mkdir(parents=True)
    (runs / "linear_digits_a" / "config.json").write_text("{}")  # was interrupted
    first = shell(*flags, BROKEN="_b")
    commands = (tmp_path / "commands").read_text().splitlines()
    assert sorted(saved(commands)) == [f"linear_digits_{split}" for split in "abc"]
    assert [name for name, command in zip(saved(commands), commands) if "--resume" in command] == ["linear_digits_a"]
    assert first.returncode == 1 and "linear_digits_b: broken on purpose" in first.stderr and "1 of 3 runs failed" in first.stderr
    again = shell(*flags, BROKEN="_b")
    assert again.stdout.count("finished before") == 2 and "1 of 1 runs failed" in again.stderr


def test_stopping_run_sh_stops_its_runs(shell, tmp_path):
    started = shell("--runs", tmp_path / "runs", "-j", 2, popen=True, WAIT="1")
    pids, end = tmp_path / "commands.pid", time.monotonic() + 30
    while time.monotonic() < end and not (pids.exists() and pids.read_text().count("\n") == 2):
        time.sleep(0.05)
    started.terminate()
    started.communicate(timeout=30)
    assert started.returncode == 130
    numbers = [int(number) for number in pids.read_text().split()]
    while time.monotonic() < end and any(map(runs_still, numbers)):
        time.sleep(0.05)
    assert len(numbers) == 2 and not any(map(runs_still, numbers))


def runs_still(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return state not in ("", "Z")


def test_run_sh_trains(shell, tmp_path):
    done = shell("--runs", tmp_path / "runs", "--datasets", "digits", "--splits", "a", "--models", "linear", "--max_epochs", 1,
                 "--milestones", 1, real=True)  # fmt: skip
    assert done.returncode == 0 and "1 runs done" in done.stdout, done.stderr
    run = tmp_path / "runs" / "linear_digits_a"
    assert json.loads((run / "meta.json").read_text())["finished"] and (run / "hist.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--shard", "5/4"], "i from 1 to n"), (["--shard", "4"], "i/n"), (["-j"], "a value"), (["-j", "0"], "from 1 on"),
     (["--save", "x"], "sets --save")],
)  # fmt: skip
def test_run_sh_refuses(shell, flags, message):
    done = shell(*flags)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_commands_of_run_sh_dry_run(shell, tmp_path):
    """One split of each data set and model in this process; the others differ in their classes alone."""
    commands = shell("--list", "--splits", "a").stdout.splitlines()
    assert len(commands) == 9
    for name, command in zip(saved(commands), commands):
        main.main([*command.split()[2:], "--dry_run", "--run_dir", str(tmp_path / name)])
        assert (tmp_path / name / "hist.json").exists()


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
    (tmp_path / "rcssr_digits_a" / "hist.json").write_text("{")
    with pytest.raises(UserError, match=r"no hist.json"):
        collect_metrics.main(["--runs", str(tmp_path), "--datasets", "digits", "--methods", "rcssr"])


BAD = [
    (["--configupdate", "epoch_num:1"], "give --config"),
    (["--config", "./configs/pcssr/digits.json", "--configupdate", "epoch_nmu:1"], "nearest: epoch_num"),
    (["--ds", "./configs/pcssr/digits.json", "--config", "./exps/digits/spl_a.json"], "--config takes a file of configs/"),
    (["--ds", "./exps/digits/spl_a.json", "--known_dataset", "digits"], "leave out --known_dataset and --split"),
    (["--config", "./configs/pcssr/digits.json", "--configupdate", "epoch_num:0"], "epoch_num must be at least 1"),
    (["--ds", "./exps/cifr10/spl_a.json"], "nearest: exps/cifar10/spl_a.json"),
    (["--ds"], "expected one argument"),
    (["--workers", "-1"], "at least 0"),
    (["--test_interval", "-2"], "at least 0"),
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
