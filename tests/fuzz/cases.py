"""How many cases a fuzz test tries, and files that were damaged at random."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebmhybrid.errors import EbmhybridError

NIGHTLY = os.environ.get("EBMHYBRID_FUZZ") == "nightly"
COUNT = {"cases": 0}
# What parsers stumble on: ends, signs, lengths, and the opcodes of a pickle that name, call and make large things.
PIECES = [
    b"\0",
    b"\xff",
    b"\xff" * 4,
    b"\x7f" + b"\xff" * 7,
    b"9" * 12,
    b"-1",
    b"{",
    b"[" * 50,
    b"(",
    b"\n",
    b"PK\3\4",
    b"cos\nmkdir\n(VOWNED\ntR",
    b"\x8a\x08" + b"\x7f" * 8,
    b"j\xff\xff\xff\x7f",
    b"\x8e" + b"\xff" * 8,
]


def fuzz(few: int, many: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Run a test on `few` cases, always the same, or in the nightly profile on `many` new ones."""

    def decorate(test: Callable[..., None]) -> Any:
        @functools.wraps(test)
        def counted(*args: Any, **kwargs: Any) -> None:
            COUNT["cases"] += 1
            test(*args, **kwargs)

        profile = settings.get_profile("nightly" if NIGHTLY else "slice")
        return settings(profile, max_examples=many if NIGHTLY else few)(given(**strategies)(counted))

    return decorate


def attempt(read: Callable[[], Any], *wrong: type[EbmhybridError]) -> Any:
    """What is read, or None where it is refused as it should be: by our error, in one line."""
    try:
        return read()
    except wrong or EbmhybridError as error:  # noqa: B030
        refused = str(error)
    assert refused
    assert "\n" not in refused
    return None


def register_profiles() -> None:
    shared = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    settings.register_profile("slice", derandomize=True, **shared)
    settings.register_profile("nightly", print_blob=True, **shared)


register_profiles()


_PLACE = st.floats(0, 1, exclude_max=True)
_EDIT = st.one_of(
    st.tuples(st.just("flip"), _PLACE, st.integers(0, 7)),
    st.tuples(st.just("cut"), _PLACE, st.none()),
    st.tuples(st.just("drop"), _PLACE, st.integers(1, 64)),
    st.tuples(st.just("insert"), _PLACE, st.sampled_from(PIECES) | st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("put"), _PLACE, st.sampled_from(PIECES) | st.binary(min_size=1, max_size=8)),
)
# Edits of a file, in turn; places are fractions of its length, so that the same edits fit any file.
edits = st.lists(_EDIT, min_size=1, max_size=4)


def damaged(content: bytes, changes: list[tuple[str, float, Any]]) -> bytes:
    """The bytes after edits.

    >>> damaged(b"abcd", [("flip", 0.5, 0), ("insert", 0.0, b"-")])
    b'-abbd'
    """
    for kind, place, what in changes:
        at = int(place * len(content))
        before, after = content[:at], content[at:]
        if kind == "flip" and after:
            content = before + bytes([after[0] ^ 1 << what]) + after[1:]
        elif kind == "cut":
            content = before
        elif kind == "drop":
            content = before + after[what:]
        elif kind == "insert":
            content = before + what + after
        elif kind == "put":
            content = before + what + after[len(what) :]
    return content
