"""Names, real data, digits, noise, held-out parts and unknown sets; data that is not here skips its test."""

import subprocess
import sys

import numpy as np
import pytest
from datasets_on_disk import ROOT, real, refused, write_svhn
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from common.datasets import ALIASES, NAMES, Images, data_root, hold_out, load, match_shape, prepare, resolve_name
from common.datasets.images import stratified_subset

# ---- names and the data folder


def test_names_and_aliases():
    assert len(NAMES) == 27
    for alias, name in ALIASES.items():
        assert name in NAMES and resolve_name(alias) == name == resolve_name(alias.upper())
    for original in ("mnist_noise", "cifar_known", "cifar_unknown", "cifar100_known", "cifarova", "oodinaturalist"):
        assert resolve_name(original) in NAMES
    refused(["unknown data set 'cifar11'", "nearest", "cifar10"], resolve_name, "cifar11")


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.delenv("OSR_DATA_DIR", raising=False)
    assert data_root() == ROOT / "data" and data_root(tmp_path) == tmp_path
    monkeypatch.setenv("OSR_DATA_DIR", str(tmp_path / "elsewhere"))
    assert data_root() == tmp_path / "elsewhere" and data_root(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert data_root("./data") == ROOT / "data"  # a command printed for the root works from a paper's folder


def test_importing_is_light():
    code = "import sys, common.datasets; print(*{'torch', 'torchvision', 'PIL', 'sklearn', 'scipy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip() == ""


# ---- real data


@pytest.mark.parametrize(
    ("name", "train", "shape", "classes"),
    [
        ("mnist", True, (60_000, 1, 28, 28), 10),
        ("mnist", False, (10_000, 1, 28, 28), 10),
        ("kmnist", False, (10_000, 1, 28, 28), 10),
        ("cifar10", True, (50_000, 3, 32, 32), 10),
        ("cifar10", False, (10_000, 3, 32, 32), 10),
        ("cifar100", False, (10_000, 3, 32, 32), 100),
        ("imagenet-crop", False, (10_000, 3, 32, 32), 0),
        ("imagenet-resize", False, (10_000, 3, 32, 32), 0),
    ],
)
def test_real_sets(name, train, shape, classes):
    real(name, train)
    images = load(name, train)
    assert images.pixels.shape == shape and images.pixels.dtype == np.uint8
    assert images.labels.shape == shape[:1] and images.labels.dtype == np.int64 and len(images.classes) == classes
    assert images.checksums and all(":" in value for value in images.checksums.values())
    if classes and name != "mnist":
        assert set(np.bincount(images.labels)) == {shape[0] // classes}


def test_cifar10_equals_torchvision():
    real("cifar10")
    from torchvision.datasets import CIFAR10

    theirs, ours = CIFAR10(str(data_root()), train=False), load("cifar10", False)
    assert np.array_equal(ours.pixels.transpose(0, 2, 3, 1), theirs.data)
    assert ours.labels.tolist() == theirs.targets and list(ours.classes) == theirs.classes


def test_mnist_equals_torchvision():
    real("mnist")
    from torchvision.datasets import MNIST

    theirs, ours = MNIST(str(data_root()), train=False), load("mnist", False)
    assert np.array_equal(ours.pixels[:, 0], theirs.data.numpy())
    assert np.array_equal(ours.labels, theirs.targets.numpy())


def test_mean_std_of_cifar10():
    real("cifar10", True)
    mean, std = load("cifar10", True).mean_std()
    # The constants that every CIFAR-10 program uses.
    assert np.allclose(mean, (0.4914, 0.4822, 0.4465), atol=1e-4) and np.allclose(
        std, (0.2470, 0.2435, 0.2616), atol=1e-4
    )


def test_omniglot_is_the_sorted_first_ten_thousand():
    real("omniglot")
    images = load("omniglot", False)
    assert images.pixels.shape == (10_000, 1, 28, 28) and len(images.classes) == 659
    folder = data_root() / "omniglot-py" / "images_evaluation"
    files = sorted(p.relative_to(folder).as_posix() for p in folder.glob("*/*/*.png"))
    assert len(files) == 13_180
    for i in (0, 4_321, 9_999):
        with Image.open(folder / files[i]) as image:
            expected = ImageOps.invert(image.convert("L")).resize((28, 28), Image.BILINEAR)
        assert np.array_equal(images.pixels[i, 0], np.asarray(expected))
        assert images.classes[images.labels[i]] == "/".join(files[i].split("/")[:2])
    assert images.pixels.mean() < 50  # ink is white on black, like MNIST


@pytest.mark.parametrize("split", "abcde")
def test_cssr_counts_on_cifar10(split):
    real("cifar10", True)
    data = prepare("cifar10", split, validation_share=0)
    assert (len(data.train), len(data.test), len(data.unknown["cifar10-unknown"])) == (30_000, 6_000, 4_000)
    assert data.validation is None and data.calibration is None
    assert (
        np.bincount(data.train.labels).tolist() == [5_000] * 6 and np.bincount(data.test.labels).tolist() == [1_000] * 6
    )
    assert (data.unknown["cifar10-unknown"].labels == -1).all()


def test_class_names_follow_the_labels():
    real("cifar10", True)
    data = prepare("cifar10", "d")
    assert data.class_names == ("airplane", "automobile", "deer", "frog", "ship", "truck")
    raw = load("cifar10", False)
    assert np.array_equal(data.test.subset(data.test.labels == 2).pixels, raw.subset(raw.labels == 4).pixels)


def test_tinyimagenet_split_a():
    real("tinyimagenet", True)
    data = prepare("tinyimagenet", "a", validation_share=0)
    assert (len(data.train), len(data.test), len(data.unknown["tinyimagenet-unknown"])) == (10_000, 1_000, 9_000)
    assert data.train.shape == (3, 64, 64) and data.class_names[0] == "n01443537"


def test_tinyimagenet_names_an_absent_training_class():
    real("tinyimagenet", True)
    if len(list((data_root() / "tiny-imagenet-200" / "train").glob("n*"))) == 200:
        pytest.skip("all 200 training classes are here")
    refused(["tinyimagenet", "no training image", "of the 20 classes", "(n0"], prepare, "tinyimagenet", "b")


def test_cifar_plus_brings_cifar100_classes():
    real("cifar10", True)
    real("cifar100")
    data = prepare("cifar10", "cac-plus10-0", validation_share=0)
    assert (len(data.train), len(data.test), len(data.unknown["cifar100-unknown"])) == (20_000, 4_000, 1_000)
    assert list(data.unknown) == ["cifar100-unknown"]


def test_mnist_against_everything_of_vmdls():
    real("omniglot")
    real("mnist", True)
    data = prepare("mnist", "all", "omniglot,mnist_noise,noise", validation_share=0.1)
    assert {k: v.pixels.shape for k, v in data.unknown.items()} == dict.fromkeys(
        ("omniglot", "mnist-noise", "noise"), (10000, 1, 28, 28)
    )
    assert len(data.train) + len(data.validation) == 60_000 and abs(len(data.validation) - 6_000) < 10
    assert "MNIST/raw/train-images-idx3-ubyte.gz" in data.checksums and len(data.checksums) > 5


def test_rebuilt_outliers_are_called_so_and_fit_a_grey_set():
    real("imagenet-crop")
    real("mnist", True)
    data = prepare("mnist", "0-5", ["rest", "imagenet-crop"], subset=60)
    assert data.unknown["imagenet-crop"].name == "imagenet-crop (rebuilt)"
    assert data.unknown["imagenet-crop"].shape == (1, 28, 28) and len(data.unknown["imagenet-crop"]) == 60


# ---- digits: always here


def test_digits():
    train, test = load("digits", True), load("digits", False)
    assert (len(train), len(test)) == (1_258, 539) and train.shape == (1, 8, 8)
    from sklearn.datasets import load_digits

    theirs = load_digits()
    expected = np.rint(theirs.images * 255 / 16).astype(np.uint8).reshape(-1, 64)
    ours = np.concatenate([train.pixels, test.pixels]).reshape(-1, 64)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, expected))
    assert np.array_equal(np.bincount(np.r_[train.labels, test.labels]), np.bincount(theirs.target))
    assert train.pixels.max() == 255


