"""Folders of one's own images as known and unknown data, from the names to the scripts of every paper."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from baseline_openmax.overlap import check_training_outliers, refuse_training_outliers
from common.datasets import CATALOGUE, NAMES, class_count, find_split, load, prepare, resolve_name
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NAMES_OF_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """scikit-learn's digits 0-5 as `train/CLASS/*.png` and `test/CLASS/*.png`, 6-9 as a tree of images."""
    folder = tmp_path_factory.mktemp("own data")
    for train in (True, False):
        images = load("digits", train)
        for number, (frame, label) in enumerate(zip(images.pixels, images.labels)):
            part = "train" if train else "test"
            if label < 6:
                write(folder / "Scans" / part / NAMES_OF_DIGITS[label] / f"{number:04}.png", frame[0])
            elif not train:
                write(folder / "strange ones" / f"{label}" / f"{number:04}.png", frame[0])
    return folder


def test_names_have_one_spelling_and_are_no_entries_of_the_list(digits):
    name = f"folder:{digits}/Scans/@1x8"
    assert resolve_name(name) == resolve_name(f" folder:{digits}/Scans@1x8 ") == f"folder:{digits}/Scans@1x8"
    assert resolve_name(f"folder:{digits}/Scans@64").endswith("Scans@3x64")
    assert CATALOGUE[resolve_name(name)].shape == (1, 8) and class_count(name) == 6
    assert resolve_name(name) not in NAMES and resolve_name(name) not in CATALOGUE
    with pytest.raises(KeyError):
        CATALOGUE["nobody"]


def test_pixels_and_labels_are_those_of_the_files(digits):
    own, embedded = load(f"folder:{digits}/Scans@1x8", True), load("digits", True, keep=range(6))
    assert own.classes == tuple(sorted(NAMES_OF_DIGITS[:6])) and own.name == "Scans" and own.pixels.dtype == np.uint8
    for label, name in enumerate(own.classes):
        there = embedded.pixels[embedded.labels == NAMES_OF_DIGITS.index(name)]
        assert np.array_equal(own.pixels[own.labels == label], there)
    colour = load(f"folder:{digits}/Scans@8", False, keep=[2])
    assert colour.shape == (3, 8, 8) and set(colour.labels) == {2}
    assert np.array_equal(colour.pixels[:, 0], load(f"folder:{digits}/Scans@1x8", False, keep=[2]).pixels[:, 0])


def test_images_of_any_shape_are_scaled_and_cut_to_the_centre(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 16:44] = (255, 0, 0)
    write(tmp_path / "wide" / "a.png", wide)
    read = load(f"folder:{tmp_path}/wide", False, size=10).pixels[0]
    assert np.array_equal(read, np.full((3, 10, 10), [[[255]], [[0]], [[0]]]))


def test_splits_by_number_and_by_name(digits):
    name = f"folder:{digits}/Scans@1x8"
    assert find_split(name, "zero, five").known == find_split(name, "0,5").known == (0, 5)  # five four one three two zero
    assert find_split(name, "first-4").unknown == (4, 5)
    with pytest.raises(UserError, match="has no split 'fiv'; nearest: five"):
        find_split(name, "fiv")


def test_an_experiment_on_own_folders(digits, monkeypatch):
    monkeypatch.setenv("OSR_DATA_DIR", str(digits))
    data = prepare("folder:Scans@1x8", "all", "folder:strange ones")
    assert data.class_names == tuple(sorted(NAMES_OF_DIGITS[:6])) and data.test.name == "Scans"
    assert data.unknown["folder:strange ones"].name == "strange ones"
    assert np.array_equal(np.sort(data.unknown["folder:strange ones"].pixels, 0),
                          np.sort(load("digits", False, keep=range(6, 10)).pixels, 0))  # fmt: skip
    rest = prepare("folder:Scans@1x8", "first-4", ("rest", "noise", "folder:strange ones"))
    assert list(rest.unknown) == ["Scans-unknown", "noise", "folder:strange ones"]
    assert {part.shape for part in rest.unknown.values()} == {(1, 8, 8)}


