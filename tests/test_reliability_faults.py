"""Disks that are full or read-only, and signals: one line or a clean stop, and the same end when all is well again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# case -> exit status (a signal's number is negative), where the run stood afterwards, what the one line says
STOPPED = "stopped at step {}; go on with: ebmhybrid train --resume "
CASES = {
    "no room for the recipe of a new run": (1, "before config.yaml", "config.yaml: cannot be written (File too large)"),
    "no room for the recipe": (1, "after step 2", "config.yaml: cannot be written (File too large)"),
    "no room for the weights of a new run": (1, "before the first state", "last.state.pt: cannot be written (File"),
    "no room for the weights": (1, "after step 2", "last.safetensors: cannot be written (Error while serializing: I/O"),
    "no room for the state of a new run": (1, "after step 0", "last.state.pt: cannot be written (File too large)"),
    "no room for the state": (1, "after step 2", "last.state.pt: cannot be written (File too large)"),
    "no room for metrics.jsonl": (1, "after step 2", "metrics.jsonl: cannot be written (No space left on device)"),
    "no room for train.log": (1, "after step 2", "train.log: cannot be written (No space left on device)"),
    "a read-only run": (1, "after step 2", "a-read-only-run: cannot be written (Permission denied)"),
    "a read-only place": (1, "before config.yaml", "a-read-only-place: cannot be made (Permission denied)"),
    "SIGTERM in set-up": (-15, "after step 2", None),
    "SIGINT in set-up": (130, "after step 2", "Error: interrupted"),
    "SIGTERM in a step": (143, "after step 4", STOPPED.format(4)),
    "SIGINT in a step": (130, "after step 4", STOPPED.format(4)),
    "SIGTERM in validation": (0, "after step 6", "best validation accuracy"),
    "SIGINT in validation": (0, "after step 6", "best validation accuracy"),
    "SIGTERM in writing weights": (143, "after step 5", STOPPED.format(5)),
    "SIGINT in writing weights": (130, "after step 5", STOPPED.format(5)),
    "SIGTERM in writing a state": (143, "after step 5", STOPPED.format(5)),
    "SIGINT in writing a state": (130, "after step 5", STOPPED.format(5)),
    "SIGTERM twice": (-15, "after step 2", None),
}
SOME = [
    "no room for the weights",
    "no room for the state",
    "no room for metrics.jsonl",
    "a read-only run",
    "SIGTERM in a step",
    "SIGTERM in writing a state",
]


def happened(*names: str) -> None:
    folder = Path(tempfile.mkdtemp())  # not under tmp_path, whose parents other users may not enter
    folder.chmod(0o755)
    try:
        command = [sys.executable, str(Path(__file__).with_name("fault_run.py")), str(folder), *names]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers.keys() == set(names or CASES)
    for name, answer in answers.items():
        status, after, line = CASES[name]
        assert (answer["status"], answer["after"], answer["differing"]) == (status, after, []), (name, answer)
        printed = answer["printed"].strip().splitlines()
        assert len(printed) == (line is not None), (name, answer)
        assert line is None or line in printed[0], (name, answer)


def test_some_faults_lose_nothing() -> None:
    happened(*SOME)


@pytest.mark.fuzz
def test_every_fault_loses_nothing() -> None:
    happened()
