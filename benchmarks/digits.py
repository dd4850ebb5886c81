"""The digits recipes over several seeds: accuracy, calibration, OOD detection and samples as mean and deviation.

    python -m benchmarks.digits                          # 3 recipes x 5 seeds, some ten minutes on one core
    python -m benchmarks.digits --recipes digits_hdge --seeds 5 --set training.epochs=20
    python -m benchmarks.digits --seeds 3 --recipes digits_ce digits_jem digits_hdge_jem
    python -m benchmarks.digits --recipes digits_ce digits_logitnorm digits_supcon

Every run is trained anew in a temporary folder. With --json FILE the row of each run is written as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ebmhybrid as eh
from ebmhybrid.runs import evaluate_run

RECIPES = ["digits_ce", "digits_hdge_released", "digits_hdge"]


def figures(recipe: str, seed: int, changes: list[str]) -> dict[str, Any]:
    """Train one run and return its figures, AUROCs by score and OOD set."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        run = eh.train(eh.load_recipe(recipe, [*changes, f"seed={seed}"]), Path(folder) / "run", progress=False)
        minutes = (time.monotonic() - start) / 60
        result = evaluate_run(run.folder, scores=["energy", "msp"])
    assert result.calibration is not None
    assert result.ood is not None
    raw = next(row for row in result.calibration.rows if row["variant"] == "raw")
    row = {"accuracy %": 100 * raw["accuracy"], "ECE-15 %": 100 * raw["ece_15"]}
    for one in result.ood.rows:
        row[f"{one['score']} AUROC {one['ood_set']}"] = one["auroc"]
    row["minutes of training"] = minutes
    if result.generation is not None:
        row |= of_samples(result.generation.rows) | {"rollbacks": run.rollbacks}
    return row


def of_samples(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """How many class samples are labelled as asked, and how far they and test images are from the training images."""
    found = {
        (row["group"], row["of"]): row for row in reversed(list(rows))
    }  # of several, the first: that of all classes
    neighbours = {of: found["neighbours", of] for of in ("samples", "test")}
    return {
        "samples as asked %": 100 * found["labels", "samples"]["label_agreement"],
        "Fréchet distance of samples": found["distances", "samples"]["frechet_distance"],
        "Fréchet distance of training images": found["distances", "train"]["frechet_distance"],
        "nearest training image, samples": neighbours["samples"]["nearest_mean"],
        "nearest training image, test images": neighbours["test"]["nearest_mean"],
        "copies among samples": neighbours["samples"]["copies"],
        "log density AUROC, test above samples": found["log_density", "samples"]["auroc"],
    }


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
    for key in dict.fromkeys(key for runs in rows.values() for key in runs[0]):
        cells = []
        for recipe in rows:
            values = [row[key] for row in rows[recipe] if key in row]
            if not values:
                cells.append("–")
                continue
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            digits = 2 if "%" in key else 3
            cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
        print(f"| {key} | " + " | ".join(cells) + " |")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
