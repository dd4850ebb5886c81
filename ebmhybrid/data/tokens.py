"""A set of token sequences: what :class:`ebmhybrid.data.ImageSet` is for images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ebmhybrid.data.labelled import spaced
from ebmhybrid.errors import DataError
from ebmhybrid.vocabulary import END, PADDING, START, Vocabulary, content


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Sequences of tokens with labels; iterating yields (tokens, labels) in order, the last batch included.

    Arguments:
        name: what the set is called in reports.
        tokens: (N, L) int64, N >= 1; each row is tokens, one end token, and padding to the common length.
        vocabulary: what the ids mean.
        labels: (N,) int64 in [0, len(classes)); zeros where left out.
        classes: one name a class; a class may have no sequence.
        notes: adaptations and provenance, for reports.
        batch_size: sequences a batch when iterated.
        targets: (N,) float32, a number a sequence to regress on, or None.

    Raises:
        DataError: a dtype, a shape or a value that does not fit.

    >>> vocabulary = Vocabulary(["C", "O"])
    >>> two = TokenSet("two", vocabulary.encode(["CCO", "C"]), vocabulary)
    >>> [(tokens.tolist(), labels.tolist()) for tokens, labels in two]
    [([[4, 4, 5, 2], [4, 2, 0, 0]], [0, 0])]
    """

    name: str
    tokens: Tensor = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    labels: Tensor = field(default=None, repr=False)  # type: ignore[assignment]
    classes: tuple[str, ...] = field(default=("text",), repr=False)
    notes: tuple[str, ...] = ()
    batch_size: int = 256
    targets: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        tokens, targets = self.tokens, self.targets
        if tokens.dtype != torch.int64 or tokens.dim() != 2 or not tokens.numel():
            self._fail(f"tokens must be int64 (N, L) with N, L >= 1, got {tokens.dtype} {tuple(tokens.shape)}")
        if self.labels is None:
            object.__setattr__(self, "labels", torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device))
        labels = self.labels
        if labels.dtype != torch.int64 or labels.shape != tokens.shape[:1]:
            self._fail(f"labels must be int64 of shape ({len(tokens)},), got {labels.dtype} {tuple(labels.shape)}")
        for name, values, end in (("tokens", tokens, len(self.vocabulary)), ("labels", labels, len(self.classes))):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= end:
                self._fail(f"{name} must lie in 0..{end - 1}, got {low}..{high}")
        if not (formed := _well_formed(tokens)).all():
            row = int((~formed).nonzero()[0])
            self._fail(f"each row must be tokens, one end token {END} and padding {PADDING}, row {row} is not")
        if targets is not None and (targets.dtype != torch.float32 or targets.shape != labels.shape):
            self._fail(f"targets must be float32 of shape ({len(tokens)},), got {targets.dtype} {tuple(targets.shape)}")
        if self.batch_size < 1:
            self._fail(f"batch_size must be at least 1, got {self.batch_size}")

    def _fail(self, message: str) -> None:
        raise DataError(f"{self.name}: {message}")

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.tokens.split(self.batch_size), self.labels.split(self.batch_size), strict=True)

    def fetch(self, chunks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The tokens and labels at each of the index tensors, on the device of the set."""
        for index in chunks:
            index = index.to(self.tokens.device)
            yield self.tokens[index], self.labels[index]

    @property
    def images(self) -> Tensor:
        """The tokens, under the name by which what is trained and evaluated on is batched."""
        return self.tokens

    @property
    def shape(self) -> tuple[int]:
        """(L,): the length of every row, end and padding included."""
        return (self.tokens.shape[1],)

    @property
    def num_classes(self) -> int:
        """Number of classes, the ones without sequences included."""
        return len(self.classes)

    def to(self, device: torch.device | str) -> TokenSet:
        """The same set on another device."""
        targets = None if self.targets is None else self.targets.to(device)
        return replace(self, tokens=self.tokens.to(device), labels=self.labels.to(device), targets=targets)

    def noted(self, *notes: str) -> TokenSet:
        """The same set with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def select(self, indices: Tensor | Sequence[int], name: str | None = None) -> TokenSet:
        """The sequences at `indices`, in that order, as long as before; all classes stay."""
        index = torch.as_tensor(indices, device=self.tokens.device).long()
        if index.numel() and not (int(index.min()) >= 0 and int(index.max()) < len(self)):
            self._fail(f"indices must lie in 0..{len(self) - 1}, got {int(index.min())}..{int(index.max())}")
        targets = None if self.targets is None else self.targets[index]
        return replace(
            self, name=name or self.name, tokens=self.tokens[index], labels=self.labels[index], targets=targets
        )

    def take(self, limit: int) -> TokenSet:
        """At most `limit` sequences, evenly spaced over those ordered by label, so that classes keep their shares."""
        if limit < 1:
            self._fail(f"limit must be at least 1, got {limit}")
        if limit >= len(self):
            return self
        return self.select(spaced(self.labels, limit)).noted(f"{limit} of {len(self)} sequences")

    def digest(self) -> str:
        """sha256 of vocabulary, tokens, labels and targets, in hexadecimal: the same on every machine and device."""
        sha = hashlib.sha256(repr((tuple(self.tokens.shape), self.vocabulary.tokens)).encode())
        sha.update(self.tokens.cpu().contiguous().numpy().astype("<i8").data)
        sha.update(self.labels.cpu().contiguous().numpy().astype("<i8").data)
        if self.targets is not None:
            sha.update(self.targets.cpu().contiguous().numpy().astype("<f4").data)
        return sha.hexdigest()


def _well_formed(tokens: Tensor) -> Tensor:
    """Whether a row is tokens, one end token and then padding alone; bool, (N,)."""
    said = content(tokens)
    solid = (said[:, 1:] <= said[:, :-1]).all(1)  # no padding between tokens
    bare = ((tokens != PADDING) == said).all(1) & (tokens != START).all(1)  # nothing after the end
    return solid & bare & (tokens == END).any(1)
