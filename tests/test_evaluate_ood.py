"""OOD metrics against loops over the definitions, and scores against closed forms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import naive_metrics as naive
import numpy as np
import pytest
import torch

from ebmhybrid.evaluate import bootstrap, evaluate_ood, files, ood, scores

ORACLES = {
    "auroc": naive.auroc,
    "aupr_in": naive.aupr,
    "aupr_out": lambda inside, outside: naive.aupr([-s for s in outside], [-s for s in inside]),
    "fpr95_id_positive": naive.fpr95,
    "fpr95_ood_positive": lambda inside, outside: naive.fpr95([-s for s in outside], [-s for s in inside]),
}


def _sides(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(1, 1, 60), rng.normal(0, 1, 45)
    if kind == "ties":
        return inside.round(), outside.round()
    if kind == "inf":
        inside[:5], inside[5], outside[:4], outside[4:7] = np.inf, -np.inf, -np.inf, np.inf
    if kind == "one id":
        return inside[:1], outside
    if kind == "one ood":
        return inside, outside[:1]
    if kind == "all equal":
        return np.ones(7), np.ones(5)
    if kind == "reversed":
        return outside - 3, inside + 3
    return inside, outside


@pytest.mark.parametrize("metric", list(ORACLES))
@pytest.mark.parametrize("kind", ["plain", "ties", "inf", "one id", "one ood", "all equal", "reversed"])
def test_metric_is_its_definition(metric: str, kind: str) -> None:
    inside, outside = _sides(kind)
    expected = ORACLES[metric](inside.tolist(), outside.tolist())
    assert ood.METRICS[metric](inside, outside) == pytest.approx(expected, abs=1e-12)


def _sklearn(metric: str, is_id: np.ndarray, scores: np.ndarray) -> float:
    """The metric as scikit-learn computes it from labels and scores."""
    from sklearn import metrics

    positive, values = (is_id, scores) if metric in ("auroc", "aupr_in", "fpr95_id_positive") else (~is_id, -scores)
    if metric == "auroc":
        return float(metrics.roc_auc_score(positive, values))
    if metric.startswith("aupr"):
        return float(metrics.average_precision_score(positive, values))
    false_positive, true_positive, _ = metrics.roc_curve(positive, values, drop_intermediate=False)
    return float(false_positive[np.argmax(true_positive >= 0.95)])


@pytest.mark.parametrize("metric", list(ORACLES))
@pytest.mark.parametrize("kind", ["plain", "ties", "inf", "one id", "one ood", "all equal", "reversed", "large"])
def test_metric_is_scikit_learns(metric: str, kind: str) -> None:
    inside, outside = _sides(kind)
    if kind == "large":
        rng = np.random.default_rng(5)
        inside, outside = rng.normal(1, 1, 4000).round(2), rng.normal(0, 2, 7000).round(2)
    finite = np.nan_to_num(np.concatenate([inside, outside]), posinf=99, neginf=-99)  # scikit-learn refuses infinities
    expected = _sklearn(metric, np.arange(len(finite)) < len(inside), finite)
    assert ood.METRICS[metric](inside, outside) == pytest.approx(expected, abs=1e-12)


def test_laws_of_the_metrics() -> None:
    for kind in ("plain", "ties", "inf"):
        inside, outside = _sides(kind)
        assert ood.auroc(inside, outside) == pytest.approx(1 - ood.auroc(outside, inside), abs=1e-12)
        assert ood.auroc(inside, outside) == pytest.approx(ood.auroc(-outside, -inside), abs=1e-12)
        assert ood.aupr_out(inside, outside) == pytest.approx(ood.aupr_in(-outside, -inside), abs=1e-12)
        assert ood.fpr95_ood_positive(inside, outside) == ood.fpr95_id_positive(-outside, -inside)
        for metric in ood.METRICS.values():
            assert metric(np.arctan(inside), np.arctan(outside)) == metric(inside, outside)
            assert metric(inside[::-1], np.random.default_rng(0).permutation(outside)) == metric(inside, outside)


@pytest.mark.parametrize("n", [19, 20, 21, 40, 100])
def test_fpr95_counts_exactly_95_percent(n: int) -> None:
    inside, outside = np.arange(n) + 0.0, np.arange(n) - 0.5
    assert ood.fpr95_id_positive(inside, outside) == pytest.approx(naive.fpr95(inside.tolist(), outside.tolist()))


def test_offsets_do_not_matter() -> None:
    inside, outside = _sides("plain")
    for metric in ood.METRICS.values():
        assert metric(inside + 1e4, outside + 1e4) == metric(inside, outside)


def test_tensors_are_taken() -> None:
    inside, outside = (torch.tensor(side).float() for side in _sides("plain"))
    assert ood.auroc(inside, outside) == ood.auroc(inside.numpy(), outside.numpy())


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        (np.array([1.0, np.nan]), np.ones(3), "id_scores hold 1 NaN of 2"),
        (np.ones(3), np.full(4, np.nan), "ood_scores hold 4 NaN of 4"),
        (np.ones(0), np.ones(3), "id_scores must be a non-empty vector"),
        (np.ones(3), np.ones((2, 2)), "ood_scores must be a non-empty vector"),
        (np.ones(3, np.float16), np.ones(3), "id_scores are in half precision"),
        (np.ones(3), torch.ones(3, dtype=torch.bfloat16), "ood_scores are in half precision"),
    ],
)
def test_unusable_scores_are_refused(inside: np.ndarray, outside: np.ndarray, message: str) -> None:
    for metric in ood.METRICS.values():
        with pytest.raises(ValueError, match=message):
            metric(inside, outside)


def test_msp_ranks_as_the_largest_probability_without_its_ties() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (200, 5))
    exponentials = np.exp(logits)
    largest = (exponentials / exponentials.sum(1, keepdims=True)).max(1)
    assert (np.argsort(scores.msp(logits)) == np.argsort(largest)).all()
    np.testing.assert_allclose(scores.msp(logits), np.log(largest / (1 - largest)), rtol=1e-9)
    sure = scores.msp(np.array([[100.0, 0.0, 0.0], [200.0, 0.0, 0.0]]))
    assert sure[0] < sure[1]  # both probabilities round to 1.0


def test_scores_are_higher_for_certain_images_and_closed_forms_hold() -> None:
    logits = np.array([[5.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    for score in scores.SCORES.values():
        high, low = score(logits)
        assert high > low
        assert score(logits).dtype == np.float64
    assert scores.energy(np.full((1, 4), 1e4))[0] == pytest.approx(1e4 + math.log(4), abs=1e-9)
    assert scores.entropy(np.zeros((1, 8)))[0] == pytest.approx(-math.log(8))
    assert scores.max_logit(logits).tolist() == [5.0, 1.0]


def test_one_class_has_no_confidence_to_rank() -> None:
    for name in ("msp", "entropy"):
        assert scores.SCORES[name](np.array([[3.0], [9.0]])).tolist() == [0.0, 0.0]


def test_half_precision_logits_are_refused_by_scores() -> None:
    with pytest.raises(ValueError, match="must be float32 or float64"):
        scores.energy(torch.zeros(2, 3, dtype=torch.bfloat16))


def test_grad_norm_is_the_gradient_by_finite_differences_and_leaves_parameters_alone() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    net = net.double()
    images = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    expected = []
    for image in images:
        slopes = []
        for i in range(4):
            step = torch.zeros(4, dtype=torch.float64)
            step[i] = 1e-6
            up, down = (net((image + sign * step.view(1, 2, 2))[None]).logsumexp(1) for sign in (1, -1))
            slopes.append(((up - down) / 2e-6).item())
        expected.append(-math.sqrt(sum(slope**2 for slope in slopes)))
    np.testing.assert_allclose(scores.grad_norm(net, images), expected, rtol=1e-5)
    with torch.inference_mode():
        np.testing.assert_allclose(scores.grad_norm(net, images), expected, rtol=1e-5)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_grad_norm_needs_a_gradient() -> None:
    with pytest.raises(ValueError, match="differentiated"):
        scores.grad_norm(lambda images: images.detach().flatten(1), torch.zeros(1, 1, 1, 2))


def _data(n: int, level: float, batch: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = torch.rand(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed)) * level
    return list(zip(images.split(batch), torch.zeros(n, dtype=torch.int64).split(batch), strict=True))


def _model(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1) * 3


def test_result_holds_every_set_and_score_and_the_macro_mean() -> None:
    sets = {"dark": _data(20, 0.3, 7), "dim": _data(40, 0.8, 7, seed=1)}
    result = evaluate_ood(_model, _data(30, 1.0, 7), sets, ["energy", "grad_norm"])
    assert [(row["score"], row["ood_set"]) for row in result.rows] == [
        (score, name) for score in ("energy", "grad_norm") for name in ("dark", "dim", "macro mean")
    ]
    dark, dim, mean = result.rows[:3]
    assert (dark["n_id"], dark["n_ood"], dim["n_ood"]) == (30, 20, 40)
    assert mean["auroc"] == pytest.approx((dark["auroc"] + dim["auroc"]) / 2) == pytest.approx(result.mean("energy"))
    pooled = np.concatenate([result.ood_scores[name]["energy"] for name in sets])
    assert mean["auroc"] != pytest.approx(ood.auroc(result.id_scores["energy"], pooled), abs=1e-6)
    assert dark["auroc"] == pytest.approx(
        naive.auroc(result.id_scores["energy"].tolist(), result.ood_scores["dark"]["energy"].tolist())
    )
    assert len(result.plot().axes) == 6


def test_figures_do_not_depend_on_the_batch_size() -> None:
    names = ["energy", "msp", "entropy", "max_logit", "grad_norm"]
    results = [
        evaluate_ood(_model, _data(30, 1.0, batch), {"dark": _data(20, 0.5, batch)}, names).rows for batch in (1, 7, 30)
    ]
    assert results[0] == results[1] == results[2]


def test_unknown_scores_and_missing_sets_are_named() -> None:
    with pytest.raises(ValueError, match="unknown score 'enery': did you mean 'energy'"):
        evaluate_ood(_model, _data(3, 1.0, 3), {"dark": _data(3, 0.5, 3)}, ["enery"])
    with pytest.raises(ValueError, match="no OOD set"):
        evaluate_ood(_model, _data(3, 1.0, 3), {})
    with pytest.raises(ValueError, match="set 'none' is empty"):
        evaluate_ood(_model, _data(3, 1.0, 3), {"none": []})
    with pytest.raises(ValueError, match="no score"):
        evaluate_ood(_model, _data(3, 1.0, 3), {"dark": _data(3, 0.5, 3)}, [])


def test_curve_without_thinning_is_every_cut_between_scores() -> None:
    inside, outside = _sides("ties")
    found = ood.curve(inside, outside, points=1000)
    assert found.threshold.tolist() == [np.inf, *sorted({*inside, *outside}, reverse=True)]
    for row, threshold in zip(found.rows, found.threshold, strict=True):
        hits, alarms = sum(i >= threshold for i in inside), sum(o >= threshold for o in outside)
        assert row["id_accepted"] == pytest.approx(hits / 60)
        assert row["ood_accepted"] == pytest.approx(alarms / 45)
        assert row["precision_in"] == pytest.approx(hits / (hits + alarms) if hits + alarms else 1)
        left = 105 - hits - alarms
        assert row["precision_out"] == pytest.approx((45 - alarms) / left if left else 1)
    assert np.trapezoid(found.id_accepted, found.ood_accepted) == pytest.approx(ood.auroc(inside, outside))
    steps = np.diff(found.id_accepted) @ found.precision_in[1:]
    assert steps == pytest.approx(ood.aupr_in(inside, outside))


def test_curve_of_precision_and_recall_is_scikit_learns() -> None:
    from sklearn.metrics import precision_recall_curve

    inside, outside = _sides("plain")
    found = ood.curve(inside, outside, points=1000)
    both, is_id = np.concatenate([inside, outside]), np.arange(105) < 60
    precision, recall, _ = precision_recall_curve(is_id, both)
    np.testing.assert_allclose(found.precision_in, precision[::-1])
    np.testing.assert_allclose(found.id_accepted, recall[::-1])
    precision, recall, _ = precision_recall_curve(~is_id, -both)
    np.testing.assert_allclose(found.precision_out, precision)
    np.testing.assert_allclose(1 - found.ood_accepted, recall, atol=1e-12)


def test_thinned_curve_is_a_part_of_the_whole_one_without_gaps() -> None:
    rng = np.random.default_rng(1)
    inside, outside = rng.normal(2, 1, 3000), np.append(rng.normal(0, 1, 6000), np.full(1000, 0.5))
    whole = {tuple(row.values()) for row in ood.curve(inside, outside, points=10**6).rows}
    thin = ood.curve(inside, outside)
    assert len(thin.rows) <= 300 < len(whole)
    assert {tuple(row.values()) for row in thin.rows} <= whole
    assert (thin.id_accepted[0], thin.ood_accepted[0], thin.rows[0]["threshold"]) == (0, 0, None)
    assert (thin.id_accepted[-1], thin.ood_accepted[-1], thin.precision_in[-1]) == (1, 1, 0.3)
    gaps = np.diff(thin.id_accepted) + np.diff(thin.ood_accepted)
    assert (np.sort(gaps)[:-1] <= 2 / 299 + 1 / 3000 + 1e-12).all()
    assert 1 / 7 <= gaps.max() <= 1 / 7 + 2 / 299  # the thousand equal scores are one step
    assert np.trapezoid(thin.id_accepted, thin.ood_accepted) == pytest.approx(ood.auroc(inside, outside), abs=1e-3)


def test_curve_with_infinities_one_score_and_two_points() -> None:
    inside, outside = _sides("inf")
    found = ood.curve(inside, outside)
    assert found.id_accepted[1] == 5 / 60  # the five at +inf, under a threshold of their own
    assert found.ood_accepted[1] == 3 / 45
    alone = ood.curve(np.ones(7), np.ones(5))
    assert (alone.id_accepted.tolist(), alone.ood_accepted.tolist()) == ([0, 1], [0, 1])
    assert len(ood.curve(*_sides("plain"), points=2).rows) == 2
    with pytest.raises(ValueError, match="points must be at least 2, got 1"):
        ood.curve(inside, outside, points=1)


def _many(seed: int = 0, n: int = 40) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Two scores, one of them with many ties, on an ID set and three OOD sets of different sizes."""
    rng = np.random.default_rng(seed)

    def both(mean: float, n: int) -> dict[str, np.ndarray]:
        return {"energy": rng.normal(mean, 1, n), "msp": rng.normal(mean, 1, n).round()}

    return both(2, n), {"a": both(1.5, 25), "b": both(0, 70), "c": both(0.5, 40)}


