"""Quality of samples: metrics against literal loops, a kept library and closed forms; what is measured on what."""

from __future__ import annotations

import json
import math
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import naive_generation as naive
import numpy as np
import pytest
import torch
from fake_suite import HOSTILE
from torch import Tensor, nn

from ebmhybrid.data.sets import ImageSet
from ebmhybrid.evaluate import evaluate_generation, files, generation_features, generation_metrics, ood, tables
from ebmhybrid.evaluate.accuracy import wilson_interval
from ebmhybrid.evaluate.compare_parts import PARTS
from ebmhybrid.evaluate.generation_features import InceptionWeights, features_of, inception_features
from ebmhybrid.evaluate.generation_metrics import frechet_distance, inception_score, kernel_distance, nearest
from ebmhybrid.evaluate.generation_result import GenerationResult
from ebmhybrid.evaluate.plots_generation import mosaic, rows_of
from ebmhybrid.evaluate.report_generation import generation_section, report_of_generation

SHAPE = (1, 4, 4)


def _features(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return shift + scale * rng.normal(size=(n, d)) @ rng.normal(size=(d, d))


def _exact(mean: np.ndarray, root: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """Rows whose mean and covariance are exactly these, root root^T."""
    rows = np.random.default_rng(seed).normal(size=(n, len(mean)))
    rows -= rows.mean(axis=0)
    whitened = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return mean + whitened @ root.T


# Metrics


@pytest.mark.parametrize(("n", "m", "d"), [(30, 20, 4), (8, 9, 7), (40, 12, 1)])
def test_frechet_distance_is_its_equation(n: int, m: int, d: int) -> None:
    a, b = _features(n, d, 0), _features(m, d, 1, 2.0, 0.5)
    assert frechet_distance(a, b) == pytest.approx(naive.frechet(a, b), rel=1e-10)


def test_frechet_distance_of_known_gaussians() -> None:
    """Commuting covariances: the squared distance of means plus that of the standard deviations along each axis."""
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    mean_a, mean_b = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, -1.0])
    std_a, std_b = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 0.0])
    a, b = _exact(mean_a, turn * std_a, 50), _exact(mean_b, turn * std_b, 70, 1)
    expected = ((mean_a - mean_b) ** 2).sum() + ((std_a - std_b) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_with_fewer_rows_than_columns() -> None:
    """Two points apart by 2 s along one axis have variance 2 s^2 there: (sqrt 2 s - sqrt 2 t)^2 on the same axis."""
    a, b = np.zeros((2, 50)), np.zeros((2, 50))
    a[:, 3], b[:, 3] = [-3, 3], [-1, 1]
    assert frechet_distance(a, b) == pytest.approx(2 * (3 - 1) ** 2, abs=1e-12)
    b[:, 3], b[:, 4] = 0, [-1, 1]  # another axis: nothing in common
    assert frechet_distance(a, b) == pytest.approx(2 * 9 + 2 * 1, abs=1e-12)
    few = _features(10, 200, 3)
    assert frechet_distance(few, few) <= 1e-9 * np.trace(np.cov(few.T))
    assert frechet_distance(few, few + 0.5) == pytest.approx(200 * 0.25, rel=1e-9)


def test_frechet_distance_is_symmetric_never_negative_and_blind_to_order_and_rotation() -> None:
    a, b = _features(40, 6, 4), _features(25, 6, 5, 1.3)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    value = frechet_distance(a, b)
    assert value > 0
    for one, other in ((b, a), (a[::-1], b[::-1]), (a @ turn, b @ turn), (a + 7, b + 7)):
        assert frechet_distance(one, other) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * value, rel=1e-9)
    assert min(frechet_distance(_features(9, 4, seed), _features(9, 4, seed)) for seed in range(20)) >= 0
    assert frechet_distance(torch.tensor(a), torch.tensor(b)) == value


@pytest.mark.parametrize(("n", "m", "d"), [(3, 3, 1), (12, 7, 4), (5, 9, 20)])
def test_kernel_distance_is_the_mean_over_pairs_and_its_error_the_jackknife(n: int, m: int, d: int) -> None:
    a, b = _features(n, d, 6), _features(m, d, 7, shift=1.0)
    found = kernel_distance(a, b)
    assert found.value == pytest.approx(naive.mmd2(a, b), rel=1e-10)
    assert found.error == pytest.approx(naive.jackknife_error(a, b), rel=1e-8)


def test_chunks_do_not_change_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _features(23, 3, 8), _features(17, 3, 9)
    whole = kernel_distance(a, b)
    monkeypatch.setattr(generation_metrics, "_CHUNK", 4)
    monkeypatch.setattr(generation_metrics, "_WIDE", 5)
    assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)


