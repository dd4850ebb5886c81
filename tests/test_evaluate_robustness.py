"""Attacks on models that know their own nearest boundary, and the guards around torchattacks."""

from __future__ import annotations

import math
from typing import Any

import naive_metrics as naive
import numpy as np
import pytest
import torch
from torch import nn

from ebmhybrid.evaluate import attacks, evaluate_robustness, robust_cells
from ebmhybrid.evaluate.attack_guards import drawn_seed

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


class Linear(nn.Module):
    """Two classes with logits (0, scale (w.x + b)): the boundary is |w.x + b| / |w| away, |w| in the dual norm."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(12, generator=generator) * scale)
        self.b = nn.Parameter(-0.5 * self.w.detach().sum())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        margin = images.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(margin), margin], 1)

    def distances(self, images: torch.Tensor, norm: str) -> torch.Tensor:
        margin = (images.flatten(1) @ self.w + self.b).detach().abs()
        return margin / (self.w.detach().abs().sum() if norm == "linf" else self.w.detach().norm())


def _grey(n: int = 40) -> torch.Tensor:
    """Images far from 0 and 1, so that the box never binds at the radii used."""
    return 0.4 + 0.2 * torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(2))


def _labelled(model: Any, images: torch.Tensor, batch: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    with torch.no_grad():
        labels = model(images).argmax(1)
    return list(zip(images.split(batch), labels.split(batch), strict=True))


@BOTH
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize("scale", [0.3, 30.0, 1e4])
def test_a_linear_model_falls_exactly_at_its_boundary(attack: str, norm: str, scale: float) -> None:
    model, images = Linear(scale), _grey()
    data = _labelled(model, images)
    for distance in model.distances(images, norm).sort().values[[8, 20, 32]].tolist():
        below, above = (evaluate_robustness(model, data, [attack], norm, distance * f).rows[1] for f in (0.98, 1.02))
        reachable = [(model.distances(images, norm) > distance * f).float().mean().item() for f in (0.98, 1.02)]
        assert [below["robust_accuracy"], above["robust_accuracy"]] == pytest.approx(reachable)
        assert below["robust_accuracy"] > above["robust_accuracy"]
        assert above["max_delta"] == pytest.approx(distance * 1.02, abs=1e-6)


@BOTH
def test_a_confident_plain_network_is_not_robust(norm: str) -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(64, 1, 4, 4), torch.arange(64) % 4
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    rows = evaluate_robustness(net, [(images, labels)], ["pgd"], norm, 0.3 if norm == "linf" else 1.0).rows
    assert rows[0]["clean_accuracy"] > 0.95
    assert rows[1]["robust_accuracy"] == 0.0
    assert rows[1]["zero_gradients"] == 0


def test_small_gradients_do_not_shorten_l2_steps() -> None:
    """Confident models have gradient norms far below the 1e-10 that torchattacks by default adds to them."""
    model, images = Linear(1e4), _grey()
    data = _labelled(model, images)
    eps = model.distances(images, "l2").max().item() * 1.05
    assert evaluate_robustness(model, data, ["pgd"], "l2", eps).rows[1]["robust_accuracy"] == 0.0


def test_vanished_gradients_are_counted() -> None:
    inner = Linear()

    def rounding(images: torch.Tensor) -> torch.Tensor:
        return inner((images * 8).round() / 8)

    row = evaluate_robustness(rounding, _labelled(rounding, _grey()), ["fgsm"], eps=0.2).rows[1]
    assert row["zero_gradients"] == 40
    assert row["robust_accuracy"] == 1  # wrongly so, which is what the count is for


def test_only_right_images_are_attacked_and_shares_are_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, attacked_images = Linear(), _grey(), []
    original = robust_cells.attack_batch

    def spy(target: Any, images: torch.Tensor, *rest: Any) -> Any:
        attacked_images.append(len(images))
        return original(target, images, *rest)

    monkeypatch.setattr(robust_cells, "attack_batch", spy)
    data = [(x, torch.where(torch.arange(len(y)) % 4 == 0, 1 - y, y)) for x, y in _labelled(model, images)]
    clean, attacked = evaluate_robustness(model, data, ["fgsm"], eps=1e-6).rows
    assert sum(attacked_images) == 30
    assert (clean["attack"], clean["eps"]) == ("none", 0)
    assert clean["clean_accuracy"] == clean["robust_accuracy"] == attacked["robust_accuracy"] == 0.75
    assert (attacked["robust_low"], attacked["robust_high"]) == pytest.approx(naive.wilson(30, 40))


def test_rows_of_a_curve_equal_rows_asked_alone_and_fall_with_eps() -> None:
    model, images = Linear(), _grey()
    data = _labelled(model, images)
    radii = [0.001, 0.01, 0.05]
    curve = evaluate_robustness(model, data, ["fgsm", "pgd"], eps=radii).rows
    expected = [(attack, eps) for attack in ("fgsm", "pgd", "worst") for eps in radii]
    assert [(row["attack"], row["eps"]) for row in curve[1:]] == expected
    alone = evaluate_robustness(model, data, ["pgd"], eps=0.01).rows[1]
    assert {k: v for k, v in alone.items() if k != "seconds"} == {k: v for k, v in curve[5].items() if k != "seconds"}
    accuracies = [row["robust_accuracy"] for row in curve[4:7]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[-1]


def _small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3))


@BOTH
def test_figures_do_not_depend_on_the_batches_of_the_set(norm: str) -> None:
    net = _small().eval()
    images = _grey(30)
    found = []
    for batch in (1, 7, 30):
        rows = evaluate_robustness(net, _labelled(net, images, batch), ["pgd"], norm, 0.05, steps=2, batch_size=8).rows
        found.append([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    assert found[0] == found[1] == found[2]


def test_random_starts_follow_the_generator_and_nothing_else() -> None:
    net = _small().eval()
    images = _grey()
    data = _labelled(net, images)

    def delta(seed: int | None) -> float:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        row = evaluate_robustness(net, data, ["pgd"], "l2", 0.01, steps=1, generator=generator).rows[1]
        assert math.isclose(row["max_delta"], 0.01, rel_tol=1e-3)
        starts = torch.empty(3)
        with attacks.forked_rng(attacks.seed_of(drawn_seed(generator)), torch.device("cpu")):
            starts.uniform_()
        return float(starts.sum())

    torch.manual_seed(7)
    before = torch.get_rng_state()
    values = [delta(seed) for seed in (1, 1, 2, None, None)]
    assert torch.equal(torch.get_rng_state(), before)
    assert values[0] == values[1] != values[2]
    assert values[3] == values[4]


def test_restarts_can_only_lower_the_accuracy_and_use_new_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    original = robust_cells.attack_batch

    def spy(target: Any, images: torch.Tensor, labels: torch.Tensor, spec: Any, seed: int, notes: Any) -> Any:
        seeds.append(seed)
        return original(target, images, labels, spec, seed, notes)

    monkeypatch.setattr(robust_cells, "attack_batch", spy)
    net, images = _small().eval(), _grey()
    data = _labelled(net, images, 40)
    once, thrice = (evaluate_robustness(net, data, ["fgsm", "pgd"], eps=0.02, steps=1, restarts=n).rows for n in (1, 3))
    assert thrice[2]["robust_accuracy"] <= once[2]["robust_accuracy"]
    assert (thrice[1]["restarts"], thrice[2]["restarts"]) == (1, 3)
    assert len(seeds) == 2 + 1 + 3
    assert len(set(seeds[3:])) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_random_state_are_left_as_they_were(fails: bool) -> None:
    net = _small()
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    modes = [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    rng = torch.get_rng_state()
    images, labels = _grey(), torch.zeros(40, dtype=torch.int64)
    data = [(images, labels)]
    if fails:
        data.append((images * 3, labels))
        with pytest.raises(ValueError, match="images must lie in"):
            evaluate_robustness(net, data, ["pgd"], steps=2)
    else:
        evaluate_robustness(net, data, ["pgd", "fgsm"], steps=2)
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()][:2] == [False, True]
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_it_works_inside_no_grad_and_inference_mode_and_without_printing(capsys: pytest.CaptureFixture[str]) -> None:
    model = Linear()
    data = _labelled(model, _grey())
    expected = evaluate_robustness(model, data, ["pgd"], eps=0.01).rows[1]["robust_accuracy"]
    with torch.no_grad():
        assert evaluate_robustness(model.forward, data, ["pgd"], eps=0.01).rows[1]["robust_accuracy"] == expected
    with torch.inference_mode():
        assert evaluate_robustness(model, data, ["pgd"], eps=0.01).rows[1]["robust_accuracy"] == expected
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"attacks": ["pdg"]}, "unknown attack 'pdg': did you mean 'pgd'"),
        ({"attacks": []}, "need an attack"),
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
        ({"eps": [0.1, -1]}, "eps must be positive, got -1"),
        ({"eps": float("nan")}, "eps must be positive, got nan"),
        ({"eps": 8}, "eps must be at most 1 for linf, got 8.0"),
        ({"eps": 128.0, "norm": "l2"}, r"eps must be at most sqrt\(C H W\) = 3.464 for l2, got 128"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"limit": 0}, "limit must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_unusable_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(Linear(), _labelled(Linear(), _grey()), **kwargs)


def test_unusable_sets_and_models_are_named() -> None:
    with pytest.raises(ValueError, match="is empty"):
        evaluate_robustness(Linear(), [])
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 5 at image 0"):
        evaluate_robustness(Linear(), [(_grey(1), torch.tensor([5]))])
    with pytest.raises(ValueError, match="differentiated"):
        evaluate_robustness(lambda images: images.detach().flatten(1), [(_grey(1), _grey(1).flatten(1).argmax(1))])


def test_limit_is_the_n_of_every_row() -> None:
    rows = evaluate_robustness(Linear(), _labelled(Linear(), _grey()), ["fgsm"], limit=20).rows
    assert {row["n"] for row in rows} == {20}


@BOTH
def test_projection_mends_and_refuses(norm: str) -> None:
    images = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    moved, size = attacks.project(images + 0.7, images, norm, 0.1)
    assert size <= 0.1 + 1e-6
    assert 0 <= moved.min() <= moved.max() <= 1
    assert not moved.requires_grad
    with pytest.raises(RuntimeError, match="attack left its limits"):
        attacks.project(images * torch.nan, images, norm, 0.1)


def test_plot_starts_at_the_clean_accuracy() -> None:
    result = evaluate_robustness(Linear(), _labelled(Linear(), _grey()), ["fgsm", "pgd"], eps=[4 / 255, 8 / 255])
    lines = [np.asarray(line.get_data(), dtype=float) for line in result.plot().axes[0].lines]
    assert next(line[:, 0].tolist() for line in lines if line.shape == (2, 3)) == [0.0, 1.0]
