"""The features that a classifier's last linear layer is given, captured in the one pass that makes the logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import ebmhybrid as eh
from ebmhybrid.errors import EbmhybridError
from ebmhybrid.evaluate import predict
from ebmhybrid.evaluate.features import head_of, last_linear
from ebmhybrid.models import build_model


def images(n: int, channels: int = 3, size: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x = torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(3), torch.zeros(n, dtype=torch.int64).split(3), strict=True))


@pytest.mark.parametrize("name", ["wide_resnet", "torchvision/resnet18"])
def test_features_times_the_head_are_the_logits(name: str) -> None:
    torch.manual_seed(0)
    options = {"depth": 10, "width": 1} if name == "wide_resnet" else {}
    model = build_model(name, num_classes=5, in_channels=3, **options).eval()
    found = predict(model, images(7), features=True)
    assert found.features is not None
    assert found.features.shape == (7, last_linear(model).in_features)
    np.testing.assert_allclose(head_of(model)(found.features), found.logits, atol=1e-5)
    plain = predict(model, images(7))
    assert plain.features is None
    np.testing.assert_array_equal(plain.logits, found.logits)
    assert not any(module._forward_hooks for module in model.modules())


def test_our_features_are_those_of_the_model() -> None:
    model = eh.WideResNet(depth=10, width=1, num_classes=4).eval()
    data = images(4)
    found = predict(model, data, features=True)
    expected = torch.cat([model.features(x) for x, _ in data]).detach().numpy()
    np.testing.assert_allclose(found.features, expected, rtol=1e-6)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1)) + self.head(x.flip(3).flatten(1))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x.flatten(1), "shows none"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "shows none"),
        (Twice(), "called once"),
        (Scaled(), "last linear layer returns"),
        (nn.Sequential(nn.Linear(8, 8), nn.Flatten()), r"features must be \(N, D\)"),
    ],
)
def test_a_model_without_a_head_is_refused_and_left_without_hooks(model, message: str) -> None:
    with pytest.raises(EbmhybridError, match=message):
        predict(model, images(4), features=True)
    if isinstance(model, nn.Module):
        assert not any(module._forward_hooks for module in model.modules())


def test_a_head_alone_and_a_head_without_a_bias() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3, bias=False))
    found = predict(model, images(4), features=True)
    np.testing.assert_allclose(head_of(model)(found.features), found.logits, atol=1e-6)
    assert not head_of(model).bias.any()


def test_half_precision_features_are_raised() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).bfloat16()
    data = [(x.bfloat16(), y) for x, y in images(4)]
    assert predict(model, data, features=True).features.dtype == np.float32
