"""Detectors against loops over their definitions, against pytorch-ood, at their edges, and by name."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import naive_detectors as naive
import numpy as np
import pytest
import torch
from torch import nn

from ebmhybrid.evaluate import ood, predict, scores
from ebmhybrid.evaluate.detectors import DETECTORS, NEEDS, check_scores, fit_detectors, needs_of
from ebmhybrid.evaluate.feature_detectors import knn, mahalanobis, relative_mahalanobis, vim
from ebmhybrid.evaluate.features import Head, head_of
from ebmhybrid.evaluate.logit_detectors import hdge, temperature
from ebmhybrid.evaluate.predictions import Predictions
from ebmhybrid.evaluate.shaping import ash, react, scale

CLASSES, WIDTH = 4, 6


def _labels(n: int) -> np.ndarray:
    return np.arange(n) % CLASSES


def _features(n: int, seed: int, width: int = WIDTH, shift: float = 0.0) -> np.ndarray:
    """Non-negative, correlated, of different scales, with a class in each: what a ReLU and pooling leave."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).uniform(0, 3, (CLASSES, width))
    mixed = rng.normal(size=(n, width)) @ np.random.default_rng(98).normal(size=(width, width))
    return np.abs(centres[_labels(n)] + 0.5 * mixed + shift)


def _head(width: int = WIDTH, seed: int = 5) -> Head:
    rng = np.random.default_rng(seed)
    return Head(rng.normal(size=(CLASSES, width)), rng.normal(size=CLASSES))


TRAIN, TEST, LABELS, HEAD = _features(60, 0), _features(40, 1, shift=0.3), _labels(60), _head()
ORACLES: dict[str, tuple[Callable[[], np.ndarray], Callable[[], list[float]]]] = {
    "mahalanobis": (
        lambda: mahalanobis(TRAIN, LABELS)(TEST),
        lambda: naive.mahalanobis(TRAIN, LABELS.tolist(), TEST),
    ),
    "relative_mahalanobis": (
        lambda: relative_mahalanobis(TRAIN, LABELS)(TEST),
        lambda: naive.relative_mahalanobis(TRAIN, LABELS.tolist(), TEST),
    ),
    "knn": (lambda: knn(TRAIN, k=7)(TEST), lambda: naive.knn(TRAIN, TEST, 7)),
    "vim": (
        lambda: vim(TRAIN, HEAD)(TEST, HEAD(TEST)),
        lambda: naive.vim(TRAIN, HEAD.weight, HEAD.bias, 3, TEST),
    ),
    "vim of one direction": (
        lambda: vim(TRAIN, HEAD, dimension=1)(TEST, HEAD(TEST)),
        lambda: naive.vim(TRAIN, HEAD.weight, HEAD.bias, 1, TEST),
    ),
    "react": (lambda: react(TRAIN, HEAD)(TEST), lambda: naive.react(TRAIN, HEAD.weight, HEAD.bias, 90, TEST)),
    "react at 33": (
        lambda: react(TRAIN, HEAD, 33)(TEST),
        lambda: naive.react(TRAIN, HEAD.weight, HEAD.bias, 33, TEST),
    ),
    "ash": (lambda: ash(HEAD)(TEST), lambda: naive.ash(HEAD.weight, HEAD.bias, 90, TEST)),
    "ash at 50": (lambda: ash(HEAD, 50)(TEST), lambda: naive.ash(HEAD.weight, HEAD.bias, 50, TEST)),
    "ash at 65": (lambda: ash(HEAD, 65)(TEST), lambda: naive.ash(HEAD.weight, HEAD.bias, 65, TEST)),
    "scale": (lambda: scale(HEAD)(TEST), lambda: naive.scale(HEAD.weight, HEAD.bias, 85, TEST)),
    "scale at 40": (lambda: scale(HEAD, 40)(TEST), lambda: naive.scale(HEAD.weight, HEAD.bias, 40, TEST)),
    "hdge": (lambda: hdge(HEAD(TRAIN))(HEAD(TEST)), lambda: naive.hdge(HEAD(TRAIN), HEAD(TEST))),
    "gen": (lambda: scores.gen(HEAD(TEST)), lambda: naive.gen(HEAD(TEST), 0.1, 100)),
    "gen of two classes": (lambda: scores.gen(HEAD(TEST), 0.4, 2), lambda: naive.gen(HEAD(TEST), 0.4, 2)),
}


@pytest.mark.parametrize("name", list(ORACLES))
def test_detector_is_its_definition(name: str) -> None:
    ours, slow = ORACLES[name]
    found = ours()
    assert found.dtype == np.float64
    assert found.shape == (len(TEST),)
    np.testing.assert_allclose(found, slow(), rtol=1e-9, atol=1e-9)


