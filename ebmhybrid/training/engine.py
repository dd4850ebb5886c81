"""One visible training loop: everything it does is in this file, in the order in which it happens."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebmhybrid.data import ImageSet, batches
from ebmhybrid.data.tokens import TokenSet
from ebmhybrid.errors import EbmhybridError, TrainingError, UsageError
from ebmhybrid.kernels.support import check_backend
from ebmhybrid.schema import Recipe
from ebmhybrid.training import checkpoint
from ebmhybrid.training.build import build_parts, load_data, load_outliers
from ebmhybrid.training.guard import DivergedError, check_weights, divergence, roll_back
from ebmhybrid.training.interrupt import Interrupt
from ebmhybrid.training.log import RunLog
from ebmhybrid.training.meter import Meter
from ebmhybrid.training.records import check_unused, fresh_folder, locked, open_folder, save, write_records
from ebmhybrid.training.resume import restore, resumed_recipe
from ebmhybrid.training.setup import Parts, epoch_generator
from ebmhybrid.training.step import task_of, train_step


@dataclass(frozen=True)
class Run:
    """What `train` returns: where the run lies, its best validation figures, the signal that ended it, rollbacks."""

    folder: Path
    metrics: dict[str, float]
    signal: int | None = None
    rollbacks: int = 0


def train(
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    *,
    resume: str | Path | None = None,
    overrides: list[str] | None = None,
    data_dir: str | Path = "data",
    download: bool = True,
    device: str = "auto",
    progress: bool = True,
) -> Run:
    """Train what a recipe describes and keep the run in a directory.

    Arguments:
        recipe: from `load_recipe`. Left out when resuming: the run has its own.
        out: a directory that does not exist or is empty; by default runs/<recipe>/<date-time>.
        resume: a run directory to go on with from its last saved step; on a CPU the result is the same to the bit.
        overrides: KEY=VALUE changes to the resumed run's recipe: how long it trains, logs or how it is evaluated.
            More epochs stretch a cosine schedule.
        data_dir, download: as in `ebmhybrid.data.load_set`.
        device: auto | cpu | cuda | cuda:N ...
        progress: False is silent; otherwise a bar on a terminal and plain lines elsewhere.

    Raises:
        EbmhybridError: a recipe, data or a directory that cannot be used (before anything is written), or a loss
            that stops being finite.
    """
    if (recipe is None) == (resume is None) or (recipe is not None and not isinstance(recipe, Recipe)):
        raise UsageError("train takes either a recipe, as load_recipe returns it, or a run to resume")
    if recipe is not None and overrides:
        raise UsageError("overrides belong to resume; give a recipe's to load_recipe")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("training on several processes is not there yet: WORLD_SIZE is more than 1; start one process")
    if resume is not None:
        recipe = resumed_recipe(Path(resume), overrides or [])
    assert recipe is not None
    where = pick_device(device)
    check_backend(None)
    if out is not None:
        check_unused(Path(out))  # before anything is fetched
    # Dropout draws from the global generator; forked, so that the caller's stays as it was.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        splits = load_data(recipe, str(data_dir), download)
        outliers = load_outliers(recipe, splits, str(data_dir), download)
        parts = build_parts(recipe, splits, where, outliers, resuming=resume is not None)
        if resume is None:
            folder = open_folder(Path(out) if out else fresh_folder(Path("runs", recipe.name)))
        else:
            folder = Path(resume)
            restore(parts, folder)
        with locked(folder):
            write_records(folder, parts)
            if parts.sampler is not None and resume is None:
                save(parts, folder)  # so that there is a state to go back to before the first epoch's end
            return _run(parts, folder, progress)


def pick_device(name: str) -> torch.device:
    """A device by name, checked; `auto` is the first accelerator there is, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has errors of its own for being absent
        reason = str(error).strip().split("\n")[0]
        raise EbmhybridError(f"device {name!r} cannot be used: {reason}") from error
    return device


def _run(parts: Parts, folder: Path, show: bool) -> Run:
    at = parts.progress
    # Calling the compiled network leaves its weights, which are saved and averaged, where they are.
    forward = torch.compile(parts.model) if parts.recipe.training.compile else parts.model
    train_set = parts.splits.train.to(parts.device)
    log = RunLog(folder, parts.total_steps, at.step, show)
    log.say(
        f"{parts.recipe.name}: {len(train_set)} training {_units(parts)}, {parts.total_steps} steps, {parts.device}, "
        f"{str(parts.precision).removeprefix('torch.')}; {folder}"
    )
    try:
        with Interrupt() as interrupt:
            while at.step < parts.total_steps and not interrupt.signal:
                try:
                    meter = _epoch(parts, forward, train_set, log, interrupt, folder)
                    if interrupt.signal and at.step_in_epoch < parts.steps_per_epoch and at.step < parts.total_steps:
                        save(parts, folder)
                    else:
                        end_epoch(parts, folder, log, meter)
                except DivergedError as error:
                    roll_back(parts, folder, log, str(error))
        if interrupt.signal:
            log.say(f"stopped at step {at.step}; go on with: ebmhybrid train --resume {folder}", always=True)
    finally:
        log.write_csv()
        log.close()
    return Run(folder, best_figures(parts), interrupt.signal, at.rollbacks)


