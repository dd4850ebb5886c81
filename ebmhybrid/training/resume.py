"""Going on with a run: which settings may change meanwhile, and everything else put back where it was."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ebmhybrid.errors import CheckpointError
from ebmhybrid.recipe import load_recipe
from ebmhybrid.schema import Recipe
from ebmhybrid.training import records
from ebmhybrid.training.checkpoint import NoStateError, load_latest_state
from ebmhybrid.training.config import check_config
from ebmhybrid.training.randomness import derived_seed, seed_global, set_random_state
from ebmhybrid.training.setup import Parts, Progress

# What neither the saved state nor the steps taken so far depend on.
CHANGEABLE = (
    "training.epochs",
    "training.max_steps",
    "training.log_every",
    "training.save_every",
    "guard.",
    "evaluation.",
    "data.workers",
)
# What a run goes on with, if not as it would have gone on: `restore` says what changes.
SHOWN = 5
RESCALED = ("training.batch_size", "training.accumulate")


@dataclass(frozen=True)
class Start:
    """What a training begins with: its recipe; of a run that is resumed its folder, and its state if it saved one."""

    recipe: Recipe
    folder: Path | None = None
    state: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def find_start(recipe: Recipe | None, out: str | Path | None, resume: str | Path | None, overrides: list[str]) -> Start:
    """What the arguments of `train` come to.

    Raises:
        CheckpointError: `out` is in use, or what is to be resumed cannot be.
    """
    if resume == "auto":
        assert recipe is not None
        there = out is not None and (Path(out) / "config.yaml").is_file()
        resume = (
            Path(out) if there and out else records.find_resumable(Path("runs"), recipe.name) if out is None else None
        )
    if resume is None:
        assert recipe is not None
        if out is not None:
            records.check_unused(Path(out))  # before anything is fetched
        return Start(recipe)
    folder = Path(resume)
    return Start(resumed_recipe(folder, overrides, recipe), folder)


def with_state(start: Start) -> Start:
    """The same start with the state of its run. The run must be locked: another process could be saving.

    Raises:
        CheckpointError: there is one, and it cannot be read.
    """
    assert start.folder is not None
    try:
        state, note = load_latest_state(start.folder)
    except NoStateError as error:
        if _has_come_further(start.folder):
            raise CheckpointError(
                f"{start.folder}: its training state is gone, so it cannot go on, and it would begin over its own "
                "weights and figures; start a new run"
            ) from error
        return replace(start, notes=["nothing was saved before it stopped: it begins at step 0"])
    return replace(start, state=state, notes=[note] if note else [])


def _has_come_further(folder: Path) -> bool:
    """Whether a run has written what comes after its first state."""
    weights = (folder / "checkpoints" / f"{name}.safetensors" for name in ("last", "best"))
    metrics = folder / "metrics.jsonl"
    return any(path.exists() for path in weights) or (metrics.is_file() and metrics.stat().st_size > 0)


def resumed_recipe(folder: Path, overrides: list[str], wanted: Recipe | None = None) -> Recipe:
    """The run's own recipe with overrides, of which only those that take effect on a resumed run are allowed.

    Arguments:
        wanted: a whole recipe in the place of overrides, as `--resume auto` gets it.

    Raises:
        CheckpointError: no run there, or a change of what the run was begun with.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder}: no run to resume, it holds no config.yaml")
    check_config(folder / "config.yaml")
    saved = load_recipe(folder / "config.yaml")
    changed = wanted or load_recipe(folder / "config.yaml", overrides)
    before, after = _flat(saved.model_dump()), _flat(changed.model_dump())
    differing = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    fixed = sorted(key for key in differing if not key.startswith((*CHANGEABLE, *RESCALED)))
    if fixed:
        values = "; ".join(f"{key} is {before.get(key)}, not {after.get(key)}" for key in fixed[:SHOWN])
        more = f" and {len(fixed) - SHOWN} more" if len(fixed) > SHOWN else ""
        how = ", with another --out or without --resume auto" if wanted else ""
        raise CheckpointError(f"{folder}: cannot change on resuming: {values}{more}. Start a new run for that{how}")
    timed = (*CHANGEABLE[:2], *RESCALED[:1])
    if saved.schedule.name == "one_cycle" and any(key in differing for key in timed):
        raise CheckpointError(
            f"{folder}: a one_cycle schedule cannot be made longer or shorter. Start a new run for that"
        )
    if saved.training.max_steps is not None and RESCALED[0] in differing:
        raise CheckpointError(
            f"{folder}: training.max_steps counts batches of {saved.training.batch_size}, so training.batch_size "
            "cannot change. Start a new run for that"
        )
    if saved.objective.supcon is not None and "training.epochs" in differing:
        raise CheckpointError(f"{folder}: the stages of supcon are counted in epochs. Start a new run for that")
    return changed


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def restore(parts: Parts, start: Start) -> list[str]:
    """Put a run's parts back to where `records.save` left them, and say what is not as it was.

    Raises:
        CheckpointError: a state of other data or of another kind of device, or one that does not fit.
    """
    state, folder = start.state, start.folder
    if state is None:
        return []
    try:
        data, outliers = parts.digests
        if state["data"] != data:
            raise CheckpointError(f"{folder}: the training data is not that of the run (its sha256 differs)")
        if state.get("outliers") != outliers:
            raise CheckpointError(f"{folder}: reference.set is not that of the run (its sha256 differs)")
        if state["device"] != parts.device.type:
            raise CheckpointError(
                f"{folder}: the run was made on {state['device']}, and {parts.device.type} cannot go on from its "
                f"random state: take --device {state['device']}"
            )
        if state.get("precision", str(parts.precision)) != str(parts.precision):
            raise CheckpointError(
                f"{folder}: the run computes in {state['precision']}, and training.precision=auto is {parts.precision} "
                "here; go on where it was made"
            )
        return load_parts(parts, state["parts"])
    except CheckpointError:
        raise
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder}: its checkpoints/last.state.pt does not fit its recipe ({type(error).__name__}: {reason})"
        ) from error