def test_kernel_distance_is_unbiased_and_its_error_is_about_right() -> None:
    rng = np.random.default_rng(0)
    same = [kernel_distance(rng.normal(size=(20, 3)), rng.normal(size=(30, 3))) for _ in range(300)]
    values = np.array([one.value for one in same])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert (values < 0).mean() > 0.2  # an unbiased estimate of 0 is often below it
    far = [kernel_distance(rng.normal(size=(60, 3)), 1.5 + rng.normal(size=(40, 3))) for _ in range(300)]
    spread = np.std([one.value for one in far])
    assert np.mean([one.error for one in far]) == pytest.approx(spread, rel=0.2)


def test_two_rows_have_a_kernel_distance_and_no_error() -> None:
    found = kernel_distance(_features(2, 3, 0), _features(5, 3, 1))
    assert math.isfinite(found.value)
    assert math.isnan(found.error)


@pytest.mark.parametrize("splits", [1, 3])
def test_class_score_is_its_equation_on_each_split(splits: int) -> None:
    rows = np.random.default_rng(1).dirichlet(np.full(5, 0.3), size=31)
    rows[0] = [1, 0, 0, 0, 0]
    order = np.random.default_rng(7).permutation(31)
    scores = [naive.class_score(part) for part in np.array_split(rows[order], splits)]
    found = inception_score(rows, splits, np.random.default_rng(7))
    assert found.value == pytest.approx(np.mean(scores), rel=1e-12)
    assert found.error == pytest.approx(np.std(scores), abs=1e-12)
    assert 1 < found.value < 5


def test_class_score_at_its_ends() -> None:
    sure = np.eye(7)[np.arange(70) % 7]
    assert inception_score(sure, 1).value == pytest.approx(7, rel=1e-12)
    assert inception_score(np.full((20, 7), 1 / 7), 10) == pytest.approx((1, 0), abs=1e-12)
    assert inception_score(np.tile([1.0, 0.0], (20, 1)), 10).value == 1  # one class alone
    ordered = np.eye(10)[np.repeat(np.arange(10), 100)]
    assert inception_score(ordered, 10).value > 9  # without shuffling each split would hold one class
    assert inception_score(ordered, 10) == inception_score(ordered, 10)


def test_a_library_that_is_kept_agrees() -> None:
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import metric_fid, metric_isc, metric_kid

    a, b = (torch.tensor(_features(60, 8, seed, shift=seed / 20)) for seed in (10, 11))
    moments = [metric_fid.fid_features_to_statistics(side) for side in (a, b)]
    expected = metric_fid.fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    settings = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    kid = metric_kid.kid_features_to_metric(a, b, **settings)["kernel_inception_distance_mean"]
    assert kernel_distance(a, b).value == pytest.approx(kid, rel=1e-9)
    score = metric_isc.isc_features_to_metric(a, splits=1)["inception_score_mean"]
    assert inception_score(a.softmax(1), 1).value == pytest.approx(score, rel=1e-9)


def test_nearest_is_the_smallest_of_all_pairs() -> None:
    a, b = _features(15, 4, 12), _features(11, 4, 13)
    for found, expected in (
        (nearest(a, b), naive.nearest(a, b)),
        (nearest(a, a, others=True), naive.nearest(a, a, True)),
    ):
        np.testing.assert_allclose(found[0], [far for far, _ in expected], rtol=1e-12)
        assert found[1].tolist() == [place for _, place in expected]


def test_a_copy_is_at_distance_0_exactly_also_far_from_the_origin() -> None:
    pool = 1e4 + np.random.default_rng(0).random((50, 30))
    distance, place = nearest(pool[[3, 3, 40]], pool)
    assert distance.tolist() == [0, 0, 0]
    assert place.tolist() == [3, 3, 40]
    twice = np.concatenate([pool[:5], pool[2:3]])
    assert (nearest(twice, twice, others=True)[0] == 0).tolist() == [False, False, True, False, False, True]