@pytest.mark.parametrize("score", ["energy", "msp"])
def test_bootstrap_draws_are_the_metrics_of_resampled_images(score: str) -> None:
    inside, outside = _many()
    draws = bootstrap.bootstrap_draws(inside, outside, 30)
    of_id, of_b = np.random.default_rng(0), np.random.default_rng([1, ord("b")])
    for draw in draws["b"][score]:
        chosen, others = of_id.integers(40, size=40), of_b.integers(70, size=70)
        sides = inside[score][chosen].tolist(), outside["b"][score][others].tolist()
        assert draw.tolist() == pytest.approx([ORACLES[metric](*sides) for metric in bootstrap.RESAMPLED], abs=1e-12)


def test_bootstrap_takes_infinities() -> None:
    inside, outside = _sides("inf")
    draws = bootstrap.bootstrap_draws({"x": inside}, {"set": {"x": outside}}, 20)
    finite = bootstrap.bootstrap_draws({"x": np.clip(inside, -99, 99)}, {"set": {"x": np.clip(outside, -99, 99)}}, 20)
    assert np.array_equal(draws["set"]["x"], finite["set"]["x"])
    above = bootstrap.bootstrap_draws({"x": np.zeros(3)}, {"set": {"x": np.full(2, np.inf)}}, 2)
    assert above["set"]["x"].tolist() == [[0, 1, 1]] * 2


