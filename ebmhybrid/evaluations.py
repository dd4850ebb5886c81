"""The evaluation of models that ebmhybrid never trained, from weights and data by name, or from logits alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ebmhybrid.data import ImageSet, load_set, load_splits
from ebmhybrid.data.published import SOURCES
from ebmhybrid.errors import DataError, UsageError
from ebmhybrid.eval_sets import Source
from ebmhybrid.evaluate import suite
from ebmhybrid.evaluate.detectors import check_scores
from ebmhybrid.evaluate.from_logits import read_logits
from ebmhybrid.external import load_external
from ebmhybrid.measures import choose, measure
from ebmhybrid.runs import home_of
from ebmhybrid.training.build import OF_NO_SIZE
from ebmhybrid.training.checkpoint import weights_digest
from ebmhybrid.training.engine import pick_device

PICTURE_SIZE = 224  # what torchvision's and most of timm's models were made for


def evaluate_external(
    model: str,
    weights: str | Path,
    data: str,
    *,
    validation: str | None = None,
    train_data: str | None = None,
    num_classes: int | None = None,
    channels: int = 3,
    image_size: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    data_dir: str | Path = "data",
    download: bool = True,
    strict: bool = False,
    device: str = "auto",
    cache: bool = True,
    progress: suite.Progress | None = None,
    **measured: Any,
) -> suite.SuiteResult:
    """Evaluate a torchvision or timm classifier with weights from a file on data by name.

    Arguments:
        model, weights, num_classes, channels, mean, std: see :func:`ebmhybrid.external.load_external`.
        data: name of the labelled test set. Class i of a folder is the i-th of its sub-folders in the order of names.
        validation: name of labelled images that the model was not trained on; without it no temperature is fitted.
        train_data: name of the images it was trained on, for the detectors that are fitted on them: of a published
            set its training split without a stratified tenth, else everything.
        image_size: side of the images given to the model. None is the data's own, 224 for pictures of all sizes.
        data_dir, download, strict: as in :func:`ebmhybrid.data.load_set`.
        cache: whether predictions are kept beside the weights, and interrupted attacks go on from there.
        measured: what to measure, the fields of :class:`ebmhybrid.measures.Measures`.

    Raises:
        EbmhybridError: weights, a set or a name that cannot be used, or classes that are not the model's.
    """
    measures = choose(measured)
    named = {"validation": validation, "train": train_data}
    check_scores(measures.scores, ["features", "head", "images", *(part for part, name in named.items() if name)])
    where = pick_device(device)
    network = load_external(model, weights, num_classes, channels=channels, mean=mean, std=std)
    test = _test_set(data, channels, image_size, data_dir, download, strict)
    classes = network.num_classes
    assert isinstance(classes, int)
    _check_classes(test, model, classes)
    _try_on(network, test, model)
    source = Source(data_dir, download, test.shape, strict=strict)
    held_out = source.load(validation) if validation else None
    seen = _train_set(train_data, source) if train_data else None
    for other in filter(None, (held_out, seen)):
        _check_classes(other, model, classes)
        _check_other(other, test)
    network = network.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    digest = weights_digest(network)
    identity = _identity(model, digest, network)
    notes = [] if mean is not None and std is not None else [_normalisation(network)]
    if measures.calibration and held_out is None:
        notes.append(_NO_TEMPERATURE.format("--validation NAME"))
    return measure(
        network,
        test,
        measures,
        source,
        id_name=data,
        weights=identity,
        cache=home_of(weights) / "cache" if cache else None,
        validation=held_out,
        train=seen,
        context={
            "model": model,
            "weights": {"path": str(weights), "sha256": digest},
            "classes": list(test.classes),
            "notes": notes,
        },
        device=where,
        progress=progress,
    )


def evaluate_logits(
    path: str | Path, *, scores: Sequence[str] | None = None, calibration: bool = True
) -> suite.SuiteResult:
    """Evaluate the logits of a file: accuracy, calibration, selective classification, and OOD detection where it can.

    Arguments:
        path: .npz with the arrays of :func:`ebmhybrid.evaluate.from_logits.read_logits`.
        scores: OOD scores that need no images; energy and msp if None.

    Raises:
        EbmhybridError: a file or a name that cannot be used, or a score that needs what the file does not hold.
    """
    sets = read_logits(path)
    without_temperature = calibration and sets.validation is None
    notes = [_NO_TEMPERATURE.format("validation_logits and validation_labels")] if without_temperature else []
    return suite.evaluate_predictions(
        sets.test,
        validation=sets.validation,
        train=sets.train,
        ood=sets.ood,
        head=sets.head,
        scores=scores or ("energy", "msp"),
        calibration=calibration,
        context={"model": Path(path).stem, "logits": str(path), "notes": notes},
    )


_NO_TEMPERATURE = "no temperature was fitted, which takes held-out images: {}"


def _test_set(
    data: str, channels: int, size: int | None, data_dir: str | Path, download: bool, strict: bool
) -> ImageSet:
    """The set in the channels asked for and the size asked for, else its own."""
    size = size or (PICTURE_SIZE if data.startswith(OF_NO_SIZE) else None)
    shape = (channels, size, size) if size else None
    images = load_set(data, data_dir=data_dir, download=download, shape=shape, strict=strict)
    _, height, width = images.shape
    if height != width:
        raise UsageError(f"{data}: its images are {height}x{width}, not square: add --image-size N")
    return images.adapt(channels, height)


def _train_set(name: str, source: Source) -> ImageSet:
    if name.partition(":")[0] not in SOURCES:
        return source.load(name)
    return load_splits(name, data_dir=source.data_dir, download=source.download, shape=source.shape).train


def _check_classes(images: ImageSet, model: str, classes: int) -> None:
    """As many classes as the model; fewer only where class i is called i, so that the rest may be without images."""
    numbered = images.classes == tuple(str(label) for label in range(images.num_classes))
    if images.num_classes == classes or (numbered and images.num_classes < classes):
        return
    first = ", ".join(images.classes[:3]) + (", ..." if images.num_classes > 3 else "")
    raise DataError(
        f"{images.name}: has {images.num_classes} classes ({first}), the weights of {model} have {classes}; classes are"
        " numbered in that order, for a folder the order of its sub-folders' names"
    )


def _check_other(images: ImageSet, test: ImageSet) -> None:
    """Images beside the test set: of the same classes in the same order, where both have names for them, and others."""
    numbered = any(all(map(str.isdecimal, part.classes)) for part in (images, test))
    if not numbered and images.classes != test.classes:
        own, there = next(pair for pair in zip(images.classes, test.classes, strict=True) if pair[0] != pair[1])
        raise DataError(f"{images.name}: its classes are not those of {test.name}, {own!r} stands for {there!r}")
    if images.digest() == test.digest():
        raise UsageError(f"{images.name}: is the test set itself; what is fitted on it would flatter the figures")


def _try_on(network: nn.Module, images: ImageSet, model: str) -> None:
    """One image through the model: a size it cannot take is an error now, in one line."""
    batch, _ = next(iter(images.take(1)))
    try:
        with torch.no_grad():
            network(batch)
    except Exception as error:  # each model has its own way to refuse a size
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"model {model!r} cannot take images of {images.shape}: {reason}; --image-size and --channels set them"
        ) from error


def _statistics(network: nn.Module) -> dict[str, list[float]]:
    normalize = network.get_submodule("normalize")
    return {name: getattr(normalize, name).flatten().tolist() for name in ("mean", "std")}


def _identity(model: str, weights: str, network: nn.Module) -> str:
    """What decides a network's predictions: the normalisation too, which is no part of its weights."""
    content = json.dumps([model, weights, _statistics(network)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _normalisation(network: nn.Module) -> str:
    statistics = _statistics(network)
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in statistics.values())
    usual = "ImageNet's" if len(statistics["mean"]) == 3 else "0.5"
    return f"images are normalised by mean {mean} and std {std}, by default {usual}; --mean and --std set others"
