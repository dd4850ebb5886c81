"""The rivals' losses one image, one class and one pair at a time, from the papers' equations, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logit_norm(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Wei et al. 2022: -sum_c t_c log( exp(f_c / (T ||f||)) / sum_k exp(f_k / (T ||f||)) ), without the code's 1e-7.

    targets: (N, C) probabilities.
    """
    total = logits.new_zeros(())
    for row, target in zip(logits, targets, strict=True):
        length = torch.stack([v * v for v in row]).sum().sqrt()
        powers = [(v / (temperature * length)).exp() for v in row]
        for power, share in zip(powers, target, strict=True):
            total = total - share * (power / torch.stack(powers).sum()).log()
    return total / len(logits)


def supcon(projections: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Khosla et al. 2020, equation 2: three loops over views; a view without a positive is passed over.

    projections: (N, V, D).
    """
    views = [(v / v.square().sum().sqrt(), int(y)) for row, y in zip(projections, labels, strict=True) for v in row]
    losses = []
    for i, (anchor, label) in enumerate(views):
        others = torch.stack([((anchor * z).sum() / temperature).exp() for a, (z, _) in enumerate(views) if a != i])
        terms = [
            ((anchor * z).sum() / temperature).exp().div(others.sum()).log()
            for p, (z, y) in enumerate(views)
            if p != i and y == label
        ]
        if terms:
            losses.append(-sum(terms) / len(terms))
    return torch.stack(losses).mean() if losses else projections.new_zeros(())


def energy_margin(logits: Tensor, outlier_logits: Tensor, inside: float, outside: float) -> Tensor:
    """Liu et al. 2020: E_in[max(0, E(x) - m_in)^2] + E_out[max(0, m_out - E(x))^2], E = -log sum_c exp f_c."""
    total = logits.new_zeros(())
    for row in logits:
        gap = -row.exp().sum().log() - inside
        total = total + (gap**2 if gap > 0 else 0) / len(logits)
    for row in outlier_logits:
        gap = outside + row.exp().sum().log()
        total = total + (gap**2 if gap > 0 else 0) / len(outlier_logits)
    return total


def outlier_exposure(outlier_logits: Tensor) -> Tensor:
    """Hendrycks et al. 2019: cross-entropy H(U, softmax f) = -sum_c 1/C log softmax(f)_c, the mean over outliers."""
    total = outlier_logits.new_zeros(())
    for row in outlier_logits:
        for value in row:
            total = total - (value.exp() / row.exp().sum()).log() / len(row)
    return total / len(outlier_logits)


def logit_norm_floor(classes: int, temperature: float) -> float:
    """The least LogitNorm loss of a label: the gap of unit logits is largest where the others are all equal."""
    own = math.sqrt((classes - 1) / classes)
    other = -1 / math.sqrt(classes * (classes - 1))
    return math.log1p((classes - 1) * math.exp((other - own) / temperature))


def nce(logits: Tensor, reference: Tensor, offset: Tensor | float, weight: float) -> Tensor:
    """Gutmann & Hyvarinen 2010: -E_data[log h] - w E_ref[log(1 - h)], h = e^{s-b} / (1 + e^{s-b}), e^s = sum_c e^{f_c}.

    One image at a time.
    """
    total = logits.new_zeros(())
    for rows, share, is_data in ((logits, 1.0, True), (reference, weight, False)):
        for row in rows:
            odds = sum(value.exp() for value in row) / torch.as_tensor(offset, dtype=torch.float64).exp()
            right = odds / (1 + odds) if is_data else 1 / (1 + odds)
            total = total - share * right.log() / len(rows)
    return total


def background_class(logits: Tensor, y: Tensor, reference: Tensor, offset: Tensor | float, weight: float) -> Tensor:
    """Cross-entropy of C + 1 classes, summed over all images: the last class is the references', of logit b and mass w.

    Its softmax is written out row by row.
    """
    total = logits.new_zeros(())
    background = torch.as_tensor(offset, dtype=torch.float64)
    for rows, labels, mass in ((logits, y.tolist(), 1.0), (reference, [logits.shape[1]] * len(reference), weight)):
        for row, label in zip(rows, labels, strict=True):
            powers = [value.exp() for value in [*row, background]]
            total = total - mass * (powers[label] / sum(powers)).log()
    return total
