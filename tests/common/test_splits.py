"""Known/unknown splits: the published lists, lists given by hand, and what happens to a bad one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.datasets import CATALOGUE, NAMES, Images, class_count, find_split, split_names
from common.datasets.splits import format_classes, parse_classes
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
KNOWN_SETS = [name for name in NAMES if CATALOGUE[name].classes]

# Typed from specs/cssr.md 1.7, independently of the table in the package.
CSSR = {
    "cssr-a": ((2, 3, 4, 5, 6, 7), (0, 1, 8, 9)),
    "cssr-b": ((1, 2, 4, 6, 7, 8), (0, 3, 5, 9)),
    "cssr-c": ((0, 3, 4, 5, 6, 8), (1, 2, 7, 9)),
    "cssr-d": ((0, 1, 4, 6, 8, 9), (2, 3, 5, 7)),
    "cssr-e": ((0, 2, 3, 5, 6, 7), (1, 4, 8, 9)),
}
TINY_A = (0, 7, 8, 27, 29, 32, 42, 51, 62, 72, 76, 91, 95, 163, 171, 173, 178, 186, 188, 195)


@pytest.mark.parametrize("dataset", ["cifar10", "svhn", "mnist", "fashion-mnist", "kmnist"])
@pytest.mark.parametrize("name", CSSR)
def test_cssr_splits(dataset, name):
    split = find_split(dataset, name)
    assert (split.known, split.unknown) == CSSR[name]
    assert find_split(dataset, name[-1]) == split == find_split(dataset, f"spl_{name[-1]}")
    assert ("publishes no split" in split.source) == (dataset not in ("cifar10", "svhn"))


def test_tinyimagenet_split_a():
    split = find_split("tiny-imagenet", "a")
    assert split.known == TINY_A and len(split.unknown) == 180


@pytest.mark.parametrize("dataset", KNOWN_SETS)
def test_every_published_split_is_a_partition(dataset):
    count = class_count(dataset)
    for name in split_names(dataset):
        split = find_split(dataset, name)
        assert split.known == tuple(sorted(set(split.known))) and split.source
        assert set(split.known) <= set(range(count))
        if split.unknown_dataset is None:
            assert sorted(split.known + split.unknown) == list(range(count))
        elif split.unknown:
            assert set(split.unknown) <= set(range(class_count(split.unknown_dataset)))


def test_counts_of_published_splits():
    for dataset, known in (("mnist", 6), ("svhn", 6), ("cifar10", 6), ("tinyimagenet", 20)):
        for family in ("arpl", "cac"):
            for i in range(5):
                assert len(find_split(dataset, f"{family}-{i}").known) == known
    for family in ("arpl", "cac"):
        for extra in (10, 50):
            for i in range(5):
                split = find_split("cifar10", f"{family}-plus{extra}-{i}")
                assert (len(split.known), len(split.unknown), split.unknown_dataset) == (4, extra, "cifar100")
    # Neal's rule: the four vehicles are known in every row; ARPL's rows know animals too.
    assert {find_split("cifar10", f"cac-plus10-{i}").known for i in range(5)} == {(0, 1, 8, 9)}
    assert find_split("cifar10", "arpl-plus50-0").known == (1, 4, 7, 9)


def test_no_cssr_split_equals_a_peers_split():
    for dataset in ("cifar10", "svhn", "tinyimagenet"):
        cssr = {find_split(dataset, s).known for s in "abcde"}
        peers = {find_split(dataset, n).known for n in split_names(dataset) if n.startswith(("arpl", "cac"))}
        assert len(cssr) == 5 and not cssr & peers


def test_other_ways_to_name_a_split():
    assert find_split("cifar10", "neal-2") == find_split("cifar10", "cac-2")
    assert find_split("cifar10", "first-8").unknown == (8, 9) == find_split("cifar10", "first_8").unknown
    assert find_split("cifar10", "0-5,8").known == (0, 1, 2, 3, 4, 5, 8)
    assert find_split("cifar10", [8, 1]).known == (1, 8) == find_split("cifar10", "8, 1").known
    assert find_split("cifar10", "all").unknown == ()
    imagenet = find_split("imagenet", "vs_inaturalist")
    assert len(imagenet.known) == 1000 and imagenet.unknown_dataset == "inaturalist"


@pytest.mark.parametrize(
    ("dataset", "split", "words"),
    [
        ("cifar10", "cssr-f", ["cifar10", "cssr-f", "nearest", "cssr-"]),
        ("cifar10", "arpl-7", ["nearest", "arpl-"]),
        ("cifar10", "first-0", ["1 to 10"]),
        ("cifar10", "first-11", ["1 to 10"]),
        ("cifar10", "3-1", ["backwards"]),
        ("cifar10", "1,,2", ["neither a number nor a range"]),
        ("cifar10", "0-12", ["0 to 9", "10"]),
        ("cifar10", "0-999999999999", ["no data set has"]),
        ("cifar10", "1,1,2", ["more than once"]),
        ("cifar10", [], ["empty"]),
        ("cifar10", [-1, 2], ["0 to 9", "-1"]),
        ("cifar100", "cssr-a", ["cifar100", "has no split"]),
        ("lsun-crop", "all", ["only be unknown"]),
        ("cifarten", "all", ["unknown data set", "cifar10"]),
    ],
)
def test_bad_splits(dataset, split, words):
    with pytest.raises(UserError) as error:
        find_split(dataset, split)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


@given(st.sets(st.integers(0, 99), min_size=2))
@settings(max_examples=200, deadline=None)
def test_lists_survive_writing_and_parsing(classes):
    text = format_classes(sorted(classes))
    assert parse_classes(text) == sorted(classes)
    split = find_split("cifar100", text)
    assert set(split.known) == classes and set(split.known) | set(split.unknown) == set(range(100))
    assert not set(split.known) & set(split.unknown) and split.name == text


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_relabelling_keeps_the_ascending_order(data):
    count = data.draw(st.integers(1, 12))
    labels = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=40)), dtype=np.int64)
    known = data.draw(st.permutations(sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))))
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    images = Images(pixels, labels, tuple(f"class {k}" for k in range(count)))
    kept = images.relabelled(known)
    # An independent count, sample by sample.
    expected = [(i, sorted(known).index(k)) for i, k in enumerate(labels) if k in known]
    assert list(zip(kept.pixels[:, 0, 0, 0].tolist(), kept.labels.tolist(), strict=True)) == expected
    assert kept.classes == tuple(f"class {k}" for k in sorted(known))
    assert kept.labels.dtype == np.int64


def test_command_line_lists_splits():
    run = subprocess.run(
        [sys.executable, "-m", "common.datasets", "splits", "cifar10"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0
    assert "cssr-a: known 2-7 | unknown 0-1,8-9 |" in run.stdout and "of cifar100" in run.stdout
    doubled = [line.split(":")[0] for line in run.stdout.splitlines() if line.endswith("the same classes as arpl-0")]
    assert doubled == ["cifar10 arpl-1"]
