"""Stopping between two steps: the first signal asks, the second insists."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """While entered, SIGINT and SIGTERM set `.signal` instead of ending the process; a second one ends it as usual.

    Arguments:
        patience: seconds in which a second signal is taken for the first one. A terminal or a scheduler signals a
            launcher and the processes it has started, and the launcher passes the signal on to them.
    """

    def __init__(self, patience: float = 0.0) -> None:
        self.signal: int | None = None
        self.patience, self.asked = patience, 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python delivers signals there only
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._hand_back()
        self._former = {}

    def _hand_back(self) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self.asked = number, time.monotonic()
            if not self.patience:
                self._hand_back()
        elif time.monotonic() - self.asked > self.patience:
            self._hand_back()
            signal.raise_signal(number)
