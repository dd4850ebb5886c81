"""The optima that docs/theory.md proves, found by minimising the package's own losses over a free table of logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import naive
import pytest
import torch
import torch.nn.functional as F
from discrete import (
    CLASSES,
    DATA,
    IMAGES,
    JOINT,
    LABELS,
    NOWHERE,
    P_X,
    P_X_GIVEN_Y,
    P_Y,
    P_Y_GIVEN_X,
    Q0,
    RATIO,
    REFERENCE_ONLY,
    REFERENCES,
    STATES,
    TWIN_RATIO,
    TWINS,
    differences,
    gradient,
    minimise,
    table,
    up_to_a_constant,
    up_to_columns,
)
from torch import Tensor, nn

import ebmhybrid as eh
from ebmhybrid.losses import class_scores, contrastive_loss, energy_margin_loss, outlier_exposure_loss
from ebmhybrid.losses.jem import jem_log_density, jem_loss
from ebmhybrid.losses.nce import nce_loss

Loss = Callable[[Tensor], Tensor]
PAPER = {"form": "paper", "negatives": "batch", "normalize": "none", "temperature": 1.0}
LOG_POSTERIOR = P_Y_GIVEN_X.log()
LOG_DATA, LOG_Q0 = P_X[DATA].log(), Q0[DATA].log()


def cross_entropy(f: Tensor) -> Tensor:
    return F.cross_entropy(f[IMAGES], LABELS)


def hdge(ce_weight: float = 0.0, *, reference: bool = False, bank: Tensor | None = None, **options) -> Loss:
    """HDGELoss over the space; with a bank, of these raw logits (K, C)."""
    loss_fn = eh.HDGELoss(CLASSES, ce_weight=ce_weight, **{**PAPER, **options}).double().eval()
    if bank is not None:
        loss_fn.fill_bank(bank)
    return lambda f: loss_fn(f[IMAGES], LABELS, reference=f[REFERENCES] if reference else None)


def noise_contrast(f: Tensor, offset: float = 0.0, weight: float = 1.0) -> Tensor:
    return nce_loss(f[IMAGES], f[REFERENCES], offset, weight)


def likelihood(f: Tensor) -> Tensor:
    """-E log p(x) of the density that logsumexp f is the logarithm of, its normaliser summed: what JEM descends on."""
    scores = f.logsumexp(1)
    return (scores.logsumexp(0) - scores[IMAGES]).mean()


def assert_posterior(f: Tensor) -> None:
    torch.testing.assert_close(f[DATA].log_softmax(1), LOG_POSTERIOR)


# What cross-entropy fixes, and what it leaves


def test_cross_entropy_fixes_the_differences_and_leaves_logsumexp() -> None:
    start = table()
    f = minimise(cross_entropy, start)
    assert_posterior(f)
    shifted = f + table(1)[:, :1]
    torch.testing.assert_close(cross_entropy(shifted), cross_entropy(f))
    torch.testing.assert_close(f.mean(1), start.mean(1))  # which no step has moved


def head_after(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A trained network's last layer summed over classes, and what weight decay alone makes of that sum."""
    body, head = nn.Sequential(nn.Linear(6, 16), nn.ReLU()).double(), nn.Linear(16, CLASSES).double()
    total = head.weight.detach().sum(0).requires_grad_()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], **options)
    alone = torch.optim.SGD([total], **options)
    images, references = torch.randn(2, 40, 6, dtype=torch.float64)
    labels = torch.arange(40) % CLASSES
    for _ in range(30):
        optimizer.zero_grad()
        loss(head(body(images)), labels, head(body(references))).backward()
        optimizer.step()
        total.grad = torch.zeros_like(total)
        alone.step()
    return head.weight.detach().sum(0), total.detach()


def test_by_sgd_cross_entropy_and_outlier_exposure_never_move_the_mean_logit() -> None:
    def exposure(f: Tensor, y: Tensor, references: Tensor) -> Tensor:
        return F.cross_entropy(f, y, label_smoothing=0.1) + outlier_exposure_loss(references)

    torch.testing.assert_close(*head_after(exposure))
    moved, decayed = head_after(lambda f, y, references: F.cross_entropy(f, y) + nce_loss(f, references))
    assert (moved - decayed).norm() > decayed.norm()


