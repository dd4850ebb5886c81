"""ebmhybrid: hybrid energy-based classifiers on PyTorch.

A classifier's logits are read as energies, E(x, y) = -f(x)[y], so that one network gives p(y|x), a density score for x
and a model to sample from. `import ebmhybrid` loads nothing heavy: each name below is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ebmhybrid._version import __version__

if TYPE_CHECKING:
    from ebmhybrid.embedding import informative_embedding
    from ebmhybrid.energies import energy, joint_energy, log_density
    from ebmhybrid.kernels import linear_energy
    from ebmhybrid.losses.hdge import HDGELoss
    from ebmhybrid.models.wide_resnet import WideResNet
    from ebmhybrid.recipe import load_recipe
    from ebmhybrid.sampling import sgld
    from ebmhybrid.training import load_model, train

_HOME = {
    "HDGELoss": "ebmhybrid.losses.hdge",
    "WideResNet": "ebmhybrid.models.wide_resnet",
    "energy": "ebmhybrid.energies",
    "informative_embedding": "ebmhybrid.embedding",
    "joint_energy": "ebmhybrid.energies",
    "linear_energy": "ebmhybrid.kernels",
    "load_model": "ebmhybrid.training",
    "load_recipe": "ebmhybrid.recipe",
    "log_density": "ebmhybrid.energies",
    "sgld": "ebmhybrid.sampling",
    "train": "ebmhybrid.training",
}

__all__ = [
    "HDGELoss",
    "WideResNet",
    "__version__",
    "energy",
    "informative_embedding",
    "joint_energy",
    "linear_energy",
    "load_model",
    "load_recipe",
    "log_density",
    "sgld",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ebmhybrid' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
