"""What the benchmarks share: calls timed in turn, the memory of one call, arguments, tables and the files they write.

Rivals are timed in one process and in rounds, each of which begins with another one, so that a machine that slows
down or heats up does so for all. A table gives medians and quartiles, and two ratios to ours (or what else is the
base), both above 1 where ours is faster: of the medians, and the median of the ratios within each round, which a drift
of the machine cannot touch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports its every start and stop otherwise

import torch

Call = Callable[[], object]
AT_LEAST = 5  # rounds of every rival, however slow


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= 1")
    return int(text)


def parser(description: str | None, *, repeats: int, threads: int) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", default="benchmarks/results", metavar="DIR", help="where JSON and Markdown go")
    options.add_argument("--repeats", type=positive, default=repeats, help="rounds (default: %(default)s)")
    options.add_argument("--threads", type=positive, default=threads, help="of torch (default: %(default)s)")
    options.add_argument("--quick", action="store_true", help="tiny shapes, two rounds: whether it runs, not how fast")
    return options


def parse(options: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """Read the arguments and set torch's threads."""
    args = options.parse_args(argv)
    try:  # now, and not after minutes of measuring
        Path(args.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        options.error(f"--out {args.out}: {error.strerror}")
    if args.quick:
        args.repeats = min(args.repeats, 2)
    torch.set_num_threads(args.threads)
    return args


def stopwatch(call: Call, least: float = 0.02) -> float:
    """Mean seconds of as many calls as fill `least` seconds, at least one."""
    count, start = 0, time.perf_counter()
    while True:
        call()
        count += 1
        if torch.cuda.is_initialized():  # a GPU is only told what to do until someone waits for it
            torch.cuda.synchronize()
        spent = time.perf_counter() - start
        if spent >= least:
            return spent / count


def in_turn(
    calls: Mapping[str, Call],
    repeats: int,
    *,
    warmup: int = 1,
    budget: float = float("inf"),
    timer: Callable[[Call], float] = stopwatch,
) -> dict[str, list[float]]:
    """Seconds of each call, one a round, after `warmup` calls of each that do not count.

    Every round begins one call further on. A call that has taken `budget` seconds drops out, after AT_LEAST rounds.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for call in calls.values():
            call()
    for number in range(repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if number < AT_LEAST or sum(times[name]) < budget:
                times[name].append(timer(calls[name]))
    return times


def peak_bytes(call: Call, device: str = "cpu") -> int:
    """The most memory that torch held during a call beyond what it held before: results and temporaries.

    On the CPU every allocation and release of torch's allocator, also within an operator, is read from the profiler's
    trace; torch has no counter there. On a GPU it is the allocator's own.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        kept = call()
    del kept  # only now, so that the result counts
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def compare(times: Mapping[str, list[float]], base: str) -> dict[str, dict[str, Any]]:
    """Median, quartiles, extremes and both ratios of each rival; the raw seconds stay beside them."""
    found = {}
    for name, seconds in times.items():
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
        found[name] = {
            "median": statistics.median(seconds),
            "quartiles": [low, high],
            "range": [min(seconds), max(seconds)],
            "ratio": statistics.median(seconds) / statistics.median(times[base]),
            "paired_ratio": statistics.median(a / b for a, b in zip(seconds, times[base], strict=False)),
            "seconds": seconds,
        }
    return found


def machine() -> dict[str, Any]:
    """What figures of speed depend on."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_average": load and [round(value, 2) for value in load],
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def shown(value: Any) -> str:
    """A table's cell: three digits of a number, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table whose columns are the keys of the rows."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(shown(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


class Report:
    """What a benchmark found, said as it goes and written at the end: NAME.md to read, NAME.json with the raw times."""

    def __init__(self, name: str, title: str, args: argparse.Namespace) -> None:
        self.name, self.args, self.machine = name, args, machine()
        self.cells: list[dict[str, Any]] = []
        self.text: list[str] = []
        self.say(f"## {title}")
        facts = (f"{key.replace('_', ' ')} {value}" for key, value in self.machine.items() if value is not None)
        self.say(f"`python -m benchmarks.{name}`: " + ", ".join(facts))

    def say(self, text: str) -> None:
        """A paragraph, a heading or a table, printed at once."""
        print(text, end="\n\n", flush=True)
        self.text.append(text)

    def add(
        self,
        section: str,
        case: Mapping[str, Any],
        times: Mapping[str, list[float]],
        base: str,
        more: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Keep one comparison; `more` has further figures of a rival, each of which becomes a column."""
        rivals = compare(times, base)
        for name, figures in (more or {}).items():
            rivals[name]["more"] = dict(figures)
        self.cells.append({"section": section, "case": dict(case), "base": base, "rivals": rivals})
        print(f"  {section} {dict(case)}: done", file=sys.stderr, flush=True)

    def table(self, section: str) -> None:
        """All comparisons of a section, a line a rival."""
        rows = []
        for cell in self.cells:
            for name, found in cell["rivals"].items() if cell["section"] == section else ():
                low, high = (1e3 * value for value in found["quartiles"])
                row = {**cell["case"], "rival": name, "median ms": 1e3 * found["median"]}
                row |= {"quartiles": f"{shown(low)} – {shown(high)}", "rounds": len(found["seconds"])}
                row |= {"ratio": found["ratio"], "paired ratio": found["paired_ratio"]}
                rows.append(row | found.get("more", {}))
        self.say(markdown(rows))

    def write(self) -> None:
        folder = Path(self.args.out)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"benchmark": self.name, "machine": self.machine, "options": vars(self.args), "cells": self.cells}
        (folder / f"{self.name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (folder / f"{self.name}.md").write_text("\n\n".join(self.text) + "\n", encoding="utf-8")
