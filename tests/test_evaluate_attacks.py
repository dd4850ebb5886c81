"""Each attack against closed forms, what it leaves behind, and what it refuses."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from naive_attacks import LinearClasses, RowClasses, around, distances, grey, labelled
from torch import nn

from ebmhybrid.errors import EbmhybridError, UsageError
from ebmhybrid.evaluate import evaluate_robustness
from ebmhybrid.evaluate.attacked_model import AttackedModel, Differences, Directions, gaps
from ebmhybrid.evaluate.attacks import ATTACKS, attack_batch
from ebmhybrid.evaluate.carlini_wagner import carlini_wagner, margins

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])
PAIRS = [(name, norm) for name, attack in ATTACKS.items() for norm in attack.norms if name != "aa"]
EACH = pytest.mark.parametrize(("name", "norm"), PAIRS)
QUICK: dict[str, Any] = {"steps": 10, "queries": 40}


def _robust(model: Any, data: Any, name: str, norm: str, eps: float, **options: Any) -> np.ndarray:
    return evaluate_robustness(model, data, [name], norm, eps, **options).survivors[name, eps]


@BOTH
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd-ce", "fab"])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_two_linear_classes_fall_exactly_at_their_boundary(name: str, norm: str, scale: float) -> None:
    model, images = LinearClasses(2, scale), grey()
    known = distances(model, images, norm)
    for eps in around(known, 0.6, 0.01):
        found = _robust(model, labelled(model, images), name, norm, eps)
        np.testing.assert_array_equal(found, known > eps)
        assert 0 < found.sum() < len(found)


@BOTH
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-dlr", "fab"])
def test_several_linear_classes_fall_at_the_nearest_boundary(name: str, norm: str) -> None:
    """Of evenly spaced classes: the losses look at the second largest logit, steeply enough at it alone."""
    model, images = RowClasses(scale=1e3), grey()
    known = distances(model, images, norm)
    for eps in around(known, 0.5, 0.03):
        np.testing.assert_array_equal(_robust(model, labelled(model, images), name, norm, eps), known > eps)


@BOTH
def test_fab_finds_the_nearest_of_uneven_classes(norm: str) -> None:
    model, images = LinearClasses(5), grey()
    known = distances(model, images, norm)
    for eps in around(known, 0.5, 0.01):
        np.testing.assert_array_equal(_robust(model, labelled(model, images), "fab", norm, eps), known > eps)


@BOTH
@pytest.mark.parametrize("classes", [2, 4])
def test_square_fells_what_it_may_and_in_the_end_all(norm: str, classes: int) -> None:
    model, images = LinearClasses(classes), grey(12)
    known, data = distances(model, images, norm), labelled(model, images)
    near, far = float(np.quantile(known, 0.8)), float(known.max()) * 5
    found = _robust(model, data, "square", norm, near, queries=200)
    assert found[known > near].all()
    assert not found.all()
    assert not _robust(model, data, "square", norm, far, queries=400).any()


@pytest.mark.parametrize(("classes", "scale"), [(2, 1e-3), (2, 1.0), (5, 1e3)])
def test_cw_finds_the_nearest_boundary(classes: int, scale: float) -> None:
    model, images = LinearClasses(classes, scale), grey()
    known = distances(model, images, "l2")
    data = labelled(model, images)
    for eps in around(known, 0.5, 0.05):
        np.testing.assert_array_equal(_robust(model, data, "cw", "l2", eps, steps=50), known > eps)
    moved = carlini_wagner(AttackedModel(model, None), images, data[0][1], float(known.max()), 50)
    assert (margins(model(moved), data[0][1]) < 0).all()
    ratio = (moved - images).flatten(1).norm(dim=1).numpy() / known
    assert 1 <= ratio.min() <= ratio[known > known.max() / 2].max() < 1.05


def test_cw_moves_pixels_of_exactly_0_and_1_and_torchattacks_does_not() -> None:
    """Both pixels must move to change the decision; tanh has no finite preimage of either."""
    import torchattacks

    model = nn.Flatten()
    images, labels = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]]), torch.tensor([0, 1])
    data = [(images, labels)]
    assert evaluate_robustness(model, data, ["cw"], "l2", 0.75, steps=100).rows[1]["robust_accuracy"] == 0
    assert evaluate_robustness(model, data, ["cw"], "l2", 0.70, steps=100).rows[1]["robust_accuracy"] == 1
    theirs = torchattacks.CW(AttackedModel(model, None), c=10, steps=200)(images, labels)
    assert torch.equal(theirs, images)


def test_cw_raises_its_constant_where_the_slope_comes_late() -> None:
    """The margin 1 - t/10 - 9 t^8/10, t the first pixel's way of 0.5: four times eps^2 does not get past t = 0.5."""

    def model(images: torch.Tensor) -> torch.Tensor:
        way = images[:, 0, 0, 0] / 0.5
        margin = 1 - 0.1 * way - 0.9 * way**8
        return torch.stack([margin, -margin], 1)

    images = torch.zeros(1, 1, 30, 30)
    moved = carlini_wagner(AttackedModel(model, None), images, torch.tensor([0]), 0.52, 60)
    assert 0.5 < moved[0, 0, 0, 0] < 0.52
    assert torch.equal(moved.flatten()[1:], images.flatten()[1:])