def test_energy_is_the_mean_logit_and_what_outlier_exposure_lowers() -> None:
    f = table()
    uniform = torch.full_like(f, 1 / CLASSES)
    torch.testing.assert_close(eh.log_density(f).mean(), f.mean() + naive.cross_entropy(f, uniform))
    torch.testing.assert_close(outlier_exposure_loss(f), eh.log_density(f).mean() - f.mean())


# Data alone: a row of the optimum knows p(y|x), not p(x)

DATA_ALONE: dict[str, Loss] = {
    "ce": cross_entropy,
    "smoothed ce": lambda f: F.cross_entropy(f[IMAGES], LABELS, label_smoothing=0.1),
    "z-loss": lambda f: cross_entropy(f) + f[IMAGES].logsumexp(1).square().mean(),
    "LogitNorm": lambda f: eh.losses.logit_norm_loss(f[IMAGES], LABELS),
    "live": hdge(),
    "live + ce": hdge(1.0),
    "live, T = 0.3": hdge(1.0, temperature=0.3),
    "live, unit length": hdge(1.0, normalize="l2", temperature=0.1),
    "live, released": hdge(1.0, form="released", normalize="l2", temperature=0.1),
    "bank": hdge(1.0, negatives="bank", normalize="l2", temperature=0.1, bank_size=64),
    "bank, released": hdge(1.0, form="released", negatives="bank", normalize="l2", temperature=0.1, bank_size=64),
    "bank+batch": hdge(1.0, negatives="bank+batch", bank_size=64, bank=table(5, 64)),
}
WITH_ANOTHER_MEASURE: dict[str, Loss] = {
    "reference columns": hdge(1.0, reference=True),
    "nce": noise_contrast,
    "outlier exposure": lambda f: cross_entropy(f) + outlier_exposure_loss(f[REFERENCES]),
    "margins": lambda f: energy_margin_loss(f[IMAGES], f[REFERENCES], inside=-3.0, outside=1.0),
    "likelihood": likelihood,
}


def twin_gradients(loss: Loss) -> tuple[Tensor, Tensor]:
    """Of two images with the same p(y|x) and the same logits; the second's in units of the first's probability."""
    f = table()
    f[TWINS[1]] = f[TWINS[0]]
    rows = gradient(loss, f)
    return rows[TWINS[0]], rows[TWINS[1]] / TWIN_RATIO


@pytest.mark.parametrize("name", DATA_ALONE)
def test_the_equation_of_a_row_has_p_y_given_x_in_it_and_not_p_x(name: str) -> None:
    first, second = twin_gradients(DATA_ALONE[name])
    assert first.abs().max() > 1e-4
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", WITH_ANOTHER_MEASURE)
def test_another_measure_brings_p_x_into_it(name: str) -> None:
    first, second = twin_gradients(WITH_ANOTHER_MEASURE[name])
    assert (first - second).abs().max() > 1e-3


def batches_of_two(f: Tensor, loss: Callable[[Tensor, Tensor], Tensor], joint: Tensor) -> Tensor:
    """The exact mean of a loss over all batches of two independent labelled images."""
    pairs = [(x, y) for x, y in product(range(len(joint)), range(CLASSES)) if joint[x, y]]
    x, y = torch.tensor(pairs).unbind(1)
    first, second = torch.meshgrid(torch.arange(len(pairs)), torch.arange(len(pairs)), indexing="ij")
    both = torch.stack([first.flatten(), second.flatten()], 1)
    values = torch.vmap(loss)(f[x[both]], y[both])
    return (joint[x, y][both].prod(1) * values).sum()


def test_a_row_knows_no_p_x_in_batches_of_two_either() -> None:
    def live(logits: Tensor, y: Tensor) -> Tensor:
        scores = class_scores(logits, form="paper", temperature=0.5, normalize="l2")
        return contrastive_loss(scores, y, live=scores).mean()

    first, second = twin_gradients(lambda f: batches_of_two(f, live, JOINT))
    assert first.abs().max() > 1e-4
    torch.testing.assert_close(first, second)


