"""Import of the checkpoints that the authors of JEM and HDGE released."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebmhybrid.errors import CheckpointError
from ebmhybrid.models.wide_resnet import Norm, WideResNet
from ebmhybrid.tensor_files import load_tensors

# Ours, in the order of theirs. `f.linear` and `energy_output` are heads that their classifier never uses.
_RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^f\.layer(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.{m[2]}."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.shortcut\.0\.", ".shortcut."),
    (r"^f\.conv1\.", "conv."),
    (r"^f\.bn1\.|^f\.norm1\.", "norm."),
    (r"^class_output\.", "head."),
]
_UNUSED = re.compile(r"^(f\.linear|energy_output|queue|.*num_batches_tracked$)")


def import_released(path: str | Path, norm: Norm | None = None) -> WideResNet:
    """A WideResNet with the weights of a released JEM or HDGE checkpoint (`f.*` and `class_output.*` names).

    Depth, width, classes and channels are read from the shapes; inputs in [0, 1] are mapped to [-1, 1] as there.
    Nothing in the file is executed: it is loaded with `weights_only=True`.

    Arguments:
        path: the `.pt` file: a state dict, or a dict that holds one under `model_state_dict`.
        norm: needed only for nets with layer or instance norm, whose weights look alike.

    Raises:
        CheckpointError: a missing or unreadable file, or weights of another network.
    """
    state = _read(Path(path))
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if "class_output.weight" not in state or "f.conv1.weight" not in state:
        raise CheckpointError(f"{path}: no released JEM or HDGE model (no f.conv1.weight and class_output.weight)")
    blocks = {m[1] for key in state if (m := re.match(r"f\.layer1\.(\d+)\.", key))}
    num_classes, features = state["class_output.weight"].shape
    architecture: dict[str, Any] = {
        "depth": 6 * len(blocks) + 4,
        "width": features // 64,
        "num_classes": num_classes,
        "in_channels": state["f.conv1.weight"].shape[1],
        "norm": norm or _infer_norm(path, state),
    }
    weights = {_rename(key): value for key, value in state.items() if not _UNUSED.match(key)}
    with torch.device("meta"):  # no memory is taken before all shapes are known to fit
        own = WideResNet(**architecture).state_dict()
    wrong = sorted(
        key
        for key in own.keys() | weights.keys()
        if not key.endswith("num_batches_tracked")
        and (key not in own or key not in weights or own[key].shape != weights[key].shape)
    )
    if wrong:
        raise CheckpointError(f"{path}: {len(wrong)} weights do not fit a WideResNet, the first is {wrong[0]!r}")
    model = WideResNet(**architecture)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            content: Any = load_tensors(file)
    except Exception as error:  # torch.load fails in many ways on a file that is none of its own
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as weights ({type(error).__name__}: {reason})") from error
    if isinstance(content, dict) and "model_state_dict" in content:
        content = content["model_state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _infer_norm(path: str | Path, state: dict[str, Tensor]) -> Norm:
    if "f.bn1.running_mean" in state:
        return "batch"
    if not any(key.startswith("f.bn1.") for key in state):
        return "none"
    raise CheckpointError(f"{path}: layer and instance norm look alike, give norm='layer' or norm='instance'")


def _rename(key: str) -> str:
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key
