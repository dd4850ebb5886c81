"""Training that is killed at any moment and resumed ends with the weights, state and metrics of the undisturbed run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLAIN = ["model={depth: 10, width: 1, norm: none, activation: silu}", "optimizer={name: adam, lr: 0.001}"]
JEM = "objective={ce: {}, jem: {steps: 2, buffer_size: 70}}"
COMMON = ["training.save_every=2", "training.log_every=1", "training.ema=0.9", "data.augment.noise_std=0.1"]
RECIPES = {"bank": [*COMMON, "model.dropout=0.2"], "buffer": [*COMMON, *PLAIN, JEM]}


def ordeals(folder: Path, seconds: float, **asked: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("kill_run.py")), str(folder), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_five_kills_change_nothing(tmp_path) -> None:
    wanted = {"bank": 3, "buffer": 2}
    asked = {name: {"overrides": RECIPES[name], "kills": kills, "seed": 1} for name, kills in wanted.items()}
    for name, answer in ordeals(tmp_path, 300, **asked).items():
        assert answer["differing"] == []
        assert answer["kills"] == sum(answer["found"].values()) == wanted[name]


@pytest.mark.fuzz
@pytest.mark.parametrize("name", RECIPES)
def test_fifty_kills_change_nothing(name: str, tmp_path) -> None:
    answer = ordeals(tmp_path, 1200, **{name: {"overrides": RECIPES[name], "kills": 50, "seed": 2}})[name]
    assert answer["differing"] == []
    assert answer["kills"] == 50
    assert len(answer["found"]) > 2, answer  # they hit all over the run


@pytest.mark.fuzz
@pytest.mark.parametrize("name", RECIPES)
def test_a_kill_at_each_moment_changes_nothing(name: str, tmp_path) -> None:
    asked = {"overrides": RECIPES[name], "kills": 0, "seed": 0, "each": True}
    answer = ordeals(tmp_path, 1800, **{name: asked})[name]
    assert answer["differing"] == []
    assert answer["kills"] == answer["moments"] > 100
    assert {"before config.yaml", "before the first state", "after step 0", "after step 6"} <= answer["found"].keys()
