"""The row statistics: plain torch and the operator against loops in float64, and where each of them runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import naive
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ebmhybrid import kernels
from ebmhybrid.kernels import NAMES, RowStats, operator, support

Stats = Callable[..., RowStats]
PATHS: dict[str, Stats] = {"composite": partial(kernels.row_stats, backend="torch"), "operator": operator.row_stats}
INF, NAN = math.inf, math.nan
SPECIALS = [
    [INF, 0.0, 1.0],
    [0.0, -INF, 1.0],
    [-INF, -INF, -INF],
    [INF, INF, INF],
    [INF, -INF, 0.0],
    [NAN, 0.0, 1.0],
    [INF, NAN, -INF],
    [1e4, -1e4, 0.0],
    [-1e4, -1e4, -1e4],
    [1e4, 1e4, 1e4],
]


@pytest.fixture(params=PATHS)
def stats(request: pytest.FixtureRequest) -> Stats:
    return PATHS[request.param]


def labels(n: int, c: int, seed: int = 0) -> Tensor:
    return torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))


def randn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def everything(values: tuple[Tensor | None, ...], seed: int = 5) -> Tensor:
    """All statistics in one number, each with weights of its own, so that no gradient can stand for another."""
    present = [value for value in values if value is not None]
    return sum((randn(*v.shape, seed=seed + i).to(v.dtype) * v).sum() for i, v in enumerate(present))


# Values, gradients and derivatives of them


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
@pytest.mark.parametrize(("n", "c"), [(5, 7), (1, 3), (4, 1)])
def test_values_and_gradients_equal_the_loops(stats: Stats, n: int, c: int, temperature: float) -> None:
    x, y = naive.random_logits(n, c, seed=n), labels(n, c)
    ours, literal = stats(x, y, temperature), naive.row_stats(x, y, temperature)
    for index, name in enumerate(NAMES):
        torch.testing.assert_close(ours[index], literal[index], msg=name)
        weights = randn(n, seed=index)
        expected = naive.grad((weights * literal[index]).sum(), x)
        torch.testing.assert_close(naive.grad((weights * ours[index]).sum(), x), expected, msg=f"gradient of {name}")
    torch.testing.assert_close(naive.grad(everything(ours), x), naive.grad(everything(literal), x))


def test_without_labels_there_is_no_pick(stats: Stats) -> None:
    x = naive.random_logits(4, 3, seed=1)
    ours, literal = stats(x), naive.row_stats(x, None)
    assert ours.pick is None
    for index in (0, 2, 3):
        torch.testing.assert_close(ours[index], literal[index])
    torch.testing.assert_close(naive.grad(everything(ours), x), naive.grad(everything(literal[:1] + literal[2:]), x))


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize("labelled", [True, False])
def test_gradcheck_and_gradgradcheck(stats: Stats, temperature: float, labelled: bool) -> None:
    x, y = naive.random_logits(3, 4, seed=2, scale=1.0), labels(3, 4) if labelled else None

    def call(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(value for value in stats(x, y, temperature) if value is not None)

    assert gradcheck(call, (x,), check_batched_grad=True)
    assert gradgradcheck(call, (x,), check_batched_grad=True)


def test_third_derivative_equals_the_loops(stats: Stats) -> None:
    x, y = naive.random_logits(2, 3, seed=3, scale=1.0), labels(2, 3)

    def third(values: tuple[Tensor | None, ...]) -> Tensor:
        value = everything(values).square()  # of sum and sq alone a third derivative would be zero
        for seed in (1, 2):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = (gradient * randn(*x.shape, seed=seed)).sum()
        return naive.grad(value, x)

    torch.testing.assert_close(third(stats(x, y, 0.7)), third(naive.row_stats(x, y, 0.7)))


@pytest.mark.parametrize("used", [("lse",), ("pick",), ("sum",), ("sq",), ("lse", "sq"), ("pick", "sum")])
def test_statistics_that_nobody_uses_add_nothing(stats: Stats, used: tuple[str, ...]) -> None:
    x, y = naive.random_logits(3, 4, seed=4), labels(3, 4)
    ours, literal = stats(x, y), RowStats(*naive.row_stats(x, y))
    value, expected = (sum(getattr(s, name).square().sum() for name in used) for s in (ours, literal))
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    (literal_gradient,) = torch.autograd.grad(expected, x, create_graph=True)
    torch.testing.assert_close(gradient, literal_gradient)
    torch.testing.assert_close(naive.grad(gradient[0, 0], x), naive.grad(literal_gradient[0, 0], x))


def test_derivatives_in_the_incoming_gradients(stats: Stats) -> None:
    """The vector-Jacobian product is linear in its vector: a penalty on it differentiates the vector too."""
    x, y = naive.random_logits(3, 4, seed=4), labels(3, 4)
    incoming = [randn(3, seed=i).requires_grad_() for i in range(4)]
    derivatives = []
    for values in (stats(x, y, 0.5), naive.row_stats(x, y, 0.5)):
        (gradient,) = torch.autograd.grad(values, x, incoming, create_graph=True)
        derivatives.append(torch.autograd.grad((gradient * randn(3, 4, seed=9)).sum(), incoming))
    for ours, literal in zip(*derivatives, strict=True):
        torch.testing.assert_close(ours, literal)


def test_two_losses_share_one_tensor_of_logits(stats: Stats) -> None:
    """Nothing is written into the logits or into an incoming gradient, and a graph can be gone through again."""
    x, y = naive.random_logits(4, 5, seed=5), labels(4, 5)
    before = x.detach().clone(), y.clone()
    ours = stats(x, y)
    first, second = (ours.lse - ours.pick).sum(), F.cross_entropy(x, y)
    incoming = torch.ones(4, dtype=torch.float64)
    gradients = [torch.autograd.grad(ours.lse, x, incoming, retain_graph=True)[0] for _ in range(2)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0], torch.softmax(x, 1))
    assert bool((incoming == 1).all())
    (first + second).backward(retain_graph=True)
    once = x.grad.clone()
    (first + second).backward()
    torch.testing.assert_close(x.grad, 2 * once)
    torch.testing.assert_close(once, 1.25 * naive.grad(F.cross_entropy(x, y, reduction="sum"), x))
    torch.testing.assert_close(x.detach(), before[0], rtol=0, atol=0)
    assert torch.equal(y, before[1])


# torch.func


def scalar(stats: Stats, y: Tensor | None, x: Tensor) -> Tensor:
    values = stats(x, y, 0.7)
    return values.lse.sin().sum() + (values.sq * values.sum).sum() + (0 if y is None else values.pick.cos().sum())


def test_func_grad_and_its_jacobian(stats: Stats) -> None:
    x, y = randn(3, 4, seed=1), labels(3, 4)
    literal = partial(scalar, lambda x, y, t: RowStats(*naive.row_stats(x, y, t)), y)
    leaf = x.clone().requires_grad_()
    first = torch.autograd.grad(literal(leaf), leaf, create_graph=True)[0]
    hessian = torch.stack([naive.grad(entry, leaf) for entry in first.flatten()]).reshape(3, 4, 3, 4)
    gradient = torch.func.grad(partial(scalar, stats, y))
    torch.testing.assert_close(gradient(x), first.detach())
    direction = randn(3, 4, seed=8)
    twice = torch.func.grad(lambda x: (gradient(x) * direction).sum())
    torch.testing.assert_close(twice(x), torch.einsum("ij,ijkl->kl", direction, hessian))
    torch.testing.assert_close(torch.func.jacrev(gradient)(x), hessian)
    jacobian = torch.func.jacrev(lambda x: torch.stack(stats(x, y, 0.7)))(x)
    torch.testing.assert_close(jacobian, torch.func.jacrev(lambda x: torch.stack(plain(x, y, 0.7)))(x))


def plain(x: Tensor, y: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """What anyone would write, in x's own dtype."""
    pick = x.gather(1, y[:, None]).squeeze(1)
    return torch.logsumexp(x / temperature, 1), pick, x.sum(1), x.square().sum(1)


