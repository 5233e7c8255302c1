"""The ledger: runs are found, made, resumed, recorded, compared and verified as a user does it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common import comparison, ledger, reproduce, results, staleness
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
RUN = {
    "train": "cssr/main.py --preset digits --max_epochs 3 --split {split} --seed {seed} --save {name}",
    "test": "cssr/test.py --save {name} --score fused msp --record digits",
    "before": ["cssr/main.py --preset digits --max_epochs 1 --save shared"],
    "table": "digits", "data": ["digits"], "splits": ["first-6"], "seeds": [0, 1], "device": "cpu", "minutes": 1, "worth": 1,
    "note": "reduced recipe",
}  # fmt: skip
ROWS = {
    "code": {"training": ["cssr/model.py"], "scoring": ["cssr/scores.py"]}, "tables": {"1": "Table 1"}, "data_missing": ["svhn"],
    "sources": {"paper": {"text": "a paper, Table 1", "certainty": "paper"}, "ours": {"text": "", "certainty": "no paper"}},
    "runs": {"digits-pcssr": RUN, "svhn-pcssr": RUN | {"data": ["svhn"], "splits": ["cssr-a"], "worth": 9}},
    "rows": [
        {"id": "fused", "table": "1", "label": "CSSR", "known": "digits", "unknown": "digits-unknown", "metric": "auroc",
         "published": 0.1, "source": "paper", "answers": [{"run": "digits-pcssr", "method": "pcssr-fused"}]},
        {"id": "msp", "table": "1", "label": "MSP", "known": "digits", "unknown": "digits-unknown", "metric": "closed_accuracy",
         "published": None, "source": "ours", "answers": [{"run": "digits-pcssr", "method": "pcssr-msp"}]},
        {"id": "svhn", "table": "1", "label": "CSSR", "known": "svhn", "unknown": "svhn-unknown", "metric": "auroc",
         "published": 0.979, "source": "paper", "answers": [{"run": "svhn-pcssr", "method": "pcssr-fused"}]},
        {"id": "peer", "table": "1", "label": "Peer", "known": "svhn", "unknown": "svhn-unknown", "metric": "auroc",
         "published": 0.9, "source": "paper", "reason": "not in this repository"},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the repository with a small ledger of its own, and a way to run commands in it."""
    folder = tmp_path_factory.mktemp("house") / "copy"
    left_out = shutil.ignore_patterns(".*", "runs", "tests", "__pycache__", "records", "*.safetensors", "data", "notebooks")
    shutil.copytree(ROOT, folder, ignore=left_out)
    for path in folder.glob("*/rows.json"):
        path.unlink()
    for path in [*folder.glob("*/README.md"), folder / "README.md"]:
        path.write_text("# A folder\n\n<!-- ledger: paper=cssr -->\n<!-- end ledger -->\n")
    (folder / "checkpoints" / "MANIFEST.json").unlink()
    (folder / "results" / "records").mkdir()
    (folder / "cssr" / "rows.json").write_text(json.dumps(ROWS))
    (folder / "no_data").mkdir()
    environment = os.environ | {"PYTHONPATH": str(folder), "OSR_DATA_DIR": str(folder / "no_data")}

    def run(*arguments):
        return subprocess.run([sys.executable, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True)

    run.folder = folder
    return run


def reproduce_in(house, *arguments):
    return house("-m", "common.reproduce", *arguments)


def test_a_row_is_run_recorded_compared_and_verified(house):
    listed = reproduce_in(house, "list").stdout
    assert "digits-pcssr" in listed and "2 open" in listed and "data missing" in listed

    stopped = reproduce_in(house, "run", "--open", "--time_limit", "0")
    assert stopped.returncode == 0 and "repeat the command" in stopped.stdout
    done = reproduce_in(house, "run", "--open")
    assert done.returncode == 0, done.stderr
    assert "svhn-pcssr-cssr-a-s0: data missing (svhn)" in done.stdout
    assert json.loads((house.folder / "runs/cssr/shared/meta.json").read_text())["finished"]
    assert done.stdout.count("trained: ") == 3, "two seeds and, once, the run that both evaluations need"
    records = sorted(p.name for p in (house.folder / "results/records/cssr").glob("*.json"))
    assert records == [f"digits-digits-pcssr_{score}-first_6-s{seed}.json" for score in ("fused", "msp") for seed in (0, 1)]
    assert "2 done" in reproduce_in(house, "list").stdout
    assert "digits-pcssr-first-6-s0: done" in reproduce_in(house, "run", "fused").stdout

    assert reproduce_in(house, "check").returncode == 2
    assert reproduce_in(house, "table").returncode == 0
    assert reproduce_in(house, "check").returncode == 0
    page = house.folder / "results" / "README.md"
    before = {path: path.read_bytes() for path in (page, house.folder / "results/cssr.csv", house.folder / "cssr/README.md",
                                                   house.folder / "results/figures/paper_vs_ours.png")}  # fmt: skip
    assert reproduce_in(house, "table").returncode == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert "better by" in page.read_text() and "reduced recipe" in page.read_text()
    assert "data missing: svhn" in page.read_text() and "not comparable: not in this repository" in page.read_text()
    page.write_text(page.read_text().replace(".100", ".200"))
    wrong = reproduce_in(house, "check")
    assert wrong.returncode == 2 and "results/README.md" in wrong.stderr

    added = house("-m", "common.checkpoints", "add", "runs/cssr/digits-pcssr-first-6-s0", "cssr-digits")
    assert added.returncode == 0, added.stderr
    expected = json.loads((house.folder / "checkpoints/MANIFEST.json").read_text())["cssr-digits"]["expected"]
    assert set(expected) == {"digits-digits-pcssr_fused-first_6-s0", "digits-digits-pcssr_msp-first_6-s0"}
    verified = reproduce_in(house, "verify", "digits-pcssr")
    assert verified.returncode == 0 and "pcssr-fused as recorded" in verified.stdout, verified.stderr
    path = house.folder / "results/records/cssr" / records[0]
    record = json.loads(path.read_text())
    record["metrics"]["digits-unknown"]["auroc"] -= 0.01
    path.write_text(json.dumps(record))
    assert "auroc against digits-unknown: recorded" in (failed := reproduce_in(house, "verify", "fused")).stdout
    assert failed.returncode == 1

    again = reproduce_in(house, "run", "digits-pcssr", "--again", "--seeds", "0,1,2")
    assert again.returncode == 0 and again.stdout.count("trained: ") == 2, again.stderr
    assert "digits-pcssr-first-6-s0: pcssr-fused as recorded; largest difference 0.01 (auroc" in again.stdout
    assert "digits-pcssr-first-6-s1: pcssr-fused as recorded, to the digit" in again.stdout
    assert "digits-pcssr-first-6-s2: no record to compare with" in again.stdout
    said = json.loads((house.folder / "results/reruns/digits-pcssr-first-6-s0.json").read_text())
    moved = said["now_minus_recorded"]["pcssr-fused"]["digits-unknown"]
    assert moved == {"closed_accuracy": 0.0, "auroc": 0.01, "oscr": 0.0} and said["again"]["precision"] == "fp32"
    record["metrics"]["digits-unknown"]["auroc"] -= 0.04
    path.write_text(json.dumps(record))
    again = reproduce_in(house, "run", "digits-pcssr", "--again", "--seeds", "0")
    assert again.returncode == 2 and "differ from their records" in again.stderr and "trained: " not in again.stdout
    assert "auroc against digits-unknown: recorded" in again.stdout and json.loads(path.read_text()) == record

    rows = json.loads(json.dumps(ROWS))
    rows["runs"]["digits-pcssr"]["train"] = RUN["train"].replace("epochs 3", "epochs 4")
    (house.folder / "cssr" / "rows.json").write_text(json.dumps(rows))
    listed = reproduce_in(house, "list").stdout
    assert "2 stale" in listed and "--max_epochs was 3, is 4" in listed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "digits-pcsr"), "nearest: digits-pcssr"),
        (("run",), "--open"),
        (("run", "--open", "--shard", "2/2"), "--shard wants I/N"),
        (("run", "--open", "--again"), "--again compares with records"),
        (("list", "--paper", "nobody"), "invalid choice"),
    ],
)
def test_bad_input_is_one_line(house, arguments, said):
    done = reproduce_in(house, *arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_comments_and_docstrings_do_not_make_a_record_stale():
    first = 'def f(x):\n    """Old."""\n    return x + 1\n'
    assert staleness._program(first) == staleness._program('# why\ndef f(x):\n    """New."""\n    return (x\n        + 1)\n')
    assert staleness._program(first) == staleness._program("def f(x):\n    return x + 1\n")
    assert staleness._program(first) != staleness._program(first.replace("1", "2"))


def test_declarations_do_not_make_a_record_stale():
    body = "class A:\n    size: int\n\n    {}def f(self):\n        \"\"\"Say.\"\"\"{}\n\n    def g(self):\n        return {}\n"
    raising = staleness._program(body.format("", "\n        raise TypeError", 1))
    assert raising == staleness._program(body.format("@abstractmethod\n    ", "", 1))
    assert raising != staleness._program(body.format("@abstractmethod\n    ", "", 2))
    assert raising != staleness._program(body.format("", "\n        return 1", 1))


def test_changed_names_make_a_record_stale_and_new_ones_do_not(monkeypatch):
    then = "import math\n\n\ndef f(x):\n    return x + 1\n\n\nRATE = 2\n"
    monkeypatch.setattr(staleness, "_program_at", lambda *_: staleness._program(then))

    def reason(now, entry="a.py"):
        monkeypatch.setattr(staleness, "_program_now", lambda _: staleness._program(now))
        return staleness._changed_code("scoring", "abc+changes", [entry])

    assert reason(then) == reason("import sys\n" + then + "\n\ndef g(x):\n    return x\n") == ""
    assert reason(then.replace("x + 1", "x + 2")) == "scoring: a.py (f)"
    assert reason(then.replace("RATE = 2", "RATE = 3") + "f(RATE)\n") == "scoring: a.py (RATE)"
    assert reason(then.replace("f(x)", "h(x)")) == "scoring: a.py (f)"
    assert reason("") == "scoring: a.py (f, RATE)"
    registry = 'KINDS = {"one": f, "two": 2}\n'
    monkeypatch.setattr(staleness, "_program_at", lambda *_: staleness._program(then + registry))
    assert reason(then + registry.replace("}", ', "three": 3}')) == ""
    assert reason(then + registry.replace("2}", "3}")) == "scoring: a.py (KINDS['two'])"
    assert reason(then + 'KINDS = {"two": 2}\n') == "scoring: a.py (KINDS['one'])"
    monkeypatch.setattr(staleness, "_program_at", lambda *_: staleness._program(then))
    assert reason(then.replace("x + 1", "x + 2"), "a.py#RATE") == ""
    assert reason("", "a.py#RATE") == "scoring: a.py (RATE)"


def test_a_metric_that_is_no_longer_defined_is_a_difference():
    values = {"closed_accuracy": 0.9, "auroc": 0.8, "oscr": None}
    lost = {"set": values | {"auroc": None}}
    assert reproduce.differences({"set": values}, {"set": dict(values)}, reproduce.TOLERANCE) == ([], "")
    (problem,), _ = reproduce.differences({"set": values}, lost, reproduce.TOLERANCE)
    assert "auroc against set: recorded .8000, now –" in problem


@pytest.fixture
def records_of(tmp_path, monkeypatch):
    """Write records with given values of a metric, one a split, and return the row they answer."""
    monkeypatch.setattr(results, "RECORDS", tmp_path)
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    monkeypatch.setattr(ledger, "papers", lambda: [])

    def write(published, values, metric="auroc", unknown="digits-unknown", wanted=None):
        count = wanted or len(values)
        splits = tuple(f"cssr-{n}" for n in range(count))
        recipe = ledger.Recipe("cssr", "run", "", "", "t", ("digits",), splits, (0,), "cpu", 1, 1)
        answer = ledger.Answer(recipe, "m", "digits-unknown")
        for job, value in zip(recipe.jobs(), values):
            path = answer.record_file(job)
            path.parent.mkdir(exist_ok=True)
            fields = {"paper": "cssr", "table": "t", "data": "digits", "split": job.split, "seed": job.seed}
            path.write_text(json.dumps(fields | {"metrics": {unknown: {metric: value, "macro_f1_validation": 0.25}}}))
        return ledger.Row("cssr", "r", "1", "CSSR", "digits", "digits-unknown", metric, published, "", "paper", [answer])

    return write


@pytest.mark.parametrize(
    ("published", "values", "verdict"),
    [
        (0.9, [0.905], "reproduced"),
        (0.9, [0.88], "worse by .020"),
        (0.9, [0.95], "better by .050"),
        (0.9, [0.84, 0.94, 0.86], "in the interval, worse by .020"),  # the 95 % interval of three runs
        (None, [0.95], "no published value"),
    ],
)
def test_verdicts(records_of, published, values, verdict):
    assert comparison.compared(records_of(published, values)).verdict == verdict


def test_remarks_of_a_verdict(records_of):
    found = comparison.compared(records_of(0.9, [0.9], unknown="digits-unknown (rebuilt)", wanted=5))
    assert found.verdict == "reproduced; 1 of 5 runs; rebuilt data"
    assert found.half is None and found.ours == ".900"


def test_an_interval_over_some_of_the_runs_confirms_nothing(records_of):
    assert comparison.compared(records_of(0.9, [0.84, 0.94, 0.86], wanted=5)).verdict == "worse by .020; 3 of 5 runs"


def test_a_papers_macro_f1_stands_beside_the_honest_one(records_of):
    assert comparison.compared(records_of(0.9, [0.9], metric="macro_f1_argmax")).honest == 0.25
    assert comparison.compared(records_of(0.9, [0.9])).honest is None


def test_rows_that_cannot_be_answered_say_why(tmp_path):
    broken = json.loads(json.dumps(ROWS))
    del broken["rows"][3]["reason"]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(UserError, match="row peer: neither a run answers it nor a reason"):
        ledger.read("cssr", path)


def test_shards_cover_every_job_once_whatever_is_done(monkeypatch):
    done = set()

    def state(_, job, *__):
        return ("done" if job.name in done else "open", "")

    monkeypatch.setattr(staleness, "state", state)

    def shard(number):
        args = reproduce.get_args_parser().parse_args(["run", "--open", "--paper", "cssr", "--shard", f"{number}/3"])
        return [job.name for _, job in reproduce.jobs_to_run(args)]

    parts = [shard(number) for number in range(3)]
    names = [name for part in parts for name in part]
    assert len(names) == len(set(names)) == sum(len(r.jobs()) for r in ledger.read("cssr").recipes.values())
    done |= {parts[0][0], parts[1][0]}
    assert [shard(number) for number in range(3)] == [parts[0][1:], parts[1][1:], parts[2]]


def test_runs_with_other_start_weights_are_stale_and_stand_apart(monkeypatch):
    monkeypatch.setattr(staleness, "_start_now", {"net": "new", "of-others": None}.get)
    base = {"paper": "vmdls", "table": "laptop", "data": "cifar10", "split": "cssr-a", "seed": 0}
    recipe = ledger.read("vmdls").recipes["laptop-cifar10-vmdls"]
    flags = staleness._flags_now("vmdls", tuple(ledger.Job(recipe, "cssr-a", 0).train[1:]))
    for named, started, shown in (("net", "new", "laptop"), ("net", "old", "laptop (earlier flags)"),
                                  ("net", None, "laptop (earlier flags)"), ("of-others", None, "laptop")):  # fmt: skip
        found = base | {"flags": {"weights": named}} | ({"started_from": started} if started else {})
        monkeypatch.setattr(staleness, "_flags_now", lambda *_, named=named: flags | {"weights": named})
        assert staleness.shown_recipe(found) == shown, (named, started)
    assert staleness._changed_start(base | {"flags": {"weights": "net"}, "started_from": "old"}).endswith("another network today")


def test_a_run_begun_with_other_flags_is_begun_anew_only_then(tmp_path, monkeypatch):
    recipe = ledger.read("cssr").recipes["digits-linear"]
    job = ledger.Job(recipe, "first-6", 0)
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    assert not reproduce.begun_otherwise(job.directory(), job, {"training": []})
    flags = staleness._flags_now("cssr", tuple(job.train[1:]))
    job.directory().mkdir(parents=True)
    (job.directory() / "meta.json").write_text(json.dumps({"code_version": "abc"}))
    for epochs, otherwise in ((flags["max_epochs"], False), (flags["max_epochs"] + 1, True)):
        (job.directory() / "config.json").write_text(json.dumps(flags | {"max_epochs": epochs, "resume": True}))
        assert reproduce.begun_otherwise(job.directory(), job, {"training": []}) is otherwise


def test_changed_evaluation_flags_ask_for_a_new_evaluation():
    job = ledger.Job(ledger.read("crosr").recipes["mnist-10-crosr"], "all", 0)
    as_today = {"paper": "crosr", "commands": ["train", f"python crosr/test.py {shlex.join(job.test[1:])} --no_report"]}
    assert staleness._changed_evaluation(as_today, job) == ""
    other = as_today | {"commands": [*as_today["commands"][:1], as_today["commands"][1] + " --odin_crop native"]}
    assert staleness._changed_evaluation(other, job) == "scoring: --odin_crop was native, is center"


def test_committed_tables_equal_their_records():
    """A number typed into a generated table makes this fail."""
    wrong = [path.name for path, text in comparison.generated().items() if not path.exists() or path.read_text() != text]
    assert not wrong, f"run python -m common.reproduce table: {wrong}"
