"""Says how many cases the fuzz tests tried."""

from __future__ import annotations

import pytest
from cases import COUNT, NIGHTLY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if COUNT["cases"]:
        profile = "nightly" if NIGHTLY else "slice"
        terminalreporter.write_line(f"fuzz: {COUNT['cases']} cases (profile {profile})")


@pytest.fixture(autouse=True)
def _nothing_was_executed(tmp_path, monkeypatch):
    """Every test works in a folder of its own, and a pickle that ran would leave OWNED in it."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "OWNED").exists()
