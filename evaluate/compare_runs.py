"""Evaluations side by side: what their results.json say, a column a run, as text and as one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from ebmhybrid.errors import EbmhybridError, UsageError

from .files import flush
from .sections import Section
from .tables import SHAPES, long_of

SCHEMA_VERSIONS = ("1", "2")


@dataclass(frozen=True)
class Run:
    """One evaluation: the name of its column, where it was read from and what its results.json holds."""

    label: str
    path: Path
    content: Mapping[str, Any] = field(repr=False)

    @property
    def parts(self) -> dict[str, list[dict[str, Any]]]:
        """Section -> wide rows; a part that did not run is left out."""
        return {name: self.content[name]["rows"] for name in SHAPES if self.content.get(name)}


@dataclass(frozen=True)
class Comparison:
    """Several evaluations, in the order given.

    Attributes:
        notes: why figures of different runs may not be comparable: other data, another n, no temperature.
    """

    runs: tuple[Run, ...]
    notes: tuple[str, ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A long table, one figure a row: run, section, set, name, metric, value, low, high, n, n_ood."""
        return [{"run": run.label} | row for run in self.runs for row in long_of(run.parts)]

    @property
    def sections(self) -> tuple[Section, ...]:
        """What the page says."""
        from .compare_sections import comparison_sections

        return comparison_sections(self.runs)

    def as_dict(self) -> dict[str, Any]:
        """Labels, paths, notes and rows, ready for JSON."""
        runs = [{"label": run.label, "path": str(run.path)} for run in self.runs]
        return {"runs": runs, "notes": list(self.notes), "rows": self.rows}

    def table(self) -> str:
        """Notes and tables as plain text; the published figures are on the page alone."""
        from .compare_sections import MARKS

        parts = [*self.notes, MARKS]
        for section in self.sections:
            if section.key != "published":
                parts += section.text if section.key != "runs" else ()  # which tells of the page
                parts += [f"{table.title}\n{table.as_text()}" for table in section.tables]
        return "\n\n".join(parts)

    def save(self, folder: str | Path) -> Path:
        """Write compare.html into a folder, which is made where it is missing; returns the page's path.

        Raises:
            EbmhybridError: it cannot be written.
        """
        from .plots import to_svg
        from .report import render_page

        sections = self.sections
        drawn = {item.name: to_svg(item.draw(), item.name) for section in sections for item in section.drawings}
        title = "Comparison of evaluations"
        page = render_page(title, title, ", ".join(run.label for run in self.runs), sections, drawn, self.notes)
        target = Path(folder) / "compare.html"
        fresh = target.with_name(f".{target.name}.{uuid4().hex[:8]}.new")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(page, encoding="utf-8")
            flush(fresh)
            fresh.replace(target)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise EbmhybridError(f"cannot write {target}: {error.strerror or error}") from error
        return target


def compare_results(paths: Sequence[str | Path]) -> Comparison:
    """Read evaluations that were saved and put them side by side.

    Arguments:
        paths: two or more; each a results.json, the folder of an evaluation or a probe, or a run directory, which
            stands for the newest of both in it.

    Raises:
        UsageError: fewer than two, or one twice.
        EbmhybridError: no results there, or they cannot be read; the message names the path.
    """
    given = [Path(path) for path in paths]
    files = [_find(path) for path in given]
    if len(files) < 2:
        raise UsageError(f"need at least two evaluations to compare, got {len(files)}")
    for i, file in enumerate(files):
        if file.resolve() in {other.resolve() for other in files[:i]}:
            raise UsageError(f"{given[i]} is given twice: {file}")
    contents = [_read(file) for file in files]
    names = labels(given, [str(content["context"].get("model") or "") for content in contents])
    runs = tuple(Run(*parts) for parts in zip(names, files, contents, strict=True))
    for run in runs:
        _check_rows(run)
    return Comparison(runs, _notes(runs))


def _find(path: Path) -> Path:
    """The results.json that a path means."""
    if not path.exists():
        raise EbmhybridError(f"{path}: no such file or folder")
    if path.is_file():
        return path
    if (path / "results.json").is_file():
        return path / "results.json"
    found = [file for kind in ("eval", "probe") for file in path.glob(f"{kind}/*/results.json")]
    found = [file for file in found if not file.parent.name.startswith(".")]  # one that was killed while it was written
    if not found:
        raise EbmhybridError(
            f"{path}: no evaluation there, neither results.json nor eval/*/ nor probe/*/; run `ebmhybrid eval`, or "
            "`ebmhybrid probe` for an encoder-decoder"
        )
    return max(found, key=lambda file: file.stat().st_mtime_ns)