@pytest.mark.parametrize("x_dim", [0, 1, 2, -1, None])
@pytest.mark.parametrize("y_dim", [0, 1, None])
def test_vmap_over_any_dimension(stats: Stats, x_dim: int | None, y_dim: int | None) -> None:
    batch = 3
    xs = [randn(2, 4, seed=i) for i in range(batch)]
    ys = [labels(2, 4, seed=i) for i in range(batch)]
    if x_dim is None and y_dim is None:
        return
    x = xs[0] if x_dim is None else torch.stack(xs, x_dim)
    y = ys[0] if y_dim is None else torch.stack(ys, y_dim)
    in_dims = (x_dim, y_dim)
    values = torch.vmap(lambda x, y: tuple(stats(x, y, 0.7)), in_dims)(x, y)
    gradients = torch.vmap(torch.func.grad(lambda x, y: scalar(stats, y, x)), in_dims)(x, y)
    for i in range(batch):
        one_x, one_y = xs[0 if x_dim is None else i], ys[0 if y_dim is None else i]
        for value, expected in zip(values, plain(one_x, one_y, 0.7), strict=True):
            torch.testing.assert_close(value[i], expected)
        torch.testing.assert_close(gradients[i], torch.func.grad(partial(scalar, stats, one_y))(one_x))


