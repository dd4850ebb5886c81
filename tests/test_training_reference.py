"""Reference images in a step of training: where they come from, and their ascent of the model's own log density."""

from __future__ import annotations

import naive_reference as naive
import pytest
import torch
from torch import nn

import ebmhybrid as eh
from ebmhybrid.data import FAMILIES, reference_images
from ebmhybrid.errors import RecipeError
from ebmhybrid.training import classify, engine
from ebmhybrid.training.build import build_parts, load_data, load_outliers
from ebmhybrid.training.classify import uphill
from ebmhybrid.training.setup import Parts

CPU = torch.device("cpu")
CLIMB = "ascent_steps: 3, ascent_step_size: 0.02"


@pytest.fixture(scope="module")
def splits():
    return load_data(eh.load_recipe("smoke"), "data", False)


def parts_of(splits, *overrides: str) -> Parts:
    recipe = eh.load_recipe("smoke", list(overrides))
    parts = build_parts(recipe, splits, CPU, load_outliers(recipe, splits, "data", False))
    parts.model.train()
    return parts


def references(parts: Parts, forward=None) -> torch.Tensor:
    """The reference images of a first step of 32 images."""
    train = parts.splits.train
    batch = classify.prepare(
        parts, parts.model if forward is None else forward, train.images[:32].float() / 255, train.labels[:32]
    )
    return batch.images[32:]


class Tanh(nn.Module):
    """A small smooth classifier in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(12, 6).double(), nn.Linear(6, 3).double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(3 * self.first(images.flatten(1))))


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_uphill_goes_where_central_differences_go(steps) -> None:
    model = Tanh()
    images = torch.rand(5, 1, 3, 4, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    images[0, 0, 0], images[0, 0, 1] = 0.0, 1.0  # at the ends of the range
    literal = [
        naive.uphill(lambda x: model(x[None]).detach().exp().sum().log(), one, steps, 0.07) for one in images.detach()
    ]
    found = uphill(model, images, steps, 0.07)
    torch.testing.assert_close(found, torch.stack(literal), rtol=0, atol=1e-12)
    assert 0 <= found.min() <= found.max() <= 1
    assert not found.requires_grad
    assert all(weight.grad is None for weight in model.parameters())


def test_uphill_is_flat_where_the_density_is() -> None:
    assert torch.equal(
        uphill(lambda x: 0 * x.flatten(1), torch.full((1, 1, 2, 2), 0.3), 5, 0.1), torch.full((1, 1, 2, 2), 0.3)
    )
    assert uphill(lambda x: x.flatten(1), torch.zeros(0, 1, 2, 2), 2, 0.1).shape == (0, 1, 2, 2)


@pytest.mark.parametrize("family", [*FAMILIES])
def test_each_family_can_be_asked_for(splits, family) -> None:
    parts = parts_of(splits, f"reference.families=[{family}]")
    train, twin = parts.splits.train, parts_of(splits)
    made = reference_images(train.images[:32].float() / 255, 16, [family], twin.generator)
    assert torch.equal(references(parts), made)


@pytest.mark.parametrize("source", ["families: [collages, smooth]", "set: photos"])
def test_references_of_either_source_climb_the_density_of_the_model_in_evaluation_mode(splits, source) -> None:
    parts = parts_of(splits, f"reference={{{source}, {CLIMB}}}")
    state = {name: value.clone() for name, value in parts.model.state_dict().items()}
    start = references(parts_of(splits, f"reference={{{source}}}"))
    found = references(parts)
    assert all(torch.equal(value, state[name]) for name, value in parts.model.state_dict().items())  # and statistics
    assert all(weight.grad is None for weight in parts.model.parameters())
    assert parts.model.training
    parts.model.eval()
    torch.testing.assert_close(found, uphill(parts.model, start, 3, 0.02))
    assert (found - start).abs().max() <= 0.06 + 1e-6
    with torch.no_grad():
        higher = eh.log_density(parts.model(found)) - eh.log_density(parts.model(start))
    assert (higher > 0).float().mean() > 0.9


def test_the_forward_pass_that_climbs_is_the_compiled_one_in_the_runs_precision(splits) -> None:
    parts = parts_of(splits, f"reference={{families: [warps], {CLIMB}}}", "training.precision=bf16")
    seen = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        seen.append((parts.model.training, torch.is_autocast_enabled("cpu"), images.dtype))
        return parts.model(images)

    references(parts, forward)
    assert seen == [(False, True, torch.float32)] * 3


def test_logits_that_are_never_whole_are_climbed_by_their_logsumexp(splits) -> None:
    terms = ["objective={ce: {}, outlier_exposure: {}}", f"reference={{families: [collages], {CLIMB}}}"]
    whole = references(parts_of(splits, *terms))
    chunked = references(parts_of(splits, *terms, "training.linear_energy=true"))
    torch.testing.assert_close(chunked, whole)


def test_a_model_that_fails_is_left_in_training_mode(splits) -> None:
    parts = parts_of(splits, f"reference={{families: [smooth], {CLIMB}}}")

    def forward(images: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        references(parts, forward)
    assert parts.model.training


def test_steps_with_climbing_references_are_the_same_for_the_same_seed(splits) -> None:
    families = "[collages, spectral, warps, mixtures]"
    found = []
    for _ in range(2):
        parts = parts_of(
            splits, f"reference={{families: {families}, {CLIMB}}}", "data.augment={pad: 1, noise_std: 0.1}"
        )
        train = parts.splits.train
        for _ in range(2):
            loss, _, _ = engine.train_step(parts, parts.model, train.images[:32].float() / 255, train.labels[:32])
        found.append((loss, references(parts)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reference={families: [smooth], ascent_step_size: 0.1}"], "ascent_step_size belongs to ascent_steps >= 1"),
        (["reference={families: [smooth], ascent_steps: -1}"], r"ascent_steps = -1"),
        (["reference={families: [smooth], ascent_steps: 1, ascent_step_size: 0}"], r"ascent_step_size = 0"),
        (["reference={families: [smooth], ascent_steps: 1, ascent_step_size: 1.5}"], r"ascent_step_size = 1\.5"),
        (["reference={families: [colages]}"], "'colages'.*'smooth', 'patches', 'inversions', 'collages'"),
        (["reference={families: []}"], r"families \(smooth, .*, mixtures\) or a set"),
        (
            ["reference={families: [mixtures]}", "evaluation.ood=[noise, 'interp:digits']"],
            "interp:digits in evaluation.ood",
        ),
        (["reference={families: [smooth], ascent_steps: 1}", "training.precision=fp16"], "too small a range"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides, message) -> None:
    with pytest.raises(RecipeError, match=message):
        eh.load_recipe("smoke", overrides)
