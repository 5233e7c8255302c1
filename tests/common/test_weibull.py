"""The Weibull fit against libmr's recorded results, a 40-digit reference, SciPy, and for degenerate input."""

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import common.weibull
from common.errors import UserError
from common.weibull import fit_high, fit_low, fit_tails, parameter_intervals

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
REDUCED = json.loads((Path(__file__).resolve().parents[1] / "data" / "libmr_reference.json").read_text())
CASES = {case["name"]: case for case in REDUCED["cases"]}
PRIMARY = np.random.default_rng(0).weibull(1.5, 50) * 3
# libmr accepts these silently; the policy here is an error (specification of OpenMax, section 5).
REFUSED_THOUGH_VALID = {"near_constant_1e-15", "tail_0", "tail_negative", "one_nan_in_50", "one_neg_inf"}
unhurried = settings(deadline=None)  # the machine may be shared


def numbers(values) -> np.ndarray:
    return np.array([float(value) for value in values])


def test_examples_in_docstrings():
    assert doctest.testmod(common.weibull).failed == 0


@pytest.mark.parametrize("name", CASES)
def test_every_case_of_libmr(name):
    case = CASES[name]
    fit = fit_low if case["low"] else fit_high
    arguments = (numbers(REDUCED["samples"][case["sample"]]), case["tail_size"])
    settings = {"translation": case["translation"], "drop": case["drop"]}
    if not case["valid"] or name in REFUSED_THOUGH_VALID:
        with pytest.raises(UserError, match="weibull: "):
            fit(*arguments, **settings)
        return
    fitted = fit(*arguments, **settings)
    assert fitted.scale[0] == pytest.approx(case["scale"], rel=1e-5)
    assert fitted.shape[0] == pytest.approx(case["shape"], rel=1e-5)
    assert fitted.small[0] == pytest.approx(case["small"], rel=1e-12, abs=1e-12)
    assert fitted.cdf(numbers(case["query"])[:, None])[:, 0] == pytest.approx(numbers(case["w"]), abs=5e-6)
    for probability, value in case["inverse"].items():
        assert fitted.inverse(float(probability))[0] == pytest.approx(value, rel=1e-5, abs=1e-5)


def test_the_full_reference_table():
    file = SHARED / "specs" / "libmr_reference.json"
    if not file.exists():
        pytest.skip("the full table lies in ../shared/specs; its reduced copy in tests/data is checked above")
    compared = 0
    for case in json.loads(file.read_text())["cases"]:
        expected = case["expected"]
        if not expected["is_valid"] or case["name"] in REFUSED_THOUGH_VALID:
            continue
        fit = fit_low if case["method"] == "fit_low" else fit_high
        settings = {"translation": case["ctor"].get("translate_amount", 1)}
        settings["drop"] = case["ctor"].get("scores_to_drop", 0)
        fitted = fit(numbers(case["data"]), case["fit_size"], **settings)
        found = [fitted.scale[0], fitted.shape[0]]
        assert found == pytest.approx([expected["params"]["scale"], expected["params"]["shape"]], rel=1e-5)
        query = numbers(case["query"])  # holds NaN and both infinities
        recorded = numbers(expected["w_score"])
        np.testing.assert_allclose(fitted.cdf(query[:, None])[:, 0], recorded, atol=5e-6, rtol=0)
        if case["name"] not in ("scale_1e-6", "near_constant_1e-9"):  # densities of 1e8 and more
            density, recorded = fitted.pdf(query[:, None])[:, 0], numbers(expected["pdf"])
            finite = np.isfinite(recorded)  # libmr gives NaN at infinity, where the density is 0
            np.testing.assert_allclose(density[finite], recorded[finite], atol=2e-5, rtol=0)
        compared += 1
    assert compared == 53


