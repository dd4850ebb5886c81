"""Sharpness-aware minimisation against a literal version, and what it must leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ebmhybrid as eh
from ebmhybrid.training import step
from ebmhybrid.training.build import build_parts, load_data
from ebmhybrid.training.sam import ascent_direction, perturbed


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_direction_is_the_papers(adaptive: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weights, gradients = (
        [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((3, 2), (4,))] for _ in range(2)
    )
    squares = sum(
        (abs(w) * g) ** 2 if adaptive else g**2
        for ws, gs in zip(weights, gradients, strict=True)
        for w, g in zip(ws.flatten().tolist(), gs.flatten().tolist(), strict=True)
    )
    for found, w, g in zip(ascent_direction(weights, gradients, 0.7, adaptive), weights, gradients, strict=True):
        wanted = 0.7 * (w * w * g if adaptive else g) / squares**0.5
        torch.testing.assert_close(found, wanted)


def test_a_gradient_of_zero_moves_nothing() -> None:
    (found,) = ascent_direction([torch.ones(2)], [torch.zeros(2)], 1.0, False)
    assert found.tolist() == [0.0, 0.0]


def test_weights_statistics_and_momentum_come_back() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = torch.randn(8, 3)
    net(x).square().sum().backward()
    net[2].bias.grad = None
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with perturbed(net, 0.5, adaptive=False):
        moved = {name: value.clone() for name, value in net.named_parameters()}
        net(x + 1)
    assert net[1].momentum == 0.1
    after = net.state_dict()
    for name, value in before.items():
        if name != "1.num_batches_tracked":
            assert torch.equal(after[name], value), name
    distance = sum((moved[name] - before[name]).square().sum() for name in moved) ** 0.5
    assert distance.item() == pytest.approx(0.5, rel=1e-5)
    assert torch.equal(moved["2.bias"], before["2.bias"])


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_reference_images_enter_the_bank_beside_the_batch(weight: float) -> None:
    options = ["reference.families=[smooth]", f"objective.hdge.reference_weight={weight}", "model.norm=none"]
    banks = []
    for rho in (0.0, 0.3):
        recipe = eh.load_recipe("smoke", [*options, f"optimizer.sam_rho={rho}"])
        splits = load_data(recipe, "data", False)
        parts = build_parts(recipe, splits, torch.device("cpu"))
        step.train_step(parts, parts.model, splits.train.images[:32].float() / 255, splits.train.labels[:32])
        banks.append(parts.objective.hdge.bank)
    assert banks[0].count() == banks[1].count() == 48
    torch.testing.assert_close(banks[0].log_sum(), banks[1].log_sum())
    assert banks[1].training


@pytest.mark.parametrize("bank", [False, True])
def test_a_step_takes_the_gradient_at_the_perturbed_weights(bank: bool) -> None:
    """Plain SGD at lr 1 moves the weights by exactly that gradient; the bank takes the batch once."""
    form = "{negatives: bank, bank_size: 256}" if bank else "{form: paper, negatives: batch}"
    options = [f"objective.hdge={form}", "model={depth: 10, width: 1, norm: none}", "schedule.name=constant"]
    options += ["optimizer={lr: 1.0, momentum: 0.0, weight_decay: 0.0, sam_rho: 0.3}"]
    recipe = eh.load_recipe("smoke", options)
    splits = load_data(recipe, "data", False)
    parts, literal = (build_parts(recipe, splits, torch.device("cpu")) for _ in range(2))
    x, y = splits.train.images[:32].float() / 255, splits.train.labels[:32]
    step.train_step(parts, parts.model, x, y)

    weights = list(literal.model.parameters())
    start = [w.detach().clone() for w in weights]
    literal.objective.eval()
    first = torch.autograd.grad(literal.objective(literal.model(x), y)[0], weights)
    norm = sum((g**2).sum() for g in first) ** 0.5
    with torch.no_grad():
        for w, g in zip(weights, first, strict=True):
            w += 0.3 * g / norm
    second = torch.autograd.grad(literal.objective(literal.model(x), y)[0], weights)
    for w, begun, g in zip(parts.model.parameters(), start, second, strict=True):
        torch.testing.assert_close(w.detach(), begun - g, rtol=1e-3, atol=1e-5)
    if bank:
        literal.objective.train()
        with torch.no_grad():
            for w, begun in zip(weights, start, strict=True):
                w.copy_(begun)
            literal.objective(literal.model(x), y)
        assert torch.allclose(parts.objective.hdge.bank.groups, literal.objective.hdge.bank.groups, atol=1e-5)
        assert parts.objective.training
