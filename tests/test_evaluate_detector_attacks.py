"""Attacks on the detector: energies whose optimum in a ball is known, literal ascent, and the guards."""

from __future__ import annotations

import math
from typing import Any

import naive_metrics as naive
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ebmhybrid.evaluate import scores
from ebmhybrid.evaluate.ascent import ascend, margin, value_and_gradient
from ebmhybrid.evaluate.detector_attacks import DIFFERENTIABLE_SCORES, attack_detector
from ebmhybrid.evaluate.detector_robustness import evaluate_detector_robustness
from ebmhybrid.evaluate.predictions import recut

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])
WAYS = pytest.mark.parametrize("direction", ["raise", "lower"])


def _uniform(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT = _uniform(12, seed=1, low=-1.0)
CENTRE = _uniform(12, seed=2, low=0.35, high=0.65)


def linear(images: Tensor) -> Tensor:
    """One logit w.x, hence a log density of w.x."""
    return images.flatten(1) @ WEIGHT.to(images.dtype)[:, None]


def quadratic(images: Tensor) -> Tensor:
    """One logit -||x - m||^2 / 2, a Gaussian's log density."""
    return -(images.flatten(1) - CENTRE.to(images.dtype)).square().sum(1, keepdim=True) / 2


def _literal(x: np.ndarray, gradient: Any, value: Any, norm: str, eps: float, steps: int) -> np.ndarray:
    """Projected gradient ascent on one image, number by number."""
    here, best = list(x), list(x)
    for t in range(steps):
        g = gradient(here)
        length = max(eps / 4, 2.5 * eps / steps) * (steps - t) / steps
        size = math.sqrt(sum(v * v for v in g))
        for i in range(len(x)):
            unit = math.copysign(1.0, g[i]) if norm == "linf" else g[i] / size
            here[i] += length * unit
        far = math.sqrt(sum((a - b) ** 2 for a, b in zip(here, x, strict=True)))
        for i in range(len(x)):
            if norm == "linf":
                here[i] = min(max(here[i], x[i] - eps), x[i] + eps)
            elif far > eps:
                here[i] = x[i] + (here[i] - x[i]) * eps / far
            here[i] = min(max(here[i], 0.0), 1.0)
        if value(here) > value(best):
            best = list(here)
    return np.array(best)


@BOTH
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("eps", [0.05, 0.6])
def test_ascent_takes_the_steps_of_its_formula(norm: str, steps: int, eps: float) -> None:
    images = _uniform(5, 3, 2, 2)
    moved = ascend(lambda x: quadratic(x)[:, 0], images, norm, eps, steps)
    centre = CENTRE.tolist()

    def gradient(x: list[float]) -> list[float]:
        return [c - v for c, v in zip(centre, x, strict=True)]

    def value(x: list[float]) -> float:
        return -sum((c - v) ** 2 for c, v in zip(centre, x, strict=True))

    for one, image in zip(moved.flatten(1), images.flatten(1), strict=True):
        expected = _literal(image.numpy(), gradient, value, norm, eps, steps)
        assert np.allclose(one.numpy(), expected, rtol=0, atol=1e-12)


@WAYS
@pytest.mark.parametrize("eps", [0.01, 0.3])
def test_a_linear_energy_moves_to_the_corner_of_ball_and_box(direction: str, eps: float) -> None:
    images = _uniform(6, 3, 2, 2)
    moved = attack_detector(linear, images, "energy", direction, "linf", eps)
    sign = WEIGHT.sign() * (1 if direction == "raise" else -1)
    expected = (images.flatten(1) + eps * sign).clamp(0, 1)
    assert torch.allclose(moved.flatten(1), expected, rtol=0, atol=1e-12)


@WAYS
def test_a_linear_energy_moves_by_eps_times_the_length_of_its_weight_in_l2(direction: str) -> None:
    images = _uniform(6, 3, 2, 2, low=0.4, high=0.6)
    moved = attack_detector(linear, images, "max_logit", direction, "l2", 0.3)
    change = (linear(moved) - linear(images)).squeeze(1)
    expected = 0.3 * WEIGHT.norm() * (1 if direction == "raise" else -1)
    assert torch.allclose(change, expected.expand(6), rtol=1e-9)


@BOTH
@pytest.mark.parametrize("eps", [0.02, 0.2, 0.9])
def test_a_quadratic_energy_is_raised_to_the_point_of_the_ball_nearest_its_centre(norm: str, eps: float) -> None:
    images = _uniform(6, 3, 2, 2, low=0.1, high=0.9)
    moved = attack_detector(quadratic, images, "energy", "raise", norm, eps, steps=200).flatten(1)
    away = CENTRE - images.flatten(1)
    if norm == "linf":
        best = images.flatten(1) + away.clamp(-eps, eps)
    else:
        best = images.flatten(1) + away * (eps / away.norm(dim=1, keepdim=True)).clamp_max(1)
    # a step of fixed length ends within the last step's length of an optimum inside the ball
    assert torch.allclose(moved, best, rtol=0, atol=0.02 * eps)
    assert (quadratic(moved) >= quadratic(best) - (0.02 * eps) ** 2 * 12).all()


@BOTH
def test_a_quadratic_energy_is_lowered_to_the_farthest_point(norm: str) -> None:
    images = _uniform(6, 3, 2, 2, low=0.4, high=0.6)
    moved = attack_detector(quadratic, images, "energy", "lower", norm, 0.05, steps=50).flatten(1)
    away = images.flatten(1) - CENTRE
    farthest = images.flatten(1) + 0.05 * (away.sign() if norm == "linf" else away / away.norm(dim=1, keepdim=True))
    assert torch.allclose(moved, farthest, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(DIFFERENTIABLE_SCORES))
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_differentiable_scores_are_the_scores_of_the_tables(name: str, offset: float) -> None:
    logits = 8 * torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + offset
    values = DIFFERENTIABLE_SCORES[name](logits)
    assert np.allclose(values.numpy(), scores.SCORES[name](logits), rtol=1e-12, atol=1e-9)
    inputs = logits[:4].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(DIFFERENTIABLE_SCORES[name], (inputs,))


@BOTH
def test_attacked_metrics_are_those_of_the_scores_at_the_known_optimum(norm: str) -> None:
    towards = 0.015 * WEIGHT.sign().reshape(3, 2, 2)
    inside = _uniform(30, 3, 2, 2, low=0.4, high=0.6) + towards
    outside = _uniform(21, 3, 2, 2, seed=5, low=0.4, high=0.6) - towards
    labels, eps = torch.zeros(30, dtype=torch.int64), 0.02
    gain = eps * (WEIGHT.abs().sum() if norm == "linf" else WEIGHT.norm()).item()
    id_scores, ood_scores = linear(inside)[:, 0].tolist(), linear(outside)[:, 0].tolist()
    rows = evaluate_detector_robustness(
        linear, [(inside, labels)], {"far": [(outside, labels[:21])]}, "energy", norm, [eps]
    ).rows
    assert [(row["attacked"], row["eps"]) for row in rows] == [("none", 0), ("ood", eps), ("id", eps), ("both", eps)]
    for row in rows:
        left = [s - gain * (row["attacked"] in ("id", "both")) for s in id_scores]
        right = [s + gain * (row["attacked"] in ("ood", "both")) for s in ood_scores]
        assert row["auroc"] == pytest.approx(naive.auroc(left, right))
        assert row["fpr95_id_positive"] == pytest.approx(naive.fpr95(left, right))
        assert (row["n_id"], row["n_ood"], row["score"], row["id_set"]) == (30, 21, "energy", "test")
        assert row["max_delta"] == pytest.approx(0 if row["attacked"] == "none" else eps, abs=1e-6)
    assert rows[0]["auroc"] > rows[1]["auroc"] > rows[3]["auroc"]


def _small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3)]
    return nn.Sequential(*layers)