def load_parts(parts: Parts, state: dict[str, Any]) -> list[str]:
    """What `Parts.state_dict` gave, put back; returns what is not as it was."""
    for name, part in parts.stateful():
        part.load_state_dict(state[name])
    at = Progress(**state["progress"])
    notes = [_rescaled(parts, at, state["batch_sizes"]), _draw_on(parts, at, state["random"])]
    if (before := state["accumulate"]) != (now := parts.recipe.training.accumulate):
        notes.append(
            f"a batch was taken in {before} parts and now is in {now}: live negatives and BatchNorm see a part"
        )
    parts.failed.update(state["failed"])
    vars(parts.progress).update(vars(parts.checked(at)))  # in place: the loop holds it
    if parts.sampler is not None:
        notes.append(parts.sampler.take_chains(state["sampler"], parts.world))
    return [note for note in notes if note]


def _draw_on(parts: Parts, at: Progress, states: list[dict[str, Any]]) -> str | None:
    """Each process goes on drawing where the one of its rank was; of another number of them none can."""
    world = parts.world
    if len(states) == world.size:
        set_random_state(states[world.rank], parts.generator)
        return None
    seed = derived_seed(parts.recipe.seed, world.rank, world.size, at.step)
    seed_global(seed)
    parts.generator.manual_seed(seed)
    return (
        f"the run had {_processes(len(states))} and now has {_processes(world.size)}: the order of the images stays, "
        "augmentation, dropout and samples are drawn anew, and sums over a batch are rounded otherwise"
    )


def _processes(count: int) -> str:
    return f"{count} process" + "es" * (count > 1)


def _rescaled(parts: Parts, at: Progress, sizes: list[int]) -> str | None:
    """Steps in units of another batch size: so that the epoch and the schedule go on at the place they had reached."""
    first, last, count = sizes
    now = parts.batch_sizes
    if [first, last, count] == [now[0], now[-1], len(now)]:
        return None
    if parts.recipe.schedule.name == "one_cycle":
        raise CheckpointError(f"a one_cycle schedule over {count} steps an epoch cannot go on over {len(now)}")
    done = first * at.step_in_epoch  # images: the last batch of an epoch is not among them
    before = at.step
    at.step_in_epoch = min(done // now[0], len(now) - 1)
    at.step = at.epoch * len(now) + at.step_in_epoch
    if at.best:
        at.best[-1] = round(at.best[-1] * len(now) / count)
    _move_schedule(parts, at.step)
    again = done - now[0] * at.step_in_epoch
    change = f"of {first} images are now of {now[0]}" if first != now[0] else f"end with {now[-1]} images, not {last}"
    return (
        f"batches {change}: step {before} of {count} an epoch is step {at.step} of "
        f"{len(now)}, at the same place of the schedule; {again} images of this epoch come again, and the bank keeps "
        "what it holds"
    )


def _move_schedule(parts: Parts, step: int) -> None:
    """The learning rate as if so many steps had been taken."""
    scheduler: Any = parts.scheduler
    scheduler.last_epoch = step
    scheduler._step_count = step + 1
    factors = [rule(step) for rule in scheduler.lr_lambdas]
    for group, base, factor in zip(parts.optimizer.param_groups, scheduler.base_lrs, factors, strict=True):
        group["lr"] = base * factor
    scheduler._last_lr = [group["lr"] for group in parts.optimizer.param_groups]
