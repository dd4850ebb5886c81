"""A recipe's terms as one callable loss: of a classifier, or of an encoder-decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ebmhybrid.losses import HDGELoss
from ebmhybrid.losses.baselines import (
    ProjectionHead,
    energy_margin_loss,
    logit_norm_loss,
    outlier_exposure_loss,
    supcon_loss,
)
from ebmhybrid.losses.gathered import reference_share
from ebmhybrid.losses.gcrl import gcrl_loss
from ebmhybrid.losses.jem import jem_log_density, jem_loss
from ebmhybrid.losses.mim import latent_loss
from ebmhybrid.losses.nce import NCELoss
from ebmhybrid.losses.rowwise import row_terms, weighted_sum
from ebmhybrid.terms import Objective

Found = dict[str, tuple[float, Tensor]]


@dataclass(frozen=True)
class Contrast:
    """What a JEM term compares, as logits: data (N, C) and samples (M, C), with their labels (N,) and (M,)."""

    data: Tensor
    samples: Tensor
    labels: Tensor
    sample_labels: Tensor


class CombinedLoss(nn.Module):
    """The weighted sum of an objective's terms, with the parts by name.

    Arguments:
        terms: the recipe's.
        num_classes: C.
        num_features: D, of the encoder, where supcon trains one.
        gather: contrast with the images of all processes, as in :class:`ebmhybrid.HDGELoss`.

    Shapes:
        logits (N, C), targets int64 (N,) or probabilities (N, C), reference (R, C) or None, contrast with a JEM term,
        views (N, 2, D), the features of two views, with supcon -> (scalar, {part: scalar}), the parts before weighting.
        With a JEM term `log_density_data` and `log_density_samples` stand among them too, to be watched.

    >>> import torch
    >>> loss_fn = CombinedLoss(Objective.model_validate({"ce": {"weight": 2.0}}), num_classes=4)
    >>> loss, parts = loss_fn(torch.zeros(3, 4), torch.arange(3))
    >>> bool(loss == 2 * parts["ce"])
    True
    """

    def __init__(self, terms: Objective, num_classes: int, num_features: int = 0, gather: bool = False) -> None:
        super().__init__()
        self.terms, self.gather = terms, gather
        self.hdge = HDGELoss(num_classes, **terms.hdge.model_dump(), gather=gather) if terms.hdge else None
        nce = terms.nce
        self.nce = NCELoss(nce.offset, nce.reference_weight, learn_offset=nce.learn_offset) if nce else None
        self.projection = ProjectionHead(num_features, terms.supcon.projection) if terms.supcon else None
        self._held: list[tuple[Tensor, Tensor | None]] | None = None  # what the bank is kept from

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        reference: Tensor | None = None,
        *,
        contrast: Contrast | None = None,
        views: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        hybrid, parts, watched = None, {}, {}
        if self.hdge is not None:
            columns = None if self.hdge.negatives == "bank" else reference
            hybrid, parts = self.hdge(logits, targets, reference=columns, return_terms=True)
            if self._held is not None:
                self._held.append((logits.detach(), None if columns is None else columns.detach()))
        found = self._row_terms(logits, targets) | self._rivals(logits, targets, reference, views)
        if self.terms.jem is not None and contrast is not None:
            conditional = self.terms.jem.target == "conditional"
            data = jem_log_density(contrast.data, contrast.labels if conditional else None)
            samples = jem_log_density(contrast.samples, contrast.sample_labels if conditional else None)
            found["jem"] = self.terms.jem.weight, jem_loss(data, samples, self.terms.jem.l2)
            watched = {"log_density_data": data.mean(), "log_density_samples": samples.mean()}
        loss = weighted_sum((1.0, hybrid), *found.values())
        return loss, {**parts, **{name: value for name, (_, value) in found.items()}, **watched}

    @contextmanager
    def bank_held(self) -> Iterator[None]:
        """Inside, calls in training mode leave the bank as it is; then the first one's batch goes into it."""
        if self.hdge is None or self.hdge.bank is None:
            yield
            return
        self.hdge.bank.eval()
        self._held = []
        try:
            yield
            self.hdge.push(*self._held[0])
        finally:
            self.hdge.bank.train()
            self._held = None

    def _row_terms(self, logits: Tensor, targets: Tensor) -> Found:
        """Cross-entropy and z-loss, from one look at the rows."""
        ce, z_loss = self.terms.ce, self.terms.z_loss
        if ce is None and z_loss is None:
            return {}
        smoothing = 0.0 if ce is None else ce.label_smoothing
        rows = row_terms(logits, targets, label_smoothing=smoothing, ce=ce is not None, z=z_loss is not None)
        found: Found = {}
        if ce is not None and rows.ce is not None:
            found["ce"] = ce.weight, rows.ce
        if z_loss is not None and rows.z is not None:
            found["z_loss"] = z_loss.weight, rows.z
        return found

    def _held_off(self, logits: Tensor, reference: Tensor) -> Found:
        """What tells reference images from data; on each of several processes its share of their mean over all."""
        found, share = Found(), 1.0
        if self.gather and self.training and (self.nce or self.terms.energy_margin or self.terms.outlier_exposure):
            share = reference_share(len(logits), len(reference), logits.device)
        if (margin := self.terms.energy_margin) is not None:
            bounds = margin.inside, margin.outside
            below = energy_margin_loss(logits, reference[:0], *bounds)
            found["energy_margin"] = margin.weight, below + share * energy_margin_loss(logits[:0], reference, *bounds)
        if self.terms.outlier_exposure is not None:
            found["outlier_exposure"] = self.terms.outlier_exposure.weight, share * outlier_exposure_loss(reference)
        if self.nce is not None and self.terms.nce is not None:
            inside, outside = self.nce(logits, reference[:0]), self.nce(logits[:0], reference)
            found["nce"] = self.terms.nce.weight, inside + share * outside
        return found

    def _rivals(self, logits: Tensor, targets: Tensor, reference: Tensor | None, views: Tensor | None) -> Found:
        """LogitNorm, what holds reference images off, and supervised contrast with the cross-entropy of its head."""
        terms, found = self.terms, Found()
        if terms.logit_norm is not None:
            loss = logit_norm_loss(logits, targets, terms.logit_norm.temperature)
            found["logit_norm"] = terms.logit_norm.weight, loss
        if reference is not None:
            found |= self._held_off(logits, reference)
        if terms.supcon is not None and self.projection is not None:
            ce = row_terms(logits, targets).ce
            assert ce is not None
            found["ce"] = 1.0, ce
            if views is not None:
                loss = supcon_loss(
                    self.projection(views.float()), targets, terms.supcon.temperature, gather=self.gather
                )
                found["supcon"] = terms.supcon.weight, loss
        return found


