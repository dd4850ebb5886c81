r"""The contrastive approximation of log q(x|y): how logits are scored, and which images stand in the columns.

HDGE, hybrid discriminative-generative training of energy-based models (Liu & Abbeel 2020, arXiv 2007.09070).

A classifier's logits define p(x, y) proportional to exp f(x)[y]. Maximising log p(x, y) in both of its factorings gives

    min  -E[ log q(y|x) + log q(x|y) ]
    log q(y|x) =  f(x)[y] - logsumexp_c f(x)[c]                     cross-entropy: over the row of one image
    log q(x|y) ~  f(x)[y] - logsumexp_{i=1..K} f(x_i)[y]            contrast: over the column of one class

On the N x C matrix of a batch's logits the first is a softmax along the rows, the second along the columns. What
varies is how an entry is scored and which images stand in the column:

    form      paper      phi_c(v) = v_c / T
              released   phi_c(v) = log( (exp v_c + C - 1) / C ) / T    what the authors' code computes: it multiplies
                         logits by the one-hot label before the logsumexp, so each other class adds exp(0). With
                         C = 10 the score's range over v_c in [-1, 1] shrinks from 20 to 2.24 at T = 0.1.
    normalize l2         v = f / ||f||_2 over the classes;    none: v = f
    negatives bank       K earlier examples, detached, and the positive itself (the released code; there K = 65536)
              batch      the batch's own images, with gradient (the paper's equation)
              bank+batch the bank estimates the normaliser, the batch its gradient (below)

**The detached bank is inert.** No gradient reaches the negatives, and log D depends on the class alone, so the gradient
is that of pushing the true class's score up, times 1 - 1/(K+1) or so: without any bank it is the same to about
one part in 10,000 at K = 65536. Only live negatives train what the equation says.

**bank+batch.** The population loss is L = E[-phi_y(x) + log Z_y], Z_c = E_x'[exp phi_c(x')], with gradient
-E[grad phi_y] + E_y[grad Z_y / Z_y]. One logsumexp over bank and batch shrinks the gradient of the normaliser
M/(K+M)-fold; one over the batch alone is biased twice, by 1/Z from M examples and by the positive x_n in its own
column, which is not a draw independent of y_n. So estimate the two factors apart: Z_c from all K + M scores, detached,
and grad Z_c from the M - 1 others in the batch. With T_c the log-sum over all K + M and z_c that over the M live ones,

    T_c + r_nc - stop(r_nc),   r_nc = (K + M)/(M - 1) * ( exp(z_c - stop T_c) - exp(phi_c(x_n) - stop T_c) )

has the merged logsumexp's value and, for a bank as fresh as the batch and K much larger than M, a gradient that is
unbiased up to O(M/K). Both conditions matter: r is bounded by (K + M)/(M - 1) only, so where the logits have grown
much larger than when the bank was filled the gradient can be hundreds of times too large. A bank of an epoch or two,
unit-length scores (`normalize="l2"`) or gradient clipping keep it sound.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ebmhybrid.energies import check_logits
from ebmhybrid.losses.label_vectors import label_vector_scores, smooth

Form = Literal["released", "paper"]
Normalize = Literal["l2", "none"]


def released_entries(values: Tensor, classes: int, bounded: bool) -> Tensor:
    """log( (exp v + C - 1) / C ), entry by entry, of any shape. `bounded`: every |v| <= 1."""
    if bounded:
        # log1p(expm1) keeps the digits that log(e^v + C - 1) loses in float32 at large C.
        return torch.log1p(torch.expm1(values) / classes)
    others = torch.full_like(values, math.log(classes - 1) if classes > 1 else -math.inf)
    return torch.logsumexp(torch.stack([values, others]), dim=0) - math.log(classes)


def _smoothed_released(values: Tensor, bounded: bool, label_smoothing: float) -> Tensor:
    """log( 1/C sum_j exp(t_cj v_nj) ) for the C smoothed one-hot label vectors t_c, in O(N C) where it is safe."""
    classes = values.shape[1]
    if not bounded:  # raw logits overflow expm1, and subtracting the off-diagonal term from the sum would cancel
        eye = torch.eye(classes, dtype=values.dtype, device=values.device)
        return label_vector_scores(values, smooth(eye, label_smoothing))
    off = label_smoothing / classes
    rest = torch.expm1(off * values)
    total = torch.expm1((1 - label_smoothing + off) * values) + rest.sum(1, keepdim=True) - rest
    return torch.log1p(total / classes)


def class_scores(
    logits: Tensor,
    *,
    form: Form = "released",
    temperature: float = 0.1,
    normalize: Normalize = "l2",
    label_smoothing: float = 0.0,
) -> Tensor:
    """phi_c(f(x)): the score of an image under each class, of which the contrast takes log-sums down the columns.

    Arguments:
        logits: (N, C); half precision is computed in float32.
        label_smoothing: enters the released score, whose label vectors it changes; the paper's score is linear in the
            label, so there smoothing acts on the targets of :func:`contrastive_loss` instead.

    Returns:
        (N, C) scores.

    >>> class_scores(torch.tensor([[3.0, 4.0]]), form="paper", temperature=1.0)
    tensor([[0.6000, 0.8000]])
    """
    values = check_logits(logits)
    if normalize == "l2":
        values = F.normalize(values, dim=1)
    if form == "released":
        bounded = normalize == "l2"
        if label_smoothing:
            values = _smoothed_released(values, bounded, label_smoothing)
        else:
            values = released_entries(values, values.shape[1], bounded)
    return values / temperature


def banked_loss(positives: Tensor, log_sums: Tensor, temperature: float = 1.0) -> Tensor:
    """-log( e^s / (e^s + e^log_sum) ), s = positive / T: against a bank alone, which does not hold the positive.

    Arguments:
        positives, log_sums: of one shape, which is that of the result; in nats >= 0.
    """
    # torch's own threshold of 20 drops terms of 2e-9, which float64 would keep
    return F.softplus(torch.sub(log_sums, positives, alpha=1 / temperature), threshold=50)


def live_share(own: Tensor, live_sum: Tensor, total: Tensor, count: Tensor, live: float) -> Tensor:
    """r of the module docstring: the batch's estimate of Z over the bank's, whose gradient is grad Z / Z.

    Arguments:
        own: an example's score, which stands in its own column and is left out. live_sum, total: log-sums of that
            column over the `live` = M images with gradient, and over all `count` = K + M; weighted, their weights.
    """
    others = torch.exp(live_sum - total) - torch.exp(own - total)
    return count / (live - 1 or 1) * others  # of a single image nothing is left


def contrastive_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    live: Tensor | tuple[Tensor, float] | None = None,
    bank: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """-log q(x|y) by contrast, one value an example: logsumexp over the column of class y, less the positive's score.

    Source: Liu & Abbeel 2020; with both `live` and `bank`, the re-weighted estimator of the module docstring.

    Arguments:
        scores: (N, C), from :func:`class_scores`.
        targets: int64 (N,), or probabilities (N, C): then the expectation over labels.
        live: (M, C) scores of the images that stand in the columns with gradient, the batch itself among them; or their
            (log_sum (C,), M), where some of them are other processes' or weighted; then M is the sum of weights.
        bank: (log_sum (C,), count ()) of detached negatives, as a :class:`Bank` gives them; as M, the sum of weights.

    Returns:
        (N,) in nats.

    >>> scores = torch.zeros(4, 10)
    >>> contrastive_loss(scores, torch.arange(4), live=scores).exp()
    tensor([4., 4., 4., 4.])
    """
    if live is None and bank is None:
        raise ValueError("contrastive_loss needs negatives: give live, bank or both")
    hard = targets.dim() == 1
    if hard and bank is None and live is scores:  # torch has the softmax of a column and its pick in two kernels
        return F.nll_loss(F.log_softmax(scores, 0), targets, reduction="none")
    if isinstance(live, Tensor):
        live = live.logsumexp(0), len(live)
    parts = [] if live is None else [live[0]]
    if bank is not None:
        parts.append(bank[0].to(scores.dtype))
    log_sums = torch.stack(parts)
    if hard:
        scores, log_sums = scores.gather(1, targets[:, None]).squeeze(1), log_sums[:, targets]
    else:
        log_sums = log_sums[:, None]
    if live is None:
        loss = banked_loss(scores, log_sums[0])
    elif bank is None:
        loss = log_sums[0] - scores
    else:
        total = log_sums.logsumexp(0).detach()
        share = live_share(scores, log_sums[0], total, bank[1] + live[1], live[1])
        loss = total + share - share.detach() - scores
    return loss if hard else (targets * loss).sum(1)
