"""main.py on digits: figures, original commands, fine-tuning, weights to start from, resume, bad input in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common.arguments import run_script
from common.checkpoints import load_weights, save_weights
from common.errors import TimeUp, UserError
from vmdls import main, recipe
from vmdls.model import VMDLS

# The training commands of the release's README: what they share, then the rest of each (of equal flags the last wins).
SHARED = (
    "--gpus 0, --data_dir ./data --lower_bound 0.95 --max_epochs 500 --generation_epoch 0 --latent_dim 32"
    " --class_num 10 --margin_max_distance 32 --margin_jump 1.0 --step_size 100 --known_dataset cifar_known"
    " --data_transforms cifar --unknown_dataset imagenet-resize --input_height 32 --batch_classes 10 "
)
README = {
    "cifar10-vgg": "--enc_type vgg --enc_out_dim 1024 --lr 0.001 --opt adam --margins_epoch 10 --batch_classes 8"
    " --sample_count 8 --batch_size 64",
    "cifar10-resnet18": "--enc_type resnet18 --enc_out_dim 512 --kl_coeff 0.1 --lr 0.01 --opt sgd --margins_epoch 10"
    " --sample_count 8 --batch_size 400",
    "cifar10-densenet": "--enc_type densenet --enc_out_dim 342 --kl_coeff 0.1 --lr 0.1 --opt sgd --margins_epoch 30"
    " --sample_count 8 --batch_size 420",
    "mnist-cnn": "--enc_type mnist-conv --enc_out_dim 500 --kl_coeff 0.1 --lr 0.0001 --opt adam --margins_epoch 1"
    " --sample_count 16 --batch_size 400 --known_dataset mnist --unknown_dataset omniglot --data_transforms mnist"
    " --input_height 28",
    "cifar100-densenet": "--enc_type densenet --enc_out_dim 342 --lr 0.001 --opt sgd --margins_epoch 40"
    " --batch_classes 20 --sample_count 20 --batch_size 400 --latent_dim 64 --margin_max_distance 64 --class_num 100"
    " --max_epochs 200 --known_dataset cifar100_known --step_size 64 --finetune --finetune_lr 0.01"
    " --weights checkpoint_100.pth.tar",
    "cifar10-wresnet": "--enc_type wresnet --enc_out_dim 640 --kl_coeff 0.1 --lr 0.001 --opt sgd --margins_epoch 40"
    " --sample_count 20 --batch_size 640 --finetune --finetune_lr 0.01 --weights finetuning_wideresnet.tar",
}
# Where a preset follows the supplement instead, and what says nothing about the training itself.
FROM_SUPPLEMENT = {"cifar100-densenet": {"max_epochs"}, "cifar10-wresnet": {"max_epochs", "step_size"}}
ELSEWHERE = {"preset", "gpu", "data_dir", "unknown_dataset", "lower_bound", "enc_out_dim", "input_height",
             "validation_share", "sample_count_final"}  # fmt: skip


def train(directory, *flags):
    main.main([*map(str, flags), "--run_dir", str(directory)])
    return load_weights(directory, paper="vmdls")


def log_of(directory):
    return [json.loads(line) for line in (Path(directory) / "log.jsonl").read_text().splitlines()]


def quick(*flags, epochs=2):
    return ("--preset", "digits", "--subset", "150", "--max_epochs", epochs, "--sample_count", "8", *flags)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """A softmax-trained digits net of two epochs."""
    from baseline_openmax import main as softmax

    directory = tmp_path_factory.mktemp("baseline") / "digits"
    softmax.main(["--preset", "digits", "--max_epochs", "2", "--run_dir", str(directory)])
    return directory


@pytest.mark.parametrize("preset", README)
def test_presets_are_the_commands_of_the_readme(preset):
    start = ["--weights", README[preset].split("--weights ")[1].split()[0]] if "--weights" in README[preset] else []
    ours = vars(main.parse_arguments(["--preset", preset, *start]))
    theirs = vars(main.parse_arguments((SHARED + README[preset]).split()))
    differing = {key for key in ours.keys() - ELSEWHERE if ours[key] != theirs[key]}
    assert differing == FROM_SUPPLEMENT.get(preset, set())


def test_original_defaults():
    args = main.parse_arguments([])
    expected = {
        "margin_max_distance": 32, "margin_jumps": 1.0, "margins_epoch": 0, "known_dataset": "mnist", "opt": "sgd",
        "batch_classes": 10, "sample_count": 40, "enc_type": "resnet18", "lr": 1e-4, "kl_coeff": 0.1, "step_size": 100,
        "batch_size": 256, "generation_epoch": 20, "class_num": 10, "lower_bound": 0.05, "latent_dim": 256,
        "finetune_lr": 1e-4, "max_epochs": 1000, "unknown_dataset": "omniglot", "num_workers": 8,
        "data_transforms": "mnist", "step_gamma": 0.1}  # fmt: skip
    assert {key: getattr(args, key) for key in expected} == expected
    assert not args.finetune and not args.first_conv and not args.maxpool1 and not args.offline


def test_known_classes_by_number_or_split():
    assert main.parse_arguments(["--known_dataset", "cifar_known", "--class_num", "6"]).split == "first-6"
    assert main.parse_arguments(["--known_dataset", "cifar100_known"]).split == "first-10"
    assert main.parse_arguments(["--known_dataset", "cifar10", "--split", "cssr-a"]).class_num == 6


def test_digits_reach_the_demo_figures(run, tmp_path):
    """As a user runs it; the figures come from test.py."""
    from vmdls import test

    done = run("main.py", "--preset", "digits", "--run_dir", tmp_path / "run")
    assert done.returncode == 0 and "trained:" in done.stdout, done.stderr
    test.main(["--run_dir", str(tmp_path / "run"), "--no_report"])
    values = json.loads((tmp_path / "run" / "metrics.json").read_text())["scores"]["vmdls"]["digits-unknown"]
    assert values["closed_accuracy"] >= 0.98 and values["auroc"] >= 0.98
    log = log_of(tmp_path / "run")
    assert [line["margin"] for line in log] == pytest.approx([0.15 + epoch for epoch in range(1, 21)])
    # Beyond 2 every triplet is active: 96 (16 - 1) (96 - 16) of them.
    assert all(line["active"] == 96 * 15 * 80 for line in log[2:]) and log[0]["active"] < 96 * 15 * 80
    for line in log:
        weight = 0.1 if line["epoch"] >= 5 else 0.0
        assert line["loss"] == pytest.approx(line["metric"] + weight * line["kl"], rel=1e-5)
    assert log[-1]["kl"] < log[4]["kl"] / 10 and log[-1]["validation_accuracy"] > 0.95
    tensors, header = load_weights(tmp_path / "run", paper="vmdls")
    model = VMDLS(**header["model"])
    model.load_state_dict({key: value for key, value in tensors.items() if not key.startswith("statistics.")})
    assert header["model"]["backbone"] == "small" and header["class_names"] == list("012345")
    assert model.class_means.norm(dim=1).min() > 0 and any(key.startswith("statistics.") for key in tensors)


def test_dry_run_fits_its_few_images(tmp_path):
    train(tmp_path / "run", "--known_dataset", "digits", "--enc_type", "small", "--data_transforms", "mnist",
          "--sample_count_final", "400", "--dry_run")  # fmt: skip
    assert log_of(tmp_path / "run")[0]["steps"] == 1


def test_dry_run_of_fine_tuning_shows_both_phases(tmp_path, baseline):
    flags = ("--weights", baseline, "--finetune", "--finetune_epochs", "1", "--finetune_lr", "0.01", "--dry_run")
    start, _ = load_weights(baseline, paper="baseline_openmax")
    name = "layers.1.num_batches_tracked"
    for epochs in (2, 1):  # one: nothing but the heads
        whole, _ = train(tmp_path / f"run{epochs}", *quick(*flags, epochs=epochs))
        assert whole[f"encoder.{name}"] == start[f"backbone.{name}"] + epochs - 1


@pytest.mark.parametrize("phases", [[], ["FINETUNE"]])
def test_interrupted_run_resumes_bit_for_bit(tmp_path, phases, baseline, monkeypatch):
    flags = quick("--kl_samples", "1", "--generation_epoch", "1", epochs=3)
    if phases:
        flags += ("--weights", baseline, "--finetune", "--finetune_epochs", "1", "--finetune_lr", "0.01")
    whole, _ = train(tmp_path / "whole", *flags)
    with pytest.raises(TimeUp):
        train(tmp_path / "parts", *flags, "--time_limit", "0")
    for _ in range(2):  # some steps at a time: in the first and in a later phase
        ticks = iter([False] * 3 + [True] * 99)
        monkeypatch.setattr("common.devices.Devices.agree", lambda self, value, ticks=ticks: next(ticks))
        with pytest.raises(TimeUp):
            train(tmp_path / "parts", *flags, "--resume", "--time_limit", "9")
    monkeypatch.undo()
    parts, _ = train(tmp_path / "parts", *flags, "--resume")
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        np.testing.assert_array_equal(tensor, parts[name], err_msg=name)
    first, second = log_of(tmp_path / "whole"), log_of(tmp_path / "parts")
    for key in ("kl", "metric", "validation_accepted"):
        assert [line[key] for line in first] == [line[key] for line in second]


def test_fine_tuning_trains_the_heads_alone_for_exactly_its_epochs(tmp_path, baseline, capsys):
    flags = ("--weights", baseline, "--finetune", "--finetune_lr", "0.01", "--generation_epoch", "9")
    start, start_header = load_weights(baseline, paper="baseline_openmax")
    for alone in (3, 2, 1):
        directory = tmp_path / f"alone{alone}"
        whole, header = train(directory, *quick(*flags, "--finetune_epochs", alone, epochs=3))
        assert "unused there: classifier.bias, classifier.weight, normalise.mean, normalise.std" in capsys.readouterr().out
        same = [torch.equal(v, start[k.replace("encoder", "backbone")]) for k, v in whole.items() if k.startswith("encoder.")]
        assert all(same) if alone == 3 else not torch.equal(whole["encoder.layers.0.weight"], start["backbone.layers.0.weight"])
        counted = whole["encoder.layers.1.num_batches_tracked"] - start["backbone.layers.1.num_batches_tracked"]
        # BatchNorm stands still while the encoder is frozen.
        assert counted == (3 - alone) * log_of(directory)[0]["steps"]
        assert header["model"]["mean"] == start_header["model"]["mean"]


def test_heads_alone_leave_every_encoder_tensor(tmp_path, baseline):
    flags = quick("--weights", baseline, "--finetune", "--finetune_epochs", "1", "--finetune_lr", "0.01", epochs=2)
    args = main.parse_arguments(list(map(str, flags)))
    from common.devices import Devices
    from common.training import load_data

    data, devices = load_data(args), Devices(args)
    model = VMDLS(**main.model_settings(args, data, main.starting_point(args, data)))
    recipe.load_encoder(model.encoder, recipe.read_weights(str(baseline)))
    trainer, batches = recipe.Trainer(model, args, devices), main.balanced_batches(args, data, devices)
    for epoch, still in ((0, True), (1, False)):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        trainer.begin(epoch)
        for number, images, labels in batches.epoch(epoch):
            trainer.step(images, labels, number, 0.0)
        moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert {"mean_head.weight", "log_variance_head.weight"} <= moved
        assert all(key.startswith(("mean_head", "log_variance_head")) for key in moved) == still


def test_checkpoint_path_starts_the_whole_network_at_the_largest_margin(tmp_path):
    first, _ = train(tmp_path / "first", *quick(epochs=1))
    train(tmp_path / "second", *quick("--checkpoint_path", tmp_path / "first", "--margin_max_distance", "4", epochs=2))
    assert [line["margin"] for line in log_of(tmp_path / "second")] == [5.0, 5.0]
    third, _ = train(tmp_path / "third", *quick("--checkpoint_path", tmp_path / "first", "--lr", "0", epochs=1))
    assert torch.equal(first["mean_head.weight"], third["mean_head.weight"])


def test_samples_grow_in_the_run(tmp_path):
    train(tmp_path / "run", *quick("--sample_count_final", "16", "--sample_count_epoch", "1"))
    assert [line["steps"] for line in log_of(tmp_path / "run")] == [149 // 48, 149 // 96]


def test_euclidean_distances_are_another_loss(tmp_path):
    train(tmp_path / "normalised", *quick(epochs=1))
    train(tmp_path / "euclidean", *quick("--euclidean", epochs=1))
    assert log_of(tmp_path / "normalised")[0]["metric"] != log_of(tmp_path / "euclidean")[0]["metric"]


@pytest.mark.slow
def test_two_processes_train_as_one(run, tmp_path, baseline):
    flags = quick("--weights", baseline, "--finetune", "--finetune_epochs", "1", "--finetune_lr", "0.01", "--opt",
                  "sgd", "--lr", "0.01", "--generation_epoch", "1", epochs=3)  # fmt: skip
    for devices in (1, 2):
        done = run("main.py", *flags, "--devices", devices, "--run_dir", tmp_path / str(devices), OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
    one, two = (load_weights(tmp_path / devices, paper="vmdls")[0] for devices in ("1", "2"))
    for name, tensor in one.items():
        if not name.startswith("statistics."):
            np.testing.assert_allclose(tensor, two[name], atol=2e-3, rtol=2e-3, err_msg=name)


def test_rates_fall_by_steps_or_evenly():
    steps = [recipe.rate_factor("step", epochs, 500, 100, 0.1) for epochs in (0, 99.9, 100, 250)]
    assert steps == pytest.approx([1, 1, 0.1, 0.01])
    assert [recipe.rate_factor("linear", epochs, 4, 100, 0.1) for epochs in (0, 1, 3.5, 4)] == [1, 0.75, 0.125, 0]
    assert recipe.rate_factor("constant", 400, 500, 1, 0.1) == 1
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 0.4}], lr=1)
    for factor in (0.5, 0.25):
        recipe.set_rates(optimizer, factor)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.4 * factor)


def small_network(backbone="small"):
    shape = (1, 8, 8) if backbone == "small" else (3, 32, 32)
    return VMDLS(backbone, 4, shape, [0.5] * shape[0], [0.25] * shape[0], latent_dim=8)


def test_optimisers_are_the_originals():
    first, sgd = recipe.build_optimizers(small_network(), main.parse_arguments(["--lr", "0.01"]))
    group = sgd.param_groups[0]
    assert first is None and type(sgd) is torch.optim.SGD and len(sgd.param_groups) == 1
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.01, 0.9, True, 1e-4)
    assert group["dampening"] == 0
    _, adam = recipe.build_optimizers(small_network(), main.parse_arguments(["--opt", "adam"]))
    assert type(adam) is torch.optim.Adam and adam.param_groups[0]["weight_decay"] == 0
    assert adam.param_groups[0]["betas"] == (0.9, 0.999)


def test_laptop_preset_gives_the_heads_their_own_rate():
    args, net = main.parse_arguments(["--preset", "laptop"]), small_network("speednet")
    first, speed = recipe.build_optimizers(net, args)
    heads = {id(p) for head in (net.mean_head, net.log_variance_head) for p in head.parameters()}
    for group in (first.param_groups[0], speed.param_groups[-1]):
        assert {id(p) for p in group["params"]} == heads
    assert speed.param_groups[-1]["lr"] == pytest.approx(args.head_lr * 0.15)
    # A twentieth of the speed recipe's rate (11.5 for 1,024 images).
    assert speed.param_groups[0]["lr"] == pytest.approx(11.5 / 20 * 120 / 1024 / (1 + 1 / 0.15))
    listed = [id(p) for group in speed.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in net.parameters() if p.requires_grad)


def test_transforms_and_their_normalisation():
    from common.datasets import load

    digits = load("digits", True)
    assert recipe.normalisation("mnist", digits) == recipe.normalisation("blob", digits) == ([0.5], [0.5])
    assert recipe.normalisation("none", digits)[0] == pytest.approx(digits.mean_std()[0], abs=1e-6)
    with pytest.raises(UserError, match="colour"):
        recipe.normalisation("cifar", digits)
    assert recipe.augmentation("blob", 0, 28) is None and recipe.augmentation("cifar_test", 0, 32) is None
    mnist, cifar = repr(recipe.augmentation("mnist", 0, 28)), repr(recipe.augmentation("cifar", 0, 32))
    assert "RandomRotation(degrees=10" in mnist and "size=28, scale=(0.95, 1.0)" in mnist
    assert "padding=4, mode='zero'" in cifar and "RandomFlip(probability=0.5)" in cifar


def test_published_torch_files_load_by_name(tmp_path):
    """Wrapped names, a classifier that is not used, and no counted batches, as in files of old torch versions."""
    torch.manual_seed(0)
    source, target = small_network().encoder, small_network().encoder
    tensors = {f"module.{key}": value for key, value in source.state_dict().items() if "num_batches" not in key}
    torch.save({"state_dict": tensors | {"module.fc.weight": torch.zeros(3)}, "epoch": 3}, tmp_path / "net.pth.tar")
    weights = recipe.read_weights(str(tmp_path / "net.pth.tar"))
    assert recipe.load_encoder(target, weights) == ["module.fc.weight"]
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())
    for spoilt, message in ((lambda t: t.pop("module.layers.3.weight"), "lacks 1 of the encoder's .* layers.3.weight"),
                            (lambda t: t.update({"module.layers.0.weight": torch.zeros(2)}), "has shape")):  # fmt: skip
        wrong = dict(tensors)
        spoilt(wrong)
        with pytest.raises(UserError, match=message):
            recipe.load_encoder(target, weights._replace(tensors=wrong))


def test_resnet_of_the_baseline_is_mapped_by_name():
    from baseline_openmax.model import Classifier
    from vmdls.encoders import build_encoder

    torch.manual_seed(0)
    baseline = Classifier("resnet18", 6, (3, 32, 32), [0.5] * 3, [0.25] * 3)
    encoder = build_encoder("resnet18", 3, 32)
    weights = recipe.Weights(baseline.state_dict(), {"model": {"backbone": "resnet18"}}, "net")
    unused = recipe.load_encoder(encoder, weights)
    assert set(unused) == {"normalise.mean", "normalise.std", "classifier.weight", "classifier.bias"}
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(encoder.eval()(images), baseline.eval().backbone(images), atol=1e-5)


@pytest.mark.parametrize("content", [b"not a checkpoint", None, [1, 2], {"state_dict": {"a": 3}}])
def test_unreadable_weights_are_one_line(content, tmp_path):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError) as raised:
        recipe.read_weights(str(path))
    assert "\n" not in str(raised.value) and "weights.pth" in str(raised.value)


def test_nothing_in_a_torch_file_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state_dict": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        recipe.read_weights(str(tmp_path / "bad.pth"))
    assert not (tmp_path / "executed").exists()


def test_weights_that_know_the_unknown_classes_are_refused(tmp_path, baseline, capsys):
    tensors, header = load_weights(baseline, paper="baseline_openmax")
    flags = quick("--weights", tmp_path / "all.safetensors", "--dry_run")
    save_weights(tmp_path / "all.safetensors", tensors, header | {"class_names": list("0123456789")})
    with pytest.raises(UserError, match="unknown in split first-6: 6, 7, 8, 9"):
        train(tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()
    save_weights(tmp_path / "all.safetensors", tensors, header)
    train(tmp_path / "run", *flags, "--seed", "5")
    assert "it has seen some that choose the threshold here" in capsys.readouterr().out


DIGITS = ["--preset", "digits"]
BAD = [
    (["--enc_type", "resnet"], "choose from"),
    (["--margin_step", "1"], "unrecognized"),
    (["--preset", "digit"], "nearest: digits"),
    ([*DIGITS, "--enc_out_dim", "512"], "--enc_out_dim 512 does not fit --enc_type small: its output has 64"),
    ([*DIGITS, "--input_height", "28"], "have 8 pixels"),
    ([*DIGITS, "--batch_classes", "7"], "only 6 known classes"),
    ([*DIGITS, "--sample_count", "400"], "class 0 has only"),
    ([*DIGITS, "--subset", "40"], "lower it to at most"),
    ([*DIGITS, "--class_num", "4"], "--split first-6 of digits has 6"),
    (["--lr", "-1"], "at least 0"),
    (["--sample_count", "0"], "at least 1"),
    (["--known_dataset", "digits", "--class_num", "11"], "K must be 1 to 10"),
    ([*DIGITS, "--known_dataset", "digit"], "nearest: digits"),
    ([*DIGITS, "--unknown_dataset", "omniglott"], "nearest: omniglot"),
    ([*DIGITS, "--unknown_dataset", "digits"], "is the known data set"),
    ([*DIGITS, "--unknown_dataset", "cifar_unknown"], "means the other classes of cifar10"),
    (["--known_dataset", "cifar_known", "--unknown_dataset", "cifar_unknown"], "needs --class_num below 10"),
    ([*DIGITS, "--weights", "checkpoint_100.pth.tar"], "ODIN's CIFAR-100 DenseNet"),
    ([*DIGITS, "--checkpoint_path", "cifar10_vgg.ckpt"], "main.py --preset cifar10-vgg --save cifar10_vgg trains it"),
    ([*DIGITS, "--enc_type", "mnist-conv", "--first_conv"], "--first_conv goes with"),
    ([*DIGITS, "--enc_type", "speednet"], "at least 9 pixels"),
    ([*DIGITS, "--finetune"], "--finetune needs --weights"),
    ([*DIGITS, "--weights", "a", "--finetune", "--max_epochs", "12"], "--finetune_epochs 20 exceeds --max_epochs 12"),
    ([*DIGITS, "--weights", "a", "--checkpoint_path", "b"], "exclude each other"),
    ([*DIGITS, "--weights", "no-such-run"], "baseline_openmax/main.py trains one"),
    ([*DIGITS, "--weights", "BASELINE", "--enc_type", "resnet18"], "--enc_type small takes it"),
    ([*DIGITS, "--checkpoint_path", "BASELINE"], "expected one of 'vmdls'"),
    ([*DIGITS, "--weights", "a", "--init", "kaiming"], "fresh encoder"),
    ([*DIGITS, "--kl_samples", "2"], "invalid choice"),
]


@pytest.mark.parametrize(("flags", "expected"), BAD)
def test_bad_input_is_one_line_and_writes_nothing(flags, expected, tmp_path, capsys, request):
    if "BASELINE" in flags:
        flags = [str(request.getfixturevalue("baseline")) if flag == "BASELINE" else flag for flag in flags]
        capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run_script(main.main, ["--run_dir", str(tmp_path / "run"), *flags])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1 and expected in error
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    train(tmp_path / "first", *quick("--dry_run"))
    with pytest.raises(UserError, match="latent_dim 16 there, 8 here"):
        train(tmp_path / "second", *quick("--checkpoint_path", tmp_path / "first", "--latent_dim", "8"))


def test_a_rate_that_diverges_stops_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"training diverged; lower --lr \(now 1e\+30\)"):
        train(tmp_path / "run", *quick("--opt", "sgd", "--lr", "1e30", "--generation_epoch", "0"))
