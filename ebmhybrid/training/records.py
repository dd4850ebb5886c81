"""The run directory and the files that say what was run, on what, with which data."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TextIO

from ebmhybrid.errors import CheckpointError
from ebmhybrid.training import checkpoint
from ebmhybrid.training.atomic import LEFTOVER, flush_folder, remove_leftovers, write_atomically
from ebmhybrid.training.config import write_config
from ebmhybrid.training.environment import TIME, environment
from ebmhybrid.training.order import name_order
from ebmhybrid.training.setup import Parts

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_TRIES, LOCK_PAUSE = 5, 0.05  # seconds: whoever only looks whether it is held holds it for less


def fresh_folder(parent: Path) -> Path:
    """Make <parent>/<date-time>, whose name comes after those of its siblings by `name_order`.

    A number is put behind it where that time is taken, also by another process just now, or where the clock was set
    back since the last sibling was made.
    """
    now = f"{datetime.now():%Y%m%d-%H%M%S}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        latest, number = max((name_order(path.name) for path in parent.iterdir()), default=("", 0))
        stamp, first = (latest, number + 1) if latest >= now else (now, 1)
        for number in count(first):
            folder = parent / (f"{stamp}-{number}" if number > 1 else stamp)
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise CheckpointError(f"{parent / now}: cannot be made ({error.strerror})") from error
    raise AssertionError("unreachable")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One training at a time in a run directory; the lock goes with the process, however it ends.

    Temporary files of killed processes are removed, since nobody else writes there now. A file system that knows no
    locks gives no such protection, and keeps these files.

    Raises:
        CheckpointError: another process trains there.
    """
    if fcntl is None:
        yield
        return
    path = folder / ".lock"
    file, held = _lock(path)
    try:
        if held:
            remove_leftovers(folder)
            remove_leftovers(folder / "checkpoints")
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        _let_go(file)


def _lock(path: Path) -> tuple[TextIO, bool]:
    """The open lock file, and whether its lock is held: False where the file system has none."""
    for _ in range(LOCK_TRIES):
        try:
            file = path.open("w")
        except OSError as error:
            raise CheckpointError(f"{path.parent}: cannot be written ({error.strerror})") from error
        _open_locks.add(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(path, file):  # else its former owner has removed it meanwhile, and the next one makes another
                return file, True
        except (BlockingIOError, PermissionError):  # the latter is what some network file systems say
            pass
        except OSError:
            return file, False
        _let_go(file)
        time.sleep(LOCK_PAUSE)
    raise CheckpointError(f"{path.parent}: another process is training there")


_open_locks: set[TextIO] = set()


def _let_go(*files: TextIO) -> None:
    for file in files:
        file.close()
        _open_locks.discard(file)


# A forked process, such as one that loads data, may outlive its killed parent, and would keep the parent's lock.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _let_go(*_open_locks))


def _is_there(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def check_unused(folder: Path) -> None:
    """A run is never written over anything: the directory must be missing or empty.

    What a start leaves that was killed before it wrote its recipe counts as nothing.

    Raises:
        CheckpointError: it is neither.
    """
    try:
        used = folder.exists() and (not folder.is_dir() or not all(map(_left_by_a_start, folder.iterdir())))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error
    if used and folder.is_dir() and _in_use(folder / ".lock"):
        raise CheckpointError(f"{folder}: another process is training there")
    if used:
        raise CheckpointError(f"{folder}: exists and is not an empty directory; take another --out, or --resume it")


def _left_by_a_start(path: Path) -> bool:
    if path.name == "checkpoints":
        return path.is_dir() and not any(path.iterdir())
    return path.name == ".lock" or LEFTOVER.fullmatch(path.name) is not None


def open_folder(folder: Path) -> Path:
    """Make a new run directory.

    Raises:
        CheckpointError: the directory is in use, or cannot be made or written.
    """
    check_unused(folder)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        flush_folder(folder.parent)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be made ({error.strerror})") from error
    return folder


def is_resumable(folder: Path) -> bool:
    """Whether a run was begun there and is not finished, and no process is training in it."""
    if not (folder / "config.yaml").is_file():
        return False
    try:
        if "finished" in json.loads((folder / "env.json").read_text(encoding="utf-8")):
            return False
    except (OSError, ValueError, TypeError, RecursionError):  # killed before it was written: nothing is finished
        pass
    return not _in_use(folder / ".lock")


def _in_use(lock: Path) -> bool:
    try:
        with lock.open("r+") as file:  # without write access network file systems refuse a lock
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except (OSError, AttributeError):  # no lock file, no locks
        pass
    return False


def find_resumable(root: str | Path, recipe: str) -> Path | None:
    """The newest run of a recipe under <root>/<recipe> that `is_resumable`, None where there is none."""
    runs = [path.parent for path in Path(root, recipe).glob("*/config.yaml")]
    return next(filter(is_resumable, sorted(runs, key=lambda run: name_order(run.name), reverse=True)), None)


def write_records(folder: Path, parts: Parts) -> None:
    """config.yaml, the recipe with every default, and env.json: versions, machine, data."""
    made_on = json.dumps(environment(parts), indent=2) + "\n"
    write_config(folder / "config.yaml", parts.recipe)
    write_atomically(folder / "env.json", lambda path: path.write_text(made_on, encoding="utf-8"))


def mark_finished(folder: Path) -> None:
    """Say in env.json that the run has taken its last step, until it is made longer."""
    path = folder / "env.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"finished": time.strftime(TIME)}
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def save(parts: Parts, folder: Path) -> None:
    """The last weights and the state to go on from. Every process must call it; the main one writes."""
    data, outliers = parts.digests
    state = {
        "format": checkpoint.FORMAT,
        "device": parts.device.type,
        "precision": str(parts.precision),
        "data": data,
        "outliers": outliers,
        "parts": parts.state_dict(),
    }
    with parts.world.together():
        if parts.world.main:
            if parts.progress.step:  # before it they are random numbers, which no one should evaluate
                checkpoint.save_weights(folder / "checkpoints" / "last.safetensors", parts.deployed, parts.metadata)
            checkpoint.save_state(folder / "checkpoints" / "last.state.pt", state)
