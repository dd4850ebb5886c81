"""Selective classification against exact loops over every order of ties, closed forms, and resampled sets."""

from __future__ import annotations

import json
import math

import naive_selective as naive
import numpy as np
import pytest
import torch

from ebmhybrid.evaluate import scores, selective
from ebmhybrid.evaluate.plots_selective import risk_coverage_figure
from ebmhybrid.evaluate.predictions import Predictions
from ebmhybrid.evaluate.resampling import interval, resamples
from ebmhybrid.evaluate.selective_metrics import areas

AREAS = (selective.aurc, selective.augrc, selective.e_aurc)


def _cases() -> list[tuple[np.ndarray, np.ndarray]]:
    """Six images each, with many and few ties, and from none to all of them wrong."""
    rng = np.random.default_rng(0)
    return [
        (rng.integers(levels, size=6).astype(float), rng.random(6) < share)
        for levels in (1, 2, 3, 100)
        for share in (0.0, 0.3, 0.7, 1.0)
    ]


@pytest.mark.parametrize("case", range(16))
def test_figures_are_their_definitions_with_ties_in_every_order(case: int) -> None:
    confidence, correct = _cases()[case]
    c, a = confidence.tolist(), correct.tolist()
    coverage, risk = selective.risk_coverage(confidence, correct)
    np.testing.assert_allclose(coverage, np.arange(1, 7) / 6)
    np.testing.assert_allclose(risk, [float(value) for value in naive.mean_curve(c, a)], atol=1e-14)
    assert selective.aurc(confidence, correct) == pytest.approx(float(naive.aurc(c, a)), abs=1e-14)
    assert selective.augrc(confidence, correct) == pytest.approx(float(naive.augrc(c, a)), abs=1e-14)
    excess = float(naive.aurc(c, a) - naive.best_aurc(a))
    assert selective.e_aurc(confidence, correct) == pytest.approx(excess, abs=1e-14)


def test_augrc_is_its_closed_form_in_auroc_and_accuracy() -> None:
    rng = np.random.default_rng(1)
    confidence, correct = rng.integers(30, size=80), rng.random(80) < 0.7
    accuracy, auroc = correct.mean(), float(naive.auroc(confidence.tolist(), correct.tolist()))
    expected = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert selective.augrc(confidence.astype(np.float64), correct) == pytest.approx(expected, abs=1e-14)


def test_perfect_order_and_its_reverse() -> None:
    correct = np.array([True] * 6 + [False] * 4)
    perfect, reverse = np.arange(10.0, 0, -1), np.arange(10.0)
    assert selective.aurc(perfect, correct) == pytest.approx((1 / 7 + 2 / 8 + 3 / 9 + 4 / 10) / 10)
    assert selective.e_aurc(perfect, correct) == 0
    assert selective.augrc(perfect, correct) == pytest.approx(0.4**2 / 2)
    assert selective.aurc(reverse, correct) == pytest.approx((4 + sum(4 / k for k in range(5, 11))) / 10)
    assert selective.augrc(reverse, correct) == pytest.approx(0.4**2 / 2 + 0.4 * 0.6)


def test_a_constant_confidence_is_what_random_orders_give_on_average() -> None:
    correct = np.arange(50) % 5 > 0
    constant = np.zeros(50)
    assert selective.aurc(constant, correct) == pytest.approx(0.2)  # the error: E[e_k / k] = e / n
    assert selective.augrc(constant, correct) == pytest.approx(0.1)  # half of it
    rng = np.random.default_rng(2)
    drawn = [(selective.aurc(c, correct), selective.augrc(c, correct)) for c in rng.random((2000, 50))]
    np.testing.assert_allclose(np.mean(drawn, axis=0), [0.2, 0.1], atol=0.004)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_all_right_and_all_wrong(n: int) -> None:
    confidence = np.arange(float(n))
    right, wrong = np.ones(n, bool), np.zeros(n, bool)
    assert [figure(confidence, right) for figure in AREAS] == [0, 0, 0]
    assert [figure(confidence, wrong) for figure in AREAS] == [1, 0.5, 0]
    assert selective.risk_at_coverage(confidence, wrong, 0.8) == 1
    assert selective.coverage_at_risk(confidence, right, 0.0) == 1
    assert selective.coverage_at_risk(confidence, wrong, 0.5) == 0


def test_only_ranks_count_and_the_order_of_the_set_does_not() -> None:
    rng = np.random.default_rng(3)
    confidence, correct = rng.integers(20, size=60).astype(float), rng.random(60) < 0.8
    mixed = rng.permutation(60)
    far = np.where(confidence == confidence.max(), np.inf, np.where(confidence == 0, -np.inf, 1e4 + confidence))
    for figure in AREAS:
        expected = figure(confidence, correct)
        assert figure(confidence[mixed], correct[mixed]) == pytest.approx(expected, abs=1e-14)
        assert figure(far, correct) == figure(torch.tensor(confidence), torch.tensor(correct)) == expected


