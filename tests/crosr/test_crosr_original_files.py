"""The PyTorch release's own weights: read as they are, bad files in one line."""

from types import SimpleNamespace

import pytest
import torch

from common import checkpoints, datasets
from common.errors import UserError
from crosr.model import RELEASED_MEAN, RELEASED_STD, DHRNet
from crosr.original_files import imported

ARGS = SimpleNamespace(data_dir=None)


@pytest.fixture
def released(golden):
    """Random tensors under the release's names, of its shapes."""
    torch.manual_seed(0)
    tensors = golden("dhrnet_state_dict.json")["state_dict"]
    return {name: torch.zeros(shape, dtype=torch.int64) if "tracked" in name else torch.rand(shape) for name, shape, _ in tensors}


@pytest.fixture(autouse=True)
def cifar10(monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name, train, root: SimpleNamespace(classes=[f"{name} {k}" for k in range(10)]))


@pytest.mark.parametrize("wrapped", [True, False])
def test_released_weights_become_a_checkpoint(released, tmp_path, wrapped):
    path = tmp_path / "dhr_net.pt"
    torch.save({"epoch": 499, "model_state_dict": released} if wrapped else released, path)
    assert checkpoints.is_torch_file(path)
    tensors, header = checkpoints.load_weights(imported(str(path), ARGS, tmp_path / "imported"), paper="crosr")
    model = DHRNet(**header["model"])
    model.load_state_dict(tensors)
    expected = DHRNet("plain", 10, (3, 32, 32), RELEASED_MEAN, RELEASED_STD, variant="released")
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in expected.state_dict().items()}  # fmt: skip
    assert torch.equal(tensors["stages.0.0.weight"], released["conv1_1.weight"])
    assert header["class_names"][0] == "cifar10 0" and header["data"]["validation_share"] == 0


def test_other_files_are_refused_in_one_line(released, tmp_path):
    path = tmp_path / "net.pt"
    for content, message in (({"layer4.weight": torch.zeros(1)}, "not the tensors of the released"),
                             ({"epoch": 3}, "holds no tensors by name"),
                             (released | {"fc6.weight": torch.zeros(6, 1024)}, "size mismatch for classifier")):  # fmt: skip
        torch.save(content, path)
        with pytest.raises(UserError, match=message) as refused:
            imported(str(path), ARGS, tmp_path / "imported")
        assert "\n" not in str(refused.value)
    path.write_bytes(b"PK broken")
    with pytest.raises(UserError, match="cannot be read as weights alone"):
        imported(str(path), ARGS, tmp_path / "imported")


def test_a_paper_without_such_files_says_what_it_reads(run, tmp_path):
    import subprocess
    import sys

    torch.save({"w": torch.zeros(1)}, tmp_path / "net.pt")
    done = subprocess.run([sys.executable, "cssr/test.py", "--checkpoint_path", str(tmp_path / "net.pt")], capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "is a file of another program: cssr/test.py reads runs and checkpoints of cssr/main.py" in done.stderr
