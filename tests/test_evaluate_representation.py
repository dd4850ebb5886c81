"""Representations: probes against literal loops and their own optimality conditions; what is measured on what."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import naive_representation as naive
import numpy as np
import pytest
import torch
from fake_suite import HOSTILE, fake_suite
from torch import Tensor, nn

from ebmhybrid.data import load_splits
from ebmhybrid.data.sets import ImageSet
from ebmhybrid.errors import EbmhybridError, UsageError
from ebmhybrid.evaluate import (
    evaluate_corruptions,
    evaluate_representation,
    of_representation,
    plots_representation,
    probes,
    probes_neighbours,
    representation_features,
    tables,
)
from ebmhybrid.evaluate.accuracy import wilson_interval
from ebmhybrid.evaluate.calibration import ece, nll
from ebmhybrid.evaluate.compare_parts import PARTS
from ebmhybrid.evaluate.compare_runs import compare_results
from ebmhybrid.evaluate.feature_detectors import knn, mahalanobis
from ebmhybrid.evaluate.files import dumps
from ebmhybrid.evaluate.ood import auroc, fpr95_id_positive, fpr95_ood_positive
from ebmhybrid.evaluate.plots_representation import figures_for
from ebmhybrid.evaluate.probes import C_GRID, Standardiser, linear_probe
from ebmhybrid.evaluate.probes_few_labels import DRAWS, PER_CLASS, few_label_curve, shuffled
from ebmhybrid.evaluate.probes_neighbours import NEIGHBOURS, knn_probe
from ebmhybrid.evaluate.probes_ridge import ridge_probe
from ebmhybrid.evaluate.representation_features import Models, encoded
from ebmhybrid.evaluate.representation_result import RepresentationResult

Batches = list[tuple[Tensor, Tensor]]


def _clusters(n: int, d: int, classes: list[int], seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping Gaussian classes, each feature in a unit of its own."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n)
    labels[: len(classes)] = classes
    centres = np.random.default_rng(99).normal(size=(max(classes) + 1, d))
    units = 10.0 ** np.random.default_rng(98).uniform(-2, 2, d)
    return (centres[labels] + spread * rng.normal(size=(n, d))) * units + units, labels


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels and labels of the training and the test part of scikit-learn's digits."""
    splits = load_splits("digits")
    return tuple(  # type: ignore[return-value]
        part
        for one in (splits.train, splits.test)
        for part in (one.images.flatten(1).numpy() / 255, one.labels.numpy())
    )


# The linear probe


@pytest.mark.parametrize("C", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("classes", [[0, 1, 2], [0, 2, 5]])
def test_linear_probe_is_at_the_minimum_of_its_objective(C: float, classes: list[int]) -> None:
    """Where the gradient of the penalised loss is 0, over the classes that have training examples."""
    x, y = _clusters(40, 3, classes)
    probe = linear_probe(x, y, x[:4], (x, y), grid=[C])
    rows, places = naive.standardised(x, x), np.searchsorted(classes, y)
    by_weight, by_bias = naive.logistic_gradient(rows, places, probe.weight[classes], probe.bias[classes], C)
    assert probe.C == C
    assert probe.converged
    assert np.abs(by_weight).max() < 1e-4 * C * len(x)
    assert np.abs(by_bias).max() < 1e-4 * C * len(x)
    assert np.abs(by_weight - probe.weight[classes]).max() > 1e-2  # it would be 0 without the penalty as well


@pytest.mark.parametrize("labels", [(0, 1), (1, 3)])
@pytest.mark.parametrize("n", [1, 8])
def test_linear_probe_of_two_separable_points_has_its_closed_form(labels: tuple[int, int], n: int) -> None:
    """At -1 and +1 the weight w solves w = C N sigmoid(-w), though the classes are separable."""
    x, y = np.repeat([[5.0], [9.0]], n, axis=0), np.repeat(labels, n)
    probe = linear_probe(x, y, np.array([[9.0], [7.0], [11.0]]))
    w = probe.logits[0, labels[1]] - probe.logits[0, labels[0]]
    assert w == pytest.approx(2 * n / (1 + math.exp(w)), rel=1e-4)
    assert probe.probabilities[0, labels[1]] == pytest.approx(1 / (1 + math.exp(-w)))
    assert probe.probabilities[1, labels[1]] == pytest.approx(0.5, abs=1e-5)
    assert probe.logits[2, labels[1]] - probe.logits[2, labels[0]] == pytest.approx(2 * w, rel=1e-4)
    assert probe.probabilities.sum(axis=1) == pytest.approx(1)


def test_linear_probe_does_not_depend_on_units_and_offsets() -> None:
    x, y = _clusters(60, 4, [0, 1, 2])
    scale, shift = np.array([1e-3, 1.0, 50.0, 1e4]), np.array([3.0, -1.0, 0.0, 1e3])
    plain, moved = linear_probe(x, y, x), linear_probe(x * scale + shift, y, x * scale + shift)
    assert np.abs(plain.logits - moved.logits).max() < 1e-3


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, 1e8, -1e-9])
def test_a_feature_that_is_constant_in_training_says_nothing(value: float) -> None:
    x, y = _clusters(50, 2, [0, 1, 2])
    with_constant = np.hstack([x, np.full((50, 1), value)])
    shown = np.hstack([x, np.full((50, 1), value + 5)])
    probe = linear_probe(with_constant, y, shown)
    assert probe.weight[:, 2].tolist() == [0.0] * 3
    assert np.abs(probe.logits - linear_probe(x, y, x).logits).max() < 1e-4
    assert Standardiser.of(with_constant)(with_constant)[:, 2].tolist() == [0.0] * 50


def test_standardised_features_are_the_naive_ones() -> None:
    x, _ = _clusters(30, 3, [0, 1])
    found = Standardiser.of(x[:20].astype(np.float32))(x[20:])
    assert found == pytest.approx(naive.standardised(x[:20].astype(np.float32), x[20:]), rel=1e-6)


def test_c_is_the_one_that_does_best_on_validation_examples() -> None:
    """The highest accuracy, of equally many right ones the lower NLL; the probe is one fitted on the training part."""
    chosen = set()
    for seed in range(4):
        x, y = _clusters(30, 12, [0, 1, 2], seed, 3.0)
        held, test = _clusters(60, 12, [0, 1, 2], seed + 50, 3.0), _clusters(20, 12, [0, 1, 2], seed + 90, 3.0)[0]
        merits = {}
        for C in C_GRID:
            logits = linear_probe(x, y, held[0], held, grid=[C])
            merits[C] = float((logits.predictions == held[1]).mean()), -nll(logits.probabilities, held[1])
        probe = linear_probe(x, y, test, held)
        assert max(merits, key=lambda C: merits[C]) == probe.C
        assert (linear_probe(x, y, test, held, grid=C_GRID[::-1]).logits == probe.logits).all()
        alone = linear_probe(x, y, test, held, grid=[probe.C])
        assert np.abs(probe.logits - alone.logits).max() < 1e-3  # started elsewhere, the same minimum
        chosen.add(probe.C)
    assert len(chosen) > 1
    assert linear_probe(x, y, test).C == 1.0


def test_of_equally_accurate_c_the_one_of_lower_nll_is_taken() -> None:
    x, y = np.array([[-1.0], [1.0]]), np.array([0, 1])
    assert linear_probe(x, y, x, (x, y)).C == 10.0  # all are right, the weakest penalty is the surest


def test_a_class_without_training_example_has_probability_0() -> None:
    x, y = _clusters(30, 2, [0, 2])
    probe = linear_probe(x, y, x[:3], num_classes=5)
    assert probe.logits.shape == (3, 5)
    assert probe.probabilities[:, [1, 3, 4]].max() == 0
    assert set(probe.predictions) <= {0, 2}
    assert nll(probe.probabilities, np.array([1, 0, 0])) == math.inf


def test_linear_probe_says_where_it_stopped_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_ITERATIONS", 1)
    x, y = _clusters(50, 6, [0, 1, 2], spread=0.2)
    assert not linear_probe(x, y, x).converged
    found = evaluate_representation({"a": lambda t: t.flatten(1)}, *_images(2, few=30), few_labels=False)
    assert found.notes == ("the linear probe of a did not converge",)


