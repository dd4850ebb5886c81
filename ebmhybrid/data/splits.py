"""Train, validation and test: parts that share no image, the same for the same seed on every machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebmhybrid.data.sets import ImageSet
from ebmhybrid.errors import DataError


@dataclass(frozen=True, eq=False)
class Splits:
    """What a run trains on, chooses its best weights on, and reports on."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet

    def record(self) -> dict[str, Any]:
        """What a run's files say of the data: for each part its name, n, shape, sha256 digest and notes."""
        return {part: described(getattr(self, part)) for part in ("train", "validation", "test")}


def described(images: ImageSet) -> dict[str, Any]:
    """What a run's files say of a set."""
    return {
        "name": images.name,
        "n": len(images),
        "shape": list(images.shape),
        "sha256": images.digest(),
        "notes": list(images.notes),
    }


def stratified_split(labels: Tensor, fractions: Sequence[float], seed: int) -> list[Tensor]:
    """Disjoint index tensors that cover all labels, each class in each part as near its share as whole images allow.

    Arguments:
        labels: (N,) int64; values that no label has take no part.
        fractions: the share of each part, positive, summing to 1.
        seed: decides who goes where; the global random state is neither used nor changed.

    Returns:
        One ascending int64 tensor a part; every class that occurs is in every part.

    Raises:
        DataError: fractions that are no shares, or a class with fewer images than there are parts.

    >>> import torch
    >>> parts = stratified_split(torch.tensor([0] * 10 + [1] * 20), [0.7, 0.1, 0.2], seed=0)
    >>> [len(part) for part in parts]
    [21, 3, 6]
    """
    if not all(0 < f <= 1 for f in fractions) or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise DataError(f"the shares of a split must be positive and sum to 1, got {[round(f, 6) for f in fractions]}")
    generator = torch.Generator().manual_seed(seed)
    present, counts = labels.cpu().unique(return_counts=True)
    by_label = labels.cpu().argsort(stable=True).split(counts.tolist())
    parts: list[list[Tensor]] = [[] for _ in fractions]
    owed = [0.0] * len(fractions)  # how far each part is behind its share, over the classes dealt so far
    for label, members in zip(present.tolist(), by_label, strict=True):
        if len(members) < len(fractions):
            raise DataError(f"class {label} has {len(members)} images, a split in {len(fractions)} parts needs as many")
        members = members[torch.randperm(len(members), generator=generator)]
        sizes = _sizes(len(members), fractions, owed)
        for part, chosen in zip(parts, members.split(sizes), strict=True):
            part.append(chosen)
    return [torch.cat(part).sort().values for part in parts]


def _sizes(count: int, fractions: Sequence[float], owed: list[float]) -> list[int]:
    """Whole numbers that sum to `count`, each at least 1 and near its share; ties go to the part owed most.

    Rounding each class by itself would shift the same way for all of them: with a hundred classes of 45 images,
    a tenth would be four in every class, 400 instead of 450. `owed` is updated.
    """
    exact = [f * count for f in fractions]
    sizes = [max(1, math.floor(e + 1e-9)) for e in exact]
    short = [p for p in range(len(sizes)) if exact[p] - sizes[p] > 1e-9]  # the others have their share already
    by_need = sorted(short, key=lambda p: exact[p] - sizes[p] + owed[p], reverse=True)
    for p in by_need[: max(0, count - sum(sizes))]:
        sizes[p] += 1
    while sum(sizes) > count:  # a small class, where several parts were rounded up to one image
        sizes[sizes.index(max(sizes))] -= 1
    owed[:] = [o + e - s for o, e, s in zip(owed, exact, sizes, strict=True)]
    return sizes