_OK = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(np.zeros((1, 2)), _OK), r"features_a must be \(N, D\) with N >= 2 .* \(1, 2\)"),
        (lambda: kernel_distance(_OK, np.zeros(3)), r"features_b must be \(N, D\).* \(3,\)"),
        (lambda: frechet_distance(_OK, np.zeros((3, 4))), "same D, got 2 in a and 4 in b"),
        (lambda: kernel_distance(np.full((3, 2), np.nan), _OK), "features_a must be finite, got 6 NaN or inf of 6"),
        (lambda: frechet_distance(_OK, np.array([[0, np.inf], [0, 0]])), "features_b must be finite, got 1 NaN"),
        (lambda: frechet_distance(np.zeros((3, 0)), _OK), "D >= 1"),
        (lambda: inception_score(_OK), "each row must sum to 1"),
        (lambda: inception_score(np.array([[1.5, -0.5]]), 1), "must be at least 0"),
        (lambda: inception_score(np.eye(3), 4), r"splits must be a whole number in \[1, 3\].* got 4"),
        (lambda: inception_score(np.eye(3), 0), "got 0"),
        (lambda: inception_score(np.eye(3), 1.5), r"splits must be a whole number in \[1, 3\].* got 1\.5"),
        (lambda: kernel_distance(np.full((3, 2), -1e100), _OK), r"features_a must be at most 1e\+20 .* got 1e\+100"),
        (lambda: frechet_distance(_OK, np.full((3, 2), 1e200)), r"features_b must be at most 1e\+20 .* got 1e\+200"),
        (lambda: frechet_distance(_OK + 1j, _OK), "features_a must be real numbers, got complex128"),
        (lambda: nearest(torch.zeros(3, 2, dtype=torch.cfloat), _OK), "queries must be real numbers, got complex64"),
        (lambda: kernel_distance(_OK, np.full((3, 2), "1")), "features_b must be real numbers, got <U1"),
        (lambda: nearest(_OK, np.zeros((0, 2))), "pool must be"),
        (lambda: nearest(_OK[:1], _OK[:1], others=True), "pool must be .* N >= 2"),
        (lambda: nearest(_OK, np.zeros((2, 3))), "got 2 and 3"),
    ],
)
def test_wrong_input_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_features_up_to_the_largest_have_finite_figures() -> None:
    a, b = (_features(6, 4, seed) for seed in (0, 1))
    a, b = 1e20 * a / np.abs(a).max(), 1e20 * b / np.abs(b).max()
    assert math.isfinite(frechet_distance(a, b))
    assert np.isfinite(kernel_distance(a, b)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_features_of_any_real_dtype_are_taken(dtype: torch.dtype) -> None:
    a, b = (torch.tensor(3 * _features(9, 4, seed)).to(dtype) for seed in (0, 1))
    assert frechet_distance(a, b) == frechet_distance(a.double(), b.double())


# Features


class Judge(nn.Module):
    """Pixels through a fixed layer of features to classes."""

    def __init__(self, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden, self.head = nn.Linear(16, 5), nn.Linear(5, classes)
        for layer in (self.hidden, self.head):
            nn.init.normal_(layer.weight, generator=generator)
            nn.init.normal_(layer.bias, generator=generator)
        self.dropout = nn.Dropout(0.5)

    def features(self, images: Tensor) -> Tensor:
        return self.hidden(images.flatten(1)).tanh()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.features(images)))


