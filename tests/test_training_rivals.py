"""Rivals in the training loop: two stages for supervised contrast, outliers for the energy margin, LogitNorm."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import ebmhybrid as eh
from ebmhybrid.errors import CheckpointError, DataError, RecipeError
from ebmhybrid.losses.baselines import energy_margin_loss, logit_norm_loss, outlier_exposure_loss, supcon_loss
from ebmhybrid.training import classify, step
from ebmhybrid.training.build import build_parts, load_data, load_outliers
from ebmhybrid.training.checkpoint import load_state

SUPCON = ["training={epochs: 3, batch_size: 64}", "schedule={name: cosine}", "data.augment={pad: 1, noise_std: 0.1}"]


def recipe(*options: str):
    return eh.load_recipe("smoke", list(options))


def parts_of(*options: str):
    loaded = recipe(*options)
    splits = load_data(loaded, "data", False)
    return build_parts(loaded, splits, torch.device("cpu"), load_outliers(loaded, splits, "data", False))


def stepped(parts, n: int = 32, forward=None):
    train = parts.splits.train
    x, y = train.images[:n].float() / 255, train.labels[:n]
    return step.train_step(parts, forward or parts.model, x, y)


def test_supcon_compares_two_views_of_every_image_and_its_head_sees_detached_features(monkeypatch) -> None:
    parts = parts_of("objective={supcon: {head_epochs: 1, temperature: 0.2}}", *SUPCON)
    seen = {}

    def features(images):
        seen["images"], seen["features"] = images, type(parts.model).features(parts.model, images)
        seen["features"].retain_grad()
        return seen["features"]

    monkeypatch.setattr(parts.model, "features", features)
    projection = {name: v.clone() for name, v in parts.objective.projection.state_dict().items()}
    loss, terms, _ = stepped(parts)
    first, second = seen["images"].split(32)
    assert not torch.equal(first, second)
    views = torch.stack([seen["features"][:32], seen["features"][32:]], dim=1)
    labels = parts.splits.train.labels[:32]
    parts.objective.projection.load_state_dict(projection)
    wanted = supcon_loss(parts.objective.projection(views), labels, 0.2)
    torch.testing.assert_close(terms["supcon"], wanted.detach())
    torch.testing.assert_close(loss, terms["supcon"] + terms["ce"])
    # the head's cross-entropy puts nothing on the features
    (slope,) = torch.autograd.grad(wanted, views)
    torch.testing.assert_close(seen["features"].grad, torch.cat([slope[:, 0], slope[:, 1]]), rtol=1e-3, atol=1e-7)


def test_the_projection_and_the_head_learn_while_the_encoder_does() -> None:
    parts = parts_of("objective={supcon: {head_epochs: 1}}", *SUPCON, "schedule.name=constant")
    before = {name: w.detach().clone() for name, w in parts.model.named_parameters()}
    projection = parts.objective.projection[0].weight.detach().clone()
    stepped(parts)
    moved = {name for name, w in parts.model.named_parameters() if not torch.equal(w, before[name])}
    assert moved == set(before)
    assert not torch.equal(projection, parts.objective.projection[0].weight)


def test_in_the_last_epochs_the_head_learns_alone_on_frozen_features_with_a_schedule_of_its_own(tmp_path) -> None:
    options = ["objective={supcon: {head_epochs: 1}}", *SUPCON, "training.log_every=1", "training.max_steps=null"]
    run = eh.train(recipe(*options), tmp_path / "a", progress=False)
    rates = [
        row["lr"]
        for row in map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
        if row["split"] == "train"
    ]
    assert len(rates) == 42
    # A row has the rate that its step leaves behind: the first stage falls to 0 over 28 steps, the second begins anew
    assert rates[26] < 1e-3
    assert rates[27] == pytest.approx(0.1)
    assert rates[41] < 1e-3
    resumed = load_state(run.folder / "checkpoints" / "last.state.pt")["parts"]["model"]
    eh.train(recipe(*options, "training.epochs=2", "objective.supcon.head_epochs=0"), tmp_path / "b", progress=False)
    assert load_state(run.folder / "checkpoints" / "last.state.pt")["parts"]["progress"]["best"][2] == 42
    with pytest.raises(CheckpointError, match="stages of supcon are counted in epochs"):
        eh.train(resume=run.folder, overrides=["training.epochs=4"], progress=False)
    encoder = load_state(tmp_path / "b" / "checkpoints" / "last.state.pt")["parts"]["model"]
    same = {name for name, value in encoder.items() if torch.equal(value, resumed[name])}
    assert set(encoder) - same == {"head.weight", "head.bias"}


def test_the_best_epoch_is_one_of_the_heads(tmp_path, monkeypatch) -> None:
    found = iter([0.9, 0.8, 0.5])
    monkeypatch.setattr(classify, "validate", lambda *_: {"accuracy": next(found), "nll": 1.0})
    options = ["objective={supcon: {head_epochs: 1}}", *SUPCON, "training.max_steps=null"]
    assert eh.train(recipe(*options), tmp_path / "a", progress=False).metrics == {
        "accuracy": 0.5,
        "nll": 1.0,
        "step": 42,
    }


def test_clipping_counts_the_projections_gradient_too() -> None:
    parts = parts_of("objective={supcon: {head_epochs: 1}}", *SUPCON, "training.grad_clip=0.001")
    stepped(parts)
    weights = [*parts.model.parameters(), *parts.objective.parameters()]
    norm = sum((weight.grad**2).sum() for weight in weights) ** 0.5
    assert norm.item() == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["objective={supcon: {head_epochs: 3}}"], r"head_epochs = 3: must leave epochs of 3"),
        (["objective={supcon: {}}", "training.max_steps=5"], "leave out training.max_steps"),
        (["objective={supcon: {}}", "data.augment.mixup_alpha=0.3"], "does not go with mixup"),
        (["objective={supcon: {}}", "model={name: torchvision/resnet18}"], r"needs model.name=wide_resnet"),
        (["objective={supcon: {}, ce: {}}"], "does not go with ce"),
        (["objective={supcon: {}}", "schedule.name=one_cycle"], "take cosine"),
        (["objective={ce: {}}", "training.precision=fp16", "optimizer.sam_rho=0.1"], "the scaler of fp16"),
        (["objective={ce: {}, jem: {inner_steps: 1, clip: 1.0}}", "model={name: torchvision/resnet18}"], "first layer"),
        (["objective={ce: {}, outlier_exposure: {}}", "reference={set: noise}", "evaluation.ood=[noise]"], "OOD test"),
        (["objective={ce: {}, outlier_exposure: {}}", "reference={set: 'digits:0-6'}"], "trained or tested on"),
    ],
)
def test_what_supcon_cannot_go_with_is_refused(options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(*SUPCON, "training.max_steps=null", *options)


def test_logit_norm_is_the_loss_of_its_function() -> None:
    parts = parts_of("objective={logit_norm: {temperature: 0.5, weight: 2.0}}")
    seen = []
    loss, terms, _ = stepped(parts, forward=lambda images: seen.append(parts.model(images)) or seen[-1])
    wanted = logit_norm_loss(seen[0].detach(), parts.splits.train.labels[:32], 0.5)
    torch.testing.assert_close(terms["logit_norm"], wanted)
    torch.testing.assert_close(loss, 2 * wanted)


@pytest.mark.parametrize("source", ["{families: [inversions]}", "{set: photos}"])
def test_the_energy_margin_holds_off_the_reference_images(source: str) -> None:
    parts = parts_of(
        "objective={ce: {}, energy_margin: {inside: -6.0, outside: -1.0, weight: 0.3}}", f"reference={source}"
    )
    seen = {}

    def forward(images):
        seen["images"], seen["logits"] = images, parts.model(images)
        return seen["logits"]

    loss, terms, _ = stepped(parts, forward=forward)
    assert seen["images"].shape == (48, 1, 8, 8)
    logits = seen["logits"].detach()
    wanted = energy_margin_loss(logits[:32], logits[32:], -6.0, -1.0)
    torch.testing.assert_close(terms["energy_margin"], wanted)
    torch.testing.assert_close(loss, terms["ce"] + 0.3 * wanted)
    if "set" in source:
        photos = (parts.outliers.images.float() / 255).flatten(1)
        assert all((photos == image).all(1).any() for image in seen["images"][32:].flatten(1))


def test_outlier_exposure_is_the_loss_of_its_function() -> None:
    parts = parts_of("objective={ce: {}, outlier_exposure: {weight: 0.7}}", "reference={families: [smooth]}")
    seen = []
    loss, terms, _ = stepped(parts, forward=lambda images: seen.append(parts.model(images)) or seen[-1])
    wanted = outlier_exposure_loss(seen[0][32:].detach())
    torch.testing.assert_close(terms["outlier_exposure"], wanted)
    torch.testing.assert_close(loss, terms["ce"] + 0.7 * wanted)


def test_outliers_by_name_are_drawn_anew_by_the_runs_generator() -> None:
    parts = parts_of("objective={ce: {}, energy_margin: {}}", "reference={set: photos}")
    seen = []
    for _ in range(2):
        stepped(parts, forward=lambda images: seen.append(images) or parts.model(images))
    assert not torch.equal(seen[0][32:], seen[1][32:])


def test_a_missing_set_of_outliers_is_named_before_anything_is_written(tmp_path) -> None:
    options = ["objective={ce: {}, energy_margin: {}}", "reference={set: 'npz:%s'}"]
    with pytest.raises(DataError, match=r"none\.npz"):
        eh.train(recipe(options[0], options[1] % (tmp_path / "none.npz")), tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 8, 8), dtype=np.uint8), y=np.zeros(3, dtype=np.int64))
    run = eh.train(recipe(options[0], options[1] % (tmp_path / "x.npz")), tmp_path / "b", progress=False)
    assert run.metrics["step"] == 6
    assert json.loads((run.folder / "env.json").read_text())["data"]["reference"]["n"] == 3
    np.savez(tmp_path / "x.npz", x=np.ones((3, 8, 8), dtype=np.uint8), y=np.zeros(3, dtype=np.int64))
    with pytest.raises(CheckpointError, match=r"reference\.set is not that of the run"):
        eh.train(resume=run.folder, overrides=["training.max_steps=8"], progress=False)
