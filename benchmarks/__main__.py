"""All benchmarks of speed, one after the other, and their tables in one file.

    python -m benchmarks                         # some twenty minutes on two cores; `make bench` does the same
    python -m benchmarks --only loss kernel
    python -m benchmarks --quick --out DIR       # whether they run

Each runs in a process of its own, so that threads and compiled code of one do not reach the next. One that fails does
not stop the others, but the exit status is then 1. The tables land in DIR/README.md, the raw times in DIR/*.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

BENCHMARKS = ("startup", "loss", "kernel", "train_step", "sgld", "evaluate", "processes")


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    options.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, metavar="NAME")
    options.add_argument("--quick", action="store_true", help="tiny shapes, two rounds: whether they run, not how fast")
    args = options.parse_args(argv)
    parts, failed = ["# Benchmarks"], []
    for name in args.only:
        start = time.monotonic()
        words = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(args.out), *["--quick"] * args.quick]
        if subprocess.run(words).returncode:
            failed.append(name)
            parts.append(f"`benchmarks.{name}` failed.")
        else:
            parts.append((args.out / f"{name}.md").read_text(encoding="utf-8").strip())
        print(f"  {name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"tables: {args.out / 'README.md'}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