def test_cw_treats_each_image_by_itself() -> None:
    """A batch's summed cost decides nothing: far images are not given up because near ones are done."""
    model, images = LinearClasses(3), grey()
    labels = labelled(model, images)[0][1]
    together = carlini_wagner(AttackedModel(model, None), images, labels, 0.5, 30)
    alone = [carlini_wagner(AttackedModel(model, None), images[i : i + 1], labels[i : i + 1], 0.5, 30) for i in (0, 7)]
    torch.testing.assert_close(torch.cat(alone), together[[0, 7]], rtol=0, atol=1e-6)


@EACH
def test_logits_far_from_zero_change_nothing(name: str, norm: str) -> None:
    """torchattacks' CW takes 0 for a class's logit, so that a model of negative logits has no slope for it."""
    images, found = grey(12), []
    for shift in (0.0, -64.0, 64.0):
        model = LinearClasses(3, shift=shift)
        eps = float(np.median(distances(model, images, norm))) * 1.1
        found.append(_robust(model, labelled(model, images), name, norm, eps, **QUICK))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def _small() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Dropout(), nn.Linear(18, 4))
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    return net


def _hidden(net: nn.Module) -> Any:
    return lambda images: net(images)


@EACH
@pytest.mark.parametrize("hidden", [False, True])
def test_every_attack_leaves_the_model_and_the_random_state_alone(name: str, norm: str, hidden: bool) -> None:
    net, images = _small(), grey(6)
    if hidden:
        net.eval()
    modes = [module.training for module in net.modules()]
    flags = [parameter.requires_grad for parameter in net.parameters()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    rng, trace = torch.get_rng_state(), sys.gettrace()
    numpy_rng = np.random.get_state()[1].tolist()  # noqa: NPY002
    labels = torch.arange(6) % 4
    evaluate_robustness(_hidden(net) if hidden else net, [(images, labels)], [name], norm, 0.1, restarts=2, **QUICK)
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.random.get_state()[1].tolist() == numpy_rng  # noqa: NPY002
    assert sys.gettrace() is trace


@EACH
def test_every_attack_stays_in_the_ball_and_in_the_box_and_detached(name: str, norm: str) -> None:
    net = _small().eval()
    images = torch.rand(8, 1, 5, 5, generator=torch.Generator().manual_seed(5)).round(decimals=1)
    images[0], images[1] = 0, 1
    with torch.no_grad():
        labels = net(images).argmax(1)
    asked: list[float] = []
    net.register_forward_pre_hook(lambda module, inputs: asked.extend([inputs[0].min().item(), inputs[0].max().item()]))
    for eps in (0.05, 0.9):
        spec = {"attack": name, "norm": norm, "eps": eps, "steps": 20, "restarts": 2}
        moved, size = attack_batch(AttackedModel(net, None), images, labels, spec, seed=3)
        assert moved.dtype == images.dtype
        assert not moved.requires_grad
        assert 0 <= moved.min() <= moved.max() <= 1
        lengths = (moved.double() - images.double()).flatten(1).norm(dim=1, p=torch.inf if norm == "linf" else 2)
        assert lengths.max() <= eps + 1e-6
        assert size == lengths.max()
    assert 0 <= min(asked) <= max(asked) <= 1


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-dlr", "square"])
def test_random_starts_follow_the_seed(name: str) -> None:
    """APGD and Square reseed with 0 unless told otherwise: every batch and restart would draw the same."""
    model, images = LinearClasses(3), grey(8)
    labels = labelled(model, images)[0][1]
    spec = {"attack": name, "norm": "linf", "eps": 0.001, "steps": 1}
    moved = [attack_batch(AttackedModel(model, None), images, labels, spec, seed)[0] for seed in (1, 1, 2)]
    assert torch.equal(moved[0], moved[1])
    # APGD hands back the images themselves where it fails, so that what it saw is compared below
    seen: list[torch.Tensor] = []

    class Spy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images.detach().clone())
            return model(images)

    calls = []
    for seed in (1, 2):
        seen.clear()
        attack_batch(AttackedModel(Spy(), None), images, labels, spec, seed)
        calls.append(torch.stack(seen))
    assert not torch.equal(*calls)


