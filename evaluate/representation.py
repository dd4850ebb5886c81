"""Quality of representations: what simple probes, distances and few labels make of frozen features.

A representation is a callable from images, or tokens, to features (N, D). Probes are fitted on features of the training
set and measured on those of the test set; nothing of the encoder is trained. What the figures are stands in `probes`,
`probes_neighbours`, `probes_ridge` and `probes_few_labels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .accuracy import AccuracyResult
from .corruption_kinds import CORRUPTIONS, SEVERITIES, check_sides
from .corruption_sets import corrupted
from .predictions import ImageSet, Progress, check_images, check_repeatable, set_name
from .representation_features import Encoded, Encoder, Models, encoded
from .representation_result import RepresentationResult, Row
from .representation_rows import (
    Bits,
    corruption_rows,
    few_label_rows,
    ood_rows,
    ood_scores,
    probe_rows,
    reconstruction_row,
    ridge_row,
)
from .results import SuiteResult, package_versions

__all__ = ["RepresentationResult", "evaluate_representation", "of_representation"]
Targets = tuple[Any, Any]


def evaluate_representation(
    encoders: Mapping[str, Encoder],
    train: ImageSet,
    test: ImageSet,
    *,
    validation: ImageSet | None = None,
    ood_sets: Mapping[str, ImageSet] | None = None,
    targets: Targets | None = None,
    log_likelihood: Encoder | None = None,
    reconstruct: Encoder | None = None,
    samples: Tensor | None = None,
    bits: Bits | None = None,
    corruptions: bool = False,
    few_labels: bool = True,
    train_limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    device: torch.device | str | None = None,
) -> RepresentationResult:
    """What representations are worth, by whatever is given to measure them with; see :class:`RepresentationResult`.

    Arguments:
        encoders: name -> callable from images to features (N, D); more dimensions are flattened. Modules, bound methods
            of modules and partials of these are put into eval mode; other functions are called as they are.
        train, test: labelled sets of (images, labels), or of (tokens int64 (N, L), labels). With labels of a single
            class there are no probes of classes.
        validation: chooses the strength of the linear probe's penalty.
        ood_sets: name -> set, told from the test set by distances to the training features and by `log_likelihood`.
        targets: numbers to regress on, (N,) of the training and (M,) of the test set; None takes the sets' own
            `.targets` where both have them.
        log_likelihood: inputs -> (N,), nats; low for OOD.
        reconstruct: images -> images in [0, 1].
        samples: (M, C, H, W) in [0, 1], for a picture.
        bits: log-likelihoods (N,) -> bits per dimension (N,), or None where there are none.
        corruptions: whether to measure the linear probes on corrupted test images too.
        few_labels: whether to measure the linear probe with few labels of each class.
        train_limit: at most so many training examples, by the set's own `.take`, else the first ones.
        seed: of few labels and of corruptions.
        progress: progress(batches, text) -> batches, to show a bar.
        device: where inputs go; None is the device of the first module among the callables.

    Raises:
        EbmhybridError: sets, features or targets that cannot be used, or nothing to measure; the message names them.

    >>> data = [(torch.rand(20, 1, 1, 3), torch.arange(20) % 2)]
    >>> result = evaluate_representation({"pixels": lambda images: images}, data, data, few_labels=False)
    >>> [(row["probe"], row.get("k"), row["n"]) for row in result.rows]
    [('linear', None, 20), ('knn', 1, 20), ('knn', 5, 20), ('knn', 20, 20)]
    """
    if not encoders:
        raise EbmhybridError("no representation was given: encoders maps a name to a callable")
    strangers = dict(ood_sets or {})
    for data in (train, test, *filter(None, [validation]), *strangers.values()):
        check_repeatable(data)
    if samples is not None:
        check_images(samples, "samples")
    measured, alone = Models(encoders, log_likelihood, reconstruct), Models(encoders)
    shared: dict[str, Any] = {"device": device, "progress": progress}
    seen_test = encoded(measured, test, **shared)
    seen_train = encoded(alone, train, name=set_name(train, "train"), limit=train_limit, **shared)
    held = None if validation is None else encoded(alone, validation, name=set_name(validation, "validation"), **shared)
    notes = _limited(seen_train, train, train_limit)
    rows, probes = [], {}
    labelled = len(np.unique(seen_train.labels)) > 1
    if labelled:
        classes = int(max(seen_train.labels.max(), seen_test.labels.max(), *([] if held is None else held.labels))) + 1
        for name in encoders:
            found, probes[name] = probe_rows(name, seen_train, seen_test, held, classes)
            rows += found
        if few_labels:
            rows += [row for name in encoders for row in few_label_rows(name, seen_train, seen_test, seed)]
    rows += _ridge(seen_train, seen_test, _targets(targets, train, test, train_limit))
    likelihoods = Models(encoders, log_likelihood)
    others = {str(name): encoded(likelihoods, data, name=str(name), **shared) for name, data in strangers.items()}
    scores = ood_scores(seen_train, seen_test, others) if others else None
    rows += ood_rows(scores) if scores is not None else []
    if corruptions and probes:
        rows += corruption_rows(probes, seen_test, _corrupted(alone, test, seed, device, progress))
    if log_likelihood is not None or reconstruct is not None:
        rows.append(reconstruction_row(seen_test, bits))
    if not rows:
        raise EbmhybridError("nothing to measure: the training set has one class, and there are no targets or OOD sets")
    notes += [
        f"the linear probe of {row['representation']} did not converge" for row in rows if row.get("converged") is False
    ]
    sets = [("test", seen_test), ("train", seen_train), *([] if held is None else [("validation", held)])]
    about = {
        "sets": [one.described(role) for role, one in (*sets, *(("ood", one) for one in others.values()))],
        "representations": {name: values.shape[1] for name, values in seen_test.features.items()},
        "seed": seed,
    }
    pictures = None if samples is None else samples.detach().cpu().float().numpy()
    return RepresentationResult(tuple(rows), about, tuple(notes), scores, seen_test.pairs, pictures)


def of_representation(
    result: RepresentationResult, context: Mapping[str, Any] | None = None, notes: Sequence[str] = ()
) -> SuiteResult:
    """The result as an evaluation with this part alone, to save, print and compare.

    Arguments:
        context: JSON-able facts for the report; `context["config"]` is the recipe, `context["model"]` a title.
        notes: more for the reader to know; they follow the context's own.

    There is no classifier, so the accuracy's row names the test set and has no figure.
    """
    sets = result.about["sets"]
    told = dict(context or {})
    every = [*told.get("notes", ()), *notes, *result.notes]
    if every:
        told["notes"] = every
    return SuiteResult(
        accuracy=AccuracyResult(({"set": sets[0]["name"], "n": sets[0]["n"]},)),
        calibration=None,
        selective=None,
        ood=None,
        sets=tuple(sets),
        settings={
            "limit": None,
            "seed": result.about["seed"],
            "representations": dict(result.about["representations"]),
        },
        context=told,
        versions=package_versions(),
        test_scores=result.scores.id_scores if result.scores is not None else {},
        representation=result,
    )


def _limited(seen: Encoded, data: ImageSet, limit: int | None) -> list[str]:
    """A note where training examples were left out."""
    if limit is None or len(seen) < limit:
        return []
    return [f"probes saw {len(seen)} training examples"]


def _targets(targets: Targets | None, train: ImageSet, test: ImageSet, limit: int | None) -> Targets | None:
    return targets


def _ridge(train: Encoded, test: Encoded, targets: Targets | None) -> list[Row]:
    return [] if targets is None else [ridge_row(name, train, test, targets) for name in train.features]


def _corrupted(
    models: Models, test: ImageSet, seed: int, device: Any, progress: Progress | None
) -> Iterator[tuple[str, int, Encoded]]:
    """Each corruption and severity with the features of the test images under it."""
    cells: Iterable[Any] = [(kind, severity) for kind in CORRUPTIONS for severity in SEVERITIES]
    for kind, severity in progress(cells, "corruptions") if progress else cells:
        yield kind, severity, encoded(models, corrupted(test, kind, severity, seed), device=device)
