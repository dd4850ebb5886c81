"""What a training finds at the end of a step and of an epoch: whether it may go on, and which weights are best."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ebmhybrid.data.tokens import TokenSet
from ebmhybrid.training import checkpoint
from ebmhybrid.training.guard import DivergedError, divergence, stop_all
from ebmhybrid.training.log import NoLog, RunLog
from ebmhybrid.training.records import save
from ebmhybrid.training.setup import Parts
from ebmhybrid.training.step import task_of


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
    stop_all(
        parts,
        f"the loss is not finite at step {at.step}, epoch {at.epoch + 1} ({values}); {_advice(parts, folder)}",
    )


def _advice(parts: Parts, folder: Path) -> str:
    kept = folder / "checkpoints" / "last.safetensors"
    last = f"the last good weights are {kept}" if kept.is_file() else "no weights were saved yet"
    return (
        f"{last}. Try a smaller optimizer.lr than {parts.recipe.optimizer.lr:g}, training.grad_clip or "
        "schedule.warmup_steps"
    )


def end_epoch(parts: Parts, folder: Path, log: RunLog | NoLog) -> None:
    """Validate, say so, keep the weights, and keep them apart if they are the best so far by the task's figures."""
    at = parts.progress
    if parts.head_begins:
        at.best = []  # a head on an unfinished encoder is no rival of one on the finished
    task = task_of(parts)
    trained, found = parts.meter.read(), task.figures(parts)
    rank = [sign * found[name] for name, sign in task.RANKED.items()]
    if not all(map(math.isfinite, rank)):
        if parts.sampler is not None:
            raise DivergedError("the validation loss is not finite")
        stop_all(parts, f"the validation loss is not finite at step {at.step}: {_advice(parts, folder)}")
    log.record("validation", at.step, at.epoch, found)
    epochs = -(-parts.total_steps // parts.steps_per_epoch)
    log.say(
        f"epoch {at.epoch + 1}/{epochs}  loss {trained['loss']:.4f}  "
        + "".join(f"{name} {trained[name]:.4f}  " for name in parts.meter.terms)
        + f"{task.said(trained, found)}  {trained['images_per_second']:.0f} {units(parts)}/s  "
        f"left {log.time_left(at.step)}"
    )
    _say_what_was_skipped(parts, log)
    if at.step_in_epoch == parts.steps_per_epoch:  # else max_steps cut it short, and a resumed run goes on within it
        at.epoch, at.step_in_epoch = at.epoch + 1, 0
    if not at.best or rank > at.best[:-1]:
        at.best = [*rank, at.step]
        with parts.world.together():
            if parts.world.main:
                checkpoint.save_weights(folder / "checkpoints" / "best.safetensors", parts.deployed, parts.metadata)
    log.sync()
    save(parts, folder)


def units(parts: Parts) -> str:
    return "sequences" if isinstance(parts.splits.train, TokenSet) else "images"


def _say_what_was_skipped(parts: Parts, log: RunLog | NoLog) -> None:
    """Of the pictures that cannot be decoded each process has met its own."""
    for failed in parts.world.of_each(parts.failed):
        parts.failed.update(failed)
    if len(parts.failed) > parts.told:
        log.say("; ".join(parts.splits.train.findings), always=True)
        parts.told = len(parts.failed)


def best_figures(parts: Parts) -> dict[str, float]:
    """The validation figures of the best weights, and their step."""
    if not parts.progress.best:
        return {}
    *rank, step = parts.progress.best
    ranked = zip(task_of(parts).RANKED.items(), rank, strict=True)
    return {name: sign * value for (name, sign), value in ranked} | {"step": step}
