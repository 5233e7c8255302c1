"""Before and around training: refusals that leave no directory, first weights, small held-out parts, outliers, the sweep."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch

from baseline_openmax import main as train
from baseline_openmax import openness
from baseline_openmax.finishing import class_logits
from baseline_openmax.network import OpenSetNetwork, build_network
from baseline_openmax.overlap import check_training_outliers, family, refuse_training_outliers
from common.checkpoints import load_weights
from common.datasets import find_split
from common.errors import UserError
from common.run import seed_everything


def header_of(directory):
    return load_weights(directory / "weights.safetensors", paper="baseline_openmax")[1]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "first"
    train.main(["--run_dir", str(directory), "--max_epochs", "1", "--osr_head", "msp", "--outliers", "shuffled", "noise"])
    return directory


@pytest.mark.parametrize(("flag", "value"), [("seed", "1"), ("validation_share", "0.2"), ("subset", "300")])
def test_a_start_that_saw_other_images_is_refused(started, tmp_path, flag, value):
    with pytest.raises(UserError, match=f"trained on other images .--{flag} .* there, {value} here"):
        train.main(["--run_dir", str(tmp_path / "run"), "--start_from", str(started), f"--{flag}", value])
    assert not (tmp_path / "run").exists()


def test_outliers_of_the_start_stay_refused_after_fine_tuning(started, tmp_path):
    train.main(["--run_dir", str(tmp_path / "tuned"), "--start_from", str(started), "--max_epochs", "1",
                "--kplus1", "oe", "--outliers", "gaussian-noise"])  # fmt: skip
    header = header_of(tmp_path / "tuned")
    assert header["outliers"] == ["shuffled", "noise", "gaussian-noise"]
    for kind in ("noise", "gaussian-noise", "uniform-noise"):
        with pytest.raises(UserError, match=f"unknown set {kind} was shown"):
            refuse_training_outliers(["rest", kind], header)
    refuse_training_outliers(["rest", "svhn", "gaussian-noise"], {"outliers": ["noise", "shuffled"]})
    with pytest.raises(UserError, match="cifar-100 was shown in training"):
        refuse_training_outliers(["cifar-100"], {"outliers": ["noise", "cifar100"]})


@pytest.mark.parametrize(("shown", "unknown"), [("tinyimagenet", "imagenet-crop"), ("imagenet-crop", "tinyimagenet"),
                                                ("imagenet-crop", "imagenet-resize"), ("imagenet30", "imgn-fix")])  # fmt: skip
def test_outliers_refuse_what_is_made_of_the_same_images(shown, unknown):
    with pytest.raises(UserError, match=rf"unknown set {unknown} was shown in training as outliers \({shown}\)"):
        refuse_training_outliers([unknown], {"outliers": [shown]})
    assert family("lsun-crop") == {"lsun-crop"}


def test_training_refuses_a_common_source_and_says_where_names_cannot_tell(capsys):
    with pytest.raises(UserError, match="imagenet-crop: they and imagenet30 are made of the same images"):
        check_training_outliers(["imagenet-crop"], Namespace(dataset="imagenet30", split=Namespace(unknown_dataset=None)))
    assert not capsys.readouterr().out
    data = Namespace(dataset="cifar10", split=find_split("cifar10", "cssr-a"))
    check_training_outliers(["shuffled", "cifar100", "noise"], data)
    assert not capsys.readouterr().out
    check_training_outliers(["imagenet-resize"], data)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "cannot be checked" in said


def test_sweep_reuses_only_runs_of_the_same_flags(tmp_path, monkeypatch, capsys):
    from baseline_openmax import test as evaluate

    given = []
    real = evaluate.main
    monkeypatch.setattr(evaluate, "main", lambda argv: (given.append(argv), real(argv)))
    flags = ["--known_counts", "4", "--save", "sweep", "--run_dir", str(tmp_path), "--device", "cpu", "--calibration", "none"]
    openness.main([*flags, "--max_epochs", "2"])
    weights = tmp_path / "k4-0" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    capsys.readouterr()
    openness.main([*flags, "--max_epochs", "2"])
    assert weights.stat().st_mtime_ns == before and "already trained" in capsys.readouterr().out
    assert all("--device cpu" in " ".join(argv) for argv in given) and len(given) == 2
    with pytest.raises(UserError, match="with other flags: --max_epochs 2 then, 3 now"):
        openness.main([*flags, "--max_epochs", "3"])


def test_draws_of_neighbouring_seeds_are_other_draws():
    orders = {seed: openness.draws_of(10, 4, 3, seed) for seed in (0, 1, 2)}
    assert orders[0][1] != orders[1][0] and orders[1][1] != orders[2][0]
    assert orders[0] == openness.draws_of(10, 4, 3, 0)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--backbone", "vit_ti16", "--image_size", "32", "--pretrained", "true"], "--pretrained false"),
        (["--backbone", "vit_ti16", "--image_size", "32", "--backbone_weights", "none.pth"], "there is no file none.pth"),
        (["--start_from", "no-such-run"], "trains one"),
        (["--schedule", "restarts", "--warmup_epochs", "30"], "do not fit"),
    ],
)
def test_bad_starts_leave_no_directory(tmp_path, monkeypatch, flags, expected):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    if "--pretrained" in flags:
        import timm

        def offline(*args, pretrained=False, **options):
            raise OSError("no network")

        monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=expected):
        train.main(["--run_dir", str(tmp_path / "run"), *flags])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [[], ["--neck", "mlp", "--kplus1", "placeholder"]])
def test_the_first_weights_are_those_of_the_seed(tmp_path, flags):
    """With a rate of 0 the run ends with its first weights: those of a network built right after seeding."""
    train.main(["--run_dir", str(tmp_path / "run"), "--seed", "5", "--max_epochs", "1", "--rate", "0", "--weight_decay", "0",
                "--calibration", "none", *flags])  # fmt: skip
    tensors, header = load_weights(tmp_path / "run", paper="baseline_openmax")
    seed_everything(5)
    expected = dict(build_network(header["model"]).named_parameters())
    assert expected and all(torch.equal(tensors[name], value) for name, value in expected.items())


def test_draws_after_the_first_weights_continue_the_seed(tmp_path, monkeypatch):
    """The random state in which training begins is that of seed and first weights, whatever is checked in between."""
    from baseline_openmax.objectives import Objective

    states = []
    real = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", lambda *given: (states.append(torch.get_rng_state()), real(*given))[1])
    train.main(["--run_dir", str(tmp_path / "run"), "--seed", "5", "--max_epochs", "1", "--dry_run"])
    seed_everything(5)
    build_network(header_of(tmp_path / "run")["model"])
    assert torch.equal(states[0], torch.get_rng_state())


def test_too_few_held_out_images_give_a_note_and_openmax_all_the_same(tmp_path, capsys):
    train.main(["--run_dir", str(tmp_path), "--max_epochs", "2", "--validation_share", "0.008", "--fit_openmax", "5"])
    said = capsys.readouterr().out
    assert "no temperature: 6 held-out images are too few" in said and said.count("no temperature") == 1
    assert (tmp_path / "openmax.safetensors").exists() and not (tmp_path / "calibration_info.json").exists()
    assert "calibration" not in header_of(tmp_path)


@pytest.mark.parametrize("name", ["timm:deit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224",
                                  "timm:mobilevit_xxs", "vit_ti16"])  # fmt: skip
def test_networks_of_one_size_are_built_for_the_size_of_the_images(name):
    model = OpenSetNetwork(name, 3, (3, 32, 32), (0.5,) * 3, (0.25,) * 3, timm=True).eval()
    assert model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 3)


def test_a_size_that_a_network_of_timm_cannot_take_is_one_line(tmp_path, monkeypatch):
    from baseline_openmax import backbones

    flags = ["--run_dir", str(tmp_path / "run"), "--backbone"]
    with pytest.raises(UserError, match=r"edgenext_xx_small cannot take images of 20 pixels .*--image_size 256"):
        train.main([*flags, "timm:edgenext_xx_small", "--image_size", "20"])
    real = backbones._create

    def no_size(name, known, pretrained, weights, **options):
        if "img_size" in options:
            raise UserError("timm cannot build it: unexpected keyword argument 'img_size'")
        return real(name, known, pretrained, weights, **options)

    monkeypatch.setattr(backbones, "_create", no_size)
    with pytest.raises(UserError, match=r"takes images of 224 pixels only, these have 32: .*--image_size 224"):
        train.main([*flags, "timm:deit_tiny_patch16_224", "--image_size", "32"])
    assert not (tmp_path / "run").exists()


def test_fine_tuning_presets_ask_for_their_start(capsys):
    with pytest.raises(SystemExit):
        train.parse_arguments(["--preset", "laptop-proser"])
    said = capsys.readouterr().err
    assert "--start_from RUN" in said and said.count("\n") == 1
    assert train.parse_arguments(["--preset", "laptop-proser", "--start_from", "a"]).start_from == "a"


def test_temperature_and_openmax_see_logits_of_full_precision():
    """Training in bf16 does not round the logits that the temperature and OpenMax are fitted on."""
    from common.devices import Devices

    torch.manual_seed(0)
    settings = {"backbone": "convnet8", "classes": 3, "shape": [1, 8, 8], "mean": [0.5], "std": [0.25]}
    model = build_network(settings).eval()
    pixels = np.random.RandomState(0).randint(0, 256, (20, 1, 8, 8), dtype=np.uint8)
    devices = Devices(Namespace(device="cpu", gpu=None, precision="bf16", compile=False))
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).numpy()
        with devices.autocast():
            rounded = model(torch.from_numpy(pixels)).float().numpy()
    header = {"class_names": ["a", "b", "c"], "model": settings, "mirror_test": False}
    np.testing.assert_allclose(class_logits(model, header, pixels, devices), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(rounded - expected).max() > 1e-5 and devices.precision == "bf16"


def test_header_of_a_run_tells_the_images(started):
    config = json.loads((started / "config.json").read_text())
    data = header_of(started)["data"]
    assert data["split"] == "first-6" and all(data[name] == config[name] for name in data if name != "split")
