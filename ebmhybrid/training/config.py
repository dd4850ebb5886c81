"""The recipe of a run as its config.yaml keeps it: with a checksum, since defaults would fill what is cut off."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ebmhybrid.errors import CheckpointError
from ebmhybrid.schema import Recipe
from ebmhybrid.training.atomic import write_atomically

MARK = "# sha256 of the lines above: "


def write_config(path: Path, recipe: Recipe) -> None:
    """The recipe with every default, and its checksum as a comment in the last line."""
    text = recipe.to_yaml()
    write_atomically(path, lambda temporary: temporary.write_text(f"{text}{MARK}{_digest(text)}\n", encoding="utf-8"))


def check_config(path: Path) -> None:
    """An error unless the file is as `write_config` wrote it.

    Raises:
        CheckpointError: it was cut or edited, or cannot be read.
    """
    try:
        text, found, digest = path.read_text(encoding="utf-8").rpartition(MARK)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__})") from error
    if not found or digest.strip() != _digest(text):
        raise CheckpointError(
            f"{path}: is not as the run wrote it (its sha256 differs): put it back, and name changes as KEY=VALUE"
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
