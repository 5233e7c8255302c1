"""A network in a torch file of another program: tensors by name or in order, unused ones listed, bad files in one line."""

from types import SimpleNamespace

import pytest
import torch
from made_data import replace_data

from common import checkpoints
from common.checkpoints import load_weights
from common.errors import UserError
from vmdls import original_files
from vmdls.model import VMDLS


def network(backbone, shape, seed):
    torch.manual_seed(seed)
    return VMDLS(backbone, 10, shape, [0.5] * shape[0], [0.5] * shape[0], latent_dim=8)


def foreign(model, rename):
    """Its tensors under other names, with an auto-encoder and an unused descriptor beside them."""
    tensors = {"encoder." + rename(key): value for key, value in model.encoder.state_dict().items()}
    for name, head in (("fc_first", model.mean_head), ("fc_second", model.log_variance_head)):
        tensors |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
    return tensors | {"ae.encoder.0.weight": torch.zeros(2), "sift.gk": torch.zeros(1)}


def flags(tmp_path, **changed):
    given = {"known_dataset": "mnist", "enc_type": "mnist-conv", "latent_dim": 8, "class_num": 10, "first_conv": False,
             "maxpool1": False, "data_dir": tmp_path}  # fmt: skip
    return SimpleNamespace(**given | changed)


@pytest.mark.parametrize(
    ("backbone", "dataset", "rename"),
    [("mnist-conv", "mnist", lambda key: key.replace("layers.", "stack.")), ("resnet18", "cifar10", str)],
)
def test_a_foreign_network_is_brought_over(backbone, dataset, rename, tmp_path, monkeypatch, capsys):
    from common import datasets

    replace_data(monkeypatch, tmp_path)
    from made_data import made_images

    monkeypatch.setattr(datasets, "load", made_images)
    shape = (1, 28, 28) if dataset == "mnist" else (3, 32, 32)
    source = network(backbone, shape, 1)
    torch.save({"state_dict": foreign(source, rename), "epoch": 3}, tmp_path / "net.ckpt")
    assert checkpoints.is_torch_file(str(tmp_path / "net.ckpt"))
    args = flags(tmp_path, known_dataset=dataset, enc_type=backbone)
    path = original_files.imported(str(tmp_path / "net.ckpt"), args, tmp_path / "imported")
    said = capsys.readouterr().out
    assert "unused there: ae.encoder.0.weight, sift.gk\n" in said
    tensors, header = load_weights(path, paper="vmdls")
    for name, tensor in source.state_dict().items():
        if not name.startswith(("normalise", "class_means")):
            assert torch.equal(tensors[name], tensor), name
    assert header["data"]["validation_share"] == 0 and len(header["class_names"]) == 10
    assert not checkpoints.is_torch_file(str(path))
    # Training goes on from it: main.py --checkpoint_path compares the header with its own settings.
    from vmdls.recipe import Weights, load_model

    config = header["model"] | {"width": None, "released_slices": False, "dropout_at_test": False}
    other = network(backbone, shape, 2)
    load_model(other, config, Weights(tensors, header, "net.ckpt"))
    assert torch.equal(other.mean_head.weight, source.mean_head.weight)


def test_another_network_than_the_flags_say_is_one_line(tmp_path, monkeypatch):
    from made_data import made_images

    from common import datasets

    monkeypatch.setattr(datasets, "load", made_images)
    source = network("mnist-conv", (1, 28, 28), 1)
    torch.save({"state_dict": foreign(source, str)}, tmp_path / "net.ckpt")
    for changed, message in (
        ({"latent_dim": 16}, "has 0 linear layers of 500 to 16 numbers"),
        ({"enc_type": None}, "say what it holds with --enc_type"),
        ({"known_dataset": "cifar10"}, "has shape"),
    ):
        with pytest.raises(UserError, match=message):
            original_files.imported(str(tmp_path / "net.ckpt"), flags(tmp_path, **changed), tmp_path / "imported")
    (tmp_path / "broken.ckpt").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="cannot be read as weights"):
        original_files.imported(str(tmp_path / "broken.ckpt"), flags(tmp_path), tmp_path / "imported")
    assert not (tmp_path / "imported").exists()
