"""The Triton kernels under Triton's interpreter: `test_kernels_triton.py` runs this file in a process of its own.

Triton reads TRITON_INTERPRET when it is imported, and an interpreting process cannot compile. Run by hand:

    TRITON_INTERPRET=1 python -m pytest tests/triton_suite.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ebmhybrid as eh
from ebmhybrid import kernels
from ebmhybrid.errors import UsageError
from ebmhybrid.kernels import NAMES, operator, reference, support

# NumPy, which does the interpreter's arithmetic, warns where a GPU gives the same infinity in silence.
pytestmark = [
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow) encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
]
INF, NAN = math.inf, math.nan
HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALVES]


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernels with tiles of 16 columns at most, so that few columns are several tiles."""
    assert support.INTERPRETED, "run with TRITON_INTERPRET=1"
    from ebmhybrid.kernels import fused

    monkeypatch.setattr(fused, "MAX_COLUMNS", 16)
    return fused


def labels(n: int, c: int, seed: int = 0) -> Tensor:
    return torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain(x: Tensor, y: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """What anyone would write, in x's own dtype."""
    pick = x.gather(1, y[:, None]).squeeze(1)
    return torch.logsumexp(x / temperature, 1), pick, x.sum(1), x.square().sum(1)


def check(x: Tensor, y: Tensor, temperature: float) -> None:
    """Values and gradients of each statistic: at most plain torch's error in the same dtype, against float64."""
    given = x.detach().clone()
    leaf, wide = x.detach().requires_grad_(), x.detach().double().requires_grad_()
    ours = torch.ops.ebmhybrid.row_stats(x.detach(), y, temperature)
    simple, exact = plain(leaf, y, temperature), plain(wide, y, temperature)
    for index, name in enumerate(NAMES):
        assert ours[index].dtype == torch.float32
        error, budget = ((v[index].double() - exact[index]).abs().max() for v in (ours, simple))
        assert error <= budget + 1e-5, name
        weights = randn(len(x), seed=index)
        incoming = [weights.float() if i == index else None for i in range(4)]
        gradient = torch.ops.ebmhybrid.row_stats_backward(x.detach(), y, ours[0], *incoming, temperature)
        assert gradient.dtype == x.dtype
        assert gradient.is_contiguous()
        expected = naive.grad((weights * exact[index]).sum(), wide)
        rival = naive.grad((weights.to(simple[index].dtype) * simple[index]).sum(), leaf)
        errors, budgets = ((g.double() - expected).abs() for g in (gradient, rival))
        if x.dtype == torch.bfloat16:  # the interpreter cuts digits off where a GPU rounds to the nearest
            assert bool((errors <= 2**-7 * expected.abs() + 1e-5).all()), f"gradient of {name}"
        else:
            assert errors.max() <= budgets.max() + 1e-5, f"gradient of {name}"
    assert torch.equal(x, given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize(("n", "c"), [(130, 10), (3, 16), (129, 37), (5, 1), (1, 64), (2, 65)])
def test_parity(dtype: torch.dtype, temperature: float, n: int, c: int) -> None:
    check(randn(n, c).to(dtype), labels(n, c), temperature)


@pytest.mark.parametrize("widest", [1, 2, 4096])
def test_parity_of_other_tiles(fused: ModuleType, monkeypatch: pytest.MonkeyPatch, widest: int) -> None:
    monkeypatch.setattr(fused, "MAX_COLUMNS", widest)
    check(randn(3, 5).float(), labels(3, 5), 0.7)
    check(randn(2, 100 if widest == 4096 else 3).bfloat16(), labels(2, 3), 1.0)


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda base: base.T,
    "every second column": lambda base: base[:, ::2],
    "every third row": lambda base: base[::3],
    "one row again and again": lambda base: base[:1].expand(6, -1),
    "one column again and again": lambda base: base[:, :1].expand(-1, 6),
    "a part with an offset": lambda base: base[2:7, 3:38],
    "overlapping windows": lambda base: base.flatten().unfold(0, 35, 3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("view", STRIDES)
def test_strides(dtype: torch.dtype, view: str) -> None:
    x = STRIDES[view](randn(9, 40).to(dtype))
    assert not x.is_contiguous()
    check(x, labels(*x.shape), 0.7)


def test_labels_and_incoming_gradients_may_have_strides() -> None:
    x, y = randn(6, 20).float(), labels(12, 20)[::2]
    lse, pick, *_ = torch.ops.ebmhybrid.row_stats(x, y, 1.0)
    torch.testing.assert_close(pick, x.gather(1, y[:, None]).squeeze(1))
    g = randn(12).float()[::2]
    shared = torch.tensor(0.5).expand(6)  # as the gradient of a mean comes in
    ours = torch.ops.ebmhybrid.row_stats_backward(x, y, lse, g, shared, g, shared, 1.0)
    torch.testing.assert_close(ours, reference.row_stats_backward(x, y, lse, g, shared, g, shared, 1.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(dtype: torch.dtype) -> None:
    x = torch.zeros(0, 40, dtype=dtype)
    values = torch.ops.ebmhybrid.row_stats(x, torch.zeros(0, dtype=torch.int64), 1.0)
    assert [tuple(value.shape) for value in values] == [(0,)] * 4
    gradient = torch.ops.ebmhybrid.row_stats_backward(x, None, *values[:1], *values, 1.0)
    assert gradient.shape == (0, 40)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("given", range(16))
@pytest.mark.parametrize("labelled", [True, False])
def test_any_incoming_gradient_may_be_none(given: int, labelled: bool) -> None:
    # Whole numbers could be taken for labels.
    x, y = torch.arange(60.0).reshape(3, 20), labels(3, 20) if labelled else None
    lse = x.logsumexp(1)
    grads = [randn(3, seed=i).float() if given >> i & 1 else None for i in range(4)]
    ours = torch.ops.ebmhybrid.row_stats_backward(x, y, lse, *grads, 1.0)
    torch.testing.assert_close(ours, reference.row_stats_backward(x, y, lse, *grads, 1.0))


def test_without_labels_the_pick_is_zero() -> None:
    lse, pick, total, squares = torch.ops.ebmhybrid.row_stats(randn(3, 20).float(), None, 1.0)
    assert pick.tolist() == [0.0] * 3
    torch.testing.assert_close(
        torch.stack([lse, total, squares]), torch.stack(plain(randn(3, 20).float(), labels(3, 20), 1.0))[[0, 2, 3]]
    )


def special_rows() -> Tensor:
    """Rows of three tiles and a tail."""
    finite = randn(1, 50, seed=3).float()[0]
    rows = {"finite": finite}
    for name, columns in {
        "first": slice(0, 16),
        "middle": slice(16, 32),
        "tail": slice(48, 50),
        "all": slice(0, 50),
    }.items():
        rows[f"-inf {name}"] = finite.clone()
        rows[f"-inf {name}"][columns] = -INF
    for name, column in {"first": 0, "middle": 20, "tail": 49}.items():
        for value in (INF, NAN):
            rows[f"{value} {name}"] = finite.clone()
            rows[f"{value} {name}"][column] = value
            rows[f"{value} among -inf {name}"] = torch.full((50,), -INF)
            rows[f"{value} among -inf {name}"][column] = value
        rows[f"alone {name}"] = torch.full((50,), -INF)
        rows[f"alone {name}"][column] = 3.0
    rows["both"] = finite.clone()
    rows["both"][3], rows["both"][40] = INF, -INF
    rows["inf then nan"] = finite.clone()
    rows["inf then nan"][3], rows["inf then nan"][40] = INF, NAN
    rows["large"], rows["small"] = finite + 1e4, finite - 1e4
    rows["falling"], rows["rising"] = 9800 - 400.0 * torch.arange(50), 400.0 * torch.arange(50) - 9800
    return torch.stack(list(rows.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_infinities_and_nan_in_any_tile_are_torchs(dtype: torch.dtype) -> None:
    x = special_rows().to(dtype)
    y = labels(*x.shape)
    wide = x.float().requires_grad_()
    ours, torchs = torch.ops.ebmhybrid.row_stats(x, y, 1.0), plain(wide, y, 1.0)
    for index, name in enumerate(NAMES):
        torch.testing.assert_close(ours[index], torchs[index].detach(), equal_nan=True, msg=name)
        incoming = [torch.ones(len(x)) if i == index else None for i in range(4)]
        gradient = torch.ops.ebmhybrid.row_stats_backward(x, y, ours[0], *incoming, 1.0)
        torch.testing.assert_close(gradient, naive.grad(torchs[index].sum(), wide).to(dtype), equal_nan=True)


def test_a_label_that_is_no_class_gives_nan_and_spares_the_other_rows() -> None:
    x, y = randn(6, 20).float(), torch.tensor([3, -1, 20, -100, 2**40, 19])
    lse, pick, *_ = torch.ops.ebmhybrid.row_stats(x, y, 1.0)
    assert pick.isnan().tolist() == [False, True, True, True, True, False]
    torch.testing.assert_close(pick[[0, 5]], x[[0, 5], [3, 19]])
    torch.testing.assert_close(lse, x.logsumexp(1))
    gradient = torch.ops.ebmhybrid.row_stats_backward(x, y, lse, None, torch.ones(6), None, None, 1.0)
    expected = torch.zeros(6, 20)
    expected[0, 3] = expected[5, 19] = 1
    assert torch.equal(gradient, expected)


# Through the library


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("labelled", [True, False])
def test_gradient_and_its_gradient_through_row_stats(dtype: torch.dtype, labelled: bool) -> None:
    x, y = randn(5, 20, scale=1.0).to(dtype), labels(5, 20) if labelled else None
    results = []
    for data, backend in ((x, "triton"), (x.double(), "torch")):
        leaf = data.requires_grad_()
        values = [v for v in kernels.row_stats(leaf, y, 0.7, backend=backend) if v is not None]
        value = sum((randn(5, seed=i).to(v.dtype) * v).sum() for i, v in enumerate(values)) + values[0].square().sum()
        (first,) = torch.autograd.grad(value, leaf, create_graph=True)
        second = naive.grad((first * randn(5, 20, seed=9).to(dtype)).sum(), leaf)
        results.append([*values, first, second])
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, **tolerance)


def test_the_operator_runs_triton_here(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name in ("row_stats", "row_stats_backward"):
        inner = getattr(fused, name)
        monkeypatch.setattr(fused, name, lambda *args, name=name, inner=inner: called.append(name) or inner(*args))
    x = randn(3, 20).float().requires_grad_()
    kernels.row_stats(x, backend="triton").lse.sum().backward()
    assert called == ["row_stats", "row_stats_backward"]
    kernels.row_stats(x).lse.sum().backward()  # `auto` leaves the interpreter alone
    assert len(called) == 2


def test_float64_is_refused_by_name_and_left_to_torch_by_the_operator() -> None:
    x = randn(3, 20)
    with pytest.raises(UsageError, match=r"'triton' cannot be used: its kernels do not take torch\.float64"):
        kernels.row_stats(x, backend="triton")
    torch.testing.assert_close(operator.row_stats(x).lse, x.logsumexp(1))


@pytest.mark.parametrize("shape", [(3, 20), (0, 20), (3, 1)])
def test_opcheck(shape: tuple[int, int]) -> None:
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    y = labels(*shape)
    for x in (randn(*shape).float(), randn(*shape).bfloat16(), randn(*shape[::-1]).float().T):
        torch.library.opcheck(torch.ops.ebmhybrid.row_stats.default, (x, y, 0.7), test_utils=checks)
        lse = torch.ops.ebmhybrid.row_stats(x, y, 0.7)[0]
        arguments = (x, y, lse, lse, None, lse, lse, 0.7)
        torch.library.opcheck(torch.ops.ebmhybrid.row_stats_backward.default, arguments, test_utils=checks)


def test_compiles_to_one_graph() -> None:
    y = labels(6, 20)

    def loss(x: Tensor) -> Tensor:
        values = kernels.row_stats(x, y, 0.7, backend="triton")
        return (values.lse - values.pick + values.sum * values.sq).mean()

    x = randn(6, 20).float().requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(x))
    torch.testing.assert_close(naive.grad(compiled(x), x), naive.grad(loss(x), x))


def test_vmap_and_per_sample_gradients() -> None:
    x, y = randn(3, 4, 20).float(), labels(4, 20)

    def loss(x: Tensor, backend: str) -> Tensor:
        values = kernels.row_stats(x, y, 0.7, backend=backend)
        return (values.lse * values.sq - values.pick).sum()

    ours = torch.vmap(torch.func.grad(lambda x: loss(x, "triton")))(x)
    torch.testing.assert_close(ours, torch.vmap(torch.func.grad(lambda x: loss(x, "torch")))(x))
    moved = torch.vmap(lambda x: loss(x, "triton"), in_dims=2)(x.movedim(0, 2))
    torch.testing.assert_close(moved, torch.vmap(lambda x: loss(x, "torch"))(x))


def test_jacobian_of_a_single_row() -> None:
    """The row's lse is shared by all of the Jacobian's rows, and comes in with a stride of zero."""
    x, y, mix = randn(1, 20).float(), labels(1, 20), randn(8, 4).float()

    def mixed(x: Tensor, backend: str) -> Tensor:
        return mix @ torch.stack(tuple(kernels.row_stats(x, y, 0.7, backend=backend)))

    ours, expected = (torch.func.jacrev(mixed)(x, backend) for backend in ("triton", "torch"))
    torch.testing.assert_close(ours, expected)


def test_energy_and_loss_run_on_triton_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = randn(6, 20).float().requires_grad_(), labels(6, 20)
    loss_fn = eh.HDGELoss(20, bank_size=64).eval()
    expected = [eh.energy(x, 0.5), loss_fn(x, y)]
    gradients = [naive.grad(value.sum(), x) for value in expected]
    monkeypatch.setattr(support, "BACKEND", "triton")
    for value, exact, gradient in zip([eh.energy(x, 0.5), loss_fn(x, y)], expected, gradients, strict=True):
        torch.testing.assert_close(value, exact)
        torch.testing.assert_close(naive.grad(value.sum(), x), gradient)


# Offsets beyond 2^31


@pytest.mark.parametrize("strides", [(2**30 + 64, 1), (1, 2**30 + 64)], ids=["rows", "columns"])
def test_offsets_beyond_two_to_the_31(strides: tuple[int, int]) -> None:
    """Three rows, or three columns, 2^30 entries apart: memory is reserved and, but for a few pages, never touched."""
    x = torch.empty(2**31 + 200, dtype=torch.bfloat16).as_strided((3, 3), strides)
    x.copy_(randn(3, 3))
    assert 2 * max(x.stride()) > 2**31
    check(x, torch.tensor([0, 2, 2]), 1.0)


# The linear layer


@pytest.fixture
def small_linear(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The linear kernel with tiles of 16 and shares of 32 classes."""
    import triton.language as tl
    from triton.runtime import interpreter

    from ebmhybrid.kernels import fused_linear

    for name, value in {"BM": 16, "BN": 16, "BK": 16, "SHARE": 32}.items():
        monkeypatch.setattr(fused_linear, name, value)
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    inner, convert = builder.create_dot, interpreter._convert_float

    def create_dot(self: object, a: Any, b: Any, *rest: Any) -> object:
        """The interpreter multiplies bfloat16 by its bits as integers; widened first, it is what a GPU computes."""
        if a.dtype.scalar.is_bf16():
            bf16, fp32 = a.dtype.scalar, tl.float32
            a, b = (handle(convert(t.data, bf16, fp32, None).view(np.float32), fp32) for t in (a, b))
        return inner(self, a, b, *rest)

    monkeypatch.setattr(builder, "create_dot", create_dot)
    return fused_linear


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bias", "targets"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("n", "d", "c"), [(20, 37, 70), (16, 16, 32), (1, 1, 1), (0, 5, 40), (3, 20, 33)])
def test_linear_parity(
    small_linear: ModuleType, dtype: torch.dtype, bias: bool, targets: bool, n: int, d: int, c: int
) -> None:
    x, w, b = (randn(*shape, seed=i, scale=1.0).to(dtype) for i, shape in enumerate([(n, d), (c, d), (c,)]))
    y = labels(n, c) if targets else None
    lse, pick = small_linear.linear_energy(x, w, b if bias else None, y)
    assert lse.dtype == pick.dtype == torch.float32
    exact = F.linear(x.double(), w.double(), b.double() if bias else None)
    # A logit is as rounded as torch's own layer gives it; of bfloat16 the interpreter cuts the rest off.
    digits = {torch.float32: 2**-20, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    tolerance = {"rtol": 0, "atol": 1e-5 + digits * (exact.abs().max().item() if n else 0)}
    torch.testing.assert_close(lse.double(), exact.logsumexp(1), **tolerance)
    expected = torch.zeros(n).double() if y is None else exact.gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(pick.double(), expected, **tolerance)
    assert torch.equal(pick, pick.to(dtype).float())


def test_linear_gradients_and_strides_through_the_library(small_linear: ModuleType) -> None:
    x, w, b = (
        randn(37, 5, scale=0.5).float().T,
        randn(70, 74, seed=1, scale=0.5).float()[:, ::2],
        randn(140).float()[::2],
    )
    y = labels(10, 70)[::2]
    results = []
    for backend in ("triton", "torch"):
        leaves = [t.detach().requires_grad_() for t in (x, w, b)]
        lse, pick = kernels.linear_energy(*leaves, y, chunk=7, backend=backend)
        results.append([lse, pick, *torch.autograd.grad((lse.square() - pick).sum(), leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_linear_shares_of_no_class_and_infinities(small_linear: ModuleType) -> None:
    x, w, b = randn(6, 8).float(), randn(70, 8, seed=1).float(), randn(70, seed=2).float()
    b[:32], b[50] = -INF, -INF  # a share and a class that are switched off
    x[1], x[2, 0] = NAN, NAN
    exact = F.linear(x, w, b)
    torch.testing.assert_close(small_linear.linear_energy(x, w, b, None)[0], exact.logsumexp(1), equal_nan=True)
    off = torch.full((70,), -INF)
    assert small_linear.linear_energy(x[:1], w, off, None)[0].tolist() == [-INF]
    off[3] = INF
    assert small_linear.linear_energy(x[:1], w, off, None)[0].tolist() == [INF]


def test_linear_label_that_is_no_class_gives_nan(small_linear: ModuleType) -> None:
    x, w, y = randn(4, 8).float(), randn(40, 8, seed=1).float(), torch.tensor([-1, 40, 39, 2**40])
    lse, pick = small_linear.linear_energy(x, w, None, y)
    assert pick.isnan().tolist() == [True, True, False, True]
    torch.testing.assert_close(pick[2], x[2] @ w[39])
    torch.testing.assert_close(lse, (x @ w.T).logsumexp(1))


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("pass", False),
        ("torch.backends.cuda.matmul.allow_tf32 = True", True),
        ("torch.set_float32_matmul_precision('high')", True),
        ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", True),
        ("torch.backends.cuda.matmul.fp32_precision = 'ieee'", False),
    ],
)
def test_tensorfloat_is_used_where_either_of_torchs_switches_allows_it(
    small_linear: ModuleType, monkeypatch: pytest.MonkeyPatch, setting: str, allowed: bool
) -> None:
    if "fp32_precision" in setting and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        return
    exec(setting)
    try:
        assert small_linear.tf32_allowed() == allowed
    finally:
        torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(small_linear, "BK", 64)
    assert small_linear.depth(torch.float32, allowed) == (64 if allowed else 16)
    assert small_linear.depth(torch.bfloat16, allowed) == 64
