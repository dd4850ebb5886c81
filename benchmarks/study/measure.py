"""What is measured of a run: one row's figures, by the evaluation's own functions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.study.families import strangers
from benchmarks.study.settings import SETTINGS, Place, Setting
from ebmhybrid.data import ImageSet, Splits, load_set
from ebmhybrid.evaluate import evaluate_robustness, predict, sanity_panel
from ebmhybrid.evaluate.calibration_metrics import brier, ece, nll_of_logits
from ebmhybrid.evaluate.calibrators import fit_temperature
from ebmhybrid.evaluate.corruption_kinds import CORRUPTIONS
from ebmhybrid.evaluate.corruption_sets import corrupted
from ebmhybrid.evaluate.detectors import fit_detectors
from ebmhybrid.evaluate.ood_metrics import auroc, fpr95_id_positive
from ebmhybrid.evaluate.predictions import Predictions, softmax
from ebmhybrid.evaluate.scores import model_score
from ebmhybrid.evaluate.selective_metrics import aurc
from ebmhybrid.runs import open_run
from ebmhybrid.training.build import load_data

STRANGERS = 2000  # images of an OOD set, at most
NEIGHBOURS = 10_000  # training images that kNN looks among
ATTACKED = 256
CORRUPTED = 500
SEVERITIES = (1, 3, 5)
ATTACKS = {"pgd": "pgd50", "apgd-ce": "apgd"}
STEPS = 50
SCORES = ("energy", "msp", "knn")

Figures = dict[str, float]


def figures(folder: Path, setting: Setting, place: Place, device: str, whole: bool) -> Figures:
    """The figures of a finished run; robust and corrupted accuracy, which take longest, if they are to be `whole`.

    A setting for tuning has figures of validation images alone, named val_....
    """
    opened = open_run(folder, device)
    model, where, splits = opened.model, opened.device, splits_of(setting.name, place)
    validation = predict(model, splits.validation, where)
    found = {"val_accuracy": _accuracy(validation), "val_nll": nll_of_logits(validation.logits, validation.labels)}
    if setting.tuning:
        areas = _detection(model, splits.train, splits.validation, strangers(splits.validation), where)
        return found | {f"val_{name}": value for name, value in areas.items()}
    test = predict(model, splits.test, where)
    found |= {"n_test": float(len(splits.test))} | _of_classes(test, validation)
    found |= _detection(model, splits.train, splits.test, _ood_sets(setting.name, place), where)
    if whole:
        found |= _robust(model, splits.test, setting, where)
        found["corrupted"] = _corrupted(model, setting.name, place, where)
    return found


@lru_cache(maxsize=2)
def splits_of(setting: str, place: Place) -> Splits:
    """The splits of a setting, which are the same for all its runs."""
    return load_data(SETTINGS[setting].recipe("", 0, place), place.data_dir, download=True)


@lru_cache(maxsize=2)
def _ood_sets(setting: str, place: Place) -> dict[str, ImageSet]:
    """The OOD sets of a setting by the names of its figures, at most so many images of each."""
    shape = splits_of(setting, place).test.shape
    names = {name: place.name(data) for name, data in SETTINGS[setting].ood.items()}
    return {
        name: load_set(data, data_dir=place.data_dir, shape=shape).adapt(shape[0], shape[1]).take(STRANGERS)
        for name, data in names.items()
    }


def _accuracy(predictions: Predictions) -> float:
    return float((predictions.logits.argmax(1) == predictions.labels).mean())


def _of_classes(test: Predictions, validation: Predictions) -> Figures:
    """Accuracy, calibration before and after the temperature of the validation images, and what confidence ranks."""
    raw = softmax(test.logits)
    temperature = fit_temperature(validation.logits, validation.labels)
    scaled = softmax(test.logits / temperature)
    return {
        "accuracy": _accuracy(test),
        "nll": nll_of_logits(test.logits, test.labels),
        "nll_after": nll_of_logits(test.logits / temperature, test.labels),
        "brier": brier(raw, test.labels),
        "ece": ece(raw, test.labels),
        "ece_after": ece(scaled, test.labels),
        "temperature": temperature,
        "aurc": aurc(raw.max(1), test.logits.argmax(1) == test.labels),
    }


def _detection(
    model: nn.Module, train: ImageSet, inside: ImageSet, sets: Mapping[str, ImageSet], device: torch.device
) -> Figures:
    """AUROC and FPR95 of `inside` against each set by each score, kNN among some of the training images.

    The gradient norm, which takes longest, is that of at most STRANGERS images of `inside`, too.
    """
    fitted = fit_detectors(SCORES, train=predict(model, train.take(NEIGHBOURS), device, features=True))

    def scored(images: ImageSet) -> dict[str, np.ndarray]:
        predictions = predict(model, images, device, features=True)
        found = {name: score(predictions) for name, score in fitted.items()}
        return found | {"grad_norm": model_score(model, images.take(STRANGERS), "grad_norm", device)}

    own, found = scored(inside), {}
    for name, images in sets.items():
        for score, values in scored(images).items():
            found[f"auroc/{score}/{name}"] = auroc(own[score], values)
            found[f"fpr95/{score}/{name}"] = fpr95_id_positive(own[score], values)
    return found


def _robust(model: nn.Module, test: ImageSet, setting: Setting, device: torch.device) -> Figures:
    """Accuracy under each attack and radius, and how many of the signs of masked gradients warn."""
    images, generator = test.take(ATTACKED), torch.Generator().manual_seed(0)
    result = evaluate_robustness(
        model,
        images,
        list(ATTACKS),
        eps=setting.radii,
        steps=STEPS,
        generator=generator,
        device=device,
        batch_size=ATTACKED,
    )
    names = dict(zip(setting.radii, setting.eps, strict=True))
    found = {
        f"{ATTACKS[row['attack']]}/{names[row['eps']]}": row["robust_accuracy"]
        for row in result.rows
        if row["attack"] in ATTACKS
    }
    panel = sanity_panel(
        model, images, eps=setting.radii[-1], limit=100, generator=generator, device=device, robustness=result
    )
    return found | {"sanity": float(len(panel.warnings))}


def _corrupted(model: nn.Module, setting: str, place: Place, device: torch.device) -> float:
    """Mean accuracy over the kinds of corruption and their severities."""
    return float(np.mean([_accuracy(predict(model, images, device)) for images in _corruptions(setting, place)]))


@lru_cache(maxsize=1)
def _corruptions(setting: str, place: Place) -> list[ImageSet]:
    """The corrupted images, which are the same for all runs of a setting and slow to make."""
    test = splits_of(setting, place).test.take(CORRUPTED)
    made = []
    for kind in CORRUPTIONS:
        for severity in SEVERITIES:
            images = torch.cat([images for images, _ in corrupted(test, kind, severity)])
            pixels = (255 * images).round().clamp(0, 255).byte()
            made.append(ImageSet(f"{kind}/{severity}", pixels, test.labels, test.classes))
    return made
