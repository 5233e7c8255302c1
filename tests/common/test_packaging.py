"""pyproject.toml, environment.yml and requirements.txt agree; committed files obey the repository's limits."""

import re
import subprocess
from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~;\[ ]", requirement.strip())[0].lower()


def declared() -> set[str]:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    return {name_of(r) for r in project["dependencies"] + extras["test"] + extras["notebooks"]}


def test_requirements_pin_every_declared_package():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert {name_of(line) for line in lines} == declared()
    assert all("==" in line for line in lines)


def test_environment_installs_the_same_packages():
    text = (ROOT / "environment.yml").read_text()
    items = re.findall(r"^ +- ([A-Za-z0-9_.>=<-]+)$", text.split("dependencies:")[1], re.M)
    assert {name_of(item) for item in items} - {"python", "pip"} == declared()
    minimum = PROJECT["project"]["requires-python"]
    assert f"python{minimum}" in text


def test_declared_bounds_agree():
    bounds = {name_of(r): r for r in PROJECT["project"]["dependencies"] if ">" in r}
    text = (ROOT / "environment.yml").read_text()
    for requirement in bounds.values():
        assert f"- {requirement}\n" in text


def test_packages_listed_are_those_that_exist():
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in ROOT.glob("*/**/__init__.py")
        if not path.relative_to(ROOT).parts[0].startswith((".", "tests", "runs"))
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def tracked() -> list[Path]:
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def test_no_committed_file_is_too_large():
    sizes = {path: path.stat().st_size for path in tracked()}
    assert not [path for path, size in sizes.items() if size > 25e6]
    assert sum(size for path, size in sizes.items() if path.suffix == ".safetensors") < 200e6


def test_no_paper_folder_imports_another():
    papers = ("crosr", "cssr", "vmdls", "baseline_openmax")
    for path in tracked():
        folder = path.relative_to(ROOT).parts[0]
        if path.suffix == ".py" and folder in (*papers, "common"):
            others = "|".join(paper for paper in papers if paper != folder)
            lines = re.findall(rf"^\s*(?:from|import) (?:{others})\b.*$", path.read_text(), re.M)
            assert not lines, f"{path}: {lines}"


def test_no_python_file_passes_400_lines():
    long = {str(p): n for p in tracked() if p.suffix == ".py" and (n := len(p.read_text().splitlines())) > 400}
    assert not long
