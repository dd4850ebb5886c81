"""Which run is the newest: by names that never go backwards, and by times where these can be true."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

ZONES = 26 * 3600.0  # seconds between the clocks on two walls of the earth
SKEW = 60.0  # seconds that a file server's clock may be ahead
_STAMPED = re.compile(r"(\d{8}-\d{6})(?:-(\d+))?")


def name_order(name: str) -> tuple[str, int]:
    """Where a folder that `fresh_folder` made stands among its siblings; other names come before all of them.

    >>> sorted(["20260101-120000-10", "20260101-120000-2", "mine", "20260101-120000"], key=name_order)
    ['mine', '20260101-120000', '20260101-120000-2', '20260101-120000-10']
    """
    found = _STAMPED.fullmatch(name)
    return (found[1], int(found[2] or 1)) if found else ("", 0)


def last_written(times: Mapping[Path, float]) -> Path:
    """The run that was written last.

    A time that lies in the future, or before the one in the run's own name, tells of a clock that was wrong or of files
    that were copied. Such a run counts as written right after its sibling that comes before it by name, and as the
    oldest where it has none.

    Arguments:
        times: run directory -> seconds since 1970 at which it was written; not empty.

    >>> last_written({Path("a"): 1e9, Path("b"): 1.5e9, Path("c"): 1e12}).name
    'b'
    """
    ranks: dict[Path, tuple[float, int, float]] = {}
    latest: dict[Path, tuple[float, int]] = {}  # of each parent's runs so far: a time, and how many have come after it
    for run in sorted(times, key=lambda run: name_order(run.name)):
        stamp, _ = name_order(run.name)
        before, after = latest.get(run.parent, (-math.inf, 0))
        if _is_plausible(stamp, times[run]):
            rank = times[run], 0
        elif stamp:
            rank = before, after + 1
        else:
            rank = -math.inf, 0
        if stamp:  # other names tell no order
            latest[run.parent] = max((before, after), rank)
        ranks[run] = (*rank, times[run])
    return max(ranks, key=ranks.__getitem__)


def _is_plausible(stamp: str, written: float) -> bool:
    """Whether a run can have been written then: not after now, and not before it began, in any time zone."""
    try:
        begun = datetime.strptime(stamp, "%Y%m%d-%H%M%S").timestamp() if stamp else -math.inf
    except (ValueError, OverflowError, OSError):  # digits that are no date
        begun = -math.inf
    return begun - ZONES <= written <= time.time() + SKEW
