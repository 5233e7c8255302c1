"""OpenMax against recorded runs of the original, pytorch-ood, a plain loop, and for bad input."""

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import common.openmax
from common.errors import UserError
from common.metrics import aupr_unknown, auroc, class_report, decide_argmax, fpr95_unknown_positive
from common.openmax import ALPHA_RULES, CLIPS, DISTANCES, SOFTMAX, OpenMax

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "crosr"
unhurried = settings(deadline=None)  # the machine may be shared


def made(samples=600, classes=4, seed=0, gap=5.0):
    generator = np.random.default_rng(seed)
    labels = np.arange(samples) % classes
    logits = generator.normal(size=(samples, classes))
    logits[np.arange(samples), labels] += generator.gamma(8, gap / 8, samples)
    return logits, labels


def golden(name):
    if not (GOLDEN / name).exists():
        pytest.skip(f"{name} may not be committed; it lies in ../shared/golden/crosr")
    with np.load(GOLDEN / name) as stored:
        return {key: stored[key] for key in stored.files}


@pytest.fixture(scope="module")
def cifar10():
    stored = golden("crosr_logits.npz")
    query = np.concatenate([stored["test_logits"], stored["outlier_logits"]]).astype(float)
    target = np.r_[stored["test_labels"].astype(int), np.full(10000, -1)]
    return stored["train_logits"].astype(float), stored["train_labels"].astype(int), query, target


def recorded_metrics(probabilities, target):
    """The eleven values of the recorded runs: rates, then counts, then sums."""
    decision, score = decide_argmax(probabilities), probabilities[:, -1]
    report = class_report(target, decision, 10)
    known = target >= 0
    values = [auroc(target, score), aupr_unknown(target, score), fpr95_unknown_positive(target, score)]
    values += [np.nan_to_num(report.f1[-1]), report.accuracy, report.macro[2]]
    values += [np.sum(decision[known] < 0), np.sum(decision[~known] < 0)]
    values += [np.mean(probabilities[known, :-1].argmax(axis=1) == target[known])]
    return np.array([*values, score[known].sum(), score[~known].sum()])


def plain_loop(model, features, logits):
    """Steps 1-4 of the algorithm for one sample at a time, written from the paper's box."""
    result = []
    for vector, z in zip(features, logits):
        v = np.exp(z - z.max()) / np.exp(z - z.max()).sum() if model.softmax == "before" else z.copy()
        revised, unknown = v.copy(), 0.0
        for rank, j in enumerate(np.argsort(-z, kind="stable")[: model.alpha], start=1):
            mean = model.means[j]
            euclidean = np.sqrt(((vector - mean) ** 2).sum())
            cosine = 1 - vector @ mean / np.sqrt((vector @ vector) * (mean @ mean))
            d = {"euclidean": euclidean, "cosine": cosine, "eucos": euclidean / 200 + cosine}[model.distance]
            x = d - model.tails.small[j] + model.translation
            w = 1 - np.exp(-((x / model.tails.scale[j]) ** model.tails.shape[j])) if x > 0 else 0.0
            a = (model.alpha + (1 if model.alpha_rule == "code" else 0) - rank) / model.alpha
            revised[j] = v[j] * (1 - a * w)
            unknown += max(v[j] * a * w, 0.0) if model.clip == "zero" else v[j] * a * w
        revised = np.append(revised, unknown)
        result.append(revised if model.softmax == "before" else np.exp(revised) / np.exp(revised).sum())
    return np.array(result)


def test_examples_in_docstrings():
    result = doctest.testmod(common.openmax)
    assert result.failed == 0 and result.attempted > 0


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("alpha_rule", ALPHA_RULES)
@pytest.mark.parametrize("softmax", SOFTMAX)
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(
    ("classes", "alpha"), [(4, 4), (4, 2), (12, 3)]
)  # 3 of 12 takes the route for few ranks
def test_equal_to_a_plain_loop(distance, alpha_rule, softmax, clip, classes, alpha):
    logits, labels = made(480, classes)
    features = np.c_[logits, np.random.default_rng(1).normal(size=(480, 3))]
    model = OpenMax(15, alpha, distance, alpha_rule, softmax=softmax, clip=clip).fit(features, labels, logits)
    query = np.random.default_rng(2).normal(scale=3, size=(40, classes + 3))
    expected = plain_loop(model, query, query[:, :classes])
    np.testing.assert_allclose(model.probabilities(query), expected, atol=1e-12)


