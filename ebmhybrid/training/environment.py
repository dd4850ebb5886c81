"""On what a run was made: versions, machine and data."""

from __future__ import annotations

import platform
import time
from importlib import metadata
from typing import Any

import torch

from ebmhybrid._version import __version__
from ebmhybrid.data.splits import described
from ebmhybrid.training.setup import Parts

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pydantic", "safetensors")
TIME = "%Y-%m-%dT%H:%M:%S%z"


def environment(parts: Parts) -> dict[str, Any]:
    """The content of env.json."""
    device = parts.device
    return {
        "ebmhybrid": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": str(parts.precision).removeprefix("torch."),
        "processes": parts.world.size,
        "threads": torch.get_num_threads(),
        "started": time.strftime(TIME),
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "data": parts.splits.record() | ({} if parts.outliers is None else {"reference": described(parts.outliers)}),
    }
