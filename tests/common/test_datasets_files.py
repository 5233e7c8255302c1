"""Readers on generated folders of every layout, damaged and absent files, streaming, download, command line."""

import json
import os
import pickle

import numpy as np
import pytest
from datasets_on_disk import ROOT, command, real, refused, write_idx, write_images, write_svhn
from PIL import Image

from common.datasets import NAMES, checksums, data_root, load, prepare, readers_folders, streaming
from common.datasets.catalogue import CATALOGUE

# ---- damaged and absent files


def test_missing_data_say_what_to_do(tmp_path):
    refused(["cifar10", tmp_path, "fetch", "download cifar10"], load, "cifar10", True, tmp_path)
    refused(["lsun-crop", "LSUN.tar.gz", "openset/LSUN"], load, "lsun-crop", False, tmp_path)
    refused(["only a test part"], load, "noise", True)
    refused(["odin_crop", "center, resize, native"], load, "imagenet-crop", False, odin_crop="middle")


def test_one_part_suffices(tmp_path):
    real("cifar10")
    (tmp_path / "cifar-10-batches-py").mkdir()
    for file in ("test_batch", "batches.meta"):
        (tmp_path / "cifar-10-batches-py" / file).symlink_to(data_root() / "cifar-10-batches-py" / file)
    assert len(load("cifar10", False, tmp_path)) == 10_000
    refused(["training part", "data_batch_1"], load, "cifar10", True, tmp_path)


def test_one_changed_byte_is_noticed(tmp_path):
    real("mnist")
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for stem in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (folder / stem).write_bytes((data_root() / "MNIST" / "raw" / stem).read_bytes())
    assert len(load("mnist", False, tmp_path)) == 10_000  # unpacked files alone
    blob = bytearray((folder / "t10k-images-idx3-ubyte").read_bytes())
    blob[5_000] ^= 1
    (folder / "t10k-images-idx3-ubyte").write_bytes(blob)
    expected = checksums.MD5["MNIST/raw/t10k-images-idx3-ubyte"]
    refused(["corrupt", "t10k-images-idx3-ubyte", expected, "fetch it again"], load, "mnist", False, tmp_path)
    run = command("verify", "mnist", data_dir=tmp_path)
    assert run.returncode == 1 and "BAD" in run.stdout and expected in run.stdout


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_of_any_origin(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(checksums, "MD5", {})
    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (12, 28, 28), dtype=np.uint8), (np.arange(12) % 10).astype(np.uint8)
    folder = tmp_path / "FashionMNIST" / "raw"
    write_idx(folder, "train", pixels, labels, packed)
    images = load("fashion-mnist", True, tmp_path)
    assert np.array_equal(images.pixels[:, 0], pixels) and images.classes[9] == "Ankle boot"
    write_idx(folder, "train", pixels[:5], labels, packed)
    refused(["corrupt", "5 labels", "12"], load, "fashion-mnist", True, tmp_path)
    file = next(folder.glob("train-images*"))
    file.write_bytes(file.read_bytes()[:-9])
    refused(["corrupt", "train-images"], load, "fashion-mnist", True, tmp_path)


def test_cifar_pickles_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "MD5", {})

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(k) for k in range(100)]}))
    pixels = np.arange(3072 * 4, dtype=np.uint16).astype(np.uint8).reshape(4, 3072)
    (folder / "test").write_bytes(pickle.dumps({"data": pixels, "fine_labels": [0, 1, 2, 3]}, protocol=4))
    assert np.array_equal(load("cifar100", False, tmp_path).pixels.reshape(4, -1), pixels)
    (folder / "test").write_bytes(pickle.dumps({"data": Evil()}))
    refused(["corrupt", "mkdir", "no place"], load, "cifar100", False, tmp_path)
    assert not (tmp_path / "owned").exists()
    (folder / "test").write_bytes(b"\x80\x02}q")
    refused(["corrupt"], load, "cifar100", False, tmp_path)


def test_svhn(tmp_path, monkeypatch):
    write_svhn(tmp_path, monkeypatch)
    images = load("svhn", False, tmp_path)
    assert images.pixels.shape == (20, 3, 32, 32)
    assert images.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    expected = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    assert np.array_equal(images.pixels[7], expected[:, :, :, 7].transpose(2, 0, 1))
    data = prepare("svhn", "a", root=tmp_path, validation_share=0)
    assert (len(data.train), len(data.test), len(data.unknown["svhn-unknown"])) == (12, 12, 8)
    monkeypatch.setitem(checksums.MD5, "test_32x32.mat", "0" * 32)
    refused(["corrupt", "test_32x32.mat", "0" * 32], load, "svhn", False, tmp_path)
    monkeypatch.delitem(checksums.MD5, "test_32x32.mat")
    (tmp_path / "test_32x32.mat").write_bytes(b"not a MATLAB file at all" * 20)
    refused(["corrupt", "test_32x32.mat"], load, "svhn", False, tmp_path)


