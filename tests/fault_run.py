"""Provokes faults of disks, permissions and schedulers in training processes; started by test_reliability_faults.py.

    python tests/fault_run.py FOLDER [CASE]...

As in kill_run.py one process imports everything and forks the ones that train, here through the command line. Each case
lets a fault happen, looks at what is left, takes the fault away and trains to the end by the same command. The answer
is one JSON object on stdout: case -> what happened.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from kill_run import check, content_of, start

import ebmhybrid as eh
from ebmhybrid.cli import main as command_line
from ebmhybrid.training import checkpoint, classify, engine
from ebmhybrid.training.build import build_parts, load_data
from ebmhybrid.training.checkpoint import LAST

OVERRIDES = ["training.save_every=2", "training.ema=0.9", "model.dropout=0.2", "training.log_every=1"]
NOBODY = 65534


def train_and_exit(arguments: list[str], writer: int, fault: Callable[[], Any]) -> NoReturn:
    """The command line in a forked process, with a fault; what it prints goes to `writer`."""
    status = 99
    try:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        fault()
        command_line(["train", *arguments, "--quiet"])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        os.write(writer, repr(error).encode())
    finally:
        os._exit(status)


def call(arguments: list[str], fault: Callable[[], Any]) -> dict[str, Any]:
    """Run the command line in a process of its own with a fault: its exit status or signal, and what it printed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        train_and_exit(arguments, writer, fault)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as pipe:
        printed = pipe.read()
    return {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "printed": printed}


def limit(size: int) -> None:
    """No file may grow beyond so many bytes, as on a full disk (the error is EFBIG, since Python ignores SIGXFSZ)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def powerless() -> None:
    """Root may write anywhere."""
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def signalled(owner: Any, name: str, at_call: int, *signals: int) -> Callable[[], None]:
    """A fault: these signals arrive when a function is called so many times."""
    work, calls = getattr(owner, name), []

    def interrupted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at_call:
            for number in signals:
                signal.raise_signal(number)
        return work(*given, **named)

    return lambda: setattr(owner, name, interrupted)


@contextmanager
def full(path: Path) -> Any:
    """A file that takes no byte more."""
    kept = path.with_name(path.name + ".kept")
    path.rename(kept)
    path.symlink_to("/dev/full")
    try:
        yield
    finally:
        path.unlink()
        kept.rename(path)


class Cases:
    """Runs faults by name, each on a copy of a run that was killed within, or on no run yet."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.names, self.answers = root, names, dict[str, Any]()
        recipe = eh.load_recipe("smoke", OVERRIDES)
        self.splits = load_data(recipe, "data", False)
        build_parts(recipe, self.splits, torch.device("cpu"))  # imports what training imports
        _, count = start(recipe, root / "whole")
        self.wanted = content_of(root / "whole")
        start(recipe, root / "part", fatal=count // 2)

    def run(self, name: str, happens: Callable[[Path], dict[str, Any]], begun: bool = True) -> None:
        if self.names and name not in self.names:
            return
        folder = self.root / name.replace(" ", "-")
        if begun:
            shutil.copytree(self.root / "part", folder)
        before = check(folder, self.splits)
        found = happens(folder) | {"before": before, "after": check(folder, self.splits)}
        ended = call(again(folder), lambda: None)
        content = content_of(folder) if ended["status"] == 0 else {"end": ended}
        found["differing"] = [key for key in self.wanted.keys() | content if content.get(key) != self.wanted.get(key)]
        self.answers[name] = found


def again(folder: Path) -> list[str]:
    """The command that begins a run or goes on with it."""
    return ["--recipe", "smoke", *OVERRIDES, "--out", str(folder), "--resume", "auto"]


def under(fault: Callable[[], Any]) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: call(again(folder), fault)


def full_disks(cases: Cases) -> None:
    sizes = {name: (cases.root / "part" / "checkpoints" / name).stat().st_size for name in ("last.safetensors", LAST)}
    for name, size in (("recipe", 0), ("weights", sizes["last.safetensors"] - 1), ("state", sizes[LAST] - 1)):
        cases.run(f"no room for the {name} of a new run", under(lambda size=size: limit(size)), begun=False)
        cases.run(f"no room for the {name}", under(lambda size=size: limit(size)))
    for file in ("metrics.jsonl", "train.log"):

        def filled(folder: Path, file: str = file) -> dict[str, Any]:
            with full(folder / file):
                return call(again(folder), lambda: None)

        cases.run(f"no room for {file}", filled)


def permissions(cases: Cases) -> None:
    def sealed(folder: Path, *paths: Path) -> dict[str, Any]:
        for path in paths:
            path.chmod(0o555)
        try:
            return call(again(folder), powerless)
        finally:
            for path in paths:
                path.chmod(0o755)

    cases.run("a read-only run", lambda folder: sealed(folder, folder, folder / "checkpoints"))
    cases.run("a read-only place", lambda folder: sealed(folder, cases.root), begun=False)


def signals(cases: Cases) -> None:
    moments = {
        "set-up": (engine, "build_parts", 1),
        "a step": (engine, "train_step", 2),
        "validation": (classify, "validate", 1),
        "writing weights": (checkpoint, "save_weights", 1),
        "writing a state": (checkpoint, "save_state", 1),
    }
    for name, (owner, function, at_call) in moments.items():
        for number in (signal.SIGTERM, signal.SIGINT):
            cases.run(f"{number.name} in {name}", under(signalled(owner, function, at_call, number)))
    cases.run("SIGTERM twice", under(signalled(engine, "train_step", 2, signal.SIGTERM, signal.SIGTERM)))


def main() -> None:
    torch.set_num_threads(1)
    cases = Cases(Path(sys.argv[1]), sys.argv[2:])
    full_disks(cases)
    permissions(cases)
    signals(cases)
    print(json.dumps(cases.answers))


if __name__ == "__main__":
    main()
