"""The study of docs/study.md: trains its runs, keeps their rows, writes the document and checks it.

    python -m benchmarks.study run                       # every table; stops and goes on, a row a run
    python -m benchmarks.study run fashion cifar10 --npz DIR --workers 8 --device cuda
    python -m benchmarks.study tune digits fashion cifar10
    python -m benchmarks.study check                     # one random run of each table again
    python -m benchmarks.study write                     # docs/study.md and its figures, from the rows

Fashion-MNIST, CIFAR-10 and MNIST are downloaded into --data-dir, or read from the npz files of --npz.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.study import rows, tune
from benchmarks.study.run import Bench, Job, missing, row_of, run
from benchmarks.study.settings import Place
from benchmarks.study.tables import TABLES, Table, tuning_jobs

HERE = Path(__file__).parent
TUNED = ("digits", "fashion", "cifar10")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        "benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("what", choices=("run", "tune", "choose", "check", "write"))
    found.add_argument("tables", nargs="*", help="tables, or data sets to tune on; all by default")
    found.add_argument("--data-dir", default="data")
    found.add_argument("--npz", metavar="DIR", help="a folder of npz files that stand for downloads")
    found.add_argument("--rows", type=Path, default=HERE / "rows", metavar="DIR")
    found.add_argument("--runs", type=Path, default=Path("runs/study"), metavar="DIR")
    found.add_argument("--docs", type=Path, default=Path("docs"), metavar="DIR")
    found.add_argument("--device", default="auto")
    found.add_argument("--workers", type=int, default=1)
    found.add_argument("--threads", type=int, default=1, help="of each worker")
    found.add_argument("--minutes", type=float, help="no run is begun later")
    found.add_argument("--skip", metavar="TEXT", help="leave out runs whose changes hold it, as jem, which take long")
    found.add_argument("--seed", type=int, help="of the choice of the runs to check; by the clock if left out")
    return found


def main() -> None:
    args = parser().parse_args()
    valid = TUNED if args.what in ("tune", "choose") else tuple(TABLES)
    if unknown := sorted(set(args.tables) - set(valid)):
        sys.exit(f"unknown: {', '.join(unknown)}; valid: {', '.join(valid)}")
    names = args.tables or valid
    deadline = None if args.minutes is None else time.time() + 60 * args.minutes
    bench = Bench(args.rows, args.runs, Place(args.data_dir, args.npz), args.device, args.threads, deadline)
    if args.what == "write":
        from benchmarks.study.document import write

        write(args.rows, args.docs)
        return
    if args.what == "check":
        from benchmarks.study.check import check

        def again(table: Table, label: str, seed: int) -> rows.Row:
            return row_of(Job(table.setting, table.lines[label], seed, seed < table.whole), bench)

        sys.exit(check({name: TABLES[name] for name in names}, rows.read(args.rows), again, args.seed))
    if args.what == "choose":
        for data in names:
            print(data, tune.write(data, args.rows))
        return
    jobs = [job for name in names for job in (tuning_jobs(name) if args.what == "tune" else TABLES[name].jobs())]
    jobs = [job for job in jobs if not (args.skip and args.skip in job.changes)]
    jobs.sort(key=lambda job: job.seed)  # stable: few seeds of everything come first
    failed = do(jobs, bench, args.workers)
    if failed:
        sys.exit("\n".join(["failed:", *failed]))


def do(jobs: list[Job], bench: Bench, workers: int) -> list[str]:
    left = missing(jobs, bench.rows)
    print(f"{len(jobs)} runs, {len(left)} of them without a row", flush=True)
    return run(left, bench, workers)


if __name__ == "__main__":
    main()
