"""Checkpoints load only what this repository wrote, whole and verified, and never execute anything."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common import checkpoints
from common.errors import UserError

HEADER = {"paper": "cssr", "class_names": ["a", "b"], "model": {"width": 3}}


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = {"w": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last), "statistics.mean": torch.randn(3).double()}
    checkpoints.save_weights(path, tensors, HEADER)
    return path, tensors


def test_round_trip_keeps_values_and_header(stored):
    path, tensors = stored
    loaded, header = checkpoints.load_weights(path, paper="cssr", classes=2)
    assert header == HEADER
    for name, tensor in tensors.items():
        assert loaded[name].equal(tensor) and loaded[name].dtype == tensor.dtype


def test_run_directory_is_accepted(stored):
    path, _ = stored
    assert checkpoints.find(path.parent) == [path]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"paper": "crosr"}, "is a checkpoint of 'cssr', expected one of 'crosr'"),
        ({"paper": "cssr", "classes": 6}, "knows 2 classes, expected 6"),
    ],
)
def test_checkpoint_of_something_else(stored, arguments, expected):
    with pytest.raises(UserError, match=expected):
        checkpoints.load_weights(stored[0], **arguments)


@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, -1])
def test_truncated_files_are_refused(stored, keep):
    path, _ = stored
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match="not a whole safetensors checkpoint"):
        checkpoints.load_weights(path, paper="cssr")


def test_pickles_are_refused_and_not_executed(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path(tmp_path / "executed").touch, ())

    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({"w": Hostile()}))
    with pytest.raises(UserError, match="not a whole safetensors checkpoint"):
        checkpoints.load_weights(path, paper="cssr")
    assert not (tmp_path / "executed").exists()


def test_foreign_safetensors_are_refused(tmp_path):
    save_file({"w": torch.zeros(2)}, str(tmp_path / "foreign.safetensors"))
    with pytest.raises(UserError, match="not written by this repository"):
        checkpoints.load_weights(tmp_path / "foreign.safetensors", paper="cssr")


def test_missing_checkpoint_names_the_command_that_trains_it():
    with pytest.raises(UserError, match=r"no run, file or checkpoint 'nothing'.*python cssr/main\.py trains one"):
        checkpoints.load_weights("nothing", paper="cssr")


def test_stored_checkpoint_is_sharded_half_precision_and_verified(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 100)
    run = tmp_path / "run"
    tensors = {"a": torch.randn(40), "b": torch.randn(40), "n.running_mean": torch.randn(3), "n.num": torch.tensor(5)}
    checkpoints.save_weights(run / "weights.safetensors", tensors, HEADER)
    (run / "meta.json").write_text(json.dumps({"command": "python cssr/main.py"}))
    folder = tmp_path / "store"
    entry = checkpoints.add(run, "name", folder)
    assert len(entry["files"]) > 1
    loaded, header = checkpoints.load_weights("name", paper="cssr", folder=folder)
    assert header["class_names"] == ["a", "b"]
    assert loaded["a"].equal(tensors["a"].half().float())
    assert loaded["n.running_mean"].equal(tensors["n.running_mean"]) and loaded["n.num"] == 5
    broken = folder / entry["files"][0]["file"]
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    with pytest.raises(UserError, match="is corrupt, expected sha256"):
        checkpoints.load_weights("name", paper="cssr", folder=folder)


def test_nothing_half_written_when_writing_fails(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_text("before")
    with pytest.raises(TypeError):
        checkpoints.save_weights(path, {"w": torch.zeros(2)}, {"bad": object()})
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_committed_checkpoints_verify():
    done = subprocess.run([sys.executable, "-m", "common.checkpoints", "verify"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for name in checkpoints.read_manifest():
        assert f"{name}: ok" in done.stdout


def test_manifest_expects_what_the_records_hold():
    for name, entry in checkpoints.read_manifest().items():
        found = checkpoints.expected_metrics(entry["trained_sha256"])
        assert entry["expected"] == found, f"{name}: run python -m common.checkpoints expect"
        assert found or "ae.py" in entry["trained_by"], f"{name} has no record"


def test_start_weights_have_one_origin_however_they_are_named(monkeypatch):
    """A name of the manifest, its file, and the file by another path are the same trained network."""
    name, entry = next((key, value) for key, value in checkpoints.read_manifest().items() if len(value["files"]) == 1)
    file = checkpoints.FOLDER / entry["files"][0]["file"]
    monkeypatch.chdir(checkpoints.FOLDER.parent)
    places = (name, file, Path("checkpoints") / file.name, Path("common") / ".." / "checkpoints" / file.name)
    assert {checkpoints.origin(place) for place in places} == {entry["trained_sha256"]}
