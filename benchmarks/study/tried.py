"""What was tried for each objective and what was chosen of it, as a table of the document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.study.columns import column
from benchmarks.study.markdown import plain
from benchmarks.study.objectives import OBJECTIVES
from benchmarks.study.rows import Row
from benchmarks.study.tune import chosen, judged, tuning_runs
from ebmhybrid.evaluate.formats import DASH

_AUROC = column("auroc/energy/all")


def tried(data: str, rows: Iterable[Row]) -> str:
    """A line for each objective all of whose values to try were run on the data; '' where there is none.

    AUROC is that of validation images against the families of :mod:`benchmarks.study.families`, in the mean, of the
    chosen values, and the least and the largest of all that were tried.
    """
    runs = tuning_runs(data, rows)
    values = {label: one.tried(data) for label, one in OBJECTIVES.items()}
    lines = []
    for label, best in chosen(values, runs).items():
        objective, among = OBJECTIVES[label], values[label]
        accuracy, auroc = judged(runs[objective.text(**best)])
        areas = [judged(runs[objective.text(**one)])[1] for one in among]
        lines.append(
            {
                "objective": label,
                "tried": _all_said(among),
                "chosen": _said(best, among),
                "validation accuracy %": column("val_accuracy").text(accuracy),
                "AUROC": _AUROC.text(auroc),
                "least to largest": f"{_AUROC.text(min(areas))} to {_AUROC.text(max(areas))}",
            }
        )
    return plain(lines, 3) if lines else ""


def compared(settings: Mapping[str, str]) -> str:
    """A line for each objective: what it is, and its values in those settings, name -> title.

    A dash is for what has no values to choose. Values in brackets were chosen on other data, or not at all.
    """
    lines = []
    for label, objective in OBJECTIVES.items():
        line = {"objective": label, "what it is": objective.about}
        for name, title in settings.items():
            values = _said(objective.values(name))
            line[title] = (values if objective.tuned(name) else f"({values})") if values else DASH
        lines.append(line)
    return plain(lines, 2 + len(settings))


def _said(values: Mapping[str, Any], among: Sequence[Mapping[str, Any]] = ()) -> str:
    """Values in words, and whether they are an end of what stands in `among`, beyond which none was tried.

    >>> _said({"a": 1.0, "b": 2.0}, [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 2.0}])
    'a 1 (least), b 2'
    """
    words = []
    for name, value in values.items():
        others = sorted({one[name] for one in among})
        ends = {others[0]: " (least)", others[-1]: " (largest)"} if len(others) > 1 else {}
        words.append(f"{name} {value:g}{ends.get(value, '')}")
    return ", ".join(words)


def _all_said(candidates: Sequence[Mapping[str, Any]]) -> str:
    """Several values in words, the name once where it is one.

    >>> _all_said([{"weight": 1.0}, {"weight": 0.1}]), _all_said([{"a": 1, "b": 2}, {"a": 3, "b": 4}])
    ('weight 1; 0.1', 'a 1, b 2; a 3, b 4')
    """
    said = [_said(values) for values in candidates]
    alike = f"{next(iter(candidates[0]))} " if len(candidates[0]) == 1 else ""
    return alike + "; ".join(text.removeprefix(alike) for text in said)
