"""The pages: links lead somewhere, named files exist, and the examples that no other test runs do run."""

import os
import re
import subprocess
import sys

import pytest

from common.arguments import ROOT

PAGES = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "runs", ".pytest_cache"} & set(path.relative_to(ROOT).parts))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FOLDERS = "common|crosr|cssr|vmdls|baseline_openmax|benchmarks|notebooks|tests|docs|data"
FILE = re.compile(rf"`((?:{FOLDERS})/[\w./*-]+\.(?:py|json|md|sh|ipynb))`")


def anchors(text: str) -> set[str]:
    """Names under which a code host links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_are_there(page):
    text = page.read_text()
    for target in LINK.findall(text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{target} is not there"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path.read_text()), f"{target}: no such heading"
    for name in FILE.findall(text):
        assert list(ROOT.glob(name)) or list(page.parent.glob(name)), f"{name} is not there"


def test_the_example_of_a_new_score_runs(tmp_path):
    from baseline_openmax import main, test

    run = tmp_path / "runs" / "baseline_openmax" / "mnist-a"
    main.main(["--preset", "digits", "--max_epochs", "2", "--run_dir", str(run)])
    test.main(["--run_dir", str(run), "--score", "mls", "--no_report"])
    block = (ROOT / "docs" / "extending.md").read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0 and 0.5 < float(done.stdout) < 1, done.stderr
