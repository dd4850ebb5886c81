"""Chooses each objective's values by validation images and families that are in no reported figure."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.study import rows
from benchmarks.study.objectives import CHOSEN, OBJECTIVES, Objective
from benchmarks.study.tables import TUNING_SEEDS
from ebmhybrid.errors import DataError

LOST = 0.005  # of validation accuracy, below the objective's best candidate, that detection may cost
JUDGES = ("gratings", "shapes", "superpositions", "rotations")


def judged(found: list[rows.Row]) -> tuple[float, float]:
    """Mean validation accuracy, and mean energy AUROC of validation images over the families, of a candidate's runs."""
    accuracy = statistics.mean(row.figures["val_accuracy"] for row in found)
    areas = [row.figures[f"val_auroc/energy/{name}"] for row in found for name in JUDGES]
    return accuracy, statistics.mean(areas)


def choose(objective: Objective, candidates: dict[str, list[rows.Row]]) -> dict[str, Any]:
    """Of the candidates whose accuracy is at most LOST below the best one's, that of the highest AUROC."""
    scores = [judged(candidates[objective.text(**values)]) for values in objective.candidates]
    best = max(accuracy for accuracy, _ in scores)
    able = [number for number, (accuracy, _) in enumerate(scores) if accuracy >= best - LOST]
    return objective.candidates[max(able, key=lambda number: scores[number][1])]


def chosen(data: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Objective -> values, of those whose candidates have all been run."""
    found: dict[str, list[rows.Row]] = {}
    for row in rows.read(folder):
        if row.setting == f"tuning_{data}" and row.seed in TUNING_SEEDS:
            found.setdefault(row.changes, []).append(row)
    tuned = [one for one in OBJECTIVES.values() if len(one.candidates) > 1]
    return {one.label: choose(one, found) for one in tuned if all(one.text(**v) in found for v in one.candidates)}


def write(data: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Keep the choice in the file that the objectives read.

    Raises:
        DataError: there is nothing to choose from; the file stays as it is.
    """
    choices = json.loads(CHOSEN.read_text(encoding="utf-8")) if CHOSEN.is_file() else {}
    choices[data] = chosen(data, folder)
    if not choices[data]:
        raise DataError(f"{folder}: no objective has all its candidates' rows; run benchmarks.study tune {data}")
    CHOSEN.write_text(json.dumps(choices, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return choices[data]
