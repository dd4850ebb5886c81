"""Provokes faults of disks, permissions and schedulers in training processes; started by test_reliability_faults.py.

    python tests/fault_run.py FOLDER

As in kill_run.py one process imports everything and forks the ones that train, here through the command line. Each case
begins with a copy of a run that was killed within, lets a fault happen, looks at what is left, takes the fault away and
trains to the end. The answer is one JSON object on stdout: case -> what happened.
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
from typing import Any

import torch
from kill_run import check, content_of, start

import ebmhybrid as eh
from ebmhybrid.cli import main as command_line
from ebmhybrid.training import checkpoint, classify, engine, records
from ebmhybrid.training.build import build_parts, load_data

OVERRIDES = ["training.save_every=2", "training.ema=0.9", "model.dropout=0.2", "training.log_every=1"]
NOBODY = 65534


def call(arguments: list[str], fault: Callable[[], Any]) -> dict[str, Any]:
    """Run the command line in a process of its own with a fault: its exit status or signal, and what it printed."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
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


def main() -> None:
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    recipe = eh.load_recipe("smoke", OVERRIDES)
    splits = load_data(recipe, "data", False)
    build_parts(recipe, splits, torch.device("cpu"))  # imports what training imports
    _, count = start(recipe, root / "whole")
    wanted = content_of(root / "whole")
    fresh = ["--recipe", "smoke", *OVERRIDES, "--out"]
    start(recipe, root / "part", fatal=count // 2)
    answer: dict[str, Any] = {}

    def case(name: str, happens: Callable[[Path], dict[str, Any]], resumed: bool = True) -> None:
        folder = root / name.replace(" ", "-").replace("/", "-")
        if resumed:
            shutil.copytree(root / "part", folder)
        begun = check(folder, splits)
        found = happens(folder)
        found |= {"begun": begun, "left": check(folder, splits) if folder.exists() else "nothing"}
        done, _ = start(recipe, folder)
        content = content_of(folder)
        found["differing"] = [key for key, value in wanted.items() if content[key] != value] if done else ["end"]
        answer[name] = found

    checkpoints = root / "part" / "checkpoints"
    weights = (checkpoints / "last.safetensors").stat().st_size
    for size, name in ((0, "recipe"), (weights - 1, "weights"), (weights + 999, "state")):
        case(f"no room for {name}", lambda folder, size=size: call([*fresh, str(folder)], lambda: limit(size)), False)
        case(f"no room for {name} later", lambda f, size=size: call(["--resume", str(f)], lambda: limit(size)))
    for file in ("metrics.jsonl", "train.log"):

        def fill(folder: Path, file: str = file) -> dict[str, Any]:
            with full(folder / file):
                return call(["--resume", str(folder)], lambda: None)

        case(f"no room for {file}", fill)

    def read_only(folder: Path) -> dict[str, Any]:
        for path in (folder, folder / "checkpoints"):
            path.chmod(0o555)
        try:
            return call(["--resume", str(folder)], powerless)
        finally:
            for path in (folder, folder / "checkpoints"):
                path.chmod(0o755)

    def read_only_parent(folder: Path) -> dict[str, Any]:
        root.chmod(0o555)
        try:
            return call([*fresh, str(folder)], powerless)
        finally:
            root.chmod(0o755)

    case("read-only run", read_only)
    case("read-only place", read_only_parent, False)

    moments = {
        "set-up": (engine, "build_parts", 1),
        "a step": (engine, "train_step", 2),
        "validation": (classify, "validate", 1),
        "writing weights": (checkpoint, "save_weights", 1),
        "writing a state": (records.checkpoint, "save_state", 1),
    }
    for name, (owner, function, at_call) in moments.items():
        for number in (signal.SIGTERM, signal.SIGINT):
            fault = signalled(owner, function, at_call, number)
            case(f"{number.name} in {name}", lambda folder, fault=fault: call(["--resume", str(folder)], fault))
    twice = signalled(engine, "train_step", 2, signal.SIGTERM, signal.SIGTERM)
    case("SIGTERM twice", lambda folder: call(["--resume", str(folder)], twice))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
