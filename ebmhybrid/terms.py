"""The terms that a recipe's objective is made of: typed, frozen, closed to unknown keys, each with its defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Energy = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]  # at the ends float32 has steps of 1/16
Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Locked(BaseModel):
    """Frozen, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def changed_fields(section: BaseModel) -> set[str]:
    """The keys of a section that are not at their default; a run's saved recipe names the others too."""
    fields = type(section).model_fields
    return {name for name in section.model_fields_set if getattr(section, name) != fields[name].default}


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
    bank_block: Count | None = None  # examples a row of the bank: larger is less to exchange between processes
    reference_weight: Positive = 1.0  # of each reference image in the live columns, where an image of the batch has 1

    @model_validator(mode="after")
    def _options_belong_together(self) -> HDGETerm:
        if self.reference_weight != 1 and self.negatives == "bank":
            raise ValueError("reference_weight is for live columns: negatives must be batch or bank+batch, got bank")
        if self.bank_block is not None and self.bank_block > self.bank_size:
            raise ValueError(f"bank_block must be at most bank_size = {self.bank_size}, got {self.bank_block}")
        return self


class JEMTerm(Locked):
    """-log p(x) or -log p(x|y) by Langevin samples (Grathwohl et al. 2020), in units of the [0, 1] pixel scale.

    There a gradient is twice as large and a distance half as long as for images in [-1, 1]: a published step and inner
    step are divided by 4, a bound on the gradient doubled, and a noise halved.
    """

    weight: Positive = 1.0
    # marginal: log p(x) = logsumexp f(x) + const; conditional: log p(x|y) = f(x)[y] + const at the batch's labels
    target: Literal["marginal", "conditional"] = "marginal"
    # marginal: chains climb log p(x); class: each climbs log p(x, y) of a class of its own, drawn uniformly
    chains: Literal["marginal", "class"] = "marginal"
    augment: bool = True  # false: the data of this term is taken as it is, without crops, flips and noise
    l2: NonNegative = 0.0  # of the mean squared log densities, which keeps them from drifting
    steps: Annotated[int, Field(ge=1)] = 20
    step_size: Positive = 0.25
    noise_std: NonNegative = 0.005
    clip: Positive | None = None
    clamp: bool = True
    inner_steps: Annotated[int, Field(ge=0)] = 0
    inner_step_size: Positive = 0.05
    buffer_size: Annotated[int, Field(ge=1, le=2**24)] = 10000
    reinit: Annotated[float, Field(ge=0, le=1)] = 0.05
    start: Literal["uniform", "gaussian"] = "uniform"

    @property
    def by_class(self) -> bool:
        """Whether each chain is a chain of a class."""
        return self.target == "conditional" or self.chains == "class"

    @model_validator(mode="after")
    def _options_belong_together(self) -> JEMTerm:
        if not self.inner_steps and "inner_step_size" in changed_fields(self):
            raise ValueError("inner_step_size belongs to inner_steps >= 1")
        if self.inner_steps and (self.clip is None or not self.clamp):
            raise ValueError("inner_steps need clip, the bound of an inner step's gradient, and clamp")
        return self


class LogitNormTerm(Locked):
    """Cross-entropy of normalised logits (Wei et al. 2022)."""

    weight: Positive = 1.0
    temperature: Positive = 0.04


class SupConTerm(Locked):
    """Supervised contrastive training of the features (Khosla et al. 2020), and a linear head on them.

    The head learns all along from detached features, and alone, with the encoder frozen, in the last `head_epochs`.
    """

    weight: Positive = 1.0
    temperature: Positive = 0.1
    projection: Annotated[int, Field(ge=1, le=2**16)] = 128
    head_epochs: Annotated[int, Field(ge=0)] = 10


class EnergyMarginTerm(Locked):
    """Squared hinges: E(x) below `inside` on data and above `outside` on reference images (Liu et al. 2020)."""

    weight: Positive = 0.1
    inside: Energy = -23.0
    outside: Energy = -5.0

    @model_validator(mode="after")
    def _inside_is_lower(self) -> EnergyMarginTerm:
        if not self.inside < self.outside:
            raise ValueError(f"inside must be less than outside, got {self.inside:g} and {self.outside:g}")
        return self