@pytest.mark.parametrize("tail", [20, 100, 1000])
def test_golden_parameters_and_probabilities(cifar10, tail):
    stored = golden("openmax_golden.npz")
    train, labels, query, target = cifar10
    rows = stored["subset_rows_in_20000"]
    for order, tolerance in (("before", 5e-6), ("after", 5e-5)):
        model = OpenMax(tail, 10, "euclidean", softmax=order, clip="zero").fit(train, labels)
        np.testing.assert_allclose(model.means, stored["f64_mav"], atol=1e-12)
        np.testing.assert_allclose(model.tails.scale, stored[f"f64_t{tail}_weibull"][:, 0], rtol=1e-5)
        np.testing.assert_allclose(model.tails.shape, stored[f"f64_t{tail}_weibull"][:, 1], rtol=1e-5)
        np.testing.assert_allclose(model.tails.small, stored[f"f64_t{tail}_weibull"][:, 4], atol=1e-12)
        np.testing.assert_allclose(model.tail_probabilities(query[rows]), stored[f"f64_t{tail}_w"], atol=5e-6)
        found = model.probabilities(query)
        np.testing.assert_allclose(found[rows], stored[f"f64_t{tail}_a10_{order}"], atol=tolerance)
        np.testing.assert_allclose(found[rows], stored[f"f32_t{tail}_a10_{order}"], atol=2 * tolerance + 1e-5)
        difference = np.abs(recorded_metrics(found, target) - stored[f"f64_t{tail}_a10_{order}_metrics"])
        assert difference[[0, 1, 2, 3, 4, 5, 8]].max() < 1e-6
        assert difference[6:8].max() <= 1 and difference[9:].max() < 0.2


@pytest.mark.parametrize(
    ("key", "distance"), [("euclid", "euclidean"), ("eucos", "eucos"), ("cosine", "cosine")]
)
def test_golden_distances(cifar10, key, distance):
    stored = golden("own_formula_distance_metrics.npz")
    train, labels, query, target = cifar10
    for tail, order in ((tail, order) for tail in (20, 100, 1000) for order in SOFTMAX):
        if f"{key}_t{tail}_{order}" not in stored:
            continue
        model = OpenMax(tail, 10, distance, softmax=order, clip="zero").fit(train, labels)
        found = recorded_metrics(model.probabilities(query), target)
        np.testing.assert_allclose(found, stored[f"{key}_t{tail}_{order}"], atol=1e-9)


@pytest.mark.parametrize(("key", "correct_only"), [("correct_only", True), ("all_labelled", False)])
def test_golden_filter_of_correct_samples(cifar10, key, correct_only):
    stored = golden("openmax_filter_golden.npz")
    query, target = cifar10[2][:10000], cifar10[3][:10000]
    for tail in (20, 100):
        model = OpenMax(tail, 10, "euclidean", correct_only=correct_only).fit(query, target)
        np.testing.assert_allclose(model.means, stored[f"{key}_mav"], atol=1e-12)
        for column, found in ((0, model.tails.scale), (1, model.tails.shape), (4, model.tails.small)):
            np.testing.assert_allclose(found, stored[f"{key}_t{tail}_weibull"][:, column], rtol=1e-5)


@pytest.mark.parametrize(("tail", "alpha"), [(20, 10), (35, 10), (20, 5)])
@pytest.mark.parametrize("order", SOFTMAX)
def test_golden_latent_columns(tail, alpha, order):
    stored = golden("openmax_latent_golden.npz")
    vectors, labels = stored["train_av"].astype(float), stored["train_labels"].astype(int)
    query = np.concatenate([stored["test_av"], stored["outlier_av"]]).astype(float)
    model = OpenMax(tail, alpha, "euclidean", softmax=order, clip="zero", correct_only=False)
    model.fit(vectors, labels, logits=vectors[:, :10])
    np.testing.assert_allclose(model.means, stored["mav"], atol=1e-12)
    np.testing.assert_allclose(model.tail_probabilities(query), stored[f"t{tail}_w"], atol=5e-6)
    tolerance = 5e-6 if order == "before" else 5e-5
    np.testing.assert_allclose(
        model.probabilities(query), stored[f"t{tail}_a{alpha}_{order}"], atol=tolerance
    )


