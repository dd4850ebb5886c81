"""Calibration against loops over the definitions, planted calibrators, netcal and relplot."""

from __future__ import annotations

import warnings

import naive_metrics as naive
import numpy as np
import pytest
import torch

from ebmhybrid.evaluate import accuracy, calibration, evaluate_accuracy, evaluate_calibration
from ebmhybrid.evaluate.calibration_resampling import FAMILY, drawn_labels, family_of_labels, family_of_resamples
from ebmhybrid.evaluate.calibrators import PRIOR_SD
from ebmhybrid.evaluate.predictions import Predictions, softmax
from ebmhybrid.evaluate.resampling import interval, resamples


def _sample(n: int = 400, classes: int = 4, scale: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax: a perfectly calibrated model."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (n, classes))
    labels = (softmax(logits).cumsum(1) < rng.random((n, 1))).sum(1)
    return logits, np.minimum(labels, classes - 1)


@pytest.mark.parametrize("bins", [1, 2, 15, 20])
@pytest.mark.parametrize("metric", ["ece", "mce", "equal_mass_ece", "classwise_ece"])
def test_binned_metric_is_its_definition(metric: str, bins: int) -> None:
    logits, labels = _sample(n=203)
    probabilities = softmax(logits * 2)
    expected = getattr(naive, metric)(probabilities.tolist(), labels.tolist(), bins)
    assert getattr(calibration, metric)(probabilities, labels, bins) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", ["nll", "brier"])
def test_proper_score_is_its_definition(metric: str) -> None:
    logits, labels = _sample()
    expected = getattr(naive, metric)(softmax(logits).tolist(), labels.tolist())
    assert getattr(calibration, metric)(softmax(logits), labels) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_confidences_on_edges_fall_to_the_left_and_one_is_not_lost(bins: int) -> None:
    edges = np.array([k / bins for k in range(bins + 1) if 2 * k >= bins])
    rows = np.stack([edges, 1 - edges], 1)
    labels = np.arange(len(edges)) % 2
    table = calibration.reliability_bins(rows, labels, bins)
    assert table.count.sum() == len(edges)
    assert table.count[-1] == 1  # 1.0 alone: the edge below it belongs to the bin below
    assert calibration.ece(rows, labels, bins) == pytest.approx(naive.ece(rows.tolist(), labels.tolist(), bins))


def test_certain_and_wrong_is_an_error_of_one() -> None:
    rows, labels = np.eye(3)[[0, 1, 2]], np.array([1, 2, 0])
    for metric in (calibration.ece, calibration.equal_mass_ece, calibration.mce):
        assert metric(rows, labels) == 1.0
    assert calibration.nll(rows, labels) == np.inf
    assert calibration.brier(rows, labels) == 2.0


def test_classwise_bins_hold_probability_zero() -> None:
    rows, labels = np.eye(3)[[0, 1, 2]], np.array([0, 1, 2])
    assert calibration.classwise_ece(rows, labels) == 0.0
    assert calibration.classwise_ece(rows, np.array([1, 2, 0])) == pytest.approx(2 / 3)


def test_saturated_confidences_make_equal_mass_bins_independent_of_order() -> None:
    rows = np.eye(2)[[0] * 40]
    labels = np.array([0] * 30 + [1] * 10)
    assert calibration.equal_mass_ece(rows, labels) == pytest.approx(0.25)
    assert calibration.equal_mass_ece(rows, labels[::-1].copy()) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (np.array([[3.0, -1.0]]), np.array([0]), "sum to 1 in each row, got row 0 .* logits"),
        (np.array([[1.5, -0.5]]), np.array([0]), r"lie in \[0, 1\]"),
        (np.array([[np.nan, 1.0]]), np.array([0]), r"lie in \[0, 1\]"),
        (np.array([[0.5, 0.5 + 1e-5]]), np.array([0]), "sum to 1"),
        (np.array([[0.5, 0.5]], np.float16), np.array([0]), "float32 or float64"),
        (torch.tensor([[0.5, 0.5]]).bfloat16(), np.array([0]), "float32 or float64"),
        (np.array([0.5, 0.5]), np.array([0]), "shape"),
        (np.zeros((0, 2)), np.array([], int), "shape"),
        (np.array([[0.5, 0.5]]), np.array([2]), r"labels must lie in \[0, 2\)"),
        (np.array([[0.5, 0.5]]), np.array([0.0]), "labels must be integers"),
        (np.array([[0.5, 0.5]]), np.array([0, 1]), "labels must be integers"),
    ],
)
def test_what_is_no_probability_is_refused(rows: np.ndarray, labels: np.ndarray, message: str) -> None:
    for name in ("ece", "equal_mass_ece", "classwise_ece", "mce", "nll", "brier", "netcal_ece"):
        with pytest.raises(ValueError, match=message):
            getattr(calibration, name)(rows, labels)


