r"""MIM, cMIM and their rivals: encoder-decoders trained by likelihood, by a term on codes, and by contrast.

With q(z|x) = N(mu(x), diag sigma(x)^2), P(z) = N(0, I) and z ~ q(z|x), each loss is -(the sum of its terms), and the
terms are means over the batch, in nats:

    loss             log_likelihood   latent                         contrast
    VAE              log p(x|z)       -KL(q(z|x) || P(z))            -
    A-MIM            log p(x|z)       1/2 (log q(z|x) + log P(z))    -
    cVAE             log p(x|z)       -KL(q(z|x) || P(z))            log p(k=1|z,x)
    cMIM             log p(x|z)       1/2 (log q(z|x) + log P(z))    log p(k=1|z,x)
    InfoNCE          -                -                              log softmax
    InfoNCE + MIM    log p(x|z)       1/2 (log q(z|x) + log P(z))    log softmax

The contrasts are those of :mod:`ebmhybrid.losses.code_contrast`, of the samples z and not of the means.

Sources: Kingma & Welling 2014 (VAE); Livne et al. 2019, arXiv 1910.03175 (MIM and its asymmetric form A-MIM); Livne
2025, arXiv 2502.19642 (cMIM, cVAE). docs/mim.md says where the optima lie.

log p(x|z) is a sum over the dimensions of x: a mean would change its balance with the other terms. A-MIM's
1/2 log q(z|x) rewards a small sigma without end, so log sigma needs a floor: :func:`ebmhybrid.codes.floor_log_std`.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ebmhybrid.codes import kl_to_prior, log_posterior, log_prior
from ebmhybrid.losses.code_contrast import (
    check_number,
    checked_codes,
    checked_like,
    contrastive_log_prob,
    infonce_log_prob,
)
from ebmhybrid.losses.gathered import own_mean

Generative = Literal["none", "vae", "mim"]
Contrast = Literal["none", "cmim", "infonce"]
Loss = Tensor | tuple[Tensor, dict[str, Tensor]]


def latent_loss(
    log_px: Tensor | None,
    mean: Tensor | None,
    log_std: Tensor | None,
    z: Tensor,
    *,
    generative: Generative = "mim",
    contrast: Contrast = "cmim",
    temperature: float = 0.1,
    contrast_weight: float = 1.0,
    positives: Tensor | None = None,
    gather: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Any loss of the module docstring's table: -(log_likelihood + latent + contrast_weight contrast).

    Arguments:
        log_px: (N,) log p(x|z), summed over the dimensions of x, in nats. With generative="none" neither it nor mean
            and log_std are read: they may be None.
        mean, log_std: (N, D) of q(z|x).
        z: (N, D), a sample of q(z|x) for each row. The analytic KL of "vae" does not depend on it.
        temperature: t >= 1e-6 of the contrast.
        contrast_weight: at least 0; cMIM has 1.
        positives: (N, D), of contrast="infonce" only: see :func:`infonce_log_prob`.
        gather: contrast with the codes of all processes (:mod:`ebmhybrid.losses.gathered`). A process may then have
            N = 0 rows if another has some.

    Returns:
        (scalar, {"log_likelihood", "latent", "contrast"}), in float32 or wider: of the terms those that the loss has,
        before weighting, each a scalar with its gradient.

    Raises:
        ValueError: names, shapes or numbers that do not fit.

    >>> z = torch.zeros(2, 3)
    >>> loss, terms = latent_loss(torch.tensor([-2.0, -4.0]), z + 1, z, z, generative="vae", contrast="none")
    >>> loss, terms["log_likelihood"], terms["latent"]
    (tensor(4.5000), tensor(-3.), tensor(-1.5000))
    """
    _check_options(generative, contrast, contrast_weight, positives)
    compared: dict[str, Tensor] = {}  # first, as all processes take part in it
    if contrast == "cmim":
        compared["contrast"] = own_mean(contrastive_log_prob(z, temperature, gather=gather))
    elif contrast == "infonce":
        compared["contrast"] = own_mean(infonce_log_prob(z, positives, temperature, gather=gather))
    terms = {} if generative == "none" else _generative_terms(log_px, mean, log_std, z, generative, gather)
    terms |= compared
    weights = {"contrast": contrast_weight}
    return -torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum(), terms


def vae_loss(log_px: Tensor, mean: Tensor, log_std: Tensor, *, return_terms: bool = False) -> Loss:
    """VAE: -E[log p(x|z)] + E[KL(q(z|x) || P(z))], the KL in closed form; arguments as for :func:`latent_loss`.

    >>> vae_loss(torch.tensor([-2.0]), torch.ones(1, 3), torch.zeros(1, 3))
    tensor(3.5000)
    """
    found = latent_loss(log_px, mean, log_std, mean, generative="vae", contrast="none")
    return found if return_terms else found[0]