def _set(n: int, seed: int, batch: int = 8) -> list[tuple[Tensor, Tensor]]:
    images = _uniform(n, 3, 2, 2, seed=seed).float()
    return [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(batch)]


def _without_seconds(rows: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_figures_do_not_depend_on_the_batches_of_a_set_and_follow_the_seed() -> None:
    def waves(x: Tensor) -> Tensor:
        return torch.cos(40 * x.flatten(1))

    def rows(batch: int, seed: int = 3) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        sets = {"a": _set(20, 1, batch), "b": _set(11, 2, batch)}
        settings: Any = {"eps": [0.02, 0.05], "steps": 2, "restarts": 2, "generator": generator, "batch_size": 8}
        return _without_seconds(evaluate_detector_robustness(waves, _set(17, 0, batch), sets, "msp", **settings).rows)

    found = rows(5)
    assert rows(1) == rows(20) == found
    assert rows(5, 4) != found
    names = [row["ood_set"] for row in found]
    assert names == ["a", "b", "macro mean"] * 7
    for a, b, mean in zip(*[iter(found)] * 3, strict=True):
        assert mean["auroc"] == pytest.approx((a["auroc"] + b["auroc"]) / 2)


@BOTH
@WAYS
def test_an_attack_never_does_worse_than_none_and_restarts_only_help(norm: str, direction: str) -> None:
    net = _small().eval()
    images, sign = _uniform(12, 3, 2, 2, seed=4).float(), 1 if direction == "raise" else -1
    moved = [attack_detector(net, images, "energy", direction, norm, 0.1, 3, restarts) for restarts in (1, 4)]
    clean, once, often = (sign * DIFFERENTIABLE_SCORES["energy"](net(x).double()) for x in (images, *moved))
    assert (once > clean).all()
    assert (often >= once).all()
    assert all(not x.requires_grad and x.dtype == images.dtype and 0 <= x.min() <= x.max() <= 1 for x in moved)
    order = torch.inf if norm == "linf" else 2
    assert all(((x - images).flatten(1).norm(p=order, dim=1) <= 0.1 + 1e-6).all() for x in moved)


@BOTH
def test_restarts_find_what_lies_beyond_a_local_optimum(norm: str) -> None:
    images, starts = torch.full((20, 1, 2, 2), 0.5), torch.Generator().manual_seed(0)

    def waves(x: Tensor) -> Tensor:
        return (torch.cos(40 * (x - 0.5)) + 4 * (x - 0.5).square()).sum((1, 2, 3))

    once, often = (waves(ascend(waves, images, norm, 0.4, 8, restarts, starts)) for restarts in (1, 10))
    assert (once == 4).all()  # the gradient there is 0
    assert (often > 4.1).all()


def test_random_starts_fill_the_ball_and_come_from_the_generator() -> None:
    """Where the gradient is 0 an image stays where it was put, unless the objective is higher at a random start."""
    images = torch.full((64, 1, 4, 4), 0.5)

    def hollow(x: Tensor) -> Tensor:
        return (x - images).abs().sum((1, 2, 3))

    for norm, order in (("linf", torch.inf), ("l2", 2)):
        moved = []
        for seed in (0, 0, 1):
            start = torch.Generator().manual_seed(seed)
            moved.append(ascend(lambda x: hollow(x.detach()) + 0 * x.sum(), images, norm, 0.1, 1, 2, start))
        assert torch.equal(moved[0], moved[1])
        assert not torch.equal(moved[0], moved[2])
        sizes = (moved[0] - images).flatten(1).norm(p=order, dim=1)
        # the norm of a uniform point of a 16-dimensional ball is eps u^(1/16): its median is 0.958 eps
        assert sizes.max() <= 0.1 + 1e-6
        assert sizes.median().item() == pytest.approx(0.1 * 0.5 ** (1 / 16), rel=0.02)


def test_gradients_of_a_random_objective_are_averaged() -> None:
    """Noise 10 times the slope points one draw anywhere; the mean of 400 draws points the right way."""
    images, generator = torch.full((8, 1, 4, 4), 0.5), torch.Generator()

    def noisy(x: Tensor) -> Tensor:
        slope = 1 + 10 * torch.randn(x.shape, generator=generator)
        return ((x - images) * slope).sum((1, 2, 3))

    found = []
    for draws in (1, 400):
        generator.manual_seed(0)
        values, gradient = value_and_gradient(noisy, images, draws)
        found.append((gradient > 0).double().mean().item())
        assert values.shape == (8,)
        assert gradient.mean().item() == pytest.approx(1, abs=5 * 10 / math.sqrt(draws * 128))
    assert found[0] < 0.7
    assert found[1] > 0.95


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_random_state_are_left_as_they_were(fails: bool) -> None:
    net = _small()
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    rng, sets = torch.get_rng_state(), {"far": _set(9, 1)}
    if fails:
        sets["far"].append((2 * sets["far"][0][0], sets["far"][0][1]))
        with pytest.raises(ValueError, match="set 'far': images must lie in"):
            evaluate_detector_robustness(net, _set(9, 0), sets, steps=2)
    else:
        evaluate_detector_robustness(net, _set(9, 0), sets, steps=2)
        attack_detector(net, _set(9, 0)[0][0])
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()][:2] == [False, True]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_it_works_inside_no_grad_and_inference_mode_and_on_one_image() -> None:
    image = _uniform(1, 3, 2, 2)
    expected = attack_detector(linear, image, eps=0.1)
    with torch.no_grad():
        assert torch.equal(attack_detector(linear, image, eps=0.1), expected)
    with torch.inference_mode():
        assert torch.equal(attack_detector(linear, image, eps=0.1), expected)


