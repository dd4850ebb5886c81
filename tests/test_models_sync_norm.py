"""Batch normalisation over two processes against torch's own over the whole batch."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import ebmhybrid as eh
from ebmhybrid.models.sync_norm import SyncedBatchNorm, synchronize_batch_norm

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

DOUBLE = torch.float64
SHARES = ((3, 3), (5, 2), (0, 4), (1, 1))
# Layer, and the shape of an image.
LAYERS: list[tuple[Any, tuple[int, ...]]] = [
    (lambda: nn.BatchNorm1d(3), (3,)),
    (lambda: nn.BatchNorm1d(3, eps=0.1, momentum=0.4), (3, 5)),
    (lambda: nn.BatchNorm2d(3, momentum=None), (3, 4, 2)),
    (lambda: nn.BatchNorm2d(3, affine=False), (3, 4, 2)),
    (lambda: nn.BatchNorm2d(3, track_running_stats=False), (3, 2, 2)),
    (lambda: eh.WideResNet(depth=10, width=1, num_classes=3, in_channels=1), (1, 8, 8)),
]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def run(layer: Any, shape: tuple[int, ...], who: int | None) -> list[Tensor]:
    """Two steps of each share and an evaluation: outputs, gradients at input and weights, running statistics."""
    torch.manual_seed(0)
    model, found = layer().double(), []
    for index, parameter in enumerate(model.parameters()):
        parameter.data.add_(0.1 * drawn(*parameter.shape, seed=index))
    if who is not None:
        model = synchronize_batch_norm(model, on_cpu=True)
    for step, shares in enumerate(2 * SHARES):
        x = 1 + 3 * drawn(sum(shares), *shape, seed=step)
        if step % 2 and len(shape) == 3:
            x = x.contiguous(memory_format=torch.channels_last)
        weights = torch.arange(1.0, len(x) + 1, dtype=DOUBLE)
        model.train()
        if who is not None:
            x, weights = x.split(shares)[who], weights.split(shares)[who]
        x = x.detach().requires_grad_()
        out = model(x)
        gradients = torch.autograd.grad(weights @ out.flatten(1).exp().sum(1), [x, *model.parameters()])
        found += [out.detach(), *gradients, *(b.clone() for b in model.buffers())]
    return [*found, model.eval()(x).detach()]


def refusals(who: int) -> list[str]:
    found = []
    norm = SyncedBatchNorm(2)
    for x in (torch.zeros(who, 2), torch.zeros(3)):
        try:
            norm(x)
        except ValueError as error:
            found.append(str(error))
    x = torch.ones(2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    return found


def half_precision(who: int) -> Tensor:
    norm = SyncedBatchNorm(3)
    x = (100 + drawn(4, 3, 5, seed=who)).bfloat16().requires_grad_()
    out = norm(x)
    out.float().square().sum().backward()
    assert x.grad is not None
    assert out.dtype == x.grad.dtype == torch.bfloat16
    assert norm.running_mean.dtype == torch.float32
    return out.detach()


def one_of_two(who: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=who, world_size=2, timeout=timedelta(minutes=2)
    )
    found = {"layers": [run(*layer, who) for layer in LAYERS], "said": refusals(who), "half": half_precision(who)}
    torch.save(found, f"{folder}/{who}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(one_of_two, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{who}.pt") for who in range(2)]


def close(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("index", range(len(LAYERS)))
def test_two_processes_normalise_as_one(found, index: int) -> None:
    layer, shape = LAYERS[index]
    model = layer()
    parameters, buffers = len(list(model.parameters())), len(list(model.buffers()))
    whole, parts = run(layer, shape, None), [part["layers"][index] for part in found]
    kinds = (["rows"] * 2 + ["sum"] * parameters + ["same"] * buffers) * 2 * len(SHARES)
    if buffers:  # without running statistics a process evaluates its own batch by itself
        kinds += ["rows"]
    else:
        whole, parts = whole[:-1], [part[:-1] for part in parts]
    for kind, expected, *values in zip(kinds, whole, *parts, strict=True):
        if kind == "same":
            assert all(torch.equal(values[0], value) for value in values)
            close(values[0], expected)
        else:
            close(torch.cat(values) if kind == "rows" else sum(values), expected)


def test_half_precision_is_summed_in_float32(found) -> None:
    x = torch.cat([(100 + drawn(4, 3, 5, seed=who)).bfloat16() for who in range(2)])
    expected = nn.BatchNorm1d(3)(x.float())
    torch.testing.assert_close(torch.cat([part["half"] for part in found]).float(), expected, rtol=1e-2, atol=1e-2)


def test_too_few_values_are_refused_on_both(found) -> None:
    assert [part["said"] for part in found] == 2 * [
        [
            "BatchNorm needs two values a channel or more to train, got 1 on all processes",
            "the input must be (N, C, ...), got (3,)",
        ]
    ]


# One process


def test_alone_a_converted_network_is_as_it_was() -> None:
    torch.manual_seed(0)
    model = eh.WideResNet(depth=10, width=1, num_classes=3, in_channels=1)
    converted = synchronize_batch_norm(copy.deepcopy(model), on_cpu=True)
    assert sum(isinstance(module, SyncedBatchNorm) for module in converted.modules()) == 7
    assert list(converted.state_dict()) == list(model.state_dict())
    x = torch.rand(5, 1, 8, 8)
    for mode in (True, False):
        assert torch.equal(converted.train(mode)(x), model.train(mode)(x))
    for name, value in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], value)
    plain = eh.WideResNet(depth=10, width=1, num_classes=3, in_channels=1)
    plain.load_state_dict(converted.state_dict())
    averaged = AveragedModel(converted, use_buffers=True)
    averaged.update_parameters(converted)
    assert torch.equal(averaged.eval()(x), plain.eval()(x))


def test_a_layer_keeps_its_tensors_mode_and_options() -> None:
    norm = nn.BatchNorm2d(4, eps=0.2, momentum=None).double().eval()
    layer = synchronize_batch_norm(norm, on_cpu=True)
    assert isinstance(layer, SyncedBatchNorm)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        assert getattr(layer, name) is getattr(norm, name)
    assert (layer.training, layer.eps, layer.momentum) == (False, 0.2, None)
    bare = synchronize_batch_norm(
        nn.Sequential(nn.BatchNorm1d(2, affine=False, track_running_stats=False)), on_cpu=True
    )
    assert not bare.state_dict()


def test_for_other_devices_it_is_the_layer_of_torch() -> None:
    model = synchronize_batch_norm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), on_cpu=False)
    assert type(model[1]) is nn.SyncBatchNorm


def test_the_networks_of_torchvision_are_converted() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = models.shufflenet_v2_x0_5(num_classes=2).eval()
    x = torch.rand(2, 3, 32, 32)
    before = model(x)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    converted = synchronize_batch_norm(model, on_cpu=True)
    assert sum(isinstance(module, SyncedBatchNorm) for module in converted.modules()) == norms > 10
    assert torch.equal(converted(x), before)