def test_features_are_what_the_last_layer_is_given_in_eval_mode() -> None:
    judge, images = Judge().train(), torch.rand(7, *SHAPE)
    found = features_of(judge, images, batch_size=3)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, judge.features(images).detach().double().numpy())
    assert judge.training
    with pytest.raises(ValueError, match="linear layer"):
        features_of(lambda images: images.flatten(1), images)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        features_of(judge, images + 1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        features_of(judge, images, batch_size=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        inception_features(images, "none.pth", batch_size=0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file of the right shapes and of random content."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save({}, path)
    extractor, patch = module.FeatureExtractorInceptionV3, pytest.MonkeyPatch()
    with torch.random.fork_rng(), patch.context() as inner:
        torch.manual_seed(0)
        inner.setattr(extractor, "load_state_dict", lambda self, state: None)
        network = extractor("inception-v3-compat", ["2048"], str(path))
    torch.save(network.state_dict(), path)
    return path


def test_inception_is_the_librarys_on_8_bit_rgb(weights: Path) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    features, probabilities = inception_features(grey, weights, batch_size=1)
    assert (features.shape, probabilities.shape) == ((2, 2048), (2, 1008))
    network = module.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(weights))
    pixels = (grey * 255).round().to(torch.uint8).repeat(1, 3, 1, 1)
    expected, logits = network(pixels)
    np.testing.assert_allclose(features, expected.double().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(probabilities, logits.double().softmax(1).numpy(), rtol=1e-4)
    near, _ = inception_features((pixels[:1, :1] - 0.4).clamp_min(0) / 255, weights)
    np.testing.assert_array_equal(near, inception_features(pixels[:1, :1] / 255, weights)[0])  # rounded, not cut


def test_fid_is_the_name_of_figures_by_the_published_weights_alone(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_of(images: Tensor, *_: Any) -> tuple[np.ndarray, np.ndarray]:
        flat = images.flatten(1).double().numpy()
        return flat, np.full((len(flat), 4), 0.25)

    monkeypatch.setattr("ebmhybrid.evaluate.generation.inception_features", made_of)
    data = _set(6, seed=1)
    result = evaluate_generation(torch.rand(5, *SHAPE), reference=data, train=_set(9, 2), inception=weights)
    sha256 = InceptionWeights.read(weights).sha256
    assert result.about["inception"]["sha256"] == sha256
    assert not result.about["inception"]["published"]
    rows = [row for row in result.rows if row["group"] == "distances"]
    assert [(row["of"], row["n"], row["n_reference"]) for row in rows] == [("samples", 5, 6), ("train", 5, 6)]
    assert all("fid" not in row and row["frechet_distance"] > 0 for row in rows)
    assert rows[0]["features"] == f"Inception v3 with other weights, {sha256[:8]}"
    assert "no FID" in generation_section(result).warnings[-1]
    monkeypatch.setattr(generation_features, "PUBLISHED", sha256[:8])
    named = evaluate_generation(torch.rand(5, *SHAPE), reference=data, inception=weights)
    (row,) = (row for row in named.rows if row["group"] == "distances")
    assert {"fid", "kid", "inception_score"} <= row.keys()
    assert "frechet_distance" not in row
    assert row["features"] == "Inception v3"
    assert generation_section(named).warnings == ()


class Hostile:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_of_a_weight_file_is_executed(tmp_path: Path) -> None:
    path, mark = tmp_path / "weights.pth", tmp_path / "executed"
    for write in (
        lambda: torch.save({"a": Hostile(mark)}, path),
        lambda: path.write_bytes(pickle.dumps(Hostile(mark))),
    ):
        write()
        with pytest.raises(ValueError, match=r"weights.pth is no weight file"):
            inception_features(torch.rand(2, 3, 8, 8), path)
        assert not mark.exists()


def test_weight_files_that_cannot_be_used_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"cannot read the Inception weights .*none.pth: No such file"):
        inception_features(images, tmp_path / "none.pth")
    for name, content in (("list", [1, 2]), ("numbered", {0: torch.zeros(1)}), ("named", {"a": 1})):
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=rf"{name}.pth is no weight file: it holds no dictionary of named tensors"):
            inception_features(images, tmp_path / f"{name}.pth")
    other = tmp_path / "other.pth"
    torch.save(Judge().state_dict(), other)
    if find_spec("torch_fidelity"):
        with pytest.raises(ValueError, match=r"other.pth does not hold the weights of torch-fidelity's Inception v3"):
            inception_features(images, other)
    with pytest.raises(ValueError, match=r"1 or 3 channels, got \(2, 2, 8, 8\)"):
        inception_features(images[:, :2], other)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ValueError, match=r"needs the package torch-fidelity: pip install 'ebmhybrid\[fid\]'"):
        inception_features(images, other)


# The evaluation


def _set(n: int, seed: int, name: str = "real", classes: int = 3) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
    return ImageSet(name, images, torch.arange(n) % classes, tuple("abc")[:classes])


def _float(data: ImageSet) -> Tensor:
    return data.images.float() / 255


class Setup:
    """Samples of which two are copies of training images and two of each other."""

    def __init__(self) -> None:
        self.train, self.test = _set(60, 0, "train of this"), _set(31, 1)
        self.samples = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(2))
        noise = 0.005 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
        self.samples[:2] = (_float(self.train)[[7, 9]] + noise).clamp(0, 1)
        self.samples[5] = self.samples[4]
        self.labels = torch.arange(20) % 3
        self.judge, self.model = Judge(), Judge(seed=1)
        steps = (0, 1, 5)
        self.chains = steps, torch.rand(3, 4, *SHAPE, generator=torch.Generator().manual_seed(4))

    def evaluate(self, **changes: Any) -> GenerationResult:
        given: dict[str, Any] = {"reference": self.test, "train": self.train, "model": self.model, "judge": self.judge}
        given |= {"labels": self.labels, "judge_name": "small", "chains": self.chains} | changes
        return evaluate_generation(self.samples, **given)


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup()


@pytest.fixture(scope="module")
def result(setup: Setup) -> GenerationResult:
    return setup.evaluate()


def _row(result: GenerationResult, group: str, of: str = "samples", **fields: Any) -> dict[str, Any]:
    (row,) = (row for row in result.of(group, of) if all(row.get(key) == value for key, value in fields.items()))
    return row


