"""The parts of one table of the study: which figures stand beside each other, under which captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from benchmarks.study.columns import SCORES, column
from benchmarks.study.markdown import comparison, differences
from benchmarks.study.settings import Setting
from benchmarks.study.summary import Runs, attacked, measured_sets
from benchmarks.study.tables import Table

CLASSES, AREAS = "Accuracy, calibration and time", "AUROC by energy"  # what a sweep shows
_CLASSES = ("accuracy", "nll", "brier", "ece", "ece_after", "aurc", "step_ratio")
_VALIDATION = ("val_accuracy", "val_nll", "step_ratio")

Columns = dict[str, str]  # figure -> title


def blocks(runs: Runs, table: Table, setting: Setting) -> list[tuple[str, str]]:
    """Caption and Markdown of each part of a table of which something was measured; of a sweep the first two."""
    groups = _groups(setting)
    parts = _measured(_parts(runs, setting, groups), runs)
    found = [
        (caption, comparison(runs, table.control, columns))
        for caption, columns in parts.items()
        if caption in (CLASSES, AREAS) or not table.sweep
    ]
    if table.sweep or table.control is None or not any(len(by_seed) > 1 for by_seed in runs.values()):
        return found
    main = {"accuracy": "", "ece_after": "", **{f"auroc/energy/{name}": "AUROC " for name in groups}}
    shown = {name: f"{prefix}{column(name).title}" for name, prefix in main.items()}
    caption = f"Differences to {table.control}"
    return found + [
        (caption, differences(runs, table.control, own)) for own in _measured({caption: shown}, runs).values()
    ]


def _groups(setting: Setting) -> list[str]:
    """near and far, by the name of their set where they have one alone, and all where there are both."""
    own = {"near": setting.near, "far": setting.far, "all": tuple(setting.ood) if setting.near and setting.far else ()}
    return [names[0] if len(names) == 1 else group for group, names in own.items() if names]


def _parts(runs: Runs, setting: Setting, groups: list[str]) -> dict[str, Columns]:
    """Every figure that may be there, by caption."""
    measured = {figure for by_seed in runs.values() for found in by_seed.values() for figure in found}
    sets = measured_sets(runs, "auroc", "energy", tuple(setting.ood))
    names = list(dict.fromkeys([*sets, *groups]))
    others = [score for score in SCORES if score != "energy"]
    return {
        CLASSES: _titled(_CLASSES if "accuracy" in measured else _VALIDATION),
        AREAS: _titled(f"auroc/energy/{name}" for name in names),
        "FPR95 by energy": _titled(f"fpr95/energy/{name}" for name in names),
        "AUROC by other scores": {
            f"auroc/{score}/{name}": f"{SCORES[score]}: {name}" for score in others for name in groups if name != "all"
        },
        "Robust accuracy %, and accuracy on corrupted images": _titled([*attacked(runs), "sanity", "corrupted"]),
    }


def _measured(parts: Mapping[str, Columns], runs: Runs) -> dict[str, Columns]:
    """The parts with the figures that some run has, and of those parts the ones that are left."""
    measured = {figure for by_seed in runs.values() for found in by_seed.values() for figure in found}
    kept = {
        caption: {name: title for name, title in columns.items() if name in measured}
        for caption, columns in parts.items()
    }
    return {caption: columns for caption, columns in kept.items() if columns}


def _titled(names: Iterable[str]) -> Columns:
    return {name: column(name).title for name in names}
