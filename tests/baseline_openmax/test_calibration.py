"""Temperature scaling: the optimum, what it changes and what not, bounds; the halves of the held-out images; the best epoch."""

import json

import numpy as np
import pytest
import torch

from baseline_openmax.calibration import BOUNDS, calibration_report, fit_temperature, halves, stored_temperature
from baseline_openmax.selection import BestWeights
from common.errors import UserError
from common.metrics import auroc, ece, nll
from common.scores import energy, mls, msp


def drawn(count=4000, classes=5, scale=1.0, seed=0):
    """Labels drawn from softmax(z), and `scale` times z: the temperature is `scale`."""
    generator = np.random.RandomState(seed)
    z = generator.normal(size=(count, classes)) * 2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    labels = (p.cumsum(1) > generator.random_sample((count, 1))).argmax(1)
    return z * scale, labels


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scale(scale):
    z, labels = drawn(scale=scale)
    found = fit_temperature(z, labels)
    assert found == pytest.approx(scale, rel=0.05)
    for other in (0.97 * found, 1.03 * found):
        assert nll(labels, z / other) > nll(labels, z / found)


def test_report_has_nll_and_ece_before_and_after():
    z, labels = drawn(scale=3.0)
    report = calibration_report(z, labels)
    assert report["nll_before"] == nll(labels, z) > report["nll_after"]
    assert report["ece_before"] == ece(labels, z) > 0.1 > report["ece_after"]
    assert report["images"] == len(labels)


def test_what_a_temperature_changes():
    z, labels = drawn(scale=3.0)
    t = fit_temperature(z, labels)
    unknown = np.r_[np.zeros(2000), -np.ones(2000)].astype(int)
    assert (z.argmax(1) == (z / t).argmax(1)).all()
    assert auroc(unknown, mls(z / t)) == auroc(unknown, mls(z))
    assert (np.argsort(msp(z / t)) != np.argsort(msp(z))).any()
    assert (np.argsort(energy(z / t)) != np.argsort(energy(z))).any()


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_temperature_out_of_bounds_is_an_error(scale):
    z, labels = drawn(scale=scale)
    with pytest.raises(UserError, match=r"outside \[0.05, 20.0\]"):
        fit_temperature(z, labels)


def test_without_an_error_there_is_no_best_temperature():
    assert fit_temperature([[5.0, 0.0], [0.0, 3.0]], [0, 1]) == 1.0
    with pytest.raises(UserError, match="validation_share"):
        fit_temperature(np.empty((0, 2)), [])


def test_stored_temperature_comes_from_header_or_run(tmp_path):
    assert stored_temperature({}, tmp_path) is None
    (tmp_path / "calibration_info.json").write_text(json.dumps({"temperature": 1.5}))
    assert stored_temperature({}, tmp_path) == 1.5
    assert stored_temperature({"calibration": {"temperature": 2.0}}, tmp_path) == 2.0
    for wrong in (0.01, 50, "1", None):
        (tmp_path / "calibration_info.json").write_text(json.dumps({"temperature": wrong}))
        with pytest.raises(UserError, match="temperature must lie in"):
            stored_temperature({}, tmp_path)
    assert BOUNDS == (0.05, 20.0)


def test_halves_are_disjoint_and_stratified():
    labels = np.repeat(np.arange(6), 13)
    first, second = halves(labels, seed=3)
    assert set(first) | set(second) == set(range(len(labels))) and not set(first) & set(second)
    np.testing.assert_array_equal(np.bincount(labels[first]), 7)
    assert not np.array_equal(first, halves(labels, seed=4)[0])


def test_best_weights_are_those_of_the_best_epoch_and_survive_a_resume():
    model = torch.nn.Linear(1, 1)
    best = BestWeights(model, np.zeros((4, 1)), np.array([0, 1, 1, 0]))
    for epoch, prediction in enumerate(([0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1])):
        torch.nn.init.constant_(model.weight, epoch)
        best.update(epoch, np.array(prediction))
    again = BestWeights(model, best.images, best.labels)
    again.load_state_dict(best.state_dict())
    for one in (best, again):
        assert (one.epoch, one.accuracy, float(one.weights["weight"])) == (1, 0.75, 1.0)


def test_model_selection_refuses_unknown_images():
    with pytest.raises(ValueError, match="must not see unknown"):
        BestWeights(torch.nn.Linear(1, 1), np.zeros((2, 1)), np.array([0, -1]))