# ---- folders


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("imagenet-crop", "openset/Imagenet/test"),
        ("imagenet-crop", "Imagenet/test"),
        ("imagenet-resize", "openset/Imagenet_resize/Imagenet_resize"),
        ("imagenet-resize", "Imagenet_resize"),
        ("lsun-crop", "data/openset/LSUN/test"),
        ("lsun-resize", "odin/LSUN_resize"),
        ("isun", "iSUN/iSUN_patches"),
        ("imagenet-fix", "Imagenet_fix/train/x"),
        ("lsun-fix", "LSUN_fix"),
    ],
)
def test_outlier_folders(tmp_path, name, folder):
    write_images(tmp_path / folder, 11, 32)
    (tmp_path / folder / "._hidden.png").write_bytes(b"resource fork")
    images = load(name, False, tmp_path)
    assert images.pixels.shape == (11, 3, 32, 32) and images.name == name
    # Sorted by path: 0, 1, 10, 2, ...
    with Image.open(tmp_path / folder / "10.png") as image:
        assert np.array_equal(images.pixels[2].transpose(1, 2, 0), np.asarray(image))
    refused(["only a test part"], load, name, True, tmp_path)


def test_published_archive_comes_before_the_rebuilt_npz(tmp_path):
    (tmp_path / "odin").mkdir()
    np.savez(tmp_path / "odin" / "lsun-crop.npz", data=np.zeros((3, 32, 32, 3), np.uint8))
    assert load("lsun-crop", False, tmp_path).name == "lsun-crop (rebuilt)"
    write_images(tmp_path / "LSUN", 2, 32)
    assert load("lsun-crop", False, tmp_path).name == "lsun-crop"


def test_odin_crops_of_36_pixels(tmp_path):
    write_images(tmp_path / "openset" / "Imagenet", 6, 36)
    native = load("imagenet-crop", False, tmp_path, odin_crop="native").pixels
    assert native.shape == (6, 3, 36, 36)
    assert np.array_equal(load("imagenet-crop", False, tmp_path).pixels, native[:, :, 2:34, 2:34])
    resized = load("imagenet-crop", False, tmp_path, odin_crop="resize").pixels[0].transpose(1, 2, 0)
    frame = Image.fromarray(np.ascontiguousarray(native[0].transpose(1, 2, 0)))
    assert np.array_equal(resized, np.asarray(frame.resize((32, 32), Image.BILINEAR)))
    for odin_crop, side in (("center", 8), ("native", 36)):
        data = prepare("digits", "0-5", "imagenet-crop", root=tmp_path, odin_crop=odin_crop)
        assert data.unknown["imagenet-crop"].shape == (1, side, side)
    write_images(tmp_path / "openset" / "Imagenet" / "more", 2, 32)
    assert load("imagenet-crop", False, tmp_path).pixels.shape == (8, 3, 32, 32)
    refused(["one size"], load, "imagenet-crop", False, tmp_path, odin_crop="native")


def test_damaged_outlier_files(tmp_path):
    write_images(tmp_path / "iSUN", 3, 32)
    (tmp_path / "iSUN" / "1.png").write_bytes((tmp_path / "iSUN" / "1.png").read_bytes()[:100])
    refused(["corrupt", "1.png"], load, "isun", False, tmp_path)
    (tmp_path / "odin").mkdir()
    file = tmp_path / "odin" / "lsun-crop.npz"
    for blob in (b"PK\x03\x04 truncated", b"", b"no archive"):
        file.write_bytes(blob)
        refused(["corrupt", "lsun-crop.npz"], load, "lsun-crop", False, tmp_path)
    np.savez(file, data=np.zeros((3, 32, 32), np.float32))
    refused(["corrupt", "uint8 (N, H, W, 3)"], load, "lsun-crop", False, tmp_path)


def test_omniglot_folder(tmp_path, monkeypatch):
    folder = tmp_path / "omniglot-py" / "images_evaluation"
    for name in ("B/character01", "A/character02", "A/character01"):
        write_images(folder / name, 4, 105)
    refused(["corrupt", "13180 images", "12"], load, "omniglot", False, tmp_path)
    monkeypatch.setitem(readers_folders.OMNIGLOT_FILES, "images_evaluation", 12)
    images = load("omniglot", False, tmp_path)
    assert images.classes == ("A/character01", "A/character02", "B/character01")
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and images.shape == (1, 28, 28)