def test_digits_split_of_the_demo():
    data = prepare("digits", "0-5")
    assert data.class_names == tuple("012345") and list(data.unknown) == ["digits-unknown"]
    assert set(data.train.labels) == set(data.test.labels) == set(data.validation.labels) == set(range(6))
    assert abs(len(data.validation) - 0.1 * (len(data.train) + len(data.validation))) <= 3  # half an image a class
    again = prepare("digits", "first-6", seed=0)
    assert np.array_equal(again.train.pixels, data.train.pixels)
    other = prepare("digits", "0-5", seed=1)
    assert not np.array_equal(other.validation.pixels, data.validation.pixels)
    assert np.array_equal(other.test.pixels, data.test.pixels)


# ---- held-out data and subsets


def toy(labels, classes=10):
    labels = np.asarray(labels, dtype=np.int64)
    pixels = np.arange(len(labels), dtype=np.int64).astype(np.uint8)[:, None, None, None]
    return Images(pixels, labels, tuple(str(k) for k in range(classes)), "toy")


@given(
    st.lists(st.integers(20, 60), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.1, 0.25]),
    st.sampled_from([0.0, 0.1, 0.25]),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_held_out_parts_are_disjoint_and_stratified(counts, validation, calibration, seed):
    images = toy(np.repeat(np.arange(len(counts)), counts))
    train, first, second = hold_out(images, validation, calibration, seed)
    parts = [p for p in (train, first, second) if p is not None]
    assert (first is None) == (validation == 0) and (second is None) == (calibration == 0)
    together = np.concatenate([p.pixels.ravel() for p in parts])
    assert sorted(together.tolist()) == sorted(images.pixels.ravel().tolist())
    for part, share in ((first, validation), (second, calibration)):
        if part is not None:
            assert np.bincount(part.labels).tolist() == [int(share * n + 0.5) for n in counts]
    # Asking for the second part does not change the first.
    alone = hold_out(images, validation, 0, seed)[1]
    assert first is None or np.array_equal(first.pixels, alone.pixels)