def test_float32_probabilities_are_taken() -> None:
    logits, labels = _sample()
    single = torch.tensor(softmax(logits), dtype=torch.float32)
    assert calibration.ece(single, labels) == pytest.approx(calibration.ece(softmax(logits), labels), abs=1e-6)


def test_netcal_agrees_in_float64_and_keeps_its_warnings_to_itself() -> None:
    logits, labels = _sample(n=1500, classes=6)
    for scale in (1.0, 3.0):
        probabilities = softmax(logits * scale)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = calibration.netcal_ece(probabilities, labels)
        assert second == pytest.approx(calibration.ece(probabilities, labels), abs=1e-9)


def test_netcal_is_not_asked_with_two_labels() -> None:
    rows = np.array([[0.6, 0.3, 0.1]] * 4)
    assert calibration.netcal_ece(rows, np.array([0, 1, 0, 1])) is None
    assert calibration.netcal_ece(rows, np.array([0, 1, 2, 1])) is not None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("planted", [0.25, 1.0, 4.0])
def test_planted_temperature_is_found_in_either_precision(planted: float, dtype: type) -> None:
    logits, labels = _sample(n=2000)
    own = calibration.fit_temperature(logits, labels)
    assert 0.9 < own < 1.1
    found = calibration.fit_temperature((logits * planted).astype(dtype), labels)
    assert found == pytest.approx(own * planted, rel=1e-3)


def test_temperature_leaves_decisions_and_lowers_nll() -> None:
    logits, labels = _sample(n=1000)
    logits = logits * 3
    temperature = calibration.fit_temperature(logits, labels)
    assert ((logits / temperature).argmax(1) == logits.argmax(1)).all()
    assert calibration.nll(softmax(logits / temperature), labels) < calibration.nll(softmax(logits), labels)
    assert calibration.ece(softmax(logits / temperature), labels) < calibration.ece(softmax(logits), labels)


def test_temperature_at_its_bounds_and_on_bad_logits() -> None:
    assert 0.01 <= calibration.fit_temperature(np.array([[1.0, 0.0]] * 3), np.zeros(3, int)) < 0.03  # NLL is 0 below
    assert calibration.fit_temperature(np.array([[1.0, 0.0]] * 3), np.ones(3, int)) == pytest.approx(100, rel=1e-3)
    right = Predictions(np.array([[1.0, 0.0]] * 3), np.zeros(3, int), "all right")
    wrong = Predictions(np.array([[1.0, 0.0]] * 4), np.array([0, 0, 0, 1]), "one wrong")
    for held_out, expected in ((right, True), (wrong, False)):
        rows = calibration.calibration_of(wrong, held_out).rows
        assert [row["temperature_unidentified"] for row in rows] == [False, expected, False, False]
    with pytest.raises(ValueError, match="finite"):
        calibration.fit_temperature(np.array([[np.inf, 0.0]]), np.array([0]))
    with pytest.raises(ValueError, match="labels must lie in"):
        calibration.fit_temperature(np.array([[1.0, 0.0]]), np.array([2]))


