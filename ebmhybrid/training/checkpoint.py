"""What a run keeps on disk: safetensors weights with metadata, one training state, and nothing half-written.

Every file is written to a temporary name beside its own and renamed, so a reader finds the former file or the new one.
Weights are safetensors; the training state is loaded with `weights_only=True`: nothing in either is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ebmhybrid._version import __version__
from ebmhybrid.errors import CheckpointError
from ebmhybrid.models import build_model

FORMAT = "1"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path in the same folder, flush it to the disk and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:  # each library has its own word for a full disk
        raise CheckpointError(f"{path}: cannot be written ({' '.join(str(error).split())})") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(path: Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """A model's state dict and what is needed to build it again, as one safetensors file."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    texts |= {"format": FORMAT, "version": __version__}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=texts))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """The training state: tensors and plain values only, so that `weights_only=True` can load it."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_state(path: Path) -> dict[str, Any]:
    """Read back what `save_state` wrote.

    Raises:
        CheckpointError: a missing, truncated or foreign file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no training state, so nothing to resume from") from None
    except Exception as error:  # torch.load has no error class of its own for a damaged file
        raise CheckpointError(f"{path}: cannot be read as a training state ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: no training state of format {FORMAT}")
    return state


def find_weights(path: str | Path) -> Path:
    """The weight file of a run directory (best, else last), or the file itself.

    Raises:
        CheckpointError: nothing there.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("best", "last"):
            candidate = path / "checkpoints" / f"{name}.safetensors"
            if candidate.is_file():
                return candidate
        raise CheckpointError(f"{path}: no run, it holds no checkpoints/best.safetensors")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such run directory or weight file")
    return path


def load_model(path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """A trained classifier in evaluation mode, ready to call on images in [0, 1].

    Arguments:
        path: a run directory, or a .safetensors file of one.

    Returns:
        The module, with `.metadata` (a dict: architecture, classes, image_shape, normalisation, recipe, version).

    Raises:
        CheckpointError: a missing, damaged or foreign file, or weights that do not fit their own architecture.
    """
    path = find_weights(path)
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors weights ({error})") from error
    if texts.get("format") != FORMAT:
        raise CheckpointError(f"{path}: its metadata names no ebmhybrid format {FORMAT} (got {texts.get('format')})")
    try:
        metadata = {key: json.loads(value) if key in _JSON_KEYS else value for key, value in texts.items()}
        metadata["image_shape"] = [int(size) for size in metadata["image_shape"]]
        if not isinstance(metadata["recipe"], str):
            raise TypeError("recipe is no text")
        model = build_model(**metadata["architecture"])
        if len(metadata["image_shape"]) != (1 if hasattr(model, "vocabulary") else 3):  # (L,) and (C, H, W)
            raise ValueError(f"image_shape is {metadata['image_shape']}")
        told_apart = getattr(model, "num_classes", None)
        if not isinstance(metadata["classes"], list) or told_apart not in (None, len(metadata["classes"])):
            raise ValueError(f"{len(metadata['classes'])} names for {told_apart} classes")
        model.load_state_dict(tensors)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path}: weights and metadata do not fit together ({reason})") from error
    model.metadata = metadata  # type: ignore[assignment]
    return model.to(device).eval()


def weights_digest(model: nn.Module) -> str:
    """sha256 over names and values of the weights: the same for equal weights, however a file orders its metadata."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


_JSON_KEYS = {"architecture", "classes", "image_shape", "normalisation"}
