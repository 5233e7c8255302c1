"""Report pages: self-contained, true to the metrics, safe against odd names, and refusing bad input in one line."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from common import report
from common.metrics import METRICS, evaluate_file
from common.results import SHOWN, write_scores

ROOT = Path(__file__).resolve().parents[2]


def make_scores(seed=0, count=400, **more):
    rng = np.random.default_rng(seed)
    target = rng.integers(-1, 3, count)
    logits = rng.normal(size=(count, 3))
    logits[target >= 0, target[target >= 0]] += 2
    return {
        "target": target, "prediction": logits.argmax(1), "unknown_score": -logits.max(1),
        "split": np.where((target >= 0) & (rng.random(count) < 0.3), 1, 0).astype(np.int8),
        "source": np.where(target < 0, rng.integers(1, 3, count), 0).astype(np.int16),
        "sources": np.array(["known", "noise", "letters"]), "class_names": np.array(["<b>cat</b>", "dog", "cow & calf"]),
        "logits": logits, **more,
    }  # fmt: skip


def make_run(directory, seed=0, **config):
    scores = make_scores(seed)
    write_scores(directory / "scores.npz", scores)
    write_scores(directory / "scores_msp.npz", scores | {"unknown_score": np.exp(scores["unknown_score"])})
    files = {
        "config.json": {"rate": 0.1, "seed": seed} | config,
        "metrics.json": {"scores": {"mls": {}, "msp": {}}, "command": "python test.py --score mls msp"},
        "meta.json": {
            "command": "python main.py --name '<x>'", "seed": seed, "start": "2026-01-02T03:04:05+0000", "code_version": "abc123",
            "device": "cpu", "precision": "fp32", "threads": 2, "wall_seconds": 90.0, "images_per_second": 1234.0,
            "peak_memory_bytes": 3 * 2**20, "data_checksums": {"set": "sha256:feed"}, "versions": {"torch": "2.8"},
        },
    }  # fmt: skip
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    log = [{"epoch": e, "loss": 1 / (e + 1), "validation_accuracy": 0.5} for e in range(4)]
    (directory / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return directory


class Page(HTMLParser):
    """Cells of the tables, sources of the images, balance of the tags."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.images, self.links, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.images.append(attrs["src"])
        self.links += [attrs[key] for key in ("href", "src") if key in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.rows and self.rows[-1] and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "net")


@pytest.fixture(scope="module")
def page(run):
    path = report.write_report(run)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def test_every_metric_is_defined():
    assert tuple(report.DEFINITIONS) == METRICS
    assert set(SHOWN) <= set(METRICS)


def test_page_needs_no_network(page):
    parsed = Page(page)
    assert not parsed.open
    assert all(link.startswith("data:image/png;base64,") for link in parsed.links)
    assert not re.search(r"https?://|@import|url\(|<script", page)
    assert len(parsed.images) >= 9
    for source in parsed.images:
        assert base64.b64decode(source.split(",", 1)[1]).startswith(b"\x89PNG")


def test_page_holds_the_metrics_of_the_scores(run, page):
    found = evaluate_file(run / "scores.npz")
    rows = {row[0]: row for row in Page(page).rows if row[0] in METRICS}
    assert tuple(rows) == METRICS
    for name, (_, better, *values, definition) in rows.items():
        assert (definition, better) == report.DEFINITIONS[name]
        assert values == [report.shown(found[source][name]) for source in found]
    assert len(found) == 3


def test_page_tells_what_ran(page):
    facts = {row[0]: row[1] for row in Page(page).rows if len(row) == 2}
    assert facts["Trained by"] == "python main.py --name '<x>'"
    assert facts["Scored by"] == "python test.py --score mls msp"
    assert facts["Training time"] == "1.5 minutes"
    assert facts["Device"] == "cpu, fp32, 2 thread(s)"
    assert facts["Data"] == "set sha256:feed"
    assert {"Seed": "0", "Code version": "abc123", "Speed": "1,234 images/s", "Peak memory": "3 MiB"}.items() <= facts.items()


def test_class_names_are_text_not_markup(page):
    assert "<b>cat</b>" not in page
    assert "&lt;b&gt;cat&lt;/b&gt;" in page


def test_comparison_joins_repetitions_and_marks_the_best(tmp_path):
    runs = [make_run(tmp_path / f"net-s{seed}", seed) for seed in (0, 1)] + [make_run(tmp_path / "wide", 2, rate=0.5)]
    text = report.write_comparison(runs, tmp_path / "out" / "all.html").read_text(encoding="utf-8")
    rows = {row[0]: row for row in Page(text).rows if len(row) == len(SHOWN) + 2}
    assert set(rows) == {"method", "net  mls", "net  msp", "wide  mls", "wide  msp"}
    values = [evaluate_file(run / "scores.npz")["all"]["auroc"] for run in runs]
    assert rows["net  mls"][2].startswith(f"{report.shown(np.mean(values[:2]))} ± ")
    assert rows["wide  mls"][2] == report.shown(values[2])
    best = re.findall(r'<span class="number best">([^<]*)</span>', text)
    assert any(cell.startswith(report.shown(max(np.mean(values[:2]), values[2]))) for cell in best)
    assert "was tested on" in text  # the seeds have other numbers of samples


def test_scores_file_alone_gives_a_page_beside_it(tmp_path):
    write_scores(tmp_path / "row-s0.npz", {k: v for k, v in make_scores().items() if k != "logits"})
    text = report.write_report(tmp_path / "row-s0.npz").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["row-s0.npz", "row-s0.report.html"]
    assert "no meta.json" in text
    assert 'id="reliability"' not in text


def run_cli(*words):
    command = [sys.executable, "-m", "common.report", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name runs to report on"),
        (["--compare", "a", "b"], "needs --out FILE"),
        (["a", "b", "--out", "x.html"], "--out names one page"),
        (["nowhere"], "no run or scores file 'nowhere'"),
        (["{known_only}"], "only known test samples"),
        (["{broken}"], "not a readable scores file"),
    ],
)
def test_bad_input_is_one_line(tmp_path, words, said):
    scores = make_scores()
    known = scores["target"] >= 0
    whole = ("sources", "class_names")
    known_only = {k: v if k in whole else v[known] for k, v in scores.items()}
    write_scores(tmp_path / "known_only.npz", known_only)
    (tmp_path / "broken.npz").write_bytes(b"PK broken")
    done = run_cli(*(w.format(known_only=tmp_path / "known_only.npz", broken=tmp_path / "broken.npz") for w in words))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