# Live columns


def test_live_columns_are_the_density_ratio_up_to_a_constant_of_the_class() -> None:
    start = table()
    f = minimise(hdge(), start)
    torch.testing.assert_close(up_to_columns(f[DATA]), up_to_columns((P_X_GIVEN_Y[DATA] / P_X[DATA, None]).log()))
    torch.testing.assert_close(f[NOWHERE], start[NOWHERE])  # off the data it has no gradient at all
    torch.testing.assert_close(f[REFERENCE_ONLY], start[REFERENCE_ONLY])
    information = (JOINT[DATA] * (P_X_GIVEN_Y[DATA] / P_X[DATA, None]).log()).sum()
    torch.testing.assert_close(hdge()(f), math.log(len(IMAGES)) - information)


@pytest.mark.parametrize("ce_weight", [0.1, 1.0, 10.0])
def test_with_the_rows_logsumexp_is_constant_on_the_data_at_any_weight_and_balance(ce_weight: float) -> None:
    assert P_Y.max() > 2 * P_Y.min()
    start = table()
    f = minimise(hdge(ce_weight), start)
    assert_posterior(f)
    spread = f[DATA].logsumexp(1).std()
    assert spread < 1e-8
    torch.testing.assert_close(f[NOWHERE], start[NOWHERE])


def test_the_size_of_the_batch_does_not_move_the_optimum_of_live_columns() -> None:
    """Already batches of two, of which one is the positive: their optimum is that of all the data."""
    joint = JOINT[:4] / JOINT[:4].sum()

    def live(logits: Tensor, y: Tensor) -> Tensor:
        return contrastive_loss(logits, y, live=logits).mean()

    f = minimise(lambda f: batches_of_two(f, live, joint), table(states=4))
    ratio = joint / joint.sum(0) / joint.sum(1, keepdim=True)
    torch.testing.assert_close(up_to_columns(f), up_to_columns(ratio.log()))


def test_a_temperature_of_the_columns_alone_works_against_the_rows() -> None:
    """The columns ask for T times the differences that cross-entropy asks for: what is found lies between."""
    for temperature, sign in ((0.5, -1), (2.0, 1)):
        alone = minimise(hdge(temperature=temperature), table())[DATA]
        ratio = (P_X_GIVEN_Y[DATA] / P_X[DATA, None]).log()
        torch.testing.assert_close(up_to_columns(alone), temperature * up_to_columns(ratio))
        f = minimise(hdge(1.0, temperature=temperature), table())[DATA]
        surer = differences(f).norm() - differences(LOG_POSTERIOR).norm()
        assert sign * surer > 0.1
        assert sign * surer < abs(temperature - 1) * differences(LOG_POSTERIOR).norm()


def test_unit_length_cannot_hold_the_ratio_and_leaves_the_length_to_the_rows() -> None:
    f = table()
    pull = gradient(hdge(normalize="l2", temperature=0.1), f)
    torch.testing.assert_close((f * pull).sum(1), torch.zeros(STATES, dtype=torch.float64), atol=1e-12, rtol=0)
    information = (JOINT[DATA] * (P_X_GIVEN_Y[DATA] / P_X[DATA, None]).log()).sum()
    best = minimise(hdge(normalize="l2", temperature=0.5), table())
    assert hdge(normalize="l2", temperature=0.5)(best) > math.log(len(IMAGES)) - information + 0.01


# The bank


def class_score(f: Tensor, **options) -> Tensor:
    """phi of each image of the space under its label."""
    return class_scores(f, **options)[IMAGES, LABELS]


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("k", [16, 256, 65536])
def test_a_bank_scales_the_pull_on_the_positive_and_nothing_else(form: str, k: int) -> None:
    """Whatever stands in it, here logits of another scale than the table's."""
    f, kind = table().requires_grad_(), {"form": form, "normalize": "l2", "temperature": 0.1}
    bank = table(3, k) * 100
    loss = hdge(negatives="bank", bank_size=k, bank=bank, **kind)(f)
    score = class_score(f, **kind)
    share = 1 / (1 + (class_scores(bank, **kind).exp().sum(0)[LABELS] / score.exp()))
    pull = naive.grad(-((1 - share.detach()) * score).mean(), f)
    torch.testing.assert_close(naive.grad(loss, f), pull, rtol=2e-6, atol=1e-9)  # the bank itself is float32
    classes = torch.tensor([[1.0] + [0.0] * (CLASSES - 1), [-1.0] + [0.0] * (CLASSES - 1)], dtype=torch.float64)
    highest, lowest = class_scores(classes, **kind)[:, 0]
    assert (share <= 1 / (1 + k * (lowest - highest).exp())).all()


