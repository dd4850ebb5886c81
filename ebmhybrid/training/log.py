"""A run's record: train.log, metrics.jsonl, metrics.csv and TensorBoard, and what the user sees meanwhile."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from tqdm import tqdm

from ebmhybrid.errors import CheckpointError
from ebmhybrid.training.atomic import append, unwritable, write_atomically
from ebmhybrid.training.board import Board


def _row(line: str) -> dict[str, Any] | None:
    """A row of metrics.jsonl, or None for a line that a kill left half-written."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return (
        row
        if isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("epoch"), int)
        else None
    )


class RunLog:
    """Writes a run's metrics everywhere they belong, and shows a bar on a terminal or plain lines elsewhere.

    As a context it is closed at the end, where an error that ends the training is not covered by one of closing.

    Arguments:
        folder: the run directory.
        total_steps, first_step: for the bar and the estimate of the time left.
        first_epoch: the epoch of the first step; rows of it that lie behind that step are taken again.
        show: whether to show progress on stderr.

    Raises:
        CheckpointError: by every method that writes, where it cannot; what was written before stays whole.
    """

    def __init__(self, folder: Path, total_steps: int, first_epoch: int, first_step: int, show: bool) -> None:
        self.folder = folder
        self.total_steps, self.first_step = total_steps, first_step
        self.stream = sys.stderr
        self.show = show and self.stream is not None  # a process may have been started without one
        self.started = time.monotonic()
        self._keep_rows_until(first_epoch, first_step)
        self.jsonl, self.text = self._open("metrics.jsonl"), self._open("train.log")
        self.board = Board(folder / "tb", first_step or None)
        self.bar: tqdm[Any] | None = None
        if self.show and self.stream.isatty():
            self.bar = tqdm(total=total_steps, initial=first_step, unit="step", file=self.stream, dynamic_ncols=True)

    def _open(self, name: str) -> BinaryIO:
        try:
            return (self.folder / name).open("ab", buffering=0)
        except OSError as error:
            raise unwritable(self.folder / name, error) from error

    def _keep_rows_until(self, epoch: int, step: int) -> None:
        """On resuming, forget rows of steps that are about to be taken again.

        Rows of earlier epochs stay whatever their step: it may have been counted in batches of another size.
        """
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        rows = (row for row in map(_row, lines) if row is not None)
        self.rows = [row for row in rows if row["epoch"] < epoch or row["step"] <= step]
        if len(self.rows) < len(lines):
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def rewind(self, epoch: int, step: int) -> None:
        """Forget rows of later steps, which are taken again."""
        self.first_step, self.started = step, time.monotonic()
        self.jsonl.close()
        self._keep_rows_until(epoch, step)
        self.jsonl = self._open("metrics.jsonl")
        self.board.close()
        self.board = Board(self.folder / "tb", step)
        if self.bar is not None:
            self.bar.n = step
            self.bar.refresh()

    def say(self, line: str, always: bool = False) -> None:
        """One line for the reader, on the screen and in train.log; `always` also when progress is not shown."""
        stamped = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n"
        append(self.folder / "train.log", self.text, stamped.encode(errors="replace"))
        if self.bar is not None:
            self.bar.write(line, file=self.stream)
        elif self.show or (always and self.stream is not None):
            try:
                print(line, file=self.stream, flush=True)
            except OSError:  # whoever read along has gone; training goes on
                self.show = False

    def record(self, split: str, step: int, epoch: int, values: dict[str, float]) -> None:
        """One row of metrics; numbers that are not finite are left out of the JSON, which has no word for them."""
        row = {"split": split, "step": step, "epoch": epoch}
        row |= {key: value for key, value in values.items() if math.isfinite(value)}
        if self.rows and row == self.rows[-1]:
            return  # a rollback that a killed process had recorded and not yet saved
        append(self.folder / "metrics.jsonl", self.jsonl, f"{json.dumps(row)}\n".encode())
        self.rows.append(row)
        self.board.add(split, values, step)

    def sync(self) -> None:
        """Bring the rows to the disk, before a state is saved that lies after their steps."""
        try:
            os.fsync(self.jsonl.fileno())
        except OSError as error:
            raise unwritable(self.folder / "metrics.jsonl", error) from error

    def advance(self, step: int, shown: dict[str, float] | None = None) -> None:
        """Move the bar; with `shown`, the loss parts beside it."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            if shown:
                short = {"images_per_second": "images/s"}
                self.bar.set_postfix({short.get(key, key): f"{value:.4g}" for key, value in shown.items()})

    def time_left(self, step: int) -> str:
        """An estimate like `1m05s`."""
        done = max(1, step - self.first_step)
        seconds = int((time.monotonic() - self.started) / done * (self.total_steps - step))
        return f"{seconds // 60}m{seconds % 60:02d}s"

    def write_csv(self) -> None:
        """metrics.csv: the same rows as metrics.jsonl, with one column for each name."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.folder / "metrics.csv", lambda temporary: temporary.write_text(text.getvalue()))

    def close(self) -> None:
        """Write metrics.csv, put the terminal in order and close the files."""
        try:
            self.sync()
            self.write_csv()
        finally:
            if self.bar is not None:
                self.bar.close()
            for file in (self.jsonl, self.text, self.board):
                file.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.close()
        except CheckpointError:
            if kind is None:  # else the reader must hear what ended the training
                raise


class NoLog:
    """What a process has that is not the main one: it takes what a RunLog takes, and writes nothing."""

    def say(self, line: str, always: bool = False) -> None: ...

    def record(self, split: str, step: int, epoch: int, values: dict[str, float]) -> None: ...

    def advance(self, step: int, shown: dict[str, float] | None = None) -> None: ...

    def rewind(self, epoch: int, step: int) -> None: ...

    def sync(self) -> None: ...

    def time_left(self, step: int) -> str:
        return ""

    def close(self) -> None: ...

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass
