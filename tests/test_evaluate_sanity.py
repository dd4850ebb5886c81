"""The sanity panel: networks whose gradients are masked on purpose are flagged, honest ones are not."""

from __future__ import annotations

import json
from functools import cache
from math import comb
from typing import Any

import naive_metrics as naive
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ebmhybrid.evaluate import evaluate_robustness, sanity, sanity_evidence
from ebmhybrid.evaluate.robustness import RobustnessResult
from ebmhybrid.evaluate.sanity import sanity_panel
from ebmhybrid.evaluate.sanity_verdicts import (
    CHECKS,
    black_box_survivors,
    clearly_above,
    falling_survivors,
    notable,
    rises,
)

N, EPS = 24, 0.1
QUICK: dict[str, Any] = {"eps": EPS, "steps": 40, "queries": 150}
MASKED = {"black box", "unbounded eps"}


@cache
def _images() -> Tensor:
    return torch.rand(N, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@cache
@torch.enable_grad()
def _net() -> nn.Sequential:
    """A small network trained as usual, whose logits stay small enough for float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(_images()), torch.arange(N) % 3).backward()
        optimizer.step()
    return net.eval()


def _panel(model: Any, images: Tensor | None = None, **changes: Any) -> sanity.SanityResult:
    images = _images() if images is None else images
    with torch.no_grad():
        labels = model(images).argmax(1)
    return sanity_panel(model, [(images, labels)], **QUICK | changes)


def _statuses(result: sanity.SanityResult) -> dict[str, str]:
    return {row["check"]: row["status"] for row in result.rows}


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_plain_network_passes(norm: str) -> None:
    result = _panel(_net(), norm=norm, eps=EPS if norm == "linf" else 0.8)
    assert result.warnings == ()
    assert [row["check"] for row in result.rows] == [*CHECKS, "unusually robust"]
    values = {row["check"]: row["value"] for row in result.rows}
    assert values["unbounded eps"] == values["zero gradients"] == values["stochastic"] == 0
    assert {row["n"] for row in result.rows} == {N}


def test_a_model_with_a_large_margin_is_informed_about_and_not_flagged() -> None:
    """Bright and dark images: mean brightness is a linear rule, its boundary 0.3 away from every image."""
    images = _images() * 0.1 + torch.where(torch.arange(N) % 2 == 0, 0.1, 0.8).reshape(-1, 1, 1, 1)

    def brightness(x: Tensor) -> Tensor:
        margin = 10 * (x.mean((1, 2, 3)) - 0.5)
        return torch.stack([-margin, margin], 1)

    result = _panel(brightness, images, eps=0.1)
    assert result.warnings == ()
    row = result.rows[-1]
    assert (row["check"], row["status"], row["value"]) == ("unusually robust", "info", 1.0)
    assert row["meaning"] in result.text()


def _stairs(x: Tensor) -> Tensor:
    """Inputs rounded: the gradient is 0 almost everywhere."""
    return _net()((x * 8).round() / 8)


def _shattered(x: Tensor) -> Tensor:
    """A ripple too small to change a decision and too steep for its slope to mean anything."""
    return _net()(x + 0.01 * torch.sin(1e5 * x))


def _rounded_logits(x: Tensor) -> Tensor:
    return (2 * _net()(x)).round()


class _Distilled(nn.Module):
    """Defensive distillation as Papernot et al. 2016: trained at a high temperature, used at 1."""

    def forward(self, x: Tensor) -> Tensor:
        return 100 * _net()(x)


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (_stairs, MASKED | {"zero gradients", "random noise"}),
        (_rounded_logits, MASKED | {"zero gradients", "random noise"}),
        (_shattered, MASKED),
        (lambda x: 1e4 * _net()(x), {"saturated logits"}),
        (_Distilled(), {"saturated logits"}),
        (lambda x: _net()(x).softmax(1), {"probabilities"}),
    ],
    ids=["stairs", "rounded logits", "shattered", "scaled", "distilled", "probabilities"],
)
def test_masked_gradients_are_flagged(plant: Any, expected: set[str]) -> None:
    found = set(_panel(plant, eps=0.15).warnings)
    # random noise may or may not reach the boundary of the rounded models
    assert expected - {"random noise"} <= found <= expected | {"eps curve", "more steps", "random noise"}


def test_a_random_layer_is_flagged_and_decisions_are_those_of_the_mean_of_the_calls() -> None:
    def noisy(x: Tensor) -> Tensor:
        logits = _net()(x)
        return logits + 5 * torch.randn_like(logits)

    labels = _net()(_images()).argmax(1)
    settings = QUICK | {"steps": 20, "queries": 5}
    once, averaged = (sanity_panel(noisy, [(_images(), labels)], **settings, eot=eot) for eot in (1, 12))
    assert {_statuses(result)["stochastic"] for result in (once, averaged)} == {"warn"}
    assert once.rows[0]["n"] < 0.85 * N < 0.95 * N <= averaged.rows[0]["n"]
    assert averaged.settings["eot"] == 12


# Verdicts from hand-made evidence: 100 images, all of which stand against everything but what is named.
def _seen(**fallen: int) -> dict[str, np.ndarray]:
    masks = {key: np.ones(100, dtype=bool) for key in ("half", "few", "double", "many", "wide", "square", "noise")}
    for key, count in fallen.items():
        masks[key][:count] = False
    return masks


@pytest.mark.parametrize(
    ("check", "fallen", "status", "value"),
    [
        ("more steps", {"few": 40, "many": 46}, "pass", 0.06),
        ("more steps", {"few": 40, "many": 47}, "warn", 0.07),
        ("more steps", {"few": 47, "many": 40}, "pass", -0.07),
        ("unbounded eps", {"wide": 97}, "warn", 0.03),
        ("unbounded eps", {"wide": 98}, "pass", 0.02),
        ("unbounded eps", {"wide": 50, "half": 100}, "pass", 0.0),
        ("black box", {"square": 3}, "warn", 0.03),
        ("black box", {"square": 2}, "pass", 0.02),
        ("black box", {"square": 9, "many": 9}, "pass", 0.0),
        ("black box", {"square": 9, "few": 9}, "pass", 0.0),
        ("random noise", {"noise": 3}, "warn", 0.03),
        ("random noise", {"noise": 3, "many": 1}, "pass", 0.02),
        ("eps curve", {"half": 30, "few": 23, "double": 40}, "warn", 0.07),
        ("eps curve", {"half": 30, "few": 24, "double": 40}, "pass", 0.06),
        ("eps curve", {"half": 10, "few": 30, "double": 10}, "warn", 0.2),
        ("eps curve", {"half": 10, "few": 20, "double": 30}, "pass", 0.0),
    ],
)
def test_verdicts_on_attacks(check: str, fallen: dict[str, int], status: str, value: float) -> None:
    verdict = CHECKS[check].judge(_seen(**fallen))
    assert verdict.status == status
    assert verdict.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("check", "key", "values", "status", "value"),
    [
        ("zero gradients", "vanished", [True] + [False] * 99, "warn", 0.01),
        ("zero gradients", "vanished", [False] * 100, "pass", 0.0),
        ("saturated logits", "gap", [17.1] * 3 + [16.9] * 97, "warn", 0.03),
        ("saturated logits", "gap", [17.1] * 2 + [17.0] * 98, "pass", 0.02),
        ("stochastic", "drift", [2e-4] + [0.0] * 99, "warn", 0.01),
        ("stochastic", "drift", [5e-5] * 100, "pass", 0.0),
        ("probabilities", "sums_to_one", [True] * 100, "warn", 1.0),
        ("probabilities", "sums_to_one", [True] * 99 + [False], "pass", 0.99),
    ],
)
def test_verdicts_on_logits(check: str, key: str, values: list[Any], status: str, value: float) -> None:
    verdict = CHECKS[check].judge({key: np.array(values)})
    assert (verdict.status, verdict.value) == (status, pytest.approx(value))


def test_saturation_tells_how_many_float64_cannot_save() -> None:
    assert CHECKS["saturated logits"].judge({"gap": np.array([31.0, 29, 18, 1])}).detail == "25.0% beyond 30"


@pytest.mark.parametrize(("gained", "lost", "n"), [(7, 0, 100), (6, 0, 100), (30, 12, 100), (20, 10, 100), (9, 0, 900)])
def test_notable_is_the_sign_test_and_two_percent(gained: int, lost: int, n: int) -> None:
    tosses = gained + lost
    p = sum(comb(tosses, k) for k in range(gained, tosses + 1)) / 2**tosses
    assert notable(gained, lost, n) == (p < 0.01 and (gained - lost) / n > 0.02)


@pytest.mark.parametrize(("count", "n"), [(0, 5), (1, 5), (2, 100), (3, 100), (22, 1500), (23, 1500)])
def test_clearly_above_is_the_wilson_interval(count: int, n: int) -> None:
    assert clearly_above(count, n) == (naive.wilson(count, n)[0] > 0.01)


def test_survivors_of_a_robustness_result_count_for_the_eps_curve() -> None:
    masks = {("none", 0.0): 100, ("pgd", 0.2): 60, ("pgd", 0.1): 50, ("square", 0.1): 50, ("square", 0.2): 40}
    survivors = {key: np.arange(100) < standing for key, standing in masks.items()}
    verdict = falling_survivors(survivors)
    assert (verdict.status, verdict.value, verdict.detail) == ("warn", 0.1, "of pgd")
    given = RobustnessResult((), survivors)
    assert "eps curve" in _panel(_net(), robustness=given).warnings
    assert falling_survivors({key: mask for key, mask in survivors.items() if key[0] != "pgd"}).status == "pass"
    data = [(_images(), torch.arange(N) % 3)]
    real = evaluate_robustness(_net(), data, ["fgsm", "pgd"], eps=[0.02, 0.1], steps=5)
    assert _panel(_net(), robustness=real).warnings == ()
    assert rises([survivors["pgd", 0.1]]).status == "pass"


def test_images_already_wrong_are_left_out_and_shares_are_of_the_rest() -> None:
    labels = _net()(_images()).argmax(1)
    labels[:10] = (labels[:10] + 1) % 3
    result = sanity_panel(_stairs, [(_images(), labels)], **QUICK, limit=20)
    assert result.settings["images"] == 20
    right = int((_stairs(_images())[:20].argmax(1) == labels[:20]).sum())
    assert {row["n"] for row in result.rows} == {right}
    assert next(row for row in result.rows if row["check"] == "zero gradients")["value"] == 1.0


def test_logits_of_wrong_images_do_not_count() -> None:
    large = torch.arange(N) < 10
    labels = torch.where(large, _net()(_images()).argmax(1) + 1, _net()(_images()).argmax(1)) % 3

    def uneven(x: Tensor) -> Tensor:
        known = (x[:, None] == _images()[large]).flatten(2).all(2).any(1)
        return _net()(x) * torch.where(known, 1e3, 1.0)[:, None]

    result = sanity_panel(uneven, [(_images(), labels)], **QUICK | {"steps": 20, "queries": 5})
    assert next(row for row in result.rows if row["check"] == "saturated logits")["value"] == 0


@pytest.mark.parametrize(("norm", "order"), [("linf", torch.inf), ("l2", 2)])
def test_noise_lies_on_the_surface_of_the_ball_and_one_draw_suffices(norm: str, order: float) -> None:
    images, seen = torch.full((5, 1, 4, 4), 0.5), []

    def spy(x: Tensor) -> Tensor:
        seen.append(x - 0.5)
        # the first image falls to the third draw alone
        falls = (torch.arange(5) == 0) & (len(seen) == 3)
        return torch.stack([1 - 2 * falls.double(), torch.zeros(5)], 1)

    target, labels = sanity_evidence.AttackedModel(spy, None), torch.zeros(5, dtype=torch.int64)
    standing = sanity_evidence._stands_noise(target, images, labels, norm, 0.1, "test")
    assert standing.tolist() == [False, True, True, True, True]
    sizes = torch.cat(seen).flatten(1).norm(p=order, dim=1)
    assert len(seen) == 20
    assert torch.allclose(sizes, torch.full_like(sizes, 0.1), atol=1e-6)
    if norm == "linf":
        assert torch.allclose(torch.cat(seen).abs(), torch.tensor(0.1), atol=1e-6)


def test_nothing_to_attack_is_not_a_pass() -> None:
    labels = (_net()(_images()).argmax(1) + 1) % 3
    result = sanity_panel(_net(), [(_images(), labels)], **QUICK)
    assert set(_statuses(result).values()) == {"not run"}
    assert all(row["value"] is None and row["n"] == 0 for row in result.rows)
    assert "no image is right" in result.text()


def test_what_cannot_run_says_so() -> None:
    images = _images()[:, :, :4, :]
    result = _panel(lambda x: 9 * x.mean(2).flatten(1), images, norm="l2", eps=0.4, steps=20)
    assert _statuses(result)["black box"] == _statuses(result)["unusually robust"] == "not run"
    assert "Square in l2 needs square images" in result.text()


@pytest.mark.parametrize(("norm", "eps", "status"), [("linf", 7.9 / 255, "not run"), ("linf", 8 / 255, "info")])
def test_robustness_is_unusual_from_the_usual_radius_on(norm: str, eps: float, status: str) -> None:
    seen = _seen(few=85, many=88, square=89)
    verdict = sanity.unusually_robust(seen, norm, eps)
    assert verdict.status == status
    assert verdict.value == (None if status == "not run" else pytest.approx(0.11))
    assert sanity.unusually_robust(_seen(square=90), norm, 8 / 255).status == "pass"


def test_rows_are_json_and_the_text_says_what_a_warning_means() -> None:
    result = _panel(_stairs)
    assert (
        json.loads(json.dumps(result.as_dict()))["settings"]
        == {"set": "test", "images": N, "norm": "linf", "eot": 1} | QUICK
    )
    text = result.text()
    assert f"{len(result.warnings)} warn" in text.splitlines()[0]
    for row in result.rows:
        assert row["check"] in text
        assert (row["meaning"] in text) == (row["status"] in ("warn", "info"))
    assert all(len(line) <= 160 for line in text.splitlines())


def test_figures_do_not_depend_on_batches_and_follow_the_generator() -> None:
    data = [(_images()[:16], _net()(_images()[:16]).argmax(1))]
    parts = list(zip(*(part.split(5) for part in data[0]), strict=True))
    short = QUICK | {"steps": 20, "queries": 20}

    def rows(source: Any, seed: int = 1) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return sanity_panel(_shattered, source, **short, batch_size=10, generator=generator).rows

    assert rows(data) == rows(parts)
    assert rows(data) != rows(data, 2)


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_random_state_are_left_as_they_were(fails: bool) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(72, 3))
    net[1].eval()
    net[0].weight.requires_grad_(False)
    modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    rng, data = torch.get_rng_state(), [(_images() * (3 if fails else 1), torch.arange(N) % 3)]
    if fails:
        with pytest.raises(ValueError, match="images must lie in"):
            sanity_panel(net, data, **QUICK)
    else:
        sanity_panel(net, data, **QUICK | {"steps": 20, "queries": 5})
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()][:2] == [False, True]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"eps": 8}, "eps must be at most 1 for linf"),
        ({"eps": 7.0, "norm": "l2"}, r"sqrt\(C H W\) = 6 for l2, got 7.0"),
        (
            {"steps": 19},
            "need steps >= 20 and queries, eot and batch_size >= 1, got steps=19, queries=150, eot=1, batch",
        ),
        ({"queries": 0}, "queries=0"),
        ({"eot": 0}, "eot=0"),
        ({"limit": 0}, "limit must be a whole number of at least 1"),
    ],
)
def test_unusable_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _panel(_net(), **kwargs)


def test_unusable_sets_are_named() -> None:
    with pytest.raises(ValueError, match="set 'test' is empty"):
        sanity_panel(_net(), [], **QUICK)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\), got 5"):
        sanity_panel(_net(), [(_images()[:1], torch.tensor([5]))], **QUICK)


def test_square_beating_all_gradient_attacks_of_a_result_is_a_warning() -> None:
    stands, falls = np.ones(200, dtype=bool), np.arange(200) >= 20
    survivors = {("none", 0.0): stands, ("apgd-ce", 0.1): stands, ("pgd", 0.1): stands, ("square", 0.1): falls}
    verdict = black_box_survivors(survivors)
    assert (verdict.status, verdict.value, verdict.detail, verdict.n) == ("warn", 0.1, "at eps = 0.1", 200)
    (row,) = [
        row for row in _panel(_net(), robustness=RobustnessResult((), survivors)).rows if row["check"] == "black box"
    ]
    assert (row["status"], row["n"]) == ("warn", 200)
    # one gradient attack that finds them too, or a Square that finds no more, is none
    assert black_box_survivors(survivors | {("pgd", 0.1): falls}).status == "pass"
    assert black_box_survivors(survivors | {("square", 0.1): stands}).status == "pass"
    # fgsm is too weak to be compared with, and other radii say nothing
    assert black_box_survivors({("fgsm", 0.1): stands, ("square", 0.1): falls}).value == 0
    assert black_box_survivors({("pgd", 0.2): stands, ("square", 0.1): falls}).value == 0
