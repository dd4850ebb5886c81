"""The study's raw rows: one CSV a setting, one line a run. Every figure of the document is computed from them."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ebmhybrid.errors import DataError, UsageError
from ebmhybrid.training.atomic import write_atomically

IDENTITY = ("setting", "changes", "seed")
FACTS = ("device", "torch", "precision", "threads", "commit")
_SETTING = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class Row:
    """One run: what was trained, what was measured of it and on what.

    Attributes:
        changes: the overrides beyond the setting's own, in one canonical text; '' for cross-entropy alone.
        figures: by name; what was not measured is not there. Shares are in [0, 1], times in their names' unit.
        facts: some of `FACTS`.
    """

    setting: str
    changes: str
    seed: int
    figures: dict[str, float]
    facts: dict[str, str]


def read(folder: Path) -> list[Row]:
    """All rows of a folder, by setting, changes and seed; none where there is no such folder.

    Raises:
        DataError: a file that :func:`append` cannot have written.
    """
    return [row for path in sorted(Path(folder).glob("*.csv")) for row in _rows_of(path)]


def append(folder: Path, row: Row) -> None:
    """Add a run to its setting's file, in place of the row with the same changes and seed if there is one.

    Processes may append at the same time, and one killed meanwhile leaves the former file or the new one.

    Raises:
        UsageError: a setting that is no file's name, an unknown fact, a figure under the name of another column.
        DataError: the file that is there is malformed; it stays as it is.
    """
    _check(row)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row.setting}.csv"
    with _alone(folder):
        rows = {(old.changes, old.seed): old for old in _rows_of(path)} if path.exists() else {}
        text = _written((rows | {(row.changes, row.seed): row}).values())
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline=""))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process holds the folder; the lock is the system's and ends with the process."""
    import fcntl  # not on Windows, where the rows can still be read

    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _check(row: Row) -> None:
    if not _SETTING.fullmatch(row.setting):
        raise UsageError(f"setting {row.setting!r} names no file: use lower-case letters, digits, - and _")
    unknown = row.facts.keys() - set(FACTS)
    if unknown:
        raise UsageError(f"facts {sorted(unknown)} are unknown; valid: {', '.join(FACTS)}")
    taken = {name for name in row.figures if not name or name in (*IDENTITY, *FACTS)}
    if taken:
        raise UsageError(f"figures {sorted(taken)} have the names of other columns")


def _written(rows: Iterable[Row]) -> str:
    """A file's text, in an order that does not depend on when the runs ended."""
    rows = sorted(rows, key=lambda row: (row.changes, row.seed))
    names = sorted({name for row in rows for name in row.figures})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*IDENTITY, *FACTS, *names])
    for row in rows:
        facts = [row.facts.get(name, "") for name in FACTS]
        figures = [repr(float(row.figures[name])) if name in row.figures else "" for name in names]
        writer.writerow([row.setting, row.changes, row.seed, *facts, *figures])
    return text.getvalue()


def _rows_of(path: Path) -> list[Row]:
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    header, first = lines[0] if lines else [], len(IDENTITY) + len(FACTS)
    names = header[first:]
    if header[:first] != [*IDENTITY, *FACTS]:
        raise DataError(f"{path}: the first columns are {header[:first]}, not {[*IDENTITY, *FACTS]}")
    if len(set(header)) < len(header) or "" in names:
        raise DataError(f"{path}: a column has no name or that of another one")
    rows: dict[tuple[str, int], Row] = {}
    for number, cells in enumerate(lines[1:], 2):
        row = _row(cells, names, f"{path}, row {number}")
        if row.setting != path.stem:
            raise DataError(f"{path}, row {number}: setting {row.setting!r} in a file of {path.stem!r}")
        if (row.changes, row.seed) in rows:
            raise DataError(f"{path}, row {number}: a second row of seed {row.seed} of {row.changes!r}")
        rows[row.changes, row.seed] = row
    return list(rows.values())


def _row(cells: list[str], names: list[str], where: str) -> Row:
    first = len(IDENTITY) + len(FACTS)
    if len(cells) != first + len(names):
        raise DataError(f"{where}: {len(cells)} cells under {first + len(names)} columns")
    try:
        seed = int(cells[2])
        figures = {name: float(cell) for name, cell in zip(names, cells[first:], strict=True) if cell}
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    facts = {name: cell for name, cell in zip(FACTS, cells[len(IDENTITY) : first], strict=True) if cell}
    return Row(cells[0], cells[1], seed, figures, facts)
