"""Networks built by name: classifiers, callables from images in [0, 1] to logits, and encoder-decoders.

A name and its keyword arguments are a model's `architecture`: what a checkpoint's metadata keeps to build it again.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from ebmhybrid.errors import RecipeError, nearest
from ebmhybrid.models.normalize import Normalize
from ebmhybrid.models.released import import_released
from ebmhybrid.models.wide_resnet import WideResNet

__all__ = [
    "Normalize",
    "NormalizedClassifier",
    "WideResNet",
    "architecture_of",
    "build_model",
    "import_released",
]

ENCODER_DECODERS = {
    "autoencoder": "Autoencoder",
    "sequence_autoencoder": "SequenceAutoencoder",
    "image_transformer": "ImageTransformer",
}

_NAMES = ("wide_resnet", "torchvision/resnet18", "timm/NAME")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NormalizedClassifier(nn.Module):
    """Any backbone from normalised images to logits, with the normalisation as its first layer.

    >>> import torch
    >>> model = NormalizedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), num_classes=4)
    >>> model(torch.rand(5, 3, 2, 2)).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        in_channels: int = 3,
        mean: float | Sequence[float] = IMAGENET_MEAN,
        std: float | Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.normalize = Normalize(in_channels, mean, std)
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        out = self.backbone(self.normalize(images))
        return getattr(out, "logits", out)  # GoogLeNet and Inception train with auxiliary outputs


def architecture_of(name: str, facts: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of :func:`build_model`: what the data decides, what is asked for, and our defaults.

    Arguments:
        facts: of the data: num_classes, in_channels, image_size, and vocabulary and max_length of token sequences.
        options: what the model takes besides.

    Raises:
        RecipeError: an option that an encoder-decoder does not take.

    >>> architecture_of("wide_resnet", {"num_classes": 7, "in_channels": 1, "image_size": 8}, {"depth": 10})
    {'name': 'wide_resnet', 'num_classes': 7, 'in_channels': 1, 'depth': 10}
    """
    if name not in ENCODER_DECODERS:
        return {"name": name, **{key: facts[key] for key in ("num_classes", "in_channels")}, **options}
    takes = inspect.signature(_encoder_decoder(name)).parameters
    own = [key for key in takes if key not in facts]
    if unknown := sorted(options.keys() - set(own)):
        valid = [key for key in own if key not in ("mean", "std")]  # a recipe gives these as model.mean and model.std
        raise RecipeError(f"model.options.{unknown[0]}: {name} takes none such, {nearest(unknown[0], valid)}")
    defaults = {key: takes[key].default for key in own}
    return {"name": name, **{key: facts[key] for key in takes if key in facts}, **defaults, **options}


def _encoder_decoder(name: str) -> type[nn.Module]:
    found: type[nn.Module] = getattr(import_module(f"{__name__}.{name}"), ENCODER_DECODERS[name])
    return found


def build_model(name: str, **options: Any) -> nn.Module:
    """A fresh network by name.

    Arguments:
        name: `wide_resnet`, `torchvision/NAME` (any torchvision classifier; 3 channels), `timm/NAME`, `autoencoder`,
            `sequence_autoencoder` or `image_transformer`.
        options: what the model takes: for classifiers num_classes, in_channels, `mean` and `std` among others.

    Raises:
        RecipeError: a name or an option that there is none of.

    >>> build_model("wide_resnet", depth=10, width=1, num_classes=3).num_classes
    3
    """
    library, _, kind = name.partition("/")
    try:
        if name == "wide_resnet":
            return WideResNet(**options)
        if name in ENCODER_DECODERS:
            return _encoder_decoder(name)(**options)
        if library == "torchvision" and kind:
            return _from_torchvision(kind, **options)
        if library == "timm" and kind:
            return _from_timm(kind, **options)
    except (TypeError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"model {name!r}: {error}") from error
    raise RecipeError(f"model.name = {name!r}: {nearest(name, [*_NAMES, *ENCODER_DECODERS])}")


def _statistics(options: dict[str, Any], in_channels: int) -> dict[str, Any]:
    """Pop mean and std out of the options; without them ImageNet's for RGB and .5 for others."""
    default = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if in_channels == 3 else {"mean": 0.5, "std": 0.5}
    return {key: options.pop(key, value) for key, value in default.items()}


def _from_torchvision(kind: str, num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
    from torchvision import models

    # The registry also holds detectors and the like, under names with a slash.
    classifiers = models.list_models(module=models)
    if kind not in classifiers:
        raise RecipeError(f"model.name = 'torchvision/{kind}': no such classifier, {nearest(kind, classifiers)}")
    if in_channels != 3:
        raise RecipeError(f"model 'torchvision/{kind}' takes 3 channels, got {in_channels}: set data.channels=3")
    statistics = _statistics(options, in_channels)
    backbone = models.get_model(kind, weights=None, num_classes=num_classes, **options)
    return NormalizedClassifier(backbone, num_classes, 3, **statistics)


def _from_timm(kind: str, num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise RecipeError(
            f"model.name = 'timm/{kind}' needs timm: pip install 'ebmhybrid[timm]', or '.[timm]' in the source folder"
        ) from error
    if not timm.is_model(kind):
        raise RecipeError(f"model.name = 'timm/{kind}': no such model, {nearest(kind, timm.list_models())}")
    statistics = _statistics(options, in_channels)
    backbone = timm.create_model(kind, pretrained=False, num_classes=num_classes, in_chans=in_channels, **options)
    return NormalizedClassifier(backbone, num_classes, in_channels, **statistics)
