"""A recipe's terms as one callable loss."""

from __future__ import annotations

from torch import Tensor, nn

from ebmhybrid.losses import HDGELoss
from ebmhybrid.losses.rowwise import row_terms, weighted_sum
from ebmhybrid.schema import Objective


class CombinedLoss(nn.Module):
    """The weighted sum of an objective's terms, with the parts by name.

    Shapes:
        logits (N, C), targets int64 (N,) or probabilities (N, C), reference (R, C) or None ->
        (scalar, {part: scalar}), the parts before weighting.

    >>> import torch
    >>> loss_fn = CombinedLoss(Objective.model_validate({"ce": {"weight": 2.0}}), num_classes=4)
    >>> loss, parts = loss_fn(torch.zeros(3, 4), torch.arange(3))
    >>> bool(loss == 2 * parts["ce"])
    True
    """

    def __init__(self, terms: Objective, num_classes: int) -> None:
        super().__init__()
        self.ce, self.z_loss = terms.ce, terms.z_loss
        self.hdge = HDGELoss(num_classes, **terms.hdge.model_dump()) if terms.hdge else None

    def forward(
        self, logits: Tensor, targets: Tensor, reference: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        weighted: list[tuple[float, Tensor | None]] = []
        parts: dict[str, Tensor] = {}
        if self.hdge is not None:
            value, parts = self.hdge(logits, targets, reference=reference, return_terms=True)
            weighted.append((1.0, value))
        if self.ce is not None or self.z_loss is not None:
            smoothing = 0.0 if self.ce is None else self.ce.label_smoothing
            rows = row_terms(logits, targets, label_smoothing=smoothing, ce=self.ce is not None, z=bool(self.z_loss))
            if self.ce is not None and rows.ce is not None:
                parts = {**parts, "ce": rows.ce}
                weighted.append((self.ce.weight, rows.ce))
            if self.z_loss is not None and rows.z is not None:
                parts = {**parts, "z_loss": rows.z}
                weighted.append((self.z_loss.weight, rows.z))
        return weighted_sum(*weighted), parts
