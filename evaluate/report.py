"""report.html: one self-contained page, for phones too, in light and dark, without a network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from .formats import count
from .report_sections import sections_of
from .report_sections import trained_on as trained_on
from .sections import Cell, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .results import SuiteResult


def figures_of(result: SuiteResult) -> dict[str, Figure]:
    """File name without ending -> figure, one panel each so that they stay legible on a narrow page."""
    return {drawing.name: drawing.draw() for section in sections_of(result) for drawing in section.drawings}


def render(result: SuiteResult, figures: Mapping[str, str]) -> str:
    """The page; `figures` are SVG documents under the names of :func:`figures_of`, put into the page itself."""
    row, limit = result.accuracy.rows[0], result.settings.get("limit")
    lead = f"Evaluated on {row['set']}, {count(row['n'])} images."
    if limit:
        lead += f" At most {count(limit)} images of each set were used."
    title = str(result.context.get("model") or "Evaluation")
    return render_page(f"{title}: evaluation", title, lead, sections_of(result), figures)


def render_page(
    name: str, title: str, lead: str, sections: Iterable[Section], figures: Mapping[str, str], notes: Iterable[str] = ()
) -> str:
    """A page of sections: `name` is the window's title; `notes` are set off below the title."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sortable"] = sortable
    return environment.get_template("report.html.jinja").render(
        name=name,
        title=title,
        lead=lead,
        notes=list(notes),
        sections=list(sections),
        figures={key: Markup(inline(svg)) for key, svg in figures.items()},
    )


def sortable(cell: Cell) -> str:
    """What the page's script sorts a number by: digits that JavaScript reads, nothing where there is no number.

    >>> sortable(Cell("50 %", 0.5)), sortable(Cell("inf", float("inf"))), sortable(Cell("–"))
    ('0.5', 'Infinity', '')
    """
    return "" if cell.value is None else repr(cell.value).replace("inf", "Infinity")


def inline(svg: str) -> str:
    """An SVG document as a part of an HTML page: no XML head, no namespaces, no metadata, hidden from screen readers.

    The figure around it has the text alternative. HTML knows the namespaces of SVG itself.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg, count=2)
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()


def _template(name: str) -> Any:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