def test_labels_are_the_judges_of_all_and_of_each_class(setup: Setup, result: GenerationResult) -> None:
    for of, images, labels in (
        ("samples", setup.samples, setup.labels),
        ("test", _float(setup.test), setup.test.labels),
    ):
        right = setup.judge.eval()(images).argmax(1) == labels
        row = _row(result, "labels", of, **{"class": None})
        assert row["label_agreement"] == pytest.approx(right.float().mean().item())
        assert (row["label_agreement_low"], row["label_agreement_high"]) == wilson_interval(
            int(right.sum()), len(right)
        )
        for c, name in enumerate("abc"):
            row = _row(result, "labels", of, **{"class": name})
            assert row["n"] == int((labels == c).sum())
            assert row["label_agreement"] == pytest.approx(right[labels == c].float().mean().item())


def test_distances_are_to_test_images_in_the_judges_features_and_training_images_stand_beside(
    setup: Setup, result: GenerationResult
) -> None:
    judge = setup.judge.eval()
    test = judge.features(_float(setup.test)).detach().double().numpy()
    floor = setup.train.take(20)
    for of, images in (("samples", setup.samples), ("train", _float(floor))):
        features = judge.features(images).detach().double().numpy()
        row = _row(result, "distances", of)
        assert (row["features"], row["n"], row["n_reference"]) == ("small", 20, 31)
        assert row["frechet_distance"] == pytest.approx(naive.frechet(features, test), rel=1e-6)
        assert row["kernel_distance"] == pytest.approx(naive.mmd2(features, test), rel=1e-6)
        wide = 1.959964 * row["kernel_distance_error"]
        assert row["kernel_distance_low"] == pytest.approx(row["kernel_distance"] - wide, rel=1e-5)
        assert row["kernel_distance_high"] == pytest.approx(row["kernel_distance"] + wide, rel=1e-5)
        probabilities = judge(images).softmax(1).detach().double().numpy()
        assert row["label_score"] == pytest.approx(naive.class_score(probabilities), rel=1e-6)
    assert {row["of"] for row in result.rows if row["group"] == "distances"} == {"samples", "train"}


def test_copies_are_found_under_noise_and_by_the_yardstick_of_test_images(
    setup: Setup, result: GenerationResult
) -> None:
    pool = _float(setup.train).flatten(1).double().numpy()
    drawn, real = (images.flatten(1).double().numpy() for images in (setup.samples, _float(setup.test)))
    far = {"samples": naive.nearest(drawn, pool), "test": naive.nearest(real, pool)}
    mark = np.quantile([distance for distance, _ in far["test"]], 0.01)
    for of, pairs in far.items():
        distances = np.array([distance for distance, _ in pairs])
        row = _row(result, "neighbours", of)
        assert row["nearest_mean"] == pytest.approx(distances.mean())
        assert row["nearest_median"] == pytest.approx(np.median(distances))
        assert row["share_nearer"] == (distances < mark).mean()
        assert (row["n"], row["n_reference"]) == (len(distances), 60)
    assert _row(result, "neighbours")["copies"] == 2
    assert _row(result, "neighbours", "test")["copies"] == 0
    assert result.closest is not None
    assert [row["sample"] for row in result.closest.rows[:2]] in ([0, 1], [1, 0])
    first = result.closest.rows[0]["sample"]
    assert result.closest.neighbours is not None
    np.testing.assert_array_equal(result.closest.neighbours[0], _float(setup.train)[(7, 9)[first]])
    np.testing.assert_array_equal(result.closest.images[0], setup.samples[first])
    distances = [row["distance"] for row in result.closest.rows]
    assert distances == sorted(distances)
    assert generation_section(result).warnings[0] == "2 of 20 samples are copies of training images."


def test_a_copy_is_within_two_grey_levels_and_not_beyond(setup: Setup) -> None:
    images = setup.train.images.clamp(10, 245)
    train = ImageSet("t", images, setup.train.labels, setup.train.classes)
    for shift, copies in ((1.9, 5), (2.1, 0)):
        samples = _float(train)[:5] + shift / 255
        found = evaluate_generation(samples, reference=setup.test, train=train)
        assert _row(found, "neighbours")["copies"] == copies


def test_variety_is_measured_on_as_many_real_images(setup: Setup, result: GenerationResult) -> None:
    for of, images in (("samples", setup.samples), ("test", _float(setup.test.take(20)))):
        flat = images.flatten(1).double().numpy()
        row = _row(result, "diversity", of)
        assert row["other_mean"] == pytest.approx(
            np.mean([far for far, _ in naive.nearest(flat, flat, True)]), rel=1e-9
        )
        assert row["n"] == 20
    assert _row(result, "diversity")["near_duplicates"] == 0.1
    assert _row(result, "diversity", "test")["near_duplicates"] == 0


