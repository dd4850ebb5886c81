"""TensorBoard events, written where they are recorded: a full disk is an error there and not in a thread of its own."""

from __future__ import annotations

import io
import os
import socket
import time
from itertools import count
from pathlib import Path
from typing import Any

from ebmhybrid.training.atomic import append, unwritable

_numbers = count()


class Board:
    """An event file of scalars that TensorBoard reads, in TensorFlow's record format.

    Arguments:
        folder: made if it is not there.
        purge_step: readers forget what earlier files of the folder say of this step and later ones.

    Raises:
        CheckpointError: it cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow to import

        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise unwritable(self.path, error) from error
        events = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            events.append(Event(wall_time=time.time(), step=purge_step, session_log=start))
        self._write(events)

    def add(self, split: str, values: dict[str, float], step: int) -> None:
        """The values of a step, each under <split>/<name>."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in values.items()]
        self._write([Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))])

    def _write(self, events: list[Any]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        for event in events:
            RecordWriter(records).write(event.SerializeToString())
        append(self.path, self.file, records.getvalue())

    def close(self) -> None:
        self.file.close()
