"""Several processes against one: what R of them with shares of a batch compute, and one that does all their shares.

The one process prepares each share with the random numbers of its process (crops, noise, chains of that process's part
of the replay buffer), and then takes a single step on the whole batch. The rest must come out the same: loss, terms,
gradients, bank, running statistics, weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ebmhybrid as eh
from ebmhybrid.codes import Posterior
from ebmhybrid.data import ImageSet, Splits, batch_indices
from ebmhybrid.data.order import share_of
from ebmhybrid.training import classify, encode
from ebmhybrid.training.build import build_parts
from ebmhybrid.training.distributed import World
from ebmhybrid.training.replica import replicate
from ebmhybrid.training.setup import Parts, epoch_generator
from ebmhybrid.training.step import task_of, train_step

STEPS, BATCH, IMAGES = 20, 16, 47  # three batches an epoch, the last of 15
CLASSES = 4

LIVE = ["objective.hdge.form=paper", "objective.hdge.normalize=none", "objective.hdge.temperature=1.0"]
RELEASED = ["objective.hdge.form=released", "objective.hdge.normalize=l2", "objective.hdge.temperature=0.1"]
NO_HDGE = ["objective.hdge=null"]
CE = [*NO_HDGE, "objective.ce.weight=1.0"]
REFERENCE = ["reference.families=[smooth,inversions]", "reference.fraction=0.5"]
ALL_HELD_OFF = "objective={hdge: null, ce: {}, energy_margin: {}, outlier_exposure: {}, nce: {offset: 0.5}}"
JEM = ["objective.jem.steps=2", "objective.jem.buffer_size=64", "objective.jem.reinit=0.2"]
CODES = ["model.options.latent=4", "model.options.width=4", "optimizer.lr=0.01"]
GCRL = ["optimizer.lr=0.01", "schedule.warmup_steps=0"]
GCRL += [f"model.options.{key}" for key in ("empty=0.0", "dim=16", "layers=1", "patch=4", "levels=4", "dropout=0.0")]


def bank(negatives: str, *more: str) -> list[str]:
    form = [] if more[: len(LIVE)] == tuple(LIVE) else RELEASED
    return [f"objective.hdge.negatives={negatives}", "objective.hdge.bank_size=64", *form, *more]


CASES: dict[str, list[str]] = {
    "hdge bank": bank("bank"),
    "hdge bank smoothed": bank("bank", "objective.hdge.label_smoothing=0.1"),
    "hdge bank of blocks": [*bank("bank"), "objective.hdge.bank_size=8192", "training.batch_size=32"],
    "hdge batch": bank("batch"),
    "hdge bank+batch": bank("bank+batch", "training.grad_clip=1.0"),
    "hdge paper bank": bank("bank", *LIVE),
    "hdge paper batch": bank("batch", *LIVE),
    "hdge paper bank+batch": bank("bank+batch", *LIVE, "training.grad_clip=1.0"),
    "hdge paper batch smoothed": bank("batch", *LIVE, "objective.hdge.label_smoothing=0.1"),
    "hdge batch with reference": bank("batch", *REFERENCE),
    "hdge paper batch with reference": bank("batch", *LIVE, *REFERENCE),
    "hdge bank+batch with reference": bank("bank+batch", *REFERENCE, "training.grad_clip=1.0"),
    "hdge bank+batch with weighted reference": bank(
        "bank+batch", *REFERENCE, "objective.hdge.reference_weight=4.0", "training.grad_clip=1.0"
    ),
    "hdge batch mixup": bank("batch", "data.augment.mixup_alpha=1.0"),
    "hdge paper bank+batch mixup": bank("bank+batch", *LIVE, "data.augment.mixup_alpha=1.0", "training.grad_clip=1.0"),
    "hdge sam": bank("bank+batch", *REFERENCE, "optimizer.sam_rho=0.1", "training.grad_clip=1.0"),
    "hdge ema augmented": bank("batch", "training.ema=0.9", "data.augment.pad=1", "data.augment.noise_std=0.1"),
    "ce z_loss": [*CE, "objective.z_loss.weight=0.01", "objective.ce.label_smoothing=0.1"],
    "ce linear_energy": [*CE, "training.linear_energy=true"],
    "linear_energy held off": [*REFERENCE, "training.linear_energy=true", ALL_HELD_OFF],
    "logit_norm": [*NO_HDGE, "objective.logit_norm.weight=1.0"],
    "ce accumulated": [*CE, "model.norm=none", "training.accumulate=2"],
    "supcon": [*NO_HDGE, "objective.supcon.head_epochs=2", "training.max_steps=null", "data.augment.pad=1"],
    "supcon head": [*NO_HDGE, "objective.supcon.head_epochs=9", "training.max_steps=null", "data.augment.pad=1"],
    "energy_margin": [*CE, "objective.energy_margin.weight=0.1", *REFERENCE],
    "outlier_exposure": [*CE, "objective.outlier_exposure.weight=0.5", *REFERENCE],
    "climbing references": [
        *CE,
        "objective.outlier_exposure={}",
        "reference={families: [collages, warps], ascent_steps: 2}",
    ],
    "nce": [*CE, "objective.nce={reference_weight: 0.5, learn_offset: true}", *REFERENCE],
    "jem": [*CE, *JEM, "objective.jem.l2=0.1"],
    "jem conditional": [*CE, *JEM, "objective.jem.target=conditional", "objective.jem.augment=false"],
    "jem class gaussian": [*CE, *JEM, "objective.jem.chains=class", "objective.jem.start=gaussian"],
    "jem inner": [*CE, *JEM, "objective.jem.inner_steps=2", "objective.jem.clip=1.0"],
    "hdge jem": [*bank("bank+batch", "training.grad_clip=1.0"), *JEM],
    "vae": [*CODES, "objective.latent.generative=vae", "objective.latent.contrast=none"],
    "mim": [*CODES, "objective.latent.contrast=none"],
    "cmim": [*CODES, "objective.latent.contrast=cmim"],
    "cvae": [*CODES, "objective.latent.generative=vae"],
    "infonce": [*CODES, "objective.latent={generative: none, contrast: infonce, views: 2}", "data.augment.pad=1"],
    "infonce mim": [*CODES, "objective.latent.contrast=infonce"],
    "gcrl": [*GCRL, "data.augment.noise_std=0.05"],
}
UNSYNCED = {"hdge running means": bank("bank")}  # each process normalises by its own share


def recipe(name: str) -> Any:
    options = (CASES | UNSYNCED)[name]
    base = "digits_gcrl" if name == "gcrl" else "digits_cmim" if options[: len(CODES)] == CODES else "smoke"
    common = ["training.max_steps=null", "training.epochs=10", f"training.batch_size={BATCH}", "optimizer.lr=0.05"]
    sync = f"training.sync_batch_norm={str(name in CASES).lower()}"
    return eh.load_recipe(base, [*common, sync, *options])


def image_set() -> ImageSet:
    """Twice as many images for the larger batch, so that epochs are alike."""
    draw = torch.Generator().manual_seed(5)
    labels = torch.arange(2 * IMAGES) % CLASSES
    pixels = torch.randint(64, (2 * IMAGES, 1, 8, 8), dtype=torch.uint8, generator=draw)
    pixels += (40 * labels).to(torch.uint8)[:, None, None, None]
    return ImageSet("shades", pixels, labels, tuple("abcd"))


def splits_for(batch: int) -> Splits:
    images = image_set().select(range(IMAGES if batch == BATCH else 2 * IMAGES - 30))
    return Splits(images, images, images)


@contextmanager
def known_codes() -> Iterator[None]:
    """Codes drawn with noise that is a function of the image: processes share no global generator."""
    drawn = Posterior.sample

    def sample(self: Posterior, generator: torch.Generator | None = None) -> Tensor:
        return self.mean + self.log_std.exp() * torch.sin(7 * self.mean.detach())

    Posterior.sample = sample  # type: ignore[method-assign]
    try:
        yield
    finally:
        Posterior.sample = drawn  # type: ignore[method-assign]


def in_float64(parts: Parts) -> Parts:
    """The network and the objective in float64, whatever their inputs; images and chains stay float32."""

    def doubled(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)

    for module in [parts.model, parts.objective]:
        module.double()
    for module in [*parts.model.modules(), *parts.objective.children()]:
        module.register_forward_pre_hook(doubled)
    if parts.average is not None:
        parts.average.double()
    return parts


def run(name: str, world: World) -> dict[str, Any]:
    """What a process sees of some steps; the batch's shares of `world` if there are others, else the whole batch."""
    chosen = recipe(name)
    splits = splits_for(chosen.training.batch_size)
    torch.manual_seed(0)
    with known_codes():
        parts = in_float64(build_parts(chosen, splits, torch.device("cpu"), world=world))
        parts.replica = replicate(parts, task_of(parts), parts.model)
        return steps(parts)


