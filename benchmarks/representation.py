"""Representations by objective, batch size, temperature and code length: the tables of docs/representation.md.

    python -m benchmarks.representation objectives                # 7 objectives x 5 seeds on digits
    python -m benchmarks.representation batch --seeds 3           # 4 objectives x 8 batch sizes
    python -m benchmarks.representation temperature --seeds 3
    python -m benchmarks.representation floor --seeds 3
    python -m benchmarks.representation latent --seeds 3
    python -m benchmarks.representation gcrl                      # with and without each of its losses
    python -m benchmarks.representation objectives --recipe fashion_mnist_cmim --set training.epochs=3

Runs are trained into --runs DIR (default runs/representation), each by its name: what is there already is not trained
again, so that an interrupted table goes on. With --json FILE the figures of each run are written as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ebmhybrid as eh
from ebmhybrid.evaluate import evaluate_representation
from ebmhybrid.probing import offered
from ebmhybrid.runs import open_run, splits_of

Settings = dict[str, list[str]]
_PLAIN = {ord(" "): "_", ord("="): None, ord(">"): None}  # of a folder's name

_OBJECTIVES = {
    "VAE": ("vae", "none", 1),
    "MIM": ("mim", "none", 1),
    "cMIM": ("mim", "cmim", 1),
    "cVAE": ("vae", "cmim", 1),
    "InfoNCE": ("none", "infonce", 1),
    "InfoNCE, two views": ("none", "infonce", 2),
    "InfoNCE+MIM": ("mim", "infonce", 1),
}


def objective(name: str) -> list[str]:
    """The changes of a recipe that make its objective the one of that name."""
    generative, contrast, views = _OBJECTIVES[name]
    changes = [f"objective.latent={{generative: {generative}, contrast: {contrast}, views: {views}}}"]
    return [*changes, "data.augment={pad: 1, noise_std: 0.05}"] if views == 2 else changes


def batches() -> Settings:
    """Equally many steps whatever the batch size; MIM, whose terms do not look at the batch, is the control."""
    return {
        f"{name}, B = {size}": [
            *objective(name),
            f"training.batch_size={size}",
            "training.max_steps=500",
            "training.epochs=500",
        ]
        for name in ("MIM", "cMIM", "InfoNCE+MIM", "InfoNCE")
        for size in (2, 4, 8, 16, 32, 64, 128, 256)
    }


def temperatures() -> Settings:
    return {f"cMIM, t = {t}": [f"objective.latent.temperature={t}"] for t in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)}


def floors() -> Settings:
    """The recipe's floor is -6; each higher one leaves more noise in the codes."""
    return {
        f"{name}, log sigma >= {floor}": [*objective(name), f"model.options.min_log_std={floor}"]
        for name in ("MIM", "cMIM")
        for floor in (-4, -2, -1)
    }


def latents() -> Settings:
    return {
        f"{name}, D = {size}": [*objective(name), f"model.options.latent={size}"]
        for name in ("VAE", "MIM", "cMIM")
        for size in (2, 4, 64)
    }


GCRL: Settings = {
    "GCRL": [],
    "lambda = 0": ["objective.gcrl.weight=0"],
    "contrastive only": ["objective.gcrl.generative_weight=0"],
}

# Table -> recipe that is changed, settings, changes to all of them where it is that recipe
TABLES: dict[str, tuple[str, Settings, list[str]]] = {
    "objectives": ("digits_cmim", {name: objective(name) for name in _OBJECTIVES}, []),
    "batch": ("digits_cmim", batches(), []),
    "temperature": ("digits_cmim", temperatures(), []),
    "floor": ("digits_cmim", floors(), []),
    "latent": ("digits_cmim", latents(), []),
    "gcrl": ("digits_gcrl", GCRL, ["data.train=digits:0-6", "evaluation.ood=[digits:7-9, photos, noise]"]),
}


WHOLE = ("objectives", "gcrl")  # tables of all representations; the others are of the mean codes


def trained(recipe: str, changes: list[str], folder: Path, data_dir: str) -> Path:
    """The run in `folder`, trained to its end unless it was before; one of another recipe is no run of the table."""
    wanted = eh.load_recipe(recipe, changes)
    if (folder / "checkpoints" / "last.state.pt").is_file():
        if eh.load_recipe(folder / "config.yaml") != wanted:
            sys.exit(f"{folder}: was trained by other settings; name another --runs folder, or delete it")
        run = eh.train(resume=folder, data_dir=data_dir, progress=False)
    else:
        run = eh.train(wanted, folder, data_dir=data_dir, progress=False)
    if run.signal:
        sys.exit(128 + run.signal)
    return folder