def test_log_densities_are_the_models_and_auroc_is_of_test_images_above(setup: Setup, result: GenerationResult) -> None:
    model = setup.model.eval()
    sets = {"samples": setup.samples, "test": _float(setup.test), "train": _float(setup.train.take(20))}
    expected = {of: model(images).logsumexp(1).detach().double().numpy() for of, images in sets.items()}
    for of, values in expected.items():
        np.testing.assert_allclose(result.log_densities[of], values, rtol=1e-5)
        row = _row(result, "log_density", of)
        assert row["log_density_mean"] == pytest.approx(values.mean(), rel=1e-5)
        marks = [row[f"log_density_{share}"] for share in (5, 50, 95)]
        np.testing.assert_allclose(marks, np.quantile(values, [0.05, 0.5, 0.95]), rtol=1e-5)
    for of in ("samples", "train"):
        row = _row(result, "log_density", of)
        assert row["auroc"] == ood.auroc(result.log_densities["test"], result.log_densities[of])
        assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
        assert (row["n"], row["n_reference"]) == (20, 31)
    assert "auroc" not in _row(result, "log_density", "test")


def test_the_models_side_of_the_auroc() -> None:
    """Samples that the model finds more likely than data pull it below one half."""
    data = _set(30, 5)

    def bright(images: Tensor) -> Tensor:
        return images.flatten(1)

    found = evaluate_generation(torch.ones(10, *SHAPE), reference=data, model=bright)
    assert _row(found, "log_density")["auroc"] == 0
    found = evaluate_generation(torch.zeros(10, *SHAPE), reference=data, model=bright)
    assert _row(found, "log_density")["auroc"] == 1


def test_training_images_as_samples_are_all_copies_and_otherwise_perfect(setup: Setup) -> None:
    found = evaluate_generation(
        _float(setup.train), setup.train.labels, reference=setup.test, train=setup.train, judge=setup.judge
    )
    assert _row(found, "neighbours")["copies"] == 60
    assert _row(found, "neighbours")["nearest_mean"] == 0
    own, floor = _row(found, "distances"), _row(found, "distances", "train")
    assert {key: value for key, value in own.items() if key != "of"} == {k: v for k, v in floor.items() if k != "of"}


def test_samples_without_labels_are_counted_by_what_the_judge_calls_them(setup: Setup) -> None:
    found = setup.evaluate(labels=None)
    calls = setup.judge.eval()(setup.samples).argmax(1)
    for c, name in enumerate("abc"):
        row = _row(found, "labels", **{"class": name})
        assert row["judged_share"] == pytest.approx((calls == c).float().mean().item())
        assert row["n"] == 20
    assert not any("label_agreement" in row for row in found.rows)
    assert "class" not in found.grid.rows[0]
    table = generation_section(found).tables[0]
    assert table.columns[0].heading == "judged as"
    assert table.means == ()


def test_only_what_is_given_is_measured(setup: Setup) -> None:
    bare = evaluate_generation(setup.samples, reference=setup.test)
    assert {row["group"] for row in bare.rows} == {"diversity"}
    assert (bare.closest, bare.chains, dict(bare.log_densities)) == (None, None, {})
    assert [drawing.name for drawing in generation_section(bare).drawings] == ["samples"]
    assert generation_section(bare).card is None
    logits_only = evaluate_generation(setup.samples, reference=setup.test, judge=lambda images: images[:, 0, 0, :3])
    row = _row(logits_only, "distances")
    assert "label_score" in row
    assert "frechet_distance" not in row
    named_by_number = evaluate_generation(
        setup.samples, reference=[(_float(setup.test), setup.test.labels)], judge=Judge()
    )
    assert [row["class"] for row in named_by_number.of("labels")] == ["0", "1", "2"]


def test_few_training_images_and_few_samples(setup: Setup) -> None:
    few = evaluate_generation(
        setup.samples[:2],
        setup.labels[:2],
        reference=setup.test,
        train=_set(1, 6),
        judge=setup.judge,
        model=setup.model,
    )
    row = _row(few, "distances")
    assert math.isfinite(row["frechet_distance"])
    assert row["kernel_distance_low"] is None
    assert few.of("distances", "train") == ()  # one image has no covariance
    assert json.loads(files.dumps(few.as_dict()))["rows"]
    assert report_of_generation(few, "two")


def test_modes_are_restored_and_samples_left_alone(setup: Setup) -> None:
    judge, before = Judge().train(), setup.samples.clone()
    setup.evaluate(judge=judge)
    assert judge.training
    assert judge.dropout.training
    assert torch.equal(setup.samples, before)


_FAR = torch.full((20,), 10**12)


