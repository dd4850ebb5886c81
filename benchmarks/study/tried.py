"""What was tried for each objective and what was chosen of it, as a table of the document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.study.columns import column
from benchmarks.study.markdown import plain
from benchmarks.study.objectives import OBJECTIVES
from benchmarks.study.rows import Row
from benchmarks.study.tables import TUNING_SEEDS
from benchmarks.study.tune import choose, judged

_AUROC = column("auroc/energy/all")


def tried(data: str, rows: Iterable[Row]) -> str:
    """A line for each objective all of whose candidates were run on the data; '' where there is none.

    AUROC is that of validation images against the families of :mod:`benchmarks.study.families`, in the mean, of the
    chosen candidate, and the least and the largest of all candidates.
    """
    runs: dict[str, list[Row]] = {}
    for row in rows:
        if row.setting == f"tuning_{data}" and row.seed in TUNING_SEEDS:
            runs.setdefault(row.changes, []).append(row)
    lines = []
    for label, objective in OBJECTIVES.items():
        if len(objective.candidates) < 2 or not all(objective.text(**one) in runs for one in objective.candidates):
            continue
        values = choose(objective, runs)
        accuracy, auroc = judged(runs[objective.text(**values)])
        areas = [judged(runs[objective.text(**one)])[1] for one in objective.candidates]
        lines.append(
            {
                "objective": label,
                "tried": _all_said(objective.candidates),
                "chosen": _said(values),
                "validation accuracy %": column("val_accuracy").text(accuracy),
                "AUROC": _AUROC.text(auroc),
                "least to largest": f"{_AUROC.text(min(areas))} to {_AUROC.text(max(areas))}",
            }
        )
    return plain(lines) if lines else ""


def _said(values: Mapping[str, Any]) -> str:
    """Values in words.

    >>> _said({"weight": 0.1, "margins": (-23.0, -5.0)})
    'weight 0.1, margins -23, -5'
    """
    return ", ".join(
        f"{name} {', '.join(f'{part:g}' for part in (value if isinstance(value, (tuple, list)) else [value]))}"
        for name, value in values.items()
    )


def _all_said(candidates: Sequence[Mapping[str, Any]]) -> str:
    """Several values in words, the name once where it is one.

    >>> _all_said([{"weight": 1.0}, {"weight": 0.1}]), _all_said([{"a": 1, "b": 2}, {"a": 3, "b": 4}])
    ('weight 1; 0.1', 'a 1, b 2; a 3, b 4')
    """
    said = [_said(values) for values in candidates]
    alike = f"{next(iter(candidates[0]))} " if len(candidates[0]) == 1 else ""
    return alike + "; ".join(text.removeprefix(alike) for text in said)