def test_vmap_inside_vmap_and_without_rows(stats: Stats) -> None:
    x = randn(2, 3, 4, 5)
    twice = torch.vmap(torch.vmap(lambda x: stats(x).lse))(x)
    torch.testing.assert_close(twice, x.logsumexp(3))
    assert torch.vmap(lambda x: stats(x).lse)(torch.zeros(3, 0, 4)).shape == (3, 0)


def test_per_sample_gradients_of_a_layer(stats: Stats) -> None:
    weight, inputs, y = randn(4, 6), randn(5, 6, seed=1), labels(5, 4)

    def loss(weight: Tensor, x: Tensor, label: Tensor) -> Tensor:
        values = stats((weight @ x)[None], label[None])
        return (values.lse - values.pick).sum()

    gradients = torch.vmap(torch.func.grad(loss), (None, 0, 0))(weight, inputs, y)
    for i in range(5):
        leaf = weight.clone().requires_grad_()
        expected = naive.grad(F.cross_entropy((leaf @ inputs[i])[None], y[i : i + 1]), leaf)
        torch.testing.assert_close(gradients[i], expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_is_right_or_refused() -> None:
    """The operator has no forward derivative: a custom operator's default, zero without a word, must not come out."""
    x, v = randn(3, 4), randn(3, 4, seed=1)
    _, tangent = torch.func.jvp(lambda x: PATHS["composite"](x).lse, (x,), (v,))
    torch.testing.assert_close(tangent, (torch.softmax(x, 1) * v).sum(1))
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(lambda x: operator.row_stats(x).lse, (x,), (v,))


# The operator as torch sees it

OPCHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 1)])
@pytest.mark.parametrize("labelled", [True, False])
def test_opcheck(dtype: torch.dtype, shape: tuple[int, int], labelled: bool) -> None:
    x, y = randn(*shape).to(dtype), labels(*shape) if labelled else None
    strided = randn(*shape[::-1]).to(dtype).T
    for data in (x, strided):
        torch.library.opcheck(torch.ops.ebmhybrid.row_stats.default, (data, y, 0.7), test_utils=OPCHECKS)
        lse, *_ = torch.ops.ebmhybrid.row_stats(data, y, 0.7)
        given = [randn(shape[0], seed=i).to(lse.dtype) for i in range(4)]
        for grads in (given, [given[0], None, None, None], [None, None, given[2], given[3]]):
            arguments = (data, y, lse, *grads, 0.7)
            torch.library.opcheck(
                torch.ops.ebmhybrid.row_stats_backward.default, arguments, test_utils=OPCHECKS, rtol=1e-2, atol=1e-2
            )


def test_outputs_and_gradient_are_contiguous_whatever_the_strides_of_the_logits() -> None:
    x = randn(5, 4).T
    values = torch.ops.ebmhybrid.row_stats(x, labels(4, 5), 1.0)
    gradient = torch.ops.ebmhybrid.row_stats_backward(x, None, values[0], values[0], None, None, None, 1.0)
    assert all(value.is_contiguous() for value in (*values, gradient))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_compiles_to_one_graph(stats: Stats, labelled: bool, transposed: bool) -> None:
    torch._dynamo.reset()
    y, weights = labels(6, 5) if labelled else None, randn(4, 6, seed=1).float()

    def loss(x: Tensor) -> Tensor:
        values = [value for value in stats(x, y, 0.7) if value is not None]
        return (weights[: len(values)] * torch.stack(values)).sum()

    x = (randn(5, 6).float().T if transposed else randn(6, 5).float()).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), loss(x))
    torch.testing.assert_close(naive.grad(compiled(x), x), naive.grad(loss(x), x))


