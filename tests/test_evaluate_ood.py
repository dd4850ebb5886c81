"""OOD metrics against loops over the definitions, and scores against closed forms."""

from __future__ import annotations

import math

import naive_metrics as naive
import numpy as np
import pytest
import torch

from ebmhybrid.evaluate import evaluate_ood, ood, scores

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
