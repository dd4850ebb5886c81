r"""JEM: maximum likelihood of a density whose normaliser is unknown, by samples of the model (Grathwohl et al. 2020).

For log p(x) = s(x) - log Z the gradient is that of the data's mean less that of the model's own mean,

    d/dtheta E_data[log p(x)] = E_data[ds(x)/dtheta] - E_{x' ~ p}[ds(x')/dtheta]

so that the difference of the two means, with the samples x' held fixed, has the right gradient; its value is no
likelihood. With a classifier's logits, s is one of two:

    marginal      s(x)    = logsumexp_y f(x)[y]     log p(x), and with cross-entropy log p(x, y)
    conditional   s(x, y) = f(x)[y]                 log p(x|y) at the labels of the data and of the samples

The samples come from :mod:`ebmhybrid.sampling`.
"""

from __future__ import annotations

from torch import Tensor

from ebmhybrid.energies import joint_energy, log_density
from ebmhybrid.kernels import at_least_float32


def jem_log_density(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """What chains climb and JEM contrasts: logsumexp_y f(x)[y], or with labels f(x)[y], each up to a constant.

    Shapes:
        logits (N, C), labels int64 (N,) or None -> (N,), in float32 or wider.

    >>> import torch
    >>> jem_log_density(torch.tensor([[1.0, 5.0]]), torch.tensor([0]))
    tensor([1.])
    """
    return log_density(logits) if labels is None else -joint_energy(logits, labels)


def jem_loss(data: Tensor, samples: Tensor, l2: float = 0.0) -> Tensor:
    """-(mean s(x) - mean s(x')) + l2 (mean s(x)^2 + mean s(x')^2): descends on the negative log-likelihood of data.

    Source: Grathwohl et al. 2020, equation 3; the l2 term is that of Du & Mordatch 2019, and of no likelihood.

    Arguments:
        data: s of the data, (N,), N >= 1.
        samples: s of the model's samples, (M,), M >= 1; the samples themselves detached.
        l2: at least 0.

    Returns:
        A scalar, near 0 while samples are as likely as data. Its value does not tell how good the density is.

    Raises:
        ValueError: arguments of another form.

    >>> import torch
    >>> jem_loss(torch.tensor([2.0, 4.0]), torch.tensor([1.0]))
    tensor(-2.)
    """
    for name, values in (("data", data), ("samples", samples)):
        tensor = isinstance(values, Tensor)
        if not tensor or values.dim() != 1 or not len(values) or not values.is_floating_point():
            what = f"{values.dtype} {tuple(values.shape)}" if tensor else type(values).__name__
            raise ValueError(
                f"{name} must be log densities (N,) with N >= 1, got {what}: jem_log_density makes them from logits"
            )
    if not isinstance(l2, (int, float)) or not 0 <= l2 < float("inf"):
        raise ValueError(f"l2 must be at least 0 and finite, got {l2!r}")
    data, samples = at_least_float32(data), at_least_float32(samples)
    loss = samples.mean() - data.mean()
    return loss + l2 * (data.square().mean() + samples.square().mean()) if l2 else loss
