"""Going on with a run: which settings may change meanwhile, and everything else put back where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ebmhybrid.errors import CheckpointError
from ebmhybrid.recipe import load_recipe
from ebmhybrid.schema import Recipe
from ebmhybrid.training import checkpoint
from ebmhybrid.training.setup import Parts

# What neither the saved state nor the steps taken so far depend on.
CHANGEABLE = ("training.epochs", "training.max_steps", "training.log_every", "guard.", "evaluation.")


def resumed_recipe(folder: Path, overrides: list[str]) -> Recipe:
    """The run's own recipe with overrides, of which only those that take effect on a resumed run are allowed.

    Raises:
        CheckpointError: no run there, or an override of what the run was begun with.
    """
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder}: no run to resume, it holds no config.yaml")
    saved, changed = (load_recipe(folder / "config.yaml", o) for o in ([], overrides))
    before, after = _flat(saved.model_dump()), _flat(changed.model_dump())
    differing = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    fixed = sorted(key for key in differing if not key.startswith(CHANGEABLE))
    if fixed:
        values = "; ".join(f"{key} is {before.get(key)}, not {after.get(key)}" for key in fixed)
        raise CheckpointError(f"{folder}: cannot change on resuming: {values}. Start a new run for that")
    if saved.schedule.name == "one_cycle" and any(key in differing for key in CHANGEABLE[:2]):
        raise CheckpointError(
            f"{folder}: a one_cycle schedule cannot be made longer or shorter. Start a new run for that"
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


def restore(parts: Parts, folder: Path) -> None:
    """Put a run's parts back to where `records.save` left them.

    Raises:
        CheckpointError: no state, a damaged one, or one of other data or of another kind of device.
    """
    state = checkpoint.load_state(folder / "checkpoints" / "last.state.pt")
    try:
        if state["data"] != parts.splits.train.digest():
            raise CheckpointError(f"{folder}: the training data is not that of the run (its sha256 differs)")
        outliers = None if parts.outliers is None else parts.outliers.digest()
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
        parts.load_state_dict(state["parts"])
    except CheckpointError:
        raise
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder}: its checkpoints/last.state.pt does not fit its recipe ({type(error).__name__}: {reason})"
        ) from error
