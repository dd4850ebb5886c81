"""linear_energy against the layer whose logits it never keeps: values, derivatives, memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import naive
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import ebmhybrid as eh
from benchmarks.harness import peak_bytes
from ebmhybrid.kernels import linear, support

INF, NAN = math.inf, math.nan
N, D, C = 6, 5, 11
CHUNKS = [1, 4, 10, 11, 100, None]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer(n: int = N, d: int = D, c: int = C) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, weight, bias and targets; the targets begin with the first and the last class."""
    y = torch.randint(c, (n,), generator=torch.Generator().manual_seed(1))
    y[:2] = torch.tensor([0, c - 1])[:n]
    return randn(n, d).requires_grad_(), randn(c, d, seed=1).requires_grad_(), randn(c, seed=2).requires_grad_(), y


def whole(x: Tensor, w: Tensor, b: Tensor | None, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    logits = F.linear(x, w, b)
    return logits.logsumexp(1), None if y is None else logits.gather(1, y[:, None]).squeeze(1)


def mixed(values: tuple[Tensor, Tensor | None]) -> Tensor:
    """Both results in one number, each row with a weight of its own."""
    lse, pick = values
    total = (randn(len(lse), seed=7).to(lse.dtype) * lse).sum()
    return total if pick is None else total + (randn(len(lse), seed=8).to(lse.dtype) * pick).sum()


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("targets", [True, False])
def test_values_and_gradients_equal_the_whole_layers(chunk: int | None, bias: bool, targets: bool) -> None:
    x, w, b, y = layer()
    given = (x, w, b if bias else None, y if targets else None)
    ours, expected = eh.linear_energy(*given, chunk=chunk), whole(*given)
    torch.testing.assert_close(ours.lse, expected[0])
    if targets:
        torch.testing.assert_close(ours.pick, expected[1])
    else:
        assert ours.pick is None
    leaves = [x, w, b][: 3 if bias else 2]
    gradients, exact = (torch.autograd.grad(mixed(values), leaves) for values in (ours, expected))
    for gradient, other in zip(gradients, exact, strict=True):
        torch.testing.assert_close(gradient, other)


def test_values_equal_the_loops() -> None:
    x, w, b, y = (t.detach() for t in layer())
    logits = torch.stack([torch.stack([sum(xi * wi for xi, wi in zip(r, c, strict=True)) for c in w]) for r in x]) + b
    literal = naive.row_stats(logits, y)
    ours = eh.linear_energy(x, w, b, y, chunk=3)
    torch.testing.assert_close(ours.lse, literal[0])
    torch.testing.assert_close(ours.pick, literal[1])


@pytest.mark.parametrize("target", [0, 3, 4, 7, 8, 10])
def test_targets_at_the_edges_of_chunks(target: int) -> None:
    x, w, b, _ = layer()
    y = torch.full((N,), target)
    ours, expected = eh.linear_energy(x, w, b, y, chunk=4), whole(x, w, b, y)
    torch.testing.assert_close(ours.pick, expected[1])
    gradient = torch.autograd.grad(ours.pick.sum(), w)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(expected[1].sum(), w)[0])
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [target]


@pytest.mark.parametrize("needed", range(1, 8))
def test_only_the_gradients_that_are_needed(needed: int) -> None:
    *tensors, y = layer()
    tensors = [t.detach().requires_grad_(bool(needed >> i & 1)) for i, t in enumerate(tensors)]
    leaves = [t for t in tensors if t.requires_grad]
    for create_graph in (False, True):
        ours = torch.autograd.grad(mixed(eh.linear_energy(*tensors, y, chunk=4)), leaves, create_graph=create_graph)
        expected = torch.autograd.grad(mixed(whole(*tensors, y)), leaves)
        for gradient, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("targets", [True, False])