def test_draws_of_a_set_do_not_depend_on_other_sets_or_scores() -> None:
    inside, outside = _many()
    whole = bootstrap.bootstrap_draws(inside, outside, 20)
    alone = bootstrap.bootstrap_draws({"msp": inside["msp"]}, {"b": {"msp": outside["b"]["msp"]}}, 20)
    assert np.array_equal(whole["b"]["msp"], alone["b"]["msp"])
    twice = bootstrap.bootstrap_draws(inside, {"a": outside["b"], "b": outside["b"]}, 20)
    assert not np.array_equal(twice["a"]["msp"], twice["b"]["msp"])


def _delong(inside: np.ndarray, outside: list[np.ndarray]) -> float:
    """Standard error of the mean AUROC over sets that share their ID side (DeLong et al. 1988)."""
    wins = [(inside[:, None] > o).astype(float) + (inside[:, None] == o) / 2 for o in outside]
    shared = np.mean([w.mean(1) for w in wins], axis=0).var(ddof=1) / len(inside)
    return math.sqrt(shared + sum(w.mean(0).var(ddof=1) / w.shape[1] for w in wins) / len(wins) ** 2)


def test_intervals_are_as_wide_as_delong_says_and_means_share_their_id_side() -> None:
    rng = np.random.default_rng(2)
    inside = {"energy": rng.normal(1.2, 1, 200)}
    outside = {name: {"energy": rng.normal(0, 1, 1000)} for name in "abc"}
    result = ood.compare("id", inside, outside)
    arrays = [outside[name]["energy"] for name in "abc"]
    for row, sets in zip(result.rows, [[a] for a in arrays] + [arrays], strict=True):
        width = (row["auroc_high"] - row["auroc_low"]) / (2 * 1.96)
        assert width == pytest.approx(_delong(inside["energy"], sets), rel=0.08)
        assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
    widths = [row["auroc_high"] - row["auroc_low"] for row in result.rows]
    assert widths[3] > 0.8 * np.mean(widths[:3])  # of independent sets it would be 1 / sqrt(3) = 0.58


