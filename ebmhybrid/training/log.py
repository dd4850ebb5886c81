"""A run's record: train.log, metrics.jsonl, metrics.csv and TensorBoard, and what the user sees meanwhile."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ebmhybrid.training.checkpoint import write_atomically


def _row(line: str) -> dict[str, Any] | None:
    """A row of metrics.jsonl, or None for a line that a kill left half-written."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


class RunLog:
    """Writes a run's metrics everywhere they belong, and shows a bar on a terminal or plain lines elsewhere.

    Arguments:
        folder: the run directory.
        total_steps, first_step: for the bar and the estimate of the time left.
        show: whether to show progress on stderr.
    """

    def __init__(self, folder: Path, total_steps: int, first_step: int, show: bool) -> None:
        self.folder = folder
        self.total_steps, self.first_step = total_steps, first_step
        self.stream = sys.stderr
        self.show = show and self.stream is not None  # a process may have been started without one
        self.started = time.monotonic()
        self._keep_rows_until(first_step)
        self.jsonl = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self.text = (folder / "train.log").open("a", encoding="utf-8", errors="replace")
        self.board = self._open_board(first_step or None)
        self.bar: tqdm[Any] | None = None
        if self.show and self.stream.isatty():
            self.bar = tqdm(total=total_steps, initial=first_step, unit="step", file=self.stream, dynamic_ncols=True)

    def _keep_rows_until(self, step: int) -> None:
        """On resuming, forget rows of steps that are about to be taken again."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        self.rows = [row for row in map(_row, lines) if row is not None and row["step"] <= step]
        if len(self.rows) < len(lines):
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def rewind(self, step: int) -> None:
        """Forget rows of later steps, which are taken again."""
        self.first_step, self.started = step, time.monotonic()
        self.jsonl.close()
        self._keep_rows_until(step)
        self.jsonl = (self.folder / "metrics.jsonl").open("a", encoding="utf-8")
        self.board.close()
        self.board = self._open_board(purge_step=step)
        if self.bar is not None:
            self.bar.n = step
            self.bar.refresh()

    def _open_board(self, purge_step: int | None) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        return SummaryWriter(str(self.folder / "tb"), purge_step=purge_step)

    def say(self, line: str, always: bool = False) -> None:
        """One line for the reader, on the screen and in train.log; `always` also when progress is not shown."""
        self.text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
        self.text.flush()
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
        self.rows.append(row)
        self.jsonl.write(json.dumps(row) + "\n")
        self.jsonl.flush()
        for key, value in values.items():
            self.board.add_scalar(f"{split}/{key}", value, step)

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
        if self.bar is not None:
            self.bar.close()
        for file in (self.jsonl, self.text, self.board):
            file.close()
