"""docs/study.md and its figures, written from the rows and the prose of `findings.md.jinja` and from nothing else.

`findings.md.jinja` holds macros without arguments: `opening`, `method` and `missing` stand in the first parts, one of a
table's name (- as _) below that table. The methods of :class:`benchmarks.study.quoted.Quoted` insert figures.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.study import figures, markdown
from benchmarks.study.blocks import blocks
from benchmarks.study.measure import ATTACKED, CORRUPTED, STRANGERS
from benchmarks.study.quoted import Quoted
from benchmarks.study.rows import Row, read
from benchmarks.study.settings import SETTINGS, Setting
from benchmarks.study.tables import TABLES, Table
from benchmarks.study.tried import compared, tried
from benchmarks.study.tune import LOST
from ebmhybrid.errors import UsageError, nearest

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
FINDINGS = HERE / "findings.md.jinja"
IMAGES = "study"  # the folder of the figures, beside the document
TITLES = {"digits": "digits", "fashion": "Fashion-MNIST", "cifar10": "CIFAR-10"}  # of the data that was tuned on
_ALT = {
    "far": "energy AUROC of the far sets against accuracy",
    "sets": "energy AUROC by OOD set",
    "eps": "robust accuracy over eps",
    "sweep": "what the hyper-parameter changes",
}
_QUOTED = (
    "value",
    "mean",
    "std",
    "n",
    "near",
    "far",
    "diff",
    "interval",
    "moved",
    "p",
    "verdict",
    "span",
    "std_span",
    "seeds",
)


def write(
    rows_folder: Path,
    docs_folder: Path,
    tables: Mapping[str, Table] = TABLES,
    settings: Mapping[str, Setting] = SETTINGS,
    findings: Path = FINDINGS,
) -> list[Path]:
    """Write study.md and the figures that it shows; returns the files.

    Raises:
        DataError: malformed rows.
        UsageError: prose for a table, or of a figure, that there is none of.
    """
    rows = read(rows_folder)
    quoted = Quoted(rows, tables, settings)
    document, images = Path(docs_folder, "study.md"), Path(docs_folder, IMAGES)
    images.mkdir(parents=True, exist_ok=True)
    page = text(rows, tables, settings, findings)
    document.write_text(page, encoding="utf-8")
    files, styled = [document], figures.styles(tables.values())
    if (readme := Path(docs_folder).parent / "README.md").is_file():
        readme.write_text(with_claims(readme.read_text(encoding="utf-8"), page), encoding="utf-8")
        files.append(readme)
    for name, table in tables.items():
        for kind in figures.kinds(quoted.runs(name), bool(table.sweep)):
            files.append(images / f"{name}_{kind}.png")
            figures.save(figures.draw(kind, quoted.runs(name), table, styled), files[-1])
    return files


def with_claims(readme: str, page: str) -> str:
    """The README with the document's opening between its two marks; as it is where there are none."""
    begin, end = "<!-- the study's opening -->\n", "<!-- end -->"
    if begin not in readme:
        return readme
    opening = page.split("\n", 2)[2].partition("\nThis page and its figures")[0].strip()
    opening = re.sub(r"\]\((?!https?:|\.\./)([^)]+)\)", r"](docs/\1)", opening).replace("](../", "](")
    before, _, rest = readme.partition(begin)
    return before + begin + opening + "\n" + rest[rest.index(end) :]


def text(
    rows: Iterable[Row],
    tables: Mapping[str, Table] = TABLES,
    settings: Mapping[str, Setting] = SETTINGS,
    findings: Path = FINDINGS,
) -> str:
    """study.md: the same text for the same rows, tables and prose."""
    rows = list(rows)
    quoted = Quoted(rows, tables, settings)
    environment = _environment(quoted)
    prose = environment.from_string(findings.read_text(encoding="utf-8") if findings.exists() else "").module
    shown = [_shown(name, table, quoted, settings[table.setting]) for name, table in tables.items()]
    _check_names(prose, [table["macro"] for table in shown])
    page = environment.from_string((HERE / "study.md.jinja").read_text(encoding="utf-8")).render(
        findings=prose,
        settings=_by_setting([table for table in shown if not table["sweep"]], settings, {row.setting for row in rows}),
        sweeps=[table for table in shown if table["sweep"]],
        machines=_machines(rows, settings),
        tuned=_tuned(rows, settings),
        better=markdown.BETTER,
        worse=markdown.WORSE,
        level=markdown.LEVEL,
        sizes={"attacked": ATTACKED, "corrupted": CORRUPTED, "strangers": STRANGERS},
        lost=100 * LOST,
        compared=compared(TITLES),
    )
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


def _environment(quoted: Quoted) -> Environment:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.globals |= {name: getattr(quoted, name) for name in _QUOTED}
    return environment


def _check_names(prose: Any, tables: Sequence[str]) -> None:
    """A macro of no table would be prose that nobody sees."""
    places = {"opening", "method", "missing", *tables}
    for name in vars(prose):
        if not name.startswith("_") and name not in places:
            raise UsageError(f"{FINDINGS.name}: macro {name!r} has no place; {nearest(name, places)}")


def _shown(name: str, table: Table, quoted: Quoted, setting: Setting) -> dict[str, Any]:
    """What the template needs of a table."""
    runs = quoted.runs(name)
    drawn = figures.kinds(runs, bool(table.sweep))
    return {
        "name": name,
        "macro": name.replace("-", "_"),
        "setting": table.setting,
        "title": table.title,
        "note": table.note,
        "sweep": table.sweep,
        "blocks": blocks(runs, table, setting),
        "figures": [(f"{IMAGES}/{name}_{kind}.png", f"{table.title}: {_ALT[kind]}") for kind in drawn],
    }


def _by_setting(
    shown: Sequence[dict[str, Any]], settings: Mapping[str, Setting], measured: Collection[str]
) -> list[dict[str, Any]]:
    """What the template needs of a setting; `rows` where it has a file of them."""
    return [
        {
            "name": name,
            "title": setting.title,
            "near": setting.near,
            "far": setting.far,
            "tables": own,
            "rows": name in measured,
        }
        for name, setting in settings.items()
        if (own := [table for table in shown if table["setting"] == name])
    ]


def _tuned(rows: Sequence[Row], settings: Mapping[str, Setting]) -> list[tuple[str, str, str]]:
    """(data, title, table) of what was tried on it."""
    of = {name.removeprefix("tuning_"): setting for name, setting in settings.items() if setting.tuning}
    return [(data, setting.title, found) for data, setting in of.items() if (found := tried(data, rows))]


def _machines(rows: Iterable[Row], settings: Mapping[str, Setting]) -> str:
    """How many runs each setting has on which kind of machine."""
    seen: dict[tuple[str, ...], int] = {}
    for row in rows:
        kind = (row.setting, *(row.facts.get(name, "") for name in ("device", "torch", "precision", "threads")))
        seen[kind] = seen.get(kind, 0) + 1
    header = ("setting", "device", "torch", "precision", "threads")
    order = list(settings)
    lines = [
        dict(zip(header, kind, strict=True)) | {"runs": str(seen[kind])}
        for kind in sorted(seen, key=lambda kind: (order.index(kind[0]) if kind[0] in order else len(order), kind))
    ]
    return markdown.plain(lines) if lines else ""
