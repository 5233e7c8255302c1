"""Reconstruction weights: formulas, the auto-encoder that is chosen, every variant of the score, bad input in one line."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_data import untrained_autoencoder

from common.arguments import run_script
from common.devices import Devices
from common.results import read_scores
from vmdls import names, test, weighting
from vmdls.autoencoders import AutoEncoder
from vmdls.model import VMDLS

VARIANTS = ("weighted", "weighted-transductive", "released", "weighted-released", "weighted-released-transductive")
PICTURES = [str(number) for number in range(3)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A digits network and an auto-encoder of the same classes, few epochs each."""
    from vmdls import main, mnist_ae

    folder = tmp_path_factory.mktemp("weighting")
    main.main(["--preset", "digits", "--max_epochs", "6", "--run_dir", str(folder / "run")])
    mnist_ae.main(["--preset", "digits", "--max_epochs", "6", "--run_dir", str(folder / "runs/vmdls/ae-digits-first-6")])
    return folder


@pytest.fixture
def evaluate(trained, tmp_path, monkeypatch):
    """`evaluate(*flags)` runs test.py on a copy of the run; returns the folder it wrote to."""
    import shutil

    monkeypatch.setattr(names, "ROOT", trained)
    copied = Path(shutil.copytree(trained / "run", tmp_path / "run"))

    def call(*flags):
        test.main(["--run_dir", str(copied), "--no_report", *map(str, flags)])
        return copied

    return call


def error_of(capsys, trained, *flags):
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run_script(test.main, ["--run_dir", str(trained / "run"), *map(str, flags)])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1
    return error


def test_scores_are_the_formula_of_their_parts(evaluate):
    folder = evaluate("--ae_features")
    scores, metrics = read_scores(folder / "scores.npz"), json.loads((folder / "metrics.json").read_text())
    assert metrics["method"] == "vmdls-weighted"
    from common.checkpoints import load_weights

    highest = float(load_weights(folder, paper="vmdls")[0]["statistics.highest"])
    largest = metrics["thresholds"]["vmdls"]["scoring"]["largest_training_error"]
    best, error = scores["parts"].T
    np.testing.assert_allclose(best, scores["logits"].max(1))
    expected = -(error / largest) * np.minimum(best - 1 - highest, -1)
    np.testing.assert_allclose(scores["unknown_score"], expected, rtol=1e-12)
    assert (error >= 0).all() and np.ptp(error) > 0


def test_transductive_constants_come_from_the_test_images(evaluate):
    scores = read_scores(evaluate("--ae_features", "--transductive") / "scores.npz")
    best, error = scores["parts"].T
    at_test = scores["split"] == 0
    weight = error / error[at_test].max()
    expected = -weight * np.minimum(best - 1 - best[at_test].max(), -1)
    np.testing.assert_allclose(scores["unknown_score"], expected, rtol=1e-12)


def test_ablation_gives_every_variant_as_its_own_flags_do(evaluate):
    batches = ("--batch_classes", "2", "--sample_count", "40")
    folder = evaluate("--ablation", *batches)
    found = {name: read_scores(folder / f"scores_{name}.npz")["unknown_score"] for name in VARIANTS}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["scores"]) == {"vmdls", *VARIANTS} == set(metrics["f1_at_95_tpr"])
    for name in VARIANTS:
        flags = {"weighted": "--ae_features", "transductive": "--transductive", "released": "--released_statistics"}
        single = evaluate(*(flags[word] for word in name.split("-")), *batches)
        np.testing.assert_allclose(read_scores(single / "scores.npz")["unknown_score"], found[name], rtol=1e-9)
        own = json.loads((single / "metrics.json").read_text())["method"]
        assert own == "-".join(["vmdls", *name.split("-")]).replace("released", "released2x40")


def test_records_of_the_ablation_name_their_variant(evaluate, tmp_path, monkeypatch):
    from common import results

    monkeypatch.setattr(results, "RECORDS", tmp_path / "records")
    evaluate("--ablation", "--record", "check")
    written = {json.loads(path.read_text())["method"] for path in (tmp_path / "records" / "vmdls").glob("*.json")}
    assert written == {"vmdls", *(f"vmdls-{name}".replace("released", "released10x40") for name in VARIANTS)}


def test_own_pictures_are_weighted_as_the_evaluation_was(evaluate, trained, tmp_path, capsys):
    from PIL import Image
    from sklearn.datasets import load_digits

    picture = (load_digits().images[0] * 255 / 16).round().astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "0.png")
    folder = evaluate("--ae_features")
    capsys.readouterr()
    test.main(["--run_dir", str(folder), "--ae_features", "--images", str(tmp_path / "0.png")])
    line = capsys.readouterr().out.splitlines()
    assert len(line) == 1 and "threshold" in line[0]
    evaluate()
    with pytest.raises(ValueError, match="did not weight vmdls by"):
        test.main(["--run_dir", str(folder), "--ae_features", "--images", str(tmp_path / "0.png")])


