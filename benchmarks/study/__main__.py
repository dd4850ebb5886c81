"""The study of docs/study.md: trains its runs, keeps their rows, writes the document and checks it.

    python -m benchmarks.study run                       # every table; stops and goes on, a row a run
    python -m benchmarks.study run fashion cifar10 --npz DIR --workers 8 --device cuda
    python -m benchmarks.study tune digits fashion cifar10
    python -m benchmarks.study check                     # one random run of each table again
    python -m benchmarks.study write                     # docs/study.md and its figures, from the rows

Fashion-MNIST, CIFAR-10 and MNIST are downloaded into --data-dir, or read from the npz files of --npz. The exit status
is 0, 1 where a run failed or does not agree with its row, or 2 for a mistake in the command.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.study import cost, rows, tune
from benchmarks.study.run import Bench, Job, missing, row_of, run
from benchmarks.study.settings import Place
from benchmarks.study.tables import TABLES, Table, tuning_jobs
from ebmhybrid.errors import EbmhybridError, UsageError, nearest

HERE = Path(__file__).parent
TUNED = ("digits", "fashion", "cifar10")


def parser() -> argparse.ArgumentParser:
    """The command's arguments; what cannot be used is refused before anything is begun."""
    found = argparse.ArgumentParser(
        "benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("what", choices=("run", "tune", "choose", "check", "write"))
    found.add_argument("tables", nargs="*", help="tables, or data sets to tune on; all by default")
    found.add_argument("--data-dir", default="data")
    found.add_argument("--npz", type=_there, metavar="DIR", help="a folder of npz files that stand for downloads")
    found.add_argument("--rows", type=_folder, default=HERE / "rows", metavar="DIR")
    found.add_argument("--runs", type=_folder, default=Path("runs/study"), metavar="DIR")
    found.add_argument("--docs", type=_folder, default=Path("docs"), metavar="DIR")
    found.add_argument("--device", default="auto")
    found.add_argument("--workers", type=_count, default=1)
    found.add_argument("--threads", type=_count, default=1, help="of each worker")
    found.add_argument("--minutes", type=_minutes, help="no run is begun later")
    found.add_argument("--skip", metavar="TEXT", help="leave out runs whose changes hold it, as jem, which take long")
    found.add_argument("--seed", type=int, help="of the choice of the runs to check; by the clock if left out")
    return found


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return minutes


def _folder(text: str) -> Path:
    if not Path(text).is_dir() and Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text} is no folder")
    return Path(text)


def _there(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command says; the exit status."""
    args = parser().parse_args(argv)
    valid = TUNED if args.what in ("tune", "choose") else tuple(TABLES)
    deadline = None if args.minutes is None else time.time() + 60 * args.minutes
    bench = Bench(args.rows, args.runs, Place(args.data_dir, args.npz), args.device, args.threads, deadline)
    try:
        for name in args.tables:
            if name not in valid:
                raise UsageError(f"nothing to {args.what} is called {name!r}; {nearest(name, valid)}")
        return _do(args, args.tables or list(valid), bench)
    except EbmhybridError as error:
        print(f"benchmarks.study: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:  # training has taken the signal and kept its state
        print("benchmarks.study: stopped; the same command goes on", file=sys.stderr)
        return 130


def _do(args: argparse.Namespace, names: list[str], bench: Bench) -> int:
    """What was asked for; the exit status."""
    if args.what == "write":
        from benchmarks.study.document import write

        write(args.rows, args.docs)
        return 0
    if args.what == "choose":
        for data in names:
            print(data, tune.write(data, args.rows))
        return 0
    if args.what == "check":
        from benchmarks.study.check import check

        tables = {name: TABLES[name] for name in names if not TABLES[name].timed}
        return check(tables, rows.read(args.rows), partial(_again, bench), args.seed)
    if args.what == "run":
        for name in names:
            _time(TABLES[name], bench)
    jobs = [job for name in names for job in (tuning_jobs(name) if args.what == "tune" else TABLES[name].jobs())]
    jobs = [job for job in jobs if not (args.skip and args.skip in job.changes)]
    jobs.sort(key=lambda job: job.seed)  # stable: few seeds of everything come first
    failed = do(jobs, bench, args.workers)
    if failed:
        print("\n".join(["failed:", *failed]), file=sys.stderr)
    return int(bool(failed))


def _again(bench: Bench, table: Table, label: str, seed: int) -> rows.Row:
    """A run trained from its start, whatever is left of it elsewhere."""
    with tempfile.TemporaryDirectory() as runs:
        job = Job(table.setting, table.lines[label], seed, seed < table.whole)
        return row_of(job, replace(bench, runs=Path(runs)))


def _time(table: Table, bench: Bench) -> None:
    """The rounds of a table of times, unless all are there."""
    there = {(row.changes, row.seed) for row in rows.read(bench.rows) if row.setting == table.setting}
    wanted = {(changes, seed) for changes in table.lines.values() for seed in range(table.seeds)}
    if table.timed and not wanted <= there:
        cost.measure(table.setting, table.lines, table.seeds, bench)


def do(jobs: list[Job], bench: Bench, workers: int) -> list[str]:
    """Do the jobs that have no row yet; what failed."""
    left = missing(jobs, bench.rows)
    print(f"{len(jobs)} runs, {len(left)} of them without a row", flush=True)
    return run(left, bench, workers)


if __name__ == "__main__":
    sys.exit(main())
