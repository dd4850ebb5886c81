"""The run directory and the files that say what was run, on what, with which data."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from ebmhybrid._version import __version__
from ebmhybrid.data.splits import described
from ebmhybrid.errors import CheckpointError
from ebmhybrid.training import checkpoint
from ebmhybrid.training.checkpoint import write_atomically
from ebmhybrid.training.setup import Parts

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pydantic", "safetensors")


def fresh_folder(parent: Path) -> Path:
    """Make <parent>/<date-time>, with a number behind it where that is taken, also by another process just now."""
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    for name in chain([stamp], (f"{stamp}-{number}" for number in count(2))):
        try:
            (parent / name).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise CheckpointError(f"{parent / name}: cannot be made ({error.strerror})") from error
        return parent / name
    raise AssertionError("unreachable")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One training at a time in a run directory; the lock goes with the process, however it ends.

    Raises:
        CheckpointError: another process trains there.
    """
    if fcntl is None:
        yield
        return
    try:
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(f"{folder}: another process is training there") from None
        try:
            yield
        finally:
            (folder / ".lock").unlink(missing_ok=True)


def check_unused(folder: Path) -> None:
    """A run is never written over anything: the directory must be missing or empty.

    Raises:
        CheckpointError: it is neither.
    """
    try:
        used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error
    if used:
        raise CheckpointError(f"{folder}: exists and is not an empty directory; take another --out, or --resume it")


def open_folder(folder: Path) -> Path:
    """Make a new run directory.

    Raises:
        CheckpointError: the directory is in use, or cannot be made or written.
    """
    check_unused(folder)
    try:
        (folder / "checkpoints").mkdir(parents=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be made ({error.strerror})") from error
    return folder


def write_records(folder: Path, parts: Parts) -> None:
    """config.yaml, the recipe with every default, and env.json: versions, machine, data."""
    config, environment = parts.recipe.to_yaml(), json.dumps(_environment(parts), indent=2) + "\n"
    write_atomically(folder / "config.yaml", lambda path: path.write_text(config, encoding="utf-8"))
    write_atomically(folder / "env.json", lambda path: path.write_text(environment, encoding="utf-8"))


def _environment(parts: Parts) -> dict[str, Any]:
    device = parts.device
    return {
        "ebmhybrid": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": str(parts.precision).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "data": parts.splits.record() | ({} if parts.outliers is None else {"reference": described(parts.outliers)}),
    }


def save(parts: Parts, folder: Path) -> None:
    """The last weights and the state to go on from."""
    checkpoint.save_weights(folder / "checkpoints" / "last.safetensors", parts.deployed, parts.metadata)
    state = {
        "format": checkpoint.FORMAT,
        "device": parts.device.type,
        "precision": str(parts.precision),
        "data": parts.splits.train.digest(),
        "outliers": None if parts.outliers is None else parts.outliers.digest(),
        "parts": parts.state_dict(),
    }
    checkpoint.save_state(folder / "checkpoints" / "last.state.pt", state)
