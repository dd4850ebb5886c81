"""The sections of a comparison: figures by row, runs by column, the best value marked where the data are the same.

A mark needs the same images on all sides: the digests and the sizes of the test set and of the OOD sets must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .compare_parts import PARTS, Metric, Part, Row
from .report_confidence import doubted
from .sections import Cell, Column, Drawing, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .compare_runs import Run

_DRAWN = 12  # lines of a figure, so that it fits a screen
MARKS = (
    "★ best, its interval apart from the others'; ☆ best, but intervals overlap or are missing; no mark: equal as "
    "printed, or not comparable."
)
_INTRO = (
    "Of each figure the best value is marked: ★ where its 95 % interval overlaps no other run's, ☆ where intervals "
    "overlap or are missing. There is no mark where the best values are equal as printed, where the runs saw different "
    "images or that is unknown, and where a temperature that is not identified comes in. Intervals "
    "speak of the sample of test images, not of training seeds: of two runs that differ in their seed alone, one often "
    "gets a ★ too."
)


def comparison_sections(runs: Sequence[Run]) -> tuple[Section, ...]:
    """The runs, a section for each part that at least one of them has, and the published figures."""
    from .report_sections import published_section, trained_on_data

    parts = [part for part in PARTS if _found(part, runs)]
    trained = [trained_on_data(run.content["context"], run.parts["accuracy"][0].get("set", "")) for run in runs]
    checks = [_sanity_section(runs)] if any("sanity" in run.parts for run in runs) else []
    classify = any(part.key == "accuracy" for part in parts)
    published = [published_section(list(dict.fromkeys(trained)))] if classify else []
    return (_runs_section(runs, trained), *(_section(part, runs) for part in parts), *checks, *published)


def _found(part: Part, runs: Sequence[Run]) -> bool:
    """Whether a run has a figure of the part; an accuracy may be a test set's name alone, where nothing classifies."""
    some = (run.parts[part.key] for run in runs if part.key in run.parts)
    return any(part.key != "accuracy" or "accuracy" in row for rows in some for row in rows)


def _runs_section(runs: Sequence[Run], trained: Sequence[str]) -> Section:
    columns = (
        Column("run", "run", "text"),
        Column("model", "model", "text"),
        Column("trained", "trained on", "text"),
        Column("test", "test set", "text"),
        Column("n", "n", "count"),
        Column("weights", "weights, sha256", "text"),
        Column("ebmhybrid", "ebmhybrid", "text"),
        Column("torch", "torch", "text"),
        Column("path", "results", "text", wrap=True),
    )
    rows = []
    for run, data in zip(runs, trained, strict=True):
        context, test = run.content["context"], run.parts["accuracy"][0]
        weights = context.get("weights")
        digest = str(weights.get("sha256") or "")[:12] if isinstance(weights, Mapping) else ""
        row = {"run": run.label, "model": context.get("model"), "trained": data, "test": test.get("set")}
        row |= {"n": test.get("n"), "weights": digest, "path": str(run.path)}
        rows.append(row | {name: run.content["versions"].get(name) for name in ("ebmhybrid", "torch")})
    table = Table("Runs", "The evaluations compared.", columns, tuple(rows))
    return Section("runs", "Runs", (_INTRO,), tables=(table,))


def _section(part: Part, runs: Sequence[Run]) -> Section:
    rows = [row for metric in part.metrics for row in _rows(part, metric, runs)]
    if part.split:
        headings = [(metric.heading, metric.better) for metric in part.metrics]
        chosen = [(pair, [row for row in rows if row["figure"] == pair[0]]) for pair in headings]
        tables = [_table(part, f"{heading}, {better}", some, runs) for (heading, better), some in chosen if some]
    else:
        tables = [_table(part, part.better, rows, runs)]
    drawn = _for_figure([row for row in rows if row["figure"] == part.metrics[0].heading])
    said = _own_notes(runs) if part.key == "representation" else ()
    return Section(part.key, part.title, said, tables=tuple(tables), drawings=_drawings(part, drawn, runs))


def _own_notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """What probed runs say of their own figures, each note once, after the runs that say it."""
    told: dict[str, list[str]] = {}
    for run in runs:
        for note in (run.content["context"].get("notes") or ()) if "representation" in run.parts else ():
            told.setdefault(str(note), []).append(run.label)
    return tuple(f"{', '.join(labels)}: {note}." for note, labels in told.items())