def test_one_test_example_one_feature_and_two_training_examples_are_enough() -> None:
    probe = linear_probe(np.array([[0.0], [1.0]], dtype=np.float32), np.array([0, 1]), np.array([[0.9]]))
    assert probe.predictions.tolist() == [1]
    assert probe(np.array([[0.9]])) == pytest.approx(probe.logits)


X, Y = np.arange(8.0).reshape(4, 2), np.array([0, 0, 1, 1])
BEYOND_INT64 = np.array([0, 0, 1, 2**63], dtype=np.uint64)
BAD = {
    "train_x must be finite": lambda: linear_probe(np.where(X == 3, np.nan, X), Y, X),
    "test_x must be finite": lambda: linear_probe(X, Y, np.where(X == 3, np.inf, X)),
    "at least 2 classes, got 1 alone": lambda: linear_probe(X, np.ones(4, dtype=int), X),
    "got 0 alone": lambda: linear_probe(X[:1], Y[:1], X),
    "test_x must have the 2 columns": lambda: linear_probe(X, Y, X[:, :1]),
    r"train_y must be integers of shape \(4,\), got float64": lambda: linear_probe(X, Y.astype(float), X),
    r"train_y must be integers of shape \(4,\), got int64 \(3,\)": lambda: linear_probe(X, Y[:3], X),
    r"train_y must lie in \[0, 65536\), got \[-1, 0\]": lambda: linear_probe(X, Y - 1, X),
    r"train_y must lie in \[0, 1\), got 1": lambda: linear_probe(X, Y, X, num_classes=1),
    r"validation labels must lie in \[0, 2\), got \[0, 2\]": lambda: linear_probe(X, Y, X, (X, 2 * Y)),
    "validation features must have the 2 columns": lambda: linear_probe(X, Y, X, (X[:, :1], Y)),
    r"test_x are empty": lambda: linear_probe(X, Y, X[:0]),
    r"train_x must be a float32 or float64 array of shape \(N, D\), got int64": lambda: knn_probe(X.astype(int), Y, X),
    r"train_y must lie in \[0, 65536\), got \[0, 1000000000\]": lambda: linear_probe(X, Y * 10**9, X),
    r"train_y must lie in \[0, 65536\), got \[0, 9223372036854775808\]": lambda: linear_probe(X, BEYOND_INT64, X),
    r"num_classes must be whole numbers of at least 1, got 2\.5": lambda: linear_probe(X, Y, X, num_classes=2.5),
    r"grid must hold finite numbers above 0, got \(\)": lambda: linear_probe(X, Y, X, (X, Y), grid=()),
    r"grid must hold finite numbers above 0, got \[-1\]": lambda: ridge_probe(X, Y, X, Y, grid=[-1]),
    r"validation must be a pair of features and labels or targets, got 1 values": lambda: linear_probe(X, Y, X, (X,)),
    r"validation must be a pair .*, got ndarray": lambda: ridge_probe(X, Y, X, Y, X),
    r"k must be whole numbers from 1 to 4, got 5": lambda: knn_probe(X, Y, X, 5),
    r"k must be whole numbers from 1 to 4, got \(0, 1\)": lambda: knn_probe(X, Y, X, (0, 1)),
    r"k must be whole numbers from 1 to 4, got \(\)": lambda: knn_probe(X, Y, X, ()),
    r"k must be whole numbers from 1 to 4, got 2\.5": lambda: knn_probe(X, Y, X, 2.5),
    r"k must be whole numbers from 1 to 4, got 'a'": lambda: knn_probe(X, Y, X, "a"),
    r"k must be whole numbers from 1 to 4, got None": lambda: knn_probe(X, Y, X, None),
    r"k must be whole numbers from 1 to 4, got True": lambda: knn_probe(X, Y, X, True),
    "unknown metric None": lambda: knn_probe(X, Y, X, 1, None),
    "unknown metric 'cosin': did you mean 'cosine'": lambda: knn_probe(X, Y, X, 1, "cosin"),
    r"train_t must be numbers of shape \(4,\), got float64 \(4, 2\)": lambda: ridge_probe(X, X, X, Y),
    r"test_t must be finite and at most 1e\+100 in size, got 4": lambda: ridge_probe(X, Y, X, np.full(4, np.nan)),
    r"train_t must be finite .*, got 2 beyond": lambda: ridge_probe(X, Y * 1e300, X, Y),
    "at least 2 training examples": lambda: ridge_probe(X[:1], Y[:1], X, Y),
    r"validation targets must be numbers of shape \(4,\)": lambda: ridge_probe(X, Y, X, Y, (X, Y[:3])),
    "draws must be whole numbers of at least 2, got 1": lambda: few_label_curve(X, Y, X, Y, draws=1),
    r"draws must be whole numbers of at least 2, got 2\.5": lambda: few_label_curve(X, Y, X, Y, draws=2.5),
    r"per_class must be whole numbers of at least 1, got \(0, 2\)": lambda: few_label_curve(X, Y, X, Y, (0, 2)),
    r"per_class must be whole numbers of at least 1, got \(1\.5,\)": lambda: few_label_curve(X, Y, X, Y, (1.5,)),
    "seed must be whole numbers of at least 0, got -1": lambda: few_label_curve(X, Y, X, Y, seed=-1),
    "seed must be whole numbers of at least 0, got None": lambda: few_label_curve(X, Y, X, Y, seed=None),
    "at least 2 classes": lambda: few_label_curve(X, 0 * Y, X, Y),
}


@pytest.mark.parametrize("message", BAD)
def test_probes_refuse_what_they_cannot_use(message: str) -> None:
    with pytest.raises(EbmhybridError, match=message):
        BAD[message]()


def test_an_unknown_metric_is_a_mistake_of_usage() -> None:
    with pytest.raises(UsageError, match="did you mean"):
        knn_probe(X, Y, X, 1, "cosin")