def test_equal_to_pytorch_ood():
    """It takes all labelled samples, the Euclidean distance and translation 10000, and does not clip."""
    torch = pytest.importorskip("torch")
    detector = pytest.importorskip("pytorch_ood.detector")
    logits, labels = made(600, 6)
    query = np.random.default_rng(4).normal(scale=3, size=(100, 6))
    peer = detector.OpenMax(None, tailsize=25, alpha=6, euclid_weight=1.0)
    peer.fit_logits(torch.tensor(logits), torch.tensor(labels))
    ours = OpenMax(25, 6, "euclidean", translation=10000, correct_only=False).fit(logits, labels)
    expected = peer.predict_logits(torch.tensor(query)).numpy()
    np.testing.assert_allclose(ours.unknown_probability(query), expected, atol=1e-5)


def test_backend_libmr():
    pytest.importorskip("libmr", reason="libmr is optional and not installed")
    logits, labels = made()
    own, library = (OpenMax(20, 4, backend=backend).fit(logits, labels) for backend in ("newton", "libmr"))
    np.testing.assert_allclose(own.tails.shape, library.tails.shape, rtol=1e-5)
    np.testing.assert_allclose(own.probabilities(logits), library.probabilities(logits), atol=5e-5)


@unhurried
@given(arrays(np.float64, (6, 4), elements=st.floats(-700, 700)), st.sampled_from(SOFTMAX), st.integers(1, 4))
def test_probabilities_sum_to_one(query, softmax, alpha):
    logits, labels = made()
    found = OpenMax(20, alpha, softmax=softmax).fit(logits, labels).probabilities(query)
    assert np.isfinite(found).all() and np.all(found >= 0)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)


@unhurried
@given(st.lists(st.floats(0, 60), min_size=2, max_size=10), st.integers(0, 3))
def test_larger_distance_never_lowers_w(steps, label):
    logits, labels = made()
    model = OpenMax(20, 4, "euclidean").fit(logits, labels)
    away = model.means[label] + np.sort(steps)[:, None] * np.array([0.6, 0.8, 0.0, 0.0])
    assert np.all(np.diff(model.tail_probabilities(away)[:, label]) >= -1e-14)


@unhurried
@given(st.randoms())
def test_order_of_samples_and_classes_does_not_matter(random):
    logits, labels = made()
    order, classes = list(range(len(labels))), list(range(4))
    random.shuffle(order)
    random.shuffle(classes)
    query = np.random.default_rng(5).normal(scale=3, size=(20, 4))
    plain = OpenMax(20, 4).fit(logits, labels).probabilities(query)
    shuffled = OpenMax(20, 4).fit(logits[order], labels[order]).probabilities(query)
    np.testing.assert_allclose(shuffled, plain, atol=1e-9)
    place = np.argsort(classes)  # class c becomes column place[c]
    renamed = OpenMax(20, 4).fit(logits[:, classes], place[labels]).probabilities(query[:, classes])
    np.testing.assert_allclose(renamed, plain[:, [*classes, 4]], atol=1e-9)


def test_clip_matters_for_negative_logits_only():
    logits, labels = made()
    none, zero = (OpenMax(20, 4, clip=clip).fit(logits, labels) for clip in CLIPS)
    positive, negative = np.full((1, 4), 2.0), np.array([[2.0, -3.0, -3.0, -3.0]])
    assert zero.probabilities(positive).tolist() == none.probabilities(positive).tolist()
    assert zero.unknown_probability(negative) > none.unknown_probability(negative)


def test_predict_and_unknown_last():
    logits, labels = made()
    model = OpenMax(20, 4, "euclidean").fit(logits, labels)
    near, far = model.means[2:3], np.full((1, 4), 30.0)
    assert model.predict(np.vstack([near, far])).tolist() == [2, -1]
    assert model.probabilities(far).argmax() == 4
    top = model.probabilities(near).max()
    assert model.predict(near, epsilon=top + 1e-9).tolist() == [-1]


def test_alpha_above_the_classes_is_reduced_with_a_warning():
    logits, labels = made()
    with pytest.warns(UserWarning, match="alpha 10 exceeds the 4 classes; 4 is used"):
        clamped = OpenMax(20, 10).fit(logits, labels)
    expected = OpenMax(20, 4).fit(logits, labels)
    assert clamped.probabilities(logits).tolist() == expected.probabilities(logits).tolist()


