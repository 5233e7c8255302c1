"""Configuration files: values of the release, inheritance, `--configupdate`, dead keys, score expressions, flags from them."""

import json

import pytest

from common.arguments import run_script
from common.errors import UserError
from cssr import configuration
from cssr.arguments import get_args_parser, parse_arguments
from cssr.configuration import FOLDER, flags_of_config, read_config, updated

MODELS = ("linear", "pcssr", "rcssr")


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


def head(**values):
    return {"category_model": {"model": "pcssr", **values}}


def test_files_hold_the_released_values():
    """spec 1.5: what every file resolves to."""
    for model, order, gamma in zip(MODELS, ("avg_softmax", "softmax_avg", "softmax_avg"), (1, 0.1, 0.1)):
        for data in ("cifar10", "svhn"):
            flags = flags_of_config(f"configs/{model}/{data}.json")
            assert (flags["model"], flags["backbone"], flags["arch_type"]) == (model, "wideresnet40-4", order)
            assert (flags["max_epochs"], flags["rate"], flags["milestones"]) == (200, 0.4, [120, 190])
            assert (flags["warmup_epoch"], flags["batch_size"], flags["gamma"], flags["ae_latent"]) == (0, 128, gamma, 64)
            assert (flags["augment"], flags["strong_option"], flags["postprocess"]) == ("strong", "CUST", "cutout")
        tiny = flags_of_config(f"configs/{model}/tinyimagenet.json")
        assert (tiny["backbone"], tiny["max_epochs"], tiny["milestones"]) == ("resnet18", 235, [150, 225])
        assert tiny["warmup_epoch"] == 1
        large = flags_of_config(f"configs/{model}/imagenet.json")
        assert (large["backbone"], large["max_epochs"], large["milestones"]) == ("prt_pytorchr18", 4, [3])
        assert (large["augment"], large["warmup_epoch"]) == ("simple", 1)
    assert [flags_of_config(f"configs/{m}/imagenet.json")["ae_latent"] for m in MODELS] == [32, 32, 16]
    assert flags_of_config("configs/pcssr/imagenet.json")["projection_dim"] == 512
    assert [flags_of_config(f"configs/{m}/cifar10.json")["point_score"] for m in MODELS] == ["R[4]", "R[0]/R[1]/R[1]", "R[0]"]
    fused = "S[0]+S[1]+S[2]"
    assert [flags_of_config(f"configs/{m}/cifar10.json")["integrate_score"] for m in MODELS] == ["S[0]", fused, fused]


def test_every_shipped_file_sets_known_flags_and_tells_nothing(capsys):
    flags = {action.dest for action in get_args_parser()._actions}
    files = [str(path.relative_to(FOLDER)) for path in FOLDER.glob("configs/*/*.json")]
    assert len(files) == 27
    for file in files:
        assert set(flags_of_config(file)) <= flags
        assert parse_arguments(["--config", file]).model in MODELS
    assert capsys.readouterr().err == ""


def test_flags_win_over_the_configuration_and_all_images_are_trained_on():
    args = parse_arguments(["--config", "./configs/rcssr/cifar10.json", "--ds", "./exps/cifar10/spl_b.json", "--gamma", "0.2"])
    assert (args.model, args.backbone, args.max_epochs, args.rate) == ("rcssr", "wideresnet40-4", 200, 0.4)
    assert (args.milestones, args.augment, args.ae_latent, args.gamma) == ([120, 190], "strong", 64, 0.2)
    assert (args.known_dataset, args.split, args.validation_share) == ("cifar10", "cssr-b", 0)
    assert parse_arguments(["--config", "configs/pcssr/digits.json", "--validation_share", ".2"]).validation_share == 0.2


def test_inheritance_merges_dictionaries_key_by_key(tmp_path):
    parent = write(tmp_path / "parent.json", {"batch_size": 128, "category_model": {"model": "pcssr", "gamma": 0.1}})
    child = write(tmp_path / "child.json", {"inherit": parent, "batch_size": 32, "category_model": {"gamma": 0.3}})
    assert read_config(child) == {"batch_size": 32, "category_model": {"model": "pcssr", "gamma": 0.3}}


