"""One visible training loop: everything it does is in this file, in the order in which it happens."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebmhybrid.data import ImageSet, Splits, batch_indices
from ebmhybrid.data.streamed import LEFT_OUT
from ebmhybrid.errors import EbmhybridError, UsageError
from ebmhybrid.kernels.support import check_backend
from ebmhybrid.schema import Recipe
from ebmhybrid.training.build import build_parts, load_data, load_outliers
from ebmhybrid.training.distributed import ALONE, World, joined
from ebmhybrid.training.guard import DivergedError, check_weights, roll_back
from ebmhybrid.training.interrupt import Interrupt
from ebmhybrid.training.log import NoLog, RunLog
from ebmhybrid.training.meter import Meter
from ebmhybrid.training.randomness import kept_random_state
from ebmhybrid.training.records import (
    check_unused,
    fresh_folder,
    locked,
    mark_finished,
    open_folder,
    save,
    write_records,
)
from ebmhybrid.training.replica import replicate
from ebmhybrid.training.resume import find_start, restore, with_state
from ebmhybrid.training.setup import Parts, epoch_generator
from ebmhybrid.training.step import task_of, train_step
from ebmhybrid.training.verdict import best_figures, check, end_epoch, units

PATIENCE_S = 5.0


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
    strict: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> Run:
    """Train what a recipe describes and keep the run in a directory.

    Arguments:
        recipe: from `load_recipe`. Left out when resuming: the run has its own.
        out: a directory that does not exist or is empty; by default runs/<recipe>/<date-time>.
        resume: a run directory to go on with from its last saved step; on a CPU the result is the same to the bit.
            "auto", beside a recipe: the run in `out`, or the newest unfinished one of runs/<recipe>, if there is one.
        overrides: KEY=VALUE changes to the resumed run's recipe: how long it trains, logs or how it is evaluated.
            More epochs stretch a cosine schedule.
        data_dir, download, strict: as in `ebmhybrid.data.load_set`.
        device: auto | cpu | cuda | cuda:N ...
        progress: False is silent; otherwise a bar on a terminal and plain lines elsewhere.

    Raises:
        EbmhybridError: a recipe, data or a directory that cannot be used (before anything is written), or a loss
            that stops being finite.
    """
    auto = resume == "auto"
    if not (isinstance(recipe, Recipe) if auto or resume is None else recipe is None):
        raise UsageError("train takes either a recipe, as load_recipe returns it, or a run to resume")
    if recipe is not None and overrides:
        raise UsageError("overrides belong to resume; give a recipe's to load_recipe")
    check_backend(None)
    with joined(device) as world, kept_random_state(), ExitStack() as stack:
        where = pick_device(device, world)
        start = world.told(lambda: find_start(recipe, out, resume, overrides or []))
        if start.folder is not None:
            with world.together():
                if world.main:
                    stack.enter_context(locked(start.folder))
            start = world.told(lambda: with_state(start))
        splits, outliers = world.main_first(lambda: _data(start.recipe, str(data_dir), download, strict))
        with world.together():
            parts = build_parts(start.recipe, splits, where, outliers, resuming=start.state is not None, world=world)
            notes = [*start.notes, *restore(parts, start)]
        folder = world.told(lambda: start.folder or _new_folder(start.recipe, out))
        with world.together():
            if world.main:
                if start.folder is None:
                    stack.enter_context(locked(folder))
                    check_unused(folder)  # another process may have begun a run there meanwhile
                write_records(folder, parts)
        if start.state is None:
            save(parts, folder)  # so that there is a state to go back to before the first epoch's end
        return _run(parts, folder, progress, notes)


def _new_folder(recipe: Recipe, out: str | Path | None) -> Path:
    return open_folder(Path(out) if out else fresh_folder(Path("runs", recipe.name)))


def _data(recipe: Recipe, data_dir: str, download: bool, strict: bool) -> tuple[Splits, ImageSet | None]:
    splits = load_data(recipe, data_dir, download, strict)
    return splits, load_outliers(recipe, splits, data_dir, download)


def pick_device(name: str, world: World = ALONE) -> torch.device:
    """A device by name, checked; `auto` is the first accelerator there is, else the CPU.

    Of several processes on a machine each has an accelerator of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and world.size > 1:
        name = f"cuda:{world.local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
        if world.size > 1 and device.type == "cuda":
            torch.cuda.set_device(device)
    except Exception as error:  # each backend has errors of its own for being absent
        reason = str(error).strip().split("\n")[0]
        raise EbmhybridError(f"device {name!r} cannot be used: {reason}") from error
    return device