def _net() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    return net.double().eval()


def _images(n: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(n, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("heat", "eps"), [(1000.0, 0.0014), (2.0, 0.05), (1.0, 0.0)])
def test_odin_is_its_definition(heat: float, eps: float) -> None:
    net, images = _net(), _images(6)

    def model(pixels: list[float]) -> list[float]:
        with torch.no_grad():
            return net(torch.tensor(pixels, dtype=torch.float64).view(1, 2, 2, 2))[0].tolist()

    expected = [naive.odin(model, image.flatten().tolist(), heat, eps) for image in images]
    np.testing.assert_allclose(scores.odin(net, images, heat, eps), expected, rtol=1e-9)


def test_odin_steps_towards_the_top_class_and_leaves_the_model_alone() -> None:
    net, images = _net(), _images(50)
    with torch.inference_mode():
        still, moved = scores.odin(net, images, eps=0.0), scores.odin(net, images, eps=1e-4)
    assert (moved > still).all()
    assert all(parameter.grad is None for parameter in net.parameters())
    batched = np.concatenate([scores.odin(net, images[i : i + 7]) for i in range(0, 50, 7)])
    np.testing.assert_allclose(batched, scores.odin(net, images), rtol=1e-12)
    with pytest.raises(ValueError, match="score 'odin' needs a model whose logits can be differentiated"):
        scores.odin(lambda batch: batch.detach().flatten(1), images)


def test_odin_without_a_step_ranks_as_msp_at_its_temperature_without_ties() -> None:
    """In float32, softmax at T = 1000 of 200 images has a handful of values; the log-odds in float64 have 200."""
    net, images = _net().float(), _images(200).float()
    found = scores.odin(net, images, eps=0.0)
    assert len(np.unique(found)) == 200
    with torch.no_grad():
        coarse = (net(images) / 1000).softmax(1).amax(1)
        exact = (net(images).double() / 1000).softmax(1).amax(1)
    assert len(np.unique(coarse)) < 200
    assert (np.argsort(found) == np.argsort(exact.numpy())).all()


@pytest.fixture
def outlier_detectors() -> Iterator[Any]:
    """pytorch-ood's detectors, whose own tensors are made float64 for the time of the test."""
    module = pytest.importorskip("pytorch_ood.detector")
    torch.set_default_dtype(torch.float64)
    yield module
    torch.set_default_dtype(torch.float32)


def _same_order(ours: np.ndarray, outlierness: torch.Tensor) -> None:
    assert (np.argsort(ours) == np.argsort(-outlierness.numpy())).all()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("msp", "MaxSoftmax"),
        ("energy", "EnergyBased"),
        ("max_logit", "MaxLogit"),
        ("entropy", "Entropy"),
        ("gen", "GEN"),
    ],
)
def test_logit_scores_rank_as_pytorch_ood(outlier_detectors: Any, name: str, other: str) -> None:
    """GEN there is a mean of all classes where ours is a sum: a factor of -C. MSP there is p, not its log-odds."""
    logits = np.random.default_rng(0).normal(0, 2, (300, 7))
    theirs = getattr(outlier_detectors, other)(None).predict_logits(torch.tensor(logits))
    ours = scores.SCORES[name](logits)
    _same_order(ours, theirs)
    if name == "gen":
        np.testing.assert_allclose(ours, -7 * theirs.numpy(), rtol=1e-6)
    elif name == "msp":
        np.testing.assert_allclose(1 / (1 + np.exp(-ours)), -theirs.numpy(), rtol=1e-9)
    else:
        np.testing.assert_allclose(ours, -theirs.numpy(), rtol=1e-5)


def test_saturated_images_keep_their_order_where_pytorch_ood_clips(outlier_detectors: Any) -> None:
    """pytorch-ood clips probabilities to [1e-7, 1 - 1e-7] in GEN, so that surer images than that all tie there."""
    logits = np.array([[18.0, 0.0], [30.0, 0.0], [60.0, 0.0]])
    theirs = outlier_detectors.GEN(None).predict_logits(torch.tensor(logits))
    assert len(theirs.unique()) == 1
    assert (np.diff(scores.gen(logits)) > 0).all()


