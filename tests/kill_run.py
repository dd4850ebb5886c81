"""Trains in processes that are killed and resumed until the training is done; started by test_reliability_kills.py.

    python tests/kill_run.py FOLDER '{"name": {"overrides": [...], "kills": 5, "seed": 0}}'

One process imports everything and forks the ones that train, so that a start takes a fraction of a second. A child is
killed from outside after a while, or by itself at its k-th moment: before it opens, renames, links or removes anything
in the run directory, before it flushes, and in the middle of what it writes. The answer is one JSON object on stdout.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ebmhybrid as eh
from ebmhybrid.data import Splits
from ebmhybrid.training import board, checkpoint, classify, engine, log
from ebmhybrid.training.build import build_parts, load_data
from ebmhybrid.training.digest import tree_digest
from ebmhybrid.training.guard import DivergedError

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate"}


class Moments:
    """Counts the moments of a process and kills it at one of them; 0 is none."""

    def __init__(self, folder: Path, fatal: int, pipe: int) -> None:
        self.folder, self.fatal, self.pipe, self.count = str(folder), fatal, pipe, 0

    def pass_one(self, half: Callable[[], Any] | None = None) -> None:
        self.count += 1
        if self.count == self.fatal:
            if half is not None:
                half()
            if not os.fork():  # a process that loads data, say, lives on for a while
                os.close(self.pipe)
                time.sleep(5)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in OPERATIONS and any(isinstance(each, (str, os.PathLike)) for each in arguments):
            paths = [os.fspath(each) for each in arguments if isinstance(each, (str, os.PathLike))]
            if any(str(path).startswith(self.folder) for path in paths):
                self.pass_one()

    def install(self) -> None:
        """Into this process, for good."""
        fsync, torch_save, save_file, append = os.fsync, torch.save, checkpoint.save_file, log.append

        def flushed(number: int) -> None:
            self.pass_one()
            fsync(number)

        def saved(content: Any, file: Any) -> None:
            whole = io.BytesIO()
            torch_save(content, whole)
            self.pass_one(lambda: file.raw.write(whole.getvalue()[: len(whole.getvalue()) // 2]))
            torch_save(content, file)

        def saved_weights(tensors: Any, path: Path, metadata: Any) -> None:
            save_file(tensors, path, metadata=metadata)
            self.pass_one(lambda: os.truncate(path, path.stat().st_size // 2))

        def appended(path: Path, file: Any, data: bytes) -> None:
            self.pass_one(lambda: file.write(data[: len(data) // 2]))
            append(path, file, data)

        os.fsync, torch.save = flushed, saved
        checkpoint.save_file = saved_weights
        log.append = board.append = appended
        sys.addaudithook(self.audit)


def start(recipe: Any, folder: Path, fatal: int = 0, seconds: float | None = None) -> tuple[bool, int]:
    """Train in a process of its own; whether it came to its end, and its moments so far."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        moments = Moments(folder, fatal, writer)
        moments.install()
        try:
            eh.train(recipe, folder, resume="auto", progress=False)
            os.write(writer, json.dumps(moments.count).encode())
        except BaseException:
            os.write(writer, json.dumps(traceback.format_exc()[-4000:]).encode())
        os._exit(0)
    os.close(writer)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(
            child, signal.SIGKILL
        )  # a child that has ended meanwhile is waited for below, so its number is not free
    with os.fdopen(reader) as pipe:
        answer = json.loads(pipe.read() or "null")
    os.waitpid(child, 0)
    if isinstance(answer, str):
        raise RuntimeError(f"training ended with an error instead of a kill: {answer}")
    return answer is not None, answer or 0


def diverge_once(step: int) -> None:
    """Training by samples goes back from this step, the first time that it gets there."""
    check_loss = engine.check

    def check_then(loss: Any, terms: Any, parts: Any, folder: Path) -> None:
        check_loss(loss, terms, parts, folder)
        if parts.sampler is not None and (parts.progress.step, parts.progress.rollbacks) == (step, 0):
            raise DivergedError("as the test wants")

    engine.check = check_then


def content_of(folder: Path) -> dict[str, Any]:
    """What must not depend on kills."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("images_per_second", None)
    weights = {name: folder / "checkpoints" / f"{name}.safetensors" for name in ("best", "last")}
    return {
        **{name: checkpoint.weights_digest(eh.load_model(path)) for name, path in weights.items()},
        "state": tree_digest(checkpoint.load_state(folder / "checkpoints" / checkpoint.LAST)),
        "metrics": rows,
        "table": len((folder / "metrics.csv").read_text().splitlines()),
        "config": (folder / "config.yaml").read_text(),
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.parent.name != "tb"),
    }


def check(folder: Path, splits: Splits) -> str:
    """What a kill has left: it can be gone on with, and evaluated once there are weights; says how far it had come."""
    if not (folder / "config.yaml").is_file():
        return "before config.yaml"
    weights = folder / "checkpoints" / "last.safetensors"
    if weights.exists():
        figures = classify.validate(eh.load_model(folder), splits.validation, torch.device("cpu"))
        assert 0 <= figures["accuracy"] <= 1, figures
    try:
        state, note = checkpoint.load_latest_state(folder)
    except checkpoint.NoStateError:
        return "before the first state"
    assert note is None, note
    return f"after step {state['parts']['progress']['step']}"


def ordeal(root: Path, overrides: list[str], kills: int, seed: int, each: bool = False) -> dict[str, Any]:
    """Lives of a run with so many kills in all, at random moments, or with one at each moment of a life.

    Returns:
        The moments of a life, the kills, where they hit, and what differed at the end from the undisturbed run.
    """
    recipe, draw = eh.load_recipe("smoke", overrides), random.Random(seed)
    splits = load_data(recipe, "data", False)
    build_parts(recipe, splits, torch.device("cpu"))  # imports what training imports
    began = time.monotonic()
    _, count = start(recipe, root / "whole")
    lasts, wanted = time.monotonic() - began, content_of(root / "whole")
    found, differing, hits = Counter[str](), list[str](), 0
    moments = list(range(1, count + 1)) if each else []
    while hits < kills or moments:
        folder = root / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        done, fatal = False, moments.pop(0) if each else None
        while not done:
            if fatal is not None:
                done, _ = start(recipe, folder, fatal)
                fatal = 0  # the next start goes to the end
            elif hits >= kills:
                done, _ = start(recipe, folder)
            elif draw.random() < 0.5:
                done, _ = start(recipe, folder, fatal=draw.randint(1, count))
            else:
                done, _ = start(recipe, folder, seconds=draw.uniform(0, lasts))
            if not done:
                hits += 1
                found[check(folder, splits)] += 1
        content = content_of(folder)
        differing += [f"{key} after {hits} kills" for key, value in wanted.items() if content[key] != value]
    return {"moments": count, "kills": hits, "found": found, "differing": differing}


def main() -> None:
    torch.set_num_threads(1)
    diverge_once(5)
    answers = {}
    for name, asked in json.loads(sys.argv[2]).items():
        (root := Path(sys.argv[1], name)).mkdir()
        answers[name] = ordeal(root, **asked)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
