"""How long a process takes to start: the command's help and the import, against importing torch and against nothing.

    python -m benchmarks.startup                 # half a minute
    python -m benchmarks.startup --repeats 30

Whole processes, started one after the other in turn; the first of each does not count, so that files are in memory.
The ratio is to `import torch`, which nobody who uses the package can do without for long.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks import harness

TORCH = "import torch"


def commands() -> dict[str, list[str]]:
    """What is started, by name. The console script stands beside the interpreter, if it is installed at all."""
    script = Path(sys.executable).with_name("ebmhybrid")
    help_ = [str(script)] if script.is_file() else [sys.executable, "-m", "ebmhybrid"]
    return {
        TORCH: [sys.executable, "-c", "import torch"],
        "import ebmhybrid": [sys.executable, "-c", "import ebmhybrid"],
        "ebmhybrid --help": [*help_, "--help"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }


def main(argv: list[str] | None = None) -> None:
    args = harness.parse(harness.parser(__doc__, repeats=11, threads=1), argv)
    report = harness.Report("startup", "Starting a process", args)
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    times = harness.in_turn({name: partial(run, words) for name, words in commands().items()}, args.repeats)
    report.add("startup", {}, times, TORCH)
    report.say("### Whole processes, as a multiple of `import torch`")
    report.table("startup")
    report.write()


if __name__ == "__main__":
    main()