def test_held_out_errors():
    refused(["no image of class 0", "only 2"], hold_out, toy([0, 0]), 0.1)
    refused(["no training image"], hold_out, toy([0, 0, 0]), 0.9)
    refused(["below 1"], prepare, "digits", "0-5", validation_share=1.0)
    refused(
        ["validation_share + calibration_share"], prepare, "digits", "0-5", validation_share=0.5, calibration_share=0.5
    )


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 60), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_subsets_are_stratified(counts, extra, seed):
    images = toy(np.repeat(np.arange(len(counts)), counts))
    count = len(counts) + extra
    chosen = stratified_subset(images, count, seed)
    assert len(chosen) == min(count, len(images))
    assert len(set(chosen.pixels.ravel().tolist())) == len(chosen) and set(chosen.labels) == set(range(len(counts)))
    share = len(chosen) / len(images)
    for k, n in enumerate(counts):
        assert abs((chosen.labels == k).sum() - share * n) <= len(counts)
    again = stratified_subset(images, count, seed)
    assert np.array_equal(chosen.pixels, again.pixels)


def test_subset_of_prepare():
    data = prepare("digits", "0-5", ("rest", "noise"), subset=30)
    assert [len(p) for p in (data.train, data.test, data.validation)] == [30, 30, 30]
    assert np.bincount(data.train.labels).tolist() == [5] * 6
    assert all(len(p) == 30 and (p.labels == -1).all() for p in data.unknown.values())
    refused(["too small", "6 classes"], prepare, "digits", "0-5", subset=5)
    refused(["at least 1"], prepare, "digits", "0-5", subset=0)


# ---- unknown sets


def test_unknown_sets_by_default_and_on_demand():
    assert prepare("digits", "all").unknown == {} == prepare("digits", "0-5", ()).unknown
    refused(["leaves no class unknown"], prepare, "digits", "all", "rest")
    data = prepare("digits", "0-5", "rest,noise,gaussian_noise")
    assert list(data.unknown) == ["digits-unknown", "noise", "gaussian-noise"]
    assert data.unknown["noise"].pixels.shape == (10_000, 1, 8, 8)


