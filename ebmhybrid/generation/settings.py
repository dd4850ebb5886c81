"""How to draw from a run: what was asked for, checked, and else what its recipe says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ebmhybrid.errors import UsageError, nearest
from ebmhybrid.schema import Recipe
from ebmhybrid.terms import JEMTerm

STARTS = ("buffer", "uniform", "gaussian")
FILE = "npz:"
# From noise a chain of the digits model needs 100 steps until its log density is that of test images; one of the
# buffer has them behind it, and some more bring the buffer of the last step to the weights of the best.
FRESH_STEPS, FRESH_FACTOR, BUFFER_FACTOR = 100, 5, 2
DEFAULT_NUM, MOST = 100, 10_000_000


@dataclass(frozen=True)
class Settings:
    """How to sample.

    Attributes:
        num: N in 2..10,000,000, for figures need two; None is all images of the file that chains start from.
        classes: the classes asked for, in equal shares, each chain climbing log p(x, y) of its own; None is log p(x).
        start: buffer, uniform, gaussian or npz:PATH.
        steps, step_size, noise_std, clip, clamp: see :func:`ebmhybrid.sampling.sgld`; pixels in [0, 1].
        seed: of starts and noise.
    """

    num: int | None
    classes: tuple[int, ...] | None
    start: str
    steps: int
    step_size: float
    noise_std: float
    clip: float | None
    clamp: bool
    seed: int

    @property
    def file(self) -> str | None:
        """The set that chains start from, if it is a file of the user's."""
        return self.start if self.start.startswith(FILE) else None


def choose(
    recipe: Recipe,
    class_names: Sequence[str],
    *,
    has_buffer: bool,
    num: int | None = None,
    classes: Sequence[str | int] = (),
    start: str | None = None,
    steps: int | None = None,
    step_size: float | None = None,
    noise_std: float | None = None,
    seed: int | None = None,
) -> Settings:
    """The settings that are given, and else those of the recipe's JEM term.

    Without such a term step and noise are JEM's for pixels in [0, 1]. Chains of the replay buffer take twice the steps
    of training, others five times as many and at least 100.

    Arguments:
        class_names: of the model's classes, in their order.
        has_buffer: whether the run keeps a replay buffer, which is then the default start.
        classes: names or numbers; none of them is every class for a run with chains of a class, else log p(x).

    Raises:
        UsageError: a value out of range, or a class or start that there is none of.

    >>> choose(Recipe(), ["cat", "dog"], has_buffer=False, classes=["dog"]).classes
    (1,)
    """
    term = recipe.objective.jem or JEMTerm()
    chosen = start or ("buffer" if has_buffer else term.start)
    if chosen not in STARTS and not (chosen.startswith(FILE) and len(chosen) > len(FILE)):
        raise UsageError(f"start {chosen!r}: {nearest(chosen, [*STARTS, 'npz:PATH'])}")
    if chosen.startswith(FILE) and classes:
        raise UsageError(f"a class does not go with start {chosen}: its images have labels of their own")
    if chosen == "buffer" and not has_buffer:
        raise UsageError("start 'buffer': the run keeps no replay buffer; take uniform or gaussian")
    usual = BUFFER_FACTOR * term.steps if chosen == "buffer" else max(FRESH_STEPS, FRESH_FACTOR * term.steps)
    settings = Settings(
        num=num if num is not None or chosen.startswith(FILE) else DEFAULT_NUM,
        classes=_numbers(classes, class_names) or (tuple(range(len(class_names))) if term.by_class else None),
        start=chosen,
        steps=usual if steps is None else steps,
        step_size=term.step_size if step_size is None else step_size,
        noise_std=term.noise_std if noise_std is None else noise_std,
        clip=term.clip,
        clamp=term.clamp,
        seed=recipe.seed if seed is None else seed,
    )
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    for name, least, most in (("num", 2, MOST), ("steps", 0, MOST), ("seed", 0, 2**63 - 1)):
        value = getattr(settings, name)
        if value is not None and not (isinstance(value, int) and least <= value <= most):
            raise UsageError(f"{name} must be a whole number in {least}..{most}, got {value!r}")
    for name in ("step_size", "noise_std"):
        value = getattr(settings, name)
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} must be at least 0 and finite, got {value}")


def _numbers(asked: Sequence[str | int], names: Sequence[str]) -> tuple[int, ...]:
    """Classes by their name, or by their number where none has that name; each once."""
    found = []
    for one in map(str, asked):
        if one in names:
            found.append(list(names).index(one))
        elif one.isdecimal() and int(one) < len(names):
            found.append(int(one))
        else:
            raise UsageError(
                f"class {one!r} is neither a name nor a number in 0..{len(names) - 1}: {nearest(one, names)}"
            )
    return tuple(dict.fromkeys(found))
