"""The report's section on corrupted images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .formats import number, percent
from .report_confidence import doubted
from .sections import Column, Drawing, Line, Section, Table, bounded

if TYPE_CHECKING:
    from .results import SuiteResult

Row = Mapping[str, Any]
_SEVERITY = {"accuracy": "Accuracy", "ece_15": "ECE, 15 bins,"}


def is_mean(row: Row) -> bool:
    """Whether a corruption row is a mean over cells: of a severity, of a family, of all."""
    return str(row["corruption"]).endswith("mean")


def corruptions_section(corruptions: Any, result: SuiteResult) -> Section:
    """Accuracy and calibration under each corruption, means apart."""
    columns = (
        Column("corruption", "corruption", "text"),
        Column("family", "family", "text"),
        Column("severity", "severity", "count"),
        bounded("accuracy", "accuracy", "percent"),
        Column("nll", "NLL"),
        Column("ece_15", "ECE"),
        Column("ece_15_scaled", "ECE, temperature-scaled"),
        Column("n", "n", "count"),
        Column("source", "images", "text"),
    )
    rows, means = (tuple(row for row in corruptions.rows if is_mean(row) is apart) for apart in (False, True))
    generated = any(row.get("source") == "generated" for row in rows)
    text = (
        "The test set under corruptions of growing severity. Means are unweighted, over corruptions and severities. "
        "The temperature, where there is one, was fitted on clean held-out images."
    )
    if doubted(result.calibration.rows if result.calibration else ()):
        text += " It is not identified by these images: do not rely on the figures that use it."
    text += " These corruptions were generated on the fly: they are not CIFAR-10-C." if generated else ""
    caption = "In brackets 95 % Wilson intervals; means have none. ECE with 15 bins, lower is better."
    return Section(
        "corruptions",
        "Corruptions",
        (text,),
        tables=(Table("Corruptions", caption, columns, rows, means),),
        drawings=tuple(_severity(corruptions.rows, metric, what) for metric, what in _SEVERITY.items()),
        lines=tuple(_line(row) for row in means),
    )


def _line(row: Row) -> Line:
    """A mean for the terminal: over what, of how many images and cells, and where the images come from."""
    family = str(row["corruption"]).removesuffix(" mean")
    over = f"severity {row['severity']}" if row.get("severity") else family
    cells = f"{row['cells']} cell{'s' * (row['cells'] != 1)}, " if row.get("cells") else ""
    source = {"files": "from files"}.get(row.get("source", ""), row.get("source", ""))
    figures = f"NLL {number(row.get('nll'))}, ECE-15 {number(row.get('ece_15'))}"
    return Line(f"corruptions, {over}", percent(row["accuracy"]), f"{figures}, n={row['n']}, {cells}{source}")


def _severity(rows: tuple[Row, ...], metric: str, what: str) -> Drawing:
    """A figure over severity, a line a family."""
    caption = f"{what} over severity: the mean over the corruptions of each family, and over all; 0 is clean images."
    name = f"corruptions-{metric.replace('_', '-')}"
    return Drawing(name, caption, partial(_draw_severity, rows, metric), partial(_severity_table, rows, metric))


def _draw_severity(rows: tuple[Row, ...], metric: str) -> Any:
    from .plots_corruptions import corruption_figure

    return corruption_figure(rows, metric)


def _severity_table(rows: tuple[Row, ...], metric: str) -> Table:
    from .plots_corruptions import severity_curve

    families = [family for family in dict.fromkeys(row["family"] for row in rows if not is_mean(row)) if family]
    lines = {family: dict(zip(*severity_curve(rows, metric, family), strict=True)) for family in families}
    lines["mean"] = dict(zip(*severity_curve(rows, metric), strict=True))
    if metric == "ece_15" and "ece_15_scaled" in rows[0]:
        lines["mean, temperature-scaled"] = dict(zip(*severity_curve(rows, "ece_15_scaled"), strict=True))
    levels = sorted({level for line in lines.values() for level in line})
    body = tuple({"severity": level} | {name: line.get(level) for name, line in lines.items()} for level in levels)
    columns = (Column("severity", "severity", "count"), *(Column(name, name) for name in lines))
    return Table("Numbers of the figure", "Unweighted means.", columns, body)
