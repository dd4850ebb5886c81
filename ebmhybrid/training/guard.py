"""Training by samples that runs away: how it is noticed, and the way back to the last good state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from ebmhybrid.energies import log_density
from ebmhybrid.errors import ElsewhereError, TrainingError
from ebmhybrid.schema import Guard
from ebmhybrid.training import records
from ebmhybrid.training.checkpoint import LAST, load_latest_state
from ebmhybrid.training.log import NoLog, RunLog
from ebmhybrid.training.randomness import derived_seed, seed_global
from ebmhybrid.training.resume import Start, restore
from ebmhybrid.training.setup import Parts

PROBE = 256  # validation images
SLOWER = 0.5  # the factor of each rollback on the Langevin step and the learning rate


class DivergedError(Exception):
    """Raised within an epoch; the loop answers it with a rollback."""


def stop_all(parts: Parts, message: str) -> NoReturn:
    """End at what every process has found alike; one of them says it."""
    raise TrainingError(message) if parts.world.main else ElsewhereError("process 0 says why")


def divergence(loss: Tensor, terms: dict[str, Tensor], guard: Guard) -> str | None:
    """Why this step counts as diverged, or None.

    Watched are the loss, the gap between the mean log densities of data and samples, and the gradient's norm. Samples
    that are nats above the data have found a region that the density does not bound; far below, the chains no longer
    reach where the data is, and the gradient pushes without end.

    >>> values = {"log_density_data": torch.tensor(3.0), "log_density_samples": torch.tensor(-200.0)}
    >>> divergence(torch.tensor(1.0), values, Guard())
    'data is 203 nats above samples, guard.max_gap = 30'
    """
    if not math.isfinite(loss.item()):
        return "the loss is not finite"
    gap = (terms["log_density_data"] - terms["log_density_samples"]).item()
    if not abs(gap) <= guard.max_gap:  # NaN too
        side = "above" if gap > 0 else "below"
        return f"data is {abs(gap):.0f} nats {side} samples, guard.max_gap = {guard.max_gap:g}"
    norm = terms["grad_norm"].item()
    if not norm <= guard.max_grad_norm:
        return f"the gradient's norm is {norm:.3g}, guard.max_grad_norm = {guard.max_grad_norm:g}"
    return None


@torch.no_grad()
def check_weights(parts: Parts, terms: dict[str, Tensor]) -> None:
    """Look at the weights that are about to be saved: the step's loss was that of the weights before its update.

    Raises:
        DivergedError: the mean log density of validation images is further than max_gap from that of the step's data.
    """
    images = next(parts.splits.validation.fetch([torch.arange(min(PROBE, len(parts.splits.validation)))]))[0]
    images = images.to(parts.device)
    was_training = parts.model.training
    density = log_density(parts.model.eval()(images)).mean()
    parts.model.train(was_training)
    change = (density - terms["log_density_data"].to(density)).abs().item()
    # A bound that one process sees crossed and another, of other hardware, does not is crossed.
    if parts.world.highest(int(not change <= parts.recipe.guard.max_gap)):
        raise DivergedError(f"the update moved log densities by {change:.3g} nats")


def roll_back(parts: Parts, folder: Path, log: RunLog | NoLog, reason: str) -> None:
    """Back to the last saved state, with half the Langevin step, half the learning rate and another seed.

    The new state is saved at once: a run that is resumed has not forgotten how often it has been here.

    Raises:
        TrainingError: the run has gone back as often as it may.
    """
    diverged_at, count, guard = parts.progress.step, parts.progress.rollbacks + 1, parts.recipe.guard
    state, _ = parts.world.told(lambda: load_latest_state(folder))
    with parts.world.together():
        restore(parts, Start(parts.recipe, folder, state))
    at = parts.progress
    if count > guard.max_rollbacks:
        jem = parts.recipe.objective.jem
        assert jem is not None
        kept = next(
            path
            for path in (folder / "checkpoints" / name for name in ("last.safetensors", LAST))
            if path.is_file() or path.name == LAST
        )
        stop_all(
            parts,
            f"training diverged at step {diverged_at} ({reason}), after {guard.max_rollbacks} rollbacks; the last good "
            f"checkpoint is {kept}, of step {at.step}. Try a smaller "
            f"objective.jem.step_size than {jem.step_size:g} or a smaller optimizer.lr than "
            f"{parts.recipe.optimizer.lr:g}",
        )
    at.rollbacks = count
    slow_down(parts)
    log.rewind(at.epoch, at.step)
    log.record("rollback", at.step, at.epoch, {"rollbacks": count, "diverged_at": diverged_at})
    log.sync()
    records.save(parts, folder)
    log.say(
        f"diverged at step {diverged_at}: {reason}; rollback {count} of {guard.max_rollbacks} to step {at.step}, "
        f"Langevin step and learning rate x {SLOWER**count:g}",
        always=True,
    )


def slow_down(parts: Parts) -> None:
    """The learning rate and the seed that go with the number of rollbacks; the Langevin step follows from it."""
    factor = SLOWER**parts.progress.rollbacks
    seed = derived_seed(parts.recipe.seed, parts.progress.rollbacks, parts.world.rank)
    scheduler = parts.scheduler
    for index, group in enumerate(parts.optimizer.param_groups):
        slower = factor * parts.recipe.optimizer.lr
        group["lr"] *= slower / scheduler.base_lrs[index]
        scheduler.base_lrs[index] = slower
    seed_global(seed)
    parts.generator.manual_seed(derived_seed(seed))
