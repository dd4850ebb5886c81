"""Models that draw at random, models that float32 protects, and the worst case over attacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from naive_attacks import LinearClasses, distances, grey, labelled
from torch import nn

from ebmhybrid.evaluate import evaluate_robustness, robust_cells
from ebmhybrid.evaluate.robust_cells import Float64

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


class NoisyGradient(nn.Module):
    """A linear model whose gradient is buried in noise: the logits are right, each call's slope is not."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.inner, self.noise = LinearClasses(2, pixels=400), noise

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        still = images - images.detach()  # zeros with a gradient
        drawn = self.noise * torch.randn_like(images)
        return self.inner(images) + torch.stack(
            [(drawn * still).flatten(1).sum(1), (-drawn * still).flatten(1).sum(1)], 1
        )


def _equally_far(model: LinearClasses, gap: float = 0.4, n: int = 12) -> torch.Tensor:
    """Images of class 0 whose logits are all this far apart."""
    slope = (model.w[0] - model.w[1]).detach()
    images = grey(n, side=round(model.w.shape[1] ** 0.5)).flatten(1)
    apart = model(images).detach()
    short = gap - (apart[:, 0] - apart[:, 1])
    return (images + short[:, None] * slope / slope.square().sum()).unflatten(
        1, (1, round(model.w.shape[1] ** 0.5), -1)
    )


def test_averaging_draws_finds_what_one_draw_hides() -> None:
    model = NoisyGradient(2.0)
    images = _equally_far(model.inner)
    eps = 1.5 * float(distances(model.inner, images, "linf").max())
    data = labelled(model, images)
    one, many = (evaluate_robustness(model, data, ["fgsm"], eps=eps, eot=eot).rows for eot in (1, 20))
    assert one[1]["robust_accuracy"] > 0.9
    assert many[1]["robust_accuracy"] == 0
    assert (one[1]["eot"], many[1]["eot"]) == (1, 20)


def test_predictions_are_the_mean_of_as_many_draws() -> None:
    """Each call adds 3, -1, -1, ... to one logit: one call alone is wrong, the mean of four is right."""
    inner, calls = LinearClasses(2), [0]

    def model(images: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        push = 300.0 if calls[0] % 4 == 1 else -100.0
        return inner(images) + torch.tensor([push, -push])

    data = labelled(inner, grey(10))
    result = evaluate_robustness(model, data, ["fgsm"], eps=1e-6, eot=4)
    assert [row["robust_accuracy"] for row in result.rows] == [1, 1]
    calls[0] = 0
    assert evaluate_robustness(model, data, ["fgsm"], eps=1e-6, eot=1).rows[0]["clean_accuracy"] < 0.8


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "square", "fab"])
def test_random_models_are_evaluated_the_same_each_time_and_move_no_random_state(name: str) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    dropped = lambda images: net(nn.functional.dropout(images, 0.3, training=True))  # noqa: E731
    data = [(grey(12), torch.arange(12) % 3)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    rows = []
    for _ in range(2):
        result = evaluate_robustness(dropped, data, [name], eps=0.05, eot=2, steps=4, queries=20)
        rows.append([{key: value for key, value in row.items() if key != "seconds"} for row in result.rows])
        assert torch.equal(torch.get_rng_state(), before)
        torch.randn(3)
        before = torch.get_rng_state()
    assert rows[0] == rows[1]


class Saturated(nn.Module):
    """tanh of a steep linear margin: its slope rounds to 0 beyond 9 in float32 and beyond 19 in float64."""

    def __init__(self, steep: float) -> None:
        super().__init__()
        self.inner = LinearClasses(2, scale=steep)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.inner(images)
        high = torch.tanh(logits[:, 0] - logits[:, 1])
        return torch.stack([high, -high], 1)


def _far_apart(steep: float) -> tuple[Saturated, torch.Tensor]:
    """Images whose margins are all 12."""
    model = Saturated(steep)
    images = grey(12).flatten(1)
    slope = (model.inner.w[0] - model.inner.w[1]).detach()
    logits = model.inner(images).detach()
    images = images + (12 - (logits[:, 0] - logits[:, 1]))[:, None] * slope / slope.square().sum()
    return model, images.reshape(12, 1, 5, 5)


@BOTH
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd-ce"])
def test_survivors_without_a_slope_are_attacked_again_in_float64(name: str, norm: str) -> None:
    model, images = _far_apart(12.0)
    eps = float(distances(model.inner, images, norm).max()) * 1.05
    data = labelled(model, images)
    row = evaluate_robustness(model, data, [name], norm, eps).rows[1]
    assert row["zero_gradients"] == 12
    assert (row["robust_accuracy"], row["doubtful"]) == (0, 0)
    assert row["rechecked"] == row["recheck_fell"] > 0
    assert row["max_delta"] == pytest.approx(eps, abs=1e-6)
    hidden = evaluate_robustness(lambda images: model(images), data, [name], norm, eps).rows[1]
    assert hidden["rechecked"] == hidden["recheck_fell"] == 0
    assert hidden["doubtful"] == round(12 * hidden["robust_accuracy"]) > 0
    near = evaluate_robustness(model, data, [name], norm, eps * 0.9).rows[1]
    assert (near["robust_accuracy"], near["doubtful"], near["rechecked"], near["recheck_fell"]) == (1, 12, 12, 0)


def test_wide_gaps_are_doubtful_too_and_the_model_itself_is_the_judge() -> None:
    """Gaps of 60 are attacked again without falling, gaps of 6 are not; the model's dtype is as before."""
    model = LinearClasses(2, scale=1.0)
    images = torch.cat([_equally_far(model), _equally_far(model, 0.04, 5)])
    steep = nn.Sequential(nn.Flatten(), nn.Linear(25, 2))
    with torch.no_grad():
        steep[1].weight.copy_(model.w * 150)
        steep[1].bias.copy_(model.b * 150)
    row = evaluate_robustness(steep, labelled(steep, images), ["pgd"], eps=1e-4).rows[1]
    assert (row["zero_gradients"], row["doubtful"], row["rechecked"], row["recheck_fell"]) == (0, 12, 12, 0)
    assert row["robust_accuracy"] == 1
    assert steep[1].weight.dtype == torch.float32


def test_ordinary_networks_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust_cells.copy, "deepcopy", lambda model: pytest.fail("copied"))
    model = LinearClasses(3)
    row = evaluate_robustness(model, labelled(model, grey(12)), ["pgd"], eps=0.01).rows[1]
    assert row["robust_accuracy"] > 0
    assert (row["doubtful"], row["rechecked"]) == (0, 0)