def devices():
    flags = {"device": "cpu", "gpu": None, "precision": "fp32", "compile": False}
    return Devices(SimpleNamespace(**flags))


def test_an_autoencoder_of_other_constants_rebuilds_the_same_picture():
    """The identity in its own normalisation is the identity in the classifier's."""
    model = VMDLS("small", 3, (1, 8, 8), [0.3], [0.2], latent_dim=4).eval()
    autoencoder = AutoEncoder("small", (1, 8, 8), [0.6], [0.5], latent_dim=4, width=2)
    autoencoder.encoder = autoencoder.decoder = torch.nn.Identity()
    rebuilder = weighting.Rebuilder(model, autoencoder, devices())
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(rebuilder.reconstruct(images), model.normalise(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rebuilder.first_layer(images), model.ensemble(images).t1, rtol=1e-5, atol=1e-5)
        autoencoder.decoder = torch.nn.Hardtanh(-0.2, 0.2)
        expected = autoencoder.normalise(images).clamp(-0.2, 0.2) * 0.5 + 0.6  # pixels on the 0..1 scale
        torch.testing.assert_close(rebuilder.reconstruct(images), (expected - 0.3) / 0.2, rtol=1e-4, atol=1e-5)


def test_errors_do_not_depend_on_the_batch_size(trained):
    """The release's loop over quarters of a batch drops images; any size is right here."""
    autoencoder, header = weighting.load_autoencoder(str(trained / "runs/vmdls/ae-digits-first-6"), header_of(trained))
    model = VMDLS("small", 6, (1, 8, 8), [0.3], [0.2], latent_dim=4).eval()
    rebuilder = weighting.Rebuilder(model, autoencoder, devices())
    pixels = np.random.default_rng(0).integers(0, 256, (23, 1, 8, 8)).astype(np.uint8)
    from common.inference import apply_batched

    function = weighting.outputs_of(model, rebuilder, devices())
    found = [weighting.errors_of(apply_batched(function, pixels, torch.device("cpu"), size)) for size in (5, 23)]
    np.testing.assert_allclose(*found, rtol=1e-4)


def header_of(trained):
    from common.checkpoints import load_weights

    return load_weights(trained / "run", paper="vmdls")[1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"dataset": "mnist"}, "auto-encoder of mnist, the known data set is digits"),
        ({"shape": (1, 16, 16)}, "is for images [1, 16, 16], the network's are [1, 8, 8]"),
        ({"class_names": "0123457"}, "unknown in split first-6: 7"),
        ("classifier", "is a VMDLS classifier, not an auto-encoder"),
        ("nothing", "python vmdls/mnist_ae.py --preset digits trains it"),
    ],
)
def test_a_wrong_autoencoder_is_one_line(given, expected, trained, tmp_path, capsys):
    where = tmp_path / "ae.safetensors"
    if given == "classifier":
        where = trained / "run"
    elif given != "nothing":
        settings = {"dataset": "digits", "shape": (1, 8, 8), "class_names": "012345"} | given
        untrained_autoencoder(where, **settings)
    assert expected in error_of(capsys, trained, "--ae_features", "--ae_weights", where)


def test_default_autoencoder_follows_data_and_split(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(names, "ROOT", tmp_path)
    error = error_of(capsys, trained, "--ae_features")
    assert "no auto-encoder 'ae-digits-first-6'" in error and "vmdls/mnist_ae.py --preset digits trains it" in error
    header = header_of(trained)
    header["data"] |= {"known_dataset": "cifar10", "split": "cssr-a"}
    with pytest.raises(ValueError, match=r"ae-cifar10-cssr-a.*train_resnet_ae.py --preset laptop --split cssr-a"):
        weighting.load_autoencoder(None, header)
    path = tmp_path / "runs/vmdls/ae-digits-first-6/weights.safetensors"
    untrained_autoencoder(path, "digits", (1, 8, 8), "012345", seed=3, split="first-6")
    weighting.load_autoencoder(None, header_of(trained))
    assert "it has seen some" in capsys.readouterr().out


def test_an_autoencoder_is_no_network_to_evaluate(trained, capsys):
    with pytest.raises(SystemExit):
        run_script(test.main, ["--run_dir", str(trained / "runs/vmdls/ae-digits-first-6")])
    assert "goes to --ae_weights" in capsys.readouterr().err