def test_risk_at_coverage_takes_the_smallest_share_that_is_enough() -> None:
    confidence = np.arange(100.0, 0, -1)
    correct = np.arange(1, 101) % 2 == 1  # every second one is wrong
    risks = {k: (k // 2) / k for k in range(1, 101)}
    for percent in range(1, 101):
        assert selective.risk_at_coverage(confidence, correct, percent / 100) == pytest.approx(risks[percent])
    assert selective.risk_at_coverage(confidence, correct, 0.111) == pytest.approx(risks[12])
    assert selective.risk_at_coverage(confidence[:3], correct[:3], 0.5) == pytest.approx(risks[2])


def test_coverage_at_risk_is_the_largest_though_risk_was_higher_before() -> None:
    confidence = np.arange(10.0, 0, -1)
    correct = np.array([False] + [True] * 8 + [False])  # risk falls from 1 to 1/9, then rises to 1/5
    assert selective.coverage_at_risk(confidence, correct, 0.125) == 0.9
    assert selective.coverage_at_risk(confidence, correct, 0.2) == 1.0
    assert selective.coverage_at_risk(confidence, correct, 0.1) == 0.0
    assert selective.coverage_at_risk(confidence, correct, 1 / 9) == 0.9  # the bound itself counts


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        (np.array([]), np.array([]), "vectors of one length >= 1"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "vectors of one length"),
        (np.zeros(2), np.zeros(3), r"got \(2,\) and \(3,\)"),
        (np.array([np.nan, 1.0]), np.array([1, 0]), "1 NaN of 2"),
        (np.zeros(2, np.float16), np.array([1, 0]), "half precision"),
        (torch.zeros(2, dtype=torch.bfloat16).float().half(), np.array([1, 0]), "half precision"),
        (np.zeros(2), np.array([0, 2]), "True and False or 1 and 0, got 2"),
        (np.zeros(2), np.array([0.5, 1.0]), "got 0.5"),
    ],
)
def test_what_is_no_confidence_is_refused(confidence, correct, message: str) -> None:
    for figure in (*AREAS, selective.risk_coverage):
        with pytest.raises(ValueError, match=message):
            figure(confidence, correct)
    with pytest.raises(ValueError, match=message):
        selective.risk_at_coverage(confidence, correct, 0.5)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, math.nan])
def test_coverage_and_risk_are_shares(value: float) -> None:
    with pytest.raises(ValueError, match=r"coverage must lie in \(0, 1\]"):
        selective.risk_at_coverage(np.ones(2), np.ones(2), value)
    if value != 0:
        with pytest.raises(ValueError, match=r"risk must lie in \[0, 1\]"):
            selective.coverage_at_risk(np.ones(2), np.ones(2), value)


def test_margin_is_of_logits_and_has_no_ties_where_probabilities_saturate() -> None:
    logits = np.array([[100.0, 0.0, -5.0], [101.0, 0.0, -5.0], [-1.0, 2.0, 2.0]])
    np.testing.assert_array_equal(selective.margin(logits), [100.0, 101.0, 0.0])
    np.testing.assert_array_equal(selective.margin(logits[:, :1]), [0.0, 0.0, 0.0])
    two = np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_allclose(selective.margin(two), scores.msp(two), atol=1e-12)  # with two classes the same


@pytest.mark.parametrize("levels", [1, 4, 1000])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
def test_areas_of_resamples_are_those_of_the_resampled_sets(levels: int, share: float) -> None:
    rng = np.random.default_rng(4)
    confidence, correct = rng.integers(levels, size=40).astype(float), rng.random(40) < share
    weights = resamples(40, draws=12, rng=rng)
    found = np.stack(areas(confidence, 1.0 - correct, weights), axis=1)
    for row, (aurc, augrc) in zip(weights, found, strict=True):
        picked = np.repeat(np.arange(40), row.astype(int))
        assert aurc == pytest.approx(selective.risk_coverage(confidence[picked], correct[picked])[1].mean(), abs=1e-12)
        assert augrc == pytest.approx(
            float(naive.augrc(confidence[picked].tolist(), correct[picked].tolist())), abs=1e-12
        )


def test_neighbouring_ties_of_one_rate_stay_apart_in_resamples() -> None:
    confidence, correct = np.array([2.0, 2.0, 1.0, 1.0]), np.array([True, False, True, False])
    aurc, augrc = areas(confidence, 1.0 - correct, np.array([[2.0, 0.0, 0.0, 2.0]]))  # two right, then two wrong
    assert aurc[0] == pytest.approx((1 / 3 + 2 / 4) / 4)
    assert augrc[0] == pytest.approx(0.5**2 / 2)


def test_resamples_draw_n_of_n_evenly_and_are_reproducible() -> None:
    weights = resamples(50, draws=2000)
    assert (weights.sum(axis=1) == 50).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1.0, atol=0.1)
    np.testing.assert_allclose(weights.var(axis=0).mean(), 1 - 1 / 50, rtol=0.05)  # of a multinomial count
    np.testing.assert_array_equal(weights[:20], resamples(50, draws=20))
    for n, draws in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match="n >= 1 and draws >= 1"):
            resamples(n, draws)
    assert interval(np.arange(101.0), level=0.9) == pytest.approx((5, 95))
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"level must lie in \(0, 1\)"):
            interval(np.zeros(3), level)


