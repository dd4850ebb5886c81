"""The ECE family for many resamples, or many draws of the labels, at once: what intervals and floors are made of.

Every figure adds up weight x (outcome - confidence) within bins, so a product of matrices gives all draws together,
with the values that the functions of `calibration_metrics` would give draw by draw.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .calibration_metrics import Array, bin_index, check_probabilities, classwise_ece, ece, equal_mass_ece, mce
from .calibration_smooth import fixed_points, nodes, smooth_ece
from .resampling import interval

LABEL_DRAWS = 50
# Each with a bootstrap interval and what a perfectly calibrated model would show.
FAMILY: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "ece_15": ece,
    "equal_mass_ece_15": equal_mass_ece,
    "classwise_ece_15": classwise_ece,
    "mce_15": mce,
    "smooth_ece": smooth_ece,
}


def family_row(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """The figures of `FAMILY` with intervals over resamples of the images and what a perfect model would show."""
    resampled = family_of_resamples(probabilities, labels, weights)
    perfect = family_of_labels(probabilities, drawn_labels(probabilities))
    row: dict[str, float] = {}
    for name, metric in FAMILY.items():
        low, high = interval(resampled[metric.__name__])
        row |= {name: metric(probabilities, labels), f"{name}_low": low, f"{name}_high": high}
        row[f"{name}_perfect"] = float(perfect[metric.__name__].mean())
    return row


def drawn_labels(
    probabilities: np.ndarray, draws: int = LABEL_DRAWS, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Labels y_i ~ Categorical(p_i), as they would be if the probabilities (N, C) were true; int64 (draws, N).

    >>> drawn_labels(np.array([[0.0, 1.0]]), draws=2)
    array([[1],
           [1]])
    """
    rng = np.random.default_rng(0) if rng is None else rng
    uniform = rng.random((len(probabilities), draws))
    edges = probabilities.cumsum(axis=1)[:, :-1]
    rows = [edge.searchsorted(u, side="right") for edge, u in zip(edges, uniform, strict=True)]
    return np.ascontiguousarray(np.array(rows, dtype=np.int64).T)


def family_of_resamples(
    probabilities: Array, labels: Array, weights: np.ndarray, bins: int = 15
) -> dict[str, np.ndarray]:
    """ece, mce, equal_mass_ece, classwise_ece and smooth_ece of each resample of the images, float64 (draws,).

    Arguments:
        probabilities, labels: (N, C) and (N,), as for :func:`ebmhybrid.evaluate.calibration.ece`.
        weights: (draws, N), how often each image is in each resample, as of :func:`.resampling.resamples`.

    >>> rows, once = np.array([[0.7, 0.3], [0.7, 0.3]]), np.ones((1, 2))
    >>> family_of_resamples(rows, np.array([0, 1]), once)["ece"].round(6)
    array([0.2])
    """
    values, targets = check_probabilities(probabilities, labels)
    confidence = values.max(axis=1)
    gaps = (values.argmax(axis=1) == targets) - confidence
    member = np.eye(bins)[bin_index(confidence, bins)]
    return {
        **_equal_width(weights @ (member * gaps[:, None]), weights @ member),
        "equal_mass_ece": _equal_mass_of_resamples(confidence, gaps, weights, bins),
        "classwise_ece": _classwise_of_resamples(values, targets, weights, bins),
        "smooth_ece": fixed_points(weights @ (nodes(confidence) * gaps[:, None]) / len(values)),
    }


def family_of_labels(probabilities: Array, labels: np.ndarray, bins: int = 15) -> dict[str, np.ndarray]:
    """The same figures of one set of probabilities (N, C) for each row of labels (draws, N), float64 (draws,).

    >>> rows = np.array([[0.7, 0.3], [0.7, 0.3]])
    >>> family_of_labels(rows, np.array([[0, 1], [0, 0]]))["ece"].round(6)
    array([0.2, 0.3])
    """
    values, _ = check_probabilities(probabilities, labels[0])
    n, confidence = len(values), values.max(axis=1)
    gaps = (values.argmax(axis=1) == labels) - confidence
    member = np.eye(bins)[bin_index(confidence, bins)]
    return {
        **_equal_width(gaps @ member, np.broadcast_to(member.sum(axis=0), (len(labels), bins))),
        "equal_mass_ece": np.abs(gaps @ _equal_mass_shares(confidence, bins)).sum(axis=1) / n,
        "classwise_ece": _classwise_of_labels(values, labels, bins),
        "smooth_ece": fixed_points(gaps @ nodes(confidence) / n),
    }


def _equal_width(gaps: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """ECE and MCE from the sum of gaps and the number of images in each bin, both (draws, bins)."""
    means = np.divide(np.abs(gaps), counts, out=np.zeros_like(gaps), where=counts > 0)
    return {"ece": np.abs(gaps).sum(axis=1) / counts.sum(axis=1), "mce": means.max(axis=1)}


def _cuts(n: int, bins: int) -> np.ndarray:
    """Where the sorted list is cut into parts of equal size, the first n % bins of them one longer: (bins + 1,)."""
    return np.concatenate([[0], np.cumsum([n // bins + (part < n % bins) for part in range(bins)])])


def _equal_mass_of_resamples(confidence: np.ndarray, gaps: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """The sum of gaps over the first k images of a sorted resample is linear in k within equal confidences."""
    n = len(confidence)
    order = np.argsort(confidence, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) > 0, True))
    ends, cuts, gaps = np.insert(ends + 1, 0, 0), _cuts(n, bins), gaps[order]
    found, count, total = np.empty(len(weights)), np.zeros(n + 1), np.zeros(n + 1)
    for i, chosen in enumerate(weights):
        chosen = chosen[order]
        np.cumsum(chosen, out=count[1:])
        np.cumsum(chosen * gaps, out=total[1:])
        found[i] = np.abs(np.diff(np.interp(cuts, count[ends], total[ends]))).sum() / n
    return found


def _equal_mass_shares(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The share (N, bins) of each image in each part; equal confidences share a part that divides them."""
    _, index, count = np.unique(confidence, return_inverse=True, return_counts=True)
    end = np.cumsum(count)[:, None]
    cuts = _cuts(len(confidence), bins)
    overlap = np.minimum(end, cuts[1:]) - np.maximum(end - count[:, None], cuts[:-1])
    return (np.maximum(overlap, 0) / count[:, None])[index]


def _classwise_of_resamples(values: np.ndarray, targets: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """Most probabilities lie in the first bin: its sum is the class's whole sum less those of the other bins."""
    from scipy.sparse import csr_array

    n, classes = values.shape
    gaps = np.eye(classes)[targets] - values
    index = bin_index(values, bins)
    image, label = np.nonzero(index)
    cells = (image, label * bins + index[image, label])
    upper = weights @ csr_array((gaps[image, label], cells), shape=(n, classes * bins))
    first = weights @ gaps - upper.reshape(-1, classes, bins).sum(axis=2)
    return (np.abs(upper).sum(axis=1) + np.abs(first).sum(axis=1)) / (n * classes)


def _classwise_of_labels(values: np.ndarray, labels: np.ndarray, bins: int) -> np.ndarray:
    """Counts of each drawn label in its bin, less what the probabilities expect there."""
    n, classes = values.shape
    cell = np.arange(classes) * bins + bin_index(values, bins)
    expected = np.bincount(cell.ravel(), weights=values.ravel(), minlength=classes * bins)
    found = np.empty(len(labels))
    for i, drawn in enumerate(labels):
        observed = np.bincount(cell[np.arange(n), drawn], minlength=classes * bins)
        found[i] = np.abs(observed - expected).sum() / (n * classes)
    return found
