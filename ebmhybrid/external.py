"""Classifiers that ebmhybrid never trained: torchvision's and timm's by name, their weights from a file.

Nothing in a weight file is executed: it is safetensors, or a state dict that torch loads with `weights_only=True`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ebmhybrid.errors import CheckpointError, UsageError
from ebmhybrid.models import build_model
from ebmhybrid.tensor_files import load_tensors

_NESTED = ("state_dict", "model_state_dict", "model")
_SHOWN = 3
# torchvision's and timm's classifiers are made for so many classes
_USUAL_CLASSES = 1000


def load_external(
    model: str,
    weights: str | Path,
    num_classes: int | None = None,
    *,
    channels: int = 3,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    **options: Any,
) -> nn.Module:
    """A torchvision or timm classifier with weights from a file, in evaluation mode, from images in [0, 1] to logits.

    Arguments:
        model: `torchvision/NAME` or `timm/NAME`.
        weights: .safetensors, or what `torch.save(model.state_dict(), path)` wrote. A dict that holds the state dict
            under `state_dict`, `model_state_dict` or `model` will do, and so will names that all begin with the same
            prefix, such as the `module.` of DataParallel.
        num_classes: read from the weights if None.
        channels: of the images; torchvision's models take 3.
        mean, std: what the images were normalised with in training, for [0, 1] pixels. None is ImageNet's for 3
            channels, .5 for others.
        options: what the model's own constructor takes, such as `img_size=64` of timm.

    Raises:
        UsageError: a name or an option that there is none of.
        CheckpointError: a file that is absent, damaged, holds more than tensors, or is of another model.

    >>> load_external("torchvision/resnet18", "missing.pt")
    Traceback (most recent call last):
    ebmhybrid.errors.CheckpointError: missing.pt: no such weight file
    """
    if not re.fullmatch("(torchvision|timm)/.+", model):
        raise UsageError(f"model {model!r} must be torchvision/NAME or timm/NAME, such as torchvision/resnet18")
    path = Path(weights).expanduser()
    state = read_state_dict(path)
    options |= {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}

    def built(classes: int) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
        network = build_model(model, num_classes=classes, in_channels=channels, **options)
        backbone = network.get_submodule("backbone")
        return network, backbone, _without_prefix(state, backbone)

    expected = num_classes or _USUAL_CLASSES
    network, backbone, tensors = built(expected)
    found = _classes_of(tensors, backbone, expected)
    if found is not None and num_classes is None:
        network, backbone, tensors = built(found)
    elif found is not None:
        raise CheckpointError(f"{path}: its weights are for {found} classes, not for num_classes = {num_classes}")
    _check_fit(path, model, tensors, backbone)
    backbone.load_state_dict(tensors, strict=False)  # all that may be absent are counters
    return network.eval()


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name, on the CPU.

    Raises:
        CheckpointError: a file that is absent, damaged, or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            content: Any = load_tensors(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as weights ({error})") from error
    except Exception as error:  # torch.load fails in many ways on a file that is none of its own
        raise CheckpointError(f"{path}: {_refusal(str(error))}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    content = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), content)
    found = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not found:
        keys = _some([str(key) for key in content]) or "nothing"
        raise CheckpointError(f"{path}: holds {keys}, and no state dict there or under {', '.join(_NESTED)}")
    return found


def _refusal(message: str) -> str:
    """Why torch would not load a file: something to be run, which it says at length, or damage."""
    pickled = re.search(r"GLOBAL (\S+)", message)
    if pickled or "TorchScript" in message:
        what = f"a pickled {pickled[1]}" if pickled else "a TorchScript program"
        return (
            f"holds {what}, and nothing in a weight file is executed; save the state dict in the program that made"
            " it: torch.save(model.state_dict(), 'weights.pt')"
        )
    reason = message.strip().split("\n")[0]
    return f"cannot be read as weights, it may be damaged ({reason[:120]})"


def _without_prefix(state: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """The state without the first parts that all names share and the network has not: module., model., _orig_mod."""
    own = {name.partition(".")[0] for name in backbone.state_dict()}
    names = dict(state)
    while names:
        first = {name.partition(".")[0] for name in names}
        if len(first) > 1 or first & own or not all("." in name for name in names):
            break
        names = {name.partition(".")[2]: value for name, value in names.items()}
    return names


def _classes_of(state: Mapping[str, Tensor], backbone: nn.Module, built_for: int) -> int | None:
    """The number of classes of weights that differ from the network by it, None where they do not.

    Then every tensor of another shape has `built_for` rows in the network and the same other number in the file. What
    else may differ is found once the network has that many classes.
    """
    own = backbone.state_dict()
    shapes = [(own[name].shape, state[name].shape) for name in own.keys() & state.keys()]
    shapes = [(ours, theirs) for ours, theirs in shapes if ours != theirs]
    if not shapes or any(ours[:1] != (built_for,) or not theirs for ours, theirs in shapes):
        return None
    counts = {theirs[0] for _, theirs in shapes}
    return counts.pop() if len(counts) == 1 else None


def _check_fit(path: Path, model: str, state: Mapping[str, Tensor], backbone: nn.Module) -> None:
    own = backbone.state_dict()
    problems = {
        "missing": [name for name in own if name not in state and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in state and own[name].shape != state[name].shape
        ],
    }
    told = [f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names]
    if told:
        raise CheckpointError(f"{path}: not the weights of {model} ({'; '.join(told)})")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