@pytest.mark.parametrize(
    ("known", "unknown", "said"),
    [
        ("folder:nowhere@8", (), "no folder nowhere here or in the data folder"),
        ("folder:Scans", (), "@1x32 grey"),
        ("folder:Scans@2x8", (), "expected folder:PATH@SIZE"),
        ("folder:Scans@3", (), "expected folder:PATH@SIZE"),
        ("folder:strange ones@8", (), "can only be unknown"),
        ("folder:Scans@1x8", "folder:Scans", "known and unknown data overlap"),
        ("folder:Scans@1x8", "folder:./strange ones/../Scans@8", "known and unknown data overlap"),
        ("folder:Scans@1x8", ("folder:strange ones", "folder:./strange ones@8"), "given twice"),
        ("folder:Scans@1x8", "folder:mixed", "share 1 known classes: one"),
        ("folder:Scans@1x8", "folder:elsewhere/Scans", "two of the data sets are called 'Scans'"),
        ("folder:Scans@1x8", "folder:empty", "no image below"),
        ("folder:Scans@1x8", "folder:broken", "broken.png"),
        ("folder:untested@8", (), "different classes (b)"),
        ("folder:onlytrain@8", (), "no test part"),
        ("folder:stray@8", (), "b.png lies beside the class folders"),
    ],
)
def test_bad_folders_are_one_clear_line(digits, monkeypatch, known, unknown, said):
    monkeypatch.setenv("OSR_DATA_DIR", str(digits))
    frame = np.zeros((8, 8), np.uint8)
    for place in ("mixed/one/a.png", "elsewhere/Scans/a.png", "untested/train/a/a.png", "untested/train/b/a.png",
                  "untested/test/a/a.png", "onlytrain/train/a/a.png", "stray/train/a/a.png",
                  "stray/train/b.png", "stray/test/a/a.png"):  # fmt: skip
        write(digits / place, frame)
    (digits / "empty").mkdir(exist_ok=True)
    (digits / "broken").mkdir(exist_ok=True)
    (digits / "broken" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        prepare(known, "all", unknown)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_outliers_of_the_training_are_known_by_their_folder(digits, monkeypatch):
    monkeypatch.setenv("OSR_DATA_DIR", str(digits))
    with pytest.raises(UserError, match="shown in training as outliers"):
        refuse_training_outliers([f"folder:{digits}/strange ones@8"], {"outliers": ["folder:strange ones"]})
    refuse_training_outliers(["noise"], {"outliers": ["folder:strange ones", "folder:not on this machine"]})
    with pytest.raises(UserError, match="made of the same images"):
        check_training_outliers(["folder:Scans"], prepare("folder:Scans@1x8", "first-4", ()))


@pytest.mark.parametrize(
    ("paper", "score"), [("baseline_openmax", "mls"), ("cssr", "fused"), ("crosr", "mls"), ("vmdls", "vmdls")]
)
def test_every_paper_learns_ones_own_images(digits, tmp_path, paper, score):
    environment = os.environ | {"OSR_DATA_DIR": str(digits), "OMP_NUM_THREADS": "1"}

    def run(script, *arguments):
        done = subprocess.run([sys.executable, f"{paper}/{script}", *arguments, "--run_dir", str(tmp_path / "run")], cwd=ROOT,
                              env=environment, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("main.py", "--preset", "digits", "--known_dataset", "folder:Scans@1x8", "--split", "all")
    shown = run("test.py", "--unknown", "folder:strange ones", "noise", "--score", score)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"][score]
    assert metrics["strange ones"]["auroc"] > 0.9 and metrics["strange ones"]["closed_accuracy"] > 0.97, metrics
    assert "strange ones" in shown


def test_the_command_line_lists_and_verifies_them(digits):
    environment = os.environ | {"OSR_DATA_DIR": str(digits)}

    def run(*arguments):
        command = [sys.executable, "-m", "common.datasets", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    assert "classes 0 five, 1 four, 2 one" in run("splits", "folder:Scans").stdout
    verified = run("verify", "folder:Scans@1x8", "folder:strange ones@8")
    assert verified.returncode == 0 and verified.stdout.count("ok ") == 3, verified.stdout
    assert "no folder nowhere" in run("verify", "folder:nowhere").stderr


DOCUMENTED = [line.strip() for file in ("data/README.md", "README.md") for line in (ROOT / file).read_text().splitlines()
              if "main.py" in line and "folder:leaves" in line]  # fmt: skip


@pytest.mark.parametrize("line", DOCUMENTED)
def test_documented_commands_train(line, tmp_path):
    """Thirty small pictures a class are enough for every command that the documents show."""
    generator = np.random.default_rng(0)
    for kind, level in (("oak", 60), ("rose", 120), ("fern", 180)):
        for part, count in (("train", 30), ("test", 6)):
            for number in range(count):
                noise = generator.integers(0, 60, (36, 40, 3), dtype=np.uint8)
                write(tmp_path / "leaves" / part / kind / f"{number}.png", noise + np.uint8(level))
    words = shlex.split(line, comments=True)[1:]
    environment = os.environ | {"OSR_DATA_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    place = ["--max_epochs", "1", "--run_dir", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, *words, *place], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(DOCUMENTED) == 3


def test_one_class_is_no_classifier(digits):
    with pytest.raises(UserError, match=r"two at least, got 3 alone \(first-3: the first three\)"):
        find_split("digits", "3")
