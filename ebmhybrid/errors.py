"""What a user can get wrong. Each message names the thing, its value and what would be right, in one line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class EbmhybridError(ValueError):
    """A mistake of input, not of the library: the command line prints it in one line and exits with status 1."""


class UsageError(EbmhybridError):
    """A name or an option that the caller gave and that there is none of: the command line exits with status 2."""


class RecipeError(UsageError):
    """A recipe or an override that cannot be used."""


class DataError(EbmhybridError):
    """A data set that is missing, malformed or does not fit."""


class CheckpointError(EbmhybridError):
    """A run directory or a weight file that is missing, damaged or of another model."""


class TrainingError(EbmhybridError):
    """Training that cannot go on, such as a loss that is no longer finite."""


class ElsewhereError(TrainingError):
    """Another process of the training has failed, and says why itself."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid one, or all of them.

    >>> nearest("enery", ["energy", "msp"])
    "did you mean 'energy'?"
    >>> nearest("x", ["energy", "msp"])
    'valid: energy, msp'
    """
    valid = sorted(valid)
    # Of dotted keys only the last parts are compared: a long common prefix would make any two look alike.
    ends = {key.rpartition(".")[2]: key for key in reversed(valid)} if "." in name else {key: key for key in valid}
    close = get_close_matches(name.rpartition(".")[2] if "." in name else name, ends, n=1, cutoff=0.6)
    return f"did you mean {ends[close[0]]!r}?" if close else f"valid: {', '.join(valid)}"
