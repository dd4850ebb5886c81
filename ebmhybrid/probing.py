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
        likelihood=offer.likelihood,
        reconstruction=offer.reconstruction,
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


def _some(images: Any, limit: int | None, batch_size: int) -> Any:
    """At most so many examples of a set, in batches of this size."""
    return replace(images if limit is None else images.take(limit), batch_size=batch_size)


def _text(name: str, model: nn.Module) -> TokenSet:
    """A file of token sequences in the vocabulary of the model."""
    kind, _, path = name.partition(":")
    if kind != "text" or not path:
        raise UsageError(f"OOD set {name!r}: the model is of text, and takes text:PATH")
    return load_text(path, model.max_length, model.vocabulary)  # type: ignore[arg-type]
