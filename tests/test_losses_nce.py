"""Noise-contrastive estimation of log p(x): literal versions, exact spaces, edges, and its place in a recipe."""

from __future__ import annotations

import math
import re
from pathlib import Path

import naive
import naive_baselines as literal
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ebmhybrid as eh
from ebmhybrid.data import Splits
from ebmhybrid.errors import RecipeError
from ebmhybrid.losses import NCELoss, nce_loss
from ebmhybrid.losses.baselines import energy_margin_loss
from ebmhybrid.schema import Objective
from ebmhybrid.training.build import build_parts, load_data
from ebmhybrid.training.objective import CombinedLoss
from ebmhybrid.training.step import train_step

DOUBLE = torch.float64
PAGE = Path(__file__).parent.parent / "docs" / "nce.md"


def assert_same(value: Tensor, expected: Tensor, *at: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    for tensor in at:
        torch.testing.assert_close(naive.grad(value, tensor), naive.grad(expected, tensor), rtol=1e-12, atol=1e-12)


def batch(n: int = 6, r: int = 4, c: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return naive.random_logits(n, c, seed=n), torch.arange(n) % c, naive.random_logits(r, c, seed=100 + r)


@pytest.mark.parametrize(("offset", "weight"), [(0.0, 1.0), (1.7, 0.3), (-3.0, 20.0)])
@pytest.mark.parametrize(("n", "r", "c"), [(6, 4, 3), (1, 1, 1), (2, 5, 10)])
def test_it_is_the_logistic_loss_image_by_image(n: int, r: int, c: int, offset: float, weight: float) -> None:
    logits, _, reference = batch(n, r, c)
    b = torch.tensor(offset, dtype=DOUBLE, requires_grad=True)
    expected = literal.nce(logits, reference, b, weight)
    assert_same(nce_loss(logits, reference, b, weight), expected, logits, reference, b)
    assert_same(nce_loss(logits, reference, offset, weight), expected, logits, reference)
    assert_same(NCELoss(offset, weight)(logits, reference), expected, logits, reference)


@pytest.mark.parametrize("offset", [0.0, 0.8])
@pytest.mark.parametrize(("n", "r"), [(6, 3), (3, 7), (1, 1)])
def test_with_cross_entropy_it_is_that_of_one_class_more(n: int, r: int, offset: float) -> None:
    """CE + NCE with w = R/N equals (N + R)/N times the mean (C + 1)-class cross-entropy, to the last digits."""
    logits, y, reference = batch(n, r)
    b = torch.tensor(offset, dtype=DOUBLE, requires_grad=True)
    hybrid = F.cross_entropy(logits, y) + nce_loss(logits, reference, b, r / n)
    one_more = literal.background_class(logits, y, reference, b, 1.0) / (n + r)
    assert_same(hybrid, (n + r) / n * one_more, logits, reference, b)
    for weight in (0.2, 5.0):  # any other w weighs the background class w N / R
        hybrid = F.cross_entropy(logits, y) + nce_loss(logits, reference, b, weight)
        expected = literal.background_class(logits, y, reference, b, weight * n / r) / n
        assert_same(hybrid, expected, logits, reference, b)


def discrete() -> tuple[Tensor, Tensor]:
    """p(x, y) over 7 points and 3 classes, and a reference q(x) of full support."""
    return naive.random_logits(1, 21, seed=1, scale=1.0).detach().softmax(1).view(7, 3), torch.arange(1.0, 8) / 28


def expectation(f: Tensor, offset: float, weight: float) -> Tensor:
    """The loss of infinitely many images: each point counts by its probability, of data and of references."""
    p, q = discrete()
    points = [nce_loss(f[i : i + 1], f[:0], offset) * p[i].sum() for i in range(len(f))]
    others = [nce_loss(f[:0], f[i : i + 1], offset, weight) * q[i] for i in range(len(f))]
    return torch.stack(points + others).sum()


@pytest.mark.parametrize(("offset", "weight"), [(0.0, 1.0), (2.0, 0.25), (-1.0, 8.0)])
def test_the_optimum_is_the_log_ratio_to_the_reference(offset: float, weight: float) -> None:
    """At f(x)[y] = b + log p(x, y) - log w q(x) both gradients vanish, and every other f that is tried is worse."""
    p, q = discrete()
    f = (offset + (p / (weight * q[:, None])).log()).requires_grad_()
    cross_entropy = -(p * f.log_softmax(1)).sum()
    value = expectation(f, offset, weight)
    for part in (value, cross_entropy):
        assert naive.grad(part, f).abs().max() < 1e-12
    marginal, against = p.sum(1), weight * q
    bound = -(marginal * (marginal / (marginal + against)).log() + against * (against / (marginal + against)).log())
    torch.testing.assert_close(value.detach(), bound.sum())
    for seed in range(5):
        assert expectation(f.detach() + 0.1 * naive.random_logits(7, 3, seed), offset, weight) > value


def test_logits_that_are_free_find_the_ratio() -> None:
    """Newton's method from f = 0 over a table: the gap that energies show is exact, and the weight moves all alike."""
    p, q = discrete()
    found = []
    for weight in (1.0, 4.0):
        s = torch.zeros(7, 1, dtype=DOUBLE, requires_grad=True)
        for _ in range(30):
            slope = torch.autograd.grad(expectation(s, 0.0, weight), s, create_graph=True)[0]
            (curvature,) = torch.autograd.grad(slope.sum(), s)
            s = (s - slope / curvature).detach().requires_grad_()
        found.append(s.detach().squeeze(1))
    torch.testing.assert_close(found[0], (p.sum(1) / q).log())
    torch.testing.assert_close(found[0] - found[1], torch.full((7,), math.log(4.0), dtype=DOUBLE))


def test_a_shift_of_all_logits_is_a_shift_of_the_offset() -> None:
    logits, _, reference = batch()
    assert_same(nce_loss(logits + 1.5, reference + 1.5, 1.5), nce_loss(logits, reference), logits, reference)


def test_derivatives_are_right_and_of_second_order_too() -> None:
    logits, _, reference = batch(3, 2)
    b = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: nce_loss(*given, 0.7), (logits, reference, b))
    assert torch.autograd.gradgradcheck(lambda *given: nce_loss(*given, 0.7), (logits, reference, b))


# Edges


def test_a_side_that_is_empty_is_left_out() -> None:
    logits, _, reference = batch()
    none = logits[:0]
    sides = nce_loss(logits, none, 0.5, 3.0), nce_loss(none, reference, 0.5, 3.0)
    assert min(sides) > 0
    assert_same(sum(sides), nce_loss(logits, reference, 0.5, 3.0), logits, reference)
    nothing = nce_loss(none, none)
    assert nothing.item() == 0
    nothing.backward()


@pytest.mark.parametrize("size", [30.0, 1e4, 1e30])
def test_far_logits_have_exact_values_and_gradients_of_one_or_zero(size: float) -> None:
    for dtype in (torch.float32, DOUBLE):
        low, high = (torch.tensor([[v]], dtype=dtype, requires_grad=True) for v in (-size, size))
        right, wrong = nce_loss(high, low), nce_loss(low, high)
        torch.testing.assert_close(right.item(), 2 * math.exp(-size), rtol=1e-6, atol=0)
        torch.testing.assert_close(wrong.item(), 2 * size, rtol=1e-6, atol=0)
        right.backward()
        assert max(abs(low.grad.item()), abs(high.grad.item())) < 1e-12
        wrong.backward()
        torch.testing.assert_close([low.grad.item(), high.grad.item()], [-1.0, 1.0], rtol=0, atol=1e-6)


def test_float64_keeps_the_digits_that_float32_has_not() -> None:
    """Past 20 torch's own softplus is its argument, which leaves out 2e-9."""
    wrong = torch.tensor([[25.0]], dtype=DOUBLE)
    expected = torch.tensor(25 + math.log1p(math.exp(-25)), dtype=DOUBLE)
    for loss in (nce_loss(-wrong, wrong[:0]), nce_loss(wrong[:0], wrong)):
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-13)


