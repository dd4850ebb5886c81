"""What a model offers to be probed: its representations, and what else of it can be measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ebmhybrid.data.sets import ImageSet
from ebmhybrid.data.tokens import TokenSet
from ebmhybrid.embedding import informative_embedding
from ebmhybrid.evaluate.features import captured, given_by
from ebmhybrid.models.autoencoder import Autoencoder
from ebmhybrid.models.image_transformer import ImageTransformer
from ebmhybrid.models.sequence_autoencoder import SequenceAutoencoder
from ebmhybrid.runs import OpenedRun

Encode = Callable[[Any, Tensor], Tensor]
SAMPLES = 100
FITTED = 1000  # training images whose codes say where a MIM's samples lie
# An image is drawn token by token; from 32x32 pixels on a test set would take hours on a CPU.
DRAWN_TOKENS = 256


class Representation(nn.Module):
    """One of a model's representations as a module of its own, from inputs to (N, D)."""

    def __init__(self, model: nn.Module, encode: Encode) -> None:
        super().__init__()
        self.model, self.encode = model, encode

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(self.model, x)


def representations_of(model: nn.Module) -> dict[str, nn.Module]:
    """A model's representations by name, each a module from images, or token sequences, to (N, D).

    Autoencoders have `mean` (of q(z|x)), `informative` (:func:`ebmhybrid.embedding.informative_embedding`) and
    `informative+mean`; image transformers `pooled`, `projection` and `informative`; classifiers `features`, what their
    last linear layer is given. A baseline stands beside them: `pixels`, or `counts`, how often each token occurs.

    >>> list(representations_of(Autoencoder(latent=4, width=16)))
    ['mean', 'informative', 'informative+mean', 'pixels']
    """
    baseline: dict[str, Encode] = {"pixels": lambda own, x: x.flatten(1)}
    if isinstance(model, ImageTransformer):
        encoders: dict[str, Encode] = {
            "pooled": lambda own, x: own.features(x),
            "projection": lambda own, x: own.project(own.features(x)),
            "informative": lambda own, x: informative_embedding(own.encode, own.logits, x),
        }
    elif isinstance(model, (Autoencoder, SequenceAutoencoder)):
        encoders = {
            "mean": lambda own, x: own.encode(x).mean,
            "informative": lambda own, x: informative_embedding(own.encode, own.decode, x),
            "informative+mean": lambda own, x: informative_embedding(own.encode, own.decode, x, concat_latent=True),
        }
        if isinstance(model, SequenceAutoencoder):
            baseline = {"counts": _counts}
    elif hasattr(model, "features"):
        encoders = {"features": lambda own, x: own.features(x)}
    else:
        encoders = {"features": _before_head} if given_by(model) else {}
    return {name: Representation(model, encode) for name, encode in (encoders | baseline).items()}


def _counts(model: SequenceAutoencoder, tokens: Tensor) -> Tensor:
    return one_hot(tokens, len(model.vocabulary)).sum(1)[:, 1:].float()  # without the padding, which is 0


def _before_head(model: nn.Module, images: Tensor) -> Tensor:
    with captured(model) as kept:
        model(images)
    return kept[0]


@dataclass(frozen=True)
class Offer:
    """What of a model can be measured; the arguments of :func:`ebmhybrid.evaluate.evaluate_representation`."""

    representations: dict[str, nn.Module]
    log_likelihood: Callable[[Tensor], Tensor] | None = None
    reconstruct: Callable[[Tensor], Tensor] | None = None
    samples: Callable[[], Tensor] | None = None
    bits: Callable[[Any], Tensor | None] | None = None
    notes: tuple[str, ...] = ()
    likelihood: str = "log-likelihood"  # what these figures are of: unlike ones are not compared
    reconstruction: str = "reconstruction"


