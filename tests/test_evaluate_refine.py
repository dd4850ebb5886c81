"""SGLD-refined inference: a Gaussian whose chain is known, the unrolled loop, and attacks through and around it."""

from __future__ import annotations

import math
from typing import Any

import naive_metrics as naive
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ebmhybrid.evaluate import predict, refine_attacks
from ebmhybrid.evaluate.refine import Refined
from ebmhybrid.evaluate.refine_attacks import evaluate_refined

QUIET: dict[str, Any] = {"noise_std": 0.0, "start_noise": 0.0, "chains": 1}
STIFFNESS, CENTRE = 2.0, 0.5


def gaussian(images: Tensor) -> Tensor:
    """One logit -k ||x - m||^2 / 2: x_{k+1} - m = (1 - a k) (x_k - m) + s z."""
    return -STIFFNESS / 2 * (images - CENTRE).square().flatten(1).sum(1, keepdim=True)


def _uniform(*shape: int, seed: int = 0, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _small(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).to(dtype).eval()


def _unrolled(net: nn.Module, image: Tensor, start: Tensor, noises: list[Tensor], step_size: float) -> Tensor:
    """One chain of one image, its score by central differences of log sum exp."""
    here = (image + start).clamp(0, 1)
    for noise in noises:
        score, h = torch.zeros_like(here), 1e-6
        for i in range(here.numel()):
            high, low = here.clone(), here.clone()
            high.view(-1)[i] += h
            low.view(-1)[i] -= h
            values = [sum(math.exp(v) for v in net(x[None])[0].tolist()) for x in (high, low)]
            score.view(-1)[i] = (math.log(values[0]) - math.log(values[1])) / (2 * h)
        here = (here + step_size * score + noise).clamp(0, 1)
    return here


def test_without_noise_a_gaussian_contracts_to_its_centre() -> None:
    images = _uniform(4, 1, 3, 3)
    for steps, step_size in ((0, 0.3), (1, 0.3), (5, 0.1), (3, 0.7)):
        found = Refined(gaussian, steps, step_size, **QUIET).refine(images)
        expected = CENTRE + (1 - step_size * STIFFNESS) ** steps * (images - CENTRE)
        assert torch.allclose(found, expected.clamp(0, 1), rtol=0, atol=1e-12)


def test_mean_and_variance_of_the_chain_are_those_of_its_closed_form() -> None:
    image, steps, step_size, s, s0 = torch.full((1, 1, 1, 1), 0.6, dtype=torch.float64), 4, 0.2, 0.02, 0.03
    net = Refined(gaussian, steps, step_size, s, start_noise=s0, chains=20000, seed=1)
    found, decay = net.refine(image).flatten(), 1 - step_size * STIFFNESS
    variance = s**2 * sum(decay ** (2 * j) for j in range(steps)) + s0**2 * decay ** (2 * steps)
    mean = CENTRE + decay**steps * 0.1
    assert found.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / 20000))
    assert found.var().item() == pytest.approx(variance, rel=0.05)


