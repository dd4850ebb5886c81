"""A whole evaluation without a model: results of every part of the suite, from random logits and made-up rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ebmhybrid.evaluate import files, tables
from ebmhybrid.evaluate.accuracy import accuracy_of
from ebmhybrid.evaluate.calibration import calibration_of
from ebmhybrid.evaluate.generation import GenerationResult, evaluate_generation
from ebmhybrid.evaluate.ood import compare
from ebmhybrid.evaluate.predictions import Predictions
from ebmhybrid.evaluate.selective import selective_of

HOSTILE = "<script>alert(1)</script> $x$ & 'q' \"d\""
SCORES = ("energy", "msp", "max_logit", "entropy", "gen", "knn", "vim")


class Part(SimpleNamespace):
    """Rows that say how they are written to JSON."""

    rows: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}


class FakeSuite(SimpleNamespace):
    """What the report reads of a suite's result, with the parts that this one has."""

    def as_dict(self) -> dict[str, Any]:
        plain = ("context", "settings", "sets", "versions")
        parts = {name: getattr(self, name).as_dict() for name in tables.SHAPES if getattr(self, name, None)}
        return {"schema_version": "1", **{name: getattr(self, name) for name in plain}, **parts}

    @property
    def rows(self) -> list[dict[str, Any]]:
        return tables.long_rows(self)  # type: ignore[arg-type]

    def save(self, folder: Path) -> Path:
        return files.save(self, folder)  # type: ignore[arg-type]


def fake_suite(
    model: str = "fake", seed: int = 0, skill: float = 2.0, n: int = 200, trained: str = "cifar10"
) -> FakeSuite:
    """A full evaluation; more skill is better at everything."""
    generator = np.random.default_rng(seed)
    test = _predictions(generator, n, skill, f"{trained}/test")
    held_out = _predictions(generator, n, skill, f"{trained}/validation")
    inside = {score: generator.normal(skill, 1, n) for score in SCORES}
    outside = {name: {score: generator.normal(0, 1, 300) for score in SCORES} for name in ("svhn", HOSTILE)}
    groups = {"svhn": "far", HOSTILE: "near"}
    roles = (("test", test.name), ("validation", held_out.name), ("ood", "svhn"), ("ood", HOSTILE))
    clean = float(test.correct.mean())
    return FakeSuite(
        accuracy=accuracy_of(test),
        calibration=calibration_of(test, held_out),
        selective=selective_of(test),
        ood=compare(test.name, inside, outside, groups, resamples=50),
        corruptions=Part(rows=_corruptions(test.name, n, clean), temperature=1.5, seed=0),
        robustness=Part(rows=_robustness(test.name, n, clean)),
        sanity=Part(rows=_SANITY),
        refined=Part(rows=_refined(test.name, n, clean)),
        detector_robustness=Part(rows=_detector(test.name, n)),
        generation=_generation(seed),
        sets=[
            {"role": role, "name": name, "n": n, "notes": ["resized", HOSTILE], "digest": f"{role} {name} as made here"}
            for role, name in roles
        ],
        settings={"scores": list(SCORES), "limit": 500, "eps": 8 / 255, "norm": "linf", "steps": 20, "restarts": 1},
        context={"model": model, "weights": {"sha256": "0f" * 32}, "config": {"data": {"train": trained}}},
        versions={"python": "3.11", "ebmhybrid": "1.0", "torch": "2.9", "netcal": None},
        test_scores=inside,
    )


def _generation(seed: int) -> GenerationResult:
    generator = torch.Generator().manual_seed(seed)
    samples, real = torch.rand(2, 30, 1, 4, 4, generator=generator)
    labels = torch.arange(30) % 3
    return evaluate_generation(
        samples,
        labels,
        reference=[(real, labels)],
        train=[(real.flip(3), labels)],
        model=lambda images: images[:, 0, 1],
        judge=lambda images: images[:, 0, 0, :3],
        judge_name=HOSTILE,
        chains=((0, 1), torch.stack([samples[:2], real[:2]])),
    )


def _predictions(generator: np.random.Generator, n: int, skill: float, name: str) -> Predictions:
    labels = generator.integers(0, 10, n)
    logits = generator.normal(0, 1, (n, 10))
    logits[np.arange(n), labels] += skill
    return Predictions(2 * logits, labels, name)