def _run(parts: Parts, folder: Path, show: bool, notes: list[str]) -> Run:
    at, world = parts.progress, parts.world
    # Calling the compiled network leaves its weights, which are saved and averaged, where they are.
    forward = torch.compile(parts.model) if parts.recipe.training.compile else parts.model
    parts.replica = replicate(parts, task_of(parts), forward)
    train_set = parts.splits.train.to(parts.device)
    log: RunLog | NoLog = RunLog(folder, parts.total_steps, at.epoch, at.step, show) if world.main else NoLog()
    with log:
        processes = f"{world.size} processes, " if world.size > 1 else ""
        log.say(
            f"{parts.recipe.name}: {len(train_set)} training {units(parts)}, {parts.total_steps} steps, {processes}"
            f"{parts.device}, {str(parts.precision).removeprefix('torch.')}; {folder}"
        )
        for note in [*notes, *(note for note in train_set.notes if LEFT_OUT in note)]:
            log.say(note, always=True)
        with Interrupt(patience=PATIENCE_S if world.size > 1 else 0.0) as interrupt:
            parts.asked = lambda: interrupt.signal is not None
            stop = 0
            while at.step < parts.total_steps and not (stop := world.highest(interrupt.signal or 0)):
                try:
                    if (
                        _epoch(parts, forward, train_set, log, folder)
                        and at.step_in_epoch < parts.steps_per_epoch
                        and at.step < parts.total_steps
                    ):
                        log.sync()
                        save(parts, folder)
                    else:
                        end_epoch(parts, folder, log)
                except DivergedError as error:
                    roll_back(parts, folder, log, str(error))
        if at.step >= parts.total_steps:
            with world.together():
                if world.main:
                    mark_finished(folder)
        elif stop:
            log.say(f"stopped at step {at.step}; go on with: ebmhybrid train --resume {folder}", always=True)
    return Run(folder, best_figures(parts), stop or None, at.rollbacks)


def _epoch(parts: Parts, forward: Any, train_set: Any, log: RunLog | NoLog, folder: Path) -> bool:
    """The steps of an epoch, or what is left of it after a resume; whether a signal ended it before its last step."""
    settings, at, world = parts.recipe.training, parts.progress, parts.world
    parts.model.train(not parts.head_only)  # a frozen encoder keeps its statistics too
    parts.objective.train()
    if at.step_in_epoch == 0:
        parts.meter = Meter()
        if parts.head_begins:
            parts.replica = replicate(parts, task_of(parts), forward)
    order = epoch_generator(parts.recipe.seed, at.epoch)
    share = {"start": at.step_in_epoch, "rank": world.rank, "processes": world.size}
    chunks = batch_indices(len(train_set), settings.batch_size, generator=order, **share)
    for (images, labels), total in zip(train_set.fetch(chunks), parts.batch_sizes[at.step_in_epoch :], strict=True):
        loss, terms, correct = train_step(parts, forward, images, labels, total)
        at.step += 1
        at.step_in_epoch += 1
        last = at.step_in_epoch == parts.steps_per_epoch or at.step == parts.total_steps
        pause = last or at.step % settings.log_every == 0
        saves = settings.save_every is not None and at.step % settings.save_every == 0 and not last
        stop = _asked_to_stop(parts, terms, pause or saves)
        parts.meter.add(loss, terms, correct, total)
        # Reading the loss waits for the device: each step on a CPU, where it is free, else at each pause.
        if pause or saves or stop or parts.device.type == "cpu":
            check(loss, terms, parts, folder)
        if (last or saves or stop) and parts.sampler is not None:
            check_weights(parts, terms)
        if pause:
            shown = parts.meter.read()
            log.record("train", at.step, at.epoch, {**shown, "lr": float(parts.scheduler.get_last_lr()[0])})
            log.advance(at.step, shown)
        if last or stop:
            break
        if saves:
            log.sync()
            save(parts, folder)
    return stop


def _asked_to_stop(parts: Parts, terms: dict[str, Tensor], pause: bool) -> bool:
    """Whether a signal has asked a process to stop, the same on all.

    On CPUs it comes with the figures of each step; GPUs, which would wait for it, ask at pauses.
    """
    if parts.world.size == 1:
        return parts.asked()
    if "asked" in terms:
        return bool(terms.pop("asked"))
    return pause and bool(parts.world.highest(int(parts.asked())))
