"""HDGELoss and its pure functions against literal versions, laws, edges and wrong input."""

from __future__ import annotations

import math

import naive
import pytest
import torch
import torch.nn.functional as F

import ebmhybrid as eh
from ebmhybrid.losses import class_scores, contrastive_loss
from ebmhybrid.losses.label_vectors import label_vector_scores
from ebmhybrid.terms import HDGETerm

PAPER = {"form": "paper", "negatives": "batch", "normalize": "none", "temperature": 1.0}


def labels(n: int, c: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))


def soft(n: int, c: int, seed: int = 0) -> torch.Tensor:
    return torch.softmax(naive.random_logits(n, c, seed).detach(), 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("n", "c", "k"), [(4, 3, 16), (8, 10, 64), (5, 10, 15)])
def test_default_equals_the_literal_released_loss_over_50_rolling_steps(n, c, k, smoothing) -> None:
    loss_fn = eh.HDGELoss(c, bank_size=k, label_smoothing=smoothing).double()
    queue = naive.Queue(naive.random_logits(k, c, seed=99).detach())
    loss_fn.fill_bank(queue.tensor())
    for step in range(50):
        logits, y = naive.random_logits(n, c, seed=step), labels(n, c, seed=step)
        vectors = naive.label_vectors(y, c, smoothing)
        literal = naive.cross_entropy(logits, vectors)
        literal = literal + naive.released_contrast(logits, queue.tensor(), vectors, temperature=0.1)
        loss = loss_fn(logits, y)
        torch.testing.assert_close(loss, literal, rtol=0, atol=1e-10)
        torch.testing.assert_close(naive.grad(loss, logits), naive.grad(literal, logits), rtol=0, atol=1e-10)
        queue.push(logits)


def test_released_defaults_at_full_size() -> None:
    """HDGELoss(10) itself, K = 65536, over 50 steps in which the ring's pointer goes past its end."""
    generator = torch.Generator().manual_seed(5)
    loss_fn = eh.HDGELoss(10).double()
    start = torch.randn(65536, 10, dtype=torch.float64, generator=generator)
    early = torch.randn(65536 - 16 * 25, 10, dtype=torch.float64, generator=generator)
    loss_fn.fill_bank(start)
    loss_fn.fill_bank(early)
    bank = torch.cat([start[len(early) :], early])  # a deque of 65536 single tensors would take the test's time
    for step in range(50):
        logits, y = naive.random_logits(16, 10, seed=step), labels(16, 10, seed=step)
        vectors = naive.label_vectors(y, 10)
        literal = naive.cross_entropy(logits, vectors)
        literal = literal + naive.released_contrast(logits, bank, vectors, temperature=0.1)
        loss = loss_fn(logits, y)
        torch.testing.assert_close(loss, literal, rtol=0, atol=1e-10)
        torch.testing.assert_close(naive.grad(loss, logits), naive.grad(literal, logits), rtol=0, atol=1e-10)
        bank = torch.cat([bank[16:], logits.detach()])
    assert int(loss_fn.bank.pointer) == 25


def test_the_two_weights_weigh_their_parts() -> None:
    logits, y = naive.random_logits(6, 4, seed=1), labels(6, 4)
    loss, terms = eh.HDGELoss(4, weight=0.3, ce_weight=0.7, negatives="batch")(logits, y, return_terms=True)
    torch.testing.assert_close(loss, 0.7 * terms["ce"] + 0.3 * terms["contrastive"])
    assert eh.HDGELoss(4, weight=0.3, ce_weight=0.7, negatives="batch")(logits, y) == loss


