"""Training on two processes of one thread against one process of two threads, at the same global batch.

    python -m benchmarks.processes                   # some three minutes on two cores
    python -m benchmarks.processes --nets 10-2

Both train the same recipe with `ebmhybrid.train`, as the command line does, on the same two cores: what several
processes cost beyond one is what they say to each other, DistributedDataParallel's copies, and the loop's own
agreements. The processes stay from round to round and wait while the other side trains. A round is a short run; its
time is the median one between the beginnings of two successive steps, so that start, validation and saving are outside.
The ratio of `1 process` is the throughput of two processes over its own. Two processes that train apart, at the same
time and on half the batch each, exchange nothing and wait for nobody: what the two could reach at best here.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from datetime import timedelta
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks import harness
from benchmarks.train_step import speed
from ebmhybrid import load_recipe, train
from ebmhybrid.training import engine

TWO, ONE = "2 processes x 1 thread", "1 process x 2 threads"
APART = "2 processes that train apart, half the batch each"
# Recipe, overrides and steps of a round: 8x8 digits, and drawings of 32x32 where computing outweighs all else.
NETS: dict[str, tuple[str, list[str], int]] = {
    "10-2": ("digits_hdge", [], 40),
    "16-2": ("digits_hdge", ["data={train: shapes, augment: {pad: 4, flip: true}}", "model={depth: 16, width: 2}"], 12),
}


def time_between_steps(recipe: str, overrides: list[str], folder: str) -> float:
    """Train, and the median of the seconds from the beginning of a step to that of the next."""
    begun: list[float] = []
    train_step = engine.train_step

    def stamped(*arguments: Any, **options: Any) -> Any:
        begun.append(time.perf_counter())
        return train_step(*arguments, **options)

    engine.train_step = stamped
    try:
        train(load_recipe(recipe, overrides), folder, progress=False, device="cpu")
    finally:
        engine.train_step = train_step
    return statistics.median(later - earlier for earlier, later in pairwise(begun))


def _work(rank: int, size: int, threads: int, meet: str, connection: Connection) -> None:
    """Trains what it is sent until None comes, and answers with the time, or with the error's text."""
    torch.set_num_threads(threads)
    if size > 1:
        dist.init_process_group("gloo", f"file://{meet}", timedelta(seconds=300), size, rank)
    while (asked := connection.recv()) is not None:
        try:
            connection.send(time_between_steps(*asked))
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
    if size > 1:
        dist.destroy_process_group()


class Team:
    """Processes that train whenever they are asked, together or `apart`."""

    def __init__(self, size: int, threads: int, folder: Path, apart: bool = False) -> None:
        self.apart = apart
        context = mp.get_context("spawn")
        pairs = [context.Pipe() for _ in range(size)]
        self.connections = [own for own, _ in pairs]
        self.workers = [
            context.Process(
                target=_work,
                args=(0 if apart else rank, 1 if apart else size, threads, str(folder / f"meet{size}"), theirs),
                daemon=True,
            )
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for worker in self.workers:
            worker.start()
        for _, theirs in pairs:
            theirs.close()  # the workers' ends are theirs alone, so that one that dies is noticed

    def run(self, recipe: str, overrides: list[str], batch: int, folder: str) -> float:
        """Seconds of a step of this batch, as the first process sees it; of processes apart, as the slowest does."""
        own = batch // len(self.connections) if self.apart else batch
        for number, connection in enumerate(self.connections):
            place = f"{folder}-{number}" if self.apart else folder
            connection.send((recipe, [*overrides, f"training.batch_size={own}"], place))
        found = [connection.recv() for connection in self.connections]
        if errors := [answer for answer in found if isinstance(answer, str)]:
            raise RuntimeError("; ".join(errors))
        return max(found) if self.apart else float(found[0])

    def end(self) -> None:
        """Let the processes go; those that do not are ended."""
        for connection in self.connections:
            connection.send(None)
        for worker in self.workers:
            worker.join(30)
            worker.kill()


def compare(report: harness.Report, net: str, batch: int, steps: int, teams: dict[str, Team], folder: Path) -> None:
    """Rounds of the teams in turn, each run in a directory of its own."""
    recipe, overrides, _ = NETS[net]
    changes = [*overrides, f"training.max_steps={steps}", "training.log_every=1000"]
    counts = iter(range(10**6))

    def run(team: Team) -> float:
        return team.run(recipe, changes, batch, str(folder / f"{net}-{next(counts)}"))

    calls = {name: lambda team=team: run(team) for name, team in teams.items()}
    times = harness.in_turn(calls, report.args.repeats, warmup=0 if report.args.quick else 1, timer=lambda call: call())
    report.add("step", {"net": f"WRN-{net}", "global batch": batch}, times, TWO, speed(times, batch))


def main(argv: list[str] | None = None) -> None:
    options = harness.parser(__doc__, repeats=9, threads=1)
    options.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    options.add_argument("--batch", type=harness.positive, default=64, help="of all processes together")
    args = harness.parse(options, argv)
    report = harness.Report("processes", "Two processes against one, on two cores", args)
    with tempfile.TemporaryDirectory() as name:
        folder, teams = Path(name), {}
        try:
            teams = {TWO: Team(2, 1, folder), ONE: Team(1, 2, folder), APART: Team(2, 1, folder, apart=True)}
            for net in args.nets[:1] if args.quick else args.nets:
                compare(report, net, 16 if args.quick else args.batch, 4 if args.quick else NETS[net][2], teams, folder)
        finally:
            for team in teams.values():
                team.end()
    report.table("step")
    report.write()


if __name__ == "__main__":
    main()
