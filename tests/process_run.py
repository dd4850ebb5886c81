"""Runs of two processes, disturbed and not; started by test_training_processes.py.

    python tests/process_run.py FOLDER

One process imports everything and forks the ones that train. The answer is one JSON object on stdout: case -> what each
process returned and printed, and what is in the run directory.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fault_run import train_and_exit
from kill_run import content_of

import ebmhybrid as eh
from ebmhybrid.training import engine
from ebmhybrid.training.build import build_parts, load_data
from ebmhybrid.training.step import train_step

COMMON = ["training.epochs=2", "training.max_steps=null", "training.batch_size=128", "training.save_every=3"]
HYBRID = [*COMMON, "model.dropout=0.2", "data.augment.pad=1", "training.ema=0.9"]
SAMPLED = [*COMMON, "objective={hdge: null, ce: {weight: 1.0}, jem: {steps: 1, buffer_size: 110, chains: class}}"]


CONTENTS = ("whole", "killed", "terminated", "2 whole", "2 stopped", "3 whole", "3 stopped")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])


def together(count: int, arguments: list[str], fault: Callable[[int], None] = lambda rank: None) -> dict[str, Any]:
    """Train in so many processes: their exit statuses, what they printed, and the seconds until the last ended."""
    port, children, pipes = free_port(), [], []
    began = time.monotonic()
    for rank in range(count):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
            train_and_exit(arguments, writer, partial(fault, rank))
        os.close(writer)
        children.append(child)
        pipes.append(reader)
    printed = []
    for pipe in pipes:
        with os.fdopen(pipe, errors="replace") as file:
            printed.append(file.read())
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {"statuses": statuses, "printed": printed, "seconds": time.monotonic() - began}


def at_step(number: int, only: int, act: Callable[[], Any]) -> Callable[[int], None]:
    """A fault: before it takes this step, one process acts."""

    def fault(rank: int) -> None:
        def step(parts: Any, *given: Any) -> Any:
            if parts.progress.step == number and rank == only:
                act()
            return train_step(parts, *given)

        engine.train_step = step

    return fault


def silent(rank: int) -> None:
    """A fault: one process does not answer for longer than the other waits."""
    os.environ["EBMHYBRID_PEER_TIMEOUT"] = "3"
    at_step(4, 1, lambda: time.sleep(8))(rank)


def poisoned(rank: int) -> None:
    """A fault: of one process's share the loss is not a number."""

    def step(parts: Any, forward: Any, images: Any, labels: Any, total: int) -> Any:
        if rank == 1 and parts.progress.step == 4:
            images = images * float("nan")
        return train_step(parts, forward, images, labels, total)

    engine.train_step = step


def without_data(rank: int) -> None:
    """A fault: what one process is to train on is not there."""
    if rank == 1:
        engine.load_data = lambda *_: load_data(eh.load_recipe("smoke", ["data.train=npz:/none.npz"]), "data", False)


def cases(root: Path) -> dict[str, Any]:
    train = ["--recipe", "smoke", *HYBRID, "--resume", "auto", "--out"]
    found: dict[str, Any] = {"whole": together(2, [*train, str(root / "whole")])}
    kill = at_step(8, 1, lambda: os.kill(os.getpid(), signal.SIGKILL))
    term = at_step(8, 1, lambda: signal.raise_signal(signal.SIGTERM))
    for name, fault in {"killed": kill, "terminated": term}.items():
        arguments = [*train, str(root / name)]
        found[name] = together(2, arguments, fault)
        found[f"{name}, resumed"] = together(2, arguments)
    found["silent"] = together(2, [*train, str(root / "silent")], silent)
    found["poisoned"] = together(2, [*train, str(root / "poisoned")], poisoned)
    found["without data"] = together(2, [*train, str(root / "without data")], without_data)
    found["in use"] = together(2, ["--recipe", "smoke", "--out", str(root / "whole")])
    found["too small"] = together(2, ["--recipe", "smoke", "training.batch_size=2", "--out", str(root / "small")])
    found["one device"] = together(2, ["--recipe", "smoke", "--device", "cuda:0", "--out", str(root / "device")])
    # Chains of each process's own, and three numbers to add up
    for count, options in {2: SAMPLED, 3: HYBRID}.items():
        for name, fault in {"whole": lambda rank: None, "stopped": term}.items():
            arguments = ["--recipe", "smoke", *options, "--resume", "auto", "--out", str(root / f"{count} {name}")]
            found[f"{count} {name}"] = together(count, arguments, fault)
        found[f"{count} resumed"] = together(count, arguments)
    # Of another number of processes
    arguments = ["--recipe", "smoke", *SAMPLED, "--resume", "auto", "--out", str(root / "sampled")]
    found["sampled"] = together(2, arguments, at_step(8, 0, lambda: signal.raise_signal(signal.SIGINT)))
    found["sampled, chains"] = chains_of(root / "sampled")
    found["sampled, alone"] = together(1, arguments)
    found["sampled, log"] = (root / "sampled" / "train.log").read_text()
    found["contents"] = {name: content_of(root / name) for name in CONTENTS}
    return found


def chains_of(run: Path) -> list[int]:
    state = torch.load(run / "checkpoints" / "last.state.pt", weights_only=True)
    return list(state["parts"]["sampler"]["buffer.images"].shape)


def main() -> None:
    torch.set_num_threads(1)
    for options in (HYBRID, SAMPLED):  # imports what training imports
        recipe = eh.load_recipe("smoke", options)
        build_parts(recipe, load_data(recipe, "data", False), torch.device("cpu"))
    print(json.dumps(cases(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