def _epoch(parts: Parts, forward: Any, train_set: ImageSet, log: RunLog, interrupt: Interrupt, folder: Path) -> Meter:
    """The steps of an epoch, or what is left of it: after a resume, up to a signal or the last step."""
    settings, at = parts.recipe.training, parts.progress
    meter = Meter()
    parts.model.train(not parts.head_only)  # a frozen encoder keeps its statistics too
    parts.objective.train()
    epoch_batches = batches(
        train_set.images,
        train_set.labels,
        settings.batch_size,
        generator=epoch_generator(parts.recipe.seed, at.epoch),
        start=at.step_in_epoch,
    )
    for images, labels in epoch_batches:
        loss, terms, correct = train_step(parts, forward, images, labels)
        at.step += 1
        at.step_in_epoch += 1
        meter.add(loss, terms, correct, len(labels))
        end = at.step_in_epoch == parts.steps_per_epoch or at.step == parts.total_steps or bool(interrupt.signal)
        pause = end or at.step % settings.log_every == 0
        # Reading the loss waits for the device: each step on a CPU, where it is free, else at each pause.
        if pause or parts.device.type == "cpu":
            check(loss, terms, parts, folder)
        if end and parts.sampler is not None:
            check_weights(parts, terms)
        if pause:
            shown = meter.read()
            log.record("train", at.step, at.epoch, {**shown, "lr": float(parts.scheduler.get_last_lr()[0])})
            log.advance(at.step, shown)
        if end:
            break
    return meter


def check(loss: Tensor, terms: dict[str, Tensor], parts: Parts, folder: Path) -> None:
    """Stop at a loss that is no longer finite: the weights it would lead to are worth nothing.

    Training by samples is watched more closely, and goes back instead.
    """
    if parts.sampler is not None:
        if reason := divergence(loss, terms, parts.recipe.guard):
            raise DivergedError(reason)
        return
    if torch.isfinite(loss):
        return
    values = ", ".join(f"{name} = {value.item():g}" for name, value in terms.items())
    at = parts.progress
    raise TrainingError(
        f"the loss is not finite at step {at.step}, epoch {at.epoch + 1} ({values}); {_advice(parts, folder)}"
    )


def _advice(parts: Parts, folder: Path) -> str:
    kept = folder / "checkpoints" / "last.safetensors"
    last = f"the last good weights are {kept}" if kept.is_file() else "no weights were saved yet"
    return (
        f"{last}. Try a smaller optimizer.lr than {parts.recipe.optimizer.lr:g}, training.grad_clip or "
        "schedule.warmup_steps"
    )


def end_epoch(parts: Parts, folder: Path, log: RunLog, meter: Meter) -> None:
    """Validate, say so, keep the weights, and keep them apart if they are the best so far by the task's figures."""
    at = parts.progress
    if parts.head_begins:
        at.best = []  # a head on an unfinished encoder is no rival of one on the finished
    task = task_of(parts)
    trained, found = meter.read(), task.figures(parts)
    rank = [sign * found[name] for name, sign in task.RANKED.items()]
    if not all(map(math.isfinite, rank)):
        if parts.sampler is not None:
            raise DivergedError("the validation loss is not finite")
        raise TrainingError(f"the validation loss is not finite at step {at.step}: {_advice(parts, folder)}")
    log.record("validation", at.step, at.epoch, found)
    # After a resume the training figures are those of the epoch's remaining steps.
    part = f"  (trained on {meter.images} {_units(parts)} since resuming)" if meter.steps < at.step_in_epoch else ""
    epochs = -(-parts.total_steps // parts.steps_per_epoch)
    log.say(
        f"epoch {at.epoch + 1}/{epochs}  loss {trained['loss']:.4f}  "
        + "".join(f"{name} {trained[name]:.4f}  " for name in meter.terms)
        + f"{task.said(trained, found)}{part}  {trained['images_per_second']:.0f} {_units(parts)}/s  "
        f"left {log.time_left(at.step)}"
    )
    if at.step_in_epoch == parts.steps_per_epoch:  # else max_steps cut it short, and a resumed run goes on within it
        at.epoch, at.step_in_epoch = at.epoch + 1, 0
    if not at.best or rank > at.best[:-1]:
        at.best = [*rank, at.step]
        checkpoint.save_weights(folder / "checkpoints" / "best.safetensors", parts.deployed, parts.metadata)
    save(parts, folder)


def _units(parts: Parts) -> str:
    return "sequences" if isinstance(parts.splits.train, TokenSet) else "images"


def best_figures(parts: Parts) -> dict[str, float]:
    """The validation figures of the best weights, and their step."""
    if not parts.progress.best:
        return {}
    *rank, step = parts.progress.best
    ranked = zip(task_of(parts).RANKED.items(), rank, strict=True)
    return {name: sign * value for (name, sign), value in ranked} | {"step": step}