def _rows(part: Part, metric: Metric, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row for each set and name that a run has the figure of, with a marked cell a run."""
    found: dict[tuple[str, str], dict[int, tuple[Any, Any, bool]]] = {}
    doubtful = set()
    doubts = [doubted(run.parts.get("calibration", ())) for run in runs]
    for i, run in enumerate(runs):
        test = run.parts["accuracy"][0]
        for row in filter(part.keep, run.parts.get(part.key, ())):
            value = metric.of(row)
            if value is not None:
                which = str(row.get(part.set_key) or test.get("set")), str(row.get(metric.kind) or part.name(row))
                found.setdefault(which, {})[i] = (value, _basis(run, row), "n_sets" in row)
                if ("temperature" if metric.scaled else row.get("variant")) in doubts[i]:
                    doubtful.add(which)
    rows = []
    for (set_name, name), values in found.items():
        figures = {i: figure for i, (figure, _, _) in values.items()}
        bases = [basis for _, basis, _ in values.values()]
        same = bases[0] is not None and all(basis == bases[0] for basis in bases)
        marks = marked(figures, metric.higher, metric.shown) if same and (set_name, name) not in doubtful else {}
        about: dict[str, Any] = {"figure": metric.heading, "name": name, "set": set_name, "figures": figures}
        about["mean"] = any(is_mean for _, _, is_mean in values.values())
        rows.append(about | {f"run{i}": _cell(figure, metric, marks.get(i, "")) for i, figure in figures.items()})
    return rows


def _basis(run: Run, row: Row) -> tuple[Any, ...] | None:
    """What a figure was measured on; None where a digest is missing, so that nobody can tell."""
    sets = [item for item in run.content["sets"] if isinstance(item, dict)]
    test = [item.get("digest") for item in sets if item.get("role") == "test"]
    outside = {str(item.get("name")): item.get("digest") for item in sets if item.get("role") == "ood"}
    if row.get("representation"):  # probes and distances, which were fitted
        test += [item.get("digest") for item in sets if item.get("role") == "train"]
    if "ood_set" in row:
        name = str(row["ood_set"])
        test += [outside[name]] if name in outside else [part for pair in sorted(outside.items()) for part in pair]
    if not test or None in test:
        return None
    return (*test, *(row.get(key) for key in ("n", "n_id", "n_ood")))


def marked(
    figures: Mapping[int, tuple[float, float | None, float | None]], higher: bool, shown: Callable[[float], str] = repr
) -> dict[int, str]:
    """The mark of the best value: a filled star where the interval is apart from all others', else an open one.

    There is none where another value reads the same.

    >>> marked({0: (0.9, 0.88, 0.92), 1: (0.8, 0.78, 0.82)}, higher=True)
    {0: '★'}
    >>> marked({0: (0.9, 0.82, 0.98), 1: (0.8, 0.72, 0.88)}, higher=True)
    {0: '☆'}
    """
    if len(figures) < 2:
        return {}
    sign = 1 if higher else -1
    best = sign * max(sign * value for value, _, _ in figures.values())
    winners = [i for i, (value, _, _) in figures.items() if shown(value) == shown(best)]
    if len(winners) > 1:
        return {}
    _, *own = figures[winners[0]]
    others = [bound for i, (_, *bounds) in figures.items() if i != winners[0] for bound in bounds]
    bounds = [*own, *others]
    if any(bound is None for bound in bounds):
        return {winners[0]: "☆"}
    apart = min(sign * bound for bound in own) > max(sign * bound for bound in others)  # type: ignore[operator]
    return {winners[0]: "★" if apart else "☆"}


def _cell(figure: tuple[float, float | None, float | None], metric: Metric, mark: str) -> Cell:
    return Cell(f"{metric.shown(*figure)} {mark}".strip(), figure[0], mark == "★")


def _table(part: Part, figures: str, rows: Sequence[Row], runs: Sequence[Run]) -> Table:
    """Rows under figure, name and set, then a column a run; a table of a single figure starts with the set."""
    figure = Column("figure", "figure", "text")
    name, of = Column("name", part.heading or "of", "text"), Column("set", part.set_heading, "text")
    columns = (of, name) if part.split else (figure, name, of)
    caption = f"{figures[0].upper()}{figures[1:]}. {MARKS}"
    sets, means = (tuple(row for row in rows if row["mean"] is apart) for apart in (False, True))
    return Table(f"{part.title}: {figures}", caption, (*columns, *_run_columns(runs)), sets, means)


def _run_columns(runs: Sequence[Run]) -> tuple[Column, ...]:
    return tuple(Column(f"run{i}", run.label) for i, run in enumerate(runs))


def _for_figure(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows to draw: of many, means first, then no more than fit."""
    if len(rows) > _DRAWN:
        rows = [row for row in rows if row["mean"]] or rows
    return rows[:_DRAWN]


def _drawings(part: Part, rows: list[dict[str, Any]], runs: Sequence[Run]) -> tuple[Drawing, ...]:
    """Points with intervals of the part's first figure."""
    if not rows:
        return ()
    heading = part.metrics[0].heading
    caption = f"{part.title}: {heading} with 95 % intervals where there are any."
    names = [
        " · ".join(filter(None, (row["name"], row["set"] if part.split or not row["name"] else ""))) for row in rows
    ]
    series = {run.label: [row["figures"].get(i) for row in rows] for i, run in enumerate(runs)}
    draw = partial(_draw, names, series, heading)
    numbers = partial(_table, part, f"{heading}, {part.metrics[0].better}", rows, runs)
    return (Drawing(f"compare-{part.key}", caption, draw, numbers),)


def _draw(names: list[str], series: dict[str, Any], heading: str) -> Figure:
    from .plots_points import points_figure

    return points_figure(names, series, heading)


def _sanity_section(runs: Sequence[Run]) -> Section:
    """The verdicts of the checks of each run's attacks."""
    verdicts: dict[str, dict[str, Any]] = {}
    for i, run in enumerate(runs):
        for row in run.parts.get("sanity", ()):
            check = str(row["check"])
            verdicts.setdefault(check, {"check": check})[f"run{i}"] = str(row.get("status"))
    columns = (
        Column("check", "check", "text"),
        *(Column(f"run{i}", run.label, "text") for i, run in enumerate(runs)),
    )
    caption = "A warning means that the run's robust accuracy may be too high."
    table = Table("Sanity checks of the attacks", caption, columns, tuple(verdicts.values()))
    return Section("sanity", "Can the robust accuracy be trusted?", tables=(table,))