def _predictions(n: int = 400, scale: float = 2.0) -> Predictions:
    """Logits, and labels drawn from their softmax."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, scale, (n, 5))
    return Predictions(logits, np.asarray((logits + rng.gumbel(size=logits.shape)).argmax(1)), "drawn")


def test_rows_hold_the_plain_figures_of_each_confidence() -> None:
    predictions = _predictions(scale=8.0)
    result = selective.selective_of(predictions)
    correct = predictions.logits.argmax(1) == predictions.labels
    assert [row["score"] for row in result.rows] == ["msp", "margin", "energy"]
    functions = (scores.msp, selective.margin, scores.energy)
    for row, function in zip(result.rows, functions, strict=True):
        confidence = function(predictions.logits)
        assert (row["set"], row["n"], row["accuracy"]) == ("drawn", 400, correct.mean())
        assert row["aurc"] == selective.aurc(confidence, correct)
        assert row["e_aurc"] == selective.e_aurc(confidence, correct)
        assert row["augrc"] == selective.augrc(confidence, correct)
        assert row["coverage_at_1"] == selective.coverage_at_risk(confidence, correct, 0.01)
        for percent in (80, 90, 95):
            expected = selective.risk_at_coverage(confidence, correct, percent / 100)
            assert row[f"risk_at_{percent}"] == expected
        for key in ("aurc", "augrc"):
            assert row[f"{key}_low"] < row[key] < row[f"{key}_high"]
        np.testing.assert_array_equal(result.curves[row["score"]], selective.risk_coverage(confidence, correct))
    msp, _, energy = result.rows
    assert 0 < msp["coverage_at_1"] < selective.coverage_at_risk(scores.msp(predictions.logits), correct, 0.02)
    assert msp["aurc"] < energy["aurc"]  # labels follow the softmax, so its confidence ranks them best


def test_an_interval_covers_what_new_test_sets_show() -> None:
    rng = np.random.default_rng(6)
    drawn = []
    for _ in range(60):
        logits = rng.normal(0, 2.0, (400, 5))
        correct = (logits + rng.gumbel(size=logits.shape)).argmax(1) == logits.argmax(1)
        drawn.append(selective.augrc(scores.msp(logits), correct))
    row = selective.selective_of(_predictions()).rows[0]
    assert row["augrc_high"] - row["augrc_low"] == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.35)


def test_a_result_is_plain_json_and_its_curves_are_short() -> None:
    result = selective.selective_of(_predictions(n=1000))
    content = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert content["rows"] == [dict(row) for row in result.rows]
    for name, points in content["curves"].items():
        coverage, risk = result.curves[name]
        assert len(points["coverage"]) == len(points["risk"]) == 300
        assert (points["coverage"][0], points["coverage"][-1]) == (0.001, 1.0)
        assert points["risk"][-1] == risk[-1] == pytest.approx(1 - result.rows[0]["accuracy"])
        assert set(points["coverage"]) <= set(coverage.tolist())
    short = selective.selective_of(_predictions(n=7)).as_dict()
    assert len(short["curves"]["msp"]["coverage"]) == 7


def test_evaluation_does_not_depend_on_batches_and_checks_labels() -> None:
    rng = np.random.default_rng(7)
    images = torch.tensor(rng.random((60, 1, 1, 4)))
    labels = torch.tensor(rng.integers(4, size=60))

    def model(batch: torch.Tensor) -> torch.Tensor:
        return batch.flatten(1) * 9

    results = [
        selective.evaluate_selective(model, list(zip(images.split(size), labels.split(size), strict=True)))
        for size in (60, 7)
    ]
    assert results[0].rows == results[1].rows
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\)"):
        selective.evaluate_selective(model, [(images, labels + 1)])
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\)"):
        selective.selective_of(Predictions(np.zeros((2, 5)), np.array([0, 5])))


def test_the_figure_shows_every_confidence_above_the_best_order() -> None:
    result = selective.selective_of(_predictions())
    (axes,) = result.plot().axes
    best, *lines = axes.get_lines()
    assert len(lines) == 3
    assert [line.get_label() for line in lines] == [f"{row['score']} ({1000 * row['aurc']:.2f})" for row in result.rows]
    correct = _predictions().correct
    np.testing.assert_allclose(
        best.get_ydata(),
        selective.thinned(*selective.risk_coverage(correct.astype(float), correct))[1],
        atol=1e-12,
    )
    assert all((line.get_ydata() >= best.get_ydata() - 1e-12).all() for line in lines)
    assert "drawn, n = 400" in axes.get_title()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 3
    one = selective.selective_of(Predictions(np.array([[1.0, 0.0]]), np.array([0])))
    assert len(risk_coverage_figure(one).axes) == 1
