"""What a recipe may say: typed, frozen sections, closed to unknown keys. Every default is here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]

# The names that `ebmhybrid.evaluate` knows; a recipe does not import it.
Score = Literal[
    "all",
    "energy",
    "msp",
    "max_logit",
    "joint_energy",
    "entropy",
    "gen",
    "temperature",
    "hdge",
    "mahalanobis",
    "relative_mahalanobis",
    "knn",
    "vim",
    "react",
    "ash",
    "scale",
    "grad_norm",
    "odin",
]
Attack = Literal["fgsm", "pgd", "apgd-ce", "apgd-dlr", "fab", "square", "cw", "aa"]

WIDE_RESNET_KEYS = {"depth", "width", "norm", "activation", "dropout"}


class Locked(BaseModel):
    """Frozen, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def changed_fields(section: BaseModel) -> set[str]:
    """The keys of a section that are not at their default; a run's saved recipe names the others too."""
    fields = type(section).model_fields
    return {name for name in section.model_fields_set if getattr(section, name) != fields[name].default}


class Augment(Locked):
    """Random crops after reflect padding, flips, and Gaussian noise in units of the [0, 1] pixel scale."""

    pad: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    noise_std: Annotated[float, Field(ge=0, le=10)] = 0.0
    mixup_alpha: Annotated[float, Field(ge=0, le=1e6)] = 0.0

    @model_validator(mode="after")
    def _alpha_is_none_or_a_number_to_draw_with(self) -> Augment:
        if 0 < self.mixup_alpha < 1e-6:
            raise ValueError(f"mixup_alpha must be 0 (none) or from 1e-6 to 1e6, got {self.mixup_alpha:g}")
        return self


class Data(Locked):
    """Which set to train on and how it is split. Sets with an official test split keep it."""

    train: str = "digits:0-6"
    test: str | None = None
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.2
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    channels: Literal[1, 3] | None = None
    image_size: Annotated[int, Field(ge=8, le=512)] | None = None
    augment: Augment = Augment()


class Model(Locked):
    """A WideResNet by its own keys, or `torchvision/NAME` and `timm/NAME` with keyword arguments in `options`."""

    name: str = "wide_resnet"
    depth: int = 28
    width: Annotated[int, Field(ge=1, le=1024)] = 10
    norm: Literal["none", "batch", "layer", "instance"] = "batch"
    activation: Literal["leaky_relu", "relu", "silu", "gelu", "softplus"] = "leaky_relu"
    dropout: Probability = 0.0
    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _keys_belong_to_the_model(self) -> Model:
        if self.name == "wide_resnet":
            if self.options:
                raise ValueError("options are for torchvision/ and timm/ models; wide_resnet has keys of its own")
            if self.depth < 10 or (self.depth - 4) % 6:
                raise ValueError(f"depth must be 6 n + 4 (10, 16, 22, 28, ...), got {self.depth}")
        elif foreign := sorted(WIDE_RESNET_KEYS & self.model_fields_set):
            raise ValueError(f"{', '.join(foreign)}: keys of wide_resnet; give {self.name} its arguments in options")
        if clash := sorted({"name", "num_classes", "in_channels", "mean", "std"} & self.options.keys()):
            raise ValueError(f"options: {', '.join(clash)} cannot stand there; they follow from the model and the data")
        return self

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments for `ebmhybrid.models.build_model`, but for classes and channels."""
        given: dict[str, Any] = dict(self.options)
        if self.name == "wide_resnet":
            given |= {key: getattr(self, key) for key in WIDE_RESNET_KEYS}
        return given | {key: getattr(self, key) for key in ("mean", "std") if getattr(self, key) is not None}


class CrossEntropyTerm(Locked):
    """Cross-entropy, -log q(y|x)."""

    weight: Positive = 1.0
    label_smoothing: Probability = 0.0


class ZLossTerm(Locked):
    """The mean of (log Z(x))^2 = logsumexp(f)^2, which keeps logits from drifting (PaLM used 1e-4)."""

    weight: Positive = 1e-4


class HDGETerm(Locked):
    """The arguments of `ebmhybrid.HDGELoss`, which holds its own cross-entropy."""

    weight: NonNegative = 1.0
    ce_weight: NonNegative = 1.0
    temperature: Positive = 0.1
    bank_size: Annotated[int, Field(ge=1, le=2**31)] = 65536
    form: Literal["released", "paper"] = "released"
    negatives: Literal["bank", "batch", "bank+batch"] = "bank"
    normalize: Literal["l2", "none"] = "l2"
    label_smoothing: Probability = 0.0


class Objective(Locked):
    """The terms of the loss, added up. At least one."""

    ce: CrossEntropyTerm | None = None
    hdge: HDGETerm | None = None
    z_loss: ZLossTerm | None = None

    @model_validator(mode="after")
    def _has_a_term(self) -> Objective:
        if self.ce is None and self.hdge is None:
            raise ValueError("needs at least one term of: ce, hdge")
        if self.ce is not None and self.hdge is not None:
            raise ValueError("hdge has its own cross-entropy: leave out ce, and set objective.hdge.ce_weight")
        if self.hdge is not None and not self.hdge.weight and not self.hdge.ce_weight:
            raise ValueError("hdge.weight and hdge.ce_weight are both 0: nothing would be trained")
        return self


class Reference(Locked):
    """Unlabelled reference images that join the contrast's columns: `fraction` of a batch, in equal shares a family."""

    families: Annotated[list[Literal["smooth", "patches", "inversions"]], Field(min_length=1)]
    fraction: Annotated[float, Field(gt=0, le=16)] = 0.5


