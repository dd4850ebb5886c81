r"""The losses a hybrid has to beat: other changes of a classifier's training that move what its logits say of x.

    LogitNorm            cross-entropy of f / ||f|| / T: logits cannot grow to lower it        (Wei et al. 2022)
    supervised contrast  features of a class together, all others apart; then a linear head    (Khosla et al. 2020)
    energy margins       E(x) below one bound on data and above another on outliers            (Liu et al. 2020)
    outlier exposure     the uniform prediction on outliers                                    (Hendrycks et al. 2019)

Label smoothing and mixup need no loss of their own. `docs/baselines.md` compares these with their authors' code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmhybrid.energies import check_logits, energy, require_logits
from ebmhybrid.kernels import at_least_float32
from ebmhybrid.losses.checks import check_labels, check_targets
from ebmhybrid.losses.gathered import gathered

# What the released LogitNorm adds to the norm.
NORM_EPS = 1e-7


def _check_temperature(temperature: float) -> None:
    if not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
        raise ValueError(f"temperature must be a number > 0, got {temperature!r}")


def logit_norm_loss(logits: Tensor, y: Tensor, temperature: float = 0.04) -> Tensor:
    """LogitNorm: cross-entropy of the unit-length logits, mean of -log softmax( f / (||f||_2 + 1e-7) / T )[y].

    The length ||f|| is left free, so that growing it does not lower the loss. At test time the raw logits are scored.

    Source: Wei et al. 2022. The 1e-7 is the released code's, and T = 0.04 is OpenOOD's.

    Arguments:
        logits: (N, C), N >= 1; half precision is computed in float32.
        y: int64 (N,), or probabilities (N, C).
        temperature: T > 0.

    Returns:
        A scalar in nats; for labels at least log(1 + (C - 1) exp(-g / T)) with g = sqrt(C / (C - 1)), the largest gap
        between unit logits. At a row of zeros its gradient is finite but of the order 1e7 / T.

    Raises:
        ValueError: shapes, dtypes, labels or a temperature that do not fit.

    >>> loss = logit_norm_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([1]), temperature=0.2)
    >>> torch.allclose(loss, torch.tensor(1 + math.exp(-1)).log())
    True
    """
    _check_temperature(temperature)
    values = check_logits(logits)
    if check_targets(values, y, values.shape[1]):
        check_labels(y, values.shape[1])
    norms = torch.linalg.vector_norm(values, dim=1, keepdim=True) + NORM_EPS
    targets = y if y.dtype == torch.int64 else y.to(values.dtype)
    return F.cross_entropy(values / norms / temperature, targets)


class LogitNormLoss(nn.Module):
    """:func:`logit_norm_loss` as a drop-in for nn.CrossEntropyLoss.

    >>> LogitNormLoss(temperature=1.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).exp()
    tensor(2.)
    """

    def __init__(self, temperature: float = 0.04) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        return logit_norm_loss(logits, y, self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def supcon_loss(projections: Tensor, labels: Tensor, temperature: float = 0.1, *, gather: bool = False) -> Tensor:
    """Supervised contrastive loss: each view among all others, against those of its class, in its form L_out.

        L_i = -1/|P(i)| sum_{p in P(i)} log( exp(z_i.z_p / T) / sum_{a != i} exp(z_i.z_a / T) ),   z of unit length

    with P(i) the other views of i's class, of its own image and of others. The mean is over the views that have one.

    Source: Khosla et al. 2020, equation 2. The released code multiplies this by T / 0.07.

    Arguments:
        projections: (N, V, D), V views of each of N images, V N >= 2; of any length, they are normalised here. In half
            precision, and under autocast, it is computed in float32.
        labels: int64 (N,).
        temperature: T > 0.
        gather: compare with the views of all processes (:mod:`ebmhybrid.losses.gathered`), of which there must be two
            or more; V is the same on all. For V = 1 the sum over own views is divided by the number of those which have
            a positive on average over processes.

    Returns:
        A scalar in nats >= 0, of O((N V)^2) memory; 0 where no view has a positive, which takes V = 1.

    Raises:
        ValueError: shapes, dtypes or a temperature that do not fit.

    >>> views = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    >>> loss = supcon_loss(views, torch.tensor([0, 1]), temperature=1.0)
    >>> torch.allclose(loss, torch.tensor(1 + 2 * math.exp(-1)).log())
    True
    """
    _check_temperature(temperature)
    _check_views(projections, labels, least=0 if gather else 2)
    z = F.normalize(at_least_float32(projections).flatten(0, 1), dim=1)
    label = labels.repeat_interleave(projections.shape[1])
    others, first, their_label = z, 0, label
    if gather:
        others, first = gathered(z)
        their_label, _ = gathered(label)
        if len(others) < 2:  # on every process
            raise ValueError(f"projections must be two views or more in all, got {len(others)} on all processes")
    # In bfloat16 a product is off by up to .004, and 1 / T makes that .04.
    with torch.autocast(z.device.type, enabled=False):
        similarity = z @ others.T / temperature
    rows, places = (torch.arange(len(x), device=z.device) for x in (z, others))
    itself = rows[:, None] + first == places
    positive = (label[:, None] == their_label) & ~itself
    positives = positive.sum(1)
    pull = similarity.where(positive, 0).sum(1) / positives.clamp_min(1)
    push = similarity.masked_fill(itself, -math.inf).logsumexp(1)
    counted = positives > 0
    loss = (push - pull).where(counted, 0).sum()
    if not gather:
        return loss / counted.sum().clamp_min(1)
    if projections.shape[1] > 1:  # the image's own other view
        return loss / max(len(z), 1)
    _, image_of, sizes = their_label.unique(return_inverse=True, return_counts=True)
    share = (sizes[image_of] > 1).to(loss.dtype).mean()  # of all views, those with a positive
    return loss / (max(len(z), 1) * share.where(share > 0, 1))


def _check_views(projections: Tensor, labels: Tensor, least: int) -> None:
    shape = tuple(projections.shape)
    if not projections.is_floating_point() or len(shape) != 3 or shape[0] * shape[1] < least or not shape[2]:
        raise ValueError(
            f"projections must be floating point (N, V, D), two views or more in all, got {projections.dtype} {shape}"
        )
    if labels.dtype != torch.int64 or labels.shape != shape[:1]:
        raise ValueError(f"labels must be int64 ({shape[0]},), got {labels.dtype} {tuple(labels.shape)}")


class SupConLoss(nn.Module):
    """:func:`supcon_loss` with its temperature; it gathers in training mode only.

    >>> SupConLoss()(torch.ones(1, 2, 3), torch.tensor([0]))
    tensor(0.)
    """

    def __init__(self, temperature: float = 0.1, *, gather: bool = False) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature, self.gather = temperature, gather

    def forward(self, projections: Tensor, labels: Tensor) -> Tensor:
        return supcon_loss(projections, labels, self.temperature, gather=self.gather and self.training)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}" + ", gather=True" * self.gather


class ProjectionHead(nn.Sequential):
    """What :func:`supcon_loss` compares: Linear - ReLU - Linear of the features, thrown away after training.

    Source: Khosla et al. 2020; as there the hidden layer is as wide as the features, and the output has 128.
    Shapes: (..., in_features) -> (..., out).

    >>> ProjectionHead(8, out=4)(torch.rand(5, 2, 8)).shape
    torch.Size([5, 2, 4])
    """

    def __init__(self, in_features: int, out: int = 128) -> None:
        if min(in_features, out) < 1:
            raise ValueError(f"in_features and out must be at least 1, got {in_features} and {out}")
        super().__init__(nn.Linear(in_features, in_features), nn.ReLU(), nn.Linear(in_features, out))


def energy_margin_loss(logits: Tensor, outlier_logits: Tensor, inside: float = -23.0, outside: float = -5.0) -> Tensor:
    """Squared hinges on the energy: mean max(0, E(x_in) - m_in)^2 + mean max(0, m_out - E(x_out))^2.

    E = -logsumexp_c f_c as in :func:`ebmhybrid.energy`: low on data. Beside cross-entropy, with weight 0.1, it is the
    "energy-bounded" fine-tuning of a trained classifier.

    Source: Liu et al. 2020. The defaults are their code's margins for CIFAR-10; for CIFAR-100 it has -27 and -5.

    Arguments:
        logits: (N, C) of data, outlier_logits: (M, C) of outliers. N = 0 or M = 0 leaves that side out.
        inside, outside: m_in < m_out.

    Returns:
        A scalar >= 0 in nats squared: 0 where all data lie below m_in and all outliers above m_out.

    Raises:
        ValueError: logits or margins that do not fit.

    >>> energy_margin_loss(torch.tensor([[2.0]]), torch.tensor([[1.0]]), inside=-5.0, outside=1.0)
    tensor(13.)
    """
    numbers = all(isinstance(margin, (int, float)) for margin in (inside, outside))
    if not (numbers and -math.inf < inside < outside < math.inf):
        raise ValueError(f"margins must be numbers with inside < outside, got {inside!r} and {outside!r}")
    require_logits(outlier_logits, "outlier_logits")
    above = F.relu(energy(logits) - inside)
    below = F.relu(outside - energy(outlier_logits))
    # sums, since the mean of no image would be NaN
    return above.square().sum() / max(len(above), 1) + below.square().sum() / max(len(below), 1)


def outlier_exposure_loss(outlier_logits: Tensor) -> Tensor:
    """Outlier exposure: cross-entropy of outliers to the uniform distribution, mean of logsumexp_c f_c - mean_c f_c.

    Source: Hendrycks et al. 2019, who add it to cross-entropy with weight 0.5.

    Arguments:
        outlier_logits: (M, C), M >= 1; half precision is computed in float32.

    Returns:
        A scalar in nats >= log C, which a uniform prediction reaches.

    Raises:
        ValueError: logits that are not (M, C), or none.

    >>> outlier_exposure_loss(torch.zeros(2, 4)).exp()
    tensor(4.)
    """
    values = check_logits(outlier_logits)
    if not len(values):
        raise ValueError(f"outlier_logits must be (M, C) with M >= 1, got {tuple(values.shape)}")
    return (values.logsumexp(1) - values.mean(1)).mean()
