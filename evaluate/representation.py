"""Quality of representations: what simple probes, distances and few labels make of frozen features.

A representation is a callable from images, or tokens, to features (N, D). Probes are fitted on features of the training
set and measured on those of the test set; nothing of the encoder is trained. What the figures are stands in `probes`,
`probes_neighbours`, `probes_ridge` and `probes_few_labels`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

from .accuracy import AccuracyResult
from .corruption_kinds import CORRUPTIONS, SEVERITIES, check_sides
from .corruption_sets import corrupted
from .predictions import ImageSet, Progress, check_images, check_repeatable, set_name, taken
from .probes import LinearProbe
from .representation_features import Encoded, Encoder, Models, encoded
from .representation_result import NO_CLASSES, ONE_CLASS, RepresentationResult, Row
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
_MOST_SAMPLES = 100


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
    likelihood: str = "log-likelihood",
    reconstruction: str = "reconstruction",
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
            of modules and partials of these are put into eval mode; other functions are called as they are. The first
            one is the main representation, which the report has at its head; "pixels" and "counts" are baselines.
        train, test: labelled sets of (images, labels), or of (tokens int64 (N, L), labels). With labels of a single
            class there are no probes of classes.
        validation: chooses the strength of the linear probe's penalty.
        ood_sets: name -> set, told from the test set by distances to the training features and by `log_likelihood`.
        targets: numbers to regress on, (N,) of the training examples used and (M,) of the test set; None takes the
            sets' own `.targets` where both have them.
        log_likelihood: inputs -> (N,), nats; low for OOD.
        reconstruct: images -> images in [0, 1].
        likelihood, reconstruction: what kind these are, such as "log p(x), quantised to 17 levels" or "drawn from
            p(x|z)"; `ebmhybrid compare` compares figures of equal kinds alone.
        samples: (M, C, H, W) in [0, 1], for a picture of the first 100.
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
    _check(encoders, {"train": train, "test": test, "validation": validation, **(ood_sets or {})}, samples)
    alone, likely = Models(encoders), Models(encoders, log_likelihood)
    whole = Models(encoders, log_likelihood, reconstruct)
    shared: dict[str, Any] = {"device": device, "progress": progress}
    seen = _Seen(
        encoded(alone, train, name=set_name(train, "train"), limit=train_limit, **shared),
        encoded(whole, test, name=set_name(test, "test"), **shared),
        encoded(alone, validation, name=set_name(validation, "validation"), **shared)
        if validation is not None
        else None,
        {str(name): encoded(likely, data, name=str(name), **shared) for name, data in (ood_sets or {}).items()},
    )
    numbers = targets if targets is not None else _own_targets(train, test, train_limit)
    rows, probes = _of_classes(seen, few_labels, seed)
    if numbers is not None:
        rows += [ridge_row(name, seen.train, seen.test, *numbers) for name in encoders]
    scores = ood_scores(seen.train, seen.test, seen.strangers) if seen.strangers else None
    rows += ood_rows(scores) if scores is not None else []
    if corruptions:
        _check_corruptible(seen.test, probes)
        rows += corruption_rows(probes, seen.test, _corrupted(alone, test, seed, **shared))
    if log_likelihood is not None or reconstruct is not None:
        rows.append(reconstruction_row(seen.test, bits, likelihood, reconstruction))
    if not rows:
        raise EbmhybridError(f"nothing to measure: {ONE_CLASS}, and there are no targets and no OOD sets")
    notes = [f"at most {train_limit} training examples were used"] if train_limit is not None else []
    notes += [NO_CLASSES] if not probes else []
    notes += [f"the linear probe of {name} did not converge" for name, probe in probes.items() if not probe.converged]
    about = {"sets": seen.described(), "representations": seen.widths, "train_limit": train_limit, "seed": seed}
    pictures = None if samples is None else samples[:_MOST_SAMPLES].detach().cpu().float().numpy()
    return RepresentationResult(tuple(rows), about, tuple(notes), scores, seen.test.pairs, pictures)


@dataclass(frozen=True)
class _Seen:
    """The sets as the encoders see them."""

    train: Encoded
    test: Encoded
    validation: Encoded | None
    strangers: Mapping[str, Encoded]

    @property
    def widths(self) -> dict[str, int]:
        """Representation -> number of features."""
        return {name: values.shape[1] for name, values in self.test.features.items()}

    @property
    def classes(self) -> int:
        """One more than the largest label of the sets with the model's own classes."""
        own = (self.train, self.test, *filter(None, [self.validation]))
        return 1 + max(int(one.labels.max()) for one in own)

    def described(self) -> list[Row]:
        """What identifies each set in a report, the test set first."""
        held = [] if self.validation is None else [self.validation.described("validation")]
        others = [one.described("ood") for one in self.strangers.values()]
        return [self.test.described("test"), self.train.described("train"), *held, *others]


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


def _check(encoders: Mapping[str, Encoder], sets: Mapping[str, ImageSet | None], samples: Tensor | None) -> None:
    """What can be refused before any forward pass."""
    if not encoders:
        raise EbmhybridError("no representation was given: encoders maps a name to a callable")
    for name in encoders:
        if not isinstance(name, str) or not name.strip():
            raise EbmhybridError(f"a representation needs a name, got {name!r}")
    for name, data in sets.items():
        if data is not None:
            check_repeatable(data, str(name))
    if samples is not None:
        check_images(samples, "samples")


def _of_classes(seen: _Seen, few_labels: bool, seed: int) -> tuple[list[Row], dict[str, LinearProbe]]:
    """The probes of classes, and the linear ones; nothing where all training labels are the same."""
    rows: list[Row] = []
    probes: dict[str, LinearProbe] = {}
    if len(np.unique(seen.train.labels)) < 2:
        return rows, probes
    for name in seen.widths:
        found, probes[name] = probe_rows(name, seen.train, seen.test, seen.validation, seen.classes)
        rows += found
    if few_labels:
        rows += [row for name in seen.widths for row in few_label_rows(name, seen.train, seen.test, seed)]
    return rows, probes


def _own_targets(train: ImageSet, test: ImageSet, limit: int | None) -> Targets | None:
    """The `.targets` of the sets, of the training set those of the examples used; None where one has none."""
    found = getattr(taken(train, limit), "targets", None), getattr(test, "targets", None)
    return None if found[0] is None or found[1] is None else found


def _check_corruptible(test: Encoded, probes: Mapping[str, LinearProbe]) -> None:
    if len(test.shape) != 3:
        raise EbmhybridError(f"set {test.name!r}: corruptions are made of images, and its examples are of {test.shape}")
    if not probes:
        raise EbmhybridError(f"corruptions are measured by the linear probe, and {ONE_CLASS}")
    check_sides(test.shape)


def _corrupted(
    models: Models, test: ImageSet, seed: int, device: torch.device | str | None, progress: Progress | None
) -> Iterator[tuple[str, int, Encoded]]:
    """Each corruption and severity with the features of the test images under it."""
    cells: Iterable[Any] = [(kind, severity) for kind in CORRUPTIONS for severity in SEVERITIES]
    for kind, severity in progress(cells, f"{set_name(test)}: corruptions") if progress else cells:
        yield kind, severity, encoded(models, corrupted(test, kind, severity, seed), device=device)
