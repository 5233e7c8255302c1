"""Activation vectors, training statistics, the file of network outputs, OpenMax fitted from a checkpoint's statistics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from common.errors import UserError
from common.openmax import DISTANCES, OpenMax
from crosr import features as crosr_features
from crosr.features import FeatureFile, activation_vectors, kept_distances, pixel_digest, statistics_of
from crosr.scores import Variant, fit, needs_training_images, statistics_for, stored_tail, zscore

NAMES = ["a", "b", "c"]


def outputs(count=300, classes=3, latents=8, seed=0):
    """Logits of which most are right, latents that differ between classes; labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    logits = generator.normal(size=(count, classes)) + 2.5 * np.eye(classes)[labels]
    found = {"logits": logits.astype(np.float32)}
    for pooling in ("max", "avg"):
        found[f"latents_{pooling}"] = np.abs(generator.normal(size=(count, latents)) + labels[:, None]).astype(np.float32)
    return found, labels


def variant(features="logits+latents", pooling="max", **changed):
    default = {"tail_size": 20, "alpha": 3, "distance": "euclidean", "softmax": "before", "clip": "zero"}
    return Variant(features, pooling, default | changed)


def test_activation_vector_is_logits_then_latents_of_the_chosen_pooling():
    arrays, _ = outputs()
    for pooling in ("max", "avg"):
        joined = activation_vectors(arrays, "logits+latents", pooling)
        assert joined.dtype == np.float64
        np.testing.assert_array_equal(joined, np.hstack([arrays["logits"], arrays[f"latents_{pooling}"]]))
    np.testing.assert_array_equal(activation_vectors(arrays, "logits"), arrays["logits"])
    with pytest.raises(UserError, match="--features logits"):
        activation_vectors({"logits": arrays["logits"]})
    with pytest.raises(UserError, match="'median'"):
        activation_vectors(arrays, pooling="median")


def test_forward_pools_the_networks_own_latents():
    from types import SimpleNamespace

    from common.devices import Devices
    from crosr.model import DHRNet

    model = DHRNet("convnet8", 4, (1, 8, 8), [0.5], [0.25]).eval()
    devices = Devices(SimpleNamespace(device="cpu", gpu=None, precision="fp32", compile=False))
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        found, output = crosr_features.forward(model, devices)(images), model(images)
    torch.testing.assert_close(found["logits"], output.logits)
    top, bottom = output.latents
    torch.testing.assert_close(found["latents_max"], torch.cat([top.amax((2, 3)), bottom.amax((2, 3))], 1))
    torch.testing.assert_close(found["latents_avg"], torch.cat([top.mean((2, 3)), bottom.mean((2, 3))], 1))


def test_statistics_equal_a_plain_computation():
    arrays, labels = outputs()
    found = statistics_of(arrays, labels)
    right = arrays["logits"].argmax(1) == labels
    assert found["used"].tolist() == [int((right & (labels == k)).sum()) for k in range(3)]
    assert found["labelled"].tolist() == np.bincount(labels).tolist()
    vectors = np.hstack([arrays["logits"], arrays["latents_avg"]]).astype(np.float64)
    for k in range(3):
        own = vectors[right & (labels == k)]
        mean = own.mean(0)
        np.testing.assert_allclose(found["latents_avg.means"][k], mean, atol=1e-12)
        euclidean, cosine = (cdist(own, mean[None], kind)[:, 0] for kind in ("euclidean", "cosine"))
        for name, distance in (("euclidean", euclidean), ("cosine", cosine), ("eucos", euclidean / 200 + cosine)):
            row = found[f"latents_avg.{name}"][k]
            np.testing.assert_allclose(row[: len(own)], np.sort(distance)[::-1], atol=1e-12)
            assert np.isnan(row[len(own) :]).all()
        largest = arrays["logits"].astype(np.float64).max(1)[right & (labels == k)]
        np.testing.assert_allclose([found["max_logit_mean"][k], found["max_logit_std"][k]], [largest.mean(), largest.std()])