def test_small_derived_numbers_of_the_evt_study():
    """libmr and the exact optimum of one real tail (20 largest distances of a CIFAR-10 class)."""
    file = SHARED / "golden" / "crosr" / "evt_study.npz"
    if not file.exists():
        pytest.skip("the tails are distances of the authors' logits; they lie in ../shared/golden/crosr")
    with np.load(file) as stored:
        column = {name: index for index, name in enumerate(stored["columns"])}
        tails = -np.sort(-stored["tail_dist_100"], axis=1)
        for translation in (1, 10000):
            for size in (20, 100):
                expected = stored[f"T{translation}_tail{size}"]
                fitted = fit_tails(tails[:, :size], translation=translation)
                exact = 1e-14 if translation == 1 else 1e-11  # x near 10000 has 4 digits less in x - small
                for name, found in (("scale", fitted.scale), ("shape", fitted.shape)):
                    np.testing.assert_allclose(found, expected[:, column[f"exact_{name}"]], rtol=exact)
                    np.testing.assert_allclose(found, expected[:, column[f"libmr_{name}"]], rtol=1e-5)


def test_backend_libmr_reproduces_the_library():
    pytest.importorskip("libmr", reason="libmr is optional and not installed")
    found = fit_high(PRIMARY, 20, backend="libmr")
    assert found.scale[0] == 3.0536312096531386 and found.shape[0] == 1.8295282846652294
    own = fit_high(PRIMARY, 20)
    assert own.cdf(PRIMARY[:, None]) == pytest.approx(found.cdf(PRIMARY[:, None]), abs=5e-6)
    with pytest.raises(UserError, match="whole-numbered"):
        fit_high(PRIMARY, 20, translation=0.5, backend="libmr")


def test_equal_to_scipy_with_fixed_location():
    tail = np.sort(PRIMARY)[-20:]
    shape, _, scale = stats.weibull_min.fit(tail, floc=tail[0] - 1)
    fitted = fit_tails([tail])
    assert [fitted.scale[0], fitted.shape[0]] == pytest.approx([scale, shape], rel=1e-4)
    moved = stats.weibull_min(fitted.shape[0], loc=tail[0] - 1, scale=fitted.scale[0])
    values = np.linspace(0, 12, 40)
    assert fitted.cdf(values[:, None])[:, 0] == pytest.approx(moved.cdf(values), abs=1e-14)
    assert fitted.pdf(values[:, None])[:, 0] == pytest.approx(moved.pdf(values), abs=1e-14)


def test_the_optimum_has_no_better_neighbour():
    tail = np.sort(PRIMARY)[-20:]
    fitted = fit_tails([tail])
    moved = tail - tail.min() + 1

    def likelihood(scale, shape):
        return stats.weibull_min(shape, scale=scale).logpdf(moved).sum()

    best = likelihood(fitted.scale[0], fitted.shape[0])
    for factor in (0.999, 1.001):
        assert likelihood(fitted.scale[0] * factor, fitted.shape[0]) < best
        assert likelihood(fitted.scale[0], fitted.shape[0] * factor) < best


def test_rows_and_ragged_tails_are_independent():
    generator = np.random.default_rng(3)
    tails = generator.gamma(3.0, size=(6, 40))
    counts = np.array([40, 20, 5, 2, 33, 20])
    padded = np.where(np.arange(40) < counts[:, None], tails, np.nan)  # what is not used may be anything
    fitted = fit_tails(padded, counts)
    for row, count in enumerate(counts):
        alone = fit_tails(tails[row : row + 1, :count])
        assert fitted.scale[row] == pytest.approx(alone.scale[0], rel=1e-13)
        assert fitted.shape[row] == pytest.approx(alone.shape[0], rel=1e-13)
        assert fitted.small[row] == alone.small[0]


@unhurried
@given(st.permutations(range(20)))
def test_order_of_a_tail_does_not_matter(order):
    tail = np.sort(PRIMARY)[-20:]
    assert fit_tails([tail[order]]).shape[0] == pytest.approx(fit_tails([tail]).shape[0], rel=1e-12)