@pytest.mark.parametrize("form", ["released", "paper"])
def test_a_bank_of_the_data_takes_a_share_of_c_over_k_at_most(form: str) -> None:
    """On average over the data, whatever the scores are."""
    kind = {"form": form, "normalize": "none", "temperature": 0.5}
    shares = []
    for scale, seed in product((0.1, 1.0, 10.0), range(5)):
        scores = class_scores(scale * table(seed), **kind)[IMAGES]
        own = scores.gather(1, LABELS[:, None]).squeeze(1)
        shares.append(torch.sigmoid(own - scores.logsumexp(0)[LABELS]).mean())
    bound = CLASSES / len(IMAGES)
    assert 0.3 * bound < max(shares) < bound


def test_the_pull_grows_with_the_bank_to_its_limit() -> None:
    """Against a bank of its own images 1 - pi is what a larger K brings, at 64 is nearly all of it."""
    f, kind = differences(table()) + 1, {"form": "released", "normalize": "l2", "temperature": 0.1}
    limit = gradient(lambda f: -class_score(f, **kind).mean(), f).norm()
    sizes = [64, 256, 1024, 4096]
    shares = []
    for k in sizes:
        drawn = IMAGES[torch.randint(len(IMAGES), (k,), generator=torch.Generator().manual_seed(0))]
        shares.append((gradient(hdge(negatives="bank", bank_size=k, bank=f[drawn], **kind), f).norm() / limit).item())
    assert shares == sorted(shares)
    assert 0.98 < shares[0] < 0.995
    assert 0.9998 < shares[-1] < 1