def test_perfect_model_shows_an_ece_that_falls_with_n_and_matches_a_real_one() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.4, 1.0, 10_000)
    floors = [calibration.perfect_model_ece(confidence[:n]) for n in (200, 1000, 10_000)]
    assert floors[0] > 1.8 * floors[1] > 1.8 * 1.8 * floors[2] > 0
    logits, _ = _sample(n=1000)
    floor = calibration.perfect_model_ece(softmax(logits).max(1))
    drawn = [calibration.ece(softmax(x), y) for x, y in (_sample(n=1000, seed=seed) for seed in range(20))]
    assert np.mean(drawn) == pytest.approx(floor, rel=0.15)
    with pytest.raises(ValueError, match="confidence"):
        calibration.perfect_model_ece(np.array([3.0]))


def test_bootstrap_is_reproducible_and_covers_what_resampling_shows() -> None:
    logits, labels = _sample(n=300)
    probabilities = softmax(logits * 3)
    low, high = calibration.bootstrap_interval(probabilities, labels)
    assert (low, high) == calibration.bootstrap_interval(probabilities, labels)
    assert (low, high) != calibration.bootstrap_interval(probabilities, labels, rng=np.random.default_rng(1))
    assert low < calibration.ece(probabilities, labels) < high
    rng = np.random.default_rng(5)
    picks = [rng.integers(300, size=300) for _ in range(400)]
    draws = [calibration.ece(probabilities[pick], labels[pick]) for pick in picks]
    np.testing.assert_allclose([low, high], np.quantile(draws, [0.025, 0.975]), atol=0.012)
    narrow = calibration.bootstrap_interval(probabilities, labels, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def _data(logits: np.ndarray, labels: np.ndarray, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images whose pixels are the logits squeezed into [0, 1]."""
    images = torch.tensor(logits / 20 + 0.5).clamp(0, 1)[:, None, None, :]
    return list(zip(images.split(batch), torch.tensor(labels).split(batch), strict=True))


def _model(images: torch.Tensor) -> torch.Tensor:
    return (images.flatten(1) - 0.5) * 60  # three times the logits that drew the labels


def test_evaluation_finds_the_planted_temperature_and_does_not_depend_on_batches() -> None:
    test, held_out = _sample(n=500), _sample(n=1500, seed=1)
    results = [
        evaluate_calibration(_model, _data(*test, batch=size), _data(*held_out, batch=size)) for size in (1500, 64)
    ]
    assert results[0].rows == results[1].rows
    raw, scaled, *_ = results[0].rows
    assert scaled["temperature"] == pytest.approx(3.0, rel=0.1)
    assert scaled["ece_15"] < raw["ece_15"]
    assert (raw["n"], scaled["n_validation"], raw["accuracy"]) == (500, 1500, scaled["accuracy"])
    assert raw["netcal_ece_15"] == pytest.approx(raw["ece_15"])
    assert raw["ece_15_low"] < raw["ece_15"] < raw["ece_15_high"]
    assert raw["nll"] == pytest.approx(naive.nll(softmax(test[0] * 3).tolist(), test[1].tolist()))
    titles = [axes.get_title() for axes in results[0].plot().axes]
    assert len(titles) == 4
    assert titles[0].startswith(f"as trained: ECE {raw['ece_15']:.4f}")
    assert titles[1].startswith(f"temperature {scaled['temperature']:.3g}: ECE {scaled['ece_15']:.4f}")
    assert results[0].as_dict()["reliability"]["raw"]["accuracy"][0] is None


def test_nll_is_finite_where_probabilities_underflow() -> None:
    predictions = Predictions(np.array([[2000.0, 0.0, 1.0]] * 3), np.array([1, 0, 2]))
    assert calibration.calibration_of(predictions).rows[0]["nll"] == pytest.approx((2000 + 0 + 1999) / 3)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (7, 20), (9467, 10_000)])
def test_wilson_interval_is_its_closed_form(successes: int, n: int) -> None:
    low, high = accuracy.wilson_interval(successes, n)
    expected = naive.wilson(successes, n)
    assert (low, high) == pytest.approx((max(expected[0], 0), min(expected[1], 1)), abs=1e-12)


def test_accuracy_and_its_labels() -> None:
    logits, labels = _sample(n=50)
    row = evaluate_accuracy(_model, _data(logits, labels, 7)).rows[0]
    right = sum(int(row.argmax()) == label for row, label in zip(logits, labels, strict=True))
    assert (row["n"], row["accuracy"]) == (50, right / 50)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\), got 9 at image 3 \(1 of 50\)"):
        evaluate_accuracy(_model, _data(logits, np.where(np.arange(50) == 3, 9, labels), 7))


@pytest.mark.parametrize("metric", [calibration.equal_mass_ece, calibration.classwise_ece, calibration.mce])
def test_every_metric_has_an_interval_and_a_perfect_model_figure(metric) -> None:
    rng = np.random.default_rng(3)
    logits = 2 * rng.standard_normal((400, 5))
    probabilities = softmax(logits)
    true = (rng.random((400, 1)) >= probabilities.cumsum(1)[:, :-1]).sum(1)
    low, high = calibration.bootstrap_interval(probabilities, true, n=100, metric=metric)
    assert 0 < low < high < 1
    floor = calibration.perfect_model_value(metric, probabilities)
    small = calibration.perfect_model_value(metric, probabilities[:50])
    assert 0 < floor < small
    assert metric(probabilities, true, 15) == pytest.approx(floor, rel=0.8)  # labels drawn as the model says
    if metric is not calibration.mce:  # of which a single image in a bin can make anything
        assert metric(probabilities, (true + 1) % 5, 15) > 2 * floor


def test_the_general_interval_and_floor_agree_with_the_fast_ones_for_ece() -> None:
    rng = np.random.default_rng(4)
    probabilities, labels = softmax(rng.standard_normal((300, 4))), rng.integers(4, size=300)
    fast = calibration.bootstrap_interval(probabilities, labels, n=50)
    assert calibration.bootstrap_interval(probabilities, labels, n=50, metric=calibration.ece) == pytest.approx(fast)
    floor = calibration.perfect_model_ece(probabilities.max(1), n=400)
    assert calibration.perfect_model_value(calibration.ece, probabilities, n=400) == pytest.approx(floor, rel=0.05)


def _smoothed(confidence: np.ndarray, gaps: np.ndarray, bandwidth: float, points: int = 1001) -> float:
    """Integral of |sum of gaps x Gaussian / n|, the Gaussian reflected at 0 and 1 as often as it reaches."""
    t = np.linspace(0, 1, points)
    total = np.zeros(points)
    for c, gap in zip(confidence, gaps, strict=True):
        for k in range(-3, 4):
            for centre in (2 * k + c, 2 * k - c):
                z = (t - centre) / bandwidth
                total += gap * np.exp(-z * z / 2) / (bandwidth * np.sqrt(2 * np.pi))
    heights = np.abs(total / len(gaps))
    return float(((heights[1:] + heights[:-1]) / 2).sum() / (points - 1))


@pytest.mark.parametrize(("scale", "n"), [(1.0, 60), (3.0, 150), (0.2, 40)])
def test_smooth_ece_is_the_bandwidth_that_equals_its_own_literal_error(scale: float, n: int) -> None:
    logits, labels = _sample(n=n)
    rows = softmax(logits * scale)
    value = calibration.smooth_ece(rows, labels)
    confidence, correct = rows.max(1), rows.argmax(1) == labels
    assert _smoothed(confidence, correct - confidence, value) == pytest.approx(value, rel=1e-3)


def test_smooth_ece_reflects_what_lies_on_the_ends() -> None:
    rows = np.array([[1.0, 0.0]] * 6 + [[0.85, 0.15]] * 14)
    labels = np.array([1, 1, *[0] * 18])
    confidence, gaps = rows.max(1), (labels == 0) - rows.max(1)  # the gaps of 1.0 and of 0.85 nearly cancel
    value = calibration.smooth_ece(rows, labels)
    assert value > 2 * abs(gaps.mean())
    assert _smoothed(confidence, gaps, value) == pytest.approx(value, rel=1e-3)


def test_smooth_ece_by_hand() -> None:
    assert calibration.smooth_ece(np.eye(3), np.array([0, 1, 2])) == 0
    assert calibration.smooth_ece(np.eye(3), np.array([1, 2, 0])) == pytest.approx(1)
    assert calibration.smooth_ece(np.array([[0.75, 0.25]] * 8), np.zeros(8, int)) == pytest.approx(0.25)
    assert calibration.smooth_ece(np.array([[0.75, 0.25]]), np.array([1])) == pytest.approx(0.75)  # one image
    balanced = np.array([[0.75, 0.25]] * 4)
    assert calibration.smooth_ece(balanced, np.array([0, 0, 0, 1])) == pytest.approx(0, abs=1e-6)


def test_smooth_ece_moves_little_where_a_confidence_crosses_the_edge_of_a_bin() -> None:
    labels = np.array([0, 1])

    def rows(shift: float) -> np.ndarray:
        return np.array([[0.6 + shift, 0.4 - shift], [0.6 - shift, 0.4 + shift]])

    binned = [calibration.ece(rows(shift), labels) for shift in (1e-9, -1e-9)]
    smooth = [calibration.smooth_ece(rows(shift), labels) for shift in (1e-9, -1e-9)]
    assert abs(binned[0] - binned[1]) < 1e-6 < abs(calibration.ece(rows(0.0), labels) - binned[0])
    assert smooth[0] == pytest.approx(calibration.smooth_ece(rows(0.0), labels), abs=1e-6)
    assert smooth[0] == pytest.approx(smooth[1], abs=1e-6)


def test_smooth_ece_agrees_with_its_authors_package() -> None:
    relplot = pytest.importorskip("relplot")
    logits, labels = _sample(n=1500, classes=5)
    for scale in (1.0, 0.4):  # with many confidences next to 1 it is off: there it reflects only part of the kernel
        rows = softmax(logits * scale)
        theirs = relplot.smECE(*relplot.multiclass_logits_to_confidences(rows, labels, probs=True))
        assert calibration.smooth_ece(rows, labels) == pytest.approx(theirs, abs=1e-3)  # its bandwidths are n / 1024


def _with_ties(n: int = 90, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of which many are equal, some of them 0 and 1."""
    rng = np.random.default_rng(8)
    counts = rng.multinomial(5, [0.5, *[0.5 / (classes - 1)] * (classes - 1)], size=n)
    return counts / 5, rng.integers(classes, size=n)


@pytest.mark.parametrize("bins", [1, 7, 15, 100])
@pytest.mark.parametrize("ties", [False, True])
def test_the_family_of_resamples_is_each_metric_of_each_resampled_set(ties: bool, bins: int) -> None:
    logits, labels = _sample(n=90)
    rows = softmax(logits * 2)
    if ties:
        rows, labels = _with_ties()
    weights = resamples(90, draws=6)
    found = family_of_resamples(rows, labels, weights, bins)
    for i, row in enumerate(weights):
        picked = np.repeat(np.arange(90), row.astype(int))
        for name in ("ece", "mce", "equal_mass_ece", "classwise_ece"):
            expected = getattr(calibration, name)(rows[picked], labels[picked], bins)
            assert found[name][i] == pytest.approx(expected, abs=1e-12), name
        assert found["smooth_ece"][i] == pytest.approx(calibration.smooth_ece(rows[picked], labels[picked]), abs=1e-4)


@pytest.mark.parametrize("bins", [1, 7, 15, 100])
@pytest.mark.parametrize("ties", [False, True])
def test_the_family_of_drawn_labels_is_each_metric_of_each_draw(ties: bool, bins: int) -> None:
    rows = _with_ties()[0] if ties else softmax(_sample(n=90)[0] * 2)
    labels = drawn_labels(rows, draws=6)
    found = family_of_labels(rows, labels, bins)
    for i, drawn in enumerate(labels):
        for name in ("ece", "mce", "equal_mass_ece", "classwise_ece"):
            expected = getattr(calibration, name)(rows, drawn, bins)
            assert found[name][i] == pytest.approx(expected, abs=1e-12), name
        assert found["smooth_ece"][i] == pytest.approx(calibration.smooth_ece(rows, drawn), abs=1e-4)


def test_labels_are_drawn_as_the_probabilities_say() -> None:
    rows = np.array([[0.5, 0.2, 0.3], [0.0, 1.0, 0.0], [0.1, 0.0, 0.9]])
    labels = drawn_labels(rows, draws=20_000)
    shares = np.stack([(labels == k).mean(axis=0) for k in range(3)], axis=1)
    np.testing.assert_allclose(shares, rows, atol=0.012)
    assert (shares[rows == 0] == 0).all()
    np.testing.assert_array_equal(labels, drawn_labels(rows, draws=20_000))
    assert (drawn_labels(np.ones((4, 1)), draws=3) == 0).all()


def test_rows_hold_the_plain_figures_of_the_calibrated_probabilities() -> None:
    test, held_out = _sample(n=300, classes=5), _sample(n=400, classes=5, seed=1)
    bias = np.array([4.0, 0.0, 0.0, -3.0, 1.0])
    test, held_out = ((2 * logits + bias, labels) for logits, labels in (test, held_out))
    result = calibration.calibration_of(Predictions(*test, "photos"), Predictions(*held_out))
    raw = softmax(test[0])
    variants = {
        "raw": raw,
        "temperature": softmax(test[0] / calibration.fit_temperature(*held_out)),
        "vector": softmax(calibration.fit_vector(*held_out)(test[0])),
        "isotonic": calibration.fit_isotonic(softmax(held_out[0]), held_out[1])(raw),
    }
    assert [row["variant"] for row in result.rows] == list(variants) == list(result.diagrams)
    weights = resamples(300)
    for row, (variant, rows) in zip(result.rows, variants.items(), strict=True):
        assert (row["set"], row["n"]) == ("photos", 300)
        assert row["n_validation"] == (None if variant == "raw" else 400)
        assert row["accuracy"] == (rows.argmax(1) == test[1]).mean()
        assert row["accuracy_raw"] == result.rows[0]["accuracy"]
        assert row["decisions_changed"] == (rows.argmax(1) != raw.argmax(1)).sum()
        assert row["nll"] == pytest.approx(calibration.nll(rows, test[1]))
        assert row["brier"] == calibration.brier(rows, test[1])
        assert row["ece_20"] == calibration.ece(rows, test[1], 20)
        drawn = family_of_resamples(rows, test[1], weights)
        for name, metric in FAMILY.items():
            assert row[name] == metric(rows, test[1])
            assert (row[f"{name}_low"], row[f"{name}_high"]) == interval(drawn[metric.__name__])
            assert 0 <= row[f"{name}_low"] < row[f"{name}_high"] <= 1
        np.testing.assert_array_equal(result.diagrams[variant].count, calibration.reliability_bins(rows, test[1]).count)
    temperatures = [row["temperature"] for row in result.rows]
    assert temperatures == [1.0, calibration.fit_temperature(*held_out), None, None]
    changed = [row["decisions_changed"] for row in result.rows]
    assert changed[:2] == [0, 0]
    assert min(changed[2:]) > 20  # the planted bias is undone
    assert result.rows[2]["accuracy"] > result.rows[0]["accuracy"] + 0.03
    assert result.rows[2]["nll"] < result.rows[1]["nll"] - 0.05


def test_floors_are_what_a_calibrated_model_shows() -> None:
    logits, labels = _sample(n=800)
    row = calibration.calibration_of(Predictions(logits, labels)).rows[0]
    for name, metric in FAMILY.items():
        if metric is not calibration.smooth_ece:
            expected = calibration.perfect_model_value(metric, softmax(logits), n=50, rng=np.random.default_rng(9))
            assert row[f"{name}_perfect"] == pytest.approx(expected, rel=0.15)
        assert 0.2 * row[name] < row[f"{name}_perfect"] < 5 * row[name]


@pytest.mark.parametrize("logits", [np.array([[1.0, 0.0]]), np.array([[2.0]])])
def test_one_image_and_one_class(logits: np.ndarray) -> None:
    one = Predictions(logits, np.array([0]))
    rows = calibration.calibration_of(one, one).rows
    assert [row["accuracy"] for row in rows] == [1, 1, 1, 1]
    assert rows[3]["ece_15"] == pytest.approx(0)
    assert rows[2]["nll"] <= rows[1]["nll"] + 1e-9


@pytest.mark.parametrize("classes", [2, 5])
def test_vector_scaling_finds_a_planted_scale_and_bias(classes: int) -> None:
    logits, labels = _sample(n=20_000, classes=classes)
    own = calibration.fit_vector(logits, labels)
    np.testing.assert_allclose(own.scale, 1.0, atol=0.06)
    np.testing.assert_allclose(own.bias, 0.0, atol=0.06)
    scale, bias = np.linspace(0.5, 3.0, classes), np.linspace(-1.0, 1.0, classes)
    moved = calibration.fit_vector((logits - bias) / scale, labels)
    np.testing.assert_allclose(moved.scale, own.scale * scale, rtol=5e-3)
    expected = own.bias + own.scale * bias  # up to a constant, which no probability shows
    np.testing.assert_allclose(moved.bias - moved.bias.mean(), expected - expected.mean(), atol=5e-3)


def _penalised(logits: np.ndarray, labels: np.ndarray, temperature: float, parameters: np.ndarray) -> float:
    """The objective of vector scaling, summed image by image."""
    scale, bias = np.split(parameters, 2)
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        outputs = scale * row + bias
        total += np.log(np.exp(outputs).sum()) - outputs[label]
    return total + (np.square(temperature * scale - 1).sum() + np.square(bias).sum()) / (2 * PRIOR_SD**2)


def test_vector_scaling_is_the_minimum_of_its_objective() -> None:
    logits, labels = _sample(n=40, classes=3)
    logits = logits * 2 + np.array([1.0, 0.0, -1.0])
    temperature = calibration.fit_temperature(logits, labels)
    found = calibration.fit_vector(logits, labels)
    parameters = np.concatenate([found.scale, found.bias])
    lowest = _penalised(logits, labels, temperature, parameters)
    for k in range(6):
        for step in (1e-3, -1e-3):
            moved = parameters + step * np.eye(6)[k]
            assert _penalised(logits, labels, temperature, moved) > lowest
    for factor in (0.1, 10.0):  # the unit of the logits is nothing but a unit
        other = calibration.fit_vector(logits * factor, labels)
        np.testing.assert_allclose(other.scale * factor, found.scale, rtol=1e-3, atol=1e-3)


def test_vector_scaling_stays_finite_where_classes_can_be_separated() -> None:
    logits = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]] * 5)
    found = calibration.fit_vector(logits, np.arange(15) % 3)
    assert np.isfinite(found.scale).all()
    assert np.abs(found.bias).max() < 1e-3
    with pytest.raises(ValueError, match="finite"):
        calibration.fit_vector(np.array([[np.nan, 0.0]]), np.array([0]))
    with pytest.raises(ValueError, match="labels must lie in"):
        calibration.fit_vector(np.array([[1.0, 0.0]]), np.array([2]))