def test_classes_without_names_are_told_by_number(setup: Setup) -> None:
    """However large: no list of all numbers up to it is made."""
    reference = [(torch.rand(2, *SHAPE), torch.tensor([0, 10**12]))]
    found = evaluate_generation(setup.samples, _FAR, reference=reference)
    assert {row["class"] for row in found.grid.rows} == {"1000000000000"}


def _once(data: ImageSet) -> Iterator[Any]:
    yield from data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": torch.rand(1, *SHAPE)}, "at least 2 samples, got 1"),
        ({"samples": torch.rand(5, *SHAPE) + 1}, r"'samples': images must lie in \[0, 1\]"),
        ({"samples": torch.full((5, *SHAPE), math.nan)}, "'samples': images must be finite"),
        ({"samples": torch.zeros(5, *SHAPE, dtype=torch.uint8)}, "must be floating point"),
        ({"samples": torch.rand(5, 3, 4, 4)}, r"'real': images are \(1, 4, 4\), the samples \(3, 4, 4\)"),
        ({"labels": torch.zeros(4)}, r"integers of shape \(20,\), got torch.float32 \(4,\)"),
        ({"labels": torch.arange(20)}, r"'samples': labels must lie in \[0, 3\), got 3 at image 3"),
        ({"labels": -torch.ones(20, dtype=torch.int64)}, "got -1 at image 0"),
        ({"reference": []}, "'test' is empty"),
        ({"reference": _once(_set(5, 0))}, "can be read only once"),
        ({"train": _once(_set(5, 0))}, "can be read only once"),
        ({"judge": Judge(2)}, r"'samples': labels must lie in \[0, 2\)"),
        ({"judge": Judge(2), "labels": None}, r"'real': labels must lie in \[0, 2\)"),
        ({"judge": None, "labels": torch.arange(20)}, r"'samples': labels must lie in \[0, 3\)"),
        ({"inception": "no/such/file.pth"}, "cannot read the Inception weights"),
        ({"chains": ((0, 1), torch.rand(3, 2, *SHAPE))}, r"got 2 steps and \(3, 2, 1, 4, 4\)"),
        ({"chains": 3}, r"chains must be \(T steps, images .*got int"),
        ({"chains": (3, torch.rand(3, 2, *SHAPE))}, "chains must be .*got tuple"),
        ({"train": torch.rand(5, *SHAPE)}, r"set 'train': must yield batches \(images, labels\), got Tensor"),
        ({"train": []}, "'train' is empty"),
        ({"reference": _set(1, 0)}, "set 'real': samples are measured against at least 2 images, got 1"),
        ({"judge": Judge(5)}, "the judge tells 5 classes apart, and set 'real' has 3"),
        (
            {"judge": None, "reference": [(torch.rand(3, *SHAPE), torch.arange(3))], "labels": _FAR},
            r"'samples': labels must lie in \[0, 3\), got 1000000000000 at image 0",
        ),
        ({"chains": ((0,), torch.rand(1, 2, *SHAPE) + 1)}, "'chains': images must lie in"),
    ],
)
def test_wrong_arguments_are_named(setup: Setup, changes: dict[str, Any], message: str) -> None:
    given = {"samples": setup.samples, "labels": setup.labels, "reference": setup.test, "judge": setup.judge} | changes
    if "samples" in changes:
        given["labels"] = None
    with pytest.raises(ValueError, match=message):
        evaluate_generation(**given)


# Tables, pictures, pages


def test_rows_are_flat_say_n_and_have_a_name_of_their_own_in_the_long_table(result: GenerationResult) -> None:
    again = json.loads(files.dumps(result.as_dict()))
    assert len(again["rows"]) == len(result.rows)
    assert all(isinstance(value, (int, float, str, type(None))) for row in result.rows for value in row.values())
    assert all(row["n"] > 0 for row in result.rows)
    long = tables.long_of({"generation": result.rows})
    names = [(row["set"], row["name"], row["metric"]) for row in long]
    assert len(set(names)) == len(names)
    agreement = next(row for row in long if row["metric"] == "label_agreement")
    assert agreement["low"] < agreement["value"] < agreement["high"]
    assert ("train", "distances small", "frechet_distance") in names
    metrics = {key for row in result.rows for key in row if key not in _NOT_METRICS and not _END.search(key)}
    assert metrics == {metric for _, _, metric in names}


_NOT_METRICS = {"group", "of", "class", "features", "n", "n_reference", "mark"}
_END = re.compile("_(low|high|error)$")


def test_a_comparison_knows_the_figures_of_samples(result: GenerationResult) -> None:
    (part,) = (part for part in PARTS if part.key == "generation")
    rows = [row for row in result.rows if part.keep(row)]
    assert {row["of"] for row in rows} == {"samples"}
    found = {metric.heading: [part.name(row) for row in rows if metric.of(row)] for metric in part.metrics}
    assert found["labels as asked"] == ["", "a", "b", "c"]
    assert found["Fréchet distance"] == ["small"]


