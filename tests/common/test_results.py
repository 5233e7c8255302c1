"""Records, compact scores and generated tables: a table cannot hold a number without a record."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common import results
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def scores(count=100, **more):
    rng = np.random.default_rng(0)
    return {
        "target": rng.integers(-1, 3, count), "prediction": rng.integers(0, 3, count),
        "unknown_score": rng.normal(size=count), "split": np.zeros(count, np.int8), "source": np.zeros(count, np.int16),
        "sources": np.array(["a"]), "class_names": np.array(["x", "y", "z"]), **more,
    }  # fmt: skip


def test_scores_round_trip(tmp_path):
    written = scores(logits=np.ones((100, 3), np.float32))
    results.write_scores(tmp_path / "scores.npz", written)
    read = results.read_scores(tmp_path / "scores.npz")
    assert read.keys() == written.keys()
    for key in read:
        np.testing.assert_array_equal(read[key], written[key])


def test_incomplete_scores_are_refused(tmp_path):
    partial = scores()
    del partial["split"]
    with pytest.raises(ValueError, match="split"):
        results.write_scores(tmp_path / "scores.npz", partial)
    assert not list(tmp_path.iterdir())


def test_truncated_scores_are_one_line(tmp_path):
    path = tmp_path / "scores.npz"
    results.write_scores(path, scores())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="not a readable scores file"):
        results.read_scores(path)


def test_compact_scores_drop_what_is_large(tmp_path):
    rng = np.random.default_rng(0)
    count = 60_000
    large = scores(count, logits=rng.normal(size=(count, 10)), features=rng.normal(size=(count, 8)))
    results.write_compact_scores(tmp_path / "large.npz", large)
    assert (tmp_path / "large.npz").stat().st_size <= results.COMPACT_BYTES
    assert set(results.read_scores(tmp_path / "large.npz")) == set(scores())
    results.write_compact_scores(tmp_path / "small.npz", scores(logits=rng.normal(size=(100, 3))))
    assert "logits" in results.read_scores(tmp_path / "small.npz")


def test_compact_scores_make_no_two_images_equal(tmp_path):
    close = scores(2)
    close["unknown_score"] = np.array([1.0, 1.0 + 1e-12])
    results.write_compact_scores(tmp_path / "close.npz", close)
    first, second = results.read_scores(tmp_path / "close.npz")["unknown_score"]
    assert first < second
    results.write_compact_scores(tmp_path / "apart.npz", close | {"unknown_score": np.array([1.0, 2.0])})
    assert results.read_scores(tmp_path / "apart.npz")["unknown_score"].dtype == np.float32


def make_record(auroc, split, **more):
    values = {"closed_accuracy": 0.9, "auroc": auroc, "fpr95_known_positive": 0.5, "oscr": 0.8, "macro_f1_validation": None}
    return {"paper": "p", "table": "t", "data": "d", "split": split, "method": "mls", "seed": 0,
            "metrics": {"rest": values}, "wall_seconds": {"train": 60, "test": 1}} | more  # fmt: skip


def test_table_shows_mean_and_interval():
    table = results.markdown_table([make_record(0.8, "cssr-a"), make_record(0.9, "cssr-b")])
    (row,) = table.splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # t(.975, 1) = 12.706; half-width = 12.706 * .0707 / sqrt(2) = .635
    assert cells == ["t", "d, cssr", "rest", "mls", "2", ".900 ± .000", ".850 ± .635", ".500 ± .000", ".800 ± .000", "–", "1.0"]


def test_wide_tables_put_unknown_sets_side_by_side():
    values = make_record(0.7, "all")["metrics"]["rest"]
    two = [make_record(0.7, "all", seed=seed, metrics={"near": values | {"auroc": near}, "far": values | {"auroc": 0.95}})
           for seed, near in ((0, 0.7), (1, 0.9))]  # fmt: skip
    one = make_record(0.8, "cssr-a")
    partial = make_record(0.6, "all", method="msp", metrics={"far": values | {"auroc": 0.6}})
    first, second = results.wide_tables([one, *two, partial]).split("\n\n**")
    assert first.splitlines()[0] == "**known: d, cssr; unknown: rest; recipe t**"
    assert first.splitlines()[-1] == "| mls | 1 | .900 | .800 | .500 | .800 | – | 1.0 |"
    assert second.splitlines()[2:] == [
        "| score | runs | closed acc. | near | far |", "|---|---|---|---|---|",
        "| mls | 2 | .900 ± .000 | .800 ± 1.271 | .950 ± .000 |", "| msp | 1 | .900 | – | .600 |",
    ]  # fmt: skip


def test_blocks_are_filled_from_records_only(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RECORDS", tmp_path)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    text = "before\n<!-- records: paper=p method=mls -->\nold | .999\n<!-- end records -->\nafter\n"
    assert "not run" in results.filled(text) and ".999" not in results.filled(text)
    results.write_record(tmp_path / "p" / "x.json", make_record(0.8, "cssr-a"), scores())
    filled = results.filled(text)
    assert ".800" in filled and "| recipe |" in filled
    assert "; recipe t**" in results.filled(text.replace(" -->", " view=wide -->", 1))
    assert filled.startswith("before\n") and filled.endswith("after\n")
    assert results.filled(filled) == filled


def test_committed_tables_equal_their_records():
    done = subprocess.run([sys.executable, "-m", "common.results", "check"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_committed_records_are_whole_and_backed_by_their_scores():
    from common.metrics import evaluate_file

    records = results.read_records()
    for record in records:
        path = (ROOT / record["path"]).with_suffix(".npz")
        assert path.stat().st_size <= results.COMPACT_BYTES
        assert {"commands", "code_version", "device_name", "data_checksums", "seed", "wall_seconds"} <= set(record)
        recomputed = evaluate_file(path)
        assert recomputed.keys() == record["metrics"].keys()
        for source, values in recomputed.items():
            for name in ("closed_accuracy", "auroc", "oscr", "macro_f1_validation", "fpr95_known_positive"):
                stored = record["metrics"][source][name]
                if stored is None:
                    assert np.isnan(values[name])
                else:
                    assert values[name] == pytest.approx(stored, abs=1e-5), (record["path"], source, name)
    names = {json.dumps([r["paper"], r["table"], r["data"], r["method"], r["split"], r["seed"]]) for r in records}
    assert len(names) == len(records)


@pytest.mark.parametrize(
    ("split", "family"),
    [("cssr-a", "cssr"), ("arpl-0", "arpl"), ("cac-plus10-3", "cac-plus10"), ("first-6", "first-6"), ("0-5", "0-5")],
)
def test_only_published_splits_are_averaged(split, family):
    assert results.FAMILY.sub(r"\1", split) == family