def steps(parts: Parts) -> dict[str, Any]:
    found: dict[str, Any] = {"losses": [], "gradients": [], "correct": []}
    at, world, train = parts.progress, parts.world, parts.splits.train
    share = {"rank": world.rank, "processes": world.size}
    while at.step < STEPS:
        parts.model.train(not parts.head_only)
        parts.objective.train()
        if parts.head_begins:
            parts.replica = replicate(parts, task_of(parts), parts.model)
        order = epoch_generator(0, at.epoch)
        chunks = batch_indices(len(train), parts.recipe.training.batch_size, generator=order, **share)
        for (images, labels), total in zip(train.fetch(chunks), parts.batch_sizes, strict=True):
            loss, terms, correct = train_step(parts, parts.model, images, labels, total)
            at.step += 1
            assert not terms.pop("asked", False)
            found["losses"].append({"loss": loss, **terms})
            found["correct"].append(correct)
            weights = [*parts.model.parameters(), *parts.objective.parameters()]
            gradients = [weight.grad.flatten() for weight in weights if weight.grad is not None]
            found["gradients"].append(torch.cat(gradients).clone() if at.step in (1, 2, 3, STEPS) else None)
            if at.step == STEPS:
                break
        at.epoch += 1
    found["weights"] = {name: value.clone() for name, value in parts.model.state_dict().items()}
    found["objective"] = {n: v for n, v in parts.objective.state_dict().items() if isinstance(v, Tensor)}
    found["average"] = None if parts.average is None else parts.average.state_dict()
    found["chains"] = {} if parts.sampler is None else parts.sampler.chains_of_all(world)
    found["figures"] = task_of(parts).figures(parts)
    return found