def _corruptions(name: str, n: int, clean: float) -> tuple[dict[str, Any], ...]:
    def row(corruption: str, family: str | None, severity: int | None, cells: int = 1) -> dict[str, Any]:
        accuracy = clean * (1 - 0.1 * (3 if severity is None else severity))
        bounds = (None, None) if cells > 1 else (accuracy - 0.03, accuracy + 0.03)
        what = {"set": name, "source": "generated", "corruption": corruption, "family": family, "severity": severity}
        shares = {"accuracy": accuracy, "accuracy_low": bounds[0], "accuracy_high": bounds[1]}
        return (
            what
            | {"cells": cells, "n": n, "nll": 1 - accuracy, "ece_15": 0.1, "ece_15_scaled": 0.1 - 0.05 * accuracy}
            | shares
        )

    cells = [row(kind, family, level) for kind, family in _KINDS.items() for level in range(1, 6)]
    means = [row("mean", "all", level, 3) for level in range(1, 6)]
    means += [row(f"{family} mean", family, None, 5) for family in dict.fromkeys(_KINDS.values())]
    return (row("none", None, 0), *cells, *means, row("mean", "all", None, 15))


_KINDS = {"gaussian_noise": "noise", "defocus_blur": "blur", "jpeg_compression": "digital"}


def _attacked(name: str, n: int, clean: float, attack: str, eps: float, share: float) -> dict[str, Any]:
    robust = clean * share
    row = {"attack": attack, "norm": "linf", "eps": eps, "steps": 20, "restarts": 1, "set": name, "n": n}
    bounds = {"robust_accuracy": robust, "robust_low": max(robust - 0.03, 0.0), "robust_high": robust + 0.03}
    return row | {"clean_accuracy": clean, "max_delta": eps, "zero_gradients": 3, "seconds": 1.25} | bounds


def _robustness(name: str, n: int, clean: float) -> tuple[dict[str, Any], ...]:
    radii = [(share, eps / 255) for share, eps in ((0.7, 2), (0.4, 4), (0.1, 8), (0.0, 16))]
    attacks = ("fgsm", "pgd", "apgd-ce", "apgd-dlr", "square", "aa")
    rows = [
        _attacked(name, n, clean, attack, eps, share * (1 - 0.1 * i))
        for i, attack in enumerate(attacks)
        for share, eps in radii
    ]
    unset: dict[str, Any] = {"steps": 0, "restarts": 0, "eot": 1, "seconds": None}  # as the suite writes them
    worst = [_attacked(name, n, clean, "worst", eps, 0.4 * share) | unset for share, eps in radii]
    none = _attacked(name, n, clean, "none", 0.0, 1.0) | {"steps": 0, "restarts": 0, "eot": 1}
    return (none, *(row | {"eot": 1} for row in rows), *worst)


_SANITY: tuple[dict[str, Any], ...] = tuple(
    {"check": check, "status": status, "value": value, "n": 190, "measures": "share that falls", "meaning": meaning}
    | {"detail": detail}
    for check, status, value, meaning, detail in (
        ("more steps", "pass", 0.01, "the attack had not converged", ""),
        ("black box", "warn", 0.25, "gradients are masked: Square finds what PGD does not", "p < 0.001"),
        ("unusually robust", "info", 0.4, "more robust than networks trained without attacks are", ""),
        ("stochastic", "not run", None, "the outputs are random", "one pass was asked for"),
    )
)


def _refined(name: str, n: int, clean: float) -> tuple[dict[str, Any], ...]:
    pairs = (("plain", "none"), ("plain", "pgd"), ("refined", "none"), ("refined", "transfer"), ("refined", "eot"))
    return tuple(
        _attacked(name, n, clean, attack, 0.0 if attack == "none" else 8 / 255, 1.0 if attack == "none" else 0.1)
        | {"inference": inference, "eot": 20}
        for inference, attack in pairs
    )


def _detector(name: str, n: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"ood_set": ood_set, "score": "energy", "id_set": name, "n_id": n, "n_ood": 300, "attacked": attacked}
        | {"norm": "linf", "eps": 0.0 if attacked == "none" else 8 / 255, "steps": 20, "restarts": 1, "seconds": 2.0}
        | {"auroc": auroc, "auroc_low": auroc - 0.04, "auroc_high": auroc + 0.04}
        | {"aupr_in": auroc, "aupr_out": auroc, "zero_gradients": 0}
        | {"fpr95_id_positive": 1 - auroc, "fpr95_ood_positive": 1 - auroc}
        | ({"n_sets": 2} if "mean" in ood_set else {})
        for ood_set in ("svhn", HOSTILE, "macro mean")
        for attacked, auroc in (("none", 0.9), ("ood", 0.5), ("id", 0.45), ("both", 0.1))
    )