def test_fab_restarts_start_elsewhere() -> None:
    """Its first start is the image itself, so that restarts made outside would repeat it."""
    starts: list[torch.Tensor] = []
    model, images = LinearClasses(3), grey(4)

    class Spy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.requires_grad:
                starts.append(images.detach().clone())
            return model(images)

    spec = {"attack": "fab", "norm": "linf", "eps": 1e-4, "steps": 1, "restarts": 3}
    attack_batch(AttackedModel(Spy(), None), images, labelled(model, images)[0][1], spec, seed=1)
    assert len(starts) == 3
    assert torch.equal(starts[0], images)
    assert not torch.equal(starts[1], images)
    assert not torch.equal(starts[1], starts[2])


@EACH
def test_one_image_no_right_image_and_two_classes(name: str, norm: str) -> None:
    classes = max(2, ATTACKS[name].classes)
    model, images = LinearClasses(classes), grey(3)
    [(_, labels)] = labelled(model, images)
    single = evaluate_robustness(model, [(images[:1], labels[:1])], [name], norm, 1e-4, **QUICK).rows
    assert [row["robust_accuracy"] for row in single] == [1, 1]
    wrong = evaluate_robustness(model, [(images, (labels + 1) % classes)], [name], norm, 0.5, **QUICK)
    assert [row["robust_accuracy"] for row in wrong.rows] == [0, 0]
    assert wrong.rows[1]["max_delta"] == 0
    assert not wrong.survivors[name, 0.5].any()
    far = evaluate_robustness(model, [(images[:1], labels[:1])], [name], norm, 0.9, steps=40, queries=300).rows
    assert [row["robust_accuracy"] for row in far] == [1, 0]


@EACH
def test_a_float64_model_is_attacked_too(name: str, norm: str) -> None:
    model, images = LinearClasses(3).double(), grey(6).double()
    eps = float(distances(model, images, norm).max()) * 3
    row = evaluate_robustness(model, labelled(model, images), [name], norm, eps, steps=40, queries=400).rows[1]
    assert (row["robust_accuracy"], row["rechecked"]) == (0, 0)


def test_square_needs_no_gradient_and_the_others_say_so() -> None:
    model, images = LinearClasses(3), grey(6)
    data = labelled(model, images)

    def detached(images: torch.Tensor) -> torch.Tensor:
        return model(images.detach()).detach()

    eps = float(distances(model, images, "linf").max()) * 3
    row = evaluate_robustness(detached, data, ["square"], "linf", eps, queries=400).rows[1]
    assert (row["robust_accuracy"], row["zero_gradients"]) == (0, 6)
    for name in ("fgsm", "fab"):
        with pytest.raises(EbmhybridError, match="differentiated"):
            evaluate_robustness(detached, data, ["square", name], "linf", eps)


