"""Every command that the release's README prints, and its two auto-encoder scripts, start as printed."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from made_data import calibrate, names_of, replace_data, untrained, untrained_autoencoder

from common.arguments import run_script
from common.errors import UserError
from vmdls import ae_training, main, mnist_ae, test, train_resnet_ae
from vmdls import evaluation_arguments as evaluation

# From the README, its line breaks joined; test commands first.
PRINTED = {
    "test-cifar10-densenet": (
        'python test.py --enc_type densenet --latent_dim 32 --enc_out_dim 342 --max_epochs 500 --gpus "0," '
        " --generation_epoch 5 --lower_bound 0.05 --data_dir ./data --step_size 200 --margin_max_distance 64"
        " --known_dataset cifar_known --unknown_dataset imagenet-resize --data_transforms cifar_test"
        " --input_height 32 --class_num 10 --kl_coeff 0.1 --lr 0.001 --step_size 100 --margin_jump 1.0"
        " --margins_epoch 30 --checkpoint_path cifar10_densenet.ckpt --batch_classes 1 --sample_count 4996"
        " --batch_size 2500 --ae_features"
    ),
    "test-cifar10-resnet18": (
        'python test.py --enc_type resnet18 --latent_dim 32 --enc_out_dim 512 --max_epochs 500 --gpus "0,"'
        " --generation_epoch 1 --lower_bound 0.98 --data_dir ./data --step_size 100 --margin_max_distance 32"
        " --known_dataset cifar_known --unknown_dataset lsun-crop --data_transforms cifar_test --input_height 32"
        " --class_num 10 --kl_coeff 0.1 --lr 0.1 --margin_jump 1.0 --margins_epoch 10 --batch_classes 1"
        " --sample_count 4996 --batch_size 2500 --checkpoint_path cifar10_resnet.ckpt --ae_features"
    ),
    "test-cifar10-vgg": (
        'python test.py --enc_type vgg --latent_dim 32 --enc_out_dim 1024 --max_epochs 500 --gpus "0,"'
        " --generation_epoch 0 --lower_bound 0.05 --data_dir ./data --step_size 100 --margin_max_distance 32"
        " --known_dataset cifar_known --unknown_dataset imagenet-crop --data_transforms cifar_test --input_height"
        " 32 --class_num 10 --kl_coeff 0.1 --lr 0.001 --margin_jump 1.0 --margins_epoch 10 --batch_classes 1"
        " --sample_count 2500  --batch_size 2500 --checkpoint_path cifar10_vgg.ckpt --ae_features"
    ),
    "test-cifar10-wresnet": (
        'python test.py --enc_type wresnet --latent_dim 32 --enc_out_dim 640 --max_epochs 500 --gpus "0," '
        " --generation_epoch 5 --lower_bound 0.05 --data_dir ./data --step_size 200 --margin_max_distance 32"
        " --known_dataset cifar_known --unknown_dataset imagenet-crop --data_transforms cifar_test --input_height"
        " 32 --class_num 10 --kl_coeff 0.1 --lr 0.001 --step_size 100 --margin_jump 1.0 --margins_epoch 30"
        " --checkpoint_path cifar10_wresnet.ckpt --batch_classes 2 --sample_count 2500 --batch_size 2000"
    ),
    "test-cifar100-densenet": (
        'python test.py --enc_type densenet --latent_dim 64 --enc_out_dim 342 --max_epochs 500 --gpus "0,"'
        " --generation_epoch 5 --lower_bound 0.05 --data_dir ./data --step_size 100 --margin_max_distance 64"
        " --known_dataset cifar100_known --unknown_dataset lsun-resize --data_transforms cifar_test"
        " --input_height 32 --class_num 100 --kl_coeff 0.1 --lr 0.01 --margin_jump 1.0 --margins_epoch 10"
        " --batch_classes 10 --sample_count 450 --batch_size 500 --checkpoint_path cifar100_densenet.ckpt"
        " --ae_features"
    ),
    "test-mnist-cnn": (
        'python test.py --enc_type mnist-conv --latent_dim 32 --enc_out_dim 500 --max_epochs 500 --gpus "0,"'
        " --generation_epoch 151 --lower_bound 0.05 --data_dir ./data --step_size 75 --margin_max_distance 32"
        " --known_dataset mnist --unknown_dataset omniglot --data_transforms blob --input_height 28 --class_num"
        " 10 --kl_coeff 0.1 --lr 0.1 --margin_jump 1.0 --margins_epoch 10 --batch_classes 1 --sample_count 4996"
        " --batch_size 2500 --checkpoint_path cnn_mnist.ckpt --ae_features"
    ),
    "cifar10-vgg": (
        'python main.py --enc_type vgg --latent_dim 32 --enc_out_dim 1024 --max_epochs 500 --gpus "1," '
        " --generation_epoch 0 --lower_bound 0.95 --data_dir ./data --margin_max_distance 32 --known_dataset"
        " cifar_known --unknown_dataset imagenet-resize --data_transforms cifar --input_height 32 --class_num 10"
        " --lr 0.001 --step_size 100 --margin_jump 1.0 --margins_epoch 10 --batch_classes 8 --sample_count 8 "
        " --batch_size 64 --opt adam"
    ),
    "cifar10-resnet18": (
        'python main.py --enc_type resnet18 --latent_dim 32 --enc_out_dim 512 --max_epochs 500 --gpus "0," '
        " --generation_epoch 0 --lower_bound 0.95 --data_dir ./data --margin_max_distance 32 --known_dataset"
        " cifar_known --unknown_dataset imagenet-resize --data_transforms cifar --input_height 32 --class_num 10"
        " --kl_coeff 0.1 --lr 0.01 --step_size 100 --margin_jump 1.0 --margins_epoch 10 --batch_classes 10"
        " --sample_count 8  --batch_size 400 --opt sgd"
    ),
    "cifar10-densenet": (
        'python main.py --enc_type densenet --latent_dim 32 --enc_out_dim 342 --max_epochs 500 --gpus "1," '
        " --generation_epoch 0 --lower_bound 0.95 --data_dir ./data --margin_max_distance 32 --known_dataset"
        " cifar_known --unknown_dataset imagenet-resize --data_transforms cifar --input_height 32 --class_num 10"
        " --kl_coeff 0.1 --lr 0.1 --step_size 100 --margin_jump 1.0 --margins_epoch 30 --batch_classes 10"
        " --sample_count 8  --batch_size 420 --opt sgd"
    ),
    "mnist-cnn": (
        'python main.py --enc_type mnist-conv --latent_dim 32 --enc_out_dim 500 --max_epochs 500 --gpus "0,"'
        " --generation_epoch 0 --lower_bound 0.05 --data_dir ./data --step_size 100 --margin_max_distance 32"
        " --known_dataset mnist --unknown_dataset omniglot --data_transforms mnist --input_height 28 --class_num"
        " 10 --kl_coeff 0.1 --lr 0.0001 --opt adam --margin_jump 1.0 --margins_epoch 1 --batch_classes 10"
        " --sample_count 16 --batch_size 400"
    ),
    "cifar100-densenet": (
        'python main.py --enc_type densenet --latent_dim 64 --enc_out_dim 342 --max_epochs 200 --gpus "0,"'
        " --generation_epoch 0 --lower_bound 0.05 --data_dir ./data --step_size 64 --margin_max_distance 64"
        " --known_dataset cifar100_known --unknown_dataset imagenet-resize --data_transforms cifar --input_height"
        " 32 --class_num 100 --lr 0.001 --opt sgd --margin_jump 1.0 --margins_epoch 40 --batch_classes 20"
        " --sample_count 20 --batch_size 400 --weights checkpoint_100.pth.tar --finetune_lr 0.01 --finetune"
    ),
    "cifar10-wresnet": (
        'python main.py --enc_type wresnet --latent_dim 32 --enc_out_dim 640 --max_epochs 500 --gpus "0," '
        " --generation_epoch 0 --lower_bound 0.95 --data_dir ./data --margin_max_distance 32 --known_dataset"
        " cifar_known --unknown_dataset imagenet-resize --data_transforms cifar --input_height 32 --class_num 10"
        " --kl_coeff 0.1 --lr 0.001 --step_size 100 --margin_jump 1.0 --margins_epoch 40 --batch_classes 10"
        " --sample_count 20  --batch_size 640 --weights finetuning_wideresnet.tar --finetune_lr 0.01 --finetune"
    ),
    "train_resnet_ae": "python train_resnet_ae.py --dataset cifar100",
    "mnist_ae": "python mnist_ae.py",
}  # fmt: skip
SCRIPTS = {"main.py": main, "test.py": test, "train_resnet_ae.py": train_resnet_ae, "mnist_ae.py": mnist_ae}
QUICK = ("test-mnist-cnn", "mnist-cnn", "mnist_ae")
CHECKPOINT_OF = {"test-" + preset: name + ".ckpt" for name, preset in
                 [("cifar10_densenet", "cifar10-densenet"), ("cifar10_resnet", "cifar10-resnet18"),
                  ("cifar10_vgg", "cifar10-vgg"), ("cifar10_wresnet", "cifar10-wresnet"),
                  ("cifar100_densenet", "cifar100-densenet"), ("cnn_mnist", "mnist-cnn")]}  # fmt: skip


def words_of(name):
    _, script, *words = shlex.split(PRINTED[name])
    return SCRIPTS[script], words


def value(words, flag):
    return words[words.index(flag) + 1]


def test_the_commands_are_those_of_the_readme():
    readme = Path(__file__).resolve().parents[3] / "shared" / "seeds" / "vmdls.txt"
    if not readme.exists():
        pytest.skip(f"the README is not in {readme.parent}")
    text = " ".join(readme.read_text().split())
    commands = [shlex.split(match) for match in re.findall(r"python (?:main|test)\.py [^`]*", text)]
    ours = [shlex.split(command) for name, command in PRINTED.items() if not name.endswith("_ae")]
    assert len(commands) == 12 and commands == ours


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with made-up data sets, and no run but those that a test puts there."""
    from vmdls import names

    replace_data(monkeypatch, tmp_path)
    monkeypatch.setattr(names, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fill(workplace, name, words):
    """The weights that a command names, untrained."""
    if name in CHECKPOINT_OF:
        dataset = {"cifar_known": "cifar10", "cifar100_known": "cifar100"}.get(value(words, "--known_dataset"), "mnist")
        latent_dim = int(value(words, "--latent_dim"))
        untrained(workplace / CHECKPOINT_OF[name], value(words, "--enc_type"), dataset, latent_dim)
        shape = (1, 28, 28) if dataset == "mnist" else (3, 32, 32)
        place = workplace / "runs" / "vmdls" / f"ae-{dataset}" / "weights.safetensors"
        untrained_autoencoder(place, dataset, shape, names_of(dataset))
    if "--weights" in words:
        from vmdls.encoders import build_encoder

        encoder = build_encoder(value(words, "--enc_type"), 3, 32)
        calibrate(encoder, torch.randn(4, 3, 32, 32))
        torch.save({"state_dict": encoder.state_dict()}, workplace / value(words, "--weights"))


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PRINTED])
def test_every_printed_command_starts(name, workplace, capsys):
    script, words = words_of(name)
    fill(workplace, name, words)
    script.main([*words, "--dry_run", "--run_dir", str(workplace / "out")])
    out = capsys.readouterr()
    if script is test:
        rows = (workplace / "out" / "dry_run" / "f1_by_threshold.csv").read_text().splitlines()
        assert value(words, "--unknown_dataset") in out.out and len(rows) == 101
        assert ("autoencoder" in (workplace / "out" / "dry_run" / "metrics.json").read_text()) == ("--ae_features" in words)
    else:
        assert (workplace / "out" / "weights.safetensors").exists()
        assert ("monitoring (mean vectors alone" in out.out) == (script is main)


