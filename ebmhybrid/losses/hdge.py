"""HDGELoss: cross-entropy plus the contrastive -log q(x|y), as a Module that holds the bank (Liu & Abbeel 2020)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmhybrid.energies import check_logits, require_logits
from ebmhybrid.losses.bank import Bank, Counts
from ebmhybrid.losses.checks import (
    check_device,
    check_labels,
    check_options,
    check_reference,
    check_reference_weight,
    check_targets,
)
from ebmhybrid.losses.contrastive import (
    Form,
    Normalize,
    banked_loss,
    class_scores,
    contrastive_loss,
    released_entries,
)
from ebmhybrid.losses.gathered import row_counts, shared_log_sum
from ebmhybrid.losses.label_vectors import label_vector_loss, smooth
from ebmhybrid.losses.rowwise import RowTerms, row_terms, weighted_sum
from ebmhybrid.losses.weighted_bank import WeightedBank
from ebmhybrid.messages import processes

Negatives = Literal["bank", "batch", "bank+batch"]


class HDGELoss(nn.Module):
    """Cross-entropy plus the contrastive -log q(x|y): a drop-in for nn.CrossEntropyLoss after any classifier.

        loss = ce_weight * CE(f(x), y) + weight * mean_n( -log q(x_n|y_n) )

    Source: Liu & Abbeel 2020. The defaults equal the authors' released loss; `form="paper", negatives="batch",
    normalize="none", temperature=1` is the paper's equation with live negatives.
    :mod:`ebmhybrid.losses.contrastive` says what the options do and why the detached bank hardly matters.

    Which targets go with which options:

        =================  ===========  ===============  ====================================
        form, negatives    int64 (N,)   label_smoothing  probabilities (N, C), e.g. mixup
        =================  ===========  ===============  ====================================
        paper, any         yes          yes              yes
        released, batch    yes          yes              yes, in O(N^2 C) memory
        released, bank*    yes          yes              no: the bank keeps per-class sums
        =================  ===========  ===============  ====================================

    Half-precision logits are computed in float32 (no operation here is one that autocast lowers). Without `gather` it
    never waits for the device, and traces under `torch.compile(fullgraph=True)`. In training mode each call pushes the
    batch into the bank after the loss; in `eval()` mode, of the loss or of its `bank` alone, the bank stays as it is.
    The bank is part of the state dict. A bank alone starts with K random directions, as released; with `bank+batch` it
    starts empty.

    With `gather` the batch is that of all processes of torch.distributed: they push it into the bank together, and
    their images stand in the live columns with gradient. The loss stays the mean over a process's own rows;
    :mod:`ebmhybrid.losses.gathered` says how it averages to that of one process with the whole batch. This holds in
    training mode: in `eval()` mode each process is alone. All must begin with the same bank, of one seed or state.

    Arguments:
        num_classes: C.
        weight, ce_weight: factors of the two parts, >= 0, not both 0. ce_weight=0 trains log q(x|y) alone.
        temperature: T > 0.
        bank_size: K, the number of banked negatives. Memory and time do not grow with it.
        label_smoothing: s in [0, 1), for both parts, spread over all classes as in torch's cross-entropy: the label
            vector is 1 - s + s/C at y and s/C elsewhere.
        bank_block: examples a row of the bank, as `block` of :class:`Bank`.
        reference_weight: w > 0, by which a reference image counts in the columns' sums, where an image of the batch
            counts as 1; other than 1 it needs live negatives.
        gather: count the images of all processes as one batch, each process with one image or more.

    Shapes:
        logits (N, C), N >= 1; y int64 (N,) or probabilities (N, C); reference (R, C): logits of unlabelled reference
        images that enter the columns beside the batch's (live negatives only). Returns a scalar, or with
        `return_terms=True` (scalar, {"ce", "contrastive"}), the parts before weighting.

    Raises:
        ValueError: options, shapes, dtypes or labels that do not fit.

    >>> loss_fn = HDGELoss(num_classes=10, form="paper", negatives="batch", normalize="none", temperature=1.0)
    >>> loss, terms = loss_fn(torch.zeros(4, 10), torch.arange(4), return_terms=True)
    >>> {name: round(float(value.exp()), 4) for name, value in terms.items()}
    {'ce': 10.0, 'contrastive': 4.0}
    """

    def __init__(
        self,
        num_classes: int,
        *,
        weight: float = 1.0,
        ce_weight: float = 1.0,
        temperature: float = 0.1,
        bank_size: int = 65536,
        form: Form = "released",
        negatives: Negatives = "bank",
        normalize: Normalize = "l2",
        label_smoothing: float = 0.0,
        bank_block: int | None = None,
        reference_weight: float = 1.0,
        gather: bool = False,
    ) -> None:
        super().__init__()
        check_options(num_classes, bank_size, weight, ce_weight, temperature, label_smoothing)
        for name, value, choices in (
            ("form", form, get_args(Form)),
            ("negatives", negatives, get_args(Negatives)),
            ("normalize", normalize, get_args(Normalize)),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        check_reference_weight(reference_weight, negatives != "bank")
        self.num_classes = num_classes
        self.weight, self.ce_weight = weight, ce_weight
        self.temperature, self.label_smoothing = temperature, label_smoothing
        self.form, self.negatives, self.normalize = form, negatives, normalize
        self.reference_weight = reference_weight
        self.gather = gather
        self.bank: Bank | None = None
        if "bank" in negatives:
            sizes = num_classes, bank_size, bank_block
            weighted = reference_weight != 1
            self.bank = WeightedBank(*sizes, reference_weight=reference_weight) if weighted else Bank(*sizes)
        if self.bank is not None and negatives == "bank":
            # In parts of whole rows: K x C vectors would not fit for large K and C.
            step = self.bank.block * max(1, 2**22 // (self.bank.block * num_classes))
            for start in range(0, self.bank.capacity, step):
                self.fill_bank(torch.randn(min(step, self.bank.capacity - start), num_classes))

    def scores(self, logits: Tensor) -> Tensor:
        """:func:`class_scores` with this loss's options."""
        return class_scores(
            logits,
            form=self.form,
            temperature=self.temperature,
            normalize=self.normalize,
            label_smoothing=self.label_smoothing,
        )

    def fill_bank(self, logits: Tensor) -> None:
        """Push raw logits (K, C), oldest first: the random start, or the `queue_logit` of a released checkpoint."""
        if self.bank is None:
            raise ValueError(f"negatives={self.negatives!r} keeps no bank")
        self._push([self.scores(logits)], None)

    def push(self, logits: Tensor, reference: Tensor | None = None) -> None:
        """Put a batch into the bank, if there is one, as a call in training mode does: with `gather` of all processes.

        For a step that computes a batch's loss more than once: after `loss_fn.bank.eval()` a call does not push.
        """
        if self.bank is not None:
            self._push(self._columns(self.scores(logits), reference), self._counts(logits, reference))

    def forward(
        self, logits: Tensor, y: Tensor, *, reference: Tensor | None = None, return_terms: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and with `return_terms` its parts before weighting; shapes as in the class."""
        counts = self._counts(logits, reference)
        hard = check_targets(logits, y, self.num_classes)
        bank = self._bank_for(logits, hard, reference)
        smoothing, with_ce = self.label_smoothing, bool(self.ce_weight) or return_terms
        if bank is not None and self.negatives == "bank" and not smoothing and hard:
            # Of detached negatives and a hard label a row's gradient comes through the score at its label alone.
            try:
                rows = row_terms(logits, y, ce=with_ce, own=self.normalize)
            except RuntimeError:  # torch refuses a label out of range; looking at them first costs more
                check_labels(y, self.num_classes)
                raise
            contrast = self._against_bank(logits, y, rows, bank, counts)
        else:
            if hard:  # here torch would pass over a label of -100
                check_labels(y, self.num_classes)
            rows = row_terms(logits, y, label_smoothing=smoothing, ce=with_ce)
            contrast = self._contrast(check_logits(logits), y, reference, counts)
        mean = contrast.mean()
        loss = weighted_sum((self.ce_weight, rows.ce), (self.weight, mean))
        if not return_terms:
            return loss
        assert rows.ce is not None
        return loss, {"ce": rows.ce, "contrastive": mean}

    def _bank_for(self, logits: Tensor, hard: bool, reference: Tensor | None) -> Bank | None:
        """The bank, if there is one, after a look at what the options allow of this call."""
        if not hard and self.form == "released" and self.bank is not None:
            raise ValueError(
                "probability targets need form='paper' or negatives='batch': with form='released' the bank keeps "
                "per-class sums, which exist for (smoothed) one-hot labels only"
            )
        if reference is not None:
            check_reference(reference, self.num_classes, self.negatives)
        if self.bank is not None:
            check_device(self.bank.total, logits)
        return self.bank

    def _counts(self, logits: Tensor, reference: Tensor | None) -> Counts | None:
        """How many images and reference images each process holds; None where this one counts as alone."""
        if not (self.gather and self.training and processes() > 1):
            return None
        require_logits(logits)
        counts = row_counts(logits.device, len(logits), 0 if reference is None else len(reference))
        if not all(images for images, _ in counts):  # on every process, as the others would wait for one that raises
            raise ValueError(f"every process must hold one image or more, got {[images for images, _ in counts]}")
        return counts

    def _columns(self, scores: Tensor, reference: Tensor | None) -> list[Tensor]:
        """Whose scores stand in the columns: the images' and, if there are any, the reference images'."""
        return [scores] if reference is None else [scores, self.scores(reference)]

    def _push(self, parts: list[Tensor], counts: Counts | None) -> None:
        assert self.bank is not None
        if counts is not None and len(parts) == 1:
            parts = [*parts, parts[0][:0]]
        self.bank.push(*parts, counts=counts)

    def _against_bank(self, logits: Tensor, y: Tensor, rows: RowTerms, bank: Bank, counts: Counts | None) -> Tensor:
        positives = rows.own
        assert positives is not None
        if self.form == "released":
            positives = released_entries(positives, self.num_classes, self.normalize == "l2")
        log_sums = bank.total.index_select(0, y).to(positives.dtype)
        loss = banked_loss(positives, log_sums.unsqueeze(1), self.temperature)
        if bank.training:
            with torch.no_grad():
                self._push([self.scores(logits)], counts)  # after the loss: a positive is not its own banked negative
        return loss

    def _contrast(self, logits: Tensor, y: Tensor, reference: Tensor | None, counts: Counts | None) -> Tensor:
        if self.form == "released" and y.dim() == 2:
            values = [logits] if reference is None else [logits, reference.to(logits.dtype)]
            if self.normalize == "l2":
                values = [F.normalize(part, dim=1) for part in values]
            return label_vector_loss(
                values[0],
                smooth(y, self.label_smoothing),
                *values[1:],
                temperature=self.temperature,
                reference_weight=self.reference_weight,
                counts=counts,
            )
        scores = self.scores(logits)
        parts = self._columns(scores, reference)
        targets = y
        if self.form == "paper" and self.label_smoothing:
            probabilities = F.one_hot(y, self.num_classes).to(logits.dtype) if y.dim() == 1 else y
            targets = smooth(probabilities, self.label_smoothing)
        loss = contrastive_loss(
            scores,
            targets,
            live=self._live(parts, counts) if "batch" in self.negatives else None,
            bank=None if self.bank is None else (self.bank.log_sum(), self.bank.weight()),
        )
        if self.bank is not None and self.bank.training:
            self._push(parts, counts)
        return loss

    def _live(self, parts: list[Tensor], counts: Counts | None) -> Tensor | tuple[Tensor, float]:
        """The scores with gradient; of several processes or of weighted images their log-sums and sum of weights."""
        weighted = len(parts) > 1 and self.reference_weight != 1
        if weighted:
            parts = [parts[0], parts[1] + math.log(self.reference_weight)]
        live = parts[0] if len(parts) == 1 else torch.cat(parts)
        if counts is None and not weighted:
            return live
        counts = counts or ((len(parts[0]), len(parts[1])),)
        weight = sum(images + self.reference_weight * references for images, references in counts)
        return shared_log_sum(live.logsumexp(0)), weight

    def get_extra_state(self) -> dict[str, str | float]:
        """What the banked log-sums depend on: resuming with anything else would silently mix two scores."""
        return {
            "form": self.form,
            "normalize": self.normalize,
            "temperature": self.temperature,
            "label_smoothing": self.label_smoothing,
            "reference_weight": self.reference_weight,
            "bank_size": self.bank.capacity if self.bank is not None else 0,
            "bank_block": self.bank.block if self.bank is not None else 0,
        }

    def set_extra_state(self, state: dict[str, str | float]) -> None:
        own = self.get_extra_state()
        differ = [f"{key}: saved {state[key]}, now {own[key]}" for key in own if state.get(key, own[key]) != own[key]]
        if differ and self.bank is not None:
            raise ValueError(f"the saved bank was made with other options ({'; '.join(differ)})")

    def extra_repr(self) -> str:
        return (
            f"{self.num_classes}, weight={self.weight}, ce_weight={self.ce_weight}, temperature={self.temperature}, "
            f"form={self.form!r}, negatives={self.negatives!r}, normalize={self.normalize!r}, "
            f"label_smoothing={self.label_smoothing}, "
            f"reference_weight={self.reference_weight}, gather={self.gather}"
        )
