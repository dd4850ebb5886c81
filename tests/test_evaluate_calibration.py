"""Calibration against loops over the definitions, planted temperatures, and netcal."""

from __future__ import annotations

import warnings

import naive_metrics as naive
import numpy as np
import pytest
import torch

from ebmhybrid.evaluate import accuracy, calibration, evaluate_accuracy, evaluate_calibration
from ebmhybrid.evaluate.predictions import Predictions, softmax


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
    assert [row["temperature_unidentified"] for row in calibration.calibration_of(wrong, right).rows] == [False, True]
    assert [row["temperature_unidentified"] for row in calibration.calibration_of(wrong, wrong).rows] == [False, False]
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
    raw, scaled = results[0].rows
    assert scaled["temperature"] == pytest.approx(3.0, rel=0.1)
    assert scaled["ece_15"] < raw["ece_15"]
    assert (raw["n"], scaled["n_validation"], raw["accuracy"]) == (500, 1500, scaled["accuracy"])
    assert raw["netcal_ece_15"] == pytest.approx(raw["ece_15"])
    assert raw["ece_15_low"] < raw["ece_15"] < raw["ece_15_high"]
    assert raw["nll"] == pytest.approx(naive.nll(softmax(test[0] * 3).tolist(), test[1].tolist()))
    assert len(results[0].plot().axes) == 2
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
