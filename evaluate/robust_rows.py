"""The cells of an evaluation, gathered over its batches and counted into rows."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .accuracy import wilson_interval
from .robust_cells import Batch
from .robust_journal import Cell

Key = tuple[str, float]
WORST = "worst"


class Tally:
    """What has been found so far: which images are right, doubtful and, for each attack and radius, still right."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.n = 0
        self._rows = rows
        self._right: list[np.ndarray] = []
        self._doubtful: list[np.ndarray] = []
        self._zero_gradients = 0
        self._cells: dict[Key, list[Cell]] = {(row["attack"], row["eps"]): [] for row in rows}

    def see(self, right: Tensor) -> None:
        """Take a batch in: which of its images are right without an attack."""
        self.n += len(right)
        self._right.append(right.cpu().numpy())

    def doubt(self, batch: Batch) -> None:
        """Take in what is known of the batch's right images."""
        self._zero_gradients += int(batch.vanished.sum())
        self._doubtful.append(batch.doubtful.cpu().numpy())

    def add(self, row: dict[str, Any], cell: Cell) -> None:
        """Take in one attack on the batch that was seen last.

        Raises:
            EbmhybridError: the cell, read from a damaged file, is of more or fewer images than are right in the batch.
        """
        right = len(self._doubtful[-1])
        if len(cell.survivors) != right:
            raise EbmhybridError(
                f"{cell.source or 'cell'} is damaged: it is of {len(cell.survivors)} images, and {right} of the batch"
                " are right; delete the file to attack anew"
            )
        self._cells[row["attack"], row["eps"]].append(cell)

    def _spread(self, parts: list[np.ndarray]) -> np.ndarray:
        """A mask over right images as one over all images."""
        right = np.concatenate(self._right)
        spread = np.zeros_like(right)
        spread[right] = np.concatenate([np.zeros(0, dtype=bool), *parts])
        return spread

    def survivors(self) -> dict[Key, np.ndarray]:
        """(attack, eps) -> bool (n,): right under the attack; "worst" is under all of several."""
        found: dict[Key, np.ndarray] = {("none", 0.0): np.concatenate(self._right)}
        for key, cells in self._cells.items():
            found[key] = self._spread([cell.mask for cell in cells])
        attacks = {attack for attack, _ in self._cells}
        for eps in {eps for _, eps in self._cells} if len(attacks) > 1 else ():
            found[WORST, eps] = np.logical_and.reduce([found[attack, eps] for attack in attacks])
        return found

    def notes(self) -> tuple[str, ...]:
        """Each note once; those that differ by a number alone count as one."""
        cells = (cell for group in self._cells.values() for cell in group)
        found: dict[str, str] = {}
        for note in (note for cell in cells for note in cell.notes):
            found.setdefault(re.sub(r"[\d.]+", "", note), note)
        return tuple(found.values())

    def finished(self, name: str, norm: str, eot: int) -> tuple[dict[str, Any], ...]:
        """The rows: without an attack, each attack and radius as asked for, the worst case of each radius."""
        survivors, doubtful = self.survivors(), self._spread(self._doubtful)
        settings = {(row["attack"], row["eps"]): row for row in self._rows}
        rows = []
        for attack, eps in sorted(survivors, key=self._order):
            default = {"attack": attack, "norm": norm, "eps": eps, "steps": 0, "restarts": 0}
            alive = survivors[attack, eps]
            cells = [
                cell for key in self._cells if key[1] == eps and attack in (key[0], WORST) for cell in self._cells[key]
            ]
            low, high = wilson_interval(int(alive.sum()), self.n)
            rows.append(
                settings.get((attack, eps), default)
                | {"eot": eot, "set": name, "n": self.n}
                | {"clean_accuracy": float(survivors["none", 0.0].mean()), "robust_accuracy": float(alive.mean())}
                | {"robust_low": low, "robust_high": high}
                | {"max_delta": max((cell.max_delta for cell in cells), default=0.0)}
                | {"zero_gradients": self._zero_gradients, "doubtful": int((doubtful & alive).sum())}
                | {"rechecked": sum(cell.rechecked for cell in cells)}
                | {"recheck_fell": sum(cell.recheck_fell for cell in cells)}
                | {"seconds": sum(cell.seconds for cell in cells)}
            )
        return tuple(rows)

    def _order(self, key: Key) -> tuple[int, float]:
        """Without an attack first, then the attacks as asked for, the worst case last; radii ascending."""
        attacks = ["none", *dict.fromkeys(attack for attack, _ in self._cells), WORST]
        return attacks.index(key[0]), key[1]