def test_saved_state_gives_equal_output():
    logits, labels = made(classes=6)
    features = np.c_[logits, logits[:, ::-1] * 0.3]
    settings_given = {"alpha_rule": "paper", "softmax": "before", "translation": 10, "clip": "zero"}
    model = OpenMax(20, 3, "cosine", **settings_given).fit(features, labels, logits)
    state = model.state_dict()
    assert {name: array.dtype for name, array in state.items()} == dict.fromkeys(state, np.dtype(np.float64))
    loaded = OpenMax.from_state(state, json.loads(json.dumps(model.settings)))
    assert loaded.settings == model.settings
    assert loaded.probabilities(features).tolist() == model.probabilities(features).tolist()


def test_many_classes():
    generator = np.random.default_rng(0)
    labels = np.arange(3000) % 300
    logits = generator.normal(size=(3000, 300))
    logits[np.arange(3000), labels] += 8
    model = OpenMax(5, 10).fit(logits, labels)
    found = model.probabilities(logits[:50])
    np.testing.assert_allclose(found, plain_loop(model, logits[:50], logits[:50]), atol=1e-12)


def test_one_class_and_zero_vectors():
    logits = np.random.default_rng(0).normal(5, 1, size=(50, 1))
    model = OpenMax(20, 1, "euclidean").fit(logits, np.zeros(50, dtype=int))
    assert model.probabilities([[5.0], [500.0]])[:, 1].round(3).tolist() == [
        pytest.approx(0.007, abs=0.01),
        1.0,
    ]
    logits, labels = made()
    assert np.isfinite(OpenMax(20, 4).fit(logits, labels).probabilities(np.zeros((1, 4)))).all()
    assert OpenMax(20, 4).fit(logits, labels).probabilities(np.empty((0, 4))).shape == (0, 5)


def test_separate_logits_are_asked_for():
    logits, labels = made()
    features = np.random.default_rng(1).normal(size=(600, 7))
    model = OpenMax(20, 4).fit(features, labels, logits)
    assert model.probabilities(features, logits).shape == (600, 5)
    with pytest.raises(UserError, match="pass logits as well"):
        model.probabilities(features)
    with pytest.raises(UserError, match="got logits of 3"):
        model.probabilities(features, logits[:, :3])


def test_errors_name_the_class():
    logits, labels = made()
    names = ("plane", "car", "bird", "cat")
    with pytest.raises(
        UserError, match=r"larger than class 0 'plane' \(\d+ correctly classified of 150\), class 1"
    ):
        OpenMax(200, 4).fit(logits, labels, class_names=names)
    few = labels != 3
    with pytest.raises(
        UserError, match=r"larger than class 3 'cat' \(0 correctly classified of 0\); lower it"
    ):
        OpenMax(20, 4).fit(logits[few], labels[few], class_names=names)
    constant = np.where((labels == 2)[:, None], np.array([0.0, 0.0, 9.0, 0.0]), logits)
    with pytest.raises(UserError, match=r"all values of the tail are equal.*class 2 'bird'"):
        OpenMax(20, 4).fit(constant, labels, class_names=names)


def test_bad_input():
    logits, labels = made()
    broken = logits.copy()
    broken[7, 1] = np.nan
    model = OpenMax(20, 4).fit(logits, labels)
    for call, message in (
        (
            lambda: OpenMax(20, 4).fit(broken, labels),
            r"features: 1 rows hold NaN or infinity \(first: row 7\)",
        ),
        (lambda: model.probabilities(broken), "NaN or infinity"),
        (
            lambda: OpenMax(20, 4).fit(logits, labels + 1),
            r"labels must lie in 0\.\.3 \(known classes only\), got 1\.\.4",
        ),
        (lambda: OpenMax(20, 4).fit(logits, labels - 1), r"got -1\.\.2"),
        (lambda: OpenMax(20, 4).fit(logits, labels[:-1]), "labels must be 600"),
        (lambda: OpenMax(20, 4).fit(logits, labels * 1.0), "whole numbers"),
        (lambda: OpenMax(20, 4).fit(logits[0], labels), "shape"),
        (lambda: OpenMax(20, 4).fit(logits, labels, class_names=["a"]), "1 class names"),
        (lambda: model.probabilities(logits[:, :3]), "fitted with 4 features, got 3"),
        (lambda: OpenMax(20, 4).probabilities(logits), "not fitted"),
        (lambda: OpenMax(distance="euclid"), "distance must be one of .* nearest: euclidean"),
        (lambda: OpenMax(tail_size=1), "tail_size must be at least 2"),
        (lambda: OpenMax(20, 4, translation=0).fit(logits, labels), "translation must be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            call()