@pytest.mark.parametrize("metric", ["auroc", "fpr95_id_positive", "fpr95_ood_positive"])
def test_bounds_are_quantiles_of_the_draws(metric: str) -> None:
    inside, outside = _many()
    result = ood.compare("id", inside, outside, resamples=50, level=0.8)
    draws = bootstrap.bootstrap_draws(inside, outside, 50)
    k = list(bootstrap.RESAMPLED).index(metric)
    expected = {name: draws[name]["energy"][:, k] for name in "abc"}
    expected[ood.MACRO_MEAN] = (expected["a"] + expected["b"] + expected["c"]) / 3
    for row in result.rows[:4]:
        bounds = row[f"{metric}_low"], row[f"{metric}_high"]
        assert bounds == pytest.approx(tuple(np.quantile(expected[row["ood_set"]], [0.1, 0.9])))


def test_perfect_separation_has_no_spread() -> None:
    row = ood.compare("id", {"x": np.arange(9.0)}, {"set": {"x": np.arange(5.0) - 9}}, resamples=20).rows[0]
    assert (row["auroc_low"], row["auroc_high"]) == (1, 1)
    assert (row["fpr95_id_positive_high"], row["fpr95_ood_positive_high"]) == (0, 0)


def test_groups_have_means_of_their_own() -> None:
    inside, outside = _many()
    result = ood.compare("id", inside, outside, {"a": "near", "b": "far", "c": "far"}, resamples=50)
    rows = {(row["score"], row["ood_set"]): row for row in result.rows}
    assert [row["ood_set"] for row in result.rows] == 2 * ["a", "b", "c", "near mean", "far mean", "macro mean"]
    assert [row["group"] for row in result.rows[:6]] == ["near", "far", "far", "near", "far", None]
    assert [row.get("n_sets") for row in result.rows[:6]] == [None, None, None, 1, 2, 3]
    assert [row["n_ood"] for row in result.rows[:6]] == [25, 70, 40, 25, 110, 135]
    for score in inside:
        for metric in ood.METRICS:
            a, b, c = (rows[score, name][metric] for name in "abc")
            assert rows[score, "far mean"][metric] == pytest.approx((b + c) / 2)
            assert rows[score, "macro mean"][metric] == pytest.approx((a + b + c) / 3)
            assert result.mean(score, metric, "far") == pytest.approx((b + c) / 2)
            assert result.mean(score, metric) == pytest.approx((a + b + c) / 3)
        for key in ("auroc", "auroc_low", "fpr95_ood_positive_high"):
            assert rows[score, "near mean"][key] == rows[score, "a"][key]


