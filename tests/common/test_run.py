"""A run survives being killed: resumed weights are bit-identical; time limits, claims and bad resumes behave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
MAIN = [sys.executable, str(ROOT / "baseline_openmax" / "main.py")]
SHORT = ["--max_epochs", "4", "--save_every", "0", "--average_weights", "--augment", "shift1"]


def train(directory, *flags, check=True):
    done = subprocess.run([*MAIN, "--run_dir", str(directory), *flags], capture_output=True, text=True)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def weights(directory):
    return load_file(directory / "weights.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].equal(b[key]), key


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    train(directory, *SHORT)
    return directory


def test_kill_in_mid_epoch_and_resume_gives_identical_weights(whole, tmp_path):
    directory = tmp_path / "killed"
    process = subprocess.Popen([*MAIN, "--run_dir", str(directory), *SHORT])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        log = directory / "log.jsonl"
        if log.exists() and log.read_text().count("\n") >= 2:
            break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (directory / "weights.safetensors").exists(), "the run ended before it could be killed"
    assert (directory / "state.pt").exists()
    train(directory, *SHORT, "--resume")
    assert_same(weights(whole), weights(directory))
    epochs = [json.loads(line)["epoch"] for line in (directory / "log.jsonl").read_text().splitlines()]
    assert epochs == [0, 1, 2, 3]
    strip = ("seconds",)
    for a, b in zip((whole / "log.jsonl").open(), (directory / "log.jsonl").open()):
        a, b = json.loads(a), json.loads(b)
        assert {k: v for k, v in a.items() if k not in strip} == {k: v for k, v in b.items() if k not in strip}


def test_two_processes_cannot_train_in_one_directory(tmp_path):
    directory = tmp_path / "run"
    holder = (
        "import sys, time; from baseline_openmax import main; from common.run import Run\n"
        "claim = Run._claim\n"
        "Run._claim = lambda self, config: (claim(self, config), print('held', flush=True), sys.stdin.read())\n"
        f"main.main(['--run_dir', {str(directory)!r}])"
    )
    first = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert first.stdout.readline() == "held\n"
    second = train(directory, *SHORT, check=False)
    first.kill()
    first.wait()
    assert second.returncode == 2 and "another process is training" in second.stderr
    assert train(directory, *SHORT).returncode == 0


def test_time_limit_saves_leaves_with_zero_and_resumes(whole, tmp_path):
    directory = tmp_path / "limited"
    first = train(directory, *SHORT, "--time_limit", "0")
    assert "state saved; continue with: python baseline_openmax/main.py" in first.stdout
    assert not (directory / "weights.safetensors").exists()
    for minutes in ("0", "0.004"):
        assert train(directory, *SHORT, "--resume", "--time_limit", minutes).returncode == 0
    train(directory, *SHORT, "--resume")
    assert_same(weights(whole), weights(directory))


def test_resuming_a_finished_run_changes_nothing(whole):
    before = weights(whole)
    train(whole, *SHORT, "--resume")
    assert_same(before, weights(whole))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "exists: --resume continues it, --overwrite deletes it first"),
        (["--resume", "--rate", "0.5"], "cannot resume"),
        (["--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_an_existing_run_is_never_overwritten_by_accident(whole, flags, expected):
    before = weights(whole)
    done = train(whole, *SHORT, *flags, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
    assert_same(before, weights(whole))


def test_overwrite_starts_again(whole, tmp_path):
    directory = tmp_path / "again"
    train(directory, "--max_epochs", "1")
    train(directory, *SHORT, "--overwrite")
    assert_same(weights(whole), weights(directory))


def test_run_directory_has_the_contract_files(whole):
    config = json.loads((whole / "config.json").read_text())
    meta = json.loads((whole / "meta.json").read_text())
    assert config["seed"] == 0 and config["max_epochs"] == 4
    assert meta["finished"] and meta["images_per_second"] > 0 and meta["peak_memory_bytes"] > 1e6
    assert meta["command"].startswith("python baseline_openmax/main.py --run_dir")
    assert meta["threads"] >= 1 and meta["data_checksums"]


def test_two_processes_train_like_one(tmp_path):
    """BatchNorm, augmentation and batches over two processes; few steps, before rounding grows."""
    flags = ["--max_epochs", "1", "--subset", "190", "--augment", "shift1", "--drop_last", "--device", "cpu"]
    train(tmp_path / "one", *flags)
    train(tmp_path / "two", *flags, "--devices", "2")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max((one[k].double() - two[k].double()).abs().max() for k in one) < 1e-5
    assert json.loads((tmp_path / "two" / "meta.json").read_text())["processes"] == 2


@pytest.mark.parametrize("form", ["root", "folder", "module"])
def test_scripts_start_from_root_folder_and_as_module(form, tmp_path):
    flags = ["--run_dir", str(tmp_path / form), "--dry_run"]
    commands = {
        "root": ([sys.executable, "baseline_openmax/main.py"], ROOT),
        "folder": ([sys.executable, "main.py"], ROOT / "baseline_openmax"),
        "module": ([sys.executable, "-m", "baseline_openmax.main"], ROOT),
    }
    command, folder = commands[form]
    done = subprocess.run([*command, *flags], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", ["main.py", "test.py"])
def test_help_needs_no_heavy_imports(script):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['{script}', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'baseline_openmax' / script)!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'lightning', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout or "--score" in done.stdout


def test_overwrite_deletes_nothing_but_runs(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file.txt").write_text("keep")
    done = train(tmp_path / "precious", "--overwrite", "--max_epochs", "1", check=False)
    assert done.returncode == 2 and "holds files but no run" in done.stderr
    assert (tmp_path / "precious" / "file.txt").read_text() == "keep"


def test_a_dry_run_is_replaced_and_never_continued(tmp_path):
    train(tmp_path / "run", "--max_epochs", "1", "--dry_run")
    train(tmp_path / "run", "--max_epochs", "1")
    assert not json.loads((tmp_path / "run" / "config.json").read_text())["dry_run"]
    done = train(tmp_path / "run", "--max_epochs", "1", "--dry_run", "--resume", check=False)
    assert done.returncode == 2 and "--dry_run" in done.stderr


def test_resume_before_the_first_saved_state_begins_anew_with_the_same_flags(tmp_path):
    directory = tmp_path / "run"
    train(directory, "--max_epochs", "2")
    (directory / "state.pt").unlink()
    assert train(directory, "--max_epochs", "3", "--resume", check=False).returncode == 2
    train(directory, "--max_epochs", "2", "--resume")
    assert [json.loads(line)["epoch"] for line in (directory / "log.jsonl").open()] == [0, 1]


def test_a_continued_run_says_what_each_part_was_computed_with(whole, tmp_path):
    """Program and arithmetic of the beginning and of now; a run goes on in the arithmetic it began with."""
    directory = tmp_path / "run"
    train(directory, *SHORT, "--precision", "auto", "--time_limit", "0")
    state = torch.load(directory / "state.pt", weights_only=True)
    here = state["precision"]
    torch.save(state | {"precision": "bf16" if here == "fp32" else "fp32"}, directory / "state.pt")
    meta = json.loads((directory / "meta.json").read_text())
    (directory / "meta.json").write_text(json.dumps(meta | {"code_version": "000000000000"}))
    done = train(directory, *SHORT, "--precision", "auto", "--resume")
    assert "note: the run began with program 000000000000 and goes on with" in done.stdout
    assert f"note: continuing in {'bf16' if here == 'fp32' else 'fp32'} as the run began" in done.stdout
    first, second = json.loads((directory / "meta.json").read_text())["sessions"]
    assert first["precision"] == here != second["precision"] and first["code_version"] == second["code_version"]
    assert json.loads((directory / "meta.json").read_text())["code_version"] == "000000000000"


def test_what_a_killed_process_half_wrote_goes_away(tmp_path):
    train(tmp_path / "run", "--max_epochs", "1")
    (tmp_path / "run" / "state.pt.12345.part").write_bytes(b"torn")
    train(tmp_path / "run", "--max_epochs", "1", "--resume")
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.parametrize("seed", ["-1", "4294967295"])
def test_seeds_that_no_generator_takes_are_refused_in_one_line(tmp_path, seed):
    done = train(tmp_path / "run", "--seed", seed, check=False)
    assert done.returncode == 2 and "expected a whole number from 0 to" in done.stderr and not (tmp_path / "run").exists()


def test_messages_name_the_command_that_goes_on(tmp_path):
    """As it was typed, and with the run's directory where the command did not name one; the command then works."""
    done = train(tmp_path / "run", "--max_epochs", "500", "--time_limit", "0")
    said = done.stdout.rpartition("continue with: ")[2].strip()
    assert said.startswith("python baseline_openmax/main.py") and "--max_epochs 500" in said and said.endswith("--resume")
    unfinished = subprocess.run([sys.executable, "baseline_openmax/test.py", "--run_dir", str(tmp_path / "run")], cwd=ROOT,
                                capture_output=True, text=True)  # fmt: skip
    assert unfinished.returncode == 2 and said in unfinished.stderr
    again = subprocess.run([sys.executable, *said.split()[1:], "--time_limit", "0"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("paper", ["baseline_openmax", "cssr"])
def test_a_loss_that_is_no_number_ends_the_run(paper, tmp_path):
    done = subprocess.run([sys.executable, f"{paper}/main.py", "--known_dataset", "digits", "--rate", "1e9", "--max_epochs", "3",
                           "--run_dir", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and "with a smaller learning rate" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "weights.safetensors").exists()