def test_infinities_are_limits_and_nan_stays() -> None:
    inf, fine = torch.tensor([[math.inf]]), torch.zeros(1, 1)
    assert nce_loss(-inf, fine).item() == math.inf
    assert nce_loss(fine, inf).item() == math.inf
    assert nce_loss(inf, -inf).item() == 0
    assert nce_loss(torch.full((1, 2), math.nan), fine).isnan()
    assert nce_loss(fine, torch.full((1, 2), math.nan)).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, _, reference = ((10 * part).detach().to(dtype) for part in batch())
    loss = NCELoss(0.1, 2.0, learn_offset=True)(logits, reference)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), nce_loss(logits.double(), reference.double(), 0.1, 2.0))


def test_it_traces_to_one_graph() -> None:
    logits, _, reference = (part.detach() for part in batch())
    loss_fn = NCELoss(learn_offset=True)
    traced = torch.compile(loss_fn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(logits, reference), loss_fn(logits, reference))


OFFSETS = [
    (math.nan, "got nan"),
    (math.inf, "got inf"),
    ("0", "got '0'"),
    (True, "got True"),
    (torch.zeros(2), r"float32 \(2,\)"),
]


@pytest.mark.parametrize(("offset", "said"), [*OFFSETS, (torch.tensor(1), "torch.int64")])
def test_an_offset_that_is_no_number_is_named(offset, said: str) -> None:
    with pytest.raises(
        ValueError, match=f"offset must be a .*number, {said if said[:3] == 'got' else 'got .*' + said}"
    ):
        nce_loss(torch.zeros(1, 2), torch.zeros(1, 2), offset)