class OutlierExposureTerm(Locked):
    """Cross-entropy of reference images to the uniform distribution (Hendrycks et al. 2019)."""

    weight: Positive = 0.5


class NCETerm(Locked):
    """Data told from reference images by logsumexp f(x) - offset, as log odds (Gutmann & Hyvarinen 2010).

    Then logsumexp f(x) is log p(x) relative to the reference. With weight 1, ce beside it, and the number of reference
    images over that of images as `reference_weight` it is cross-entropy with a background class of logit `offset`.
    """

    weight: Positive = 0.25  # what tuning chose on Fashion-MNIST, in docs/study.md
    reference_weight: Positive = 1.0
    offset: Energy = 0.0
    learn_offset: bool = False  # from `offset` on; not decayed


class LatentTerm(Locked):
    """What an encoder-decoder with Gaussian codes learns: a generative loss, a contrast of codes, or both.

    VAE is `vae` with `none`, A-MIM `mim` with `none`, cMIM `mim` with `cmim`, cVAE `vae` with `cmim`, InfoNCE `none`
    with `infonce`, InfoNCE+MIM `mim` with `infonce`. A code's positive is itself, or with two views that of another
    augmentation of the image.
    """

    generative: Literal["none", "vae", "mim"] = "mim"
    contrast: Literal["none", "cmim", "infonce"] = "cmim"
    contrast_weight: Positive = 1.0
    temperature: Positive = 0.1
    views: Literal[1, 2] = 1

    @model_validator(mode="after")
    def _options_belong_together(self) -> LatentTerm:
        if self.generative == "none" and self.contrast == "none":
            raise ValueError("generative and contrast are both none: nothing would be trained")
        if self.views == 2 and self.contrast != "infonce":
            raise ValueError(f"views = 2 is for contrast: infonce, got {self.contrast}")
        foreign = {"contrast_weight", "temperature"} if self.contrast == "none" else set()
        if changed := sorted(foreign & changed_fields(self)):
            raise ValueError(f"{', '.join(changed)}: not an option without contrast")
        return self


class GCRLTerm(Locked):
    """The generative loss of an image transformer in nats a token, and a contrast of two views times `weight`."""

    weight: NonNegative = 1.0
    generative_weight: NonNegative = 1.0
    temperature: Positive = 0.1

    @model_validator(mode="after")
    def _trains_something(self) -> GCRLTerm:
        if not self.weight and not self.generative_weight:
            raise ValueError("weight and generative_weight are both 0: nothing would be trained")
        return self


class Objective(Locked):
    """The terms of the loss, added up. At least one that trains a classifier, a density or codes."""

    ce: CrossEntropyTerm | None = None
    hdge: HDGETerm | None = None
    jem: JEMTerm | None = None
    logit_norm: LogitNormTerm | None = None
    supcon: SupConTerm | None = None
    energy_margin: EnergyMarginTerm | None = None
    outlier_exposure: OutlierExposureTerm | None = None
    nce: NCETerm | None = None
    z_loss: ZLossTerm | None = None
    latent: LatentTerm | None = None
    gcrl: GCRLTerm | None = None

    @model_validator(mode="after")
    def _has_a_term(self) -> Objective:
        trains = ("ce", "hdge", "jem", "nce", "logit_norm", "supcon", "latent", "gcrl")
        if all(getattr(self, name) is None for name in trains):
            raise ValueError(f"needs at least one term of: {', '.join(trains)}")
        given = [name for name in Objective.model_fields if getattr(self, name) is not None]
        for alone, learns in (("supcon", "features and then a head"), ("latent", "codes"), ("gcrl", "codes")):
            if alone in given and len(given) > 1:
                others = ", ".join(name for name in given if name != alone)
                raise ValueError(f"{alone} trains {learns}, and does not go with {others}")
        if self.ce is not None and self.hdge is not None:
            raise ValueError("hdge has its own cross-entropy: leave out ce, and set objective.hdge.ce_weight")
        if self.hdge is not None and not self.hdge.weight and not self.hdge.ce_weight:
            raise ValueError("hdge.weight and hdge.ce_weight are both 0: nothing would be trained")
        return self

    @property
    def learns_codes(self) -> bool:
        """Whether an encoder-decoder is trained, and no classifier."""
        return self.latent is not None or self.gcrl is not None
