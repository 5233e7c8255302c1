"""Streamed sets of a thousand classes, frozen backbones and their feature caches: equal to plain computation, resumable."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torchvision.models import resnet18

from common import checkpoints
from common.backbones import Normalise
from common.datasets import CATALOGUE, Images, data_root
from common.datasets.batches import Batches
from common.datasets.streaming import open_folder
from common.errors import TimeUp, UserError
from cssr import features, main, test
from cssr.arguments import parse_arguments
from cssr.augmentation import augmentation
from cssr.data import place_data_sets
from cssr.features import FeatureCache
from cssr.pretrained import (
    PretrainedCSSR,
    build_network,
    build_pretrained,
    fitting_state,
    has_weights,
    normalisation_of,
)
from cssr.streaming import HostBatches, StreamedPixels, open_set

CLASSES, SIZE = 1000, 32
# The first so many classes have an image; all have a folder.
TRAIN, TEST, UNKNOWN = 300, 100, 60


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """An ImageFolder tree of 1,000 classes, a folder of unknown images and a file of ResNet-18 weights."""
    root, random = tmp_path_factory.mktemp("tree"), np.random.RandomState(0)
    blocks = random.randint(0, 256, (TRAIN, 4, 4, 3)).astype(np.uint8)
    for part, count in (("train", TRAIN), ("val", TEST)):
        for number in range(CLASSES):
            folder = root / "imagenet" / part / f"n{number:08d}"
            folder.mkdir(parents=True)
            if number < count:
                Image.fromarray(blocks[number]).resize((44, 40)).save(folder / "0.JPEG")
    (root / "ood" / "iNaturalist").mkdir(parents=True)
    for number in range(UNKNOWN):
        Image.fromarray(random.randint(0, 256, (40, 40, 3)).astype(np.uint8)).save(root / "ood" / "iNaturalist" / f"{number}.jpg")
    torch.manual_seed(0)
    torch.save({"state_dict": {f"module.{k}": v for k, v in resnet18().state_dict().items()}}, root / "resnet18.pth")
    return root


@pytest.fixture
def own_places():
    """Path flags put folders into the catalogue of this process: take them out afterwards."""
    saved = dict(CATALOGUE)
    yield
    CATALOGUE.update(saved)


@pytest.fixture
def train_set(tree):
    return open_set("imagenet", True, tree, SIZE)


def test_streamed_pixels_equal_images_decoded_one_by_one(tree, train_set):
    pixels = train_set.pixels
    assert pixels.shape == (TRAIN, 3, SIZE, SIZE) and len(train_set) == TRAIN and train_set.labels[7] == 7
    with Image.open(tree / "imagenet" / "train" / "n00000007" / "0.JPEG") as image:
        scaled = image.convert("RGB").resize((round(44 * 37 / 40), 37), Image.BILINEAR)
        left = (scaled.width - 37) // 2
        expected = np.asarray(scaled.crop((left + 2, 2, left + 2 + SIZE, 2 + SIZE))).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels[7:8][0], expected)
    np.testing.assert_array_equal(pixels[np.array([9, 7])][1], expected)
    np.testing.assert_array_equal(pixels.take(slice(5, 9))[2:3][0], expected)
    assert pixels.uncropped().shape[2:] == (37, 37) and pixels[3:3].shape == (0, 3, SIZE, SIZE)
    passed = np.concatenate([pixels[start : start + 90] for start in range(0, TRAIN, 90)])
    again = np.concatenate([pixels[start : start + 128] for start in range(0, TRAIN, 128)])
    assert passed.shape == again.shape == pixels.shape
    np.testing.assert_array_equal(passed, again)
    np.testing.assert_array_equal(passed[7], expected)


def test_processes_decode_the_same(train_set):
    files = train_set.pixels.files
    parallel = StreamedPixels(files, SIZE, 37, workers=2)
    np.testing.assert_array_equal(parallel[0:8], train_set.pixels[0:8])


def test_streamed_sets_are_split_by_their_labels_alone(train_set, monkeypatch):
    monkeypatch.setattr(StreamedPixels, "batches", lambda *_: pytest.fail("an image was decoded"))
    chosen = train_set.relabelled([5, 3, 200])
    assert chosen.labels.tolist() == [0, 1, 2] and [p.parent.name for p, _ in chosen.pixels.files.items][2] == "n00000200"
    assert (chosen.as_unknown("x").labels == -1).all()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_set(tmp_path):
    """83 MB of pixels in a training epoch and an evaluation pass, their features on the disk (166 MB): none is ever held."""
    program = Path(__file__).with_name("memory_of_streams.py")
    # Large blocks go back to the system at once: else the heap's holes, up to 150 MB from run to run, are counted as held.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    passes = json.loads(done.stdout)
    growth = {name: max(found["peaks"][5:]) - max(found["peaks"][:5]) for name, found in passes.items()}
    assert all(found["images"] == 3000 and found["kept"] for found in passes.values()), passes
    assert growth.pop("array") > 200, growth  # the measurement sees a set that is held
    assert len(growth) == 3 and max(growth.values()) < 15, growth


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_host_batches_equal_those_on_the_device(rank, world):
    images = torch.randint(0, 256, (50, 3, 16, 16), dtype=torch.uint8)
    labels, policy = torch.arange(50) % 5, augmentation("strong", 0, 0, 16, Normalise([0.5] * 3, [0.25] * 3))
    common = {"seed": 4, "augment": policy, "rank": rank, "world_size": world}
    there, here = Batches(images, labels, 16, **common), HostBatches(images.numpy(), labels, 16, **common)
    for start in (0, 2):
        expected, found = list(there.epoch(3, start)), list(here.epoch(3, start))
        assert [e[0] for e in expected] == [f[0] for f in found] and len(found) == 4 - start
        for (_, pixels, target), (_, our_pixels, our_target) in zip(expected, found):
            assert torch.equal(pixels, our_pixels) and torch.equal(target, our_target)


def test_views_take_turns():
    views = [np.full((4, 1, 1, 1), number, np.float16) for number in range(3)]
    batches = HostBatches(views[0], torch.zeros(4).long(), 4, views=tuple(views[1:]))
    assert [next(batches.epoch(epoch))[1][0].item() for epoch in range(5)] == [0, 1, 2, 0, 1]


DEVICES = SimpleNamespace(device=torch.device("cpu"), precision="fp32", autocast=lambda: torch.autocast("cpu", enabled=False))
SETTINGS = {"model": "rcssr", "backbone": "convnet8", "classes": 3, "shape": [1, 8, 8], "mean": [0.5], "std": [0.25],
            "ae_latent": 4, "frozen": True}  # fmt: skip


def small_images(count=300):
    pixels = np.random.RandomState(1).randint(0, 256, (count, 1, 8, 8)).astype(np.uint8)
    return Images(pixels, np.arange(count) % 3, ("a", "b", "c"), "small")


def test_frozen_network_trains_its_head_only():
    torch.manual_seed(0)
    net = build_network(SETTINGS | {"projection_dim": 6}).train()
    assert isinstance(net, PretrainedCSSR) and not net.backbone.training and net.head.training and net.projection.training
    images = torch.from_numpy(small_images(4).pixels)
    before = {name: buffer.clone() for name, buffer in net.backbone.named_buffers()}
    net(images)[:, 0].sum().backward()
    assert all(p.grad is None for p in net.backbone.parameters())
    assert all(p.grad is not None for part in (net.head, net.projection) for p in part.parameters())
    assert all(torch.equal(before[name], buffer) for name, buffer in net.backbone.named_buffers())
    assert net.eval().logit_map(net.feature_map(images)).shape == (4, 3, 4, 4)
    found = net.backbone_map(images).half()
    torch.testing.assert_close(net(found), net(images), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("policy", [None, augmentation("simple", 0, 0, 8, Normalise([0.5], [0.25]))], ids=["plain", "augmented"])
def test_an_interrupted_cache_ends_as_an_uninterrupted_one(tmp_path, policy, monkeypatch):
    torch.manual_seed(0)
    net, images = build_network(SETTINGS), small_images()
    view = 0 if policy is None else 2
    whole = FeatureCache(tmp_path / "whole", net, DEVICES).features_of(images, policy, view, seed=5)
    assert whole.pixels.dtype == np.float16 and whole.pixels.shape == (300, 64, 4, 4)
    if policy is None:
        with torch.no_grad():
            expected = net.eval().backbone_map(torch.from_numpy(images.pixels)).half().numpy()
        np.testing.assert_allclose(whole.pixels, expected, atol=2e-3)
    with pytest.raises(TimeUp, match="128 of 300"):
        FeatureCache(tmp_path / "parts", net, DEVICES, minutes=0).features_of(images, policy, view, seed=5)
    computed = []
    original = PretrainedCSSR.backbone_map
    monkeypatch.setattr(PretrainedCSSR, "backbone_map", lambda *a: (computed.append(len(a[1])), original(*a))[1])
    parts = FeatureCache(tmp_path / "parts", net, DEVICES).features_of(images, policy, view, seed=5)
    np.testing.assert_array_equal(parts.pixels, whole.pixels)
    assert computed == [128, 44]
    FeatureCache(tmp_path / "parts", net, DEVICES).features_of(images, policy, view, seed=5)
    assert len(computed) == 2  # complete: nothing is computed again
    (stored,) = (tmp_path / "parts").glob("*/features.npy")
    stored.unlink()
    again = FeatureCache(tmp_path / "parts", net, DEVICES).features_of(images, policy, view, seed=5)
    np.testing.assert_array_equal(again.pixels, whole.pixels)


def test_a_cache_belongs_to_weights_images_and_view(tmp_path):
    net, images = build_network(SETTINGS), small_images(20)
    cache = FeatureCache(tmp_path, net, DEVICES)
    cache.features_of(images)
    cache.features_of(small_images(21))
    cache.features_of(images, augmentation("simple", 0, 0, 8, net.normalise), 1)
    other = build_network(SETTINGS)
    FeatureCache(tmp_path, other, DEVICES).features_of(images)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_full_disk_is_said_before_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"--feature_dir DIR, or --feature_views 0"):
        FeatureCache(tmp_path, build_network(SETTINGS), DEVICES).features_of(small_images())


def imagenet_flags(tree, directory):
    return ["--gpu", "-1", "--ds", "./exps/imagenet/vs_inaturalist.json", "--config", "./configs/rcssr/imagenet.json",
            "--method", "cssr_ft", "--imagenet_path", str(tree / "imagenet"), "--large_ood_path", str(tree / "ood"),
            "--backbone_weights", str(tree / "resnet18.pth"), "--image_size", str(SIZE), "--workers", "0", "--max_epochs", "2",
            "--milestones", "1", "--ae_latent", "2", "--feature_dir", str(directory / "features"), "--run_dir",
            str(directory / "run"), "--configupdate", "batch_size:150"]  # fmt: skip


@pytest.mark.usefixtures("own_places")
def test_a_thousand_classes_train_stop_resume_and_evaluate(tree, tmp_path, monkeypatch):
    """The released ImageNet command; stopped in the cache and between steps; features are computed once for both scripts."""
    flags = imagenet_flags(tree, tmp_path)
    with pytest.raises(TimeUp, match="features"):
        main.main([*flags, "--time_limit", "0"])
    computed = []
    original = PretrainedCSSR.backbone_map
    monkeypatch.setattr(PretrainedCSSR, "backbone_map", lambda *a: (computed.append(len(a[1])), original(*a))[1])
    monkeypatch.setattr(FeatureCache, "__init__", without_limit(FeatureCache.__init__))
    with pytest.raises(TimeUp, match="state saved"):
        main.main([*flags, "--resume", "--time_limit", "0"])
    main.main([*flags, "--resume"])
    history = json.loads((tmp_path / "run" / "hist.json").read_text())
    assert [entry["epoch"] for entry in history] == [0, 1]
    assert all({"close acc", "open_detection", "open_reco", "metrics"} < set(entry) for entry in history)
    # Two steps an epoch: warm-up ends with epoch 0, then the milestone has fired.
    assert [entry["loss"]["Learn Rate"] for entry in history] == pytest.approx([0.4 * 150 / 128 / 2, 0.4 * 150 / 128 / 10])
    tensors, header = checkpoints.load_weights(tmp_path / "run", paper="cssr")
    assert header["score"] == {"integrate_score": "S[0]"} and header["model"]["mean"][0] == 0.485
    assert tensors["head.autoencoders.layers.0"].shape == (1000, 2, 512) and len(header["class_names"]) == 1000
    test.main(["--run_dir", str(tmp_path / "run"), "--imagenet_path", str(tree / "imagenet"), "--large_ood_path",
               str(tree / "ood"), "--workers", "0", "--feature_dir", str(tmp_path / "features"), "--no_report"])  # fmt: skip
    assert sum(computed) == TRAIN - 128 + TEST + UNKNOWN
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]["fused"]["inaturalist"]
    assert scores["auroc"] == pytest.approx(history[-1]["metrics"]["auroc"], abs=1e-6)
    with pytest.raises(UserError, match="--score s1 needs training statistics"):
        test.main(["--run_dir", str(tmp_path / "run"), "--score", "s1"])


@pytest.mark.slow
def test_a_killed_run_goes_on(tree, tmp_path):
    """SIGKILL as soon as one set's features are there; the command with --resume ends as if nothing had happened."""
    flags = imagenet_flags(tree, tmp_path)
    started = subprocess.Popen([sys.executable, str(ROOT / "cssr" / "main.py"), *flags], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while time.monotonic() < end and not list(tmp_path.glob("features/*/progress.json")):
        time.sleep(0.01)
    started.kill()
    assert started.wait() == -signal.SIGKILL and not (tmp_path / "run" / "weights.safetensors").exists()
    done = subprocess.run([sys.executable, str(ROOT / "cssr" / "main.py"), *flags, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [entry["epoch"] for entry in json.loads((tmp_path / "run" / "hist.json").read_text())] == [0, 1]
    assert len(list(tmp_path.glob("features/*/features.npy"))) == 3
    for progress in tmp_path.glob("features/*/progress.json"):
        content = json.loads(progress.read_text())
        assert content["done"] == content["of"]


def without_limit(original):
    def start(self, folder, model, devices, minutes=None):
        original(self, folder, model, devices)

    return start


@pytest.mark.usefixtures("own_places")
def test_streaming_without_a_cache_augments_in_every_epoch(tree, tmp_path):
    flags = imagenet_flags(tree, tmp_path)
    main.main([*flags, "--feature_views", "0", "--dry_run"])
    assert not (tmp_path / "features").exists() and not (tmp_path / "run" / "features").exists()
    main.main([*(flag for flag in flags if flag != "cssr_ft" and flag != "--method" and "features" not in flag
                 and flag != "--feature_dir"), "--dry_run", "--overwrite", "--without_gram"])  # fmt: skip
    _, header = checkpoints.load_weights(tmp_path / "run", paper="cssr")
    assert "frozen" not in header["model"]


def test_frozen_backbones_of_own_runs_and_without_weights(trained, tmp_path, capsys):
    """Digits: the backbone of a trained run under new heads; its normalisation comes along."""
    directory = tmp_path / "frozen"
    main.main(["--method", "cssr_ft", "--backbone_weights", str(trained["linear"]), "--model", "rcssr", "--max_epochs", "3",
               "--ds", "./exps/digits/first_6.json", "--test_interval", "2", "--feature_views", "2", "--augment", "simple",
               "--run_dir", str(directory), "--feature_dir", str(tmp_path / "features")])  # fmt: skip
    before, after = (checkpoints.load_weights(place, paper="cssr")[0] for place in (trained["linear"], directory))
    names = [name for name in before if name.startswith("backbone.")]
    assert names and all(torch.equal(before[name], after[name]) for name in names)
    history = json.loads((directory / "hist.json").read_text())
    assert ["close acc" in entry for entry in history] == [False, True, True]  # the last epoch always is evaluated
    main.main(["--method", "cssr_ft", "--backbone_weights", str(trained["linear"]), "--model", "linear", "--max_epochs", "1",
               "--run_dir", str(tmp_path / "linear"), "--feature_dir", str(tmp_path / "features")])  # fmt: skip
    tensors, header = checkpoints.load_weights(tmp_path / "linear", paper="cssr")
    assert not tensors["statistics.gram_mean"].numel() and "score" not in header  # nothing is collected that no score needs
    for flags, message in ((["--backbone", "resnet18"], "has no weights"), ([], "has no weights"),
                           (["--backbone", "convnet28", "--backbone_weights", str(trained["linear"])], "does not fit"),
                           (["--backbone_weights", str(tmp_path / "no.pth")], "no run, file")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            main.main(["--method", "cssr_ft", "--run_dir", str(tmp_path / "none"), *flags])
    assert not (tmp_path / "none").exists()


def test_networks_of_timm():
    pytest.importorskip("timm")
    net = build_pretrained("timm/resnet10t").eval()
    assert net.feature_map(torch.zeros(1, 3, 64, 64)).shape == (1, net.channels, 2, 2) and has_weights("timm/resnet10t")
    assert normalisation_of("timm/resnet10t")[0] == pytest.approx((0.485, 0.456, 0.406), abs=1e-3)
    with pytest.raises(UserError, match="timm has no backbone 'resnet10x'"):
        build_pretrained("timm/resnet10x")


def test_weights_are_found_under_usual_prefixes():
    net = build_network(SETTINGS).backbone
    state = {f"module.backbone.{name}": value + 1 for name, value in net.state_dict().items()}
    found = fitting_state(net, state | {"module.fc.weight": torch.zeros(1)}, "file")
    assert all(torch.equal(found[name], value + 1) for name, value in net.state_dict().items())


def test_a_path_flag_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--imagenet_path \(\$OSR_IMAGENET_PATH\) names .*no folder"):
        main.main(["--imagenet_path", str(tmp_path / "nothing"), "--run_dir", str(tmp_path / "run")])


@pytest.mark.usefixtures("own_places")
def test_an_environment_variable_places_a_set(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("OSR_LARGE_OOD_PATH", str(tree / "ood"))
    place_data_sets(parse_arguments([]))
    assert len(open_folder("inaturalist", False, data_root(tmp_path))) == UNKNOWN


def test_loaded_backbones_are_not_whitened_anew(tmp_path):
    """speednet's first layer is made from the training images, unless weights say what it is."""
    generator = np.random.default_rng(0)
    for part, kind, number in itertools.product(("train", "test"), "ab", range(30)):
        place = tmp_path / "own" / part / kind / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(place)
    flags = ["--known_dataset", f"folder:{tmp_path}/own@32", "--split", "all", "--backbone", "speednet", "--model", "linear",
             "--max_epochs", "1", "--batch_size", "16", "--without_gram"]  # fmt: skip
    main.main([*flags, "--run_dir", str(tmp_path / "whole")])
    main.main([*flags, "--method", "cssr_ft", "--backbone_weights", str(tmp_path / "whole"), "--augment", "simple",
               "--run_dir", str(tmp_path / "frozen"), "--feature_dir", str(tmp_path / "features")])  # fmt: skip
    before, after = (checkpoints.load_weights(tmp_path / name, paper="cssr")[0] for name in ("whole", "frozen"))
    names = [name for name in before if name.startswith("backbone.")]
    assert names and all(torch.equal(before[name], after[name]) for name in names)
