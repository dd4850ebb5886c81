"""The run directory and the files that say what was run, on what, with which data."""

from __future__ import annotations

import json
import os
import platform
import time
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ebmhybrid._version import __version__
from ebmhybrid.errors import CheckpointError
from ebmhybrid.training import checkpoint
from ebmhybrid.training.checkpoint import write_atomically
from ebmhybrid.training.setup import Parts

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pydantic", "safetensors")


def fresh_folder(parent: Path) -> Path:
    """<parent>/<date-time>, with a number behind it where a run began in the same second."""
    name = f"{datetime.now():%Y%m%d-%H%M%S}"
    taken = sum(1 for _ in parent.glob(f"{name}*"))
    return parent / (f"{name}-{taken + 1}" if taken else name)


def open_folder(out: str | Path) -> Path:
    """A new run directory; one that holds something already is never written into.

    Raises:
        CheckpointError: the directory is not empty, or cannot be made.
    """
    folder = Path(out)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise CheckpointError(f"{folder}: exists and is not an empty directory; take another --out, or --resume it")
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
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "data": parts.splits.record(),
    }


def save(parts: Parts, folder: Path) -> None:
    """The last weights and the state to go on from."""
    checkpoint.save_weights(folder / "checkpoints" / "last.safetensors", parts.deployed, parts.metadata)
    state = {"format": checkpoint.FORMAT, "data": parts.splits.train.digest(), "parts": parts.state_dict()}
    checkpoint.save_state(folder / "checkpoints" / "last.state.pt", state)


def restore(parts: Parts, folder: Path) -> None:
    """Put a run's parts back to where `save` left them.

    Raises:
        CheckpointError: no state, a damaged one, or one of other data or of another recipe.
    """
    state = checkpoint.load_state(folder / "checkpoints" / "last.state.pt")
    if state["data"] != parts.splits.train.digest():
        raise CheckpointError(f"{folder}: the training data is not that of the run (its sha256 differs)")
    try:
        parts.load_state_dict(state["parts"])
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: its state does not fit the recipe: {reason}") from error
