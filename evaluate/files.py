"""An evaluation on disk: everything is written beside the folder and then takes its place, or nothing is."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from ebmhybrid.errors import EbmhybridError

from .tables import COLUMNS

if TYPE_CHECKING:
    from .results import SuiteResult

OURS = frozenset({"results.json", "results.csv", "report.html", "scores.npz", "figures"})


def save(result: SuiteResult, folder: Path) -> Path:
    """Write the result into a folder that is new, empty, or an earlier evaluation; returns the folder."""
    from .plots import to_svg
    from .report import figures_of, render

    with replaced(folder) as fresh:
        (fresh / "results.json").write_text(dumps(result.as_dict()), encoding="utf-8")
        with (fresh / "results.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(result.rows)
        arrays: dict[str, Any] = _score_arrays(result)
        np.savez_compressed(fresh / "scores.npz", **arrays)
        drawn = {name: to_svg(figure, name) for name, figure in figures_of(result).items()}
        (fresh / "figures").mkdir()
        for name, svg in drawn.items():
            (fresh / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
        (fresh / "report.html").write_text(render(result, drawn), encoding="utf-8")
    return folder


@contextmanager
def replaced(folder: Path, what: str = "the evaluation") -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the block ends without an error, else vanishes.

    Arguments:
        what: is written, for messages.

    Raises:
        EbmhybridError: `folder` is a file, holds anything that is not an evaluation's, or cannot be written.
    """
    folder = Path(folder).absolute()
    check_replaceable(folder, what)
    fresh = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.new")
    old = fresh.with_suffix(".old")
    try:
        fresh.mkdir(parents=True)
        yield fresh
        flush(fresh)
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    except OSError as error:
        raise EbmhybridError(f"cannot write {what} to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Bring a file, or every file of a folder, to the disk, before it gets the name under which it is looked for."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())


def check_replaceable(folder: Path, what: str = "the evaluation") -> None:
    """Refuse to replace what is not ours: replacing a folder removes what it held."""
    check_folder(folder, what)
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in OURS) if folder.exists() else []
    if foreign:
        raise EbmhybridError(
            f"cannot write {what} to {folder}: it holds {foreign[0]!r}, which is no part of one;"
            " choose a new or an empty folder"
        )


def check_folder(folder: Path, what: str) -> None:
    """An error for a path that is no folder's."""
    if not folder.name:
        raise EbmhybridError(f"cannot write {what} to {folder}: name a folder")
    try:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise EbmhybridError(f"cannot write {what} to {folder}: it is not a folder")
    except OSError as error:  # a path through a file
        raise EbmhybridError(f"cannot write {what} to {folder}: {error.strerror}") from error


def check_writable(path: Path, what: str) -> None:
    """An error where `path` could not be made, said before the work that it would be made for."""
    try:
        there = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryDirectory(dir=there, prefix="."):
            pass
    except OSError as error:
        raise EbmhybridError(f"cannot write {what} to {path}: {error.strerror or error}") from error


def dumps(content: Any) -> str:
    """JSON that every parser reads: NaN and infinities become null, numpy scalars numbers, paths strings.

    >>> dumps({"a": float("nan")})
    '{\\n  "a": null\\n}\\n'
    """
    return json.dumps(_plain(content), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def slug(name: str) -> str:
    """A name as part of a file name.

    >>> slug("npz:/data/my set.npz")
    'npz-data-my-set-npz'
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60] or "set"


def slugs(names: list[str]) -> dict[str, str]:
    """name -> slug, numbered where two names share one.

    >>> slugs(["a:b", "a/b"])
    {'a:b': 'a-b', 'a/b': 'a-b-2'}
    """
    found: dict[str, str] = {}
    for name in names:
        base = candidate = slug(name)
        number = 2
        while candidate.lower() in {used.lower() for used in found.values()}:
            candidate, number = f"{base}-{number}", number + 1
        found[name] = candidate
    return found


def _score_arrays(result: SuiteResult) -> dict[str, np.ndarray]:
    """`test.<score>` and `ood-<set>.<score>` -> float64 scores."""
    arrays = {f"test.{score}": values for score, values in result.test_scores.items()}
    if result.ood:
        for name, part in slugs(list(result.ood.ood_scores)).items():
            arrays |= {f"ood-{part}.{score}": values for score, values in result.ood.ood_scores[name].items()}
    return arrays
