"""From a run to its probe: its data, what its model offers, and the result to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ebmhybrid.data.text import load_text
from ebmhybrid.data.tokens import TokenSet
from ebmhybrid.errors import UsageError
from ebmhybrid.eval_sets import load_strangers
from ebmhybrid.evaluate.representation import evaluate_representation, of_representation
from ebmhybrid.offers import offered
from ebmhybrid.runs import open_run, splits_of

if TYPE_CHECKING:
    from ebmhybrid.evaluate.results import SuiteResult
    from ebmhybrid.evaluate.suite import Progress


def probe_run(
    run: str | Path,
    *,
    ood: Sequence[str] | None = None,
    corruptions: bool | None = None,
    limit: int | None = None,
    train_limit: int | None = None,
    seed: int | None = None,
    data_dir: str | Path = "data",
    download: bool = True,
    device: str = "auto",
    progress: Progress | None = None,
) -> SuiteResult:
    """Probe the representations of a run's model, fitted on its training and measured on its test split.

    Arguments:
        run: a run directory or a .safetensors file, of a classifier or an encoder-decoder.
        ood: names of OOD sets; None, like that of `corruptions` and `seed`, is what the run's recipe says.
        corruptions: whether to measure the linear probes on corrupted test images too.
        limit: at most so many examples of each set that is measured or validated on.
        train_limit: at most so many training examples.
        seed: of few labels, corruptions, and of what is drawn from the model.

    Raises:
        EbmhybridError: a run, a set or a name that cannot be used.
    """
    opened = open_run(run, device)
    recipe = opened.recipe
    seed = recipe.seed if seed is None else seed
    names = recipe.evaluation.ood if ood is None else ood
    corruptions = recipe.evaluation.corruptions if corruptions is None else corruptions
    splits = splits_of(recipe, opened.weights, data_dir, download)
    if isinstance(splits.train, TokenSet):
        strangers: dict[str, Any] = {name: _text(name, opened.model) for name in names}
    else:
        source = opened.source(data_dir, download)
        strangers = dict(load_strangers(names, recipe.data.test or recipe.data.train, source).sets)
    batch_size = recipe.evaluation.batch_size
    offer = offered(opened, seed, splits.train)
    result = evaluate_representation(
        offer.representations,
        _some(splits.train, None, batch_size),
        _some(splits.test, limit, batch_size),
        validation=_some(splits.validation, limit, batch_size),
        ood_sets={name: _some(images, limit, batch_size) for name, images in strangers.items()},
        log_likelihood=offer.log_likelihood,
        reconstruct=offer.reconstruct,
        samples=offer.samples() if offer.samples is not None else None,
        bits=offer.bits,
        corruptions=corruptions,
        train_limit=train_limit,
        seed=seed,
        progress=progress,
        device=opened.device,
    )
    found = of_representation(result, opened.context(), offer.notes)
    # Not `limit`, which a report takes for that of every set.
    asked = {"ood": list(strangers), "corruptions": corruptions, "test_limit": limit, "train_limit": train_limit}
    return replace(found, settings={**found.settings, **asked})


@dataclass(frozen=True)
class Offer:
    """What of a model can be measured; the arguments of :func:`ebmhybrid.evaluate.evaluate_representation`."""

    representations: dict[str, nn.Module]
    log_likelihood: Callable[[Tensor], Tensor] | None = None
    reconstruct: Callable[[Tensor], Tensor] | None = None
    samples: Callable[[], Tensor] | None = None
    bits: Callable[[Any], Tensor | None] | None = None
    notes: tuple[str, ...] = ()


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
        return Offer(encoders, Representation(model, _given_mean), notes=(_GIVEN_MEAN,))
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
    )
    if train is None or terms.latent is None or terms.latent.generative != "mim":
        return offer
    note = f"samples are decoded from a normal distribution fitted to the codes of {min(FITTED, len(train))} training images"
    images = as_input(train.take(FITTED).images)
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
        offer = replace(offer, log_likelihood=likelihood, samples=samples, notes=(note,))
    if model.empty < 1 and model.num_tokens <= DRAWN_TOKENS:
        redrawn = Representation(model, lambda own, images: own.sample(len(images), generator, own.encode(images)))
        offer = replace(offer, reconstruct=redrawn, notes=(*offer.notes, "reconstructions are drawn from p(x | e(x))"))
    return offer


def _some(images: Any, limit: int | None, batch_size: int) -> Any:
    """At most so many examples of a set, in batches of this size."""
    return replace(images if limit is None else images.take(limit), batch_size=batch_size)


def _text(name: str, model: nn.Module) -> TokenSet:
    """A file of token sequences in the vocabulary of the model."""
    kind, _, path = name.partition(":")
    if kind != "text" or not path:
        raise UsageError(f"OOD set {name!r}: the model is of text, and takes text:PATH")
    return load_text(path, model.max_length, model.vocabulary)  # type: ignore[arg-type]
