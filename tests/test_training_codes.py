"""Encoder-decoders in the training loop: what they are given, which weights are best, resuming, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import ebmhybrid as eh
from ebmhybrid.cli import main
from ebmhybrid.errors import CheckpointError, EbmhybridError, RecipeError
from ebmhybrid.generation.judge import given_judge
from ebmhybrid.losses.mim import latent_loss
from ebmhybrid.training import encode
from ebmhybrid.training.build import build_parts, load_data
from ebmhybrid.training.resume import load_parts
from ebmhybrid.training.step import train_step

SMALL = [
    "model.options={latent: 4, width: 8}",
    "training.epochs=2",
    "training.batch_size=256",
    "schedule.warmup_steps=2",
]
TINY_TRANSFORMER = [
    "model.options={levels: 17, patch: 4, dim: 8, layers: 1, heads: 2, projection: 4}",
    "training.max_steps=2",
    "training.batch_size=64",
]


def parts_of(name: str, *changes: str):
    recipe = eh.load_recipe(name, [*SMALL, *changes])
    return build_parts(recipe, load_data(recipe, "data", False), torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("digits_vae", {"log_likelihood", "latent"}),
        ("digits_mim", {"log_likelihood", "latent"}),
        ("digits_cmim", {"log_likelihood", "latent", "contrast"}),
        ("digits_infonce", {"contrast"}),
    ],
)
def test_a_recipe_trains_its_loss(name: str, terms: set[str]) -> None:
    """The step's loss is the named loss of what the network gave, and the weights move along its gradient."""
    parts = parts_of(name, "objective.latent.views=1", "data.augment={}")
    images, labels = parts.splits.train.images[:32].float() / 255, parts.splits.train.labels[:32]
    state = torch.get_rng_state()
    with torch.no_grad():
        posterior = parts.model.encode(images)
        z = posterior.sample()
        log_px = parts.model.log_likelihood(images, z)
    options = parts.recipe.objective.latent.model_dump(exclude={"views"})
    expected, _ = latent_loss(log_px, *posterior, z, **options)
    torch.set_rng_state(state)
    before = {key: value.clone() for key, value in parts.model.state_dict().items()}
    loss, found, correct = train_step(parts, parts.model, images, labels)
    assert correct is None
    assert set(found) == terms
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert any(not torch.equal(value, before[key]) for key, value in parts.model.state_dict().items())


def test_two_views_are_two_augmentations_and_the_second_is_the_positive() -> None:
    parts = parts_of("digits_infonce")
    images = parts.splits.train.images[:8].float() / 255
    batch = encode.prepare(parts, parts.model, images, parts.splits.train.labels[:8])
    assert batch.other is not None
    assert not torch.equal(batch.view, batch.other)
    assert not torch.equal(batch.view, images)
    seen = []
    parts.objective.forward = lambda outputs, positives: seen.append((outputs, positives)) or (torch.zeros(()), {})
    encode.losses(parts, parts.model, batch)
    outputs, positives = seen[0]
    assert outputs[0] is None  # nothing is decoded
    assert positives.shape == outputs[3].shape
    assert not torch.equal(positives, outputs[3])


def test_without_augmentation_images_are_what_they_are() -> None:
    parts = parts_of("digits_cmim")
    images = parts.splits.train.images[:8].float() / 255
    batch = encode.prepare(parts, parts.model, images, parts.splits.train.labels[:8])
    assert torch.equal(batch.view, images)
    assert batch.other is None


def test_validation_draws_the_same_codes_each_time_and_leaves_the_random_state(monkeypatch) -> None:
    parts = parts_of("digits_cmim")
    state = torch.get_rng_state()
    first = encode.figures(parts)
    assert torch.equal(state, torch.get_rng_state())
    torch.randn(3)
    assert encode.figures(parts) == first
    assert set(first) == {"loss", "log_likelihood", "latent", "contrast"}
    assert first["loss"] == pytest.approx(-first["log_likelihood"] - first["latent"] - first["contrast"], rel=1e-5)


def test_best_is_the_lowest_validation_loss(tmp_path) -> None:
    run = eh.train(eh.load_recipe("digits_cmim", [*SMALL, "training.epochs=4"]), tmp_path / "run", progress=False)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if row["split"] == "validation"}
    assert len(losses) == 4
    assert run.metrics == {"loss": pytest.approx(min(losses.values())), "step": min(losses, key=losses.get)}
    assert "accuracy" not in rows[0]
    model = eh.load_model(run.folder)
    assert model.metadata["architecture"]["latent"] == 4
    assert model.metadata["architecture"]["min_log_std"] == -6.0  # defaults are kept too
    assert model.encode(torch.rand(3, 1, 8, 8)).mean.shape == (3, 4)