def trained(seed: int, **options) -> Tensor:
    """logsumexp on training points of a small network without norm layers after 150 steps, batches of 64."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 3))
    y = torch.arange(240) % 3
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    x = centres[y] + 0.8 * torch.randn(240, 2, generator=torch.Generator().manual_seed(0))
    loss_fn, draw = eh.HDGELoss(3, **options), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        batch = torch.randint(len(x), (64,), generator=draw)
        optimizer.zero_grad()
        loss_fn(net(x[batch]), y[batch]).backward()
        optimizer.step()
    return net(x).detach().logsumexp(1)


def test_a_network_is_moved_less_by_k_than_by_its_seed_or_by_live_negatives() -> None:
    bank = trained(0, bank_size=4096)
    of_k = (trained(0, bank_size=64) - bank).norm()
    assert (trained(1, bank_size=4096) - bank).norm() > 4 * of_k
    assert (trained(0, negatives="batch") - bank).norm() > 4 * of_k


@pytest.mark.parametrize("form", ["released", "paper"])
def test_at_the_fixed_point_of_a_bank_logsumexp_is_a_function_of_the_posterior(form: str) -> None:
    f = differences(torch.cat([LOG_POSTERIOR, LOG_POSTERIOR[:2]])) + 1 + 0.1 * table()
    assert (f[TWINS[0]] - f[TWINS[1]]).abs().max() > 0.01
    for _ in range(20):  # the bank holds the table's own logits, and the table learns against it
        kind = {"form": form, "negatives": "bank", "normalize": "l2", "temperature": 0.5, "bank_size": len(IMAGES)}
        before, f = f, minimise(hdge(1.0, bank=f[IMAGES], **kind), f)
    torch.testing.assert_close(f, before)
    torch.testing.assert_close(f[TWINS[0]], f[TWINS[1]])
    assert f[DATA].logsumexp(1).std() > 0.1


@pytest.mark.parametrize("form", ["released", "paper"])
def test_without_unit_length_a_bank_has_no_fixed_point(form: str) -> None:
    """Along a common shift of a row it always descends, so that logits and the bank of them climb without end."""
    for seed in range(5):
        f = 3 * table(seed)
        pull = gradient(hdge(1.0, form=form, negatives="bank", bank_size=len(IMAGES), bank=f[IMAGES]), f)
        assert (pull[DATA].sum(1) < -1e-4 * P_X[DATA]).all()


def test_where_the_bank_is_inert_and_light_logsumexp_is_this_function_of_the_posterior() -> None:
    """Beside cross-entropy, which a small weight leaves at its optimum, the shift of a row has the higher score."""
    mean, variance = LOG_POSTERIOR.mean(1), differences(LOG_POSTERIOR).square().sum(1)
    entropy = -(P_Y_GIVEN_X * LOG_POSTERIOR).sum(1)
    closed = -mean + variance / (CLASSES * (-entropy - mean))

    def light(f: Tensor) -> Tensor:
        score = class_scores(f, form="paper", normalize="l2", temperature=1.0)[IMAGES, LABELS].mean()
        return cross_entropy(f) - 1e-4 * score

    f = minimise(light, torch.cat([LOG_POSTERIOR + 2.0, table()[:2]]))
    torch.testing.assert_close(f[DATA].logsumexp(1), closed, rtol=1e-3, atol=0)


@pytest.mark.parametrize("classes", [3, 10, 100, 1000])
def test_the_released_score_weakens_with_the_number_of_classes(classes: int) -> None:
    values = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None] * torch.ones(classes, dtype=torch.float64)
    slope = gradient(lambda v: class_scores(v, temperature=0.1, normalize="none").sum(), values)
    torch.testing.assert_close(slope, values.exp() / (values.exp() + classes - 1) / 0.1)
    scores = class_scores(values, temperature=0.1, normalize="none")
    span = 10 * math.log((math.e + classes - 1) / (1 / math.e + classes - 1))
    torch.testing.assert_close((scores[-1] - scores[0])[0].item(), span)
    assert abs(classes * span - 10 * (math.e - 1 / math.e)) < 30 / classes
    if classes == 10:  # the numbers of the document
        shares = [round(1 / (1 + k * math.exp(-span)), 3) for k in (64, 128, 256)]
        assert (round(span, 2), shares) == (2.24, [0.128, 0.068, 0.035])


# Columns with references


@pytest.mark.parametrize("weight", [1.0, 20.0])
def test_reference_columns_make_logsumexp_the_log_share_of_data(weight: float) -> None:
    start = table()
    f = minimise(hdge(1.0, reference=True, reference_weight=weight), start)
    assert_posterior(f)
    log_ratio = (LOG_DATA - LOG_Q0) - math.log(weight * RATIO)  # log N p / (w R q0)
    torch.testing.assert_close(up_to_a_constant(f[DATA].logsumexp(1)), up_to_a_constant(F.logsigmoid(log_ratio)))
    assert f[REFERENCE_ONLY].logsumexp(0) < f[DATA].logsumexp(1).min() - 10
    torch.testing.assert_close(f[NOWHERE], start[NOWHERE])


def test_reference_columns_alone_are_the_ratio_to_the_mixture() -> None:
    f = minimise(hdge(reference=True, reference_weight=3.0), table())
    mixture = (P_X + 3 * RATIO * Q0) / (1 + 3 * RATIO)
    ratio = (P_X_GIVEN_Y[DATA] / mixture[DATA, None]).log()
    torch.testing.assert_close(up_to_columns(f[DATA]), up_to_columns(ratio))


def against_draws(f: Tensor, joint: Tensor, *negatives: Tensor) -> Tensor:
    """The exact mean of -log softmax of a positive among itself and one draw of each of these measures."""
    drawn = torch.cartesian_prod(*[torch.arange(len(joint))] * len(negatives)).view(-1, len(negatives))
    chance = torch.stack([measure[index] for measure, index in zip(negatives, drawn.T, strict=True)]).prod(0)
    columns = f.exp() + f[drawn].exp().sum(1)[:, None]  # of every draw, for each image and class
    return chance @ ((columns.log() - f) * joint).sum((1, 2))


SMALL = JOINT[:3] / JOINT[:3].sum()
SMALL_Q0 = Q0[:3] / Q0[:3].sum()


def small_ratio(measure: Tensor) -> Tensor:
    return up_to_columns((SMALL / SMALL.sum(0) / measure[:, None]).log())


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("data_share", [0.0, 0.5, 1.0])
def test_few_negatives_of_any_mixture_have_the_optimum_of_many(draws: int, data_share: float) -> None:
    mixture = data_share * SMALL.sum(1) + (1 - data_share) * SMALL_Q0
    f = minimise(lambda f: against_draws(f, SMALL, *[mixture] * draws), table(states=3))
    torch.testing.assert_close(up_to_columns(f), small_ratio(mixture))


def test_a_batch_of_n_and_n_references_nears_the_mixture_as_n_grows() -> None:
    """The positive is no draw of p: of one image and one reference the mixture is the reference's measure alone."""

    def optimum(n: int) -> Tensor:
        measures = [SMALL.sum(1)] * (n - 1) + [SMALL_Q0] * n
        return up_to_columns(minimise(lambda f: against_draws(f, SMALL, *measures), table(states=3)))

    torch.testing.assert_close(optimum(1), small_ratio(SMALL_Q0))
    mixture = small_ratio((SMALL.sum(1) + SMALL_Q0) / 2)
    away = [n * (optimum(n) - mixture).norm() for n in (2, 3, 4)]
    assert max(away) < 1.3 * min(away)  # as 1 / n