def test_refinement_is_the_unrolled_loop_and_logits_are_the_mean_of_chains() -> None:
    net, images = _small(), _uniform(2, 1, 3, 3)
    settings: Any = {"steps": 3, "step_size": 0.4, "noise_std": 0.1, "start_noise": 0.2, "chains": 2, "seed": 7}
    generator = torch.Generator().manual_seed(7)
    draws = [torch.randn(4, 1, 3, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    with torch.no_grad():
        refined, logits = Refined(net, **settings).refine(images), Refined(net, **settings)(images)
        for i in range(2):
            ends = []
            for chain in (2 * i, 2 * i + 1):
                noises = [0.1 * draw[chain] for draw in draws[1:]]
                ends.append(_unrolled(net, images[i], 0.2 * draws[0][chain], noises, 0.4))
                assert torch.allclose(refined[chain], ends[-1], rtol=0, atol=1e-7)
            assert torch.allclose(logits[i], (net(ends[0][None]) + net(ends[1][None]))[0] / 2, rtol=0, atol=1e-6)


def test_the_gradient_goes_through_every_step() -> None:
    image = torch.full((1, 1, 1, 2), 0.55, dtype=torch.float64, requires_grad=True)
    refined = Refined(gaussian, 3, 0.1, **QUIET).refine(image)
    (slope,) = torch.autograd.grad(refined.sum(), image)
    assert torch.allclose(slope, torch.full_like(slope, (1 - 0.1 * STIFFNESS) ** 3), rtol=1e-12)
    net, images = _small(), _uniform(2, 1, 3, 3, low=0.3, high=0.7).requires_grad_(True)

    def logits(x: Tensor) -> Tensor:
        # a wrapper of its own for each call, so that the noise is the same one
        return Refined(net, 3, 0.3, 0.01, start_noise=0.02, chains=2, seed=3)(x)

    assert torch.autograd.gradcheck(logits, (images,), atol=1e-7)
    second = torch.autograd.grad(logits(images).sum(), images)[0]
    one_step = Refined(net, 1, 0.3, 0.01, start_noise=0.02, chains=2, seed=3)(images)
    assert not torch.allclose(second, torch.autograd.grad(one_step.sum(), images)[0], rtol=1e-3)


def test_bpda_has_the_same_logits_and_the_gradient_at_the_refined_images() -> None:
    net, images = _small(), _uniform(3, 1, 3, 3).requires_grad_(True)
    settings: Any = {"steps": 4, "step_size": 2.0, "noise_std": 0.1, "start_noise": 0.1, "chains": 2, "seed": 5}
    exact, straight = Refined(net, **settings), Refined(net, **settings, bpda=True)
    ends = Refined(net, **settings).refine(images.detach()).requires_grad_(True)
    logits = straight(images)
    assert torch.equal(logits, exact(images))
    expected = torch.autograd.grad(net(ends).reshape(3, 2, 3).mean(1)[:, 0].sum(), ends)[0]
    assert (ends == 0).any() or (ends == 1).any()  # clipped pixels too
    found = torch.autograd.grad(logits[:, 0].sum(), images)[0]
    assert torch.allclose(found, expected.reshape(3, 2, 1, 3, 3).sum(1), rtol=1e-12)


def test_noise_follows_the_seed_is_drawn_anew_and_leaves_the_global_state() -> None:
    net, images, rng = _small(torch.float32), _uniform(3, 1, 3, 3).float(), torch.get_rng_state()
    first, second, other = (Refined(net, 2, seed=seed) for seed in (1, 1, 2))
    a, b, c = first(images), second(images), other(images)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert not torch.equal(first(images), a)
    assert torch.equal(first.again(1)(images), a)
    assert torch.equal(torch.get_rng_state(), rng)
    assert first.again(4, bpda=True).bpda
    assert first.again(4).settings == first.settings


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, True), ({"noise_std": 0.0}, True), ({"start_noise": 0.0}, True), (QUIET, False), ({"start_noise": 0}, False)],
)
def test_it_knows_whether_it_draws(changes: dict[str, Any], expected: bool) -> None:
    steps = 2 if expected or changes == QUIET else 0  # without steps their noise plays no part
    net = Refined(_small(), **{"steps": steps, "chains": 1} | changes)
    images = _uniform(2, 1, 3, 3)
    assert net.stochastic is expected
    assert torch.equal(net(images), net(images)) is not expected