def test_a_score_may_be_a_function_and_blind_starts_are_counted() -> None:
    def flat(logits: Tensor) -> Tensor:
        return logits[:, 0].clamp(max=0)

    bright = [(torch.full((4, 1, 1, 2), 0.8), torch.zeros(4, dtype=torch.int64))]
    dark = [(torch.full((3, 1, 1, 2), 0.2), torch.zeros(3, dtype=torch.int64))]
    rows = evaluate_detector_robustness(lambda x: x.flatten(1) - 0.5, bright, {"dark": dark}, flat, eps=0.1).rows
    assert [row["zero_gradients"] for row in rows] == [0, 0, 4, 4]
    assert {row["score"] for row in rows} == {"flat"}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"score": "enery"}, "unknown score 'enery': did you mean 'energy'"),
        ({"score": lambda logits: logits}, r"a score must be of shape \(4,\), got \(4, 12\)"),
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"eps": 8}, "eps must be at most 1 for linf"),
        ({"eps": 9.0, "norm": "l2"}, r"sqrt\(C H W\) = 3.464"),
        ({"steps": 0}, "steps must be a whole number"),
    ],
)
def test_unusable_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    data = _set(4, 0)
    with pytest.raises(ValueError, match=message):
        attack_detector(lambda x: x.flatten(1), data[0][0], **kwargs)
    with pytest.raises(ValueError, match=message):
        evaluate_detector_robustness(lambda x: x.flatten(1), data, {"far": data}, **kwargs)