def test_gradcheck_and_gradgradcheck(bias: bool, targets: bool) -> None:
    x, w, b, y = layer(3, 2, 4)
    y = y[:3] if targets else None

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        values = eh.linear_energy(*tensors, *([] if bias else [None]), y, chunk=3)
        return values if targets else values[:1]

    leaves = (x, w, b)[: 3 if bias else 2]
    assert gradcheck(call, leaves)
    assert gradgradcheck(call, leaves)


@pytest.mark.parametrize("create_graph", [False, True])
def test_factors_that_depend_on_each_other_are_not_counted_twice(create_graph: bool) -> None:
    """Batch against batch, and a weight that is computed from the features."""
    x, _, _, y = layer()
    for make in (lambda x: x, lambda x: (x @ randn(D, D, seed=3)).tanh()):
        results = []
        for function in (lambda *args: eh.linear_energy(*args, chunk=4), whole):
            value = mixed(function(x, make(x), x.sum(1), y.clamp_max(N - 1)))
            (gradient,) = torch.autograd.grad(value, x, create_graph=create_graph)
            results.append([gradient] + ([naive.grad(gradient.square().sum(), x)] if create_graph else []))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected)


def test_func_grad_and_grad_of_grad() -> None:
    x, w, b, y = (t.detach() for t in layer())

    def first(function: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., tuple[Tensor, ...]]:
        return torch.func.grad(lambda x, w, b: mixed(function(x, w, b, y)), argnums=(0, 1, 2))

    def second(function: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., Tensor]:
        return torch.func.grad(lambda w: sum(g.square().sum() for g in first(function)(x, w, b)))

    for ours, expected in zip(first(eh.linear_energy)(x, w, b), first(whole)(x, w, b), strict=True):
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(second(eh.linear_energy)(w), second(whole)(w))