def test_mahalanobis_and_its_relative_are_those_of_pytorch_ood(outlier_detectors: Any) -> None:
    """It sums where a covariance has a mean, so its distances are ours / N, its Mahalanobis half of that."""
    for fit, name, factor in ((mahalanobis, "Mahalanobis", 2), (relative_mahalanobis, "RMD", 1)):
        detector = getattr(outlier_detectors, name)(None).fit_features(torch.tensor(TRAIN), torch.tensor(LABELS))
        theirs = detector.predict_features(torch.tensor(TEST))
        ours = fit(TRAIN, LABELS)(TEST)
        _same_order(ours, theirs)
        np.testing.assert_allclose(ours, -factor * len(TRAIN) * theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_more_features_than_images_differ_from_pytorch_ood(outlier_detectors: Any) -> None:
    """A direction in which no training image varies costs nothing under the pseudo-inverse of Lee et al. and OpenOOD.

    pytorch-ood adds 1e-6 to the scatter's diagonal, so that the same direction costs 1e6 a unit.
    """
    train, labels = np.zeros((8, 3)), _labels(8)
    train[:, 0] = np.arange(8.0)
    near, off = np.array([[2.0, 0.0, 0.0]]), np.array([[2.0, 0.0, 1.0]])
    fitted = mahalanobis(train, labels)
    assert fitted(near)[0] == pytest.approx(fitted(off)[0])
    theirs = outlier_detectors.Mahalanobis(None).fit_features(torch.tensor(train), torch.tensor(labels))
    assert (theirs.predict_features(torch.tensor(off)) - theirs.predict_features(torch.tensor(near))).item() > 1e5


def test_knn_is_that_of_pytorch_ood(outlier_detectors: Any) -> None:
    for k in (1, 50):
        detector = outlier_detectors.KNN(None, k=k, algorithm="brute")
        detector.fit_features(torch.tensor(TRAIN), torch.tensor(LABELS))
        theirs = detector.predict_features(torch.tensor(TEST))
        _same_order(knn(TRAIN, k)(TEST), theirs)
        np.testing.assert_allclose(knn(TRAIN, k)(TEST), -theirs.numpy(), rtol=1e-9)


def test_vim_is_that_of_pytorch_ood(outlier_detectors: Any) -> None:
    """It computes in float32, hence the tolerance."""
    detector = outlier_detectors.ViM(None, d=3, w=torch.tensor(HEAD.weight), b=torch.tensor(HEAD.bias))
    detector.fit_features(torch.tensor(TRAIN), torch.tensor(LABELS))
    theirs = detector.predict_features(torch.tensor(TEST))
    ours = vim(TRAIN, HEAD)(TEST, HEAD(TEST))
    _same_order(ours, theirs)
    np.testing.assert_allclose(ours, -theirs.numpy(), rtol=1e-4, atol=1e-4)


def test_shaping_is_that_of_pytorch_ood(outlier_detectors: Any) -> None:
    """Its percentiles are fractions and its ASH is ASH-S unless told; a map of 1 x 1 is a pooled feature."""
    weight, bias = torch.tensor(HEAD.weight), torch.tensor(HEAD.bias)
    train, test = (torch.tensor(values)[:, :, None, None] for values in (TRAIN, TEST))

    def head(maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(1) @ weight.T + bias

    clipped = outlier_detectors.ReAct(None, head).fit_feature_maps(train, torch.tensor(LABELS))
    cases = [(react(TRAIN, HEAD), clipped)]
    for percentile in (50, 90):
        shaped = outlier_detectors.ASH(None, head, variant="ash-b", percentile=percentile / 100)
        cases.append((ash(HEAD, percentile), shaped))
        cases.append((scale(HEAD, percentile), outlier_detectors.SCALE(None, head, percentile=percentile / 100)))
    for ours, detector in cases:
        theirs = detector.predict_feature_maps(test.clone())
        _same_order(ours(TEST), theirs)
        np.testing.assert_allclose(ours(TEST), -theirs.numpy(), rtol=1e-9)


def test_odin_is_that_of_pytorch_ood(outlier_detectors: Any) -> None:
    """Its score is minus the probability, ours the log-odds of the same; its eps has the same unit on [0, 1] pixels."""
    net, images = _net(), _images(40)
    theirs = outlier_detectors.ODIN(net, eps=0.0014, temperature=1000)(images)
    ours = scores.odin(net, images)
    _same_order(ours, theirs)
    np.testing.assert_allclose(1 / (1 + np.exp(-ours)), -theirs.numpy(), rtol=1e-12)


def test_temperature_fits_at_least_as_well_as_pytorch_ood(outlier_detectors: Any) -> None:
    """50 steps of its L-BFGS stop short of the optimum, so its temperature and ranking differ a little from ours."""
    rng = np.random.default_rng(3)
    true = rng.normal(0, 2, (2000, 5))
    labels = (np.exp(true).cumsum(1) < rng.random((2000, 1)) * np.exp(true).sum(1, keepdims=True)).sum(1)
    logits, fitted = torch.tensor(2.5 * true), outlier_detectors.TemperatureScaling(None)
    fitted.fit_logits(logits, torch.tensor(labels))
    row = np.array([[1.0, 0.0]])
    heat = 1 / temperature(logits.numpy(), labels)(np.pad(row, ((0, 0), (0, 3)), constant_values=-1e6))[0]
    loss = nn.functional.cross_entropy
    assert loss(logits / heat, torch.tensor(labels)) <= loss(logits / fitted.t, torch.tensor(labels)) + 1e-12
    assert heat == pytest.approx(2.5, rel=0.05)


def test_temperature_ranks_as_the_tempered_probability() -> None:
    logits = np.random.default_rng(4).normal(0, 3, (200, 3))
    labels = np.random.default_rng(5).integers(0, 3, 200)
    from ebmhybrid.evaluate.calibration import fit_temperature

    heat = fit_temperature(logits, labels)
    expected = [naive.log_odds(row, heat) for row in logits.tolist()]
    np.testing.assert_allclose(temperature(logits, labels)(logits), expected, rtol=1e-9, atol=1e-12)
    assert (np.argsort(expected) != np.argsort(scores.msp(logits))).any()


# --- laws ---


def test_scores_fall_from_where_the_training_set_is_to_where_it_is_not() -> None:
    inside, outside = _features(200, 7), 0.1 * _features(200, 8)
    outside[np.arange(200), np.arange(200) % WIDTH] += 9.0
    for score in (mahalanobis(TRAIN, LABELS), relative_mahalanobis(TRAIN, LABELS), knn(TRAIN)):
        assert ood.auroc(score(inside), score(outside)) > 0.9
    fitted = vim(TRAIN, HEAD, dimension=2)
    far = inside + 50 * np.linalg.svd(TRAIN)[2][-1]
    assert ood.auroc(fitted(inside, HEAD(inside)), fitted(far, HEAD(far))) > 0.9


def test_hdge_does_not_see_a_number_added_to_one_class_everywhere() -> None:
    train, test = HEAD(TRAIN), HEAD(TEST)
    shift = np.array([5.0, -3.0, 0.0, 1e4])
    np.testing.assert_allclose(hdge(train + shift)(test + shift), hdge(train)(test), atol=1e-8)
    with pytest.raises(AssertionError):  # which max_logit does see
        np.testing.assert_allclose(scores.max_logit(test + shift), scores.max_logit(test) + 1e4, atol=1)


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_an_offset_of_all_logits_keeps_the_ranking_where_it_should(offset: float) -> None:
    train, test = HEAD(TRAIN), HEAD(TEST)
    moved = Head(HEAD.weight, HEAD.bias + offset)
    shifted = {
        "energy": (scores.energy(test + offset) - offset, scores.energy(test)),
        "max_logit": (scores.max_logit(test + offset) - offset, scores.max_logit(test)),
        "msp": (scores.msp(test + offset), scores.msp(test)),
        "entropy": (scores.entropy(test + offset), scores.entropy(test)),
        "gen": (scores.gen(test + offset), scores.gen(test)),
        "temperature": (temperature(train + offset, LABELS)(test + offset), temperature(train, LABELS)(test)),
        "hdge": (hdge(train)(test + offset) - offset, hdge(train)(test)),
        "react": (react(TRAIN, moved)(TEST) - offset, react(TRAIN, HEAD)(TEST)),
        "ash": (ash(moved)(TEST) - offset, ash(HEAD)(TEST)),
        "scale": (scale(moved)(TEST) - offset, scale(HEAD)(TEST)),
    }
    for name, (found, expected) in shifted.items():
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7, err_msg=name)
        assert (np.argsort(found) == np.argsort(expected)).all(), name


def test_vim_is_not_invariant_to_an_offset_and_refuses_negative_logits() -> None:
    """alpha is the mean largest logit over the mean residual: an offset changes it, and below 0 it would reward."""
    moved = Head(HEAD.weight, HEAD.bias + 1e4)
    plain, shifted = vim(TRAIN, HEAD)(TEST, HEAD(TEST)), vim(TRAIN, moved)(TEST, moved(TEST))
    assert (np.argsort(plain) != np.argsort(shifted)).any()
    with pytest.raises(ValueError, match=r"score 'vim' cannot be fitted: the mean largest training logit, -99"):
        vim(TRAIN, Head(HEAD.weight, HEAD.bias - 1e4))


def test_distances_do_not_see_an_affine_change_of_features() -> None:
    """Mahalanobis distances are invariant to any invertible affine map, kNN to the length of every feature vector."""
    change, shift = np.random.default_rng(6).normal(size=(WIDTH, WIDTH)), np.full(WIDTH, 1e3)
    for fit in (mahalanobis, relative_mahalanobis):
        moved = fit(TRAIN @ change + shift, LABELS)(TEST @ change + shift)
        np.testing.assert_allclose(moved, fit(TRAIN, LABELS)(TEST), rtol=1e-6, atol=1e-6)
    lengths = np.random.default_rng(7).uniform(0.1, 9, (len(TEST), 1))
    np.testing.assert_allclose(knn(3 * TRAIN)(TEST * lengths), knn(TRAIN)(TEST), atol=1e-7)


def test_ends_of_the_percentiles() -> None:
    energy = scores.energy(HEAD(TEST))
    np.testing.assert_allclose(react(np.vstack([TRAIN, TEST]), HEAD, 100)(TEST), energy, rtol=1e-12)
    np.testing.assert_allclose(scale(HEAD, 0)(TEST), scores.energy(HEAD(math.e * TEST)), rtol=1e-12)
    mean = np.broadcast_to(TEST.mean(axis=1, keepdims=True), TEST.shape)
    np.testing.assert_allclose(ash(HEAD, 0)(TEST), scores.energy(HEAD(mean)), rtol=1e-12)
    one = np.zeros_like(TEST)
    np.put_along_axis(one, TEST.argmax(1)[:, None], TEST.sum(1, keepdims=True), axis=1)
    np.testing.assert_allclose(ash(HEAD, 100)(TEST), scores.energy(HEAD(one)), rtol=1e-12)


def test_float32_features_of_any_order_and_number_score_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of rows are smaller than the set here, and the result does not depend on where they are cut."""
    train, test = TRAIN.astype(np.float32), TEST.astype(np.float32)
    detectors = [mahalanobis(train, LABELS), relative_mahalanobis(train, LABELS), knn(train), react(train, HEAD)]
    detectors += [ash(HEAD), scale(HEAD), lambda rows: vim(train, HEAD)(rows, HEAD(rows))]
    whole = [score(test) for score in detectors]
    monkeypatch.setattr("ebmhybrid.evaluate.feature_detectors._BLOCK", 7)
    again = [mahalanobis(train, LABELS), relative_mahalanobis(train, LABELS), knn(train), react(train, HEAD)]
    again += [ash(HEAD), scale(HEAD), lambda rows: vim(train, HEAD)(rows, HEAD(rows))]
    for first, second in zip(whole, again, strict=True):
        assert first.dtype == np.float64
        np.testing.assert_allclose(second(test), first, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(second(test[::-1])[::-1], first, rtol=1e-9, atol=1e-9)


# --- edges ---


def test_one_class_and_a_class_with_one_image() -> None:
    ones = np.zeros(len(TRAIN), dtype=np.int64)
    np.testing.assert_allclose(relative_mahalanobis(TRAIN, ones)(TEST), 0, atol=1e-12)
    lonely = LABELS.copy()
    lonely[0] = 7  # classes need not be 0 ... C - 1, and an image alone is its own mean
    assert mahalanobis(TRAIN, lonely)(TRAIN[:1])[0] == pytest.approx(0, abs=1e-9)
    expected = naive.mahalanobis(TRAIN, lonely.tolist(), TEST)
    np.testing.assert_allclose(mahalanobis(TRAIN, lonely)(TEST), expected, rtol=1e-9)
    head = Head(HEAD.weight[:1], HEAD.bias[:1])
    for score in (react(TRAIN, head), ash(head), scale(head)):
        assert np.isfinite(score(TEST)).all()
    single = head(TRAIN)
    assert scores.gen(single).tolist() == [0.0] * len(TRAIN)
    assert temperature(single, ones)(single).tolist() == [0.0] * len(TRAIN)
    np.testing.assert_allclose(hdge(single)(single), single[:, 0] - np.log(np.exp(single).sum()))
    assert scores.odin(lambda images: images.flatten(1), torch.rand(3, 1, 1, 1)).tolist() == [0.0] * 3


def test_more_features_than_images() -> None:
    train, test = _features(10, 0, width=30), _features(20, 1, width=30)
    for fit, slow in ((mahalanobis, naive.mahalanobis), (relative_mahalanobis, naive.relative_mahalanobis)):
        found = fit(train, _labels(10))(test)
        np.testing.assert_allclose(found, slow(train, _labels(10).tolist(), test), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="outside their 15 principal directions"):
        vim(train, _head(30))
    head = Head(_head(30).weight, _head(30).bias + 9)
    expected = naive.vim(train, head.weight, head.bias, 4, test)
    np.testing.assert_allclose(vim(train, head, dimension=4)(test, head(test)), expected, rtol=1e-9)


def test_constant_features() -> None:
    flat, test = np.full((9, WIDTH), 2.0), TEST
    for fit in (mahalanobis, relative_mahalanobis):
        assert fit(flat, _labels(9))(test).tolist() == [0.0] * len(test)
    np.testing.assert_allclose(knn(flat)(flat), 0, atol=1e-7)
    assert np.isfinite(react(flat, HEAD)(test)).all()
    with pytest.raises(ValueError, match="score 'vim' cannot be fitted"):
        vim(flat, HEAD)


def test_features_of_zeros() -> None:
    none = np.zeros((2, WIDTH))
    np.testing.assert_allclose(knn(TRAIN)(none), -1)
    np.testing.assert_allclose(knn(none)(np.vstack([none, TEST[:1]])), [0, 0, -1], atol=1e-7)
    bias = scores.energy(HEAD.bias[None])
    for score in (ash(HEAD), scale(HEAD), react(TRAIN, HEAD)):
        np.testing.assert_allclose(score(none), bias.repeat(2), rtol=1e-12)


def test_negative_features_are_shaped_as_the_formulas_stand() -> None:
    train, test = TRAIN - 2, TEST - 2
    weight, bias = HEAD.weight, HEAD.bias
    np.testing.assert_allclose(react(train, HEAD, 20)(test), naive.react(train, weight, bias, 20, test), rtol=1e-9)
    np.testing.assert_allclose(ash(HEAD, 50)(test), naive.ash(weight, bias, 50, test), rtol=1e-9)
    kept = np.sort(test)[:, -3:].sum(1) > 0
    assert 0 < kept.sum() < len(test)
    np.testing.assert_allclose(scale(HEAD, 50)(test[kept]), naive.scale(weight, bias, 50, test[kept]), rtol=1e-9)
    np.testing.assert_array_equal(scale(HEAD, 50)(test[~kept]), scores.energy(HEAD(test[~kept])))


def test_equal_features_are_kept_in_their_order() -> None:
    """pytorch-ood and OpenOOD take whichever of equal features the sort puts first; ours is the first by index."""
    ties = np.array([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
    np.testing.assert_allclose(ash(HEAD, 50)(ties), naive.ash(HEAD.weight, HEAD.bias, 50, ties), rtol=1e-12)
    first = np.array([[4 / 3, 4 / 3, 4 / 3, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(ash(HEAD, 50)(ties), scores.energy(HEAD(first)), rtol=1e-12)
    wide, head = np.random.default_rng(8).integers(0, 3, (20, 300)).astype(np.float64), _head(300)
    np.testing.assert_allclose(ash(head)(wide), naive.ash(head.weight, head.bias, 90, wide), rtol=1e-9)


def test_few_training_images_and_a_single_test_image() -> None:
    np.testing.assert_allclose(knn(TRAIN[:3], k=50)(TEST), naive.knn(TRAIN[:3], TEST, 3), atol=1e-7)
    assert mahalanobis(TRAIN[:1], LABELS[:1])(TEST[:1]).tolist() == [0.0]
    for score in (mahalanobis(TRAIN, LABELS), knn(TRAIN), react(TRAIN, HEAD), ash(HEAD), scale(HEAD)):
        np.testing.assert_allclose(score(TEST[:1]), score(TEST)[:1], rtol=1e-9)


def test_gen_keeps_sure_images_apart_and_lets_the_last_classes_go() -> None:
    sure = np.array([[40.0, 0.0, 0.0], [400.0, 0.0, 0.0], [4000.0, 0.0, 0.0]])
    found = scores.gen(sure)
    assert found[0] < found[1] < found[2] <= 0
    many = np.random.default_rng(0).normal(size=(5, 150))
    np.testing.assert_allclose(scores.gen(many), naive.gen(many.tolist(), 0.1, 100), rtol=1e-9)
    assert scores.gen(np.zeros((1, 4)))[0] == pytest.approx(-4 * (0.25 * 0.75) ** 0.1)


# --- wrong input ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn(TRAIN, k=0), "k must be at least 1, got 0"),
        (lambda: knn(TRAIN[:0]), r"train_features are empty, of shape \(0, 6\)"),
        (lambda: knn(TRAIN)(TEST[:, :4]), r"features must have the 6 columns fitted on, got shape \(40, 4\)"),
        (lambda: mahalanobis(TRAIN, LABELS[:-1]), r"train_labels must be integers of shape \(60,\), got int64 \(59,\)"),
        (lambda: mahalanobis(TRAIN, LABELS / 2), "train_labels must be integers"),
        (
            lambda: mahalanobis(np.where(TRAIN > 3, np.nan, TRAIN), LABELS),
            r"train_features must be finite .* got \d+ beyond",
        ),
        (lambda: mahalanobis(TRAIN, LABELS)(np.full((1, WIDTH), np.inf)), "got 6 beyond, NaN or inf"),
        (lambda: vim(1e200 * TRAIN, HEAD), r"train_features must be finite and at most 1e\+100"),
        (lambda: ash(HEAD)(TEST.astype(np.float16)), r"must be a float32 or float64 array .*, got float16 \(40, 6\)"),
        (lambda: ash(HEAD)(TEST[0]), r"of shape \(N, D\), got float64 \(6,\)"),
        (lambda: ash(HEAD)(TEST.tolist()), "got list"),  # type: ignore[arg-type]
        (lambda: ash(HEAD, 101), r"percentile must lie in \[0, 100\], got 101"),
        (lambda: scale(HEAD, -1), r"percentile must lie in \[0, 100\], got -1"),
        (lambda: react(TRAIN, HEAD, math.nan), r"percentile must lie in \[0, 100\], got nan"),
        (lambda: react(TRAIN[:, :3], HEAD), "train_features must have the 6 columns"),
        (lambda: vim(TRAIN, HEAD, dimension=6), r"dimension must lie in \[0, 6\), got 6"),
        (lambda: vim(TRAIN[:, :3], HEAD), "train_features must have the 6 columns"),
        (lambda: hdge(np.zeros((0, 3))), "at least one training image"),
        (lambda: hdge(np.zeros((2, 3)))(np.zeros((2, 4))), r"must have the 3 columns fitted on, got \(2, 4\)"),
        (lambda: scores.gen(np.zeros((1, 3)), gamma=1.0), "need 0 < gamma < 1 and top >= 1, got gamma=1.0, top=100"),
        (lambda: scores.gen(np.zeros((1, 3)), top=0), "top=0"),
        (
            lambda: scores.odin(_net(), _images(1), temperature=0),
            "need temperature > 0 and eps >= 0, got temperature=0",
        ),
        (lambda: scores.odin(_net(), _images(1), eps=-1), "eps=-1"),
    ],
)
def test_wrong_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- by name ---


def _predictions(features: np.ndarray | None, labels: np.ndarray, name: str) -> Predictions:
    logits = HEAD(TRAIN if features is None else features)
    return Predictions(logits, labels, name, features=features)


TRAINED, HELD, SEEN = (
    _predictions(values, _labels(len(values)), name)
    for values, name in ((TRAIN, "train"), (_features(30, 3), "held out"), (TEST, "test"))
)


def test_every_name_gives_its_function() -> None:
    fitted = fit_detectors("all", train=TRAINED, validation=HELD, head=HEAD)
    assert set(fitted) == {*scores.SCORES, *DETECTORS} - {"joint_energy"}
    alone = {
        "temperature": temperature(HELD.logits, HELD.labels)(SEEN.logits),
        "hdge": hdge(TRAINED.logits)(SEEN.logits),
        "mahalanobis": mahalanobis(TRAIN, LABELS)(TEST),
        "relative_mahalanobis": relative_mahalanobis(TRAIN, LABELS)(TEST),
        "knn": knn(TRAIN)(TEST),
        "vim": vim(TRAIN, HEAD)(TEST, SEEN.logits),
        "react": react(TRAIN, HEAD)(TEST),
        "ash": ash(HEAD)(TEST),
        "scale": scale(HEAD)(TEST),
        **{name: score(SEEN.logits) for name, score in scores.SCORES.items() if name != "joint_energy"},
    }
    assert set(alone) == set(fitted)
    for name, expected in alone.items():
        np.testing.assert_array_equal(fitted[name](SEEN), expected, err_msg=name)


def test_no_score_sees_a_test_label() -> None:
    fitted = fit_detectors("all", train=TRAINED, validation=HELD, head=HEAD)
    other = replace(SEEN, labels=(SEEN.labels + 1) % CLASSES)
    for score in fitted.values():
        np.testing.assert_array_equal(score(SEEN), score(other))


def test_joint_energy_is_max_logit_and_all_names_it_once() -> None:
    fitted = fit_detectors(["joint_energy", "max_logit"])
    np.testing.assert_array_equal(fitted["joint_energy"](SEEN), fitted["max_logit"](SEEN))
    assert "joint_energy" not in check_scores("all")
    assert check_scores(["joint_energy", "all"])[0] == "joint_energy"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"energy", "msp", "max_logit", "entropy", "gen"}),
        (["images"], {"energy", "msp", "max_logit", "entropy", "gen", "grad_norm", "odin"}),
        (["train"], {"energy", "msp", "max_logit", "entropy", "gen", "hdge"}),
        (["features", "head"], {"energy", "msp", "max_logit", "entropy", "gen", "ash", "scale"}),
        (list(NEEDS), {*scores.SCORES, *scores.MODEL_SCORES, *DETECTORS} - {"joint_energy"}),
    ],
)
def test_all_is_what_the_given_suffices_for(given: list[str], expected: set[str]) -> None:
    found = check_scores("all", given)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert needs_of(found) <= set(given)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("knn", {}, r"score 'knn' needs the training set \(train=\.\.\.\)$"),
        (
            "knn",
            {"train": replace(TRAINED, features=None)},
            r"score 'knn' needs features \(predict\(\.\.\., features=Tr",
        ),
        ("vim", {"head": HEAD}, r"score 'vim' needs the training set \(train=\.\.\.\)$"),
        ("vim", {"train": TRAINED}, r"score 'vim' needs the weights of the model's last linear layer \(head=head_of"),
        ("react", {}, r"score 'react' needs the training set \(train=\.\.\.\), and the weights"),
        ("temperature", {"train": TRAINED}, r"score 'temperature' needs validation images \(validation=\.\.\.\)$"),
        ("hdge", {"validation": HELD}, r"score 'hdge' needs the training set"),
    ],
)
def test_a_missing_need_is_named(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_detectors([name], **given)


def test_unknown_names_get_their_neighbour_and_none_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown score 'mahalanobi': did you mean 'mahalanobis'"):
        check_scores(["energy", "mahalanobi"])
    with pytest.raises(ValueError, match="no score was asked for; valid: all, ash, energy"):
        check_scores([])
    with pytest.raises(ValueError, match="unknown score 'x'"):
        needs_of(["x"])
    with pytest.raises(ValueError, match="score 'odin' needs the model and the images"):
        check_scores(["odin"], given=["train"])
    assert check_scores("knn") == ("knn",)
    assert check_scores(["msp", "all", "msp"], []) == ("msp", "energy", "max_logit", "entropy", "gen")


def test_what_cannot_be_fitted_is_left_out_of_all_and_named_when_asked_for() -> None:
    flat = _predictions(np.full((9, WIDTH), 2.0), _labels(9), "flat")
    assert set(fit_detectors("all", train=flat, head=HEAD)) == {*scores.SCORES, *DETECTORS} - {
        "joint_energy",
        "temperature",
        "vim",
    }
    for names in (["vim"], ["all", "vim"]):
        with pytest.raises(ValueError, match="score 'vim' cannot be fitted"):
            fit_detectors(names, train=flat, head=HEAD)


def test_a_set_without_features_is_named_when_it_is_scored() -> None:
    score = fit_detectors(["ash"], head=HEAD)["ash"]
    with pytest.raises(ValueError, match="set 'test' has no features: call predict"):
        score(replace(SEEN, features=None))


def test_from_a_model_to_scores() -> None:
    """Features that `predict` captures are what the detectors fit on; image scores are left to the model's own pass."""
    net = _net().float()
    sets = []
    for seed in (1, 2, 3):
        images = _images(48, seed).float()
        sets.append(predict(net, [(images, torch.arange(48) % CLASSES)], features=True))
    train, validation, test = sets
    names = ["msp", "knn", "vim", "odin", "scale", "temperature"]
    assert needs_of(names) == {"train", "validation", "features", "head", "images"}
    head = head_of(net)
    # A random net's logits need not be positive, which ViM requires.
    head, train = Head(head.weight, head.bias + 2), replace(train, logits=train.logits + 2)
    fitted = fit_detectors(names, train=train, validation=validation, head=head)
    assert list(fitted) == ["msp", "knn", "vim", "scale", "temperature"]
    for score in fitted.values():
        assert np.isfinite(score(test)).all()
    assert scores.model_score(net, [(_images(5).float(), torch.zeros(5).long())], "odin").shape == (5,)


def test_import_is_light() -> None:
    code = (
        "import sys, ebmhybrid.evaluate.detectors;"
        "print({'netcal', 'matplotlib', 'sklearn', 'scipy', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