# Noise-contrastive estimation of the marginal


@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_nce_beside_cross_entropy_is_the_joint_density_at_any_factor(factor: float) -> None:
    offset, weight, start = 0.7, 2.0, table()
    f = minimise(lambda f: cross_entropy(f) + factor * noise_contrast(f, offset, weight), start)
    joint = JOINT[DATA].log() - (weight * Q0[DATA, None]).log() + offset
    torch.testing.assert_close(f[DATA], joint)
    assert f[REFERENCE_ONLY].logsumexp(0) < f[DATA].logsumexp(1).min() - 10
    torch.testing.assert_close(f[NOWHERE], start[NOWHERE])


def test_nce_leaves_the_differences_and_its_offset_is_a_shift_of_all_logits() -> None:
    start = table()
    f = minimise(noise_contrast, start)
    torch.testing.assert_close(f[DATA].logsumexp(1), LOG_DATA - LOG_Q0)
    assert (f[DATA].softmax(1) - P_Y_GIVEN_X).abs().max() > 0.1
    torch.testing.assert_close(noise_contrast(start + 2.5, 2.5), noise_contrast(start))


def test_nce_and_cross_entropy_are_a_background_class() -> None:
    f = table().requires_grad_()
    images = torch.cat([f[IMAGES], f[REFERENCES]])
    with_background = torch.cat([images, torch.full((len(images), 1), 0.7, dtype=torch.float64)], 1)
    labels = torch.cat([LABELS, torch.full((len(REFERENCES),), CLASSES)])
    one = naive.cross_entropy(with_background, naive.label_vectors(labels, CLASSES + 1))
    both = (cross_entropy(f) + noise_contrast(f, 0.7, RATIO)) / (1 + RATIO)
    torch.testing.assert_close(both, one)
    torch.testing.assert_close(naive.grad(both, f), naive.grad(one, f))


# Rivals


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_outlier_exposure_mixes_the_posterior_and_leaves_logsumexp(weight: float) -> None:
    start = table()
    f = minimise(lambda f: cross_entropy(f) + weight * outlier_exposure_loss(f[REFERENCES]), start)
    p, q = P_X[:11, None], weight * Q0[:11, None]
    mixed = (JOINT[:11] + q / CLASSES) / (p + q)
    torch.testing.assert_close(f[:11].softmax(1), mixed)
    torch.testing.assert_close(f.mean(1), start.mean(1))