@pytest.mark.parametrize(
    "changes", [[], ["training.ema=0.9", "training.precision=bf16", "training.channels_last=true"]]
)
@pytest.mark.parametrize("name", ["digits_cmim", "digits_gcrl"])
def test_a_resumed_run_ends_as_the_undisturbed_one(tmp_path: Path, name: str, changes: list[str]) -> None:
    shape = SMALL[:1] if name == "digits_cmim" else TINY_TRANSFORMER[:1]
    common = [*shape, "training.batch_size=512", "training.epochs=2", *changes, "schedule={name: constant}"]
    whole = eh.train(eh.load_recipe(name, [*common, "training.max_steps=4"]), tmp_path / "whole", progress=False)
    part = eh.train(eh.load_recipe(name, [*common, "training.max_steps=1"]), tmp_path / "part", progress=False)
    eh.train(resume=part.folder, overrides=["training.max_steps=4"], progress=False)
    first, second = (eh.load_model(run.folder / "checkpoints" / "last.safetensors") for run in (whole, part))
    for (key, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), key


@pytest.mark.parametrize("loss", ["weight", "generative_weight"])
def test_gcrl_without_one_of_its_losses_leaves_out_its_computation(loss: str) -> None:
    recipe = eh.load_recipe("digits_gcrl", [*TINY_TRANSFORMER, f"objective.gcrl.{loss}=0"])
    parts = build_parts(recipe, load_data(recipe, "data", False), torch.device("cpu"))
    images, labels = parts.splits.train.images[:8].float() / 255, parts.splits.train.labels[:8]
    batch = encode.prepare(parts, parts.model, images, labels)
    assert (batch.other is None) == (loss == "weight")
    assert (batch.target is None) == (loss == "generative_weight")
    if batch.target is not None:
        assert torch.equal(batch.target, images)  # the decoder predicts the image, the encoder sees a view
    value, terms, correct = train_step(parts, parts.model, images, labels)
    assert torch.isfinite(value)
    assert correct is None
    assert len(terms) == 1


WRONG = [
    ("digits_cmim", ["objective.latent={generative: none, contrast: none}"], "nothing would be trained"),
    ("digits_cmim", ["objective.latent.views=2"], "views = 2 is for contrast: infonce"),
    ("digits_mim", ["objective.latent.temperature=1.0"], "temperature: not an option without contrast"),
    ("digits_cmim", ["objective.ce={}"], "latent trains codes, and does not go with ce"),
    ("digits_cmim", ["objective.gcrl={}"], "latent trains codes, and does not go with gcrl"),
    (
        "digits_cmim",
        ["model={name: wide_resnet}"],
        "objective.latent needs model.name autoencoder or sequence_autoencoder",
    ),
    (
        "digits_gcrl",
        ["model={name: autoencoder}"],
        "its objective is objective.latent",
    ),
    ("digits_hdge", ["model={name: image_transformer}"], "its objective is objective.gcrl"),
    ("digits_cmim", ["optimizer.sam_rho=0.1"], "does not go with optimizer.sam_rho"),
    ("digits_cmim", ["data.augment.mixup_alpha=0.2"], "or mixup"),
    ("digits_cmim", ["data.train=text:x.txt"], "text:PATH and model.name=sequence_autoencoder go together"),
    ("digits_gcrl", ["objective.gcrl={weight: 0, generative_weight: 0}"], "nothing would be trained"),
    ("digits_infonce", ["training.compile=true"], "decodes nothing"),
    ("text_cmim", ["data.image_size=8"], "data.image_size: is for images, not for text:PATH"),
    ("text_cmim", ["evaluation.corruptions=true"], "evaluation.corruptions: is for images"),
    ("text_cmim", ["evaluation.ood=['text:a', noise]"], "evaluation.ood = noise: OOD sets of text are text:PATH"),
    ("text_cmim", ["data.max_length=1"], "data.max_length = 1"),
    ("digits_cmim", ["data.max_length=64"], "max_length: is for text:PATH, not for digits"),
    ("text_cmim", ["data.augment.pad=1"], "data.augment: is for images"),
    ("text_cmim", ["training.channels_last=true"], "training.channels_last: is for images"),
    ("digits_cmim", ["objective.latent.contrast=cmin"], "contrast = 'cmin'"),
    ("digits_cmim", ["objective.latent.tau=1"], "objective.latent.temperature"),
    ("digits_cmim", ["model.options.in_channels=3"], "cannot stand there"),
]


@pytest.mark.parametrize(("name", "changes", "message"), WRONG)
def test_recipes_that_do_not_fit_are_refused(name: str, changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        eh.load_recipe(name, changes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.options.latnt=3"], "did you mean 'latent'"),
        (["model.options.zzz=3"], "min_log_std, norm, width"),
        (["model.options.latent=0"], "latent must be"),
        (["model.options.encoder=vit"], "'vit'"),
        (["data.image_size=72"], "image_size must be"),
    ],
)
def test_options_of_a_network_are_checked_before_anything_is_written(tmp_path, changes, message) -> None:
    with pytest.raises(EbmhybridError) as error:
        eh.train(eh.load_recipe("digits_cmim", changes), tmp_path / "run", progress=False)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["digits_cmim", "digits_infonce"])