@pytest.mark.parametrize(
    ("attacks", "options", "message"),
    [
        (["cw"], {"norm": "linf"}, "attack 'cw' exists for norm l2 only, got 'linf'"),
        (["apgd"], {}, "unknown attack 'apgd': did you mean 'pgd'"),
        (["pgd"], {"eot": 0}, "eot must be a whole number of at least 1, got 0"),
        (["square"], {"queries": 0}, "queries must be a whole number of at least 1, got 0"),
        (["apgd-dlr"], {}, "attack 'apgd-dlr' needs at least 3 classes, the model has 2"),
    ],
)
def test_combinations_that_do_not_exist_are_refused(attacks: list[str], options: Any, message: str) -> None:
    model = LinearClasses(2)
    with pytest.raises(EbmhybridError, match=message):
        evaluate_robustness(model, labelled(model, grey(2)), attacks, **options)


def test_a_single_class_and_small_images_are_refused() -> None:
    with pytest.raises(EbmhybridError, match="needs at least 2 classes, the model has 1"):
        evaluate_robustness(LinearClasses(1), [(grey(2), torch.zeros(2, dtype=torch.int64))], ["pgd"])
    small = LinearClasses(2, pixels=16)
    with pytest.raises(EbmhybridError, match="square in l2 needs square images of at least 5 x 5 pixels, got 4 x 4"):
        evaluate_robustness(small, labelled(small, grey(2, side=4)), ["square"], "l2", 0.1)


def test_usage_errors_are_told_apart() -> None:
    with pytest.raises(UsageError):
        evaluate_robustness(LinearClasses(2), [], ["cw"], "linf")


def test_the_wrapped_model_has_the_models_own_gradient_and_mean() -> None:
    net = _small().double().eval()
    images, weight = grey(3).double(), torch.randn(3, 4, dtype=torch.float64)

    def gradient(function: Any, images: torch.Tensor) -> torch.Tensor:
        inputs = images.clone().requires_grad_(True)
        return torch.autograd.grad((function(inputs) * weight).sum(), inputs)[0]

    target = AttackedModel(net, None)
    torch.testing.assert_close(target(images), net(images))
    torch.testing.assert_close(gradient(target, images), gradient(net, images))
    torch.testing.assert_close(gradient(Differences(target), images), gradient(net, images), rtol=1e-6, atol=1e-8)

    draws = iter(range(1, 100))
    scaled = AttackedModel(lambda images: net(images) * next(draws), None, eot=3)
    torch.testing.assert_close(scaled.logits(images), net(images) * 2)
    draws = iter(range(1, 100))
    torch.testing.assert_close(gradient(scaled.logits, images), gradient(net, images) * 2)


@pytest.mark.parametrize("slope", [1e-30, 1e-6, 1.0, 1e6])
def test_directions_are_unit_gradients_of_the_cross_entropy(slope: float) -> None:
    model, images = LinearClasses(2, slope), grey(4)
    labels = labelled(model, images)[0][1]
    inputs = images.clone().requires_grad_(True)
    loss = nn.functional.cross_entropy(Directions(AttackedModel(model, None))(inputs), labels)
    (gradient,) = torch.autograd.grad(loss, inputs)
    away = (model.w[1] - model.w[0]).detach().double() * (1 - 2 * labels)[:, None]
    expected = away / away.norm(dim=1, keepdim=True)
    torch.testing.assert_close(gradient.flatten(1).double(), expected, rtol=1e-5, atol=1e-6)


def test_flat_directions_are_zero_and_not_nan() -> None:
    flat = Directions(AttackedModel(lambda images: images.flatten(1)[:, :2] * 0.0, None))
    inputs = grey(2).requires_grad_(True)
    (gradient,) = torch.autograd.grad(flat(inputs).sum(), inputs)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_gaps_and_margins_on_cases_by_hand() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 4.0, 0.0]])
    assert gaps(logits).tolist() == [3, 0]
    assert gaps(logits[:, :1]).tolist() == [0, 0]
    assert margins(logits, torch.tensor([1, 2])).tolist() == [3, -4]
