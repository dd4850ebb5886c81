"""What an installation has: versions, devices, precision, extras."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

import torch

from ebmhybrid._version import __version__
from ebmhybrid.kernels import describe
from ebmhybrid.training.engine import pick_device
from ebmhybrid.training.setup import pick_precision


def doctor() -> Iterator[tuple[str, str]]:
    """What this installation has, as (name, value) lines: versions, devices, precision, optional extras."""
    yield "ebmhybrid", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "torchattacks", "netcal"):
        yield name, metadata.version(name)
    auto = pick_precision("auto", pick_device("auto"))
    yield "precision", f"training.precision=auto is {str(auto).removeprefix('torch.')} here"
    yield "kernels", describe()
    yield "threads", str(torch.get_num_threads())
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield f"cuda:{index}", torch.cuda.get_device_name(index)
    else:
        yield "cuda", "not available: runs use the CPU"
    yield "timm models", "yes" if find_spec("timm") else "no: pip install 'ebmhybrid[timm]', or '.[timm]' in the source"