@unhurried
@given(st.lists(st.floats(-5, 40), min_size=2, max_size=20))
def test_larger_distance_never_lowers_w(values):
    w = fit_high(PRIMARY, 20).cdf(np.sort(values)[:, None])[:, 0]
    assert np.all(np.diff(w) >= 0) and np.all((w >= 0) & (w <= 1))


@unhurried
@given(st.floats(0, 1, exclude_max=True))
def test_inverse_undoes_cdf(probability):
    fitted = fit_high(PRIMARY, 20)
    assert fitted.cdf([fitted.inverse(probability)])[0, 0] == pytest.approx(probability, abs=1e-12)


def test_edges_of_the_distribution():
    fitted = fit_high(PRIMARY, 20)
    edges = np.array([-np.inf, fitted.small[0] - 1, np.inf, np.nan])[:, None]
    assert fitted.cdf(edges)[:3, 0].tolist() == [0.0, 0.0, 1.0] and np.isnan(fitted.cdf(edges)[3, 0])
    assert fitted.pdf(edges)[:3, 0].tolist() == [0.0, 0.0, 0.0]
    near = fit_tails([fitted.small[0] + np.arange(5.0)]).cdf([[fitted.small[0] - 1 + 1e-9]])
    assert 0 < near[0, 0] < 1e-8  # expm1 keeps what 1 - exp would round to 0


def test_translation_changes_the_model_as_recorded():
    for translation, expected in (
        (1, [0.102, 0.122, 0.344, 0.598, 0.965]),
        (10, [0.210, 0.221, 0.352, 0.532, 0.958]),
        (100, [0.242, 0.252, 0.362, 0.516, 0.949]),
        (10000, [0.246, 0.256, 0.363, 0.514, 0.947]),
    ):
        fitted = fit_high(PRIMARY, 20, translation=translation)
        values = np.array([3.0, fitted.small[0], 4, 5, 8])[:, None]
        assert fitted.cdf(values)[:, 0] == pytest.approx(expected, abs=6e-4)


def test_confidence_intervals():
    tail = np.sort(PRIMARY)[-20:]
    scale, shape = parameter_intervals(tail, fit_tails([tail]))
    assert scale == pytest.approx([2.3676, 3.9384], abs=1e-4)
    assert shape == pytest.approx([1.3368, 2.5039], abs=1e-4)
    # libmr's default alpha of 5.0 means 5.0133 standard errors, which is this level.
    level = 2 * stats.norm.cdf(2 * np.sqrt(2 * np.pi)) - 1
    scale, shape = parameter_intervals(tail, fit_tails([tail]), level)
    assert scale == pytest.approx([1.592827, 5.854159], rel=1e-4)
    assert shape == pytest.approx([0.819897, 4.082433], rel=1e-4)


def test_errors_name_the_classes():
    tails = np.vstack([np.arange(5.0), np.full(5, 2.0), [1.0, 2.0, np.nan, 3.0, 4.0]])
    with pytest.raises(UserError, match=r"all values of the tail are equal.*: truck \(2\)$"):
        fit_tails(tails[:2], names=["cat", "truck"])
    with pytest.raises(UserError, match=r"NaN or infinity: class 2$"):
        fit_tails(tails)
    with pytest.raises(UserError, match=r"at least 2 values: class 1 \(1\)"):
        fit_tails(tails[:1].repeat(2, axis=0), counts=[5, 1])
    with pytest.raises(UserError, match="and 3 more"):
        fit_tails(np.ones((8, 4)))
    for wrong, message in (
        ({"translation": 0}, "translation"),
        ({"translation": np.nan}, "translation"),
        ({"backend": "scipy"}, "newton or libmr"),
        ({"counts": [6]}, "counts"),
    ):
        with pytest.raises(UserError, match=message):
            fit_tails(tails[:1], **wrong)
    with pytest.raises(UserError, match="between 0 and 1"):
        fit_tails(tails[:1]).inverse(1.5)
