r"""GCRL: a generative and a contrastive loss of one encoder-decoder (Kim, Kim & Lee 2021, arXiv 2106.06162).

    L = w_g ( -1/T mean log p(t | m) ) + w_c NT-Xent(anchors, positives)

The paper's abstract is what is known here: that both losses are used is the paper's, their form and weights are this
project's. NT-Xent is SimCLR's (Chen et al. 2020): each of the 2N views has its image's other view as the positive and
the 2N - 2 views of other images as negatives, which is supervised contrast with each image as a class of its own.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from ebmhybrid.kernels import at_least_float32
from ebmhybrid.losses.baselines import supcon_loss
from ebmhybrid.losses.code_contrast import LEAST_TEMPERATURE, check_number, described, scaled
from ebmhybrid.messages import processes, rank

Terms = dict[str, Tensor]


def nt_xent_loss(anchors: Tensor, positives: Tensor, temperature: float = 0.1, *, gather: bool = False) -> Tensor:
    """The mean over 2N views of -log( exp(z.z_other / T) / sum_{a not z} exp(z.z_a / T) ), with z of unit length.

    Source: Chen et al. 2020, equation 1 (NT-Xent).

    Arguments:
        anchors, positives: (N, P), two views of each of N >= 1 images; of any length, they are normalised here.
        temperature: T >= 1e-6.
        gather: compare with the views of all processes (:mod:`ebmhybrid.losses.gathered`).

    Returns:
        A scalar in nats >= 0: log(2N - 1) where all views are the same, 0 for a single image.

    Raises:
        ValueError: shapes, dtypes or a temperature that do not fit.

    >>> views = torch.eye(2)
    >>> torch.allclose(nt_xent_loss(views, views, temperature=1.0), torch.tensor(1 + 2 / torch.e).log())
    True
    """
    _check_projections(anchors, positives)
    check_number("temperature", temperature, LEAST_TEMPERATURE)
    itself = torch.arange(len(anchors), device=anchors.device) * processes() + rank()  # no other process's number
    views = torch.stack([scaled(at_least_float32(view)) for view in (anchors, positives)], dim=1)
    return supcon_loss(views, itself, temperature, gather=gather)


@overload
def gcrl_loss(
    log_likelihood: Tensor | None,
    num_tokens: int,
    anchors: Tensor | None,
    positives: Tensor | None,
    weight: float = 1.0,
    generative_weight: float = 1.0,
    temperature: float = 0.1,
    return_terms: Literal[False] = False,
    *,
    gather: bool = False,
) -> Tensor: ...


@overload
def gcrl_loss(
    log_likelihood: Tensor | None,
    num_tokens: int,
    anchors: Tensor | None,
    positives: Tensor | None,
    weight: float = 1.0,
    generative_weight: float = 1.0,
    temperature: float = 0.1,
    *,
    return_terms: Literal[True],
    gather: bool = False,
) -> tuple[Tensor, Terms]: ...


def gcrl_loss(
    log_likelihood: Tensor | None,
    num_tokens: int,
    anchors: Tensor | None,
    positives: Tensor | None,
    weight: float = 1.0,
    generative_weight: float = 1.0,
    temperature: float = 0.1,
    return_terms: bool = False,
    *,
    gather: bool = False,
) -> Tensor | tuple[Tensor, Terms]:
    """generative_weight (-mean log_likelihood / num_tokens) + weight NT-Xent(anchors, positives): see the module.

    Source: Kim, Kim & Lee 2021 for the sum of a generative and a contrastive loss.

    Arguments:
        log_likelihood: log p(t | m) summed over an image's tokens, (N,), N >= 1; None where generative_weight is 0.
        num_tokens: T >= 1, which makes the first loss nats a token.
        anchors, positives: (N, P), projections of two views; None where weight is 0.
        weight, generative_weight: >= 0, not both 0.
        temperature: T >= 1e-6 of NT-Xent.
        gather: contrast with the views of all processes (:mod:`ebmhybrid.losses.gathered`).
        return_terms: add the unweighted terms that were computed, {"generative": nats a token, "contrast": nats}.

    Returns:
        A scalar in nats, in float32 or wider.

    Raises:
        ValueError: arguments that do not fit, or a loss that is weighed and not given.

    >>> gcrl_loss(torch.tensor([-8.0, -16.0]), 4, None, None, weight=0.0)
    tensor(3.)
    """
    _check_weights(weight, generative_weight)
    terms = {}
    if generative_weight:
        terms["generative"] = _nats_a_token(log_likelihood, num_tokens)
    if weight:
        if anchors is None or positives is None:
            raise ValueError("anchors and positives must be given where weight is not 0, got None")
        terms["contrast"] = nt_xent_loss(anchors, positives, temperature, gather=gather)
        if generative_weight and log_likelihood is not None and len(log_likelihood) != len(anchors):
            raise ValueError(f"anchors must be {len(log_likelihood)} rows as log_likelihood, got {len(anchors)}")
    weights = {"generative": generative_weight, "contrast": weight}
    loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    return (loss, terms) if return_terms else loss


def _nats_a_token(log_likelihood: Tensor | None, num_tokens: int) -> Tensor:
    if log_likelihood is None:
        raise ValueError("log_likelihood must be given where generative_weight is not 0, got None")
    _check_floats("log_likelihood", log_likelihood, 1)
    if not isinstance(num_tokens, int) or isinstance(num_tokens, bool) or num_tokens < 1:
        raise ValueError(f"num_tokens must be an integer >= 1, got {num_tokens!r}")
    return -at_least_float32(log_likelihood).mean() / num_tokens


def _check_floats(name: str, value: object, dims: int) -> None:
    if not (isinstance(value, Tensor) and value.is_floating_point() and value.dim() == dims and value.numel()):
        shape = ("(N,) with N >= 1", "(N, P) with N, P >= 1")[dims - 1]
        raise ValueError(f"{name} must be floating point {shape}, got {described(value)}")


def _check_projections(anchors: Tensor, positives: Tensor) -> None:
    _check_floats("anchors", anchors, 2)
    _check_floats("positives", positives, 2)
    if anchors.shape != positives.shape:
        raise ValueError(f"positives must be {tuple(anchors.shape)} as anchors, got {tuple(positives.shape)}")


def _check_weights(weight: float, generative_weight: float) -> None:
    for name, value in (("weight", weight), ("generative_weight", generative_weight)):
        check_number(name, value, 0)
    if not weight and not generative_weight:
        raise ValueError("weight and generative_weight are both 0: nothing would be trained")
