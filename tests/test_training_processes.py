"""Runs of several processes: killed, stopped, resumed, and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked"),
]
SCRIPT = Path(__file__).parent / "process_run.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("processes")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(root)], capture_output=True, text=True, timeout=600, cwd=root
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_two_processes_train_and_one_speaks(found) -> None:
    assert found["whole"]["statuses"] == [0, 0]
    first, second = found["whole"]["printed"]
    assert first.startswith("best validation accuracy")
    assert second == ""


def test_a_killed_process_ends_the_other_at_once_and_the_run_resumes_to_the_same_bits(found) -> None:
    """Bound: what runs between two messages of the processes, here milliseconds, and the start of a process."""
    assert found["killed"]["statuses"] == [1, -9]
    assert found["killed"]["seconds"] < 60
    (line,) = found["killed"]["printed"][0].splitlines()
    assert line.startswith("Error: process 0 of 2: another process has ended (")
    assert line.endswith("What was saved last is whole: go on with --resume")
    assert found["killed, resumed"]["statuses"] == [0, 0]
    assert found["contents"]["killed"] == found["contents"]["whole"]


def test_a_silent_process_is_waited_for_no_longer_than_was_asked(found) -> None:
    assert found["silent"]["statuses"] == [1, 1]
    first, second = found["silent"]["printed"]
    assert "process 0 of 2: another process has not answered for 3 s (" in first
    assert "process 1 of 2: another process has ended (" in second
    assert found["silent"]["seconds"] < 60


def test_a_signal_to_one_process_stops_all_at_one_step(found) -> None:
    assert found["terminated"]["statuses"] == [143, 143]
    assert found["terminated"]["printed"][0].startswith("stopped at step 9; go on with")
    assert found["terminated, resumed"]["statuses"] == [0, 0]
    assert found["contents"]["terminated"] == found["contents"]["whole"]


@pytest.mark.parametrize("count", [2, 3])
def test_of_more_processes_and_with_chains_of_their_own_it_resumes_to_the_same_bits(count: int, found) -> None:
    assert found[f"{count} stopped"]["statuses"] == [143] * count
    assert found[f"{count} resumed"]["statuses"] == [0] * count
    assert found["contents"][f"{count} stopped"] == found["contents"][f"{count} whole"]


def test_what_one_process_cannot_do_ends_all_with_one_line(found) -> None:
    assert found["poisoned"]["statuses"] == [1, 1]
    assert "the loss is not finite at step 5" in found["poisoned"]["printed"][0]
    assert found["poisoned"]["printed"][1] == ""
    assert found["without data"]["statuses"] == [1, 1]
    nothing, why = found["without data"]["printed"]
    assert nothing == ""
    assert why == "Error on process 1 of 2: npz:/none.npz: there is no file /none.npz\n"
    assert found["in use"]["statuses"] == [1, 1]
    assert "exists and is not an empty directory" in found["in use"]["printed"][0]
    assert found["in use"]["printed"][1] == ""


def test_a_batch_too_small_to_share_and_a_device_for_several_are_refused(found) -> None:
    assert "training.batch_size = 2: must be at least 4, two images for each" in found["too small"]["printed"][0]
    assert found["too small"]["statuses"] == [2, 1]
    assert found["one device"]["statuses"] == [2, 2]
    assert "device 'cuda:0' is one for 2 processes" in found["one device"]["printed"][0]


def test_another_number_of_processes_says_what_changes_and_keeps_what_it_can(found) -> None:
    assert found["sampled"]["statuses"] == [130, 130]
    assert found["sampled, chains"] == [7 * 14, 1, 8, 8]  # 110 // 2 // 7 slots a class on each of two processes
    assert found["sampled, alone"]["statuses"] == [0]
    assert "the run had 2 processes and now has 1 process" in found["sampled, log"]
    assert "the replay buffer held 14 chains a class and now holds 15: 1 start afresh" in found["sampled, log"]
    assert found["sampled, log"].count("epoch 2/2") == 1