def test_a_graph_can_be_gone_through_again_and_inputs_stay() -> None:
    x, w, b, y = layer()
    before = [t.detach().clone() for t in (x, w, b)]
    value = mixed(eh.linear_energy(x, w, b, y, chunk=4))
    first, second = (torch.autograd.grad(value, (x, w, b), retain_graph=True) for _ in range(2))
    for one, other in zip([*first, x, w, b], [*second, *before], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_strides() -> None:
    x, w, b = randn(D, N).requires_grad_(), randn(D, 2 * C, seed=1).requires_grad_(), randn(1, seed=2).requires_grad_()
    views = (x.T, w[:, ::2].T, b.expand(C))
    y = torch.arange(N)
    ours, expected = mixed(eh.linear_energy(*views, y, chunk=4)), mixed(whole(*views, y))
    torch.testing.assert_close(ours, expected)
    for one, other in zip(*(torch.autograd.grad(value, (x, w, b)) for value in (ours, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_no_images_one_class_and_no_features() -> None:
    for n, d, c in ((0, D, C), (N, D, 1), (2, 0, C)):
        x, w, b, _ = layer(n, d, c)
        y = torch.zeros(n, dtype=torch.int64)
        ours, expected = eh.linear_energy(x, w, b, y, chunk=4), whole(x, w, b, y)
        assert ours.lse.shape == ours.pick.shape == (n,)
        torch.testing.assert_close(ours.lse, expected[0])
        torch.testing.assert_close(ours.pick, expected[1])
        for one, other in zip(*(torch.autograd.grad(mixed(v), (x, w, b)) for v in (ours, expected)), strict=True):
            torch.testing.assert_close(one, other)


def test_infinities_and_nan_are_torchs() -> None:
    x, w, b, y = (t.detach() for t in layer())
    x[0, 0], x[1, 0], x[2] = NAN, INF, -INF
    b[2:5] = -INF  # classes that are switched off
    b[5] = 1e4
    x.requires_grad_()
    leaves = [x, w.requires_grad_(), b.requires_grad_()]
    for chunk in CHUNKS:
        ours, expected = eh.linear_energy(*leaves, y, chunk=chunk), whole(*leaves, y)
        torch.testing.assert_close(ours.lse, expected[0], equal_nan=True)
        torch.testing.assert_close(ours.pick, expected[1], equal_nan=True)
        for one, other in zip(*(torch.autograd.grad(v[0].sum(), leaves) for v in (ours, expected)), strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)
    off = torch.full((C,), -INF, dtype=torch.float64)
    assert eh.linear_energy(randn(1, D), w, off, chunk=4).lse.tolist() == [-INF]
    off[7] = INF
    assert eh.linear_energy(randn(1, D), w, off, chunk=4).lse.tolist() == [INF]


# Precision


def errors(dtype: torch.dtype | None, autocast: bool) -> tuple[list[Tensor], list[Tensor], list[torch.dtype]]:
    """Largest errors against float64 of ours and of the whole layer: lse, pick and the three gradients."""
    x, w, b, y = layer(32, 64, 200)
    kept = [(t * 0.3).detach().to(dtype or torch.float32) for t in (x, w, b)]
    exact = [t.double().requires_grad_() for t in kept]
    values = whole(*exact, y)
    expected = [*(v.detach() for v in values), *torch.autograd.grad(mixed(values), exact)]
    found, dtypes = [], []
    for function in (lambda *args: eh.linear_energy(*args, chunk=48), whole):
        leaves = [t.clone().requires_grad_() for t in kept]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            values = function(*leaves, y)
        results = [*(v.detach() for v in values), *torch.autograd.grad(mixed(values), leaves)]
        dtypes.append([result.dtype for result in results])
        found.append([(r.double() - e).abs().max() for r, e in zip(results, expected, strict=True)])
    return found[0], found[1], dtypes[0]


def assert_within(ours: list[Tensor], budgets: list[Tensor]) -> None:
    budgets[2] = 1.5 * budgets[2]  # of the features' gradient each chunk's part is rounded before they are added up
    for error, budget in zip(ours, budgets, strict=True):
        assert error <= budget + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_within_the_whole_layers(dtype: torch.dtype) -> None:
    ours, budgets, dtypes = errors(dtype, autocast=False)
    assert dtypes == [torch.float32] * 2 + [dtype] * 3
    assert_within(ours, budgets)


def test_autocast_is_the_layers() -> None:
    ours, budgets, dtypes = errors(None, autocast=True)
    assert dtypes == [torch.float32] * 5
    assert_within(ours, budgets)
    assert ours[1] > 1e-4  # it is bfloat16 that was computed in: the rounding of a logit shows
    x, w, b, y = (t.detach().float() if t.is_floating_point() else t for t in layer())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed_dtypes = eh.linear_energy(x.bfloat16(), w, b, y)
        torch.testing.assert_close(mixed_dtypes.pick, F.linear(x, w, b).float()[torch.arange(N), y])


def test_autocast_leaves_float64_alone() -> None:
    x, w, b, y = layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, expected = eh.linear_energy(x, w, b, y, chunk=4), whole(x, w, b, y)
    assert ours.lse.dtype == expected[0].dtype == torch.float64
    torch.testing.assert_close(ours.lse, expected[0])
    torch.testing.assert_close(ours.pick, expected[1])


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradient_does_not_depend_on_autocast_where_it_is_asked_for(create_graph: bool) -> None:
    x, w, b, y = layer()
    leaves = [t.detach().float().requires_grad_() for t in (x, w, b)]
    value = mixed(eh.linear_energy(*leaves, y, chunk=4))
    expected = torch.autograd.grad(value, leaves, retain_graph=True, create_graph=create_graph)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradients = torch.autograd.grad(value, leaves, create_graph=create_graph)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


# Memory


def test_memory_is_that_of_a_chunk_and_of_the_gradients() -> None:
    x, w, b, y = (t.detach().float() if t.is_floating_point() else t for t in layer(256, 8, 21841))
    leaves = [t.requires_grad_() for t in (x, w, b)]
    logits = 256 * 21841 * 4
    gradients = sum(t.numel() * 4 for t in leaves)

    def loss(function: Callable[..., tuple[Tensor, Tensor]]) -> object:
        lse, pick = function(*leaves, y)
        return torch.autograd.grad((lse - pick).mean(), leaves)

    assert peak_bytes(lambda: loss(whole)) > logits
    ours = peak_bytes(lambda: loss(lambda *args: eh.linear_energy(*args, chunk=1024)))
    assert gradients < ours < logits / 4 + gradients


def test_the_default_chunk_bounds_the_logits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    inner = F.linear

    def spy(*args: Tensor | None) -> Tensor:
        seen.append(tuple(inner(*args).shape))
        return inner(*args)

    monkeypatch.setattr(linear.F, "linear", spy)
    monkeypatch.setattr(linear, "CHUNK_ENTRIES", 32 * 300)
    x, w, _, _ = layer(32, 2, 1000)
    eh.linear_energy(x, w)
    assert seen == [(32, 300)] * 3 + [(32, 100)]
    seen.clear()
    monkeypatch.setattr(linear, "CHUNK_ENTRIES", 10)
    eh.linear_energy(x, w)  # a product that is too narrow would be slow
    assert {shape[1] for shape in seen[:-1]} == {128}


# Wrong input

X, W, B, Y = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4), torch.zeros(2, dtype=torch.int64)
WRONG = [
    ((X[0], W), {}, r"features must be \(N, D\) and weight \(C, D\) with C >= 1, got \(3,\), \(4, 3\)"),
    ((X, W.T), {}, r"got \(2, 3\), \(3, 4\)"),
    ((X, W[:0]), {}, r"C >= 1, got \(2, 3\), \(0, 3\)"),
    ((X, W, B[:3]), {}, r"bias must be \(4,\), got \(3,\)"),
    ((X, W.double()), {}, r"must share a floating dtype, got \['torch.float32', 'torch.float64'\]"),
    ((X, W, B.half()), {}, r"must share a floating dtype, got \['torch.float16', 'torch.float32'\]"),
    ((X.long(), W.long()), {}, r"must share a floating dtype, got \['torch.int64'\]"),
    ((X, W, B, Y[:1]), {}, r"targets must be int64 \(2,\), got torch.int64 \(1,\)"),
    ((X, W, B, Y.int()), {}, r"targets must be int64 \(2,\), got torch.int32 \(2,\)"),
    ((X, W, B, Y + 4), {}, r"targets must lie in \[0, 3\], got \[4, 4\]"),
    ((X, W, B, Y - 100), {}, r"targets must lie in \[0, 3\], got \[-100, -100\]"),
    ((X, W), {"chunk": 0}, "chunk must be an integer >= 1, got 0"),
    ((X, W), {"backend": "cuda"}, "backend must be auto, torch or triton, got 'cuda'"),
    ((X, W), {"backend": "triton"}, "backend 'triton' cannot be used: the tensor is on cpu"),
]


@pytest.mark.parametrize(("arguments", "options", "message"), WRONG)
def test_wrong_input_is_named(monkeypatch, arguments, options, message: str) -> None:
    monkeypatch.setattr(support, "INTERPRETED", False)
    monkeypatch.setattr(support, "HAS_TRITON", True)
    with pytest.raises(ValueError, match=message):
        eh.linear_energy(*arguments, **options)


def test_on_the_meta_device() -> None:
    lse, pick = eh.linear_energy(X.to("meta"), W.to("meta"), B.to("meta"))
    assert (lse.device.type, pick) == ("meta", None)


def test_a_label_that_cannot_be_checked_and_is_no_class_gives_nan(monkeypatch) -> None:
    """On a GPU, and in a compiled function, labels are not read back."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    lse, pick = eh.linear_energy(X, W, B, torch.tensor([-1, 3]), chunk=2)
    assert pick.isnan().tolist() == [True, False]
    assert lse.isfinite().all()