def test_energy_margins_hold_logsumexp_where_both_measures_are_and_bound_it_elsewhere() -> None:
    inside, outside = -4.0, -1.0
    start = table()
    start[REFERENCE_ONLY] -= 3  # already above the margin
    f = minimise(lambda f: energy_margin_loss(f[IMAGES], f[REFERENCES], inside, outside) + cross_entropy(f), start)
    assert_posterior(f)
    p, q = P_X[DATA], Q0[DATA]
    torch.testing.assert_close(-f[DATA].logsumexp(1), (p * inside + q * outside) / (p + q))
    torch.testing.assert_close(f[REFERENCE_ONLY], start[REFERENCE_ONLY])
    torch.testing.assert_close(f[NOWHERE], start[NOWHERE])


def test_likelihood_beside_cross_entropy_is_the_joint_density_up_to_a_constant() -> None:
    f = minimise(lambda f: cross_entropy(f) + likelihood(f), table())
    torch.testing.assert_close(up_to_a_constant(f[DATA]), up_to_a_constant(JOINT[DATA].log()))
    assert f[[REFERENCE_ONLY, NOWHERE]].logsumexp(1).max() < f[DATA].logsumexp(1).min() - 10


def test_jem_on_exact_samples_descends_on_that_likelihood() -> None:
    counts = torch.arange(1, STATES + 1)  # of a model whose samples can be counted out
    f = table()
    f += (counts.log() - f.logsumexp(1))[:, None]
    samples = torch.arange(STATES).repeat_interleave(counts)
    jem = gradient(lambda f: jem_loss(jem_log_density(f[IMAGES]), jem_log_density(f[samples])), f)
    torch.testing.assert_close(jem, gradient(likelihood, f))


def test_where_the_references_never_are_nce_climbs_and_margins_bound() -> None:
    elsewhere = REFERENCES[REFERENCES != 0]
    start = table()
    start[0] += 6  # already below the margin
    f = minimise(lambda f: nce_loss(f[IMAGES], f[elsewhere]), start)
    assert f[0].logsumexp(0) > f[1:10].logsumexp(1).max() + 10
    f = minimise(lambda f: energy_margin_loss(f[IMAGES], f[elsewhere], -4.0, -1.0), start)
    torch.testing.assert_close(f[0], start[0])
    start[0] -= 12
    f = minimise(lambda f: energy_margin_loss(f[IMAGES], f[elsewhere], -4.0, -1.0), start)
    assert f[0].logsumexp(0) > 4.0 - 1e-6  # anything beyond the margin will do


# Terms that go together, and terms that do not


def excess(part: Loss, f: Tensor) -> float:
    """How far a part is above its own least value."""
    return (part(f) - part(minimise(part, table()))).item()


def outlier_exposure(f: Tensor) -> Tensor:
    return cross_entropy(f) + 0.5 * outlier_exposure_loss(f[REFERENCES])


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (cross_entropy, noise_contrast, True),
        (cross_entropy, hdge(), True),
        (cross_entropy, hdge(reference=True), True),
        (cross_entropy, lambda f: energy_margin_loss(f[IMAGES], f[REFERENCES], -4.0, -1.0), True),
        (outlier_exposure, noise_contrast, True),
        (noise_contrast, hdge(), False),
        (noise_contrast, hdge(1.0, reference=True), False),
        (cross_entropy, outlier_exposure, False),
        (cross_entropy, hdge(temperature=0.5), False),
    ],
    ids=[
        "ce, nce",
        "ce, live",
        "ce, reference columns",
        "ce, margins",
        "exposure, nce",
        "nce, live",
        "nce, reference columns",
        "ce, exposure",
        "ce, live at T = 0.5",
    ],
)
def test_two_terms_share_an_optimum_or_do_not(first: Loss, second: Loss, together: bool) -> None:
    f = minimise(lambda f: first(f) + second(f), table())
    above = excess(first, f), excess(second, f)
    if together:
        assert max(above) < 1e-8
    else:
        assert min(above) > 1e-3


def test_heavier_references_bring_the_columns_to_nce() -> None:
    f = minimise(lambda f: cross_entropy(f) + noise_contrast(f), table())
    above = [excess(hdge(reference=True, reference_weight=weight), f) for weight in (1.0, 20.0, 400.0)]
    assert above[0] > 5 * above[1] > 25 * above[2]
