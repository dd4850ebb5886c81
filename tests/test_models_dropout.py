"""Dropout with a cheap mask is dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ebmhybrid import WideResNet
from ebmhybrid.models.dropout import Dropout, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_entries_are_zero_with_probability_p_and_keep_their_mean(p: float) -> None:
    x = torch.ones(400_000)
    out = Dropout(p)(x)
    kept = out != 0
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=4 * (p * (1 - p) / len(x)) ** 0.5)
    torch.testing.assert_close(out[kept].unique(), torch.tensor([1 / (1 - p)]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_entries_are_independent_of_their_neighbours(p: float) -> None:
    """Four entries share one random number: each pair of them, and the next four, must still be independent."""
    kept = keep_mask(torch.empty(400_000), p).double() - (1 - p)
    for lag in (1, 2, 3, 4, 8):
        correlation = (kept[:-lag] * kept[lag:]).mean() / (p * (1 - p))
        assert abs(correlation.item()) < 4 / len(kept) ** 0.5, lag
    for place in range(4):  # and no place of the four is favoured
        assert abs(kept[place::4].mean().item()) < 4 * (p * (1 - p) / (len(kept) / 4)) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_is_the_mask(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 5, 6, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = Dropout(0.4)(x)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out, gradient * x)
    assert 0 < (gradient == 0).sum() < x.numel()


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (5, 3)])
def test_any_number_of_entries(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape
    assert Dropout(0.5)(torch.ones(4, 6).T[1:]).shape == (5, 4)


def test_in_evaluation_without_probability_and_with_all_of_it() -> None:
    x = torch.randn(10)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(10))
    assert torch.equal(Dropout(1 - 1e-9)(x), torch.zeros(10))


def test_per_example_masks_under_vmap() -> None:
    out = torch.vmap(Dropout(0.5), randomness="different")(torch.ones(3, 64))
    assert len({tuple(row) for row in out.tolist()}) == 3


def test_it_is_seeded_and_is_what_the_network_uses() -> None:
    x = torch.ones(100)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(Dropout(0.5)(x))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    model = WideResNet(depth=10, width=1, dropout=0.3, in_channels=1)
    kinds = [type(module) for module in model.modules() if isinstance(module, nn.Dropout)]
    assert kinds == [Dropout] * 3
