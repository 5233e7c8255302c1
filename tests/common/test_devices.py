"""Arithmetic: what training computes in bf16 and what statistics are collected in."""

from types import SimpleNamespace

import pytest
import torch

from common.devices import Devices


def test_statistics_are_exact_whatever_the_training_computes_in():
    devices = Devices(SimpleNamespace(device="cpu", gpu=None, precision="bf16", compile=False))
    layer, images = torch.nn.Linear(8, 4), torch.rand(3, 8)
    with devices.autocast():
        assert layer(images).dtype == torch.bfloat16
    with devices.exact().autocast():
        assert layer(images).dtype == torch.float32
    assert devices.precision == "bf16" and devices.exact().device == devices.device


@pytest.mark.parametrize("paper", ["crosr", "cssr", "vmdls"])
def test_bf16_trainings_collect_their_statistics_in_fp32(paper, tmp_path, monkeypatch):
    """The pass over the training images that ends a bf16 training is asked for in fp32."""
    from importlib import import_module

    seen = []
    monkeypatch.setattr(Devices, "exact", lambda self, own=Devices.exact: seen.append(self.precision) or own(self))
    import_module(f"{paper}.main").main(["--preset" if paper != "cssr" else "--known_dataset", "digits", "--max_epochs", "1",
                                         "--precision", "bf16", "--dry_run", "--run_dir", str(tmp_path / "run")])  # fmt: skip
    assert seen == ["bf16"]
