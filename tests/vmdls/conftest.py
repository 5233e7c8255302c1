"""Golden arrays of the released program, and a way to run scripts as a user does."""

import json
import os
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
    """`golden("metric_loss/n24_d8")` gives that case."""
    if not (GOLDEN / "vmdls.npz").exists():
        pytest.skip(f"golden arrays are not in {GOLDEN}")
    with np.load(GOLDEN / "vmdls.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    return lambda name: Case(arrays, name)


@pytest.fixture(scope="session")
def architectures():
    path = GOLDEN / "architectures_vmdls.json"
    if not path.exists():
        pytest.skip(f"golden architectures are not in {GOLDEN}")
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def run():
    """`run("main.py", "--preset", "digits")` runs that script of the folder in a process of its own."""

    def call(script, *flags, **environment):
        command = [sys.executable, str(ROOT / "vmdls" / script), *map(str, flags)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)

    return call
