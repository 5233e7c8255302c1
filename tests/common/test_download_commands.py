"""`download` of data sets and of checkpoints, on archives of the published layouts and a server on this machine."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from misbehaving_server import Server
from PIL import Image

from common import download as module
from common.datasets import __main__ as datasets_main
from common.datasets import checksums, load, readers
from common.datasets.catalogue import CATALOGUE, NAMES
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ROWS = json.loads((ROOT / "data" / "MANIFEST.json").read_text())["datasets"]


def png(size, seed):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def tar(members, mode="w:gz"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, blob in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(blob)
            archive.addfile(member, io.BytesIO(blob))
    return out.getvalue()


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, blob in members.items():
            archive.writestr(name, blob)
    return out.getvalue()


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">i4").tobytes()
    return gzip.compress(header + array.tobytes(), mtime=0)


def published():
    """Small files under the names of the published ones."""
    omniglot = {f"images_evaluation/A/c{i % 2}/{i}.png": png(10, i) for i in range(4)}
    tiny = {f"tiny-imagenet-200/train/n{c:03}/images/{c}.JPEG": png(64, c) for c in range(3)}
    tiny["tiny-imagenet-200/val/n000/images/v.JPEG"] = png(64, 9)
    tiny["tiny-imagenet-200/wnids.txt"] = b"\n".join(b"n%03d" % i for i in range(200))
    files = {
        "LSUN.tar.gz": tar({f"LSUN/test/{i}.png": png(32, i) for i in range(3)}),
        "omniglot-py/images_evaluation.zip": zipped(omniglot),
        "omniglot-py/images_background.zip": zipped({"images_background/B/c/1.png": png(10, 5)}),
        "dtd-r1.0.1.tar.gz": tar({f"dtd/images/c{i:02}/{i}.png": png(40, i) for i in range(47)}),
        "tiny-imagenet-200.zip": zipped(tiny),
        "val_256.tar": tar({"val_256/1.png": png(30, 1)}, "w"),
    }
    for prefix, count in (("train", 6), ("t10k", 4)):
        files[f"MNIST/raw/{prefix}-images-idx3-ubyte.gz"] = idx(np.zeros((count, 28, 28), np.uint8))
        files[f"MNIST/raw/{prefix}-labels-idx1-ubyte.gz"] = idx(np.arange(count, dtype=np.uint8))
    return files


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server, a manifest with the checksums of its files, and no other address anywhere."""
    monkeypatch.setattr(module, "BACKOFF", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OSR_DATA_URL", raising=False)
    running = Server(published())
    rows = json.loads(json.dumps(ROWS))
    for row in rows.values():
        for item in row["download"] if isinstance(row.get("download"), list) else []:
            blob = running.files.get(item["file"], b"")
            item.update(md5=hashlib.md5(blob).hexdigest(), bytes=len(blob), urls=[running.url(f"good/{item['file']}")])
    running.manifest = tmp_path / "MANIFEST.json"
    running.manifest.write_text(json.dumps({"datasets": rows}))
    monkeypatch.setattr(readers, "MANIFEST", running.manifest)
    monkeypatch.setattr(checksums, "MD5", {})
    monkeypatch.setitem(CATALOGUE, "lsun-crop", replace(CATALOGUE["lsun-crop"], test=3))
    yield running
    running.close()


def set_addresses(server, *how):
    """Let every file of the manifest come from these addresses of the server, in this order."""
    content = json.loads(server.manifest.read_text())
    for row in content["datasets"].values():
        for item in row["download"] if isinstance(row.get("download"), list) else []:
            item["urls"] = [server.url(f"{h}/{item['file']}") for h in how]
    server.manifest.write_text(json.dumps(content))


def hidden(folder):
    return list(folder.rglob(".*"))


@pytest.mark.parametrize(
    ("name", "place", "count"),
    [
        ("lsun-crop", "openset/LSUN/test", 3),
        ("mnist", "MNIST/raw", 4),
        ("textures", "dtd/dtd/images", 47),
        ("places", "val_256", 1),
        ("tinyimagenet", "tiny-imagenet-200/val", 1),
        ("mnist-noise", "MNIST/raw", 4),
    ],
)
def test_downloaded_set_can_be_loaded(server, tmp_path, name, place, count):
    root = tmp_path / "data"
    images = load(name, False, root, download=True)
    assert len(images) == count and (root / place).is_dir() and hidden(root) == []
    requests = sum(server.requests.values())
    assert len(load(name, False, root, download=True)) == count
    if name != "tinyimagenet":
        assert readers.fetch(name, root) is False
    assert sum(server.requests.values()) == requests


def test_omniglot_lies_where_the_reader_looks(server, tmp_path, monkeypatch):
    from common.datasets import readers_folders

    monkeypatch.setattr(readers_folders, "OMNIGLOT_FILES", {"images_background": 1, "images_evaluation": 4})
    assert readers.fetch("omniglot", tmp_path / "data") is True
    assert len(load("omniglot", False, tmp_path / "data")) == 4 and len(load("omniglot", True, tmp_path / "data")) == 1


def test_incomplete_tinyimagenet_is_completed_and_keeps_its_files(server, tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    for part in ("train/n000/images", "val/n000/images"):
        (folder / part).mkdir(parents=True)
    (folder / "train/n000/images/mine.JPEG").write_bytes(png(64, 3))
    assert readers.fetch("tinyimagenet", tmp_path) is True
    assert (folder / "train/n002/images/2.JPEG").exists() and (folder / "train/n000/images/mine.JPEG").exists()


def test_incomplete_and_rebuilt_outlier_sets_are_not_taken_for_the_published_one(server, tmp_path):
    (tmp_path / "odin").mkdir()
    np.savez(tmp_path / "odin" / "lsun-crop.npz", data=np.zeros((3, 32, 32, 3), np.uint8))
    assert readers.fetch("lsun-crop", tmp_path) is True
    (tmp_path / "openset/LSUN/test/0.png").unlink()
    assert readers.fetch("lsun-crop", tmp_path) is True and readers.fetch("lsun-crop", tmp_path) is False
    assert len(load("lsun-crop", False, tmp_path)) == 3 and server.requests["good/LSUN.tar.gz"] == 1


def test_archive_put_there_by_hand_is_used(server, tmp_path):
    set_addresses(server, "missing")
    (tmp_path / "LSUN.tar.gz").write_bytes(server.files["LSUN.tar.gz"])
    assert readers.fetch("lsun-crop", tmp_path) is True and not server.requests
    assert len(load("lsun-crop", False, tmp_path)) == 3


def test_damaged_file_is_fetched_again(server, tmp_path):
    readers.fetch("mnist", tmp_path)
    file = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    assert readers.fetch("mnist", tmp_path) is True and file.read_bytes() == whole


@pytest.mark.parametrize("how", ["missing", "wrong", "truncate", "drop", "page"])
def test_nothing_is_unpacked_unless_it_is_verified(server, tmp_path, how):
    set_addresses(server, how, how)
    root = tmp_path / "data"
    with pytest.raises(UserError) as error:
        load("lsun-crop", False, root, download=True)
    message = str(error.value)
    assert "\n" not in message and message.count(server.url(f"{how}/LSUN.tar.gz")) == 2
    md5 = hashlib.md5(server.files["LSUN.tar.gz"]).hexdigest()
    assert f"md5:{md5}" in message and f"put it at {root / 'LSUN.tar.gz'}" in message
    assert list(root.iterdir()) == []


def test_sets_without_a_checksum_are_never_fetched(server, tmp_path):
    for name in ("isun", "inaturalist", "imagenet-fix", "imagenet"):
        with pytest.raises(UserError, match=r"no checksum is published.*unverified: http") as error:
            readers.fetch(name, tmp_path)
        assert "\n" not in str(error.value) and CATALOGUE[name].source in str(error.value)
    assert readers.fetch("digits", tmp_path) is False and readers.fetch("noise", tmp_path) is False
    assert not server.requests


def run_datasets(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = datasets_main.main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def test_command_line_of_the_data_sets(server, tmp_path, monkeypatch):
    root = tmp_path / "data"
    code, out, err = run_datasets("download", "lsun-crop", "digits", "--data_dir", root)
    assert (code, err) == (0, "") and out == f"lsun-crop: downloaded into {root}\ndigits: nothing to download\n"
    assert run_datasets("download", "LSUN_crop", "--data_dir", root)[1] == "lsun-crop: nothing to download\n"
    # One that fails does not keep the next from coming; another server is asked before the published addresses.
    set_addresses(server, "missing")
    code, out, err = run_datasets("download", "mnist", "isun", "--data_dir", root, "--base_url", server.url("good/"))
    assert code == 2 and out == f"mnist: downloaded into {root}\n"
    assert err.startswith("error: ") and err.count("\n") == 1
    code, out, err = run_datasets("download", "places", "textures", "--data_dir", root)
    assert code == 2 and out == "" and err.count("error: ") == err.count("\n") == 2
    monkeypatch.setenv("OSR_DATA_URL", server.url("good"))
    assert run_datasets("download", "places", "--data_dir", root)[0] == 0


def test_two_commands_at_once(server, tmp_path):
    set_addresses(server, "slow")
    code = (
        "from common.datasets.catalogue import CATALOGUE; object.__setattr__(CATALOGUE['lsun-crop'], 'test', 3)\n"
        f"from pathlib import Path; from common.datasets import readers; readers.MANIFEST = Path({str(server.manifest)!r})\n"
        f"from common.datasets.__main__ import main; main(['download', 'lsun-crop', '--data_dir', {str(tmp_path / 'd')!r}])"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    both = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert all("lsun-crop: " in out and not err for out, err in results), results
    assert len(load("lsun-crop", False, tmp_path / "d")) == 3 and hidden(tmp_path / "d") == []
    assert server.requests["slow/LSUN.tar.gz"] == 1


# ---- the manifest


def test_manifest_lists_verifiable_files_where_the_readers_look():
    for name, row in ROWS.items():
        items = row.get("download", [])
        assert isinstance(items, list) or "download" in ROWS[items]
        assert items or name in ("digits", "noise", "gaussian-noise") or row["elsewhere"]
        for item in items if isinstance(items, list) else []:
            assert len(item["md5"]) == 32 and item["listed_by"] and item["addresses"] == "unverified"
            assert item["urls"] and all(url.startswith(("http://", "https://")) for url in item["urls"])
            published = row.get("files", {}).get(item["file"])
            assert published is None or published["md5"] == item["md5"]
            if "folder" in item and name != "omniglot":
                assert f"{item['into']}/{item['folder']}".removeprefix("./") in CATALOGUE[name].folders
    readme = (ROOT / "data" / "README.md").read_text()
    missing = [name for name in NAMES for url in ROWS[name].get("elsewhere", []) if url.split(" ")[0] not in readme]
    assert not missing


def test_checksums_of_archives_equal_those_of_the_libraries():
    from pytorch_ood.dataset.img import odin, tinyimagenet
    from torchvision.datasets import CIFAR10, CIFAR100, DTD, Omniglot, Places365

    lists = [row["download"] for row in ROWS.values() if isinstance(row.get("download"), list)]
    md5 = {item["file"]: item["md5"] for items in lists for item in items}
    for kind in (CIFAR10, CIFAR100):
        assert md5[kind.filename] == kind.tgz_md5
    for kind in (odin.TinyImageNetCrop, odin.TinyImageNetResize, odin.LSUNCrop, odin.LSUNResize, tinyimagenet.TinyImageNet):
        assert md5[Path(kind.filename).name] == kind.tgz_md5
    assert md5["dtd-r1.0.1.tar.gz"] == DTD._MD5 and md5["val_256.tar"] == Places365._IMAGES_META["val", True][1]
    assert all(md5[f"omniglot-py/{part}.zip"] == value for part, value in Omniglot.zips_md5.items())


# ---- checkpoints


@pytest.fixture
def checkpoint_house(tmp_path):
    """A copy of the code whose checkpoints folder holds a manifest and no file, and a server that has the files."""
    files = {f"model-{i}of2.safetensors": bytes([i]) * 3000 for i in (1, 2)}
    parts = [{"file": n, "size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()]
    house = tmp_path / "house"
    (house / "checkpoints").mkdir(parents=True)
    (house / "common").mkdir()
    for name in ("__init__", "arguments", "checkpoints", "download", "errors", "files"):
        shutil.copy(ROOT / "common" / f"{name}.py", house / "common")
    entry = {"paper": "cssr", "files": parts, "trained_by": "python cssr/main.py --preset laptop"}
    (house / "checkpoints" / "MANIFEST.json").write_text(json.dumps({"model": entry}))
    server = Server(files)
    yield house, server
    server.close()


def run_checkpoints(house, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "common.checkpoints", *arguments],
        cwd=house,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "OSR_CHECKPOINT_URL": "", **environment},
    )


def test_checkpoints_are_listed_downloaded_and_verified(checkpoint_house):
    house, server = checkpoint_house
    assert "missing" in run_checkpoints(house, "list").stdout
    done = run_checkpoints(house, "verify")
    assert done.returncode == 1 and "download model --base_url URL fetches it" in done.stdout
    done = run_checkpoints(house, "download", "model", "--base_url", server.url("good/"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "model: downloaded\n", "")
    assert "here" in run_checkpoints(house, "list").stdout and run_checkpoints(house, "verify").returncode == 0
    assert run_checkpoints(house, "download", "model").stdout == "model: already here\n"
    (house / "checkpoints" / "model-2of2.safetensors").unlink()
    assert "1 of 2 files" in run_checkpoints(house, "list").stdout
    done = run_checkpoints(house, "download", "model", OSR_CHECKPOINT_URL=server.url("good"))
    assert done.returncode == 0 and server.requests["good/model-1of2.safetensors"] == 1
    assert len(list((house / "checkpoints").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model"], ["no address is known", "--base_url or $OSR_CHECKPOINT_URL", "sha256:", "3000 bytes", "put it at"]),
        (["model", "--base_url", "{server}wrong"], ["wrong content", "sha256:", "put it at"]),
        (["model", "--base_url", "{server}missing"], ["HTTP 404", "/missing/model-1of2.safetensors"]),
        (["modle"], ["no checkpoint 'modle'", "nearest: model"]),
    ],
)
def test_checkpoint_that_does_not_come_is_one_line(checkpoint_house, arguments, words):
    house, server = checkpoint_house
    done = run_checkpoints(house, "download", *[a.format(server=server.url("")) for a in arguments])
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert [p.name for p in (house / "checkpoints").iterdir()] == ["MANIFEST.json"]
