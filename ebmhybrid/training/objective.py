"""A recipe's terms as one callable loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmhybrid.losses import HDGELoss
from ebmhybrid.schema import Objective


class CombinedLoss(nn.Module):
    """The weighted sum of an objective's terms, with the parts by name.

    Shapes:
        logits (N, C), targets int64 (N,) or probabilities (N, C), reference (R, C) or None ->
        (scalar, {part: scalar}), the parts before weighting.

    >>> loss_fn = CombinedLoss(Objective.model_validate({"ce": {"weight": 2.0}}), num_classes=4)
    >>> loss, parts = loss_fn(torch.zeros(3, 4), torch.arange(3))
    >>> bool(loss == 2 * parts["ce"])
    True
    """

    def __init__(self, terms: Objective, num_classes: int) -> None:
        super().__init__()
        self.ce = terms.ce
        self.hdge = HDGELoss(num_classes, **terms.hdge.model_dump()) if terms.hdge else None

    def forward(
        self, logits: Tensor, targets: Tensor, reference: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss = torch.zeros((), device=logits.device)
        parts: dict[str, Tensor] = {}
        if self.hdge is not None:
            value, parts = self.hdge(logits, targets, reference=reference, return_terms=True)
            loss = loss + value
        if self.ce is not None:
            parts["ce"] = F.cross_entropy(logits.float(), targets, label_smoothing=self.ce.label_smoothing)
            loss = loss + self.ce.weight * parts["ce"]
        return loss, parts