def _pooled(x: np.ndarray, y: np.ndarray) -> dict[float, float]:
    """Isotonic regression by its max-min formula: the largest over starts of the least over ends of the mean."""
    levels = sorted(set(x.tolist()))
    fitted = {}
    for i, level in enumerate(levels):
        fitted[level] = max(
            min(y[(x >= levels[a]) & (x <= levels[b])].mean() for b in range(i, len(levels))) for a in range(i + 1)
        )
    return fitted


def test_isotonic_regression_is_its_max_min_formula_normalised() -> None:
    logits, labels = _sample(n=60, classes=3)
    rows = softmax(logits * 3).round(2)
    rows = rows / rows.sum(1, keepdims=True)
    fitted = calibration.fit_isotonic(rows, labels)
    functions = [_pooled(rows[:, k], (labels == k).astype(float)) for k in range(3)]
    found = fitted(rows)
    for row, result in zip(rows, found, strict=True):
        raised = [functions[k][value] for k, value in enumerate(row.tolist())]
        np.testing.assert_allclose(result, np.array(raised) / sum(raised), atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1)


def test_isotonic_regression_keeps_a_row_that_it_finds_impossible_and_goes_flat_beyond_what_it_saw() -> None:
    seen = np.array([[0.8, 0.2, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0], [0.4, 0.6, 0.0]])
    fitted = calibration.fit_isotonic(seen, np.array([0, 1, 0, 1]))
    lost = np.array([[0.1, 0.1, 0.8]])  # p_0 and p_1 are below what any image of theirs had, class 2 had no image
    np.testing.assert_array_equal(fitted(lost), lost)
    np.testing.assert_array_equal(fitted(np.array([[0.95, 0.05, 0.0]])), [[1.0, 0.0, 0.0]])
    np.testing.assert_allclose(fitted(np.array([[0.55, 0.45, 0.0]])), [[0.75, 0.25, 0.0]])  # linear between .4 and .6
    certain = Predictions(np.log(np.array([[0.8, 0.2 - 1e-9, 1e-9]])), np.array([1]))
    row = calibration.calibration_of(certain, Predictions(np.log(seen + 1e-9), np.array([0, 1, 0, 1]))).rows[3]
    assert row["nll"] == np.inf
    with pytest.raises(ValueError, match="logits"):
        calibration.fit_isotonic(np.array([[3.0, -1.0]]), np.array([0]))


