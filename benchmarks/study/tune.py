"""Chooses each objective's values by validation images and families that are in no reported figure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.study import rows
from benchmarks.study.objectives import CHOSEN, ELSEWHERE, OBJECTIVES, Objective
from benchmarks.study.tables import TUNING_SEEDS
from ebmhybrid.errors import DataError

LOST = 0.005  # of validation accuracy, below the objective's best candidate, that detection may cost
Values = tuple[dict[str, Any], ...]
JUDGES = ("gratings", "shapes", "superpositions", "rotations")


def judged(found: list[rows.Row]) -> tuple[float, float]:
    """Mean validation accuracy, and mean energy AUROC of validation images over the families, of a candidate's runs."""
    accuracy = statistics.mean(row.figures["val_accuracy"] for row in found)
    areas = [row.figures[f"val_auroc/energy/{name}"] for row in found for name in JUDGES]
    return accuracy, statistics.mean(areas)


def choose(objective: Objective, tried: Values, runs: dict[str, list[rows.Row]]) -> dict[str, Any]:
    """Of the values whose accuracy is at most LOST below the best one's, those of the highest AUROC."""
    scores = [judged(runs[objective.text(**values)]) for values in tried]
    best = max(accuracy for accuracy, _ in scores)
    able = [number for number, (accuracy, _) in enumerate(scores) if accuracy >= best - LOST]
    return tried[max(able, key=lambda number: scores[number][1])]


def chosen(tried: dict[str, Values], runs: dict[str, list[rows.Row]]) -> dict[str, dict[str, Any]]:
    """Objective -> values chosen of those tried, where all of these have been run."""
    found = {}
    for label, values in tried.items():
        objective = OBJECTIVES[label]
        if len(values) > 1 and all(objective.text(**one) in runs for one in values):
            found[label] = choose(objective, values, runs)
    return found


def tuning_runs(data: str, given: Iterable[rows.Row]) -> dict[str, list[rows.Row]]:
    """Changes -> their runs of tuning on that data."""
    found: dict[str, list[rows.Row]] = {}
    for row in given:
        if row.setting == f"tuning_{data}" and row.seed in TUNING_SEEDS:
            found.setdefault(row.changes, []).append(row)
    return found


def write(data: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Keep the choice in the file that the objectives read; Fashion-MNIST's stands for data without one of its own.

    What is tried further on Fashion-MNIST is of no account elsewhere, where runs were made before it was.

    Raises:
        DataError: there is nothing to choose from; the file stays as it is.
    """
    choices = json.loads(CHOSEN.read_text(encoding="utf-8")) if CHOSEN.is_file() else {}
    runs = tuning_runs(data, rows.read(folder))
    choices[data] = chosen({label: one.tried(data) for label, one in OBJECTIVES.items()}, runs)
    if not choices[data]:
        raise DataError(f"{folder}: no objective has all its candidates' rows; run benchmarks.study tune {data}")
    if data == "fashion":
        choices[ELSEWHERE] = chosen({label: one.candidates for label, one in OBJECTIVES.items()}, runs)
    CHOSEN.write_text(json.dumps(choices, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return choices[data]
