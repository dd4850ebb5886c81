"""Slow, literal versions of the formulas, written from the equations and from nothing in the package.

Everything is float64 and loops or materialises what the fast version avoids.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def log_density(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T log sum_c exp(f_c / T), summed one class at a time."""
    return torch.stack(
        [temperature * torch.stack([(v / temperature).exp() for v in row]).sum().log() for row in logits]
    )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_c t_c log softmax(f)_c, the mean over the batch."""
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -(targets * p.log()).sum(1).mean()


def label_vectors(y: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """One-hot rows, or with the mass `smoothing` spread evenly over all classes."""
    rows = torch.full((len(y), classes), smoothing / classes, dtype=torch.float64)
    for i, label in enumerate(y.tolist()):
        rows[i, label] += 1 - smoothing
    return rows


def unit(v: Tensor) -> Tensor:
    return v / v.pow(2).sum(-1, keepdim=True).sqrt()


class Queue:
    """The K newest raw logit vectors, oldest first."""

    def __init__(self, start: Tensor) -> None:
        self.vectors = list(start)

    def push(self, logits: Tensor) -> None:
        self.vectors = self.vectors[len(logits) :] + list(logits.detach())

    def tensor(self) -> Tensor:
        return torch.stack(self.vectors)


def released_contrast(
    logits: Tensor, queue: Tensor, vectors: Tensor, temperature: float, normalize: bool = True
) -> Tensor:
    """The released loss as written: an N x C x K tensor, logsumexp over classes, cross-entropy against index 0.

    vectors: (N, C), the label vector of each example, which multiplies the logits before the logsumexp.
    """
    p, bank = (unit(logits), unit(queue)) if normalize else (logits, queue)
    positive = torch.logsumexp(vectors * p, dim=1, keepdim=True)
    negatives = torch.logsumexp(vectors[:, :, None] * bank.T[None], dim=1)
    both = torch.cat([positive, negatives], dim=1) / temperature
    return (torch.logsumexp(both, dim=1) - both[:, 0]).mean()


def released_contrast_live(logits: Tensor, vectors: Tensor, temperature: float, normalize: bool = True) -> Tensor:
    """The same score with the batch itself as the column, positive included, two loops."""
    p = unit(logits) if normalize else logits
    total = torch.zeros((), dtype=torch.float64)
    for n in range(len(p)):
        column = torch.stack([torch.logsumexp(vectors[n] * p[j], 0) / temperature for j in range(len(p))])
        total = total + torch.logsumexp(column, 0) - column[n]
    return total / len(p)


def paper_contrast(
    logits: Tensor, y: Tensor, temperature: float, negatives: Tensor | None = None, normalize: bool = False
) -> Tensor:
    """-log( exp f(x)[y] / sum_i exp f(x_i)[y] ): over the batch, or over given negatives and the positive."""
    total = torch.zeros((), dtype=torch.float64)
    f = unit(logits) if normalize else logits
    others = f if negatives is None else (unit(negatives) if normalize else negatives)
    for n, label in enumerate(y.tolist()):
        denominator = sum((row[label] / temperature).exp() for row in others)
        if negatives is not None:
            denominator = denominator + (f[n, label] / temperature).exp()
        total = total - ((f[n, label] / temperature).exp() / denominator).log()
    return total / len(y)


def grad(value: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(value, at, retain_graph=True)[0]


def random_logits(n: int, c: int, seed: int, scale: float = 2.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(n, c, dtype=torch.float64, generator=g)).requires_grad_()


def population_gradient(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Exact gradient in W of E[-f_y(x) + log E_x' exp f_y(x')] with f = x W over a finite population."""
    w = weights.detach().requires_grad_()
    f = x @ w
    log_z = torch.logsumexp(f, 0) - math.log(len(x))
    return grad((log_z[y] - f[torch.arange(len(y)), y]).mean(), w)


def row_stats(x: Tensor, y: Tensor | None, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """lse, pick, sum and sq of each row, entry by entry; the pick of no label is 0. Autograd has their gradients."""
    rows = []
    for n in range(x.shape[0]):
        exponentials, pick, total, squares = torch.zeros(4, dtype=torch.float64).unbind()
        for c in range(x.shape[1]):
            value = x[n, c].double()
            exponentials = exponentials + (value / temperature).exp()
            total = total + value
            squares = squares + value * value
            if y is not None and c == int(y[n]):
                pick = pick + value
        rows.append(torch.stack([exponentials.log(), pick, total, squares]))
    lse, pick, total, squares = torch.stack(rows).unbind(1)
    return lse, pick, total, squares


def smoothed_cross_entropy(logits: Tensor, y: Tensor, smoothing: float) -> Tensor:
    """(N,): minus the sum over classes of label mass times log probability, class by class."""
    values = []
    for row, label in zip(logits, y.tolist(), strict=True):
        value = torch.zeros((), dtype=torch.float64)
        for c in range(len(row)):
            mass = smoothing / len(row) + (1 - smoothing if c == label else 0)
            value = value - mass * (row[c].exp() / row.exp().sum()).log()
        values.append(value)
    return torch.stack(values)


def z_loss(logits: Tensor) -> Tensor:
    """The mean over the rows of (log Z)^2, Z = sum_c exp f_c."""
    return sum((row.exp().sum().log() ** 2 for row in logits), torch.zeros((), dtype=torch.float64)) / len(logits)


def unit_logit(logits: Tensor, y: Tensor) -> Tensor:
    """(N,): the label's logit over the length of its row."""
    return torch.stack([unit(row)[label] for row, label in zip(logits, y.tolist(), strict=True)])


def contrast_with_reference(
    logits: Tensor,
    reference: Tensor,
    targets: Tensor,
    weight: float,
    temperature: float,
    released: bool,
    normalize: bool,
) -> Tensor:
    """-log( e^s_n / (sum_j e^s_j + w sum_m e^s_m) ), the mean over the images n; j the batch, m the references.

    targets: (N, C). In the released form s is the score under the image's own label vector; in the paper's the loss of
    each class counts by its probability.
    """
    f, others = (unit(logits), unit(reference)) if normalize else (logits, reference)
    total = torch.zeros((), dtype=torch.float64)

    def one(score: Callable[[Tensor], Tensor], own: Tensor) -> Tensor:
        column = sum(score(row).exp() for row in f) + weight * sum(score(row).exp() for row in others)
        return column.log() - score(own)

    for own, target in zip(f, targets, strict=True):
        if released:
            total = total + one(lambda v, t=target: torch.logsumexp(t * v, 0) / temperature, own)
            continue
        for c, share in enumerate(target.tolist()):
            if share:
                total = total + share * one(lambda v, c=c: v[c] / temperature, own)
    return total / len(f)