# kNN


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_knn_probe_is_its_definition(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many classes and few neighbours: most decisions are ties of votes."""
    rng = np.random.default_rng(0)
    train, test, labels = rng.normal(size=(40, 3)), rng.normal(size=(50, 3)), 3 * rng.integers(0, 6, 40)
    test[7] = 0.0
    found = knn_probe(train, labels, test, (1, 2, 4, 7, 40), metric)
    for k, predictions in found.items():
        if metric == "cosine":  # of a row of zeros all are equally near
            predictions = np.delete(predictions, 7)
        rows = np.delete(test, 7, axis=0) if metric == "cosine" else test
        assert predictions.tolist() == naive.knn(train, labels, rows, k, metric), k
    assert found[40][7] in labels
    monkeypatch.setattr(probes_neighbours, "_PAIRS", 100)  # a few rows at a time
    again = knn_probe(train, labels, test, (1, 2, 4, 7, 40), metric)
    assert all((again[k] == found[k]).all() for k in found)


def test_votes_that_are_even_go_to_the_nearer_class_and_then_to_the_smaller_label() -> None:
    train = np.array([[1.0, 0.0], [0.0, 1.0]])
    for labels in ([4, 2], [2, 4]):
        even = knn_probe(train, np.array(labels), np.array([[1.0, 1.0]]), 2)
        assert even[2].tolist() == [2]
        nearer = knn_probe(train, np.array(labels), np.array([[2.0, 1.0], [1.0, 2.0]]), 2)
        assert nearer[2].tolist() == labels
    # two votes beat one however near that one is
    assert knn_probe(X, Y, X[:1], 4, "euclidean")[4].tolist() == [0]
    three = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    assert knn_probe(three, np.array([0, 1, 1]), np.array([[1.0, 0.01]]), (1, 3)) == {1: [0], 3: [1]}


def test_cosine_knows_directions_alone_and_a_copy_finds_itself() -> None:
    rng = np.random.default_rng(1)
    train, labels, test = rng.normal(size=(30, 4)), rng.integers(0, 3, 30), rng.normal(size=(20, 4))
    scales = rng.uniform(0.1, 9, (20, 1))
    assert (knn_probe(train, labels, test)[5] == knn_probe(7 * train, labels, scales * test)[5]).all()
    for metric in ("cosine", "euclidean"):
        assert (knn_probe(train, labels, train, np.int64(1), metric)[1] == labels).all()
    assert knn_probe(np.zeros((2, 3)), np.array([1, 0]), np.zeros((1, 3)), 2)[2].tolist() == [0]


def test_nearest_neighbours_of_far_points_are_told_apart() -> None:
    """Differences of squares would lose them: at 1e8 the squares are 1e16, and a distance of 1 is rounding."""
    train = np.array([[1e8, 0.0], [1e8 + 2, 0.0], [-3e8, 0.0]])  # which no centring brings near the origin
    steps = np.array([0.1, 0.4, 0.6, 0.9, 1.1, 1.4, 1.6, 1.9])
    found = knn_probe(train, np.array([0, 1, 2]), np.stack([1e8 + steps, 0 * steps], axis=1), 1, "euclidean")
    assert found[1].tolist() == (steps > 1).tolist()


# Ridge


@pytest.mark.parametrize("alpha", [1e-2, 1.0, 100.0])
def test_ridge_probe_solves_its_normal_equations(alpha: float) -> None:
    x, _ = _clusters(25, 4, [0, 1])
    t = np.random.default_rng(3).normal(size=25) + x[:, 0] / x[:, 0].std()
    found = ridge_probe(x[:15], t[:15], x[15:], t[15:], (x[15:], t[15:]), grid=[alpha])
    w, b = naive.ridge(naive.standardised(x[:15], x[:15]), t[:15], alpha)
    wanted = naive.standardised(x[:15], x[15:]) @ w + b
    assert found.predictions == pytest.approx(wanted, rel=1e-8)
    errors = t[15:] - wanted
    assert found.mae == pytest.approx(sum(abs(e) for e in errors) / 10)
    assert found.rmse == pytest.approx(math.sqrt(sum(e * e for e in errors) / 10))
    mean = sum(t[15:]) / 10
    assert found.r2 == pytest.approx(1 - sum(e * e for e in errors) / sum((one - mean) ** 2 for one in t[15:]))


def test_alpha_is_the_one_of_least_error_on_examples_left_out_or_held_out() -> None:
    chosen = set()
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x, t = rng.normal(size=(14, 9)), 2.0 ** (3 - 2 * seed) * rng.normal(size=14)
        t += x @ rng.normal(size=9)
        rows, grid = naive.standardised(x, x), (0.01, 1.0, 30.0, 1e4)
        left_out = {alpha: naive.left_out_error(rows, t, alpha) for alpha in grid}
        found = ridge_probe(x, t, x, t, grid=grid)
        assert found.alpha == min(left_out, key=lambda alpha: left_out[alpha])
        held_x, held_t = rng.normal(size=(30, 9)), rng.normal(size=30)
        errors = {}
        for alpha in grid:
            w, b = naive.ridge(rows, t, alpha)
            errors[alpha] = np.square(naive.standardised(x, held_x) @ w + b - held_t).mean()
        assert ridge_probe(x, t, x, t, (held_x, held_t), grid=grid).alpha == min(errors, key=lambda a: errors[a])
        chosen.add(found.alpha)
    assert len(chosen) > 1


def test_r2_of_constant_targets_is_not_a_number_and_of_one_example_too() -> None:
    assert math.isnan(ridge_probe(X, Y, X, np.ones(4)).r2)
    assert math.isnan(ridge_probe(X, Y, X[:1], Y[:1]).r2)
    flat = ridge_probe(np.ones((4, 2)), Y, X, Y)  # constant features predict the mean
    assert flat.predictions == pytest.approx([0.5] * 4)
    assert flat.r2 == pytest.approx(0)


# Few labels


def test_few_labels_are_balanced_nested_and_seeded() -> None:
    labels = np.array([2, 0, 2, 7, 0, 2, 7, 2, 0, 2])
    order = shuffled(labels, 0, 0)
    assert [set(labels[members]) for members in order] == [{0}, {2}, {7}]
    assert sorted(np.concatenate(order).tolist()) == list(range(10))
    assert all((a == b).all() for a, b in zip(order, shuffled(labels, 0, 0), strict=True))
    many = np.repeat([0, 1], 40)
    drawn = {(seed, draw): tuple(shuffled(many, seed, draw)[0]) for seed in range(3) for draw in range(3)}
    assert len(set(drawn.values())) == 9


def test_few_label_curve_is_the_linear_probe_on_each_draw() -> None:
    x, y = _clusters(60, 3, [0, 1, 4])
    test_x, test_y = _clusters(40, 3, [0, 1, 4], 5)
    rows = few_label_curve(x, y, test_x, test_y, (10, 1, 3, 1, 400), draws=3, seed=7)
    assert [row["labels_per_class"] for row in rows] == [1, 3, 10]
    for row in rows:
        n, found = row["labels_per_class"], []
        for draw in range(3):
            chosen = [i for members in shuffled(y, 7, draw) for i in members[:n]]
            assert np.bincount(y[chosen]).tolist() == [n, n, 0, 0, n]
            # standardised by all training features; what is left is the probe's own, which must not do it again
            fitted = probes.fit_logistic(naive.standardised(x, x[chosen]), y[chosen], [1.0])[0][1]
            found.append(float((fitted.predict(naive.standardised(x, test_x)) == test_y).mean()))
        mean = sum(found) / 3
        assert row["accuracy"] == pytest.approx(mean)
        assert row["accuracy_std"] == pytest.approx(math.sqrt(sum((one - mean) ** 2 for one in found) / 2))
        assert (row["n"], row["n_train"], row["draws"]) == (40, 3 * n, 3)
    assert few_label_curve(x, y, test_x, test_y, (1, 3), draws=3, seed=7) == rows[:2]
    assert few_label_curve(x, y, test_x, test_y, (1, 3), draws=3, seed=8) != rows[:2]


def test_few_labels_end_where_the_rarest_class_does() -> None:
    x, y = _clusters(40, 2, [0, 1])
    y[:] = np.arange(40) < 5
    assert [row["labels_per_class"] for row in few_label_curve(x, y, x, y)] == [1, 2, 5]


def test_probes_of_digits_get_what_they_are_known_to_get(digits: Any) -> None:
    x, y, test_x, test_y = digits
    assert 0.94 < (linear_probe(x, y, test_x).predictions == test_y).mean() < 0.99
    assert 0.97 < (knn_probe(x, y, test_x, 1)[1] == test_y).mean() < 1
    curve = [row["accuracy"] for row in few_label_curve(x, y, test_x, test_y, (1, 10, 50))]
    assert 0.4 < curve[0] < curve[1] < curve[2] < 0.97


# Sets through encoders


class Encoder(nn.Module):
    """Features with dropout and a batch norm, which give other ones in training mode; counts its calls."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.layers(x)
        assert not found.requires_grad
        return found

    def mean(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self(x)


def _images(classes: int = 3, n: int = 40, few: int = 24, seed: int = 0) -> tuple[Batches, Batches]:
    """A training and a test set of 8 x 8 images in uneven batches, classes apart in brightness and noisy."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in (n, few):
        labels = torch.arange(size) % classes
        images = (0.2 * labels[:, None, None, None] + 0.5 * torch.rand(size, 1, 8, 8, generator=generator)).clamp(0, 1)
        made.append([(images[:10], labels[:10]), (images[10:], labels[10:])])
    return made[0], made[1]


@dataclass(frozen=True)
class Tokens:
    """A set of token sequences with a number each, as a set of text is."""

    name: str = "text"
    tokens: Tensor = field(default_factory=lambda: torch.randint(0, 9, (30, 6)))
    targets: Tensor | None = None
    labels: Tensor | None = None
    notes: tuple[str, ...] = ("as drawn",)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        labels = torch.zeros(len(self.tokens), dtype=torch.int64) if self.labels is None else self.labels
        return zip(self.tokens.split(8), labels.split(8), strict=True)

    def take(self, limit: int) -> Tokens:
        """The last ones, so that nobody can take the first ones by chance."""
        kept = {
            key: None if (values := getattr(self, key)) is None else values[-limit:] for key in ("targets", "labels")
        }
        return replace(self, tokens=self.tokens[-limit:], **kept)

    def digest(self) -> str:
        return "1f"


def _counts(tokens: Tensor) -> Tensor:
    return nn.functional.one_hot(tokens, 9).sum(1).double()


def test_each_set_is_encoded_once_in_eval_mode_and_modes_return() -> None:
    encoder = Encoder()
    encoder.layers[2].eval()
    train, test = _images()
    found = evaluate_representation(
        {"module": encoder, "method": encoder.mean, "partial": partial(encoder.mean, scale=2.0)},
        train,
        test,
        validation=test,
        ood_sets={"dark": [(0.1 * x, y) for x, y in test]},
        few_labels=False,
    )
    assert encoder.calls == 3 * 2 * 4  # encoders x batches x sets
    assert [module.training for module in encoder.modules()] == [True, True, True, True, False, True]
    one, other = ([row["accuracy"] for row in found.of("probe", name)] for name in ("module", "method"))
    assert one == other
    twice = found.of("ood", "partial")
    assert [row["auroc"] for row in twice] == pytest.approx(
        [row["auroc"] for row in found.of("ood", "module")], abs=0.01
    )


@pytest.mark.parametrize("kind", [lambda m: m, lambda m: m.mean, lambda m: partial(m.mean, scale=1.0)])
def test_a_module_is_found_behind_each_kind_of_callable(kind: Callable[[Encoder], Any]) -> None:
    """In training mode dropout would set half of the features to 0."""
    encoder = Encoder()
    found = encoded(Models({"a": kind(encoder)}), TEST).features["a"]
    with torch.no_grad():
        wanted = encoder.eval()(torch.cat([x for x, _ in TEST])).numpy()
    assert found == pytest.approx(wanted, abs=1e-5)


def test_modes_return_after_an_error_too() -> None:
    encoder = Encoder()
    with pytest.raises(RuntimeError):
        evaluate_representation({"a": encoder}, [(torch.rand(2, 1, 3, 3), torch.tensor([0, 1]))], _images()[1])
    assert all(module.training for module in encoder.modules())


def test_features_are_flattened_and_raised_from_half_precision() -> None:
    _, test = _images()
    encoders = {"map": lambda x: x, "half": lambda x: x.flatten(1).half(), "double": lambda x: x.flatten(1).double()}
    found = encoded(Models(encoders), test)
    assert {name: (z.shape, str(z.dtype)) for name, z in found.features.items()} == {
        "map": ((24, 64), "float32"),
        "half": ((24, 64), "float32"),
        "double": ((24, 64), "float64"),
    }
    assert (found.features["map"] == torch.cat([x for x, _ in test]).flatten(1).numpy()).all()
    assert found.labels.tolist() == torch.cat([y for _, y in test]).tolist()
    assert found.shape == (1, 8, 8)


def test_a_limit_takes_the_sets_own_choice_or_the_first_ones() -> None:
    train, _ = _images()
    found = encoded(Models({"a": lambda x: x}), train, limit=13)
    assert (found.features["a"] == torch.cat([x for x, _ in train])[:13].flatten(1).numpy()).all()
    own = Tokens(labels=torch.arange(30))
    assert encoded(Models({"a": _counts}), own, limit=4).labels.tolist() == [26, 27, 28, 29]


def test_inputs_go_to_the_first_device_that_a_module_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensor.to takes a dtype as well, which stands here for a second device."""
    first, second = Encoder(), Encoder()
    known = {first: None, second: torch.float64}
    monkeypatch.setattr(representation_features, "model_device", lambda module: known[module])
    seen = []
    models = Models({"a": lambda x: seen.append(x.dtype) or _flat(x)}, reconstruct=lambda x: x)  # type: ignore[func-returns-value]
    encoded(models, TEST)
    monkeypatch.setattr(Models, "modules", lambda self: [first, second])
    encoded(models, TEST)
    encoded(models, TEST, device=torch.float32)  # type: ignore[arg-type]
    known[second] = torch.float32
    encoded(models, TEST, device=torch.float64)  # type: ignore[arg-type]
    assert seen == [torch.float32] * 2 + [torch.float64] * 2 + [torch.float32] * 2 + [torch.float64] * 2


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def _few(x: Tensor) -> Tensor:
    return _flat(x)[:, :6]


def _by_batch(x: Tensor) -> Tensor:
    return x.flatten(1)[:, : 3 + len(x)]


def _with_nan(x: Tensor) -> Tensor:
    z = x.flatten(1).clone()
    z[2:3, 1] = float("nan")
    return z


def _with_late_nan(x: Tensor) -> Tensor:
    return _with_nan(x) if len(x) > 10 else _flat(x)


TRAIN, TEST = _images()
WRONG: dict[str, Callable[[], Any]] = {
    "no representation was given": lambda: evaluate_representation({}, TRAIN, TEST),
    "a representation needs a name, got ' '": lambda: evaluate_representation({" ": _flat}, TRAIN, TEST),
    "can be read only once": lambda: evaluate_representation({"a": _flat}, iter(TRAIN), TEST),
    "set 'x': can be read only once": lambda: evaluate_representation(
        {"a": _flat}, TRAIN, TEST, ood_sets={"x": iter(TEST)}
    ),
    "set 'validation': can be read only once": lambda: evaluate_representation(
        {"a": _flat}, TRAIN, TEST, validation=iter(TEST)
    ),
    "set 'train' is empty": lambda: evaluate_representation({"a": _flat}, [], TEST),
    r"set 'train': representation 'a' must be finite, got nan at example 2": lambda: evaluate_representation(
        {"a": _with_nan}, TRAIN, TEST
    ),
    "must be finite, got nan at example 12$": lambda: evaluate_representation({"a": _with_late_nan}, TRAIN, TEST),
    r"representation 'a' must be floating point of shape \(10, D\), got torch.float32 \(10,\)": lambda: (
        evaluate_representation({"a": lambda x: x.flatten(1).sum(1)}, TRAIN, TEST)
    ),
    r"must be floating point of shape \(10, D\), got torch.float32 \(9, 64\)": lambda: evaluate_representation(
        {"a": lambda x: _flat(x)[1:]}, TRAIN, TEST
    ),
    "must be floating point .* got torch.int64": lambda: evaluate_representation(
        {"a": lambda x: _flat(x).long()}, TRAIN, TEST
    ),
    "got list": lambda: evaluate_representation({"a": lambda x: x.tolist()}, TRAIN, TEST),
    r"changes its width between batches: \[13, 33\]": lambda: evaluate_representation({"a": _by_batch}, TRAIN, TEST),
    "changes its inputs in place": lambda: evaluate_representation({"a": lambda x: x.mul_(1)}, *_images()),
    r"set 'train': images must lie in \[0, 1\]": lambda: evaluate_representation(
        {"a": _flat}, [(2 + x, y) for x, y in TRAIN], TEST
    ),
    "samples.*must lie in": lambda: evaluate_representation(
        {"a": _flat}, TRAIN, TEST, samples=torch.ones(2, 1, 8, 8) * 2
    ),
    r"log_likelihood must return \(10,\) numbers without NaN, got torch.float32 \(10, 64\)": lambda: (
        evaluate_representation({"a": _flat}, TRAIN, TEST, log_likelihood=_flat)
    ),
    "without NaN": lambda: evaluate_representation(
        {"a": _flat}, TRAIN, TEST, log_likelihood=lambda x: torch.full((len(x),), float("nan"))
    ),
    r"reconstruct must return images of shape \(10, 1, 8, 8\), got \(10, 64\)": lambda: evaluate_representation(
        {"a": _flat}, TRAIN, TEST, reconstruct=_flat
    ),
    r"bits must return \(24,\) numbers or None, got shape \(\)": lambda: evaluate_representation(
        {"a": _flat}, TRAIN, TEST, log_likelihood=lambda x: x.flatten(1).sum(1), bits=lambda values: values.sum()
    ),
    r"train_t must be numbers of shape \(40,\), got float64 \(39,\)": lambda: evaluate_representation(
        {"a": _flat}, TRAIN, TEST, targets=(np.ones(39), np.ones(24))
    ),
    "nothing to measure: the training labels are of one class": lambda: evaluate_representation(
        {"a": _flat}, *_images(1)
    ),
    "corruptions are measured by the linear probe, and the training labels": lambda: evaluate_representation(
        {"a": _flat}, *_images(1), corruptions=True
    ),
    r"corruptions are made of images, and its examples are of \(6,\)": lambda: evaluate_representation(
        {"a": _counts}, Tokens(), Tokens(), corruptions=True
    ),
    r"corruptions need images of .*, got \(1, 2, 2\)|at least": lambda: evaluate_representation(
        {"a": _flat}, *([(x[..., :2, :2], y) for x, y in data] for data in (TRAIN, TEST)), corruptions=True
    ),
    "labels must be integers": lambda: evaluate_representation({"a": _flat}, [(x, y.float()) for x, y in TRAIN], TEST),
    r"must yield batches \(inputs, labels\), got Tensor": lambda: evaluate_representation(
        {"a": _flat}, [x for x, _ in TRAIN], TEST
    ),
    "limit must be a whole number of at least 1, got 0": lambda: evaluate_representation(
        {"a": _flat}, TRAIN, TEST, train_limit=0
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_cannot_be_measured_is_refused(message: str) -> None:
    with pytest.raises(EbmhybridError, match=message):
        WRONG[message]()


def test_a_width_that_differs_between_sets_is_refused() -> None:
    def encoder(x: Tensor) -> Tensor:
        return _flat(x)[:, : 5 if x.mean() > 0.3 else 4]

    with pytest.raises(EbmhybridError, match="must have the 5 columns"):
        evaluate_representation({"a": encoder}, TRAIN, [(0.1 * x, y) for x, y in TEST])


# Rows


@pytest.fixture(scope="module")
def measured() -> RepresentationResult:
    """Two representations of digits, with everything that can be measured but corruptions."""
    splits = load_splits("digits")
    weight = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    test = splits.test.take(120)
    return evaluate_representation(
        {"pixels": lambda x: x, HOSTILE: lambda x: (x.flatten(1) @ weight).relu()},
        splits.train.take(300),
        test,
        validation=splits.validation,
        ood_sets={"flipped": replace(test, images=test.images.flip(3)), "dark": [(0.3 * x, y) for x, y in test]},
        targets=(splits.train.take(300).images.float().mean((1, 2, 3)), test.images.float().mean((1, 2, 3)).numpy()),
        log_likelihood=lambda x: -(x - 0.3).square().flatten(1).sum(1),
        reconstruct=lambda x: 0.9 * x,
        samples=torch.rand(23, 1, 8, 8),
        bits=lambda values: -values / (64 * math.log(2)),
        seed=3,
    )


def _pixels(data: ImageSet) -> np.ndarray:
    return torch.cat([x.flatten(1) for x, _ in data]).numpy()


def test_probe_rows_are_what_the_probes_say(measured: RepresentationResult) -> None:
    splits = load_splits("digits")
    train, test, held = splits.train.take(300), splits.test.take(120), splits.validation
    x, y = _pixels(train), train.labels.numpy()
    linear, *near = measured.of("probe", "pixels")
    probe = linear_probe(x, y, _pixels(test), (_pixels(held), held.labels.numpy()))
    right = probe.predictions == test.labels.numpy()
    assert linear["accuracy"] == right.mean()
    assert (linear["accuracy_low"], linear["accuracy_high"]) == wilson_interval(int(right.sum()), 120)
    assert linear["nll"] == pytest.approx(nll(probe.probabilities, test.labels))
    assert linear["ece_15"] == ece(probe.probabilities, test.labels)
    assert (linear["C"], linear["dimension"], linear["n"], linear["n_train"]) == (probe.C, 64, 120, 300)
    assert probe.C == 10.0  # which validation images chose: without any it is 1
    found = knn_probe(x, y, _pixels(test))
    assert {row["k"]: row["accuracy"] for row in near} == {
        k: (calls == test.labels.numpy()).mean() for k, calls in found.items()
    }
    few = few_label_curve(x, y, _pixels(test), test.labels.numpy(), seed=3)
    about = {"group": "few_labels", "representation": "pixels", "set": "digits"}
    assert measured.of("few_labels", "pixels") == tuple(about | row for row in few)


def test_ood_rows_are_distances_to_training_features_and_the_models_likelihood(measured: RepresentationResult) -> None:
    splits = load_splits("digits")
    z, test = _pixels(splits.train.take(300)), splits.test.take(120)
    inside, outside = _pixels(test), 0.3 * _pixels(test)
    rows = {(row["representation"], row["score"]): row for row in measured.of("ood") if row["ood_set"] == "dark"}
    assert len(rows) == 5
    for score, of in {"knn": knn(z), "mahalanobis": mahalanobis(z, np.zeros(300, dtype=int))}.items():
        row = rows["pixels", score]
        assert row["auroc"] == pytest.approx(auroc(of(inside), of(outside)), abs=1e-3)
        assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
    row, likelihood = rows[None, "log_likelihood"], [-((x - 0.3) ** 2).sum(axis=1) for x in (inside, outside)]
    assert row["auroc"] == pytest.approx(auroc(*likelihood), abs=1e-3)
    assert row["fpr95_ood_positive"] == pytest.approx(fpr95_ood_positive(*likelihood), abs=0.01)
    assert row["fpr95_id_positive"] == pytest.approx(fpr95_id_positive(*likelihood), abs=0.01)
    assert (row["n"], row["n_id"], row["n_ood"], row["set"]) == (120, 120, 120, "dark")
    means = [row for row in measured.of("ood") if "n_sets" in row]
    assert [(row["ood_set"], row["n"], row["n_ood"]) for row in means] == [("macro mean", 120, 240)] * 5
    assert measured.scores is not None
    assert measured.scores.ood_scores["dark"]["log_likelihood"] == pytest.approx(likelihood[1], rel=1e-5)


def test_reconstruction_row_has_means_and_standard_errors(measured: RepresentationResult) -> None:
    (row,) = measured.of("reconstruction")
    x = _pixels(load_splits("digits").test.take(120)).astype(np.float64)
    likelihood, error = -((x - 0.3) ** 2).sum(axis=1), (0.01 * x**2).mean(axis=1)
    for key, values in (
        ("log_likelihood", likelihood),
        ("mse", error),
        ("bits_per_dimension", -likelihood / 64 / math.log(2)),
    ):
        assert row[key] == pytest.approx(values.mean(), rel=1e-5)
        assert row[f"{key}_error"] == pytest.approx(values.std(ddof=1) / math.sqrt(120), rel=1e-5)
        assert row[f"{key}_low"] == pytest.approx(row[key] - 1.959964 * row[f"{key}_error"], rel=1e-5)
        assert row[f"{key}_high"] == pytest.approx(row[key] + 1.959964 * row[f"{key}_error"], rel=1e-5)
    assert (row["representation"], row["n"]) == (None, 120)
    assert measured.pairs is not None
    assert measured.pairs.shape == (2, 16, 1, 8, 8)
    assert measured.pairs[0].reshape(16, 64) == pytest.approx(x[:16])
    assert measured.pairs[1] == pytest.approx(0.9 * measured.pairs[0])


def test_ridge_rows_regress_on_the_targets(measured: RepresentationResult) -> None:
    rows = measured.of("ridge")
    assert [row["representation"] for row in rows] == ["pixels", HOSTILE]
    assert rows[0]["r2"] > 0.999  # the mean of the pixels is linear in them
    assert rows[0]["r2"] > rows[1]["r2"]
    assert (rows[0]["n"], rows[0]["n_train"]) == (120, 300)


def test_rows_are_flat_and_tell_group_representation_set_and_n(measured: RepresentationResult) -> None:
    for row in measured.rows:
        assert {"group", "representation", "set", "n"} <= row.keys()
        assert all(isinstance(value, (str, int, float, bool, type(None))) for value in row.values())
        assert not any(isinstance(value, np.generic) for value in row.values())
    content = json.loads(json.dumps(measured.as_dict(), allow_nan=False))
    assert content["about"]["representations"] == {"pixels": 64, HOSTILE: 12}
    assert [row["role"] for row in content["about"]["sets"]] == ["test", "train", "validation", "ood", "ood"]
    groups = ["probe", "few_labels", "ridge", "ood", "reconstruction"]
    assert list(dict.fromkeys(row["group"] for row in content["rows"])) == groups


def test_the_same_call_gives_the_same_rows() -> None:
    first, again = (evaluate_representation({"a": _few}, TRAIN, TEST, ood_sets={"x": TRAIN}) for _ in range(2))
    assert first.rows == again.rows
    other = evaluate_representation({"a": _few}, TRAIN, TEST, seed=1)
    assert other.of("few_labels") != first.of("few_labels")
    assert other.of("probe") == first.of("probe")


def test_corruption_rows_are_those_of_the_linear_probe_as_a_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    import ebmhybrid.evaluate.representation as module

    kept = {name: module.CORRUPTIONS[name] for name in ("fog", "gaussian_noise")}
    monkeypatch.setattr(module, "CORRUPTIONS", kept)
    calls = []
    found = evaluate_representation(
        {"a": lambda x: calls.append(len(x)) or _flat(x), "b": lambda x: _flat(x)[:, :9]},  # type: ignore[func-returns-value]
        TRAIN,
        TEST,
        corruptions=True,
        few_labels=False,
        seed=5,
    )
    assert len(calls) == 2 * (2 + 2 * 5)  # batches x (sets + cells)
    x, y = (np.concatenate([pair[i].numpy() for pair in TRAIN]) for i in range(2))
    probe = linear_probe(x.reshape(40, 64), y, x.reshape(40, 64))
    wanted = evaluate_corruptions(lambda t: torch.from_numpy(probe(_flat(t).numpy())), TEST, kept, seed=5).rows
    rows = found.of("corruptions", "a")
    assert len(rows) == len(wanted) == 1 + 10 + 5 + 2 + 1
    for row, expected in zip(rows, wanted, strict=True):
        assert {key: row[key] for key in expected} == pytest.approx(expected)
    assert found.of("corruptions", "b")[-1]["corruption"] == "mean"
    assert "corruptions" in figures_for(found)
    (table,) = (table for table in found.section.tables if table.title == "Corruptions")
    means = {row["corruption"]: row["accuracy"] for row in rows if row["severity"] is None}
    about = {"representation": "a", "n": 24, "clean": rows[0]["accuracy"]}
    assert table.rows[0] == about | means
    assert means.keys() == {"noise mean", "weather mean", "mean"}
    (part,) = (part for part in PARTS if part.key == "representation")
    assert [row["severity"] for row in filter(part.keep, rows)] == [None]
    assert len(list(filter(part.keep, found.of("probe")))) == 8


def test_tokens_have_probes_and_targets_of_their_own() -> None:
    tokens = torch.randint(0, 9, (30, 6))
    data = Tokens("text:a", tokens, (tokens == 3).sum(1).float(), tokens[:, 0] % 2)
    found = evaluate_representation({"counts": _counts}, data, data, train_limit=20, few_labels=False)
    (row,) = found.of("ridge")
    assert row["r2"] > 0.99  # of the examples that were taken, not of the first ones
    assert (row["n_train"], row["n"]) == (20, 30)
    assert len(found.of("probe")) == 4
    assert found.notes == ("at most 20 training examples were used",)
    targets = (tokens == 4).sum(1)
    given = evaluate_representation({"counts": _counts}, data, data, targets=(targets, targets), few_labels=False)
    assert given.of("ridge")[0]["r2"] > 0.99


def test_labels_of_one_class_leave_probes_of_classes_out() -> None:
    tokens = torch.randint(0, 9, (30, 6))
    data = Tokens(tokens=tokens, targets=(tokens == 3).sum(1).double())
    found = evaluate_representation({"counts": _counts}, data, data)
    assert {row["group"] for row in found.rows} == {"ridge"}
    assert found.notes == ("no probes of classes: the training labels are of one class",)
    assert "R², counts" in found.table()
    card = found.section.card
    assert card is not None
    assert (card.name, card.value) == ("R²", f"{found.rows[0]['r2']:.4f}")
    assert "No probes of classes: the training labels are of one class." in found.section.text
    assert found.section.warnings == ()
    without = evaluate_representation({"counts": _counts}, replace(data, targets=None), data, ood_sets={"x": data})
    assert {row["group"] for row in without.rows} == {"ood"}
    assert without.section.card is None
    assert without.section.warnings == ("No probes of classes: the training labels are of one class.",)


def test_train_limit_takes_the_sets_own_subset() -> None:
    splits = load_splits("digits")
    test = splits.test.take(50)
    limited = evaluate_representation({"a": _flat}, splits.train, test, train_limit=100, few_labels=False)
    taken = evaluate_representation({"a": _flat}, splits.train.take(100), test, few_labels=False)
    assert limited.rows == taken.rows
    assert limited.of("probe")[0]["n_train"] == 100
    assert limited.about["train_limit"] == 100
    assert limited.about["sets"][1]["notes"][-1] == "100 of 1258 images"


def test_fewer_training_examples_than_neighbours_leave_large_k_out() -> None:
    small = [(x[:5], y[:5]) for x, y in TRAIN[:1]]
    found = evaluate_representation({"a": _flat}, small, TEST)
    assert [row["k"] for row in found.of("probe")[1:]] == [1, 5]
    assert [row["labels_per_class"] for row in found.of("few_labels")] == [1]


def test_a_test_label_that_training_lacks_counts_as_wrong_and_has_no_nll() -> None:
    train = [(x[y < 2], y[y < 2]) for x, y in TRAIN]
    found = evaluate_representation({"a": _flat}, train, TEST, few_labels=False)
    linear = found.of("probe")[0]
    assert linear["nll"] == math.inf
    assert linear["accuracy"] <= 2 / 3
    assert json.loads(json.dumps(linear["n"])) == 24


def test_one_test_image_has_no_standard_error() -> None:
    one = [(x[:1], y[:1]) for x, y in TEST[:1]]
    found = evaluate_representation(
        {"a": _flat}, TRAIN, one, log_likelihood=lambda x: x.sum((1, 2, 3)), few_labels=False
    )
    (row,) = found.of("reconstruction")
    assert row["n"] == 1
    assert (row["log_likelihood_error"], row["log_likelihood_low"]) == (None, None)
    assert "bits_per_dimension" not in row


@pytest.mark.parametrize("bits", [lambda values: None, lambda values: torch.full_like(values, float("nan"))])
def test_bits_that_there_are_none_of_are_left_out(bits: Callable[[Tensor], Tensor | None]) -> None:
    likelihood = {"log_likelihood": lambda x: x.sum((1, 2, 3)), "bits": bits, "few_labels": False}
    found = evaluate_representation({"a": _flat}, TRAIN, TEST, **likelihood)  # type: ignore[arg-type]
    assert "bits_per_dimension" not in found.of("reconstruction")[0]


def test_progress_wraps_each_pass() -> None:
    seen = []

    def progress(batches: Any, text: str) -> Any:
        seen.append(text)
        return batches

    evaluate_representation({"a": _flat}, TRAIN, TEST, ood_sets={"x": TEST}, few_labels=False, progress=progress)
    assert seen == ["train", "test", "x"]


# Pictures, pages, comparisons


def test_every_figure_is_drawn_and_has_its_numbers(measured: RepresentationResult) -> None:
    names = ["probes", "few-labels", "ood", "reconstructions", "samples"]
    assert figures_for(measured) == names
    assert len(measured.plot().axes) == 5
    drawings = measured.section.drawings
    assert [drawing.name for drawing in drawings] == [f"representation-{name}" for name in names]
    for drawing in drawings:
        assert drawing.draw().axes
        assert drawing.numbers().rows
    assert len(RepresentationResult((), {"representations": {}}).plot().axes) == 0


def test_cells_of_the_tables_are_the_rows(measured: RepresentationResult) -> None:
    tables = {table.title: table for table in measured.section.tables}
    linear, first, *_ = measured.of("probe", "pixels")
    cells = {key: values for key, values in tables["Probes"].rows[0].items() if key in ("accuracy", "knn1", "C")}
    assert cells == {"accuracy": linear["accuracy"], "knn1": first["accuracy"], "C": linear["C"]}
    few = measured.of("few_labels", HOSTILE)[2]
    cell = tables["Few labels"].rows[1]["labels5"]
    assert cell.text == f"{100 * few['accuracy']:.2f} % ± {100 * few['accuracy_std']:.2f}"
    assert cell.value == few["accuracy"]
    ood = tables["OOD detection"]
    assert [row["ood_set"] for row in ood.rows] == ["flipped"] * 5 + ["dark"] * 5
    assert [row["ood_set"] for row in ood.means] == ["macro mean"] * 5
    assert [row["representation"] for row in ood.means] == ["the model itself", "pixels", "pixels", HOSTILE, HOSTILE]
    assert tables["Regression"].rows == measured.of("ridge")
    assert tables["Reconstruction"].rows == measured.of("reconstruction")


def test_curves_and_pictures_are_the_rows(measured: RepresentationResult, monkeypatch: pytest.MonkeyPatch) -> None:
    (axes,) = plots_representation.figure("few-labels", measured).axes
    for name, drawn in zip(("pixels", HOSTILE), axes.containers, strict=True):
        rows = measured.of("few_labels", name)
        assert drawn[0].get_xdata().tolist() == [row["labels_per_class"] for row in rows]
        assert drawn[0].get_ydata().tolist() == [row["accuracy"] for row in rows]
    drawn = []
    monkeypatch.setattr(plots_representation, "draw_images", lambda axes, rows, *left, **title: drawn.append(rows))
    plots_representation.figure("reconstructions", measured)
    plots_representation.figure("samples", measured)
    assert measured.pairs is not None
    assert measured.samples is not None
    (first, below, second, _), samples = drawn
    assert (np.concatenate([first, second]) == measured.pairs[0]).all()
    assert (below == measured.pairs[1][:8]).all()
    assert (np.concatenate(samples) == measured.samples).all()


def test_points_of_the_figures_are_the_rows(measured: RepresentationResult) -> None:
    names, series = plots_representation.probe_points(measured)
    assert names == ["pixels", HOSTILE]
    assert list(series) == ["linear probe", "kNN, k = 1", "kNN, k = 5", "kNN, k = 20"]
    row = measured.of("probe", HOSTILE)[0]
    assert series["linear probe"][1] == (row["accuracy"], row["accuracy_low"], row["accuracy_high"])
    names, series = plots_representation.ood_points(measured)
    assert names == ["flipped", "dark", "macro mean"]
    assert list(series)[:2] == ["log_likelihood", "pixels, knn"]
    assert all(point is not None for points in series.values() for point in points)


def test_result_saves_as_an_evaluation_of_this_part_alone(measured: RepresentationResult, tmp_path: Path) -> None:
    suite = of_representation(measured, {"model": HOSTILE, "notes": ["first"]}, ["second"])
    folder = suite.save(tmp_path / "probe")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("figures", "report.html", "results.csv", "results.json", "scores.npz")
    ]
    content = json.loads((folder / "results.json").read_text())
    assert content["representation"]["rows"][0]["group"] == "probe"
    assert content["accuracy"] == {"rows": [{"set": "digits", "n": 120}]}
    assert content["context"]["notes"] == ["first", "second"]
    assert all(content[part] is None for part in ("calibration", "ood", "generation", "robustness"))
    with (folder / "results.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert {line["section"] for line in lines} == {"representation"}
    assert lines[0]["name"] == "pixels: linear probe"
    keys = [(line["set"], line["name"], line["metric"]) for line in lines]
    assert len(set(keys)) == len(keys)
    with np.load(folder / "scores.npz") as scores:
        assert scores["test.pixels knn"].shape == (120,)
    page = (folder / "report.html").read_text()
    assert "<script>alert" not in page
    assert re.findall(r'<h2 id="(\w+)"', page) == ["representation", "data", "recipe"]
    assert "Second." in page
    assert len(list((folder / "figures").iterdir())) == 5


def test_table_says_each_figure_with_its_n(measured: RepresentationResult) -> None:
    text = measured.table()
    assert of_representation(measured).table() == text
    linear = measured.of("probe", "pixels")[0]
    assert re.search(rf"^linear probe, pixels +{100 * linear['accuracy']:.2f} %.*C=\S+, n=120$", text, flags=re.M)
    for start in ("kNN by k, pixels", "few labels, pixels", "R², pixels", "AUROC knn, macro mean", "bits per dim"):
        assert re.search(rf"^{re.escape(start)}.*n=120", text, flags=re.M), start
    assert "log_likelihood, macro mean" in text
    assert len(re.findall("^AUROC", text, flags=re.M)) == 5


def test_the_card_is_of_the_first_representation_beside_the_baseline(measured: RepresentationResult) -> None:
    """Not of the best one, which the test set would have chosen."""
    first = {name: lambda x: x for name in ("a", "pixels")} | {"a": lambda x: x[:, :, :1, :1]}
    found = evaluate_representation(first, TRAIN, TEST, few_labels=False)
    linear = [row for row in found.of("probe") if row["probe"] == "linear"]
    assert linear[0]["accuracy"] < linear[1]["accuracy"]
    card = found.section.card
    assert card is not None
    assert card.value == f"{100 * linear[0]['accuracy']:.2f} %"
    assert card.note.startswith("a; 95 % interval")
    assert card.note.endswith(f"n = 24; baseline pixels {100 * linear[1]['accuracy']:.2f} %")
    alone = measured.section.card
    assert alone is not None
    assert alone.note.startswith("pixels; ")
    assert "baseline" not in alone.note


def test_notes_begin_with_a_capital_unless_a_figures_name_does(measured: RepresentationResult) -> None:
    notes = ("log_likelihood is exact", "reconstructions are drawn")
    assert replace(measured, notes=notes).section.warnings == ("log_likelihood is exact.", "Reconstructions are drawn.")


def test_few_labels_of_all_sizes_leave_the_last_column_in_line(measured: RepresentationResult) -> None:
    about = {
        "group": "few_labels",
        "representation": "pixels",
        "n": 120,
        "draws": 5,
        "accuracy": 1.0,
        "accuracy_std": 0.0,
    }
    rows = [row for row in measured.rows if row["group"] != "few_labels"]
    rows += [about | {"labels_per_class": n} for n in PER_CLASS]
    lines = replace(measured, rows=tuple(rows)).table().splitlines()
    (few,) = (line for line in lines if line.startswith("few labels, pixels"))
    (linear,) = (line for line in lines if line.startswith("linear probe, pixels"))
    assert few.index("with 1, 2, 5, 10, 50, 100 a class") == linear.index("NLL")


def test_bars_of_few_labels_end_at_all_right(measured: RepresentationResult) -> None:
    rows = tuple(row | {"accuracy": 0.98, "accuracy_std": 0.3} for row in measured.of("few_labels"))
    (axes,) = plots_representation.figure("few-labels", replace(measured, rows=rows)).axes
    assert axes.get_ylim()[1] == 1
    ends = [end for container in axes.containers for bar in container[2][0].get_segments() for end in bar[:, 1]]
    assert max(ends) == pytest.approx(1)
    assert min(ends) == pytest.approx(0.68)


def test_ood_figure_has_a_colour_a_representation_and_a_marker_a_score(measured: RepresentationResult) -> None:
    (axes,) = plots_representation.figure("ood", measured).axes
    styles = {one.get_label(): (one[0].get_color(), one[0].get_marker()) for one in axes.containers}
    pixels, other = (
        [style for label, style in styles.items() if label.startswith(f"{start}")] for start in ("pix", "<")
    )
    assert len(pixels) == len(other) == 2
    assert {colour for colour, _ in pixels}.isdisjoint(colour for colour, _ in other)
    assert all(len({colour for colour, _ in some}) == 1 for some in (pixels, other))
    assert [marker for _, marker in pixels] == [marker for _, marker in other]
    assert len({marker for _, marker in styles.values()}) == 3
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(legend) == 3 + 3
    assert {"the model itself", "pixels", "knn", "mahalanobis", "log_likelihood"} < set(legend)


def test_intervals_of_probes_stand_below_their_values_on_the_page(
    measured: RepresentationResult, tmp_path: Path
) -> None:
    page = (of_representation(measured).save(tmp_path / "a") / "report.html").read_text()
    assert re.search(r'<td class="stacked"[^>]*>[\d.]+ %\n\[[\d.]+, [\d.]+\]</td>', page)
    table = measured.section.tables[0]
    assert [column.heading for column in table.shown][1:5] == [
        "linear probe",
        "kNN, k = 1",
        "kNN, k = 5",
        "kNN, k = 20",
    ]


def test_names_of_figures_in_long_tables() -> None:
    rows = [
        ({"group": "probe", "probe": "linear"}, "a: linear probe"),
        ({"group": "few_labels", "labels_per_class": 5}, "a: linear probe, labels a class=5"),
        ({"group": "ridge"}, "a: ridge probe"),
        ({"group": "ood", "score": "knn"}, "a: knn"),
        ({"group": "corruptions", "corruption": "fog", "severity": 2}, "a: linear probe, corruption=fog severity=2"),
    ]
    assert [tables.representation_name({"representation": "a"} | row) for row, _ in rows] == [name for _, name in rows]
    assert (
        tables.representation_name({"group": "ood", "score": "log_likelihood", "representation": None})
        == "log_likelihood"
    )


def test_which_direction_is_better_in_a_comparison() -> None:
    (part,) = (part for part in PARTS if part.key == "representation")
    higher = {metric.key for metric in part.metrics if metric.higher}
    assert higher == {"accuracy", "r2", "auroc", "log_likelihood"}
    lower = {metric.key for metric in part.metrics if not metric.higher}
    assert lower == {"nll", "ece_15", "fpr95_ood_positive", "bits_per_dimension", "mse"}


def _written(results: dict[str, Any], folder: Path) -> list[Path]:
    """The results.json of evaluations, each in a folder of its name."""
    paths = [folder / name / "results.json" for name in results]
    for path, result in zip(paths, results.values(), strict=True):
        path.parent.mkdir()
        path.write_text(dumps(result.as_dict()))
    return paths


def test_two_results_are_compared_and_the_better_one_is_marked(tmp_path: Path) -> None:
    splits = load_splits("digits")
    train, test = splits.train.take(200), splits.test.take(100)
    better = evaluate_representation({"z": _flat}, train, test, few_labels=False)
    worse = evaluate_representation({"z": lambda x: _flat(x)[:, :12]}, train, test, few_labels=False)
    fewer = evaluate_representation({"z": lambda x: _flat(x)[:, :12]}, train.take(150), test, few_labels=False)
    results = {"better": better, "worse": worse, "fewer": fewer}
    paths = _written({name: of_representation(one, {"model": name}) for name, one in results.items()}, tmp_path)
    text = compare_results(paths[:2]).table()
    assert re.search(r"z: linear probe +[\d.]+ % \[[\d., ]+\] ★", text)
    assert "Accuracy:" not in text
    found = compare_results(paths[:2])
    assert [section.key for section in found.sections] == ["runs", "representation"]
    assert {row["section"] for row in found.rows} == {"representation"}
    assert (tmp_path / "page") in found.save(tmp_path / "page").parents
    # probes of other training images do not compare, though the test images are the same
    rows = compare_results([paths[0], paths[2]]).table().partition("\n\n")[2].partition("\n\n")[2]
    assert "z: linear probe" in rows
    assert "★" not in rows
    assert "☆" not in rows


def test_likelihoods_and_reconstructions_are_compared_among_equal_kinds_alone(tmp_path: Path) -> None:
    kinds = {"a": ("log p(x)", "drawn"), "b": ("log p(x|z)", "drawn"), "c": ("log p(x)", "mean")}
    results = {}
    for i, (name, (likelihood, reconstruction)) in enumerate(kinds.items(), 1):
        found = evaluate_representation(
            {"z": _flat},
            TRAIN,
            TEST,
            few_labels=False,
            log_likelihood=lambda x, i=i: -i * x.sum((1, 2, 3)),  # type: ignore[misc]
            reconstruct=lambda x, i=i: x / (1 + i),  # type: ignore[misc]
            likelihood=likelihood,
            reconstruction=reconstruction,
        )
        digests = {"sets": [one | {"digest": "1f"} for one in found.about["sets"]]}
        note = f"p(x) of {name}" if name == "c" else "p(x) of the two"
        found = replace(found, about={**found.about, **digests})
        results[name] = of_representation(found, {"model": name}, [note])
    compared = compare_results(_written(results, tmp_path))
    tables = {table.title.partition(": ")[2]: table for table in compared.sections[1].tables}
    likelihoods = {row["name"]: row for row in tables["log-likelihood, higher is better"].rows}
    assert likelihoods.keys() == {"log p(x)", "log p(x|z)"}
    assert "★" in likelihoods["log p(x)"]["run0"].text
    assert likelihoods["log p(x)"].keys().isdisjoint({"run1"})
    assert "★" not in likelihoods["log p(x|z)"]["run1"].text
    errors = {row["name"]: row for row in tables["mean square error of reconstructions, lower is better"].rows}
    assert {name: [key for key in row if key.startswith("run")] for name, row in errors.items()} == {
        "drawn": ["run0", "run1"],
        "mean": ["run2"],
    }
    assert "a, b: p(x) of the two.\n\nc: p(x) of c." in compared.table()


def test_a_representation_stands_beside_a_classifiers_evaluation(
    measured: RepresentationResult, tmp_path: Path
) -> None:
    found = compare_results(_written({"a": fake_suite(), "b": of_representation(measured)}, tmp_path))
    keys = [section.key for section in found.sections]
    assert {"accuracy", "robustness", "representation", "published"} <= set(keys)
    assert {"accuracy", "representation"} <= {row["section"] for row in found.rows}
    assert "pixels: linear probe" in found.table()


def test_damaged_rows_are_told_by_their_file(measured: RepresentationResult, tmp_path: Path) -> None:
    paths = _written(dict.fromkeys("ab", of_representation(measured)), tmp_path)
    content = json.loads(paths[1].read_text())
    del content["representation"]["rows"][0]["probe"]
    paths[1].write_text(json.dumps(content))
    with pytest.raises(EbmhybridError, match=r"b/results\.json: damaged results"):
        compare_results(paths)


def test_a_score_without_intervals_or_a_single_set_is_shown(tmp_path: Path) -> None:
    found = evaluate_representation({"z": _flat}, TRAIN, TEST, ood_sets={"$x$ & <b>": TRAIN}, few_labels=False)
    assert len(re.findall(r"^AUROC \w+, \$x\$ & <b>", found.table(), flags=re.M)) == 2
    page = (of_representation(found).save(tmp_path / "a") / "report.html").read_text()
    assert "<b>" not in page


# The document


def _snippets() -> list[str]:
    page = (Path(__file__).parent.parent / "docs" / "probe.md").read_text()
    return re.findall(r"```python\n(.*?)```", page, flags=re.S)


def test_snippets_of_the_document_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for snippet in _snippets():
        exec(snippet, names)
    assert (tmp_path / "probe" / "report.html").is_file()
    assert "linear probe, pixels" in capsys.readouterr().out


def test_the_document_has_every_option_of_the_command() -> None:
    from ebmhybrid.cli_probe import probe

    page = (Path(__file__).parent.parent / "docs" / "probe.md").read_text()
    told = set(re.findall(r"`(--[a-z-]+)", page.partition("| option |")[2]))
    assert told == {name for option in probe.params for name in (*option.opts, *option.secondary_opts)} - {"run"}


def test_the_document_tells_the_grids() -> None:
    page = (Path(__file__).parent.parent / "docs" / "probe.md").read_text()
    assert C_GRID == (0.001, 0.01, 0.1, 1, 10)
    assert "0.001, 0.01, 0.1, 1 and 10" in page
    assert probes.ALPHA_GRID == (0.01, 0.1, 1, 10, 100, 1000, 10000)
    assert (NEIGHBOURS, PER_CLASS, DRAWS) == ((1, 5, 20), (1, 2, 5, 10, 50, 100), 5)
