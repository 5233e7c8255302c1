"""Execute the notebooks: on the committed records in place, and on the demo's runs to see that they work there as well.

    python notebooks/execute.py                    # make notebooks: both
    python notebooks/execute.py --runs DIR         # the second part alone, on runs laid out as the demo's, into a folder
"""

from __future__ import annotations

import re
import socket
import sys
import tempfile
import time
from pathlib import Path

from common.arguments import ROOT, ScriptParser, run_script
from common.errors import UserError
from common.files import atomic

HERE = Path(__file__).resolve().parent
NOTEBOOKS = ("crosr_findings", "cssr", "vmdls", "baselines", "compare")
BYTES = 1_000_000
# Parameters that make a notebook read the demo's runs.
ON_RUNS = {
    "crosr_findings": {"run": "crosr"}, "cssr": {"run": "pcssr"}, "vmdls": {"run": "vmdls"},
    "baselines": {"run": "baseline_openmax", "noise_run": "baseline_openmax"}, "compare": {"runs": ""},
}  # fmt: skip


def clean(notebook) -> None:
    """Take away what differs from machine to machine: times, kernel details, run-time messages on stderr."""
    notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec", "widgets") if key in notebook.metadata}
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                    output.data["text/plain"] = "a slider: it moves where the notebook runs; the table below stands in for it"


def machine_words(notebook) -> list[str]:
    """Folders of this machine and its name, where a notebook's sources and outputs (images aside) hold them."""
    texts = [cell.source for cell in notebook.cells]
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        texts += [output.get("text", ""), *(str(v) for k, v in output.get("data", {}).items() if k != "image/png")]
    words = {str(ROOT), str(Path.home()) + "/", tempfile.gettempdir() + "/"}
    words |= {name for name in [socket.gethostname()] if len(name) > 4}  # a name of a few letters is in many words
    return sorted(word for word in words if re.search(rf"(?<![\w.]){re.escape(word)}", "\n".join(texts)))


def execute(name: str, out: Path, parameters: dict) -> float:
    """Execute one notebook with papermill and write it, cleaned, to `out`; returns the seconds it took.

    Raises
    ------
    UserError
        A cell fails, the result is too large, or it names a folder of this machine.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done = Path(folder) / "done.ipynb"
        try:
            papermill.execute_notebook(HERE / f"{name}.ipynb", done, parameters, cwd=HERE, progress_bar=False,
                                       kernel_name="python3")  # fmt: skip
        except PapermillExecutionError as error:
            raise UserError(f"{name}.ipynb, cell {error.cell_index}: {error.ename}: {error.evalue}") from None
        notebook = nbformat.read(done, as_version=4)
    seconds = time.monotonic() - begun
    clean(notebook)
    text = nbformat.writes(notebook)
    if len(text.encode()) > BYTES:
        raise UserError(f"{name}.ipynb has {len(text.encode()):,} bytes with its figures, more than {BYTES:,}")
    if not parameters and (named := machine_words(notebook)):
        raise UserError(f"{name}.ipynb names this machine: {', '.join(named)}")
    with atomic(out) as partial:
        partial.write_text(text + "\n")
    return seconds


def get_args_parser() -> ScriptParser:
    parser = ScriptParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NOTEBOOK", help=f"only these: {', '.join(NOTEBOOKS)}")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="execute on the runs in this folder only")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the notebooks executed on runs; else a temporary one")
    return parser


def main(argv=None) -> None:
    args = get_args_parser().parse_args(argv)
    names = [Path(name).stem for name in args.names] or NOTEBOOKS
    if unknown := [name for name in names if name not in NOTEBOOKS]:
        raise UserError(f"no notebook {unknown[0]!r}, choose from {', '.join(NOTEBOOKS)}")
    runs = (args.runs or ROOT / "runs" / "demo").resolve()
    if not (runs / "vmdls" / "scores.npz").exists():
        from common.demo import main as demo

        demo(["--runs", str(runs)])
    if args.runs is None:
        import evidence

        evidence.write_missing()
        for name in names:
            print(f"{name}: {execute(name, HERE / f'{name}.ipynb', {}):.0f} s on committed records", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder)
        for name in names:
            parameters = {key: str(runs / value) for key, value in ON_RUNS[name].items()}
            parameters |= {"figures": ""} if name == "crosr_findings" else {}
            print(f"{name}: {execute(name, out / f'{name}.ipynb', parameters):.0f} s on {runs.name}", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    run_script(main)
