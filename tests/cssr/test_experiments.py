"""Experiment files: the table against the disk and against recorded splits, reading, bad files."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.datasets import CATALOGUE, find_split
from common.errors import UserError
from cssr.arguments import parse_arguments
from cssr.configuration import FOLDER
from cssr.data import unknown_sets
from cssr.experiments import UnknownSet, experiment, is_rest, read_experiment, table, text_of

TABLE = table()
SPECIFICATION = Path(__file__).resolve().parents[2].parent / "shared" / "specs" / "cssr_splits.json"


def test_files_are_those_of_the_table():
    found = {path.relative_to(FOLDER / "exps").as_posix(): path.read_text() for path in FOLDER.glob("exps/**/*.json")}
    assert found == {name: text_of(content) for name, content in TABLE.items()}
    assert all(json.loads(text) == TABLE[name] for name, text in list(found.items())[:3])


def test_every_protocol_is_there():
    names = set(TABLE)
    five = {f"{data}/spl_{s}.json" for s in "abcde"
            for data in ("cifar10", "svhn", "tinyimagenet", "mnist", "digits", "cifar+10", "cifar+50")}  # fmt: skip
    outliers = ("imagenet_crop", "imagenet_resize", "lsun_crop", "lsun_resize", "imagenet_fix", "lsun_fix", "svhn", "cifar100",
                "cifar100_without_overlap")  # fmt: skip
    assert five | {f"cifar10/all_vs_{other}.json" for other in outliers} <= names
    assert {f"cifar100/openness_{count}.json" for count in range(15, 86, 10)} <= names
    assert {"digits/first_6.json", "imagenet/vs_inaturalist.json"} <= names


def test_splits_equal_the_recorded_ones():
    if not SPECIFICATION.exists():
        pytest.skip(f"the recorded splits are not in {SPECIFICATION.parent}")
    recorded = json.loads(SPECIFICATION.read_text())["official"]
    for data in ("cifar10", "svhn", "tinyimagenet"):
        for letter, expected in recorded[data].items():
            content = TABLE[f"{data}/spl_{letter}.json"]
            (train,), (test,) = content["train"], content["test"]
            labels = np.array(test["convert_class"])
            assert np.flatnonzero(labels >= 0).tolist() == expected["known"]
            assert labels[expected["known"]].tolist() == list(range(len(expected["known"])))
            assert sorted(np.flatnonzero(labels == -1)) == sorted(set(range(len(labels))) - set(expected["known"]))
            assert set(train["keep_class"]) == set(range(len(expected["known"])))
            assert set(test["keep_class"]) == {-1, *train["keep_class"]}


@pytest.mark.parametrize("name", list(TABLE))
def test_every_file_reads_back(name):
    found = read_experiment(f"./exps/{name}")
    content = TABLE[name]
    split = find_split(found.dataset, found.split)
    assert found.dataset == content["name"] and found.unknown
    assert np.flatnonzero(np.array(content["train"][0]["convert_class"]) >= 0).tolist() == list(split.known)
    for part in found.unknown:
        if part.dataset == found.dataset:
            assert not set(part.classes) & set(split.known)
        assert part.classes is None or max(part.classes) < CATALOGUE[part.dataset].classes


def test_what_the_rest_of_a_split_is():
    for name, rest in (("cifar10/spl_a", True), ("cifar+50/spl_c", True), ("cifar+10/arpl_2", True),
                       ("imagenet/vs_inaturalist", True), ("digits/spl_b", True), ("cifar100/openness_85", True),
                       ("cifar100/openness_15", False), ("cifar10/all_vs_svhn", False)):  # fmt: skip
        assert is_rest(read_experiment(f"exps/{name}.json")) is rest, name
    args = parse_arguments(["--ds", "exps/cifar10/all_vs_cifar100_without_overlap.json"])
    (part,) = unknown_sets(args)
    assert (args.known_dataset, args.split, part.dataset, len(part.classes)) == ("cifar10", "all", "cifar100", 98)
    assert unknown_sets(parse_arguments(["--ds", "exps/cifar+10/spl_a.json"])) == ["rest"]
    assert unknown_sets(parse_arguments(["--split", "all"])) == []


def test_openness_grows_as_published():
    """15 known and 15 to 85 unknown classes: openness 18 % to 49 %, each series containing the shorter ones."""
    previous = set()
    for count in range(15, 86, 10):
        found = read_experiment(f"exps/cifar100/openness_{count}.json")
        (part,) = found.unknown
        assert len(part.classes) == count and previous < set(part.classes)
        previous = set(part.classes)
        openness = 1 - np.sqrt(2 * 15 / (15 + count + 15))
        assert 0.18 <= openness <= 0.49
    assert openness == pytest.approx(0.489, abs=1e-3)


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def test_an_originals_file_without_our_key_reads(tmp_path):
    content = {key: value for key, value in table()["svhn/spl_c.json"].items() if key != "split"}
    content["train"][0]["dataset"] = "SVHN"
    assert read_experiment(write(tmp_path / "c.json", content)).split == "cssr-c"
    named = experiment("cifar10", "all", [("inaturalist", None)])
    named["test"][1]["dataset"] = "oodinaturalist"
    assert read_experiment(write(tmp_path / "d.json", named)).unknown == (UnknownSet("inaturalist"),)


def entry(dataset, labels, keep):
    return {"dataset": dataset, "convert_class": labels, "keep_class": keep}


TRAIN = entry("digits", [0, 1] + [-1] * 8, [0, 1])
BAD = [
    ({}, "no experiment"),
    ({"train": [TRAIN]}, "no experiment"),
    ({"train": [TRAIN, TRAIN], "test": []}, "no experiment"),
    ({"train": [entry("digits", [1, 0] + [-1] * 8, [0, 1])], "test": []}, "ascending"),
    ({"train": [entry("digits", [-1] * 10, [-1])], "test": []}, "ascending"),
    ({"train": [entry("digits", [0, 1], [0, 1])], "test": []}, "10 labels, got 2"),
    ({"train": [entry("digts", [0, 1], [0, 1])], "test": []}, "nearest: digits"),
    ({"train": [TRAIN], "test": [entry("digits", [0, 1, 2] + [-1] * 7, [0, 1, 2, -1])]}, "other known classes"),
    ({"train": [TRAIN], "test": [entry("svhn", [0] * 10, [0])]}, "other known classes"),
    ({"train": [TRAIN], "test": [entry("digits", [0, 1] + [-3] * 8, [0, 1, -3])]}, "label -1"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_bad_experiments_are_one_line(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_experiment(write(tmp_path / "bad.json", content))
    assert "\n" not in str(caught.value)