def test_calibrators_lower_the_error_of_a_distorted_model() -> None:
    distort = np.array([3.0, 1.0, 2.0, 0.5])
    (logits, labels), held_out = _sample(n=3000), _sample(n=3000, seed=1)
    test, validation = Predictions(logits * distort, labels), Predictions(held_out[0] * distort, held_out[1])
    raw, temperature, vector, isotonic = calibration.calibration_of(test, validation).rows
    assert vector["nll"] < temperature["nll"] < raw["nll"]
    assert isotonic["classwise_ece_15"] < temperature["classwise_ece_15"]
    assert vector["classwise_ece_15"] < 0.6 * temperature["classwise_ece_15"]
    assert vector["ece_15"] < vector["ece_15_perfect"] * 2


def test_netcal_leaves_float32_as_it_is_and_the_own_temperature_does_not() -> None:
    from netcal.scaling import TemperatureScaling

    logits, labels = _sample(n=500)
    single = softmax(3 * logits).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = TemperatureScaling()
        theirs.fit(single, labels)
        moved = theirs.transform(single)
    assert np.abs(np.asarray(moved) - single).max() < 1e-6  # the trap: no error, no change
    own = calibration.fit_temperature((3 * logits).astype(np.float32), labels)
    assert own == pytest.approx(3 * calibration.fit_temperature(logits, labels), rel=1e-3)


def test_calibration_under_shift_is_each_set_at_one_temperature() -> None:
    sets = {f"blur {k}": Predictions(*_sample(n=200, seed=k)) for k in (1, 2)}
    rows = calibration.shift_rows(sets, temperature=2.5)
    for row, (name, predictions) in zip(rows, sets.items(), strict=True):
        logits, labels = predictions.logits, predictions.labels
        assert row == {
            "set": name,
            "n": 200,
            "accuracy": (logits.argmax(1) == labels).mean(),
            "nll": pytest.approx(calibration.nll(softmax(logits), labels)),
            "ece_15": calibration.ece(softmax(logits), labels),
            "temperature": 2.5,
            "nll_scaled": pytest.approx(calibration.nll(softmax(logits / 2.5), labels)),
            "ece_15_scaled": calibration.ece(softmax(logits / 2.5), labels),
        }
    assert calibration.shift_rows({}) == ()
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="temperature must be positive and finite"):
            calibration.shift_rows(sets, wrong)
    with pytest.raises(ValueError, match=r"'fog'.* labels must lie in"):
        calibration.shift_rows({"fog": Predictions(np.zeros((1, 2)), np.array([2]))})