class CodesLoss(nn.Module):
    """The loss of an encoder-decoder, with its parts by name.

    Arguments:
        terms: the recipe's, with `latent` or `gcrl`.
        num_tokens: T, the tokens of an image, for `gcrl`.
        gather: in training, contrast with the codes of all processes.

    Shapes:
        outputs: what the network gives for N images or token sequences; positives (N, D), the codes of their second
        views, or None -> (scalar, {part: scalar}).
    """

    def __init__(self, terms: Objective, num_tokens: int = 0, gather: bool = False) -> None:
        super().__init__()
        self.terms, self.num_tokens, self.gather = terms, num_tokens, gather

    def forward(self, outputs: Any, positives: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        gather = self.gather and self.training  # in validation the processes have different batches
        if self.terms.gcrl is not None:
            how = self.terms.gcrl
            return gcrl_loss(
                outputs.log_likelihood,
                self.num_tokens,
                outputs.anchors,
                outputs.positives,
                how.weight,
                how.generative_weight,
                how.temperature,
                return_terms=True,
                gather=gather,
            )
        assert self.terms.latent is not None
        log_px, mean, log_std, z = outputs
        options = self.terms.latent.model_dump(exclude={"views"})
        return latent_loss(log_px, mean, log_std, z, positives=positives, gather=gather, **options)