def test_a_set_without_a_group_counts_in_the_macro_mean_alone() -> None:
    result = ood.compare("id", *_many(), {"a": "near"}, resamples=5)
    assert [row["ood_set"] for row in result.rows[:5]] == ["a", "b", "c", "near mean", "macro mean"]
    assert [row["group"] for row in result.rows[:5]] == ["near", None, None, "near", None]


def test_one_set_has_no_macro_mean() -> None:
    inside, outside = _many()
    assert len(ood.compare("id", inside, {"a": outside["a"]}, resamples=2).rows) == 2
    rows = ood.compare("id", inside, {"a": outside["a"]}, {"a": "far"}, resamples=2).rows
    assert [row["ood_set"] for row in rows] == 2 * ["a", "far mean"]


def test_intervals_can_be_left_out() -> None:
    inside, outside = _many()
    plain, whole = ood.compare("id", inside, outside, resamples=0), ood.compare("id", inside, outside, resamples=5)
    assert not [key for row in plain.rows for key in row if key.endswith(("_low", "_high"))]
    for row, full in zip(plain.rows, whole.rows, strict=True):
        assert row == {key: full[key] for key in row}


def test_a_result_says_how_its_intervals_were_made_in_plain_json() -> None:
    result = ood.compare("id", *_many(), {"a": "near"}, resamples=5, level=0.9)
    content = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert content["interval"] == {"method": "percentile bootstrap", "resamples": 5, "level": 0.9}
    assert content["rows"] == list(result.rows)
    curves = result.curves(points=20)
    assert {name: list(of_set) for name, of_set in curves.items()} == {name: ["energy", "msp"] for name in "abc"}
    assert curves["a"]["msp"].rows == ood.curve(result.id_scores["msp"], result.ood_scores["a"]["msp"], 20).rows
    assert files.dumps(curves["a"]["energy"].rows)


