"""A part of a report as plain data: what it is called, what it says, its tables and its figures.

The page of one evaluation, the text on a terminal and the page that compares evaluations are all rendered from these,
so that a figure is formatted in one place and a new part of the suite is one more :class:`Section`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .formats import DASH, count, in_255, interval, percent, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
KINDS = ("text", "number", "percent", "count", "eps", "given")


@dataclass(frozen=True)
class Cell:
    """What a cell shows and, in a column of numbers, the number it sorts by; `best` sets it off."""

    text: str
    value: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A column: the rows' key, the heading and how a value is shown.

    Attributes:
        kind: "text"; "number" with fixed digits; "percent" of a share; "count"; "eps", in 1/255 where that is short;
            "given", a number as its source prints it.
        low, high: keys of an interval's bounds, shown beside the value where a row has them; "" for none.
        scale: what a "number" is multiplied by where it is shown; it sorts as it is.
        wrap: long text that may break over lines.
        stacked: the interval stands below the value, on a page.
    """

    key: str
    heading: str
    kind: str = "number"
    digits: int = 4
    low: str = ""
    high: str = ""
    wrap: bool = False
    scale: float = 1.0
    stacked: bool = False

    @property
    def numeric(self) -> bool:
        """Whether it sorts by number."""
        return self.kind != "text"

    def cell(self, row: Row) -> Cell:
        """The cell of a row; a dash where the row has nothing under the key."""
        value = row.get(self.key)
        if isinstance(value, Cell):
            return value
        if value is None or value == "":
            return Cell(DASH)
        if not self.numeric or isinstance(value, (str, bool)):
            return Cell(str(value))
        return Cell(self._shown(value, row), None if math.isnan(value) else float(value))

    def _shown(self, value: float, row: Row) -> str:
        if self.kind == "given":
            return str(value)
        if self.kind == "count":
            return count(value)
        if self.kind == "eps":
            return in_255(value)
        bounds = row.get(self.low), row.get(self.high)
        if self.kind == "percent":
            return percent(value, *bounds)
        low, high = (None if bound is None else self.scale * bound for bound in bounds)
        return interval(self.scale * value, low, high, self.digits)


def bounded(
    key: str, heading: str, kind: str = "number", digits: int = 4, scale: float = 1.0, stacked: bool = False
) -> Column:
    """A column with the interval `<key>_low` to `<key>_high`."""
    return Column(key, heading, kind, digits, f"{key}_low", f"{key}_high", scale=scale, stacked=stacked)


@dataclass(frozen=True)
class Table:
    """Rows under columns; rows of means stand below the others and are sorted among themselves.

    Attributes:
        title: short name, for screen readers and terminals.
        caption: a sentence or two on how to read it.
    """

    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    means: tuple[Row, ...] = ()

    @property
    def shown(self) -> tuple[Column, ...]:
        """The columns that at least one row says something in; the first one always."""
        rows = (*self.rows, *self.means)
        first, *rest = self.columns
        return (first, *(column for column in rest if any(row.get(column.key) not in (None, "") for row in rows)))

    def cells(self, rows: Iterable[Row]) -> list[list[Cell]]:
        """The cells of some of its rows under the shown columns."""
        return [[column.cell(row) for column in self.shown] for row in rows]

    def as_text(self) -> str:
        """The table for a terminal: numbers to the right, long names shortened."""
        head = [shortened(column.heading) for column in self.shown]
        body = [[shortened(cell.text, 40) for cell in line] for line in self.cells((*self.rows, *self.means))]
        widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
        sides = [">" if column.numeric else "<" for column in self.shown]
        lines = (
            "  ".join(f"{text:{side}{width}}" for text, side, width in zip(line, sides, widths, strict=True))
            for line in (head, *body)
        )
        return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True)
class Drawing:
    """A figure and the numbers behind it; both are made when asked for.

    Attributes:
        name: file name without ending, unique in a report.
        group: heading under which it stands, such as an OOD set; "" for none.
    """

    name: str
    caption: str
    draw: Callable[[], Figure] = field(repr=False)
    numbers: Callable[[], Table] = field(repr=False)
    group: str = ""


@dataclass(frozen=True)
class Card:
    """A headline figure at the top of the page: its name, its value and what stands behind it."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class Line:
    """A line of the terminal's summary: name, value and note such as n."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        key: id on the page, also the name in `results.json` where there is one.
        text, warnings: paragraphs, plain and set off.
        lines: its main figures for a terminal.
        details: (summary, preformatted text) to unfold.
    """

    key: str
    title: str
    text: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    lines: tuple[Line, ...] = ()
    card: Card | None = None
    details: tuple[tuple[str, str], ...] = ()

    @property
    def groups(self) -> dict[str, list[Drawing]]:
        """Heading -> its figures, in order."""
        found: dict[str, list[Drawing]] = {}
        for drawing in self.drawings:
            found.setdefault(drawing.group, []).append(drawing)
        return found


def lines_as_text(lines: Iterable[Line], most: int = 48) -> str:
    """Lines in three columns; a value longer than `most` does not push the other lines' notes to the right."""
    lines = tuple(lines)
    name_width = max((len(line.name) for line in lines), default=0)
    value_width = max((len(line.value) for line in lines if len(line.value) <= most), default=0)
    return "\n".join(f"{line.name:<{name_width}}  {line.value:<{value_width}}  {line.note}".rstrip() for line in lines)