def offered(opened: OpenedRun, seed: int, train: ImageSet | TokenSet | None = None) -> Offer:
    """What a run's model offers: of parts that its objective did not train, nothing but a note.

    A MIM's codes do not fill the prior: with training images at hand its samples are decoded from a normal distribution
    fitted to the means of their codes.
    """
    model, terms = opened.model, opened.recipe.objective
    encoders = representations_of(model)
    generator = torch.Generator().manual_seed(seed)
    if terms.latent is None and terms.gcrl is None:
        return Offer(encoders)
    if terms.gcrl is not None and not terms.gcrl.weight:
        del encoders["projection"]
    if (terms.latent and terms.latent.generative == "none") or (terms.gcrl and not terms.gcrl.generative_weight):
        kept = {name: encoder for name, encoder in encoders.items() if not name.startswith("informative")}
        return Offer(kept, notes=("the decoder was not trained: there is nothing of it to measure",))
    if isinstance(model, ImageTransformer):
        return _of_transformer(model, encoders, generator)
    if isinstance(model, SequenceAutoencoder):
        return Offer(encoders, Representation(model, _given_mean), notes=(_GIVEN_MEAN,), likelihood=_AT_MEAN)
    assert isinstance(model, Autoencoder)

    def bits(log_prob: Any) -> Tensor | None:
        found = model.likelihood.bits_per_dimension(torch.as_tensor(log_prob), math.prod(model.image_shape))
        return None if found.isnan().all() else found

    offer = Offer(
        encoders,
        Representation(model, _given_mean),
        Representation(model, lambda own, images: own.mean_image(own.encode(images).mean)),
        partial(model.sample, SAMPLES, generator),
        bits,
        (_GIVEN_MEAN,),
        likelihood=f"{_AT_MEAN}, {type(model.likelihood).__name__}",
        reconstruction="mean image",
    )
    if train is None or terms.latent is None or terms.latent.generative != "mim":
        return offer
    some = train.take(FITTED)
    images = next(some.fetch([torch.arange(len(some))]))[0]
    note = f"samples are decoded from a normal distribution fitted to the codes of {len(images)} training images"
    return replace(offer, samples=partial(_from_codes, model, images, generator), notes=(*offer.notes, note))


@torch.no_grad()
def _from_codes(model: Autoencoder, images: Tensor, generator: torch.Generator) -> Tensor:
    means = model.encode(images.to(model.output.weight)).mean.double()
    covariance = torch.cov(means.T).reshape(model.latent, model.latent)
    # Directions in which no code varies leave no Cholesky factor; the symmetric root always is there.
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    noise = torch.randn(SAMPLES, model.latent, generator=generator, dtype=torch.float64).to(means.device)
    return model.mean_image((means.mean(0) + noise @ root).to(model.output.weight))


_AT_MEAN = "log p(x|z) at the mean code"
_GIVEN_MEAN = "log_likelihood is log p(x|z) at the mean of q(z|x), which is no likelihood of x"


def _given_mean(model: Any, x: Tensor) -> Tensor:
    return model.log_likelihood(x, model.encode(x).mean)


def _of_transformer(model: ImageTransformer, encoders: dict[str, nn.Module], generator: torch.Generator) -> Offer:
    """The exact log p(x) of an empty memory, and images drawn without a memory and with that of an image."""
    offer = Offer(encoders, bits=lambda log_likelihood: model.bits_per_dimension(torch.as_tensor(log_likelihood)))
    if model.empty > 0:
        likelihood = Representation(model, lambda own, images: own.log_likelihood(images))
        note = f"log_likelihood is log p(x) of images quantised to {model.levels} levels"
        samples = partial(model.sample, SAMPLES, generator)
        kind = f"log p(x), quantised to {model.levels} levels"
        offer = replace(offer, log_likelihood=likelihood, samples=samples, notes=(note,), likelihood=kind)
    if model.empty < 1 and model.num_tokens <= DRAWN_TOKENS:
        redrawn = Representation(model, lambda own, images: own.sample(len(images), generator, own.encode(images)))
        notes = (*offer.notes, "reconstructions are drawn from p(x | e(x))")
        offer = replace(offer, reconstruct=redrawn, notes=notes, reconstruction="drawn from p(x | e(x))")
    return offer