@pytest.mark.parametrize(
    ("known", "split", "unknown", "words"),
    [
        ("digits", "0-5", "digits", ["overlap", "'rest'"]),
        ("digits", "0-5", "noise,uniform-noise", ["given twice"]),
        ("digits", "0-5", "cifar_unknown", ["other classes of cifar10"]),
        ("digits", "0-5", "nois", ["unknown data set", "noise"]),
        ("tinyimagenet", "a", "imagenet-crop", ["overlap", "tinyimagenet"]),
        ("noise", "all", "digits", ["only be unknown"]),
    ],
)
def test_bad_unknown_sets(known, split, unknown, words):
    refused(words, prepare, known, split, unknown)


def test_overlap_by_class_names(tmp_path, monkeypatch):
    write_svhn(tmp_path, monkeypatch)
    refused(["overlap", "svhn", "share 6"], prepare, "digits", "0-5", "svhn", root=tmp_path)


def test_vmdls_spelling_of_the_rest():
    real("cifar10", True)
    data = prepare("cifar_known", "first-6", "cifar_unknown", subset=60)
    assert list(data.unknown) == ["cifar10-unknown"] and data.dataset == "cifar10"


# ---- noise


def test_noise_is_fixed_and_in_image_space():
    a, b, c = load("noise", False), load("noise", False), load("noise", False, seed=1)
    assert a.pixels.dtype == np.uint8 and np.array_equal(a.pixels, b.pixels) and not np.array_equal(a.pixels, c.pixels)
    assert a.checksums == b.checksums != c.checksums
    assert (a.pixels.min(), a.pixels.max()) == (0, 255) and abs(a.pixels.mean() - 127.5) < 0.5
    assert np.array_equal(
        prepare("digits", "0-5", "noise", seed=7).unknown["noise"].pixels[:5],
        prepare("digits", "0-5", "noise", seed=8).unknown["noise"].pixels[:5],
    )
    gaussian = load("gaussian-noise", False).pixels
    assert 0.28 < (gaussian == 0).mean() < 0.34 and 0.28 < (gaussian == 255).mean() < 0.34  # P(|z| > 0.5) / 2 = 0.31


def test_released_noise():
    noise = load("noise", False, released_noise=True)
    assert noise.is_network_input and noise.pixels.dtype == np.float32
    assert 0 <= noise.pixels.min() < 0.01 and 0.99 < noise.pixels.max() < 1
    real("mnist")
    digits = load("mnist-noise", False, released_noise=True).pixels
    assert -1 <= digits.min() < -0.99 and 1.9 < digits.max() < 2
    raw = load("mnist", False).pixels
    added = digits - (raw / 127.5 - 1)
    assert added.min() > -1e-6 and added.max() < 1 + 1e-6 and abs(added.mean() - 0.5) < 1e-3
    plain = load("mnist-noise", False).pixels
    assert plain.dtype == np.uint8 and (plain >= raw).all() and (plain == 255).mean() > (raw == 255).mean()


# ---- shape conversions


def test_conversions_equal_pillow():
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (20, 3, 36, 36), dtype=np.uint8)
    images = Images(rgb, np.zeros(20, np.int64), (), "x")
    grey = match_shape(images, (1, 36, 36)).pixels
    small = match_shape(images, (3, 32, 32)).pixels
    for i in range(20):
        frame = Image.fromarray(np.ascontiguousarray(rgb[i].transpose(1, 2, 0)))
        assert np.array_equal(grey[i, 0], np.asarray(frame.convert("L")))
        assert np.array_equal(small[i].transpose(1, 2, 0), np.asarray(frame.resize((32, 32), Image.BILINEAR)))
    back = match_shape(match_shape(images, (1, 36, 36)), (3, 36, 36)).pixels
    assert (back[:, 0] == back[:, 2]).all() and np.array_equal(back[:, :1], grey)
    assert match_shape(images, (3, 32, 32), resize=False).shape == (3, 36, 36)


@given(st.integers(1, 3), st.integers(1, 20), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_mean_std_is_exact(channels, count, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, channels, 5, 4), dtype=np.uint8)
    mean, std = Images(pixels, np.zeros(count, np.int64), ()).mean_std()
    assert np.allclose(mean, (pixels / 255).mean((0, 2, 3)), rtol=0, atol=1e-12)
    assert np.allclose(std, (pixels / 255).std((0, 2, 3)), rtol=0, atol=1e-12)
