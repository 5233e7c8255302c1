"""The explorer in a real browser: its numbers are those of common.metrics, by link and by moving the slider."""

import contextlib
import html
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from common import explorer, metrics
from common.plots.parts import test_part as only_test_samples
from common.results import read_scores, write_scores

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,1100"]
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium here: apt-get install chromium")
needs_driver = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromedriver here: apt-get install chromium-driver")


def make_scores(count=900, classes=4, digits=2, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.integers(-1, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[target >= 0, target[target >= 0]] += 2.5
    names = np.array(["</script><b>cat", "dog", "cow & calf", "hen"] + [f"class {k}" for k in range(4, classes)])
    return {
        "target": target, "prediction": logits.argmax(1), "unknown_score": np.round(-logits.max(1), digits),
        "split": np.where((target >= 0) & (rng.random(count) < 0.2), 1, 0).astype(np.int8),
        "source": np.where(target < 0, rng.integers(1, 3, count), 0).astype(np.int16),
        "sources": np.array(["known", "noise", "letters"]), "class_names": names[:classes],
    }  # fmt: skip


def expected(scores, threshold, source=None):
    """The page's numbers by common.metrics."""
    part = only_test_samples(scores)
    if source is not None:
        code = list(part["sources"]).index(source)
        kept = (part["target"] >= 0) | (part["source"] == code)
        part = {k: v if k in ("sources", "class_names") else v[kept] for k, v in part.items()}
    classes = len(scores["class_names"])
    target, decision = part["target"], metrics.decide(part["prediction"], part["unknown_score"], threshold)
    known = target >= 0
    return {
        "known_accepted": np.mean(decision[known] >= 0),
        "known_correct": np.mean(decision[known] == target[known]),
        "unknown_recall": metrics.class_report(target, decision, classes).recall[-1],
        "unknown_accepted": np.mean(decision[~known] >= 0),
        "macro_f1": metrics.macro_f1(target, decision, classes),
    }, metrics.confusion(target, decision, classes).ravel().tolist()


def shown(document):
    """The page's numbers as the browser computed them."""
    values = {name: float(value) for name, value in re.findall(r'<output id="(\w+)" data-value="([^"]+)"', document)}
    cells = json.loads(html.unescape(re.search(r'data-cells="([^"]+)"', document)[1]))
    return values, cells


def check(document, scores, threshold, source=None):
    values, cells = shown(document)
    numbers, counts = expected(scores, threshold, source)
    assert cells == counts
    assert values == pytest.approx(numbers, abs=1e-12)


def browse(page, **link):
    """The document after its script ran, opened with a link such as `#threshold=-3.2`."""
    anchor = "&".join(f"{key}={value}" for key, value in link.items())
    command = [CHROMIUM, *FLAGS, "--dump-dom", f"{page.as_uri()}#{anchor}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "net"
    own = make_scores()
    write_scores(directory / "scores.npz", own)
    write_scores(directory / "scores_msp.npz", own | {"unknown_score": np.exp(4 * own["unknown_score"])})
    (directory / "metrics.json").write_text(json.dumps({"scores": {"mls": {}, "msp": {}}}))
    explorer.write_explorer(directory)
    return directory


def test_page_is_self_contained(run):
    text = (run / "explorer.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|<link|src=", text)
    assert text.count("</script>") == 2  # a class name cannot end the data


@needs_browser
@pytest.mark.parametrize("threshold", [-3.2, -2.0, -99.0, 99.0])
def test_link_shows_the_numbers_of_the_metrics(run, threshold):
    document = browse(run / "explorer.html", threshold=threshold)
    check(document, read_scores(run / "scores.npz"), threshold)
    assert "cow &amp; calf" in document


@needs_browser
def test_default_is_the_validation_threshold(run):
    scores = read_scores(run / "scores.npz")
    threshold = metrics.thresholds(scores["target"], scores["unknown_score"], scores["split"])["validation"]
    document = browse(run / "explorer.html")
    check(document, scores, threshold)
    assert re.search(r'<button class="on">95 % of held-out knowns accepted', document)


@needs_browser
def test_other_score_and_one_unknown_set(run):
    scores = read_scores(run / "scores_msp.npz")
    document = browse(run / "explorer.html", threshold=2e-5, score="msp", unknown="letters")
    check(document, scores, 2e-5, "letters")
    fixed = [float(value) for value in re.findall(r"<div><b>([.\d]+)</b><span>", document)]
    found = metrics.evaluate_file(run / "scores_msp.npz")["letters"]
    names = ("closed_accuracy", "auroc", "oscr", "fpr95_known_positive")
    assert fixed == pytest.approx([found[name] for name in names], abs=5e-4)


@needs_browser
def test_many_samples_are_rounded_aloud_and_never_left_out(tmp_path):
    scores = make_scores(30_000, classes=30, digits=12)
    write_scores(tmp_path / "scores.npz", scores)
    page = explorer.write_explorer(tmp_path / "scores.npz")
    rounded = scores | {"unknown_score": scores["unknown_score"].astype(np.float32).astype(np.float64)}
    threshold = metrics.thresholds(rounded["target"], rounded["unknown_score"], rounded["split"])["validation"]
    document = browse(page)
    check(document, rounded, threshold)
    assert '<p class="warning" id="rounded">More than 20,000 samples' in document
    assert sum(shown(document)[1]) == int((scores["split"] == 0).sum())
    assert "<canvas" in document


def test_scores_are_embedded_without_loss_where_possible():
    exact = make_scores(digits=12)
    assert explorer.embeddable(exact)[1] == "f8"
    single = exact | {"unknown_score": exact["unknown_score"].astype(np.float32).astype(np.float64)}
    assert explorer.embeddable(single)[1] == "f4"
    np.testing.assert_array_equal(explorer.embeddable(single)[0]["unknown_score"], single["unknown_score"])


class Browser:
    """The few WebDriver commands that the test needs, spoken over plain HTTP."""

    def __init__(self, port):
        self.base = f"http://127.0.0.1:{port}"
        options = {"binary": CHROMIUM, "args": FLAGS}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.base += f"/session/{self.send('/session', wanted)['sessionId']}"

    def send(self, path, body=None, method="POST"):
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def script(self, text):
        return self.send("/execute/sync", {"script": text, "args": []})

    def element(self, selector):
        return next(iter(self.send("/element", {"using": "css selector", "value": selector}).values()))

    def drag(self, selector, start, end):
        """Press the mouse at a share of an element's width, move, release."""
        measured = f"const b = document.querySelector('{selector}').getBoundingClientRect();"
        box = self.script(f"{measured} return [b.x, b.y, b.width, b.height]")
        y = round(box[1] + box[3] / 2)
        x = [round(box[0] + share * box[2]) for share in (start, end)]
        steps = [{"type": "pointerMove", "x": x[0], "y": y}, {"type": "pointerDown", "button": 0},
                 {"type": "pointerMove", "x": x[1], "y": y, "duration": 50}, {"type": "pointerUp", "button": 0}]  # fmt: skip
        self.send("/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": steps}]})

    def state(self):
        return self.script("return document.documentElement.outerHTML"), self.script("return state.threshold")


