"""Features that distances between sets of images are taken in: a classifier's own, or FID's Inception network's."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebmhybrid.errors import EbmhybridError
from ebmhybrid.tensor_files import load_tensors

from .predictions import Model, Progress, check_images, predict, softmax

# The file of the 2015 network that FID was defined with ends in the start of its SHA-256:
# weights-inception-2015-12-05-6726825d.pth of torch-fidelity, pt_inception-2015-12-05-6726825d.pth of pytorch-fid.
PUBLISHED = "6726825d"
_LAYERS = ("2048", "logits_unbiased")  # what FID and KID, and what the Inception score are computed from


def features_of(
    model: Model,
    images: Tensor,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    batch_size: int = 256,
) -> np.ndarray:
    """What a classifier's last linear layer is given, float64 (N, D); see :mod:`ebmhybrid.evaluate.features`.

    Arguments:
        images: (N, C, H, W) in [0, 1].

    Raises:
        EbmhybridError: images or logits that :func:`ebmhybrid.evaluate.predict` refuses, or a model whose logits are
            not what its last linear layer returns.

    >>> features_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.ones(2, 1, 2, 2)).tolist()
    [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    """
    _check_batch_size(batch_size)
    unlabelled = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split(batch_size)]
    found = predict(model, unlabelled, device, progress, name="images", features=True).features
    assert found is not None  # asked for
    return found.astype(np.float64)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise EbmhybridError(f"batch_size must be at least 1, got {batch_size}")


@dataclass(frozen=True)
class InceptionWeights:
    """A weight file of Inception v3, read and hashed, not yet a network.

    Attributes:
        name: file name.
        sha256: of the file.
        state: its tensors.
    """

    name: str
    sha256: str
    state: Mapping[str, Tensor] = field(repr=False)

    @property
    def published(self) -> bool:
        """Whether it is the file that FID, KID and Inception score are defined with."""
        return self.sha256.startswith(PUBLISHED)

    @classmethod
    def read(cls, path: str | Path) -> InceptionWeights:
        """Tensors of a file, which is never executed: `weights_only` refuses whatever else a pickle can hold.

        Raises:
            EbmhybridError: a file that is missing or no state dict.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EbmhybridError(f"cannot read the Inception weights {path}: {error.strerror or error}") from error
        try:
            state = load_tensors(io.BytesIO(content))
        except Exception as error:  # whatever a damaged or hostile pickle brings up
            reason = str(error).strip().split("\n")[0]
            raise EbmhybridError(f"{path} is no weight file ({type(error).__name__}: {reason})") from error
        if not isinstance(state, Mapping) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
        ):
            raise EbmhybridError(f"{path} is no weight file: it holds no dictionary of named tensors")
        return cls(path.name, hashlib.sha256(content).hexdigest(), state)

    def network(self) -> nn.Module:
        """torch-fidelity's `inception-v3-compat` with these weights: uint8 (N, 3, H, W) -> features, logits.

        Raises:
            EbmhybridError: torch-fidelity is not installed, or the weights are another network's.
        """
        try:
            module: Any = import_module("torch_fidelity.feature_extractor_inceptionv3")
        except ImportError as error:
            raise EbmhybridError("FID needs the package torch-fidelity: pip install 'ebmhybrid[fid]'") from error
        # The extractor unpickles what it is given without `weights_only`: it gets tensors that were read safely and
        # packed again here, not the file.
        safe = io.BytesIO()
        torch.save(dict(self.state), safe)
        safe.seek(0)
        try:
            network = module.FeatureExtractorInceptionV3("inception-v3-compat", list(_LAYERS), safe)
        except RuntimeError as error:
            raise EbmhybridError(
                f"{self.name} does not hold the weights of torch-fidelity's Inception v3 ('inception-v3-compat')"
            ) from error
        assert isinstance(network, nn.Module)
        return network


def inception_features(
    images: Tensor,
    weights: str | Path | InceptionWeights,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    batch_size: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, 2048) and class probabilities (N, 1008) by the Inception network that FID, KID and IS belong to.

    Source: Heusel et al. 2017, through torch-fidelity's port, which resizes to 299 x 299 as TensorFlow 1 did. Images
    are rounded to 8 bits; grey ones are repeated to three channels.

    Arguments:
        images: (N, C, H, W) in [0, 1], C = 1 or 3.
        weights: the file weights-inception-2015-12-05-6726825d.pth, or what :meth:`InceptionWeights.read` made of it.

    Returns:
        float64 both; probabilities are the softmax of the logits without their bias, as the Inception score has them.

    Raises:
        EbmhybridError: images outside [0, 1] or of another shape, a weight file that cannot be used, or torch-fidelity
            not installed.
    """
    check_images(images, "images")
    _check_batch_size(batch_size)
    if images.shape[1] not in (1, 3) or not len(images):
        raise EbmhybridError(f"Inception takes N >= 1 images of 1 or 3 channels, got {tuple(images.shape)}")
    read = weights if isinstance(weights, InceptionWeights) else InceptionWeights.read(weights)
    network = read.network().to(device)
    parts = images.split(batch_size)
    features, logits = [], []
    with torch.inference_mode():
        for part in progress(parts, "inception") if progress else parts:
            pixels = part.mul(255).round().clamp(0, 255).to(torch.uint8)
            some, scores = network(pixels.expand(-1, 3, -1, -1).to(device))
            features.append(some.cpu().double())
            logits.append(scores.cpu().double())
    return torch.cat(features).numpy(), softmax(torch.cat(logits).numpy())