@pytest.mark.parametrize("name", CHECKPOINT_OF)
def test_a_missing_checkpoint_says_what_trains_it(name, workplace, capsys):
    script, words = words_of(name)
    with pytest.raises(SystemExit):
        run_script(script.main, words)
    error = capsys.readouterr().err
    preset = name.removeprefix("test-")
    stem = Path(CHECKPOINT_OF[name]).stem
    assert error.count("\n") == 1 and f"python vmdls/main.py --preset {preset} --save {stem} trains it" in error
    # ... and a run of that name is found under the file's.
    untrained(workplace / "runs" / "vmdls" / stem / "weights.safetensors", "mnist-conv", "mnist", 8, width=4)
    assert Path(evaluation.parse_arguments(words).checkpoint_path).name == stem


@pytest.mark.parametrize("name", CHECKPOINT_OF)
def test_presets_of_test_are_its_printed_commands(name, workplace):
    _, words = words_of(name)
    (workplace / CHECKPOINT_OF[name]).touch()
    ours = vars(evaluation.parse_arguments(["--preset", name.removeprefix("test-")]))
    theirs = vars(evaluation.parse_arguments(words))
    for flag in ("checkpoint_path", "unknown", "batch_size", "batch_classes", "sample_count", "ae_features", "score"):
        assert ours[flag] == theirs[flag], flag
    assert evaluation.parse_arguments(["--preset", name.removeprefix("test-"), "--save", "own"]).checkpoint_path is None