def test_the_module_wants_its_offset_as_a_number() -> None:
    """A tensor kept as it is would neither be in its state nor go with it to a device."""
    for learn in (False, True):
        with pytest.raises(ValueError, match=r"offset must be a number, .* parameter, got tensor\(1\.\)"):
            NCELoss(torch.tensor(1.0), learn_offset=learn)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf, "1"])
def test_a_weight_that_is_no_positive_number_is_named(weight) -> None:
    for call in (lambda: NCELoss(reference_weight=weight), lambda: nce_loss(*torch.zeros(2, 1, 2), 0.0, weight)):
        with pytest.raises(ValueError, match=f"reference_weight must be a number > 0, got {weight!r}"):
            call()


def test_what_is_no_logits_is_named() -> None:
    for given in ((torch.zeros(3), torch.zeros(1, 2)), (torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int64))):
        with pytest.raises(ValueError, match="logits must be floating point"):
            nce_loss(*given)


# In a recipe


def test_a_learned_offset_is_a_parameter_and_a_fixed_one_is_not() -> None:
    assert [*NCELoss(0.5).parameters()] == []
    loss_fn = NCELoss(0.5, learn_offset=True)
    assert loss_fn.state_dict() == {"offset": torch.tensor(0.5)}
    assert (repr(loss_fn), repr(NCELoss(0.5))) == (
        "NCELoss(learned offset, reference_weight=1.0)",
        "NCELoss(offset=0.5, reference_weight=1.0)",
    )


def test_the_objective_weighs_and_names_it() -> None:
    logits, y, reference = batch()
    given = {"ce": {}, "nce": {"weight": 0.5, "reference_weight": 3.0, "offset": -1.0}, "outlier_exposure": {}}
    loss, parts = CombinedLoss(Objective.model_validate(given), 3)(logits, y, reference)
    torch.testing.assert_close(parts["nce"], literal.nce(logits, reference, -1.0, 3.0))
    torch.testing.assert_close(loss, parts["ce"] + 0.5 * parts["nce"] + 0.5 * parts["outlier_exposure"])


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_data(eh.load_recipe("smoke"), "data", False)


def trained(splits: Splits, *options: str, steps: int = 1):
    recipe = eh.load_recipe("smoke", ["reference={families: [smooth]}", *options])
    parts = build_parts(recipe, splits, torch.device("cpu"))
    seen: list[Tensor] = []
    images, labels = splits.train.images[:32].float() / 255, splits.train.labels[:32]
    for _ in range(steps):
        _, terms, _ = train_step(parts, lambda x: seen.append(parts.model(x)) or seen[-1], images, labels)
    return parts, terms, seen[-1].detach()


def test_a_step_of_training_learns_the_offset_as_any_weight(splits: Splits) -> None:
    options = "objective={ce: {}, nce: {weight: 1.0, learn_offset: true, offset: 0.25, reference_weight: 0.5}}"
    parts, terms, logits = trained(splits, options, "optimizer={lr: 0.1, weight_decay: 0.0}")
    b = torch.tensor(0.25, requires_grad=True)
    loss = nce_loss(logits[:32], logits[32:], b, 0.5)
    torch.testing.assert_close(terms["nce"], loss.detach())
    offset = parts.objective.state_dict()["nce.offset"]
    torch.testing.assert_close(offset, 0.25 - 0.1 * naive.grad(loss, b))
    assert offset != 0.25


@pytest.mark.parametrize("extra", [[], ["optimizer.sam_rho=0.1"], ["training.accumulate=2"]])
def test_fixed_and_learned_offsets_train_beside_the_other_options(splits: Splits, extra: list[str]) -> None:
    objective = "objective={ce: {}, nce: {learn_offset: true}, z_loss: {}}"
    parts, terms, _ = trained(splits, objective, *extra, steps=2)
    assert terms["nce"].isfinite()
    assert parts.objective.nce.offset.item() != 0