def test_images_never_leave_the_box() -> None:
    seen: list[Tensor] = []

    def spy(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return 50 * images.flatten(1).cumsum(1)

    Refined(spy, 5, 1.0, 0.5, start_noise=0.7, chains=2)(_uniform(3, 1, 2, 2))
    assert len(seen) == 6
    assert all(x.min() >= 0 and x.max() <= 1 for x in seen)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_a_model_like_any_other(mode: Any) -> None:
    net, images = _small(torch.float32), _uniform(5, 1, 3, 3).float()
    expected = Refined(net, 2, seed=3)(images)
    with mode():
        logits = Refined(net, 2, seed=3)(images.clone())
    assert torch.equal(logits, expected.detach())
    assert not logits.requires_grad
    predictions = predict(Refined(net, 2, seed=3), [(images, torch.zeros(5, dtype=torch.int64))])
    assert np.allclose(predictions.logits, expected.detach().numpy())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_step_needs_a_gradient_and_sane_settings() -> None:
    images = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="needs a log density that can be differentiated by x"):
        Refined(lambda x: x.detach().flatten(1), 1)(images)
    for changes, message in (
        ({"steps": -1}, "steps must be at least 0 and chains at least 1, got -1 and 5"),
        ({"chains": 0}, "got 10 and 0"),
        ({"noise_std": -0.1}, "noise_std must be at least 0 and finite, got -0.1"),
        ({"step_size": math.nan}, "step_size must be at least 0 and finite, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            Refined(gaussian, **changes)  # type: ignore[arg-type]


class Linear(nn.Module):
    """Logits (m, -m) with m = scale (w.x - w.1 / 2): the boundary is |m| / (scale |w|_1) away in linf."""

    def __init__(self, scale: float = 1.0, size: int = 12) -> None:
        super().__init__()
        self.w = nn.Parameter(scale * torch.randn(size, generator=torch.Generator().manual_seed(1)))

    def forward(self, images: Tensor) -> Tensor:
        values = (images.flatten(1) - 0.5) @ self.w
        return torch.stack([values, -values], 1)

    def distances(self, images: Tensor) -> Tensor:
        return ((images.flatten(1) - 0.5) @ self.w).detach().abs() / self.w.detach().abs().sum()


def _labelled(model: Any, images: Tensor, batch: int = 16) -> list[tuple[Tensor, Tensor]]:
    with torch.no_grad():
        labels = model(images).argmax(1)
    return list(zip(images.split(batch), labels.split(batch), strict=True))


def _accuracies(rows: Any) -> dict[tuple[str, str], float]:
    return {(row["inference"], row["attack"]): row["robust_accuracy"] for row in rows}


def test_without_refinement_every_attack_finds_the_known_boundary() -> None:
    model, images = Linear(), _uniform(40, 3, 2, 2, low=0.4, high=0.6).float()
    eps = model.distances(images).median().item() * 1.001
    data = _labelled(model, images)
    data[0] = (data[0][0], torch.cat([1 - data[0][1][:4], data[0][1][4:]]))
    wrong = torch.arange(40) < 4
    standing = int(((model.distances(images) > eps) & ~wrong).sum())
    result = evaluate_refined(Refined(model, 0, **QUIET), data, eps=eps)
    order = [("plain", "none"), ("plain", "pgd"), ("refined", "none")]
    order += [("refined", attack) for attack in ("transfer", "eot", "bpda", "worst")]
    assert [(row["inference"], row["attack"]) for row in result.rows] == order
    for row in result.rows:
        assert row["robust_accuracy"] == (36 if row["attack"] == "none" else standing) / 40
        assert (row["n"], row["clean_accuracy"], row["eot"]) == (40, 0.9, 1)
        assert (row["robust_low"], row["robust_high"]) == pytest.approx(
            naive.wilson(round(row["robust_accuracy"] * 40), 40)
        )
        assert row["max_delta"] == pytest.approx(0 if row["attack"] == "none" else eps, abs=1e-6)
    assert 0 < standing < 36
    assert result.as_dict()["settings"] == {"steps": 0, "step_size": 0.25} | QUIET


def test_a_refinement_that_hides_its_gradient_is_broken_by_another_attack() -> None:
    """One step so long that every pixel is clipped: the derivative through it is exactly 0, the decision the same."""
    model, images = Linear(), _uniform(24, 3, 2, 2, low=0.4, high=0.6).float()
    eps = model.distances(images).max().item() * 1.05
    found = _accuracies(evaluate_refined(Refined(model, 1, 1e4, **QUIET), _labelled(model, images), eps=eps).rows)
    assert found["plain", "pgd"] == 0
    assert found["refined", "none"] == found["refined", "eot"] == 1
    assert found["refined", "transfer"] == found["refined", "bpda"] == found["refined", "worst"] == 0


def test_a_refinement_that_misleads_the_identity_is_broken_through_its_steps() -> None:
    """The chain mirrors an image at the centre, so that the plain net's images and BPDA push the wrong way."""
    weight = 0.3 * torch.randn(4, generator=torch.Generator().manual_seed(0))

    def mirrored(images: Tensor) -> Tensor:
        values = (images.flatten(1) - 0.5) @ weight
        bowl = -5 * (images - 0.5).square().flatten(1).sum(1)
        return torch.stack([values, -values], 1) + bowl[:, None]

    images = _uniform(32, 1, 2, 2, low=0.3, high=0.7).float()
    refined = Refined(mirrored, 1, 0.2, **QUIET)
    data = _labelled(refined, images)
    found = _accuracies(evaluate_refined(refined, data, eps=0.2, steps=10).rows)
    assert found["refined", "none"] == found["refined", "transfer"] == found["refined", "bpda"] == 1
    assert found["refined", "eot"] == found["refined", "worst"] < 0.1
    # labelled by the plain net, every image is wrong for the refined one, and an attack cannot make it count as robust
    wrong = _accuracies(evaluate_refined(refined, _labelled(mirrored, images), eps=0.2, steps=3).rows)
    assert all(value == 0 for (inference, _), value in wrong.items() if inference == "refined")


def test_averaging_draws_breaks_what_one_draw_does_not() -> None:
    """The start noise is much larger than the ball: a single draw's gradient is mostly about the noise."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        net[1].weight.mul_(25)
    images = _uniform(48, 1, 4, 4).float()
    refined = Refined(net, 0, start_noise=0.2, chains=8)
    labels = Refined(net, 0, start_noise=0.2, chains=2000)(images).argmax(1)
    once, often = (
        _accuracies(evaluate_refined(refined, [(images, labels)], eps=0.06, steps=8, eot=eot).rows) for eot in (1, 20)
    )
    assert often["refined", "eot"] < once["refined", "eot"] - 0.05


def _stripped(rows: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_figures_do_not_depend_on_batches_and_follow_the_generator() -> None:
    net, images = Linear(9.0, size=9), _uniform(14, 1, 3, 3).float()

    def rows(batch: int, seed: int = 1) -> list[dict[str, Any]]:
        refined, generator = Refined(net, 1, 0.5, 0.05, start_noise=0.3, chains=1), torch.Generator().manual_seed(seed)
        refined(images)  # the wrapper's own state plays no part
        data = _labelled(net, images, batch)
        settings: Any = {"steps": 1, "restarts": 2, "eot": 2, "generator": generator, "batch_size": 8}
        return _stripped(evaluate_refined(refined, data, "l2", [0.05, 0.1], **settings).rows)

    found = rows(14)
    assert rows(3) == found
    assert rows(14, 2) != found
    for row in found:
        assert row["eot"] == (2 if row["attack"] in ("eot", "bpda", "worst") else 1)
    names = [(row["attack"], row["eps"]) for row in found]
    assert names[:4] == [("none", 0.0), ("pgd", 0.05), ("pgd", 0.1), ("none", 0.0)]
    by_eps = {(row["attack"], row["eps"]): row["robust_accuracy"] for row in found[3:]}
    for eps in (0.05, 0.1):
        assert by_eps["worst", eps] <= min(by_eps[attack, eps] for attack in refine_attacks.REFINED_ATTACKS)


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_random_state_are_left_as_they_were(fails: bool) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(18, 3))
    net[1].eval()
    net[0].weight.requires_grad_(False)
    modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    rng, images = torch.get_rng_state(), _uniform(6, 1, 3, 3).float()
    data = [(images * (3 if fails else 1), torch.zeros(6, dtype=torch.int64))]
    if fails:
        with pytest.raises(ValueError, match="images must lie in"):
            evaluate_refined(Refined(net, 1), data)
    else:
        evaluate_refined(Refined(net, 1), data, steps=1, eot=2)
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
        ({"eot": 0}, "batch_size and eot must be at least 1, got 32 and 0"),
        ({"steps": 0}, "steps must be a whole number"),
    ],
)
def test_unusable_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_refined(Refined(Linear(), 1), _labelled(Linear(), _uniform(4, 3, 2, 2).float()), **kwargs)


def test_unusable_sets_are_named() -> None:
    with pytest.raises(ValueError, match="set 'test' is empty"):
        evaluate_refined(Refined(Linear(), 1), [])
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 5"):
        evaluate_refined(Refined(Linear(), 1), [(_uniform(1, 3, 2, 2).float(), torch.tensor([5]))])
