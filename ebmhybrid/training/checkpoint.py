"""What a run keeps on disk: safetensors weights with metadata, a training state and the one before it.

Every file is written to a temporary name beside its own and renamed, so a reader finds the former file or the new one,
and each carries a checksum. Weights are safetensors; the training state is read by `load_tensors`: nothing in either is
executed, and neither takes more memory than the file has bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ebmhybrid._version import __version__
from ebmhybrid.errors import CheckpointError
from ebmhybrid.models import build_model
from ebmhybrid.models.fit import check_fits
from ebmhybrid.tensor_files import load_tensors
from ebmhybrid.training.atomic import write_atomically
from ebmhybrid.training.digest import tensors_digest, tree_digest

FORMAT = "1"
LAST, PREVIOUS = "last.state.pt", "previous.state.pt"


class NoStateError(CheckpointError):
    """A run that was stopped before it first saved its state: there is nothing to lose, it begins at step 0."""


def save_weights(path: Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """A model's state dict and what is needed to build it again, as one safetensors file with its sha256."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    texts |= {"format": FORMAT, "version": __version__, "sha256": tensors_digest(tensors)}
    texts["texts_sha256"] = _texts_digest(texts)  # mean and std of the images are among the texts alone
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=texts))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """The training state with its sha256; the former one stays beside it as previous.state.pt.

    Tensors and plain values only, so that `weights_only=True` can load it.
    """
    checked = {**state, "sha256": tree_digest(state)}
    write_atomically(path, lambda temporary: _save(checked, temporary), keep_as=path.with_name(PREVIOUS))


def _save(state: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # of a path, torch's own writer would not tell why it failed
        torch.save(state, file)


def load_state(path: Path) -> dict[str, Any]:
    """Read back what `save_state` wrote.

    Raises:
        NoStateError: no such file.
        CheckpointError: a truncated, damaged or foreign file.
    """
    try:
        with path.open("rb") as file:
            state = load_tensors(file)
        digest = state.pop("sha256", None) if isinstance(state, dict) else None  # earlier versions wrote none
        if digest is not None and digest != tree_digest(state):
            raise CheckpointError(f"{path}: damaged, its values do not have the sha256 that it was saved with")
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise NoStateError(f"{path}: no training state, so nothing to resume from") from None
    except Exception as error:  # torch.load has no error class of its own for a damaged file
        reason = f"{type(error).__name__}: {error}" if type(error) is ValueError else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as a training state ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: no training state of format {FORMAT}")
    return state


def load_latest_state(folder: Path) -> tuple[dict[str, Any], str | None]:
    """A run's last state, or else the one before it.

    Returns:
        The state, and None or a sentence that says why it is not the last one.

    Raises:
        NoStateError: the run has saved none yet.
        CheckpointError: neither can be used.
    """
    last, previous = (folder / "checkpoints" / name for name in (LAST, PREVIOUS))
    try:
        return load_state(last), None
    except CheckpointError as error:
        why = error
    if not previous.exists():
        raise why
    try:
        state = load_state(previous)
    except CheckpointError as error:
        raise CheckpointError(f"{why}; {error}") from None
    return state, f"{why}; going on from {previous.name}{_step(state)}"


def _step(state: dict[str, Any]) -> str:
    try:
        return f" of step {int(state['parts']['progress']['step'])}"
    except (KeyError, TypeError, ValueError):
        return ""


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
    if texts.get("sha256") not in (None, tensors_digest(tensors)):  # earlier versions wrote none
        raise CheckpointError(
            f"{path}: damaged, its weights do not have the sha256 that they were saved with; name another weight "
            "file of the run, or go on with it by --resume"
        )
    try:
        metadata = {key: json.loads(value) if key in _JSON_KEYS else value for key, value in texts.items()}
        metadata["image_shape"] = [int(size) for size in metadata["image_shape"]]
        if not isinstance(metadata["recipe"], str):
            raise TypeError("recipe is no text")
        check_fits(metadata["architecture"], tensors)
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
    if texts.get("texts_sha256") not in (None, _texts_digest(texts)):
        raise CheckpointError(f"{path}: damaged, its metadata does not have the sha256 that it was saved with")
    model.metadata = metadata  # type: ignore[assignment]
    return model.to(device).eval()


def weights_digest(model: nn.Module) -> str:
    """sha256 over names and values of the weights: the same for equal weights, however a file orders its metadata."""
    return tensors_digest(model.state_dict())


def _texts_digest(texts: dict[str, str]) -> str:
    return tree_digest(sorted(item for item in texts.items() if not item[0].endswith("sha256")))


_JSON_KEYS = {"architecture", "classes", "image_shape", "normalisation"}
