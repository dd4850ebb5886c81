"""A classifier's losses from its features and last layer, for so many classes that N x C logits would not fit.

`training.linear_energy` asks for it. Everything here follows from three numbers of a row of f = features W^T + b:

    lse_n = logsumexp_c f_nc  and  pick_n = f[n, y_n]     a chunk of classes at a time, by `ebmhybrid.linear_energy`
    sum_n = features_n . (sum_c W_c) + sum_c b_c          in O(N D)
"""

from __future__ import annotations

from torch import Tensor, nn

from ebmhybrid.kernels import RowStats, at_least_float32, linear_energy
from ebmhybrid.losses.baselines import energy_margin_loss
from ebmhybrid.losses.gathered import reference_share
from ebmhybrid.losses.jem import jem_loss
from ebmhybrid.losses.nce import nce_loss
from ebmhybrid.losses.rowwise import cross_entropy, weighted_sum
from ebmhybrid.terms import Objective


def layer_stats(features: Tensor, layer: nn.Linear, targets: Tensor | None = None, *, total: bool = False) -> RowStats:
    """lse, with targets pick, and with `total` sum of the rows of layer(features), without these rows.

    Shapes:
        features (N, D), targets int64 (N,) -> each (N,), of at least float32.

    >>> import torch
    >>> stats = layer_stats(torch.ones(2, 3), nn.Linear(3, 5), torch.tensor([0, 4]), total=True)
    >>> stats.lse.shape, stats.pick.shape, stats.sum.shape
    (torch.Size([2]), torch.Size([2]), torch.Size([2]))
    """
    lse, pick = linear_energy(features, layer.weight, layer.bias, targets)
    sums = None
    if total:  # a product element by element: autocast would round a matrix product
        sums = (at_least_float32(features) * layer.weight.sum(0)).sum(1) + layer.bias.sum()
    return RowStats(lse, pick, sums)


def only_logit(model: nn.Module, images: Tensor) -> Tensor:
    """logsumexp_c f(x)_c as (N, 1): as the only logit of a row it has the same density. For chains, so to images alone.

    The last layer's weights are taken as they are, without a gradient, which is as large as they.
    """
    head: nn.Linear = model.head  # type: ignore[assignment]
    features: Tensor = model.features(images)  # type: ignore[operator]
    return linear_energy(features, head.weight.detach(), head.bias.detach()).lse.unsqueeze(1)


def linear_losses(
    terms: Objective,
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    plain: Tensor | None = None,
    samples: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its parts that `CombinedLoss` gives for the logits, to rounding, from the model's features.

    Arguments:
        terms: of ce, z_loss, jem (marginal), energy_margin, outlier_exposure and nce, without learn_offset.
        model: with `features`, images -> (N, D), and `head`, a linear layer.
        images: (N + R, ...), the batch's own and behind them R reference images.
        targets: int64 (N,).
        plain: the images of jem's data term where they are not those above.
        samples: (M, ...), jem's.
    """
    n, smoothing = len(targets), 0.0 if terms.ce is None else terms.ce.label_smoothing
    head: nn.Linear = model.head  # type: ignore[assignment]
    features: Tensor = model.features(images)  # type: ignore[operator]
    rows = layer_stats(features[:n], head, targets, total=smoothing > 0)
    assert rows.lse is not None
    found: dict[str, tuple[float, Tensor]] = {}
    watched: dict[str, Tensor] = {}
    if terms.ce is not None:
        found["ce"] = terms.ce.weight, cross_entropy(rows, head.out_features, smoothing).mean()
    if terms.z_loss is not None:
        found["z_loss"] = terms.z_loss.weight, rows.lse.square().mean()
    if len(features) > n:
        found |= _held_off(terms, rows.lse, features[n:], head)
    if terms.jem is not None and samples is not None:
        data = rows.lse if plain is None else _log_density(model, plain)
        drawn = _log_density(model, samples)
        found["jem"] = terms.jem.weight, jem_loss(data, drawn, terms.jem.l2)
        watched = {"log_density_data": data.mean(), "log_density_samples": drawn.mean()}
    loss = weighted_sum(*found.values())
    return loss, {name: value for name, (_, value) in found.items()} | watched


def _held_off(terms: Objective, lse: Tensor, reference: Tensor, head: nn.Linear) -> dict[str, tuple[float, Tensor]]:
    """What tells reference images from data, from their features (R, D)."""
    margin, exposure, found = terms.energy_margin, terms.outlier_exposure, {}
    others = layer_stats(reference, head, total=exposure is not None)
    assert others.lse is not None
    share = reference_share(len(lse), len(reference), lse.device)
    inside, outside = lse.unsqueeze(1), others.lse.unsqueeze(1)  # as the only logit the energy is the same
    if margin is not None:
        below = energy_margin_loss(inside, outside[:0], margin.inside, margin.outside)
        above = energy_margin_loss(inside[:0], outside, margin.inside, margin.outside)
        found["energy_margin"] = margin.weight, below + share * above
    if exposure is not None and others.sum is not None:
        uniform = (others.lse - others.sum / head.out_features).mean()
        found["outlier_exposure"] = exposure.weight, share * uniform
    if (nce := terms.nce) is not None:
        below = nce_loss(inside, outside[:0], nce.offset, nce.reference_weight)
        above = nce_loss(inside[:0], outside, nce.offset, nce.reference_weight)
        found["nce"] = nce.weight, below + share * above
    return found


def _log_density(model: nn.Module, images: Tensor) -> Tensor:
    features: Tensor = model.features(images)  # type: ignore[operator]
    lse = layer_stats(features, model.head).lse  # type: ignore[arg-type]
    assert lse is not None
    return lse
