"""Runs the study's jobs in worker processes: one row a run, what has a row already is left, what broke off goes on."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

import ebmhybrid as eh
from benchmarks.study import rows
from benchmarks.study.measure import figures
from benchmarks.study.settings import SETTINGS, Place
from ebmhybrid.errors import CheckpointError, EbmhybridError, UsageError, nearest
from ebmhybrid.schema import Recipe
from ebmhybrid.training.engine import pick_device
from ebmhybrid.training.setup import pick_precision

WHOLE = "corrupted"  # a figure that only rows measured whole have
ORPHANED = threading.Event()  # in a worker: its parent has ended


@dataclass(frozen=True)
class Job:
    """A run of a setting; `whole` with attacks and corruptions."""

    setting: str
    changes: str
    seed: int
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.setting} [{self.changes or 'cross-entropy'}] seed {self.seed}"

    @property
    def folder(self) -> str:
        """A folder's name for it."""
        return f"{self.setting}-{hashlib.sha256(self.changes.encode()).hexdigest()[:12]}-{self.seed}"


@dataclass(frozen=True)
class Bench:
    """Where jobs run: rows and runs go into these folders, sets come from a place."""

    rows: Path
    runs: Path
    place: Place
    device: str = "auto"
    threads: int = 1
    deadline: float | None = None  # of time.time(): no run is begun after it

    @property
    def late(self) -> bool:
        """Whether the deadline is over."""
        return self.deadline is not None and time.time() > self.deadline


def missing(jobs: Iterable[Job], folder: Path) -> list[Job]:
    """The jobs without a row, or without the figures of a whole one; each once, whole if any of the same is."""
    measured = {(row.setting, row.changes, row.seed): row.figures for row in rows.read(folder)}
    wanted: dict[tuple[str, str, int], Job] = {}
    for job in jobs:
        key = (job.setting, job.changes, job.seed)
        if key not in wanted or job.whole:
            wanted[key] = job
    return [job for key, job in wanted.items() if key not in measured or (job.whole and WHOLE not in measured[key])]


def row_of(job: Job, bench: Bench) -> rows.Row:
    """Train a job's run, or what is left of it, and measure it.

    Raises:
        EbmhybridError: a setting that there is none of, data that cannot be had, training that diverged for good, the
            run of another recipe in the job's folder.
    """
    if job.setting not in SETTINGS:
        raise UsageError(f"setting {job.setting!r} is unknown; {nearest(job.setting, SETTINGS)}")
    setting, folder = SETTINGS[job.setting], bench.runs / job.folder
    begun = time.monotonic()
    recipe = setting.recipe(job.changes, job.seed, bench.place)
    _check_own(folder, recipe)
    run = eh.train(recipe, folder, resume="auto", data_dir=bench.place.data_dir, device=bench.device, progress=False)
    if run.signal:
        raise KeyboardInterrupt
    trained = time.monotonic() - begun
    found = figures(folder, setting, bench.place, bench.device, job.whole)
    found |= {"seconds": trained, "rollbacks": float(run.rollbacks)}
    return rows.Row(job.setting, job.changes, job.seed, found, facts(bench, recipe.training.precision))


def _check_own(folder: Path, recipe: Recipe) -> None:
    """What was left in the folder is of this recipe; training would go on with one of other epochs."""
    config = folder / "config.yaml"
    if config.is_file() and eh.load_recipe(config) != recipe:
        raise CheckpointError(f"{folder}: holds a run of another recipe; remove it, or name another folder by --runs")


def facts(bench: Bench, precision: str) -> dict[str, str]:
    """What a row's figures were made with."""
    device = pick_device(bench.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:  # no git on the machine
        commit = ""
    return {
        "device": name,
        "torch": torch.__version__,
        "precision": str(pick_precision(precision, device)).removeprefix("torch."),
        "threads": str(bench.threads),
        "commit": commit,
    }


def run(jobs: list[Job], bench: Bench, workers: int = 1) -> list[str]:
    """Do all jobs, the first first, and return what failed; a line tells of each as it ends.

    What is not begun because the time is over did not fail; the last line says how many these are.
    """
    failed, number = [], 0
    begun = time.monotonic()
    for number, (job, seconds, error) in enumerate(_done(jobs, bench, workers), 1):
        told = f"{seconds:.0f} s" if not error else error.strip().splitlines()[-1]
        print(f"[{number}/{len(jobs)}, {(time.monotonic() - begun) / 60:.1f} min] {job}: {told}", flush=True)
        if error:
            failed.append(f"{job}: {error}")
    if number < len(jobs):
        print(f"not begun, the time is over: {len(jobs) - number} runs", flush=True)
    return failed


def _done(jobs: list[Job], bench: Bench, workers: int) -> Iterator[tuple[Job, float, str]]:
    """(job, seconds, error) as they end, of those that were begun in time."""
    tasks = [(job, bench) for job in jobs]
    if workers == 1:
        yield from filter(None, map(_do, tasks))
        return
    context, left = multiprocessing.get_context("spawn"), iter(tasks)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_heed_parent) as pool:
        try:
            running = {pool.submit(_do, task) for task in islice(left, workers)}
            while running:  # a task a worker, so that after a Ctrl-C none is begun
                done, running = wait(running, return_when=FIRST_COMPLETED)
                found = [future.result() for future in done]
                running |= {pool.submit(_do, task) for task in islice(left, len(done))}
                yield from filter(None, found)
        except BrokenProcessPool as error:
            raise EbmhybridError(
                "a worker process was ended from outside, for lack of memory perhaps; the same command goes on, with "
                "fewer --workers if it was that"
            ) from error


def _heed_parent() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed ends: training keeps its state first, which the next command goes on from."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    ORPHANED.set()
    os.kill(os.getpid(), signal.SIGTERM)


def _do(task: tuple[Job, Bench]) -> tuple[Job, float, str] | None:
    """None if the time is over."""
    job, bench = task
    begun = time.monotonic()
    if bench.late:
        return None
    torch.set_num_threads(bench.threads)
    try:
        rows.append(bench.rows, row_of(job, bench))
        shutil.rmtree(bench.runs / job.folder)  # its row is what is kept
    except EbmhybridError as error:
        return job, time.monotonic() - begun, str(error)
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return job, time.monotonic() - begun, traceback.format_exc()
    finally:
        if ORPHANED.is_set():
            os._exit(1)  # nobody reads an answer, and the pool's queue would be waited for without end
    return job, time.monotonic() - begun, ""