@pytest.mark.parametrize("normalize", ["l2", "none"])
@pytest.mark.parametrize("negatives", ["bank", "batch"])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_paper_form_equals_the_double_loop(negatives, normalize, temperature) -> None:
    logits, y = naive.random_logits(6, 4, seed=1), labels(6, 4)
    loss_fn = eh.HDGELoss(
        4, form="paper", negatives=negatives, normalize=normalize, temperature=temperature, bank_size=9
    ).double()
    bank = None
    if negatives == "bank":
        bank = naive.random_logits(9, 4, seed=7).detach()
        loss_fn.fill_bank(bank)
    literal = naive.paper_contrast(logits, y, temperature, bank, normalize == "l2")
    loss, terms = loss_fn(logits, y, return_terms=True)
    torch.testing.assert_close(terms["contrastive"], literal)
    torch.testing.assert_close(terms["ce"], naive.cross_entropy(logits, naive.label_vectors(y, 4)))
    torch.testing.assert_close(loss, terms["ce"] + terms["contrastive"])
    torch.testing.assert_close(naive.grad(terms["contrastive"], logits), naive.grad(literal, logits))


@pytest.mark.parametrize("normalize", ["l2", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_released_form_with_live_negatives_equals_the_double_loop(normalize, smoothing) -> None:
    logits, y = naive.random_logits(6, 4, seed=1), labels(6, 4)
    loss_fn = eh.HDGELoss(4, negatives="batch", normalize=normalize, label_smoothing=smoothing, ce_weight=0.0)
    vectors = naive.label_vectors(y, 4, smoothing)
    literal = naive.released_contrast_live(logits, vectors, 0.1, normalize == "l2")
    torch.testing.assert_close(loss_fn(logits, y), literal)
    torch.testing.assert_close(loss_fn(logits, F.one_hot(y, 4).double()), literal)
    mixed = soft(6, 4)
    literal = naive.released_contrast_live(
        logits, naive.label_vectors(y, 4, 0.0) * 0 + mixed * (1 - smoothing) + smoothing / 4, 0.1, normalize == "l2"
    )
    torch.testing.assert_close(loss_fn(logits, mixed), literal)


def test_paper_form_is_linear_in_the_label() -> None:
    logits, t = naive.random_logits(5, 3, seed=2), soft(5, 3)
    loss_fn = eh.HDGELoss(3, **PAPER)
    each = torch.stack([loss_fn(logits[:, :], torch.full((5,), c)) for c in range(3)])  # every image labelled c
    uniform = torch.full((5, 3), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(loss_fn(logits, uniform), each.mean())
    torch.testing.assert_close(loss_fn(logits, F.one_hot(labels(5, 3), 3).double()), loss_fn(logits, labels(5, 3)))
    smoothed = eh.HDGELoss(3, **PAPER, label_smoothing=0.3)
    torch.testing.assert_close(smoothed(logits, t), loss_fn(logits, 0.7 * t + 0.1))
    torch.testing.assert_close(
        smoothed(logits, labels(5, 3)), loss_fn(logits, naive.label_vectors(labels(5, 3), 3, 0.3))
    )


def test_columns_are_the_rows_of_the_transposed_problem() -> None:
    """With N = C and y = 0..N-1 the contrast is cross-entropy on the transposed logit matrix."""
    logits = naive.random_logits(6, 6, seed=3)
    _, terms = eh.HDGELoss(6, **PAPER)(logits, torch.arange(6), return_terms=True)
    torch.testing.assert_close(terms["contrastive"], F.cross_entropy(logits.T, torch.arange(6)))


def test_reference_logits_enter_the_columns_only() -> None:
    logits, y, reference = naive.random_logits(5, 3, seed=4), labels(5, 3), naive.random_logits(7, 3, seed=5)
    _, terms = eh.HDGELoss(3, **PAPER)(logits, y, reference=reference, return_terms=True)
    columns = torch.cat([logits, reference]).exp().sum(0)
    literal = -(logits[torch.arange(5), y].exp() / columns[y]).log().mean()
    torch.testing.assert_close(terms["contrastive"], literal)
    torch.testing.assert_close(terms["ce"], F.cross_entropy(logits, y))
    assert (naive.grad(terms["contrastive"], reference) > 0).any()


@pytest.mark.parametrize("weight", [0.2, 1.0, 20.0])
@pytest.mark.parametrize("normalize", ["l2", "none"])
@pytest.mark.parametrize("form", ["released", "paper"])
def test_weighted_references_in_live_columns_equal_the_loops(form, normalize, weight) -> None:
    logits, y, reference = naive.random_logits(5, 3, seed=4), labels(5, 3), naive.random_logits(4, 3, seed=5)
    loss_fn = eh.HDGELoss(
        3, form=form, normalize=normalize, negatives="batch", temperature=0.5, reference_weight=weight, ce_weight=0.0
    )
    for targets in (y, soft(5, 3)):
        vectors = naive.label_vectors(y, 3) if targets is y else targets
        literal = naive.contrast_with_reference(
            logits, reference, vectors, weight, 0.5, form == "released", normalize == "l2"
        )
        loss = loss_fn(logits, targets, reference=reference)
        torch.testing.assert_close(loss, literal)
        for at in (logits, reference):
            torch.testing.assert_close(naive.grad(loss, at), naive.grad(literal, at))
        without = loss_fn(logits, targets)
        torch.testing.assert_close(
            without,
            naive.contrast_with_reference(
                logits, reference[:0], vectors, weight, 0.5, form == "released", normalize == "l2"
            ),
        )


@pytest.mark.parametrize("negatives", ["batch", "bank+batch"])
@pytest.mark.parametrize("normalize", ["l2", "none"])
@pytest.mark.parametrize("form", ["released", "paper"])
def test_a_reference_of_weight_3_is_three_references(form, normalize, negatives) -> None:
    """In value, gradient and what the bank keeps, over steps with and without references, the last of one image."""
    options = {"form": form, "normalize": normalize, "negatives": negatives, "temperature": 0.5, "bank_size": 512}
    weighted, plain = eh.HDGELoss(3, **options, reference_weight=3.0).double(), eh.HDGELoss(3, **options).double()
    for step, (n, count) in enumerate(((6, 2), (6, 0), (6, 5), (2, 1), (1, 1))):
        logits, y = naive.random_logits(n, 3, seed=step), labels(n, 3, seed=step)
        reference = naive.random_logits(count, 3, seed=50 + step) if count else None
        loss = weighted(logits, y, reference=reference)
        expected = plain(logits, y, reference=None if reference is None else reference.repeat(3, 1))
        torch.testing.assert_close(loss, expected)
        for at in [logits] if reference is None else [logits, reference]:
            # the bank's share of the weights is a number in float32
            torch.testing.assert_close(naive.grad(loss, at), naive.grad(expected, at), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1, 4])
def test_the_bank_keeps_how_much_weighted_references_weigh(size) -> None:
    """The re-weighted estimator by its formula, with sums of weights in place of numbers of images."""
    options = {"form": "paper", "normalize": "none", "temperature": 1.0}
    loss_fn = eh.HDGELoss(3, **options, negatives="bank+batch", bank_size=64, ce_weight=0.0, reference_weight=0.3)
    loss_fn = loss_fn.double()
    past, old = naive.random_logits(9, 3, seed=1).detach(), naive.random_logits(5, 3, seed=2).detach()
    loss_fn(past, labels(9, 3), reference=old)
    logits, y, reference = naive.random_logits(size, 3, seed=3), labels(size, 3), naive.random_logits(2, 3, seed=4)
    total = past.exp().sum(0) + 0.3 * old.exp().sum(0) + logits.exp().sum(0) + 0.3 * reference.exp().sum(0)
    pull = torch.zeros((), dtype=torch.float64)
    for n, c in enumerate(y.tolist()):
        others = sum(logits[j, c].exp() for j in range(size) if j != n) + 0.3 * reference[:, c].exp().sum()
        scale = (9 + 0.3 * 5 + size + 0.3 * 2) / (size + 0.3 * 2 - 1)
        pull = pull + (scale * others / total[c].detach() - logits[n, c]) / size
    loss = loss_fn(logits, y, reference=reference)
    value = (total.log()[y] - logits[torch.arange(size), y]).mean()
    torch.testing.assert_close(loss, value)
    for at in (logits, reference):
        torch.testing.assert_close(naive.grad(loss, at), naive.grad(pull, at), rtol=1e-6, atol=1e-9)


def test_a_bank_filled_by_hand_holds_images_of_weight_one() -> None:
    options = {"form": "paper", "normalize": "none", "negatives": "bank+batch", "bank_size": 16}
    start, logits, y = naive.random_logits(16, 3, seed=1).detach(), naive.random_logits(4, 3, seed=2), labels(4, 3)
    losses = []
    for weight in (1.0, 5.0):
        loss_fn = eh.HDGELoss(3, **options, reference_weight=weight).double()
        loss_fn.fill_bank(start)
        losses.append(loss_fn(logits, y))
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(naive.grad(loss, logits) for loss in losses), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match=r"other options \(reference_weight: saved 5\.0, now 2\.0\)"):
        eh.HDGELoss(3, **options, reference_weight=2.0).load_state_dict(loss_fn.state_dict())


@pytest.mark.parametrize("k", [256, 65536])
def test_the_detached_bank_is_inert(k: int) -> None:
    """Any two banks give the same gradient up to the factor 1 - pi with pi about 1/K: the finding the docs tell."""
    logits, y = naive.random_logits(64, 10, seed=6), labels(64, 10)
    loss_fn = eh.HDGELoss(10, bank_size=k, ce_weight=0.0).double()
    no_bank = naive.grad(-loss_fn.scores(logits)[torch.arange(64), y].mean(), logits)
    with_bank = naive.grad(loss_fn(logits, y), logits)
    distance = ((with_bank - no_bank).norm() / no_bank.norm()).item()
    assert 0.1 / k < distance < 6.5536 / k


def test_live_negatives_are_not_inert() -> None:
    logits, y = naive.random_logits(64, 10, seed=6), labels(64, 10)
    loss_fn = eh.HDGELoss(10, negatives="batch", ce_weight=0.0)
    no_bank = naive.grad(-loss_fn.scores(logits)[torch.arange(64), y].mean(), logits)
    live = naive.grad(loss_fn(logits, y), logits)
    assert (live - no_bank).norm() / no_bank.norm() > 0.2


def test_bank_and_batch_estimates_the_population_gradient() -> None:
    """Mean gradient of small batches: re-weighted is close to the exact one, in-batch is biased, merged is diluted."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 5, dtype=torch.float64, generator=g)
    weights = 0.7 * torch.randn(5, 3, dtype=torch.float64, generator=g)
    y = torch.multinomial(torch.softmax(3 * x @ weights, 1), 1, generator=g).squeeze(1)
    exact = naive.population_gradient(weights, x, y)
    banked = (x @ weights).logsumexp(0), torch.tensor(len(x))

    def merged(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        columns = torch.stack([scores.logsumexp(0), banked[0]]).logsumexp(0)
        return columns[targets] - scores[torch.arange(len(targets)), targets]

    def error(loss) -> float:
        w = weights.clone().requires_grad_()
        index = torch.randint(len(x), (100_000, 4), generator=g)
        mean = torch.vmap(loss)(x[index] @ w, y[index]).mean()
        return ((naive.grad(mean, w) - exact).norm() / exact.norm()).item()

    reweighted = error(lambda scores, t: contrastive_loss(scores, t, live=scores, bank=banked))
    soft_too = error(lambda scores, t: contrastive_loss(scores, F.one_hot(t, 3).double(), live=scores, bank=banked))
    in_batch = error(lambda scores, t: contrastive_loss(scores, t, live=scores))
    assert max(reweighted, soft_too) < 0.05
    assert min(in_batch, error(merged)) > 0.3


def test_a_stale_bank_overweights_the_batch() -> None:
    """The limit that the docs name: raw logits that have grown since the bank was filled."""
    logits, y = naive.random_logits(64, 10, seed=1, scale=10.0), labels(64, 10)

    def norm(bank_scale: float) -> float:
        banked = naive.random_logits(65536, 10, seed=2, scale=bank_scale).detach()
        bank = banked.logsumexp(0), torch.tensor(len(banked))
        return naive.grad(contrastive_loss(logits, y, live=logits, bank=bank).mean(), logits).norm().item()

    assert norm(0.1) > 100 * norm(10.0)


def test_bank_and_batch_has_the_merged_value_and_fills_from_empty() -> None:
    loss_fn = eh.HDGELoss(3, form="paper", negatives="bank+batch", normalize="none", temperature=1.0, bank_size=8)
    loss_fn = loss_fn.double()
    batch_only = eh.HDGELoss(3, **PAPER)
    first, y = naive.random_logits(4, 3, seed=1), labels(4, 3)
    torch.testing.assert_close(loss_fn(first, y), batch_only(first, y))
    torch.testing.assert_close(int(loss_fn.bank.count()), 4)
    second = naive.random_logits(4, 3, seed=2)
    _, terms = loss_fn(second, y, return_terms=True)
    everyone = torch.cat([first, second]).exp().sum(0).log()
    torch.testing.assert_close(terms["contrastive"], (everyone[y] - second[torch.arange(4), y]).mean())


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("negatives", ["bank", "batch", "bank+batch"])
@pytest.mark.parametrize("normalize", ["l2", "none"])
def test_gradcheck_and_second_order(form, negatives, normalize) -> None:
    loss_fn = eh.HDGELoss(3, form=form, negatives=negatives, normalize=normalize, temperature=0.5, bank_size=8).double()
    loss_fn.eval()  # the bank must stand still between evaluations
    if negatives == "bank+batch":
        loss_fn.fill_bank(naive.random_logits(8, 3, seed=8).detach())
    logits, y = naive.random_logits(4, 3, seed=9, scale=1.0), labels(4, 3)
    if negatives != "bank+batch":  # a surrogate whose value and gradient belong to two estimates, so no gradcheck
        assert torch.autograd.gradcheck(lambda v: loss_fn(v, y), (logits,))
        assert torch.autograd.gradgradcheck(lambda v: loss_fn(v, y), (logits,))
    gradient = torch.autograd.grad(loss_fn(logits, y), logits, create_graph=True)[0]
    gradient.pow(2).sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("normalize", ["l2", "none"])
def test_class_permutation_changes_nothing(normalize) -> None:
    logits, y = naive.random_logits(8, 5, seed=1), labels(8, 5)
    order = torch.tensor([3, 1, 4, 0, 2])
    loss_fn = eh.HDGELoss(5, negatives="batch", normalize=normalize)
    torch.testing.assert_close(loss_fn(logits, y), loss_fn(logits[:, order], torch.argsort(order)[y]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_bounded_raw_and_label_vector_scores_agree(classes: int, smoothing: float) -> None:
    values = F.normalize(naive.random_logits(4, classes, seed=2), dim=1)
    bounded = class_scores(values, temperature=1.0, label_smoothing=smoothing)
    raw = class_scores(values, temperature=1.0, normalize="none", label_smoothing=smoothing)
    every = label_vector_scores(values, naive.label_vectors(torch.arange(classes), classes, smoothing))
    torch.testing.assert_close(bounded, raw)
    torch.testing.assert_close(bounded, every)


def test_released_score_keeps_its_digits_at_21841_classes() -> None:
    logits = torch.randn(2, 21841, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = class_scores(logits)
    rounded = class_scores(logits.float()).double()
    torch.testing.assert_close(rounded, exact, rtol=2e-5, atol=0)


def test_extreme_logits_stay_finite() -> None:
    for scale in (1e-30, 1e4):
        logits = (scale * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
        for kwargs in ({}, {"negatives": "batch", "normalize": "none"}, PAPER, {**PAPER, "negatives": "bank+batch"}):
            loss = eh.HDGELoss(4, bank_size=16, **kwargs)(logits, labels(8, 4))
            assert torch.isfinite(loss)
            assert torch.isfinite(naive.grad(loss, logits)).all()


def test_edges_one_image_one_class_and_zero_logits() -> None:
    one = eh.HDGELoss(3, **PAPER)
    _, terms = one(torch.zeros(1, 3), torch.tensor([2]), return_terms=True)
    assert terms["contrastive"].item() == 0.0
    torch.testing.assert_close(
        eh.HDGELoss(1, **PAPER)(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)).exp(), torch.tensor(4.0)
    )
    zero = torch.zeros(4, 3, requires_grad=True)
    assert torch.isfinite(naive.grad(eh.HDGELoss(3, bank_size=8)(zero, labels(4, 3)), zero)).all()
    nan = eh.HDGELoss(3, bank_size=8)
    before = nan.bank.log_sum().clone()
    assert nan(torch.full((4, 3), math.nan), labels(4, 3)).isnan()
    torch.testing.assert_close(nan.bank.log_sum(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype) -> None:
    half = (10 * torch.randn(32, 10, generator=torch.Generator().manual_seed(0))).to(dtype).requires_grad_()
    loss_fn = eh.HDGELoss(10, negatives="batch")
    y = labels(32, 10)
    loss = loss_fn(half, y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), loss_fn(half.double(), y), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss_fn(half, y), loss)
    loss.backward()
    assert half.grad.dtype == dtype


@pytest.mark.parametrize("negatives", ["bank", "batch", "bank+batch"])
def test_compiles_to_one_graph_with_the_bank_inside(negatives) -> None:
    torch._dynamo.reset()
    kwargs = {"negatives": negatives, "bank_size": 32}
    torch.manual_seed(1)
    eager = eh.HDGELoss(5, **kwargs)
    torch.manual_seed(1)
    traced = eh.HDGELoss(5, **kwargs)
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for step in range(10):
        logits, y = naive.random_logits(8, 5, seed=step).detach().float(), labels(8, 5, seed=step)
        torch.testing.assert_close(compiled(logits, y), eager(logits, y))
    if eager.bank is not None:
        torch.testing.assert_close(traced.bank.log_sum(), eager.bank.log_sum())
        assert int(traced.bank.pointer) == int(eager.bank.pointer) > 0


def test_no_tensor_is_read_back_to_the_host_off_the_cpu() -> None:
    """On the meta device any `.item()`, `int(tensor)` or `.cpu()` raises: the same code path as an accelerator's."""
    for negatives in ("bank", "batch", "bank+batch"):
        loss_fn = eh.HDGELoss(5, negatives=negatives, bank_size=64).to("meta")
        logits = torch.zeros(8, 5, device="meta", requires_grad=True)
        loss_fn(logits, torch.zeros(8, dtype=torch.int64, device="meta")).backward()
        assert logits.grad.shape == (8, 5)


def test_state_dict_resumes_mid_ring_and_refuses_another_score() -> None:
    first = eh.HDGELoss(4, bank_size=32)
    for step in range(5):
        first(naive.random_logits(8, 4, seed=step).detach().float(), labels(8, 4))
    second = eh.HDGELoss(4, bank_size=32)
    second.load_state_dict(first.state_dict())
    for step in range(5, 9):
        logits = naive.random_logits(8, 4, seed=step).detach().float()
        torch.testing.assert_close(first(logits, labels(8, 4)), second(logits, labels(8, 4)), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"temperature: saved 0\.1, now 0\.5"):
        eh.HDGELoss(4, bank_size=32, temperature=0.5).load_state_dict(first.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        eh.HDGELoss(5, bank_size=32).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="bank_size: saved 32, now 64"):
        eh.HDGELoss(4, bank_size=64).load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="bank_size: saved 8192, now 65536"):  # rings of the same shape
        eh.HDGELoss(4).load_state_dict(eh.HDGELoss(4, bank_size=8192).state_dict())
    with pytest.raises(ValueError, match="bank_block: saved 1, now 4"):
        eh.HDGELoss(4, bank_size=32, bank_block=4).load_state_dict(first.state_dict())