def one_that_does_all(name: str, processes: int) -> dict[str, Any]:
    """One process on whole batches, each share of which is prepared as its process would."""
    chosen = recipe(name)
    splits = splits_for(chosen.training.batch_size)
    torch.manual_seed(0)
    with known_codes():
        shares = [
            build_parts(chosen, splits, torch.device("cpu"), world=World(rank, processes)) for rank in range(processes)
        ]
        parts = in_float64(build_parts(chosen, splits, torch.device("cpu")))
        for share in shares:
            share.model, share.progress = parts.model, parts.progress
        task = task_of(parts)
        prepare = task.prepare

        def all_shares(given: Parts, forward: Any, images: Tensor, labels: Tensor) -> Any:
            cuts = [slice(*share_of(len(labels), rank, processes)) for rank in range(processes)]
            pieces = [prepare(part, forward, images[cut], labels[cut]) for part, cut in zip(shares, cuts, strict=True)]
            return joined(pieces, [len(labels[cut]) for cut in cuts])

        module = classify if task is classify else encode
        module.prepare = all_shares  # type: ignore[assignment]
        try:
            found = steps(parts)
        finally:
            module.prepare = prepare  # type: ignore[assignment]
        if parts.sampler is not None:
            views = [s.sampler.buffer.images.unflatten(0, (CLASSES, -1)) for s in shares]  # type: ignore[union-attr]
            found["chains"] = {"buffer.images": torch.cat(views, dim=1).flatten(0, 1)}
    return found


def joined(pieces: list[Any], counts: list[int]) -> Any:
    """Prepared shares as one batch: images first, and the reference images behind all of them."""
    parts: dict[str, Any] = {}
    for field in fields(pieces[0]):
        values = [getattr(piece, field.name) for piece in pieces]
        if values[0] is None:
            parts[field.name] = None
            continue
        own = [value[:count] for value, count in zip(values, counts, strict=True)]
        behind = [value[count:] for value, count in zip(values, counts, strict=True)]
        parts[field.name] = torch.cat([*own, *behind])
    return type(pieces[0])(**parts)


def worker(rank: int, folder: str, processes: int, names: list[str]) -> None:
    """One of several processes: all cases, one after the other, each one's findings in a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=processes,
        timeout=timedelta(minutes=3),
    )
    for name in names:
        torch.save(run(name, World(rank, processes)), Path(folder) / f"{name}.{rank}.pt")
    torch.distributed.destroy_process_group()
