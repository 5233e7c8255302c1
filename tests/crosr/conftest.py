"""Golden arrays of the released program, one trained digits run, and a way to run scripts as a user does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT.parent / "shared" / "golden" / "crosr"


@pytest.fixture(scope="session")
def golden():
    """`golden("dhrnet_golden.npz")` gives the arrays of that file by name, of a .json file its content."""

    def read(name: str):
        path = GOLDEN / name
        if not path.exists():
            pytest.skip(f"{name} is not in {GOLDEN}")
        if path.suffix == ".json":
            return json.loads(path.read_text())
        with np.load(path) as stored:
            return {key: stored[key] for key in stored.files}

    return read


def run_script(script, *flags, **environment):
    command = [sys.executable, str(ROOT / "crosr" / script), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture(scope="session")
def run():
    return run_script


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Directory of a finished run on digits 0-5, trained in this process (imports cost seconds)."""
    from crosr import main

    directory = tmp_path_factory.mktemp("runs") / "digits"
    main.main(["--preset", "digits", "--max_epochs", "8", "--run_dir", str(directory)])
    return directory


@pytest.fixture
def own_run(trained, tmp_path):
    """A copy of that run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "own"))