def test_what_the_network_will_do_is_tried_on_before(monkeypatch, name) -> None:
    """The decoder too, where the objective decodes; the draws of the run stay as they were."""
    made, tried = parts_of(name), []
    state = torch.get_rng_state()
    original = type(made.model).decode

    def decode(self, z):
        tried.append(z)
        return original(self, z)

    monkeypatch.setattr(type(made.model), "decode", decode)
    parts_of(name)
    assert len(tried) == (name == "digits_cmim")
    assert torch.equal(torch.get_rng_state(), state)

    def fails(self, images):
        raise RuntimeError("too small")

    monkeypatch.setattr(type(made.model), "encode", fails)
    with pytest.raises(RecipeError, match=r"model 'autoencoder' cannot take inputs of \(1, 8, 8\): too small"):
        parts_of(name)


def test_sequences_are_counted_as_such(tmp_path) -> None:
    (tmp_path / "lines.txt").write_text("".join("C" * n + "O" * 3 + "\n" for n in range(1, 41)) + "C" * 600)
    small = ["model.options={latent: 4, dim: 8, layers: 1, heads: 2}", "training.max_steps=1"]
    recipe = eh.load_recipe("text_cmim", [f"data.train=text:{tmp_path / 'lines.txt'}", "data.max_length=24", *small])
    eh.train(recipe, tmp_path / "run", progress=False)
    said = (tmp_path / "run" / "train.log").read_text()
    assert "text_cmim: 14 training sequences, 1 steps" in said
    assert "sequences/s" in said
    assert "images" not in said
    assert eh.load_model(tmp_path / "run").max_length == 24


def test_the_command_says_the_best_loss(tmp_path) -> None:
    result = CliRunner().invoke(main, ["train", "--recipe", "digits_cmim", "--out", str(tmp_path / "r"), *SMALL])
    assert result.exit_code == 0, result.output
    assert "best validation loss" in result.output
    assert "validation loss" in (tmp_path / "r" / "train.log").read_text()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path) -> None:
    with pytest.raises(EbmhybridError, match=r"loss is not finite"):
        eh.train(eh.load_recipe("digits_cmim", [*SMALL, "optimizer.lr=1e6"]), tmp_path / "run", progress=False)


def test_images_without_classes_are_enough(tmp_path) -> None:
    """A set of one class, which no classifier is trained on, trains codes."""
    x = (255 * torch.rand(40, 8, 8)).byte().numpy()
    np.savez(tmp_path / "x.npz", x=x, y=np.zeros(40, np.int64))
    data = [f"data.train=npz:{tmp_path / 'x.npz'}", "evaluation.ood=[noise]"]
    run = eh.train(eh.load_recipe("digits_cmim", [*SMALL, *data]), tmp_path / "run", progress=False)
    assert eh.load_model(run.folder).encode(torch.rand(2, 1, 8, 8)).mean.shape == (2, 4)
    with pytest.raises(EbmhybridError, match="at least 2 classes"):
        eh.train(eh.load_recipe("digits_ce", data), tmp_path / "ce", progress=False)


def test_best_figures_are_those_of_the_task() -> None:
    """An encoder-decoder keeps a loss and a step; what a classifier keeps makes no sense for it, and the reverse."""
    parts = parts_of("digits_cmim")
    state = parts.state_dict()
    state["progress"] = {**state["progress"], "best": [-3.0, 5]}
    load_parts(parts, state)
    assert parts.progress.best == [-3.0, 5]
    state["progress"] = {**state["progress"], "best": [0.9, -0.1, 5]}
    with pytest.raises(ValueError, match="makes no sense"):
        load_parts(parts, state)


SMALLER = {
    "cifar10_cmim": ["model.options.latent=8", "model.options.width=16", "model.options.depth=10"],
    "cifar10_gcrl": [f"model.options.{key}" for key in ("levels=8", "dim=16", "layers=1", "heads=2", "patch=8")],
}


@pytest.mark.parametrize("name", SMALLER)
def test_cifar_recipes_take_a_step_with_smaller_networks(name: str) -> None:
    recipe = eh.load_recipe(name, [*SMALLER[name], "data.train=shapes", "training.precision=fp32"])
    parts = build_parts(recipe, load_data(recipe, "data", False), torch.device("cpu"))
    before = {key: value.clone() for key, value in parts.model.named_parameters()}
    images, labels = parts.splits.train.images[:4].float() / 255, parts.splits.train.labels[:4]
    loss, _, _ = train_step(parts, parts.model, images, labels)
    assert torch.isfinite(loss)
    assert any(not torch.equal(value, before[key]) for key, value in parts.model.named_parameters())


def test_an_encoder_decoder_cannot_judge_samples(tmp_path) -> None:
    run = eh.train(eh.load_recipe("digits_cmim", [*SMALL, "training.max_steps=1"]), tmp_path / "run", progress=False)
    recipe = eh.load_recipe("digits_ce", ["data.train=digits"])
    with pytest.raises(CheckpointError, match="cannot judge, it is an encoder-decoder"):
        given_judge(
            run.folder, torch.nn.Identity(), tmp_path / "w", load_data(recipe, "data", False), torch.device("cpu")
        )