@pytest.fixture
def browser():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        session = Browser(port)
        yield session
        with contextlib.suppress(OSError):
            session.send("", method="DELETE")
    finally:
        process.terminate()
        process.wait(timeout=20)


@needs_driver
def test_moving_the_slider_changes_every_number(run, browser):
    scores = read_scores(run / "scores.npz")
    browser.send("/url", {"url": (run / "explorer.html").as_uri()})
    before, first = browser.state()
    check(before, scores, first)
    at = browser.script("const s = document.getElementById('slider'); return Number(s.value) / 1000")
    browser.drag("#slider", at, 0.35)
    dragged, second = browser.state()
    assert second < first - 0.2
    check(dragged, scores, second)
    assert all(shown(dragged)[0][name] != shown(before)[0][name] for name in shown(before)[0])
    assert f"threshold={second}" in browser.script("return location.hash")

    browser.send(f"/element/{browser.element('#slider')}/value", {"text": "\ue014" * 5})  # arrow right
    pressed, third = browser.state()
    assert third > second
    check(pressed, scores, third)


@needs_driver
def test_histogram_curve_and_buttons_set_the_threshold(run, browser):
    scores = read_scores(run / "scores.npz")
    browser.send("/url", {"url": (run / "explorer.html").as_uri()})
    seen = [browser.state()[1]]
    browser.drag("#histogram", 0.5, 0.6)
    seen.append(browser.state()[1])
    browser.drag("#roc", 0.3, 0.5)
    document, threshold = browser.state()
    check(document, scores, threshold)
    assert shown(document)[0]["unknown_accepted"] <= (0.5 * 400 - 44) / 340 + 0.01
    seen.append(threshold)
    browser.send(f"/element/{browser.element('#presets button:last-child')}/click")
    document, threshold = browser.state()
    part = only_test_samples(scores)
    best = metrics.macro_f1_oracle(part["target"], part["prediction"], part["unknown_score"], 4)
    assert threshold == best.threshold
    assert shown(document)[0]["macro_f1"] == pytest.approx(best.value, abs=1e-12)
    assert len({*seen, threshold}) == 4


def test_bad_input_is_one_line(tmp_path):
    scores = make_scores()
    unknown = scores["target"] < 0
    one_sided = {k: v if k in ("sources", "class_names") else v[unknown] for k, v in scores.items()}
    write_scores(tmp_path / "scores.npz", one_sided)
    for words, said in ((["nowhere"], "no run or scores file"), ([tmp_path / "scores.npz"], "only unknown test samples")):
        command = [sys.executable, "-m", "common.explorer", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
