"""The replay buffer of persistent contrastive divergence: chains that training goes on with (Tieleman 2008, JEM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ebmhybrid.errors import EbmhybridError
from ebmhybrid.sampling.starts import check_labels


class ReplayBuffer(nn.Module):
    """Images of earlier chains, from which new ones start; with probability `reinit` they start afresh instead.

    Source: Du & Mordatch 2019, Grathwohl et al. 2020. Slots belong to classes in equal shares, slot k to class
    k // (capacity / C), and chains of a class go on from that class's slots; `pooled` chains go on from any slot, and
    their classes decide only what a fresh start looks like. Images and draws stay on the buffer's device, and no value
    is read back from it. The images are the state dict.

    Arguments:
        capacity: number of images, at least one a class; rounded down to a multiple of the classes.
        start: labels (N,), generator -> fresh images (N, ...), such as :class:`UniformStart`.
        num_classes: C.
        pooled: whether a chain may go on from a slot of any class.
        reinit: probability in [0, 1] that a drawn chain starts afresh.
        generator: of the first filling.

    Raises:
        EbmhybridError: arguments out of range.

    >>> from ebmhybrid.sampling import UniformStart
    >>> buffer = ReplayBuffer(100, UniformStart((1, 8, 8)), num_classes=10)
    >>> images, slots = buffer.draw(torch.tensor([3, 3, 7]))
    >>> images.shape, (slots // 10).tolist()
    (torch.Size([3, 1, 8, 8]), [3, 3, 7])
    >>> buffer.put(slots, images)
    """

    images: Tensor

    def __init__(
        self,
        capacity: int,
        start: nn.Module,
        *,
        num_classes: int = 1,
        pooled: bool = False,
        reinit: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1 or capacity < num_classes:
            raise EbmhybridError(
                f"a buffer holds at least one image a class, got capacity={capacity} for {num_classes} classes"
            )
        if not 0 <= reinit <= 1:
            raise EbmhybridError(f"reinit must lie in [0, 1], got {reinit}")
        self.start, self.num_classes, self.pooled, self.reinit = start, num_classes, pooled, reinit
        self.share = capacity // num_classes
        labels = torch.arange(num_classes).repeat_interleave(self.share)
        self.register_buffer("images", start(labels, generator))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        """The class of each slot."""
        return torch.arange(len(self), device=self.images.device) // self.share

    def draw(self, labels: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Where chains of these classes (N,) start, (N, ...), and the slots (N,) to put them back into."""
        check_labels(labels, self.num_classes)
        device = self.images.device
        where = device if generator is None else generator.device
        choices = len(self) if self.pooled else self.share
        slots = torch.randint(choices, (len(labels),), generator=generator, device=where).to(device)
        afresh = (torch.rand(len(labels), generator=generator, device=where) < self.reinit).to(device)
        labels = labels.to(device)
        if not self.pooled:
            slots = labels * self.share + slots
        fresh = self.start(labels, generator)  # of all: to draw only what is needed, a value would be read back
        return torch.where(afresh.view(-1, *[1] * (fresh.dim() - 1)), fresh, self.images[slots]), slots

    def put(self, slots: Tensor, images: Tensor) -> None:
        """Keep the images (N, ...) in these slots (N,); of a slot named twice the last one stays, on every device."""
        shape = (len(slots), *self.images.shape[1:])
        if slots.dim() != 1 or images.shape != shape:
            raise EbmhybridError(f"images must be {shape} for {len(slots)} slots, got {tuple(images.shape)}")
        rows = torch.arange(len(slots), device=slots.device)
        last = torch.zeros(len(self), dtype=rows.dtype, device=slots.device).scatter_reduce(0, slots, rows, "amax")
        self.images[slots] = images.detach().to(self.images)[last[slots]]

    def extra_repr(self) -> str:
        return f"{len(self)}, num_classes={self.num_classes}, pooled={self.pooled}, reinit={self.reinit}"
