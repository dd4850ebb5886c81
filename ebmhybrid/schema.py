"""What a recipe may say: typed, frozen sections, closed to unknown keys. Every default is here."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import yaml
from pydantic import Field, model_validator

from ebmhybrid.network import WIDE_RESNET_KEYS, Model
from ebmhybrid.terms import (
    Count,
    CrossEntropyTerm,
    Fraction,
    JEMTerm,
    Locked,
    NonNegative,
    Objective,
    Positive,
    Probability,
    SupConTerm,
    changed_fields,
)

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


Family = Literal["smooth", "patches", "inversions", "collages", "spectral", "warps", "mixtures"]


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
    # Of text:PATH, in tokens with the end token: longer lines are dropped, since all rows are padded to the longest
    max_length: Annotated[int, Field(ge=2, le=2**20)] = 512
    # Of folder:PATH and shards:PATTERN: decoded batch by batch, by default where memory would hold more than 1 GiB
    stream: bool | None = None
    workers: Annotated[int, Field(ge=0, le=256)] = 2  # processes that decode ahead; 0 for none
    augment: Augment = Augment()

    @model_validator(mode="after")
    def _length_is_of_text(self) -> Data:
        if "max_length" in changed_fields(self) and not self.train.startswith("text:"):
            raise ValueError(f"max_length: is for text:PATH, not for {self.train}")
        return self

    @model_validator(mode="after")
    def _streams_are_of_pictures(self) -> Data:
        if self.stream and not self.train.startswith(("folder:", "shards:")):
            raise ValueError(f"stream: is for folder:PATH and shards:PATTERN, not for {self.train}")
        return self


class Reference(Locked):
    """Unlabelled reference images, `fraction` of a batch: a set by name, or made, in equal shares a family.

    They join the columns of a live contrast, and are what energy_margin, outlier_exposure and nce tell from data. With
    `ascent_steps` each climbs the model's own log density first, pixels moving by `ascent_step_size` a step.
    """

    families: list[Family] = []
    set: str | None = None
    fraction: Annotated[float, Field(gt=0, le=16)] = 0.5
    ascent_steps: Annotated[int, Field(ge=0)] = 0
    ascent_step_size: Annotated[float, Field(gt=0, le=1)] = 0.01

    def count_for(self, images: int) -> int:
        """How many reference images go with so many images."""
        return max(1, round(self.fraction * images))

    @model_validator(mode="after")
    def _has_one_source(self) -> Reference:
        if bool(self.families) == (self.set is not None):
            raise ValueError(f"needs either families ({', '.join(get_args(Family))}) or a set by name")
        return self

    @model_validator(mode="after")
    def _step_size_is_of_steps(self) -> Reference:
        if not self.ascent_steps and "ascent_step_size" in changed_fields(self):
            raise ValueError("ascent_step_size belongs to ascent_steps >= 1")
        return self


class Optimizer(Locked):
    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0, le=1e6)] = 0.1
    momentum: Probability = 0.9
    nesterov: bool = False
    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    weight_decay: NonNegative = 5e-4
    decay_norm_and_bias: bool = True
    # Sharpness-aware minimisation (Foret et al. 2021): the radius, 0 for none; adaptive as in Kwon et al. 2021
    sam_rho: NonNegative = 0.0
    sam_adaptive: bool = False

    @model_validator(mode="after")
    def _options_belong_to_the_optimizer(self) -> Optimizer:
        if self.sam_adaptive and not self.sam_rho:
            raise ValueError("sam_adaptive needs sam_rho > 0")
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
    batch_size: Annotated[int, Field(ge=2)] = 128  # of all processes together
    # In so many parts one after the other, whose gradients are added up: what is contrasted is within a part
    accumulate: Count = 1
    sync_batch_norm: bool = False  # over all processes; alone it changes nothing
    max_steps: Count | None = None
    save_every: Count | None = None  # steps; besides at the end of each epoch
    ema: Fraction | None = None
    grad_clip: Positive | None = None
    # auto: bf16 where the device computes in it, else fp32
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    # The last layer and the loss a chunk of classes at a time, without N x C logits: for tens of thousands of classes
    linear_energy: bool = False
    log_every: Count = 50


class Guard(Locked):
    """When training by samples counts as diverged, and how often it may go back to its last good state.

    Each return halves the Langevin step and the learning rate and draws from another seed.
    """

    max_gap: Positive = 30.0  # of |mean log density of data - of samples|, in nats
    max_grad_norm: Positive = 1e4
    max_rollbacks: Annotated[int, Field(ge=0)] = 3


class Evaluation(Locked):
    """What `ebmhybrid eval` does for this run when its options are left out."""

    ood: list[str] = []
    scores: Annotated[list[Score], Field(min_length=1)] = ["energy", "msp", "max_logit", "entropy"]
    corruptions: bool = False
    samples: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    attacks: list[Attack] = []
    norm: Literal["linf", "l2"] = "linf"
    eps: Positive = 8 / 255
    batch_size: Count = 256

    @model_validator(mode="after")
    def _values_fit(self) -> Evaluation:
        if self.samples == 1:
            raise ValueError("samples = 1: their figures need 2, and 0 draws none")
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
    guard: Guard = Guard()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        terms, hdge = self.objective, self.objective.hdge
        live = hdge is not None and hdge.negatives != "bank"
        held_off = [name for name in ("energy_margin", "outlier_exposure", "nce") if getattr(terms, name) is not None]
        if self.reference and not live and not held_off:
            raise ValueError(
                "reference images enter live columns, energy_margin, outlier_exposure or nce: objective.hdge.negatives "
                "must be batch or bank+batch, or one of the three be there"
            )
        if hdge and hdge.reference_weight != 1 and not self.reference:
            raise ValueError(
                "objective.hdge.reference_weight needs reference images: reference.families or reference.set"
            )
        mixed = [name for name in self.evaluation.ood if name.startswith("interp:")]
        if mixed and self.reference and "mixtures" in self.reference.families:
            raise ValueError(f"reference.families with mixtures: {mixed[0]} in evaluation.ood holds mixtures too")
        if self.reference and self.reference.set is not None:
            if self.reference.set in self.evaluation.ood:
                raise ValueError(f"reference.set = {self.reference.set}: is an OOD test set too, in evaluation.ood")
            if self.reference.set in (self.data.train, self.data.test):
                raise ValueError(f"reference.set = {self.reference.set}: is what the run is trained or tested on")
        if held_off and not self.reference:
            raise ValueError(f"objective.{held_off[0]} needs reference images: reference.families or reference.set")
        if self.optimizer.sam_rho and self.training.accumulate > 1:
            raise ValueError("optimizer.sam_rho takes the gradient of a whole batch, not of training.accumulate parts")
        if self.optimizer.sam_rho and self.training.precision == "fp16":
            raise ValueError("optimizer.sam_rho takes two gradients a step, which the scaler of fp16 does not allow")
        if self.reference and self.reference.ascent_steps and self.training.precision == "fp16":
            raise ValueError(
                "reference.ascent_steps need training.precision auto, bf16 or fp32: fp16 has too small a range"
            )
        if terms.jem is None and changed_fields(self.guard):
            raise ValueError("guard watches training by samples: it needs objective.jem")
        if terms.jem is not None:
            self._sampling_fits(terms.jem)
        if terms.supcon is not None:
            self._features_fit(terms.supcon)
        if self.training.linear_energy:
            self._rows_are_never_whole()
        self._codes_fit()
        if self.data.augment.mixup_alpha:
            if hdge and hdge.form == "released" and hdge.negatives != "batch":
                raise ValueError("mixup needs objective.hdge.form=paper or objective.hdge.negatives=batch")
            if self.reference and hdge and hdge.form == "released":
                raise ValueError("mixup with reference images needs objective.hdge.form=paper")
        return self

    def _codes_fit(self) -> None:
        name, latent, training = self.model.name, self.objective.latent, self.training
        needed = {"latent": ("autoencoder", "sequence_autoencoder"), "gcrl": ("image_transformer",)}
        for term, models in needed.items():
            if getattr(self.objective, term) is not None and name not in models:
                raise ValueError(f"objective.{term} needs model.name {' or '.join(models)}, got {name}")
            if getattr(self.objective, term) is None and name in models:
                raise ValueError(f"model.name={name} has no classes to tell apart: its objective is objective.{term}")
        is_text = self.data.train.startswith("text:")
        if is_text != (name == "sequence_autoencoder"):
            raise ValueError(
                f"text:PATH and model.name=sequence_autoencoder go together, got {self.data.train} and {name}"
            )
        if is_text:
            self._has_nothing_of_images()
        if self.objective.learns_codes and (self.optimizer.sam_rho or self.data.augment.mixup_alpha):
            raise ValueError("an encoder-decoder does not go with optimizer.sam_rho or mixup")
        if training.compile and latent is not None and latent.generative == "none":
            raise ValueError(
                "training.compile compiles the whole network, and objective.latent.generative=none decodes nothing"
            )

    def _has_nothing_of_images(self) -> None:
        latent = self.objective.latent
        given = {
            "data.augment": changed_fields(self.data.augment),
            "data.image_size": self.data.image_size,
            "data.channels": self.data.channels,
            "model.mean": self.model.mean,
            "model.std": self.model.std,
            "training.channels_last": self.training.channels_last,
            "evaluation.corruptions": self.evaluation.corruptions,
            "objective.latent.views = 2": latent is not None and latent.views == 2,
        }
        if foreign := [key for key, value in given.items() if value]:
            raise ValueError(f"{foreign[0]}: is for images, not for text:PATH")
        if strangers := [name for name in self.evaluation.ood if not name.startswith("text:")]:
            raise ValueError(f"evaluation.ood = {strangers[0]}: OOD sets of text are text:PATH")

    def _sampling_fits(self, jem: JEMTerm) -> None:
        if jem.inner_steps and self.model.name != "wide_resnet":
            raise ValueError("objective.jem.inner_steps need model.name=wide_resnet, whose first layer is known")
        if jem.augment and self.data.augment.mixup_alpha:
            raise ValueError("mixup needs objective.jem.augment=false: a mixed image is no draw from the data")
        if self.training.precision == "fp16":
            raise ValueError("objective.jem needs training.precision auto, bf16 or fp32: fp16 has too small a range")
        if self.schedule.name == "one_cycle":
            raise ValueError("objective.jem cannot go with schedule.name=one_cycle, which no rollback can slow down")

    def _features_fit(self, supcon: SupConTerm) -> None:
        if self.model.name != "wide_resnet":
            raise ValueError("objective.supcon needs model.name=wide_resnet, whose features are known")
        if self.data.augment.mixup_alpha or self.optimizer.sam_rho or self.training.compile:
            raise ValueError("objective.supcon does not go with mixup, optimizer.sam_rho or training.compile")
        if self.training.max_steps is not None:
            raise ValueError("objective.supcon has two stages, counted in epochs: leave out training.max_steps")
        if self.schedule.name == "one_cycle":
            raise ValueError("objective.supcon has two stages, and schedule.name=one_cycle one: take cosine")
        if supcon.head_epochs >= self.training.epochs:
            raise ValueError(
                f"objective.supcon.head_epochs = {supcon.head_epochs}: must leave epochs of {self.training.epochs} "
                "to the encoder"
            )

    def _rows_are_never_whole(self) -> None:
        jem, nce, name = self.objective.jem, self.objective.nce, self.model.name
        if name != "wide_resnet":
            raise ValueError(
                f"training.linear_energy needs model.name=wide_resnet, whose features are known, got {name}"
            )
        reasons = {
            "objective.hdge": (self.objective.hdge, "its negatives are whole rows of logits"),
            "objective.logit_norm": (self.objective.logit_norm, "it divides a row by its norm"),
            "objective.supcon": (self.objective.supcon, "its head has a way of its own"),
            "objective.nce.learn_offset": (nce and nce.learn_offset, "the bias of the last layer learns the same"),
            "objective.jem of classes": (jem and jem.by_class, "its chains climb single logits"),
            "objective.jem.inner_steps": (jem and jem.inner_steps, "they pass the network in other parts"),
            "data.augment.mixup_alpha": (self.data.augment.mixup_alpha, "its targets are N x C"),
            "optimizer.sam_rho": (self.optimizer.sam_rho, "its second pass keeps the logits of the first"),
            "training.compile": (self.training.compile, "it compiles the network up to its logits"),
        }
        for key, (asked, reason) in reasons.items():
            if asked:
                raise ValueError(
                    f"training.linear_energy computes no N x C logits and does not go with {key}: {reason}"
                )

    @property
    def encoder_epochs(self) -> int:
        """Epochs until supcon's linear head goes on alone; without supcon all of them."""
        supcon = self.objective.supcon
        return self.training.epochs - (supcon.head_epochs if supcon is not None else 0)

    def to_yaml(self) -> str:
        """The recipe with every default written out, as a run keeps it; `load_recipe` reads it back."""
        foreign = set() if self.model.name == "wide_resnet" else WIDE_RESNET_KEYS
        return yaml.safe_dump(self.model_dump(exclude_none=True, exclude={"model": foreign}), sort_keys=False)