def _read(file: Path) -> dict[str, Any]:
    """The content of a results.json whose outer form is as it should be."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EbmhybridError(f"{file}: not the results of an evaluation ({type(error).__name__})") from error
    if not isinstance(content, dict) or "schema_version" not in content:
        raise EbmhybridError(f"{file}: not the results of an evaluation: it has no schema_version")
    if str(content["schema_version"]) not in SCHEMA_VERSIONS:
        raise EbmhybridError(
            f"{file}: schema_version is {content['schema_version']!r}, and this version of ebmhybrid reads "
            f"{' and '.join(SCHEMA_VERSIONS)}; evaluate again, or install a newer version"
        )
    if "accuracy" not in content and isinstance(content.get("generation"), dict):
        raise EbmhybridError(
            f"{file}: what `ebmhybrid sample` found, no evaluation; `ebmhybrid eval RUN --samples N` has samples in one"
        )
    for key, kind in (("context", dict), ("versions", dict), ("sets", list), ("accuracy", dict)):
        if not isinstance(content.get(key), kind):
            raise EbmhybridError(f"{file}: damaged results: {key!r} is missing or of the wrong type")
    for key in SHAPES:
        part = content.get(key)
        rows = part.get("rows") if isinstance(part, dict) else None
        if part is not None and not (isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)):
            raise EbmhybridError(f"{file}: damaged results: {key!r} holds no rows")
    return content


def _check_rows(run: Run) -> None:
    """Rows that lack what identifies them are found here, not in the middle of a page."""
    from .compare_parts import PARTS

    try:
        long_of(run.parts)
        for part in PARTS:
            for row in run.parts.get(part.key, ()):
                part.name(row)
        alone = Comparison((run,), _notes((run,)))
        alone.table()
        for section in alone.sections:
            for table in section.tables:
                table.as_text()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
        raise EbmhybridError(f"{run.path}: damaged results ({type(error).__name__}: {error})") from error


def labels(paths: Sequence[Path], models: Sequence[str]) -> list[str]:
    """A short name for each run: its model's where these differ, else what tells the paths apart.

    >>> labels([Path("runs/a/1"), Path("runs/b/1")], ["hdge", "hdge"])
    ['a', 'b']
    >>> labels([Path("a"), Path("b")], ["hdge", "jem"])
    ['hdge', 'jem']
    """
    if all(models) and len(set(models)) == len(models):
        return list(models)
    parts = [path.absolute().parts for path in paths]
    start = _shared(parts)
    end = min(_shared([part[::-1] for part in parts]), min(map(len, parts)) - start)
    # One path inside another leaves nothing of the shorter: there the whole paths are the names.
    return ["/".join(part[start : len(part) - end]) or str(path) for part, path in zip(parts, paths, strict=True)]


def _shared(parts: Sequence[tuple[str, ...]]) -> int:
    """How many leading names all paths have in common."""
    columns = list(zip(*parts, strict=False))
    return next((i for i, names in enumerate(columns) if len(set(names)) > 1), len(columns))


def _notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """What makes the runs' figures differ besides the models."""
    from .report_confidence import doubted
    from .report_sections import trained_on_data

    notes = []
    if doubtful := [run.label for run in runs if doubted(run.parts.get("calibration", ()))]:
        notes.append(
            f"The temperature is not identified by the held-out images of {', '.join(doubtful)}: figures after "
            "temperature or vector scaling say nothing there, and such rows have no mark."
        )
    tests = {run.label: run.content["accuracy"]["rows"][0] for run in runs}
    if len({(row.get("set"), row.get("n")) for row in tests.values()}) > 1:
        which = "; ".join(f"{label}: {row.get('set')}, n = {row.get('n')}" for label, row in tests.items())
        notes.append(f"The runs were tested on different data or on another number of images. {which}.")
    trained = {label: trained_on_data(run.content["context"], "") for label, run in zip(tests, runs, strict=True)}
    if len(set(trained.values())) > 1:
        which = "; ".join(f"{label}: {data or 'not told'}" for label, data in trained.items())
        notes.append(f"The runs were trained on different data. {which}.")
    for role, name in sorted({(str(row.get("role")), str(row.get("name"))) for run in runs for row in _sets(run)}):
        same = [row for run in runs for row in _sets(run) if (row.get("role"), row.get("name")) == (role, name)]
        known = {(row.get("digest"), row.get("n")) for row in same}
        if len(known) > 1:
            notes.append(f"The {role} set {name} does not hold the same images in all runs (digest or n differs).")
        elif len(same) > 1 and next(iter(known))[0] is None:
            notes.append(f"Whether the {role} set {name} holds the same images in all runs is unknown: no digest.")
    return tuple(notes)


def _sets(run: Run) -> list[Mapping[str, Any]]:
    return [row for row in run.content["sets"] if isinstance(row, dict)]
