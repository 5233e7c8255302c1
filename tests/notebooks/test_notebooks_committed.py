"""The committed notebooks: executed, small, free of this machine's names; they run again on the committed records."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest

from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("crosr_findings", "cssr", "vmdls", "baselines", "compare")
sys.path.insert(0, str(ROOT / "notebooks"))

import evidence  # noqa: E402
import execute  # noqa: E402

PAPER_OF = {"crosr_findings": "crosr", "cssr": "cssr", "vmdls": "vmdls", "baselines": "baseline_openmax"}


def committed(name):
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())


def texts_of(notebook):
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return ["".join(output["data"]["text/markdown"]) for output in outputs if "text/markdown" in output.get("data", {})]


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_notebook_is_executed_and_small(name):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    assert path.stat().st_size < 1_000_000
    notebook = committed(name)
    nbformat.validate(nbformat.from_dict(notebook))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["metadata"].get("tags") for cell in code].count(["parameters"]) == 1
    assert all(cell["execution_count"] for cell in code)
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    assert not re.search(r"/(root|work|tmp|home|Users)/", path.read_text())
    assert "image/png" in path.read_text()


def test_every_finding_has_its_verdict():
    texts = texts_of(committed("crosr_findings"))
    for name in [f"F{number}" for number in range(1, 11)]:
        assert [text for text in texts if re.match(rf"\*\*{name}: (holds|does not hold|cannot be asked) here", text)], name


def test_no_verdict_is_typed():
    for name in NAMES:
        sources = ["".join(cell["source"]) for cell in committed(name)["cells"]]
        assert not [text for text in sources if re.search(r"holds here|does not hold here", text)]


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "notebooks").glob("*.npz")), ids=lambda path: path.stem)
def test_evidence_is_small(path):
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_the_committed_records(name, tmp_path):
    try:
        evidence.read(PAPER_OF.get(name, "cssr"))
    except UserError as error:  # neither a record nor, in a fresh checkout, a run of the demo
        pytest.skip(str(error))
    execute.execute(name, tmp_path / "out.ipynb", {})
    assert "image/png" in (tmp_path / "out.ipynb").read_text()


def broken(folder, *cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbformat.write(notebook, folder / "broken.ipynb")


def test_a_broken_cell_fails(tmp_path, monkeypatch):
    broken(tmp_path, "answer = 6 * 7", "answer / 0")
    monkeypatch.setattr(execute, "HERE", tmp_path)
    with pytest.raises(UserError, match="ZeroDivisionError"):
        execute.execute("broken", tmp_path / "out.ipynb", {})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_notebook_that_names_this_machine_fails(tmp_path, monkeypatch):
    broken(tmp_path, f"print({str(ROOT / 'results')!r})")
    monkeypatch.setattr(execute, "HERE", tmp_path)
    with pytest.raises(UserError, match="names this machine"):
        execute.execute("broken", tmp_path / "out.ipynb", {})