def test_evaluate_ood_passes_groups_on() -> None:
    sets = {"dark": _data(20, 0.3, 7), "dim": _data(40, 0.8, 7, seed=1)}
    result = evaluate_ood(_model, _data(30, 1.0, 7), sets, ["energy"], groups={"dark": "far"}, resamples=7, level=0.5)
    assert [row["ood_set"] for row in result.rows] == ["dark", "dim", "far mean", "macro mean"]
    assert (result.resamples, result.level) == (7, 0.5)


Change = Callable[[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]], object]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": {"a": "nears"}}, "set 'a': unknown group 'nears', did you mean 'near'"),
        ({"groups": {"z": "near"}}, "groups name the set 'z', valid: a, b, c"),
        ({"resamples": -1}, "resamples must be at least 1, got -1"),
        ({"level": 1.0}, r"level must lie in \(0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments_of_a_comparison_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ood.compare("id", *_many(), **{"resamples": 2} | arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inside, outside: outside["b"].pop("msp"), r"set 'b': has scores \['energy'\], the ID set"),
        (lambda inside, outside: inside.update(msp=np.ones(3)), "id_scores must be of the same images for every score"),
        (
            lambda inside, outside: outside["a"].update(msp=np.ones(3)),
            r"ood_scores of 'a' must be of the same .*'msp': 3",
        ),
        (lambda inside, outside: outside["c"].update(msp=np.full(40, np.nan)), "ood_scores of 'c': 'msp' hold 40 NaN"),
    ],
)
def test_scores_that_do_not_fit_are_named(change: Change, message: str) -> None:
    inside, outside = _many()
    change(inside, outside)
    with pytest.raises(ValueError, match=message):
        ood.compare("id", inside, outside, resamples=2)