def test_a_state_from_before_blocks_could_be_chosen_loads() -> None:
    first, second = eh.HDGELoss(4, bank_size=32), eh.HDGELoss(4, bank_size=32)
    state = first.state_dict()
    del state["_extra_state"]["bank_block"]
    second.load_state_dict(state)
    assert torch.equal(second.bank.rows, first.bank.rows)


def test_blocks_change_nothing_where_batches_fill_them() -> None:
    """A bank of 32 with 4 examples a row, and batches of 8, is the queue that rows of one example are."""
    runs = []
    for block in (None, 4):
        loss_fn = eh.HDGELoss(3, bank_size=32, bank_block=block, negatives="bank+batch").double()
        runs.append([loss_fn(naive.random_logits(8, 3, seed=step), labels(8, 3, seed=step)) for step in range(12)])
        assert loss_fn.bank.block == (block or 1)
    torch.testing.assert_close(*map(torch.stack, runs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("negatives", ["bank", "batch", "bank+batch"])
def test_a_bank_at_rest_takes_a_batch_by_push_as_by_a_call(negatives) -> None:
    reference = None if negatives == "bank" else naive.random_logits(3, 4, seed=7)
    by_call, by_push = (eh.HDGELoss(4, bank_size=32, negatives=negatives) for _ in range(2))
    by_push.load_state_dict(by_call.state_dict())
    logits, y = naive.random_logits(8, 4, seed=1), labels(8, 4)
    by_call(logits, y, reference=reference)
    if by_push.bank is not None:
        by_push.bank.eval()
        before = by_push.bank.rows.clone()
        by_push(logits, y, reference=reference)
        assert by_push.training
        assert torch.equal(by_push.bank.rows, before)
    by_push.push(logits, reference)
    for name, value in by_call.state_dict().items():
        assert name == "_extra_state" or torch.equal(by_push.state_dict()[name], value)


def test_live_columns_may_come_as_their_log_sum_and_number() -> None:
    scores, others, y = naive.random_logits(4, 3, seed=1), naive.random_logits(5, 3, seed=2), labels(4, 3)
    live = torch.cat([scores, others])
    for bank in (None, (naive.random_logits(9, 3, seed=3).detach().logsumexp(0), torch.tensor(9))):
        whole = contrastive_loss(scores, y, live=live, bank=bank)
        summed = contrastive_loss(scores, y, live=(live.logsumexp(0), 9), bank=bank)
        torch.testing.assert_close(summed, whole)
        torch.testing.assert_close(naive.grad(summed.sum(), others), naive.grad(whole.sum(), others))


def test_evaluation_mode_leaves_the_bank_alone() -> None:
    loss_fn = eh.HDGELoss(4, bank_size=32).eval()
    before = {k: v.clone() for k, v in loss_fn.state_dict().items() if isinstance(v, torch.Tensor)}
    loss_fn(torch.randn(8, 4), labels(8, 4))
    for name, value in before.items():
        torch.testing.assert_close(loss_fn.state_dict()[name], value, rtol=0, atol=0)


def test_drops_in_after_a_torchvision_resnet18() -> None:
    from torchvision.models import resnet18

    model, x, y = resnet18(num_classes=10), torch.rand(8, 3, 32, 32), labels(8, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_fn = eh.HDGELoss(10, form="paper", negatives="batch", normalize="none", temperature=1.0)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


WRONG_OPTIONS = [
    ({"weight": -1.0}, "weight must be a number >= 0, got -1"),
    ({"ce_weight": math.nan}, "ce_weight"),
    ({"temperature": 0.0}, "temperature must be a number > 0, got 0"),
    ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1"),
    ({"form": "article"}, "form must be one of released, paper, got 'article'"),
    ({"negatives": "queue"}, "negatives must be one of"),
    ({"normalize": "l1"}, "normalize must be one of"),
    ({"bank_size": 0}, "bank_size must be an integer >= 1, got 0"),
    ({"negatives": "batch", "reference_weight": 0.0}, "reference_weight must be a number > 0, got 0"),
    ({"negatives": "batch", "reference_weight": math.inf}, "reference_weight must be a number > 0, got inf"),
    ({"reference_weight": 2.0}, r"reference_weight = 2\.0 needs live negatives .*, got 'bank'"),
    ({"bank_size": 8, "bank_block": 9}, "block must be an integer from 1 to the bank's size of 8, got 9"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS)
def test_wrong_options_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        eh.HDGELoss(10, **options)


WRONG_CALLS = [
    ({}, torch.zeros(4, 9), torch.zeros(4, dtype=torch.int64), {}, r"\(N, 10\).*\(4, 9\)"),
    ({}, torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64), {}, "N >= 1"),
    ({}, torch.zeros(4, 10), torch.zeros(4), {}, "probabilities"),
    ({}, torch.zeros(4, 10), torch.zeros(4, dtype=torch.int32), {}, "int64"),
    ({}, torch.zeros(4, 10), torch.tensor([0, 1, 2, 10]), {}, r"labels must lie in \[0, 9\], got \[0, 10\]"),
    ({}, torch.zeros(4, 10), torch.tensor([0, -1, 2, 1]), {}, r"got \[-1, 2\]"),
    ({}, torch.zeros(4, 10), torch.full((4, 10), 0.1), {}, "probability targets need"),
    ({}, torch.zeros(4, 10), torch.zeros(4, dtype=torch.int64), {"reference": torch.zeros(2, 10)}, "live negatives"),
    (PAPER, torch.zeros(4, 10), torch.zeros(4, dtype=torch.int64), {"reference": torch.zeros(2, 9)}, r"\(R, 10\)"),
]


@pytest.mark.parametrize(("options", "logits", "y", "kwargs", "message"), WRONG_CALLS)
def test_wrong_calls_are_named(options, logits, y, kwargs, message) -> None:
    with pytest.raises(ValueError, match=message):
        eh.HDGELoss(10, **{"bank_size": 16, **options})(logits, y, **kwargs)


def test_pure_contrast_needs_negatives_and_fill_needs_a_bank() -> None:
    with pytest.raises(ValueError, match="needs negatives"):
        contrastive_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="keeps no bank"):
        eh.HDGELoss(3, negatives="batch").fill_bank(torch.zeros(2, 3))


@pytest.mark.parametrize(
    "options", [{}, {"ce_weight": 0.0}, {"normalize": "none"}, {"form": "paper"}, {"label_smoothing": 0.1}, PAPER]
)
@pytest.mark.parametrize("classes", [4, 2**19])  # the second takes the operator where there is one
@pytest.mark.parametrize("wrong", [-100, -1, 2**19])
def test_a_label_out_of_range_is_named_and_leaves_the_bank(options, classes: int, wrong: int) -> None:
    """-100 is what torch's cross-entropy passes over, and what an index of another kind takes from the end."""
    loss = eh.HDGELoss(classes, **{"bank_size": 2, **options})
    before = {name: value.clone() for name, value in loss.state_dict().items() if isinstance(value, torch.Tensor)}
    with pytest.raises(ValueError, match=r"labels must lie in \[0, "):
        loss(torch.zeros(3, classes), torch.tensor([0, wrong, 1]))
    assert all(torch.equal(before[name], loss.state_dict()[name]) for name in before)


def test_a_recipes_term_has_the_arguments_of_the_loss_and_refuses_a_block_larger_than_the_bank() -> None:
    arguments = HDGETerm(bank_size=64, bank_block=8).model_dump()
    assert eh.HDGELoss(4, **arguments).bank.block == 8
    assert HDGETerm().bank_block is None
    with pytest.raises(ValueError, match="bank_block must be at most bank_size = 4, got 8"):
        HDGETerm(bank_size=4, bank_block=8)
    assert HDGETerm(negatives="batch", reference_weight=2.0).reference_weight == 2
    with pytest.raises(ValueError, match=r"negatives must be batch or bank\+batch, got bank"):
        HDGETerm(reference_weight=2.0)