class Optimizer(Locked):
    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0, le=1e6)] = 0.1
    momentum: Probability = 0.9
    nesterov: bool = False
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    weight_decay: NonNegative = 5e-4
    decay_norm_and_bias: bool = True

    @model_validator(mode="after")
    def _options_belong_to_the_optimizer(self) -> Optimizer:
        foreign = {"betas"} if self.name == "sgd" else {"momentum", "nesterov"}
        if changed := sorted(foreign & changed_fields(self)):
            raise ValueError(f"{', '.join(changed)}: not an option of {self.name}")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum > 0")
        return self


class Schedule(Locked):
    """The learning rate's factor over the run, after a linear warm-up of `warmup_steps`."""

    name: Literal["constant", "step", "cosine", "one_cycle"] = "cosine"
    milestones: list[Count] = []
    gamma: Positive = 0.3
    warmup_steps: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _milestones_go_with_step(self) -> Schedule:
        if (self.name == "step") != bool(self.milestones):
            raise ValueError("milestones (epochs) are what the 'step' schedule needs, and no other takes")
        if self.name != "step" and "gamma" in changed_fields(self):
            raise ValueError(f"gamma: not an option of the {self.name!r} schedule")
        if self.name == "one_cycle" and self.warmup_steps:
            raise ValueError("warmup_steps: the 'one_cycle' schedule has a warm-up of its own")
        return self


class Training(Locked):
    epochs: Count = 1
    batch_size: Annotated[int, Field(ge=2)] = 128
    max_steps: Count | None = None
    ema: Fraction | None = None
    grad_clip: Positive | None = None
    # auto: bf16 where the device computes in it, else fp32
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    log_every: Count = 50


class Evaluation(Locked):
    """What `ebmhybrid eval` does for this run when its options are left out."""

    ood: list[str] = []
    scores: Annotated[list[Score], Field(min_length=1)] = ["energy", "msp", "max_logit", "entropy"]
    corruptions: bool = False
    attacks: list[Attack] = []
    norm: Literal["linf", "l2"] = "linf"
    eps: Positive = 8 / 255
    batch_size: Count = 256

    @model_validator(mode="after")
    def _eps_fits_the_norm(self) -> Evaluation:
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(f"eps must be at most 1 for linf, got {self.eps:g}: pixels lie in [0, 1], as in 8/255")
        return self


class Recipe(Locked):
    """Everything that decides a run: data, model, objective, optimisation and the default evaluation."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "unnamed"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    data: Data = Data()
    model: Model = Model()
    objective: Objective = Objective(ce=CrossEntropyTerm())
    reference: Reference | None = None
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        hdge = self.objective.hdge
        if self.reference and (hdge is None or hdge.negatives == "bank"):
            raise ValueError(
                "reference images enter live columns: objective.hdge.negatives must be batch or bank+batch"
            )
        if self.data.augment.mixup_alpha:
            if hdge and hdge.form == "released" and hdge.negatives != "batch":
                raise ValueError("mixup needs objective.hdge.form=paper or objective.hdge.negatives=batch")
            if self.reference and hdge and hdge.form == "released":
                raise ValueError("mixup with reference images needs objective.hdge.form=paper")
        return self

    def to_yaml(self) -> str:
        """The recipe with every default written out, as a run keeps it; `load_recipe` reads it back."""
        foreign = set() if self.model.name == "wide_resnet" else WIDE_RESNET_KEYS
        return yaml.safe_dump(self.model_dump(exclude_none=True, exclude={"model": foreign}), sort_keys=False)