def mim_loss(log_px: Tensor, mean: Tensor, log_std: Tensor, z: Tensor, *, return_terms: bool = False) -> Loss:
    """A-MIM: -E[ log p(x|z) + 1/2 (log q(z|x) + log P(z)) ]; arguments as for :func:`latent_loss`.

    >>> zeros = torch.zeros(1, 3)
    >>> mim_loss(torch.tensor([-2.0]), zeros, zeros, zeros)  # 2 + 3/2 log 2 pi
    tensor(4.7568)
    """
    found = latent_loss(log_px, mean, log_std, z, generative="mim", contrast="none")
    return found if return_terms else found[0]


def cmim_loss(
    log_px: Tensor,
    mean: Tensor,
    log_std: Tensor,
    z: Tensor,
    temperature: float = 0.1,
    *,
    gather: bool = False,
    return_terms: bool = False,
) -> Loss:
    """cMIM: -E[ log p(x|z) + log p(k=1|z,x) + 1/2 (log q(z|x) + log P(z)) ]; arguments as for :func:`latent_loss`.

    >>> z = torch.ones(2, 3)
    >>> cmim_loss(z[:, 0], z, z, z) - mim_loss(z[:, 0], z, z, z)  # all codes point one way: log 2
    tensor(0.6931)
    """
    found = latent_loss(log_px, mean, log_std, z, temperature=temperature, gather=gather)
    return found if return_terms else found[0]


def cvae_loss(
    log_px: Tensor,
    mean: Tensor,
    log_std: Tensor,
    z: Tensor,
    temperature: float = 0.1,
    *,
    gather: bool = False,
    return_terms: bool = False,
) -> Loss:
    """cVAE: -E[ log p(x|z) + log p(k=1|z,x) ] + E[KL(q(z|x) || P(z))]; arguments as for :func:`latent_loss`.

    The c is for contrastive, as in Livne 2025; the conditional VAE of that abbreviation is another thing.

    >>> z = torch.ones(2, 3)
    >>> cvae_loss(torch.zeros(2), z, 0 * z, z)  # 3/2 + log 2
    tensor(2.1931)
    """
    found = latent_loss(log_px, mean, log_std, z, generative="vae", temperature=temperature, gather=gather)
    return found if return_terms else found[0]


def infonce_loss(
    z: Tensor,
    positives: Tensor | None = None,
    temperature: float = 0.1,
    *,
    gather: bool = False,
    return_terms: bool = False,
) -> Loss:
    """InfoNCE alone, for an encoder without a decoder: the mean of -:func:`infonce_log_prob`, with its arguments.

    >>> infonce_loss(torch.ones(4, 2))  # log 4
    tensor(1.3863)
    """
    contrast = -own_mean(infonce_log_prob(z, positives, temperature, gather=gather))
    return (contrast, {"contrast": -contrast}) if return_terms else contrast


def infonce_mim_loss(
    log_px: Tensor,
    mean: Tensor,
    log_std: Tensor,
    z: Tensor,
    positives: Tensor | None = None,
    temperature: float = 0.1,
    *,
    gather: bool = False,
    return_terms: bool = False,
) -> Loss:
    """A-MIM and InfoNCE: cMIM with the sum over negatives in place of the mean; arguments as for :func:`latent_loss`.

    >>> z = torch.ones(3, 3)
    >>> infonce_mim_loss(z[:, 0], z, z, z) - mim_loss(z[:, 0], z, z, z)  # log 3
    tensor(1.0986)
    """
    found = latent_loss(
        log_px, mean, log_std, z, contrast="infonce", temperature=temperature, positives=positives, gather=gather
    )
    return found if return_terms else found[0]


def _generative_terms(
    log_px: Tensor | None, mean: Tensor | None, log_std: Tensor | None, z: Tensor, generative: str, gather: bool
) -> dict[str, Tensor]:
    z = checked_codes(z, least=0 if gather else 1)
    log_px = checked_like("log_px", log_px, z.shape[:1])
    mean, log_std = checked_like("mean", mean, z.shape), checked_like("log_std", log_std, z.shape)
    if generative == "vae":
        latent = -kl_to_prior(mean, log_std)
    else:
        latent = 0.5 * (log_posterior(z, mean, log_std) + log_prior(z))
    return {"log_likelihood": own_mean(log_px), "latent": own_mean(latent)}


def _check_options(generative: str, contrast: str, contrast_weight: float, positives: Tensor | None) -> None:
    for name, value, choices in (
        ("generative", generative, get_args(Generative)),
        ("contrast", contrast, get_args(Contrast)),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if generative == contrast == "none":
        raise ValueError("generative and contrast are both 'none': nothing would be trained")
    check_number("contrast_weight", contrast_weight, 0)
    if positives is not None and contrast != "infonce":
        raise ValueError(f"positives go with contrast='infonce', got contrast={contrast!r}")
