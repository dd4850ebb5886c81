"""The digits recipes over several seeds: accuracy, calibration and OOD detection as mean and standard deviation.

    python -m benchmarks.digits                          # 3 recipes x 5 seeds, some ten minutes on one core
    python -m benchmarks.digits --recipes digits_hdge --seeds 5 --set training.epochs=20

Every run is trained anew in a temporary folder. With --json FILE the row of each run is written as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import ebmhybrid as eh
from ebmhybrid.runs import evaluate_run

RECIPES = ["digits_ce", "digits_hdge_released", "digits_hdge"]


def figures(recipe: str, seed: int, changes: list[str]) -> dict[str, Any]:
    """Train one run and return its figures, AUROCs by score and OOD set."""
    with tempfile.TemporaryDirectory() as folder:
        run = eh.train(eh.load_recipe(recipe, [*changes, f"seed={seed}"]), Path(folder) / "run", progress=False)
        result = evaluate_run(run.folder, scores=["energy", "msp"])
    assert result.calibration is not None
    assert result.ood is not None
    raw = next(row for row in result.calibration.rows if row["variant"] == "raw")
    row = {"accuracy %": 100 * raw["accuracy"], "ECE-15 %": 100 * raw["ece_15"]}
    for one in result.ood.rows:
        row[f"{one['score']} AUROC {one['ood_set']}"] = one["auroc"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()

    rows: dict[str, list[dict[str, Any]]] = {}
    for recipe in args.recipes:
        rows[recipe] = []
        for seed in range(args.seeds):
            rows[recipe].append(figures(recipe, seed, args.changes))
            print(recipe, seed, {key: round(value, 4) for key, value in rows[recipe][-1].items()}, flush=True)

    print(f"\nmean ± standard deviation of {args.seeds} seeds\n")
    print("| figure | " + " | ".join(rows) + " |")
    print("|---|" + "--:|" * len(rows))
    for key in rows[args.recipes[0]][0]:
        cells = []
        for recipe in rows:
            values = [row[key] for row in rows[recipe]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            digits = 2 if "%" in key else 3
            cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
        print(f"| {key} | " + " | ".join(cells) + " |")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