def test_updates_take_the_type_that_is_there():
    config = {"epoch_num": 200, "learn_rate": 0.4, "enable_gram": True, "backbone": "resnet18",
              "category_model": {"gamma": 0.1}}  # fmt: skip
    text = "epoch_num:10, category_model.gamma:0.2,enable_gram:False,backbone:resnet34,learn_rate:1"
    assert updated(config, text) == {"epoch_num": 10, "learn_rate": 1.0, "enable_gram": False, "backbone": "resnet34",
                                     "category_model": {"gamma": 0.2}}  # fmt: skip
    assert config["category_model"] == {"gamma": 0.1} and config["epoch_num"] == 200
    flags = ["--config", "configs/pcssr/cifar10.json", "--configupdate", "epoch_num:10,category_model.gamma:0.2"]
    args = parse_arguments(flags)
    assert (args.max_epochs, args.gamma) == (10, 0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch_nmu:10", "nearest: epoch_num"),
        ("category_model.gama:1", "nearest: category_model.gamma"),
        ("gamma:1", "no such key"),
        ("milestones:3", "list cannot be overridden"),
        ("epoch_num:ten", "expects int"),
        ("enable_gram:maybe", "True or False"),
        ("epoch_num", "key:value"),
        ("category_model:1", "no such key"),
    ],
)
def test_bad_updates_are_one_line(text, message):
    with pytest.raises(UserError, match=message):
        flags_of_config("configs/pcssr/cifar10.json", text)


def test_dead_keys_are_told_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(configuration, "_told", set())
    path = write(tmp_path / "old.json", {"inherit": "./configs/pcssr.json", "optimizer": "sgd", "energy_T": 100,
                                         "category_model": {"simmeasure": "L1"}})  # fmt: skip
    for _ in range(2):
        flags_of_config(path)
    assert capsys.readouterr().err == f"note: {path}: keys without effect: category_model.simmeasure, energy_T, optimizer\n"
    flags_of_config("configs/pcssr.json", "optimizer:adam")
    assert "keys without effect: optimizer" in capsys.readouterr().err
    path = write(tmp_path / "typo.json", {"inherit": "./configs/pcssr.json", "learn_rte": 0.1})
    flags_of_config(path)
    assert "learn_rte; nearest: learn_rate" in capsys.readouterr().err


BAD = [
    ({"score": "R[0]*R[1]"}, "score expression"),
    ({"score": "__import__('os').system('true')"}, "is none of"),
    ({"integrate_score": "S[0]+2*S[1]"}, "score expression"),
    ({"score": "R[0]/R[2]"}, "divides by the constant 0"),
    ({"epoch_num": "many"}, "epoch_num must be of type int"),
    ({"batch_size": True}, "batch_size must be of type int"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"milestones": [120, "190"]}, "milestones must hold whole numbers"),
    ({"category_model": {"model": "pcssr", "ae_hidden": [1.5]}}, "ae_hidden must hold whole numbers"),
    ({"category_model": {"model": "pcssr", "gamma": [1]}}, "gamma must be of type float"),
    ({"inherit": "./configs/nothing_there.json"}, "that old.json inherits"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_bad_values_are_one_line(tmp_path, values, message):
    path = write(tmp_path / "old.json", head() | values)
    with pytest.raises(UserError, match=message) as caught:
        flags_of_config(path)
    assert "\n" not in str(caught.value)


def test_bad_files_say_what_is_wrong(tmp_path):
    first, second, broken = (tmp_path / name for name in ("first.json", "second.json", "broken.json"))
    write(first, {"inherit": str(second)})
    write(second, {"inherit": str(first)})
    broken.write_text("{")
    for path, message in ((str(first), "inherits itself: first.json -> second.json -> first.json"),
                          (str(broken), "not readable JSON"), ("./exps/cifar10/spl_a.json", "category_model"),
                          ("./configs/pcsr.json", "pcssr.json"),
                          (write(tmp_path / "list.json", [1]), "JSON object")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            flags_of_config(path)


def test_a_choice_that_is_none_is_named_with_its_file(tmp_path, capsys):
    path = write(tmp_path / "c.json", head() | {"cat_augmentation": "weak"})
    with pytest.raises(SystemExit):
        run_script(parse_arguments, ["--config", path])
    error = capsys.readouterr().err
    path = write(tmp_path / "p.json", head() | {"customize_augment_pool": {"Colour": True}})
    with pytest.raises(SystemExit):
        run_script(parse_arguments, ["--config", path])
    assert "'Colour' is none of AutoContrast" in capsys.readouterr().err
    assert error.count("\n") == 1 and "'weak' is none of none, shift1" in error and "c.json" in error
