"""The compiled kernels on a GPU against float64 there; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

import ebmhybrid as eh
from ebmhybrid import kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "c"), [(1, 1), (130, 10), (64, 100), (33, 1000), (5, 21841), (3, 128256)])
def test_row_stats_and_gradient(n: int, c: int, dtype: torch.dtype) -> None:
    x = torch.randn(n, c, device="cuda").to(dtype).requires_grad_()
    wide, y = x.detach().double().requires_grad_(), torch.randint(c, (n,), device="cuda")
    ours = kernels.row_stats(x, y, 0.7, backend="triton")
    exact = kernels.row_stats(wide, y, 0.7, backend="torch")
    for value, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-3)
    (gradient,) = torch.autograd.grad(sum(value.sum() for value in ours), x)
    (expected,) = torch.autograd.grad(sum(value.sum() for value in exact), wide)
    torch.testing.assert_close(gradient.double(), expected, rtol=2 * torch.finfo(dtype).eps + 1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_energy_and_gradients(dtype: torch.dtype) -> None:
    shapes = ((130, 200), (3000, 200), (3000,))
    inputs = [(torch.randn(*shape, device="cuda") / 8).to(dtype).requires_grad_() for shape in shapes]
    y = torch.randint(3000, (130,), device="cuda")
    ours, plain = (eh.linear_energy(*inputs, y, backend=backend) for backend in ("triton", "torch"))
    for value, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-2, atol=2e-2)
    gradients = [torch.autograd.grad((lse - pick).mean(), inputs) for lse, pick in (ours, plain)]
    for value, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(value, expected, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"form": "paper", "negatives": "batch"}])
def test_the_loss_by_its_fused_path_equals_the_cpus(options: dict[str, str], monkeypatch) -> None:
    monkeypatch.setattr(kernels, "GPU_ENTRIES", 0)
    loss_fn = eh.HDGELoss(50, bank_size=128, **options).eval()
    logits, y = torch.randn(64, 50), torch.randint(50, (64,))
    expected = loss_fn(logits, y)
    torch.testing.assert_close(loss_fn.cuda()(logits.cuda(), y.cuda()).cpu(), expected, rtol=1e-5, atol=1e-5)
