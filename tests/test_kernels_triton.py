"""The Triton kernels without a GPU: their suite runs in a process in which Triton interprets them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ebmhybrid.kernels import support

SUITE = Path(__file__).with_name("triton_suite.py")


@pytest.mark.skipif(not support.HAS_TRITON, reason="Triton is not installed")
def test_the_interpreted_kernels_pass_their_suite() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1", "EBMHYBRID_BACKEND": "auto"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--show-capture=no", str(SUITE)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=SUITE.parents[1], check=False)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr
    (passed,) = re.findall(r"^(\d+) passed in ", done.stdout, re.MULTILINE)  # and nothing skipped
    assert int(passed) > 100