def test_a_class_without_a_right_image_is_named_when_it_is_fitted():
    arrays, labels = outputs()
    arrays["logits"][labels == 1, 1] = -50
    found = statistics_of(arrays, labels)
    assert found["used"][1] == 0 and np.isnan(found["logits.means"][1]).all() and np.isnan(found["max_logit_mean"][1])
    count = int((labels == 1).sum())
    with pytest.raises(UserError, match=rf"tail_size 20 is larger than class 1 'b' \(0 correctly classified of {count}\)"):
        fit(found, variant(), NAMES)
    with pytest.raises(UserError, match="class 1"):
        zscore(arrays["logits"], found["max_logit_mean"], found["max_logit_std"])
    everything = statistics_of(arrays, labels, correct_only=False)
    assert everything["used"].tolist() == np.bincount(labels).tolist()


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(60)))
def test_statistics_do_not_depend_on_the_order_of_the_images(order):
    arrays, labels = outputs(60)
    plain, shuffled = statistics_of(arrays, labels), statistics_of({k: v[order] for k, v in arrays.items()}, labels[order])
    for name, value in plain.items():
        np.testing.assert_allclose(shuffled[name], value, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("tail", [2, 20, 60])
def test_openmax_from_statistics_equals_a_fit_on_the_images(distance, tail):
    arrays, labels = outputs()
    one = variant(tail_size=tail, distance=distance)
    stored = fit(statistics_of(arrays, labels), one, NAMES)
    vectors = one.vectors(arrays)
    fitted = OpenMax(**one.settings).fit(vectors, labels, vectors[:, :3])
    np.testing.assert_array_equal(stored.probabilities(vectors), fitted.probabilities(vectors))


def test_tails_beyond_the_stored_distances_want_the_training_images(monkeypatch):
    arrays, labels = outputs()
    full = statistics_of(arrays, labels)
    monkeypatch.setattr(crosr_features, "KEPT_DISTANCES", 10)
    stored = statistics_of(arrays, labels)
    assert stored_tail(stored) == 10 and stored_tail(full) > 60
    assert needs_training_images(stored, [10, 50]) and not needs_training_images(stored, [10])
    assert not needs_training_images(stored, [5000])  # no image helps: the class is named instead
    with pytest.raises(UserError, match="larger than the 10 distances per class that the checkpoint holds"):
        fit(stored, variant(tail_size=50), NAMES)
    scored = arrays | {"target": labels, "split": np.full(len(labels), 2)}
    again = statistics_for(stored, scored, [50])
    np.testing.assert_array_equal(again["logits.euclidean"][:, :50], full["logits.euclidean"][:, :50])
    assert statistics_for(stored, scored | {"split": np.zeros(len(labels))}, [50]) is stored


@pytest.mark.parametrize("classes", [6, 10, 100])
def test_statistics_add_less_than_two_megabytes(classes):
    per_class = 3 * 3 * kept_distances(classes) + classes + 2 * (classes + 96)
    assert 8 * classes * per_class < 2e6
    assert kept_distances(classes) == (1000 if classes <= 10 else 208)


def test_latents_count_where_they_differ_and_not_where_they_are_dead():
    arrays, labels = outputs()
    generator = np.random.default_rng(3)
    query = {"logits": generator.normal(size=(50, 3)), "latents_max": generator.normal(size=(50, 8)) + 4}
    for distance in ("euclidean", "eucos"):
        on_both, on_logits = (variant(name, distance=distance) for name in ("logits+latents", "logits"))
        live = statistics_of(arrays, labels)
        with_latents = fit(live, on_both, NAMES).unknown_probability(on_both.vectors(query))
        without = fit(live, on_logits, NAMES).unknown_probability(on_logits.vectors(query))
        assert np.abs(with_latents - without).max() > 0.1
    dead = {**arrays, "latents_max": np.zeros_like(arrays["latents_max"])}
    query["latents_max"] = np.zeros((50, 8))
    found = statistics_of(dead, labels)
    for distance in DISTANCES:
        on_both, on_logits = (variant(name, distance=distance) for name in ("logits+latents", "logits"))
        with_latents = fit(found, on_both, NAMES).probabilities(on_both.vectors(query))
        np.testing.assert_allclose(with_latents, fit(found, on_logits, NAMES).probabilities(query["logits"]), atol=1e-9)
    # Constant but not zero: nothing changes for Euclidean distances.
    dead["latents_max"] += 7
    query["latents_max"] += 7
    one = variant()
    with_latents = fit(statistics_of(dead, labels), one, NAMES).probabilities(one.vectors(query))
    without = fit(found, variant("logits"), NAMES).probabilities(query["logits"])
    np.testing.assert_allclose(with_latents, without, atol=1e-9)


def test_a_run_without_latents_cannot_be_asked_for_them():
    arrays, labels = outputs()
    found = statistics_of({"logits": arrays["logits"]}, labels)
    assert fit(found, variant("logits"), NAMES).probabilities(arrays["logits"]).shape == (300, 4)
    with pytest.raises(UserError, match="no latents; --features logits"):
        fit(found, variant(), NAMES)


@pytest.mark.parametrize("order", ["before", "after"])
def test_probabilities_follow_the_formula(order):
    """Plain loops over images and classes, with the w-scores of the fitted tails."""
    arrays, labels = outputs()
    one = variant(softmax=order, alpha=2, tail_size=40)
    model = fit(statistics_of(arrays, labels), one, NAMES)
    vectors = one.vectors(outputs(20, seed=5)[0])
    w, found = model.tail_probabilities(vectors), model.probabilities(vectors)
    for row, (v, weights) in enumerate(zip(vectors, w)):
        y = v[:3]
        activation = np.exp(y) / np.exp(y).sum() if order == "before" else y
        ranked, result, unknown = np.argsort(-y), activation.copy(), 0.0
        for rank, k in enumerate(ranked[:2], start=1):
            r = (2 + 1 - rank) / 2
            result[k] = activation[k] * (1 - r * weights[k])
            unknown += max(activation[k] * r * weights[k], 0)
        result = np.append(result, unknown)
        if order == "after":
            result = np.exp(result) / np.exp(result).sum()
        np.testing.assert_allclose(found[row], result, atol=1e-12)


@pytest.mark.parametrize(("tail", "alpha"), [(20, 10), (35, 10), (20, 5)])
def test_golden_latents_through_the_statistics(golden, tail, alpha):
    """The released functions on a synthetic [y, z]; they calibrate on every image that they are given."""
    stored = golden("openmax_latent_golden.npz")
    split = {"logits": stored["train_av"][:, :10], "latents_max": stored["train_av"][:, 10:]}
    statistics = statistics_of(split, stored["train_labels"].astype(np.int64), correct_only=False)
    np.testing.assert_allclose(statistics["latents_max.means"], stored["mav"], atol=1e-12)
    query = np.concatenate([stored["test_av"], stored["outlier_av"]])
    query = {"logits": query[:, :10], "latents_max": query[:, 10:]}
    for order, tolerance in (("before", 5e-6), ("after", 5e-5)):
        one = variant(tail_size=tail, alpha=alpha, softmax=order)
        model = fit(statistics, one, [str(k) for k in range(10)])
        if alpha == 10:
            found = model.tail_probabilities(one.vectors(query))
            np.testing.assert_allclose(found, stored[f"t{tail}_w"], atol=5e-6)
        found = model.probabilities(one.vectors(query))
        np.testing.assert_allclose(found, stored[f"t{tail}_a{alpha}_{order}"], atol=tolerance)


def test_zscore_sides_and_classes():
    logits = np.array([[5.0, 1.0], [1.0, 9.0], [2.0, 3.0]])
    mean, std = np.array([4.0, 6.0]), np.array([0.5, 2.0])
    np.testing.assert_allclose(zscore(logits, mean, std), [2, 1.5, 1.5])
    np.testing.assert_allclose(zscore(logits, mean, std, two_sided=False), [-2, -1.5, 1.5])
    np.testing.assert_allclose(zscore(logits, mean, std, classes=[0, 0, 0], two_sided=False), [-2, -10, 2])


def test_training_statistics_hold_every_set_and_leave_the_mode(trained):
    from common.checkpoints import load_weights

    tensors, header = load_weights(trained, paper="crosr")
    stored = crosr_features.stored_statistics(tensors)
    sets = {f"{name}.{kind}" for name in ("logits", "latents_max", "latents_avg") for kind in (*DISTANCES, "means")}
    assert set(stored) == sets | {"used", "labelled", "max_logit_mean", "max_logit_std"}
    assert all(value.dtype == np.float64 for name, value in stored.items() if name not in ("used", "labelled"))
    assert stored["latents_max.means"].shape == (6, 6 + 64)

    from types import SimpleNamespace

    from common.devices import Devices
    from crosr.model import DHRNet

    model = DHRNet(**header["model"]).train()
    devices = Devices(SimpleNamespace(device="cpu", gpu=None, precision="fp32", compile=False))
    images = SimpleNamespace(pixels=np.zeros((12, 1, 8, 8), np.uint8), labels=np.arange(12) % 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = crosr_features.training_statistics(model, images, devices, batch_size=5)
    assert model.training and all(name.startswith("statistics.") for name in again)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Part:
    def __init__(self, pixels):
        self.pixels, self.labels = pixels, np.zeros(len(pixels), np.int64)

    def __len__(self):
        return len(self.pixels)


def test_feature_file_computes_each_set_once(tmp_path, capsys):
    generator, calls = np.random.default_rng(0), []

    def function(images):
        calls.append(len(images))
        return {"logits": images.float().mean((2, 3)), "latents_max": images.float().amax((2, 3))}

    pixels = [generator.integers(0, 256, (n, 2, 4, 4), dtype=np.uint8) for n in (5, 7, 6)]
    parts = [("test", 0, Part(pixels[0])), ("noise", 0, Part(pixels[1]))]
    path, cpu = tmp_path / "features_x.npz", torch.device("cpu")
    first, digests = FeatureFile(path, "weights").outputs(function, parts, cpu)
    assert calls == [5, 7] and digests == [pixel_digest(p) for p in pixels[:2]]
    again, _ = FeatureFile(path, "weights").outputs(function, parts, cpu)
    assert calls == [5, 7] and "all taken from features_x.npz" in capsys.readouterr().out
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)
    # A further set: only that one is computed, and the others stay in the file.
    FeatureFile(path, "weights").outputs(function, [*parts[:1], ("letters", 0, Part(pixels[2]))], cpu)
    assert calls == [5, 7, 6]
    FeatureFile(path, "weights").outputs(function, parts, cpu)
    assert calls == [5, 7, 6]
    # Other images under the same name are other images; other weights make the whole file stale.
    FeatureFile(path, "weights").outputs(function, [("test", 0, Part(pixels[0] ^ 1))], cpu)
    assert calls == [5, 7, 6, 5]
    FeatureFile(path, "other weights").outputs(function, parts[:1], cpu)
    assert calls == [5, 7, 6, 5, 5] and "other weights or arithmetic" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:100])
    FeatureFile(path, "other weights").outputs(function, parts[:1], cpu)
    assert len(calls) == 6 and "not readable" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["features_x.npz"]


def test_pixel_digest_sees_shape_type_and_content():
    pixels = np.zeros((2, 1, 4, 4), np.uint8)
    other = [pixels.reshape(1, 2, 4, 4), pixels.astype(np.float32), pixels + 1, pixels[:1]]
    assert len({pixel_digest(p) for p in [pixels, *other]}) == 5
    assert pixel_digest(pixels.transpose(0, 1, 3, 2)) == pixel_digest(pixels)
