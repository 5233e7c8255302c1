"""OpenMax in test.py: fitted on training logits, stored with the checkpoint, swept over settings, bad input one line."""

import csv
import json

import numpy as np
import pytest

from common import checkpoints
from common.errors import UserError
from common.openmax import OpenMax
from common.sweep import parse_sweep

SETTINGS = {"tail_size": 20, "alpha": 6, "distance": "eucos", "translation": 1.0}


def test_scores_equal_a_fit_from_the_saved_logits(trained):
    with np.load(trained / "scores_openmax.npz") as scores:
        train = scores["split"] == 2
        model = OpenMax(tail_size=20, alpha=6).fit(scores["logits"][train], scores["target"][train])
        probabilities = model.probabilities(scores["logits"])
        np.testing.assert_allclose(scores["probabilities"], probabilities, atol=1e-12)
        np.testing.assert_array_equal(scores["unknown_score"], scores["probabilities"][:, -1])
        np.testing.assert_allclose(probabilities.sum(1), 1)


def test_digits_reach_the_demo_figure(trained):
    metrics = json.loads((trained / "metrics.json").read_text())["scores"]["openmax"]["digits-unknown"]
    assert metrics["auroc"] >= 0.93
    assert 0 < metrics["macro_f1_argmax"] <= 1


def test_openmax_travels_in_the_checkpoint(run, own_run, tmp_path):
    """A stored checkpoint scores without the training part and gives the same probabilities.

    Weights that half precision holds exactly, so that storing them changes nothing: Weibull distributions are steep, and the
    rounding of weights moves single probabilities by any amount.
    """
    path = own_run / "weights.safetensors"
    tensors, header = checkpoints.load_weights(path, paper="baseline_openmax")
    checkpoints.save_weights(path, {name: round_to_half(name, tensor) for name, tensor in tensors.items()}, header)
    fitted = run("test.py", "--run_dir", own_run, "--score", "openmax", "--no_report")
    assert fitted.returncode == 0, fitted.stderr
    folder = tmp_path / "store"
    checkpoints.add(own_run, "digits", folder)
    done = run("test.py", "--checkpoint_path", folder / "digits.safetensors", "--score", "openmax", "--run_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out" / "scores.npz") as again, np.load(own_run / "scores.npz") as first:
        assert set(again["split"]) == {0, 1}
        rows = first["source"] < 2
        np.testing.assert_allclose(again["probabilities"][: rows.sum()], first["probabilities"][rows], rtol=0, atol=1e-5)


def round_to_half(name, tensor):
    """What a stored checkpoint keeps of a weight (`common.checkpoints.add`)."""
    exact = "running_" in name or not tensor.is_floating_point()
    return tensor if exact else tensor.half().float()


def test_sweep_writes_table_and_figure(run, own_run):
    done = run("test.py", "--run_dir", own_run, "--score", "mls", "--sweep", "tail_size=10,20", "distance=eucos,cosine",
               "--no_report")
    assert done.returncode == 0, done.stderr
    with open(own_run / "sweep.csv") as source:
        rows = list(csv.DictReader(source))
    assert [(row["tail_size"], row["distance"]) for row in rows] == [
        ("10", "eucos"), ("10", "cosine"), ("20", "eucos"), ("20", "cosine")]  # fmt: skip
    metrics = json.loads((own_run / "metrics.json").read_text())["scores"]
    assert "mls" in metrics and len({row["auroc"] for row in rows}) > 1
    assert (own_run / "figures" / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--score", "openmax", "--tail_size", "5000"], "tail_size 5000 is larger than"),
        (["--score", "openmax", "--distance", "manhattan"], "invalid choice"),
        (["--sweep", "tail=20"], "nearest: tail_size"),
        (["--sweep", "tail_size=some"], "expects int values"),
        (["--score", "openmax", "--translation", "0"], "translation"),
    ],
)
def test_bad_openmax_input_is_one_line(run, own_run, flags, expected):
    done = run("test.py", "--run_dir", own_run, *flags)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and expected in done.stderr


def test_sweep_values_take_the_type_of_the_setting():
    assert parse_sweep(["translation=1,10000", "alpha=3"], SETTINGS) == {"translation": [1.0, 10000.0], "alpha": [3]}
    with pytest.raises(UserError, match="has no values"):
        parse_sweep(["alpha="], SETTINGS)


def test_dry_run_of_a_sweep_starts(run, own_run):
    """A dry run has too few right images for the smallest tail; every setting is tried all the same."""
    done = run("test.py", "--run_dir", own_run, "--score", "mls", "--sweep", "tail_size=10,20", "--dry_run")
    assert done.returncode == 0, done.stderr