def test_the_grid_holds_the_first_samples_of_each_class(setup: Setup) -> None:
    labels = torch.tensor([2, 0, 0, 1] * 15)
    samples = torch.rand(60, *SHAPE)
    shown = evaluate_generation(samples, labels, reference=setup.test, model=setup.model).grid
    assert [row["class"] for row in shown.rows] == ["a"] * 10 + ["b"] * 10 + ["c"] * 10
    places = [row["sample"] for row in shown.rows]
    assert places[:4] == [1, 2, 5, 6]
    assert places[10:12] == [3, 7]
    np.testing.assert_array_equal(shown.images, samples[places])
    rows, names = rows_of(shown)
    assert ([len(row) for row in rows], names) == ([10, 10, 10], ["a", "b", "c"])
    plain = evaluate_generation(torch.rand(13, *SHAPE), reference=setup.test).grid
    assert [len(row) for row in rows_of(plain)[0]] == [10, 3]


def test_a_mosaic_repeats_pixels_and_blurs_nothing() -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()
    picture = mosaic([images[:2], images[2:]])
    assert picture.shape == (2 * 48 + 4, 2 * 48 + 4, 3)
    for place, image in (((0, 0), images[0]), ((0, 52), images[1]), ((52, 0), images[2])):
        tile = picture[place[0] : place[0] + 48, place[1] : place[1] + 48]
        np.testing.assert_array_equal(tile, np.kron(image[0], np.ones((6, 6)))[..., None].repeat(3, 2))
    between = picture[48:52]
    assert (between == between[0, 0]).all()
    assert len(set(between[0, 0])) == 3  # a colour, not a grey that an image could have
    colour = np.random.default_rng(0).random((1, 3, 64, 64))
    np.testing.assert_array_equal(mosaic([colour]), colour[0].transpose(1, 2, 0))
    assert mosaic([np.ones((1, 2, 4, 4))]).shape == (48, 48, 3)
    assert mosaic([np.array([1 + 1e-7, -1e-7]).reshape(2, 1, 1, 1)]).max() == 1  # matplotlib would warn


def test_the_overview_has_a_panel_for_whatever_there_is(setup: Setup, result: GenerationResult) -> None:
    assert len(result.plot().axes) == 4
    assert len(evaluate_generation(setup.samples, reference=setup.test).plot().axes) == 1


def test_the_page_needs_nothing_and_has_every_figure_with_its_numbers(result: GenerationResult) -> None:
    page = report_of_generation(result, f"run {HOSTILE}")
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    section = generation_section(result)
    assert [drawing.name for drawing in section.drawings] == [
        *("samples", "samples-nearest", "samples-chains", "samples-density"),
    ]
    for drawing in section.drawings:
        assert drawing.numbers().rows
        assert page.count(f'aria-label="{drawing.caption.replace(chr(39), "&#39;")}"') == 1
    assert page.count("data:image/png") == 3
    assert "20 samples, measured against real, 31 images." in page
    assert page.index("The first samples of each class") < page.index("Judge: small")


def test_tables_say_what_the_rows_say(result: GenerationResult) -> None:
    labels, distances, neighbours, variety, density = generation_section(result).tables
    assert [row["class"] for row in labels.rows] == ["a", "b", "c"]
    assert labels.means[0]["samples"] == _row(result, "labels", **{"class": None})["label_agreement"]
    assert labels.means[0]["n_test"] == 31
    assert [row["images"] for row in distances.rows] == ["samples", "training images"]
    assert [row["images"] for row in neighbours.rows] == ["samples", "test images"]
    assert f"below {_row(result, 'neighbours')['mark']:.3f}" in neighbours.caption
    assert len(variety.rows) == 2
    assert len(density.rows) == 3
    text = result.table()
    assert "labels as asked" in text
    assert "Fréchet distance, training images" in text
    assert "2 copies" in text
    assert "FID" not in text + report_of_generation(result, "x").split("<script>")[0]


def test_numbers_behind_the_histogram_count_every_image(result: GenerationResult) -> None:
    (drawing,) = (one for one in generation_section(result).drawings if one.name == "samples-density")
    rows = drawing.numbers().rows
    assert {of: sum(row[of] for row in rows) for of in ("samples", "test", "train")} == {
        "samples": 20,
        "test": 31,
        "train": 20,
    }
    (chains,) = (one for one in generation_section(result).drawings if one.name == "samples-chains")
    assert [row["step"] for row in chains.numbers().rows] == [0, 1, 5]