@pytest.mark.parametrize("layout", ["original", "sorted"])
def test_tinyimagenet_layouts(tmp_path, layout):
    place, wnids = tmp_path / "tiny-imagenet-200", [f"n{i:08d}" for i in range(200)]
    for wnid in wnids[3:5]:
        write_images(place / "train" / wnid / "images", 3, 64, suffix=".JPEG")
    if layout == "original":
        write_images(place / "val" / "images", 200, 64, suffix=".JPEG")
        rows = [f"{i}.JPEG\t{wnid}\t0\t0\t9\t9" for i, wnid in enumerate(wnids)]
        (place / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    else:
        for wnid in wnids:
            write_images(place / "val" / wnid, 1, 64, suffix=".JPEG")
    data = prepare("tinyimagenet", [4, 3], root=tmp_path, validation_share=0)
    assert data.class_names == (wnids[3], wnids[4]) and np.bincount(data.train.labels).tolist() == [3, 3]
    assert len(data.test) == 2 and len(data.unknown["tinyimagenet-unknown"]) == 198
    refused(
        ["no training image of 1 of the 2 classes wanted", f"9 ({wnids[9]})"],
        prepare,
        "tinyimagenet",
        "3,9",
        root=tmp_path,
    )
    if layout == "original":
        (place / "val" / "images" / "7.JPEG").unlink()
        refused(["corrupt", "7.JPEG", "no file"], load, "tinyimagenet", False, tmp_path)
        (place / "val" / "val_annotations.txt").write_text("\n".join(rows[:150]))
        refused(["200 classes expected, 150 found"], load, "tinyimagenet", False, tmp_path)


def test_textures_and_places_in_memory(tmp_path):
    for k in range(47):
        write_images(tmp_path / "dtd" / "dtd" / "images" / f"texture{k:02d}", 1, 60, 90, suffix=".jpg", seed=k)
    images = load("textures", False, tmp_path)
    assert images.pixels.shape == (47, 3, 32, 32) and images.labels.tolist() == list(range(47))
    write_images(tmp_path / "val_256", 3, 70, 50, suffix=".jpg")
    assert load("places", False, tmp_path, size=16).pixels.shape == (3, 3, 16, 16)
    data = prepare("digits", "0-5", ["textures", "places"], root=tmp_path)
    assert [p.shape for p in data.unknown.values()] == [(1, 8, 8)] * 2


def test_imagenet30_layouts(tmp_path):
    for part, count in (("one_class_train", 2), ("one_class_test", 1)):
        for k in range(30):
            write_images(tmp_path / "ImageNet-30" / part / f"class{k:02d}", count, 40)
    assert load("imagenet30", True, tmp_path, size=24).pixels.shape == (60, 3, 24, 24)
    assert load("imagenet30", False, tmp_path, size=24).labels.tolist() == list(range(30))
    kept = load("imagenet30", True, tmp_path, size=24, keep=[4, 5])
    assert kept.labels.tolist() == [4, 4, 5, 5]


@pytest.fixture
def small_imagenet(tmp_path, monkeypatch):
    """An ImageNet of 4 classes; the catalogue expects 1,000."""
    from dataclasses import replace

    monkeypatch.setitem(CATALOGUE, "imagenet", replace(CATALOGUE["imagenet"], classes=4))
    for part, count in (("train", 5), ("val", 2)):
        for k in range(4):
            write_images(tmp_path / "imagenet" / part / f"n{k:08d}", count, 40 + k, 60, suffix=".JPEG", seed=k)
    write_images(tmp_path / "iNaturalist" / "images", 3, 50)
    return tmp_path


def test_streaming(small_imagenet):
    import torch

    files = streaming.open_folder("imagenet", True, small_imagenet)
    assert len(files) == 20 and files.classes == tuple(f"n{k:08d}" for k in range(4))
    test = list(streaming.batches("imagenet", False, small_imagenet, size=24, resize=32, batch_size=3))
    assert [len(labels) for _, labels in test] == [3, 3, 2]
    assert torch.cat([labels for _, labels in test]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    pixels = test[0][0]
    assert pixels.shape == (3, 3, 24, 24) and pixels.dtype == torch.uint8
    with Image.open(files_of(small_imagenet, "val")[0]) as image:
        width = round(image.width * 32 / image.height)
        scaled = image.convert("RGB").resize((width, 32), Image.BILINEAR)
    left = (width - 32) // 2 + 4
    assert np.array_equal(pixels[0].permute(1, 2, 0).numpy(), np.asarray(scaled.crop((left, 4, left + 24, 28))))
    orders = [
        torch.cat([y for _, y in streaming.batches("imagenet", True, small_imagenet, size=8, seed=s)]).tolist()
        for s in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted([0, 1, 2, 3] * 5)
    unknown = streaming.open_folder("oodinaturalist", False, small_imagenet)
    assert len(unknown) == 3 and unknown.classes == ()


def files_of(root, part):
    return sorted((root / "imagenet" / part).glob("*/*.JPEG"), key=lambda p: p.parts)


def test_large_folders_are_not_loaded_whole(small_imagenet, monkeypatch):
    assert load("imagenet", False, small_imagenet, size=16).pixels.shape == (8, 3, 16, 16)
    monkeypatch.setattr(streaming, "MEMORY_LIMIT", 100_000)
    refused(["GiB", "stream it"], load, "imagenet", True, small_imagenet)
    monkeypatch.undo()
    refused(["1000 class folders expected", "4 found"], load, "imagenet", True, small_imagenet)
    refused(["use load"], streaming.open_folder, "cifar10", True)


def test_streaming_names_a_damaged_file(small_imagenet):
    file = files_of(small_imagenet, "val")[1]
    file.write_bytes(b"not an image")
    refused(["corrupt", file.name], list, streaming.batches("imagenet", False, small_imagenet, size=8))


# ---- download, command line, manifest


def test_command_line_list(tmp_path):
    write_images(tmp_path / "openset" / "LSUN", 1, 32)
    run = command("list", data_dir=tmp_path)
    assert run.returncode == 0 and run.stderr == ""
    lines = {line.split()[0]: line for line in run.stdout.splitlines()[2:]}
    assert set(lines) == set(NAMES)
    assert "ready: openset/LSUN" in lines["lsun-crop"] and "missing" in lines["cifar10"]
    assert "ready (generated)" in lines["noise"] and "1258" in lines["digits"]


def test_command_line_verify(tmp_path):
    write_images(tmp_path / "openset" / "LSUN", 4, 32)
    run = command("verify", "digits", "noise", data_dir=tmp_path)
    assert run.returncode == 0 and run.stdout.count("ok ") == 3
    run = command("verify", data_dir=tmp_path)
    assert run.returncode == 1 and "10000 images expected, 4 found" in run.stdout
    run = command("verify", "cifar10", data_dir=tmp_path)
    assert run.returncode == 1 and "fetch" in run.stdout
    run = command("verify", "cifar11", data_dir=tmp_path)
    assert run.returncode == 2 and run.stderr.startswith("error: ") and run.stderr.count("\n") == 1


def test_manifest_agrees_with_the_program():
    manifest = json.loads((ROOT / "data" / "MANIFEST.json").read_text())
    assert set(manifest["datasets"]) == set(NAMES)
    listed = {}
    for name, row in manifest["datasets"].items():
        assert {"images", "licence", "source"} <= set(row), name
        entry = CATALOGUE[name]
        assert row["images"] == {"train": entry.train, "test": entry.test}, name
        listed.update({file: facts["md5"] for file, facts in row.get("files", {}).items()})
    assert listed == checksums.MD5
    readme = (ROOT / "data" / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in NAMES)


def test_checksums_equal_torchvision():
    from torchvision import datasets

    for kind in (datasets.CIFAR10, datasets.CIFAR100):
        for file, md5 in kind.train_list + kind.test_list + [[kind.meta["filename"], kind.meta["md5"]]]:
            assert checksums.MD5[f"{kind.base_folder}/{file}"] == md5
    for kind in (datasets.MNIST, datasets.FashionMNIST, datasets.KMNIST):
        for file, md5 in kind.resources:
            assert checksums.MD5[f"{kind.__name__}/raw/{file}"] == md5
    for part in ("train", "test"):
        assert checksums.MD5[datasets.SVHN.split_list[part][1]] == datasets.SVHN.split_list[part][2]


def test_gzip_damage_without_a_published_sum(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "MD5", {})
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, "t10k", np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.uint8))
    file = folder / "t10k-images-idx3-ubyte.gz"
    blob = file.read_bytes()
    for damaged in (blob[:-12], b"plain text", blob[:12] + b"\xff" * 8 + blob[20:]):
        file.write_bytes(damaged)
        refused(["corrupt", file.name], load, "mnist", False, tmp_path)
