r"""Noise-contrastive estimation of log p(x) by a classifier's own logits, against reference images.

Data of density p and references of density q0 are told apart by a logistic regression whose only feature is
s(x) = logsumexp_c f(x)[c]. Where x is data, it is charged softplus(b - s), where it is a reference w softplus(s - b),
on average p softplus(b - s) + w q0 softplus(s - b). This is least at

    s(x) - b = log( p(x) / (w q0(x)) )

for every x that p or q0 can give: s is a log density relative to the reference, with the constant b - log w known
(Gutmann & Hyvarinen 2010, 2012; as a density ratio, Sugiyama et al. 2012). With cross-entropy beside it there is one
optimum of both, f(x)[y] - b = log( p(x, y) / (w q0(x)) ), and for w = R/N, from R references and N data, the sum is the
cross-entropy with a class more, the background, of logit b: `docs/nce.md` has the proofs and earlier uses.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmhybrid.energies import log_density, require_logits
from ebmhybrid.losses.checks import check_reference_weight
from ebmhybrid.losses.gathered import own_mean


def _check(offset: float | Tensor, reference_weight: float) -> None:
    if isinstance(offset, Tensor):
        if offset.dim() or not offset.is_floating_point():
            raise ValueError(f"offset must be a number, got {offset.dtype} {tuple(offset.shape)}")
    elif isinstance(offset, bool) or not (isinstance(offset, (int, float)) and math.isfinite(offset)):
        raise ValueError(f"offset must be a finite number, got {offset!r}")
    check_reference_weight(reference_weight)


def nce_loss(
    logits: Tensor, reference_logits: Tensor, offset: float | Tensor = 0.0, reference_weight: float = 1.0
) -> Tensor:
    """Logistic loss of s = logsumexp_c f_c: mean softplus(b - s(x)) of data + w mean softplus(s(x) - b) of references.

    Source: Gutmann & Hyvarinen 2010, with the classifier's logsumexp as the unnormalised log density; w = R/N is their
    ratio of noise to data, and any other w shifts the optimum by log w alone.

    Arguments:
        logits: (N, C) of data, reference_logits: (R, C) of reference images. N = 0 or R = 0 leaves that side out. Half
            precision is computed in float32.
        offset: b, a number, or a floating-point scalar that is to be learned.
        reference_weight: w > 0.

    Returns:
        A scalar in nats >= 0. At s = b everywhere it is (1 + w) log 2.

    Raises:
        ValueError: logits, an offset or a weight that do not fit.

    >>> nce_loss(torch.full((3, 2), 0.5).log(), torch.full((5, 4), 0.25).log()).exp()
    tensor(4.)
    """
    _check(offset, reference_weight)
    require_logits(reference_logits, "reference_logits")
    # torch's own threshold of 20 drops terms of 2e-9, which float64 would keep
    data = F.softplus(offset - log_density(logits), threshold=50)
    reference = F.softplus(log_density(reference_logits) - offset, threshold=50)
    return own_mean(data) + reference_weight * own_mean(reference)


class NCELoss(nn.Module):
    """:func:`nce_loss` with its offset, a number or a parameter.

    A common shift of all logits does the same as the offset, so learning it changes how fast the constant is found and
    not what can be learned.

    Arguments:
        offset: b, finite; where it starts with `learn_offset`.
        reference_weight: w > 0.
        learn_offset: make b a parameter, to be given to the optimiser and not to be decayed.

    Raises:
        ValueError: numbers out of range.

    >>> loss_fn = NCELoss(learn_offset=True)
    >>> loss_fn(torch.zeros(2, 1), torch.zeros(2, 1)).exp()
    tensor(4., grad_fn=<ExpBackward0>)
    """

    def __init__(self, offset: float = 0.0, reference_weight: float = 1.0, *, learn_offset: bool = False) -> None:
        super().__init__()
        if isinstance(offset, Tensor):
            raise ValueError(f"offset must be a number, which learn_offset makes a parameter, got {offset!r}")
        _check(offset, reference_weight)
        self.offset: float | Tensor = nn.Parameter(torch.tensor(float(offset))) if learn_offset else offset
        self.reference_weight = reference_weight

    def forward(self, logits: Tensor, reference_logits: Tensor) -> Tensor:
        return nce_loss(logits, reference_logits, self.offset, self.reference_weight)

    def extra_repr(self) -> str:
        learned = isinstance(self.offset, nn.Parameter)
        return (
            "learned offset" if learned else f"offset={self.offset}"
        ) + f", reference_weight={self.reference_weight}"