def test_a_compiled_function_has_the_path_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `auto` plain torch, which the compiler fuses; no choice is left in the graph, and no lookup breaks it."""
    monkeypatch.setattr(kernels, "CPU_ENTRIES", 0)
    monkeypatch.setattr(support, "BACKEND", "auto")
    found: list[bool] = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        found.append("torch.ops.ebmhybrid.row_stats" in graph.print_readable(print_output=False))
        return graph.forward

    x = randn(6, 5).float().requires_grad_()
    assert kernels.choose(x) == "operator"
    for call in (kernels.row_stats, operator.row_stats):
        torch._dynamo.reset()
        value = torch.compile(lambda x, call=call: call(x).lse, fullgraph=True, backend=record)(x)
        torch.testing.assert_close(value, x.logsumexp(1))
    assert found == [False, True]


# Precision, strides and edges


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "c"), [(64, 10), (16, 1000)])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_error_is_within_plain_torchs(stats: Stats, dtype: torch.dtype, n: int, c: int, temperature: float) -> None:
    x, y = randn(n, c, scale=4.0).to(dtype).requires_grad_(), labels(n, c)
    wide = x.detach().double().requires_grad_()
    ours, simple, exact = stats(x, y, temperature), plain(x, y, temperature), plain(wide, y, temperature)
    for index, name in enumerate(NAMES):
        assert ours[index].dtype == torch.float32
        error, budget = ((v[index].double() - exact[index]).abs().max() for v in (ours, simple))
        assert error <= budget + 1e-5, name
        weights = randn(n, seed=index)
        gradients = [naive.grad((weights.to(v[index].dtype) * v[index]).sum(), x) for v in (ours, simple)]
        assert gradients[0].dtype == dtype
        expected = naive.grad((weights * exact[index]).sum(), wide)
        error, budget = ((gradient.double() - expected).abs().max() for gradient in gradients)
        assert error <= budget + 1e-5, f"gradient of {name}"


def test_half_precision_keeps_its_digits_where_plain_torch_loses_them(stats: Stats) -> None:
    x = randn(64, 1000, scale=4.0).bfloat16()
    exact = torch.logsumexp(x.double(), 1)
    assert (torch.logsumexp(x, 1).double() - exact).abs().max() > 1e-2
    torch.testing.assert_close(stats(x).lse.double(), exact, rtol=1e-6, atol=1e-6)


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda base: base.T,
    "every second column": lambda base: base[:, ::2],
    "every third row": lambda base: base[::3],
    "one row again and again": lambda base: base[:1].expand(6, -1),
    "one column again and again": lambda base: base[:, :1].expand(-1, 6),
    "a part with an offset": lambda base: base[2:7, 3:8],
    "overlapping windows": lambda base: base.flatten().unfold(0, 5, 2),
}


@pytest.mark.parametrize("view", STRIDES)
def test_strides(stats: Stats, view: str) -> None:
    base = naive.random_logits(9, 10, seed=6)
    x = STRIDES[view](base)
    assert not x.is_contiguous()
    y = labels(*x.shape)
    ours, literal = stats(x, y, 0.7), naive.row_stats(x, y, 0.7)
    for value, expected in zip(ours, literal, strict=True):
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(naive.grad(everything(ours), base), naive.grad(everything(literal), base))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_no_rows_and_one_class(stats: Stats, dtype: torch.dtype) -> None:
    none = torch.zeros(0, 4, dtype=dtype, requires_grad=True)
    values = stats(none, torch.zeros(0, dtype=torch.int64))
    assert [tuple(value.shape) for value in values] == [(0,)] * 4
    gradient = naive.grad(everything(values), none)
    assert gradient.shape == (0, 4)
    assert gradient.dtype == dtype
    one = torch.tensor([[3.0], [-2.0]], dtype=dtype, requires_grad=True)
    values = stats(one, torch.zeros(2, dtype=torch.int64), 2.0)
    expected = ([1.5, -1.0], [3.0, -2.0], [3.0, -2.0], [9.0, 4.0])
    assert [value.tolist() for value in values] == list(expected)
    assert naive.grad(values.lse.sum(), one).tolist() == [[0.5], [0.5]]


@pytest.mark.parametrize("row", SPECIALS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_infinities_and_nan_are_torchs(stats: Stats, row: list[float], dtype: torch.dtype) -> None:
    x, y = torch.tensor([row, [0.0, 1.0, 2.0]], dtype=dtype, requires_grad=True), torch.tensor([1, 2])
    wide = x.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    ours, torchs = stats(x, y), plain(wide, y, 1.0)
    for index, name in enumerate(NAMES):
        torch.testing.assert_close(ours[index], torchs[index], equal_nan=True, msg=name)
        gradient, expected = naive.grad(ours[index].sum(), x), naive.grad(torchs[index].sum(), wide)
        assert torch.equal(gradient.isnan(), expected.isnan()), name
        torch.testing.assert_close(gradient, expected.to(dtype), equal_nan=True)


# Laws

entries = st.floats(-50, 50, width=32)
specials = st.one_of(entries, st.sampled_from([INF, -INF, NAN, 1e4, -1e4]))


@st.composite
def matrices(draw: st.DrawFn, values: st.SearchStrategy[float] = entries) -> Tensor:
    """(N, C) in float64, of a random shape and with random strides."""
    n, c, gap = draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    data = draw(st.lists(values, min_size=n * c, max_size=n * c))
    x = torch.zeros(n, c * gap, dtype=torch.float64)[:, ::gap]
    if draw(st.booleans()):
        x = torch.zeros(c * gap, n, dtype=torch.float64)[::gap].T
    return x.copy_(torch.tensor(data, dtype=torch.float64).reshape(n, c))


law = settings(deadline=None, max_examples=40)


@law
@given(x=matrices(), shift=st.floats(-100, 100), temperature=st.floats(0.1, 10))
def test_law_a_shift_of_the_logits_shifts_lse(x: Tensor, shift: float, temperature: float) -> None:
    for stats in PATHS.values():
        shifted = stats(x + shift, None, temperature).lse
        torch.testing.assert_close(shifted, stats(x, None, temperature).lse + shift / temperature)


@law
@given(x=matrices(), data=st.data())
def test_law_the_order_of_the_classes_does_not_matter(x: Tensor, data: st.DataObject) -> None:
    order = torch.tensor(data.draw(st.permutations(range(x.shape[1]))))
    y = torch.tensor(data.draw(st.lists(st.integers(0, x.shape[1] - 1), min_size=len(x), max_size=len(x))))
    for stats in PATHS.values():
        for value, expected in zip(stats(x[:, order], torch.argsort(order)[y]), stats(x, y), strict=True):
            torch.testing.assert_close(value, expected)


@law
@given(x=matrices(), temperature=st.floats(0.1, 10))
def test_law_gradient_rows_of_lse_sum_to_one_over_t(x: Tensor, temperature: float) -> None:
    for stats in PATHS.values():
        leaf = x.detach().requires_grad_()
        gradient = naive.grad(stats(leaf, None, temperature).lse.sum(), leaf)
        torch.testing.assert_close(gradient.sum(1), torch.full((len(x),), 1 / temperature, dtype=torch.float64))
        assert bool((gradient >= 0).all())


@law
@given(x=matrices(), data=st.data())
def test_law_cross_entropy_is_never_negative(x: Tensor, data: st.DataObject) -> None:
    y = torch.tensor(data.draw(st.lists(st.integers(0, x.shape[1] - 1), min_size=len(x), max_size=len(x))))
    for stats in PATHS.values():
        values = stats(x, y)
        assert bool((values.lse - values.pick >= -1e-12).all())
        assert bool((values.sq >= values.pick.square() - 1e-9).all())


@law
@given(x=matrices(specials), data=st.data())
def test_law_both_paths_agree_on_anything(x: Tensor, data: st.DataObject) -> None:
    y = torch.tensor(data.draw(st.lists(st.integers(0, x.shape[1] - 1), min_size=len(x), max_size=len(x))))
    leaf = x.detach().requires_grad_()
    both = [stats(leaf, y, 0.5) for stats in PATHS.values()]
    for index in range(4):
        torch.testing.assert_close(both[0][index], both[1][index], equal_nan=True)
        gradients = [naive.grad(values[index].sum(), leaf) for values in both]
        torch.testing.assert_close(gradients[0], gradients[1], equal_nan=True)
