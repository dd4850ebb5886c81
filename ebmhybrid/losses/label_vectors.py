"""The released score under label vectors of any kind, where one-hot labels would need a class alone.

The authors' code multiplies logits by the label vector before a logsumexp over the classes. Of a one-hot vector this is
a function of one logit (:func:`ebmhybrid.losses.contrastive.released_entries`); of probabilities, as mixup gives, no
sum is shared by two examples, and every image is scored under every example's vector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebmhybrid.losses.bank import Counts
from ebmhybrid.losses.gathered import gathered


def smooth(targets: Tensor, label_smoothing: float) -> Tensor:
    """Probability targets mixed with the uniform distribution, as in torch's cross-entropy: (1 - s) t + s / C."""
    return (1 - label_smoothing) * targets + label_smoothing / targets.shape[1]


def label_vector_scores(values: Tensor, targets: Tensor) -> Tensor:
    """The released score of every example under every label vector, log( 1/C sum_c exp(t_mc v_nc) ).

    Arguments:
        values: (N, C). targets: (M, C) probabilities.

    Returns:
        (N, M). O(N M C) memory: only for label vectors that are not (smoothed) one-hot.
    """
    return torch.logsumexp(values[:, None, :] * targets[None], dim=2) - math.log(values.shape[1])


def label_vector_loss(
    values: Tensor,
    targets: Tensor,
    references: Tensor | None = None,
    *,
    temperature: float = 1.0,
    reference_weight: float = 1.0,
    counts: Counts | None = None,
) -> Tensor:
    """-log q(x|y) by contrast with the batch, of released scores under each example's own label vector.

    Arguments:
        values: (N, C), normalised or raw. targets: (N, C) probabilities. references: (R, C) values that stand in the
            columns too, each counted `reference_weight` times.
        counts: how many values and references each process holds, if the columns are those of all.

    Returns:
        (N,) in nats.

    >>> label_vector_loss(torch.zeros(4, 3), torch.full((4, 3), 1 / 3)).exp()
    tensor([4., 4., 4., 4.])
    """
    others, first = values[:0] if references is None else references, 0
    if counts is not None:
        images, more = zip(*counts, strict=True)
        values, first = gathered(values, images)
        if any(more):
            others, _ = gathered(others, more)
    scores = label_vector_scores(torch.cat([values, others]), targets) / temperature
    if reference_weight != 1:
        weights = scores.new_zeros(len(scores), 1)
        weights[len(values) :] = math.log(reference_weight)
        scores = scores + weights
    return scores.logsumexp(0) - scores.diagonal(-first)