def test_square_and_models_that_cannot_be_cast_have_no_second_try() -> None:
    class Single(Saturated):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.dtype != torch.float32:
                raise RuntimeError("float32 only")
            return super().forward(images)

    class Bound(Saturated):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot be copied")

    _, images = _far_apart(12.0)
    for kind in (Single, Bound):
        model = kind(12.0)
        row = evaluate_robustness(model, labelled(model, images), ["fgsm"], eps=0.2).rows[1]
        assert (row["robust_accuracy"], row["doubtful"], row["rechecked"]) == (1, 12, 0)
    model = Saturated(12.0)
    row = evaluate_robustness(model, labelled(model, images), ["square"], eps=1e-4, queries=5).rows[1]
    assert (row["doubtful"], row["rechecked"]) == (12, 0)
    assert Float64(Saturated(1.0).double(), None, 1).get(images) is None
    assert Float64(nn.Flatten(), None, 1).get(images) is None
    double = Float64(model, None, 1)
    assert double.get(images) is double.get(images) is not None


@BOTH
def test_the_worst_case_is_the_union_over_attacks(norm: str) -> None:
    """The cross-entropy of flat logits does not look at the nearest class; FAB does."""
    net, images = LinearClasses(5, scale=1e-3), grey(40)
    data = [(x, y) for x, y in zip(images.split(16), labelled(net, images)[0][1].split(16), strict=True)]
    data[0][1][:4] = (data[0][1][:4] + 1) % 5
    radii = np.quantile(distances(net, images, norm), [0.3, 0.7]).tolist()
    names = ["fgsm", "pgd", "fab"]
    result = evaluate_robustness(net, data, names, norm, radii, steps=3, batch_size=16)
    clean = result.survivors["none", 0.0]
    assert clean.tolist() == [False] * 4 + [True] * 36
    assert [(row["attack"], row["eps"]) for row in result.rows] == [
        ("none", 0.0),
        *((name, eps) for name in [*names, "worst"] for eps in radii),
    ]
    for eps in radii:
        alone = [evaluate_robustness(net, data, [name], norm, eps, steps=3, batch_size=16) for name in names]
        expected = np.ones(40, dtype=bool)
        for name, single in zip(names, alone, strict=True):
            np.testing.assert_array_equal(single.survivors[name, eps], result.survivors[name, eps])
            assert ("worst", eps) not in single.survivors
            expected &= single.survivors[name, eps]
        np.testing.assert_array_equal(result.survivors["worst", eps], expected)
        assert result.survivors["fgsm", eps].sum() > expected.sum() > 0
    for row in result.rows:
        assert row["robust_accuracy"] == result.survivors[row["attack"], row["eps"]].mean()
        assert row["robust_low"] <= row["robust_accuracy"] <= row["robust_high"]
        assert (row["n"], row["clean_accuracy"]) == (40, 0.9)
    worst = {row["eps"]: row for row in result.rows if row["attack"] == "worst"}
    for eps, row in worst.items():
        others = [other for other in result.rows if other["eps"] == eps and other["attack"] != "worst"]
        assert row["seconds"] == pytest.approx(sum(other["seconds"] for other in others))
        assert row["max_delta"] == max(other["max_delta"] for other in others)
    assert "survivors" not in result.as_dict()