def figures(run: Path, corruptions: bool = False, data_dir: str = "data", every: bool = True) -> dict[str, float]:
    """The probes of a run's representations, fitted on at most 10,000 images, and what else is measured of it.

    Without `every` only the first is probed, an autoencoder's mean codes.
    """
    opened = open_run(run, "cpu")
    recipe = opened.recipe
    splits = splits_of(recipe, opened.weights, data_dir, True)
    offer = offered(opened, recipe.seed)
    source = opened.source(data_dir, True)
    offered_here = {name: encoder for name, encoder in offer.representations.items() if name != "pixels"}
    first = dict(list(offered_here.items())[:1])
    sets = {"validation": splits.validation, "train_limit": 10_000, "few_labels": False, "seed": recipe.seed}
    result = evaluate_representation(
        offered_here if every else first,
        splits.train,
        splits.test,
        ood_sets={name: source.load(name) for name in recipe.evaluation.ood} if recipe.objective.gcrl else None,
        log_likelihood=offer.log_likelihood,
        reconstruct=offer.reconstruct if recipe.objective.latent else None,
        bits=offer.bits,
        **sets,
    )
    rows = list(result.rows)
    if corruptions:  # 70 sets: of the first representation alone
        corrupted = evaluate_representation(first, splits.train, splits.test, corruptions=True, **sets)
        rows += corrupted.of("corruptions")
    return dict(_named(rows))


def _named(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """The figures of a table, by name."""
    for row in rows:
        name = row["representation"]
        if row["group"] == "probe" and row.get("k") in (None, 5):
            yield f"{'linear' if row['probe'] == 'linear' else 'kNN'} {name} %", 100 * row["accuracy"]
        if row["group"] == "ood" and row["score"] in ("log_likelihood", "knn"):
            yield f"AUROC {name or 'log p(x)'} {row['set']}", row["auroc"]
        if row["group"] == "corruptions" and row["corruption"] == "mean" and row["severity"] is None:
            yield f"corrupted {name} %", 100 * row["accuracy"]
        if row["group"] == "reconstruction":
            yield from ((key, row[key]) for key in ("log_likelihood", "bits_per_dimension", "mse") if key in row)


def written(rows: Mapping[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation over the seeds, a setting a row."""
    names = list(dict.fromkeys(name for runs in rows.values() for run in runs for name in run))
    lines = ["| setting | " + " | ".join(names) + " |", "|---|" + "--:|" * len(names)]
    for setting, runs in rows.items():
        cells = [_cell([run[name] for run in runs if name in run], 2 if "%" in name else 3) for name in names]
        lines.append(f"| {setting} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return "–"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"


def controls(rows: Iterable[str]) -> dict[str, str]:
    """Setting -> what it is compared with: MIM at the same batch size, floor or length of code; for GCRL's halves GCRL.

    >>> controls(["MIM", "cMIM", "MIM, B = 2", "cMIM, B = 2", "GCRL", "lambda = 0", "cMIM, t = 1"])
    {'cMIM': 'MIM', 'cMIM, B = 2': 'MIM, B = 2', 'lambda = 0': 'GCRL'}
    """
    names, found = list(rows), {}
    for name in names:
        objective, comma, rest = name.partition(", ")
        control = "GCRL" if objective not in _OBJECTIVES else "MIM" if name in _OBJECTIVES else f"MIM{comma}{rest}"
        if control in names and control != name:
            found[name] = control
    return found


def against(rows: Mapping[str, list[dict[str, float]]]) -> str:
    """Differences to the control of the same seed, mean ± standard deviation, of the figures that both have."""
    differences = {
        f"{setting} less {control}": [
            {name: run[name] - base[name] for name in run.keys() & base.keys()}
            for run, base in zip(rows[setting], rows[control], strict=True)
        ]
        for setting, control in controls(rows).items()
    }
    return written({name: [dict(sorted(run.items())) for run in runs] for name, runs in differences.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--recipe", help="another one than the table's")
    parser.add_argument("--rows", nargs="+", help="of the table, by name")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--runs", default="runs/representation", metavar="DIR")
    parser.add_argument("--data-dir", default="data", metavar="DIR")
    parser.add_argument("--train-only", action="store_true", help="keep the runs, and measure them another time")
    parser.add_argument("--corruptions", action="store_true", help="measure on corrupted images too")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    own, settings, common = TABLES[args.table]
    recipe = args.recipe or own
    common = common if recipe == own else []  # they are of its data
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        for name in args.rows or settings:
            changes = [*common, *args.changes, *settings[name], f"seed={seed}"]
            place = Path(args.runs) / recipe / args.table / f"{name}, seed {seed}".translate(_PLAIN)
            trained(recipe, changes, place, args.data_dir)
            found = {} if args.train_only else figures(place, args.corruptions, args.data_dir, args.table in WHOLE)
            rows.setdefault(name, []).append(found)
            print(place, {key: round(value, 4) for key, value in found.items()}, flush=True)
            if args.json:
                Path(args.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if not args.train_only:
        print(f"\nmean ± standard deviation of {args.seeds} seeds\n\n{written(rows)}")
        if controls(rows):
            print(f"\n{against(rows)}")


if __name__ == "__main__":
    main()
