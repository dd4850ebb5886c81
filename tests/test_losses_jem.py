"""JEM's loss: on a space small enough to sum over, its gradient is that of the exact log-likelihood."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ebmhybrid.losses.jem import jem_log_density, jem_loss
from ebmhybrid.schema import Objective
from ebmhybrid.training.objective import CombinedLoss, Contrast

STATES, CLASSES = 6, 3


def table(seed: int = 0) -> Tensor:
    """A model of a discrete space: the logits of each of its states, which are its parameters."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(STATES, CLASSES, dtype=torch.float64, generator=generator).requires_grad_()


def expected_gradient(logits: Tensor, data: Tensor, labels: Tensor | None) -> Tensor:
    """The mean of JEM's gradient over all samples that the model could draw, each with its exact probability."""
    total = torch.zeros_like(logits)
    for i, state in enumerate(data.tolist()):
        label = None if labels is None else labels[i : i + 1]
        scores = jem_log_density(logits, None if label is None else label.expand(STATES))
        for other, probability in enumerate(scores.detach().softmax(0).tolist()):
            loss = jem_loss(
                jem_log_density(logits[state : state + 1], label), jem_log_density(logits[other : other + 1], label)
            )
            total += probability * torch.autograd.grad(loss, logits)[0] / len(data)
    return total


def exact_gradient(logits: Tensor, data: Tensor, labels: Tensor | None) -> Tensor:
    """The gradient of the mean negative log-likelihood, its normaliser summed over the whole space."""
    joint = logits.exp()
    likelihood = joint.sum(1)[data] / joint.sum() if labels is None else joint[data, labels] / joint.sum(0)[labels]
    return torch.autograd.grad(-likelihood.log().mean(), logits)[0]


@pytest.mark.parametrize("conditional", [False, True], ids=["log p(x)", "log p(x|y)"])
def test_the_expected_gradient_is_that_of_the_exact_likelihood(conditional: bool) -> None:
    logits, data = table(), torch.tensor([0, 0, 2, 5, 5, 5])
    labels = torch.tensor([0, 1, 2, 0, 0, 1]) if conditional else None
    torch.testing.assert_close(expected_gradient(logits, data, labels), exact_gradient(logits, data, labels))


def test_with_cross_entropy_it_is_the_joint_likelihood() -> None:
    """log p(x, y) = log p(y|x) + log p(x): the hybrid objective at weights 1 and 1."""
    logits, data, labels = table(1), torch.tensor([1, 3, 3]), torch.tensor([2, 0, 1])
    joint = logits.exp() / logits.exp().sum()
    exact = torch.autograd.grad(-joint[data, labels].log().mean(), logits)[0]
    ce = torch.nn.functional.cross_entropy(logits[data], labels)
    hybrid = torch.autograd.grad(ce, logits)[0] + expected_gradient(logits, data, None)
    torch.testing.assert_close(hybrid, exact)


def test_the_value_is_the_gap_and_the_l2_term_adds_mean_squares() -> None:
    data, samples = torch.tensor([1.0, 3.0]), torch.tensor([4.0])
    assert jem_loss(data, samples).item() == 2.0
    assert jem_loss(data, samples, l2=0.1).item() == pytest.approx(2.0 + 0.1 * (5.0 + 16.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(0), torch.zeros(1)), r"data must be log densities .* \(0,\)"),
        ((torch.zeros(1), torch.zeros(2, 2)), r"samples must be log densities .* \(2, 2\)"),
        ((torch.zeros(1, dtype=torch.int64), torch.zeros(1)), "data must be log densities .* torch.int64"),
        ((torch.zeros(1), torch.zeros(1), -1.0), "l2 must be at least 0 and finite, got -1.0"),
    ],
)
def test_wrong_input_is_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        jem_loss(*arguments)


def contrast(n: int = 5, m: int = 4) -> Contrast:
    generator = torch.Generator().manual_seed(0)
    data, samples = (torch.randn(k, CLASSES, dtype=torch.float64, generator=generator) for k in (n, m))
    return Contrast(data, samples, torch.arange(n) % CLASSES, (torch.arange(m) + 1) % CLASSES)


@pytest.mark.parametrize("target", ["marginal", "conditional"])
def test_the_objective_weighs_and_names_its_parts(target: str) -> None:
    about = contrast()
    terms = Objective.model_validate(
        {"ce": {"weight": 2.0}, "logit_norm": {"weight": 0.5}, "jem": {"weight": 3.0, "target": target, "l2": 0.25}}
    )
    logits, labels = torch.randn(5, CLASSES, dtype=torch.float64), torch.arange(5) % CLASSES
    loss, parts = CombinedLoss(terms, CLASSES)(logits, labels, contrast=about)
    assert set(parts) == {"ce", "logit_norm", "jem", "log_density_data", "log_density_samples"}
    torch.testing.assert_close(loss, 2 * parts["ce"] + 0.5 * parts["logit_norm"] + 3 * parts["jem"])
    if target == "marginal":
        data, samples = about.data.exp().sum(1).log(), about.samples.exp().sum(1).log()
    else:
        data = torch.stack([row[y] for row, y in zip(about.data, about.labels, strict=True)])
        samples = torch.stack([row[y] for row, y in zip(about.samples, about.sample_labels, strict=True)])
    torch.testing.assert_close(parts["log_density_data"], data.mean())
    torch.testing.assert_close(parts["log_density_samples"], samples.mean())
    gap = samples.mean() - data.mean() + 0.25 * ((data**2).mean() + (samples**2).mean())
    torch.testing.assert_close(parts["jem"], gap)


def test_hdge_and_jem_add_up() -> None:
    terms = Objective.model_validate(
        {"hdge": {"form": "paper", "negatives": "batch", "normalize": "none", "temperature": 1.0}, "jem": {}}
    )
    logits, labels = torch.randn(5, CLASSES, dtype=torch.float64), torch.arange(5) % CLASSES
    loss, parts = CombinedLoss(terms, CLASSES)(logits, labels, contrast=contrast())
    torch.testing.assert_close(loss, parts["ce"] + parts["contrastive"] + parts["jem"])