def test_unusable_sets_directions_and_models_are_named() -> None:
    data = _set(4, 0)
    with pytest.raises(ValueError, match="unknown direction 'up'"):
        attack_detector(linear, data[0][0], direction="up")
    with pytest.raises(ValueError, match="no OOD set"):
        evaluate_detector_robustness(linear, data, {})
    with pytest.raises(ValueError, match="set 'far' is empty"):
        evaluate_detector_robustness(linear, data, {"far": []})
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        evaluate_detector_robustness(linear, data, {"far": data}, batch_size=0)
    with pytest.raises(ValueError, match="can be differentiated"):
        attack_detector(lambda x: x.detach().flatten(1), data[0][0])
    with pytest.raises(ValueError, match="its gradient is NaN or inf"):
        ascend(lambda x: (x - x.detach()).abs().sqrt().sum((1, 2, 3)), data[0][0], "linf", 0.1, 2)


def test_margin_and_batches_are_as_they_say() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    assert margin(logits, torch.tensor([1, 0])).tolist() == [-2, 3]
    images, labels = torch.arange(7.0), torch.arange(7)
    for sizes in ([7], [1] * 7, [3, 4]):
        parts = list(recut(zip(images.split(sizes), labels.split(sizes), strict=True), 3))
        assert [part[0].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6]]
        assert [part[1].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5], [6]]


def test_plot_has_a_line_for_each_attacked_side_from_the_clean_auroc() -> None:
    sets = {"a": _set(8, 1), "b": _set(8, 2)}
    result = evaluate_detector_robustness(_small().eval(), _set(8, 0), sets, eps=[0.01, 0.02], steps=2)
    lines = [line for line in result.plot().axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["OOD attacked", "ID attacked", "both attacked"]
    mean = [row for row in result.rows if row["ood_set"] == "macro mean"]
    for line, side in zip(lines, ("ood", "id", "both"), strict=True):
        expected = [row["auroc"] for row in mean if row["attacked"] in ("none", side)]
        assert line.get_ydata().tolist() == expected
        assert line.get_xdata().tolist() == [0, 0.01, 0.02]
    assert isinstance(result.rows, tuple)
    assert result.as_dict()["rows"] == list(result.rows)
