"""What a step of each objective takes beside cross-entropy's: all of them in turn, round by round, in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from benchmarks.study import rows
from benchmarks.study.measure import splits_of
from benchmarks.study.run import Bench, facts
from benchmarks.study.settings import SETTINGS
from ebmhybrid.training.build import build_parts
from ebmhybrid.training.engine import pick_device, train_step
from ebmhybrid.training.setup import Parts

WARM_UP, STEPS = 1, 2


def measure(setting: str, lines: dict[str, str], rounds: int, bench: Bench) -> None:
    """A row a round and objective: the mean time of a few steps in ms, augmentation and reference images included."""
    device = pick_device(bench.device)
    torch.set_num_threads(bench.threads)
    splits = splits_of(setting, bench.place)
    built: dict[str, Parts] = {}
    for changes in lines.values():
        recipe = SETTINGS[setting].recipe(changes, 0, bench.place)
        built[changes] = build_parts(recipe, splits, device)
        built[changes].model.train()
    told = facts(bench, recipe.training.precision)
    for number in range(rounds):
        for changes, milliseconds in _round(built, device):
            rows.append(bench.rows, rows.Row(setting, changes, number, {"step_ms": milliseconds}, told))
        print(f"round {number + 1} of {rounds}", flush=True)


def _round(built: dict[str, Parts], device: torch.device) -> Iterator[tuple[str, float]]:
    for changes, parts in built.items():
        size = parts.recipe.training.batch_size
        pick = torch.arange(size)
        ((images, labels),) = parts.splits.train.to(device).fetch([pick])

        def step(parts: Parts = parts, images: torch.Tensor = images, labels: torch.Tensor = labels) -> None:
            train_step(parts, parts.model, images, labels)

        for _ in range(WARM_UP):
            step()
        begun = _now(device)
        for _ in range(STEPS):
            step()
        yield changes, 1000 * (_now(device) - begun) / STEPS


def _now(device: torch.device) -> float:
    """The clock, once the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
