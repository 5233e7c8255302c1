"""Golden arrays of the released program, one trained digits run a model, and a way to run scripts as a user does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT.parent / "shared" / "golden"


class Case:
    """The fields of one golden case, and its settings."""

    def __init__(self, arrays, name: str):
        self.arrays, self.name = arrays, name

    def __getitem__(self, field):
        return self.arrays[f"{self.name}/{field}"]

    def __contains__(self, field):
        return f"{self.name}/{field}" in self.arrays

    @property
    def config(self) -> dict:
        return json.loads(str(self["config"]))


@pytest.fixture(scope="session")
def golden():
    """`golden("head/pcssr_L1_clamp")` gives that case."""
    if not (GOLDEN / "cssr.npz").exists():
        pytest.skip(f"golden arrays are not in {GOLDEN}")
    with np.load(GOLDEN / "cssr.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    return lambda name: Case(arrays, name)


@pytest.fixture(scope="session")
def architectures():
    path = GOLDEN / "architectures_cssr.json"
    if not path.exists():
        pytest.skip(f"golden architectures are not in {GOLDEN}")
    return json.loads(path.read_text())


def run_script(script, *flags, **environment):
    command = [sys.executable, str(ROOT / "cssr" / script), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture(scope="session")
def run():
    return run_script


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Finished and scored digits runs, `{model: directory}`, trained in this process (imports cost seconds)."""
    from cssr import main, test

    directories = {}
    for model in ("pcssr", "rcssr", "linear"):
        directory = directories[model] = tmp_path_factory.mktemp("runs") / model
        main.main(["--preset", "digits", "--model", model, "--run_dir", str(directory)])
        test.main(["--run_dir", str(directory), "--no_report", "--score", "fused", "s0", "s1", "s2", "msp", "mls"])
    return directories


@pytest.fixture
def own_run(trained, tmp_path):
    """A copy of the pcssr run that a test may change."""
    return Path(shutil.copytree(trained["pcssr"], tmp_path / "own"))