def test_after_some_steps_logsumexp_tells_references_from_data(splits: Splits) -> None:
    """In more pairs than after the same steps of what is next to cross-entropy alone."""
    gaps = []
    for objective in ("{ce: {}, outlier_exposure: {weight: 1.0e-9}}", "{ce: {}, nce: {weight: 1.0}}"):
        torch.manual_seed(0)
        _, _, logits = trained(
            splits, f"objective={objective}", "schedule.name=constant", "optimizer.lr=0.02", steps=30
        )
        s = eh.log_density(logits)
        gaps.append(float((s[:32, None] > s[None, 32:]).float().mean()))
    assert gaps[1] > max(0.98, gaps[0])


def test_a_run_resumes_with_its_learned_offset(tmp_path) -> None:
    objective = "objective={ce: {}, nce: {learn_offset: true}}"
    options = ["reference={families: [smooth]}", objective, "schedule.name=constant"]
    whole = eh.train(eh.load_recipe("smoke", options), tmp_path / "whole", progress=False)
    eh.train(eh.load_recipe("smoke", [*options, "training.max_steps=3"]), tmp_path / "part", progress=False)
    part = eh.train(resume=tmp_path / "part", overrides=["training.max_steps=6"], progress=False)
    states = [torch.load(run.folder / "checkpoints" / "last.state.pt", weights_only=True) for run in (whole, part)]
    offsets = [state["parts"]["objective"]["nce.offset"] for state in states]
    assert offsets[0] == offsets[1] != 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["objective={ce: {}, nce: {}}"], "objective.nce needs reference images"),
        (["reference={set: noise}", "objective={ce: {}}"], "energy_margin, outlier_exposure or nce: .* of the three"),
        (["objective={ce: {}, nce: {weight: 0.0}}"], r"objective\.nce\.weight = 0"),
        (["objective={ce: {}, nce: {reference_weight: 0.0}}"], r"objective\.nce\.reference_weight = 0"),
        (
            ["objective={ce: {}, nce: {offset: 1.0e+40}}"],
            r"objective\.nce\.offset = 1e\+40.*less than or equal to 1000000",
        ),
        (["objective={ce: {}, nce: {offset: .inf}}"], r"objective\.nce\.offset = inf"),
        (["objective={ce: {}, nce: {learn_offset: 1}}"], r"objective\.nce\.learn_offset = 1"),
        (["objective={ce: {}, nce: {offst: 1.0}}"], r"unknown key 'objective\.nce\.offst'"),
        (
            ["objective={ce: {}, nce: {learn_offset: true}}", "reference={set: noise}", "training.linear_energy=true"],
            "does not go with objective.nce.learn_offset: the bias of the last layer learns the same",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        eh.load_recipe("smoke", ["evaluation.ood=[]", *options])


def test_alone_it_is_an_objective_and_only_with_references() -> None:
    recipe = eh.load_recipe("smoke", ["objective={nce: {}}", "reference={families: [smooth]}"])
    assert recipe.objective.nce is not None
    assert recipe.objective.nce.model_dump() == {
        "weight": 0.25,
        "reference_weight": 1.0,
        "offset": 0.0,
        "learn_offset": False,
    }


def test_the_bias_of_the_last_layer_learns_what_a_learned_offset_would() -> None:
    """The reason for which linear_energy refuses it: the two derivatives are each other's negative."""
    torch.manual_seed(0)
    head, x, other = nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=DOUBLE), torch.randn(2, 4, dtype=DOUBLE)
    loss_fn = NCELoss(learn_offset=True).double()
    loss_fn(head(x), head(other)).backward()
    torch.testing.assert_close(head.bias.grad.sum(), -loss_fn.offset.grad)


def test_the_pages_lines_are_cross_entropy_of_one_class_more_and_a_recipe() -> None:
    page = PAGE.read_text()
    (lines,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    logits, y, reference = batch()
    names = {"model": nn.Identity(), "images": logits, "references": reference, "y": y}
    exec(lines, {"torch": torch, "F": F, "nce_loss": nce_loss}, names)
    torch.testing.assert_close(names["loss"], literal.background_class(logits, y, reference, 0.0, 1.0) / len(y))
    asked = re.findall(r"^    (objective|reference): (\{.*\})$", page, flags=re.M)
    recipe = eh.load_recipe("smoke", [f"{key}={value}" for key, value in asked])
    for name in ("fashion_mnist_nce", "cifar10_nce"):
        recommended = eh.load_recipe(name)
        assert (recipe.objective, recipe.reference) == (recommended.objective, recommended.reference)


def test_wrong_reference_logits_are_named() -> None:
    with pytest.raises(ValueError, match=r"^reference_logits must be floating point of shape \(N, C\)"):
        nce_loss(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"^outlier_logits must be floating point of shape \(N, C\)"):
        energy_margin_loss(torch.zeros(2, 3), torch.zeros(3))
