"""What a recipe may say of its network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ebmhybrid.terms import Locked, Probability

WIDE_RESNET_KEYS = {"depth", "width", "norm", "activation", "dropout"}
ENCODER_DECODERS = ("autoencoder", "sequence_autoencoder", "image_transformer")
# What follows from the data, or has a key of its own
GIVEN = {"name", "num_classes", "in_channels", "image_size", "vocabulary", "max_length", "mean", "std"}


class Model(Locked):
    """A WideResNet by its own keys; any other by name, with keyword arguments in `options`.

    The others are classifiers, `torchvision/NAME` and `timm/NAME`, and our encoder-decoders.
    """

    name: str = "wide_resnet"
    depth: int = 28
    width: Annotated[int, Field(ge=1, le=1024)] = 10
    norm: Literal["none", "batch", "layer", "instance"] = "batch"
    activation: Literal["leaky_relu", "relu", "silu", "gelu", "softplus"] = "leaky_relu"
    dropout: Probability = 0.0
    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    options: dict[str, Any] = {}
    init: str | None = None  # a run or weight file to start from

    @model_validator(mode="after")
    def _keys_belong_to_the_model(self) -> Model:
        if self.name == "wide_resnet":
            if self.options:
                raise ValueError("options are for torchvision/ and timm/ models; wide_resnet has keys of its own")
            if self.depth < 10 or (self.depth - 4) % 6:
                raise ValueError(f"depth must be 6 n + 4 (10, 16, 22, 28, ...), got {self.depth}")
        elif foreign := sorted(WIDE_RESNET_KEYS & self.model_fields_set):
            raise ValueError(f"{', '.join(foreign)}: keys of wide_resnet; give {self.name} its arguments in options")
        if clash := sorted(GIVEN & self.options.keys()):
            raise ValueError(f"options: {', '.join(clash)} cannot stand there; they follow from the model and the data")
        return self

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for `ebmhybrid.models.build_model`, but for classes and channels."""
        given: dict[str, Any] = dict(self.options)
        if self.name == "wide_resnet":
            given |= {key: getattr(self, key) for key in WIDE_RESNET_KEYS}
        return given | {key: getattr(self, key) for key in ("mean", "std") if getattr(self, key) is not None}

    @property
    def learns_codes(self) -> bool:
        """Whether it is an encoder-decoder, and no classifier."""
        return self.name in ENCODER_DECODERS
