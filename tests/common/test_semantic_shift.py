"""The fine-grained sets and the Semantic Shift Benchmark's splits, on small trees in the published layouts."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from common.datasets import find_split, load, prepare
from common.datasets.catalogue import CATALOGUE
from common.datasets.presence import part_path
from common.errors import UserError

NAMES = ("cub", "fgvc-aircraft", "stanford-cars")


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (colour, 0, 255 - colour)).save(path)


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Four classes each, two training and one test image a class; colour = 50 x class + number."""
    for name in NAMES:
        monkeypatch.setitem(CATALOGUE, name, replace(CATALOGUE[name], classes=4, shape=(3, 16)))
    images = [(c, n) for c in range(4) for n in range(3)]
    cub = tmp_path / "CUB_200_2011"
    lines(cub / "classes.txt", [f"{c + 1} 00{c + 1}.Bird_{c}" for c in range(4)])
    lines(cub / "images.txt", [f"{i + 1} 00{c + 1}.Bird_{c}/{n}.jpg" for i, (c, n) in enumerate(images)])
    lines(cub / "image_class_labels.txt", [f"{i + 1} {c + 1}" for i, (c, n) in enumerate(images)])
    lines(cub / "train_test_split.txt", [f"{i + 1} {int(n < 2)}" for i, (c, n) in enumerate(images)])
    craft = tmp_path / "fgvc-aircraft-2013b" / "data"
    lines(craft / "variants.txt", [f"Plane 70{c}" for c in range(4)])
    for part, wanted in (("trainval", (0, 1)), ("test", (2,))):
        lines(craft / f"images_variant_{part}.txt", [f"{c}{n} Plane 70{c}" for c, n in images if n in wanted])
    cars = tmp_path / "stanford_cars"
    (cars / "devkit").mkdir(parents=True)
    savemat(cars / "devkit" / "cars_meta.mat", {"class_names": np.array([f"Car {c}" for c in range(4)], dtype=object)})
    kind = [("class", np.uint8), ("fname", object)]
    for file, wanted in (("devkit/cars_train_annos.mat", (0, 1)), ("cars_test_annos_withlabels.mat", (2,))):
        rows = np.array([(c + 1, f"{c}{n}.jpg") for c, n in images if n in wanted], dtype=kind)
        savemat(cars / file, {"annotations": rows})
    for c, n in images:
        picture(cub / "images" / f"00{c + 1}.Bird_{c}" / f"{n}.jpg", 50 * c + n)
        picture(craft / "images" / f"{c}{n}.jpg", 50 * c + n)
        picture(cars / ("cars_train" if n < 2 else "cars_test") / f"{c}{n}.jpg", 50 * c + n)
    return tmp_path


def lists(root, file, known, easy, medium, hard):
    folder = root / "ssb"
    folder.mkdir(exist_ok=True)
    content = {"known_classes": known, "unknown_classes": {"Easy": easy, "Medium": medium, "Hard": hard}}
    if file.endswith(".json"):
        (folder / file).write_text(json.dumps(content))
    else:
        (folder / file).write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("name", NAMES)
def test_parts_labels_and_sizes(root, name):
    train, test = (load(name, part, root) for part in (True, False))
    np.testing.assert_array_equal(np.bincount(train.labels), [2] * 4)
    np.testing.assert_array_equal(test.labels, range(4))
    assert train.pixels.shape == (8, 3, 16, 16) and train.pixels.dtype == np.uint8
    np.testing.assert_allclose(test.pixels[:, 0].mean((1, 2)), 50 * np.arange(4) + 2, atol=4)
    assert load(name, True, root, keep=[1], size=20).pixels.shape == (2, 3, 20, 20)
    assert next(iter(train.checksums.values())).startswith("sha256:")


@pytest.mark.parametrize("file", ["cub_osr_splits.json", "cub_osr_splits.pkl"])
def test_splits_come_from_the_published_lists(root, file):
    lists(root, file, [2, 0], [1], [3], [])
    split = find_split("cub", "ssb-easy", root)
    assert (split.known, split.unknown) == ((0, 2), (1,)) and "Semantic Shift" in split.source
    assert find_split("cub", "ssb", root).unknown == (1, 3)
    data = prepare("cub", "ssb-medium", root=root, validation_share=0.5)
    assert len(data.test) == 2 and len(data.unknown["cub-unknown"]) == 1 and set(data.train.labels) == {0, 1}
    with pytest.raises(UserError, match="must be disjoint and not empty"):
        find_split("cub", "ssb-hard", root)


def test_lists_may_name_the_classes(root):
    lists(root, "aircraft_osr_splits.json", ["Plane 700", "Plane 703"], ["Plane 701"], [], ["Plane 702"])
    assert find_split("aircraft", "ssb-hard", root).known == (0, 3)
    lists(root, "aircraft_osr_splits.json", ["Plane 70"], ["Plane 701"], [], [])
    with pytest.raises(UserError, match="has no class 'Plane 70'"):
        find_split("aircraft", "ssb-easy", root)


def test_a_list_that_would_run_code_is_refused(root, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    (root / "ssb").mkdir()
    (root / "ssb" / "scars_osr_splits.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="not readable as class lists"):
        find_split("stanford-cars", "ssb", root)
    assert not (tmp_path / "made").exists()


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(UserError, match=r"scars_osr_splits\.pkl from data/open_set_splits of github\.com/sgvaze"):
        find_split("cars", "ssb-easy", root)
    with pytest.raises(UserError, match=r"no split 'ssb-esay'; known: ssb, .*nearest: ssb-easy"):
        find_split("cars", "ssb-esay", root)
    for name in NAMES:
        with pytest.raises(UserError, match=f"data set {name} .* is not in .*: fetch"):
            load(name, True, tmp_path / "empty")
        assert part_path(name, True, tmp_path / "empty") is None and part_path(name, False, root) is not None


def test_a_damaged_tree_is_named(root):
    next((root / "CUB_200_2011" / "images").rglob("0.jpg")).unlink()
    with pytest.raises(UserError, match="expected an image that the list names, got no file"):
        load("cub", True, root)
    (root / "stanford_cars" / "devkit" / "cars_train_annos.mat").write_bytes(b"nothing")
    with pytest.raises(UserError, match="a MATLAB file with annotations"):
        load("stanford-cars", True, root)
