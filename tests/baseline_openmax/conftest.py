"""One trained digits run for all tests of this folder, and a way to run its scripts as a user does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_script(script, *flags, **environment):
    command = [sys.executable, str(ROOT / "baseline_openmax" / script), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture(scope="session")
def run():
    return run_script


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "digits"
    done = run_script("main.py", "--run_dir", directory)
    assert done.returncode == 0, done.stderr
    done = run_script("test.py", "--run_dir", directory, "--score", "mls", "msp", "energy", "entropy", "margin", "openmax",
                      "--unknown", "rest", "noise", "--train_scores", "--no_report")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def own_run(trained, tmp_path):
    """A copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "own"))