def test_autoencoder_defaults_are_the_originals():
    args = ae_training.parse_arguments("train_resnet_ae.py", [])
    expected = {"known_dataset": "cifar10", "enc_type": "resnet18", "lr": 1e-4, "latent_dim": 256, "batch_size": 256,
                "num_workers": 8, "max_epochs": 1000, "save": "ae-cifar10"}  # fmt: skip
    assert {key: getattr(args, key) for key in expected} == expected
    args = ae_training.parse_arguments("mnist_ae.py", ["--enc_type", "mnist", "--enc_out_dim", "500"])
    assert (args.known_dataset, args.latent_dim, args.enc_type, args.save) == ("mnist", 32, "mnist", "ae-mnist")
    args = ae_training.parse_arguments("mnist_ae.py", ["--preset", "mnist", "--split", "cssr-a"])
    assert args.save == "ae-mnist-cssr-a" and args.width == 32


def test_the_named_training_command_is_one_that_parses(workplace):
    from vmdls import arguments, names

    for stem, preset in names.PRESET_OF.items():
        with pytest.raises(UserError, match=f"--preset {preset} --save {stem} trains it"):
            names.checkpoint(f"{stem}.ckpt")
        assert arguments.parse_arguments(["--preset", preset, "--save", stem]).enc_type


def test_flags_win_over_the_weights_of_a_test_preset():
    from vmdls.evaluation_arguments import parse_arguments

    shared = ["--preset", "mnist-cnn", "--save", "x"]
    assert parse_arguments(shared).ae_features
    assert not parse_arguments([*shared, "--ablation"]).ae_features
    assert not parse_arguments([*shared, "--score", "mean"]).ae_features
    with pytest.raises(SystemExit):
        parse_arguments([*shared, "--ablation", "--ae_features"])


def test_rest_is_a_name_for_the_unknown_classes_in_training_too():
    from vmdls.arguments import parse_arguments

    assert parse_arguments(["--preset", "digits", "--unknown_dataset", "rest"]).unknown_dataset == "rest"
    with pytest.raises(SystemExit):
        parse_arguments(["--preset", "mnist", "--unknown_dataset", "rest"])
