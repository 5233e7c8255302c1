"""All notebooks on freshly made runs of the demo, as `make notebooks` executes them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from common import demo

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("crosr_findings", "cssr", "vmdls", "baselines", "compare")
# Fewer epochs than the demo's: what the notebooks need of the runs is their files, not their quality.
EPOCHS = {"baseline_openmax": 8, "crosr": 8, "pcssr": 4, "rcssr": 4, "vmdls": 6}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, paper, flags, scores, test_flags in demo.METHODS:
        demo.run_method(paper, [*flags, "--max_epochs", str(EPOCHS[name])], scores, test_flags, folder / name)
    out = tmp_path_factory.mktemp("executed")
    command = [sys.executable, "notebooks/execute.py", "--runs", str(folder), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: json.loads((out / f"{name}.ipynb").read_text()) for name in NAMES}


def outputs_of(notebook, kind):
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_ran_on_the_runs(executed, name):
    code = [cell for cell in executed[name]["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert len(outputs_of(executed[name], "image/png")) >= 5
    assert any("holds here" in "".join(text) or "does not hold" in "".join(text)
               for text in outputs_of(executed[name], "text/markdown"))  # fmt: skip


@pytest.mark.parametrize("name", NAMES[:4])
def test_what_was_read_is_the_run_given(executed, name):
    texts = ["".join(text) for text in outputs_of(executed[name], "text/markdown")]
    assert any("run `" in text for text in texts)
    assert not any(text.startswith("Read from") and "record `" in text for text in texts)


def test_the_slider_has_a_static_stand_in(executed):
    for name in ("crosr_findings", "vmdls", "baselines"):
        assert outputs_of(executed[name], "application/vnd.jupyter.widget-view+json")
        assert any("set by" in "".join(text) for text in outputs_of(executed[name], "text/markdown"))
