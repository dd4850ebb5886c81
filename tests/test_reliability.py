"""What a run keeps on disk, fault by fault: checksums, the state before the last, names, locks, logs.

Whole processes that are killed or starved are in test_reliability_kills.py and test_reliability_faults.py.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import time
from collections import OrderedDict
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ebmhybrid as eh
from ebmhybrid.errors import CheckpointError
from ebmhybrid.evaluate import compare_runs
from ebmhybrid.evaluate.files import replaced
from ebmhybrid.runs import newest_run
from ebmhybrid.training import atomic, order, records
from ebmhybrid.training.atomic import append, remove_leftovers, write_atomically
from ebmhybrid.training.board import Board
from ebmhybrid.training.checkpoint import (
    FORMAT,
    NoStateError,
    load_latest_state,
    load_state,
    save_state,
    save_weights,
    weights_digest,
)
from ebmhybrid.training.digest import tensors_digest, tree_digest
from ebmhybrid.training.log import RunLog
from ebmhybrid.training.order import last_written, name_order
from ebmhybrid.training.records import (
    check_unused,
    find_resumable,
    fresh_folder,
    is_resumable,
    locked,
    mark_finished,
    open_folder,
)

METADATA = {
    "architecture": {"name": "wide_resnet", "depth": 10, "width": 1, "num_classes": 3, "in_channels": 1},
    "classes": ["a", "b", "c"],
    "image_shape": [1, 8, 8],
    "recipe": "{}",
}


def state_of(step: int) -> dict:
    values = torch.arange(50.0) + step
    return {"format": FORMAT, "parts": {"progress": {"step": step}, "model": OrderedDict(w=values), "none": None}}


def folder_with(tmp_path: Path, *steps: int) -> Path:
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    for step in steps:
        save_state(tmp_path / "checkpoints" / "last.state.pt", state_of(step))
    return tmp_path


def step_of(state: dict) -> int:
    assert torch.equal(state["parts"]["model"]["w"], torch.arange(50.0) + state["parts"]["progress"]["step"])
    return state["parts"]["progress"]["step"]


def test_weights_carry_their_sha256_and_damage_is_noticed(tmp_path) -> None:
    model, path = eh.WideResNet(depth=10, width=1, num_classes=3, in_channels=1), tmp_path / "w.safetensors"
    save_weights(path, model, METADATA)
    naive = hashlib.sha256()
    for name, value in sorted(load_file(path).items()):
        naive.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
    with safe_open(path, framework="pt") as file:
        texts = file.metadata()
    assert texts["sha256"] == naive.hexdigest() == weights_digest(eh.load_model(path))
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in (start, (start + len(whole)) // 2, len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(CheckpointError, match=r"w\.safetensors: damaged, its weights do not have the sha256"):
            eh.load_model(path)
    del texts["sha256"]  # as earlier versions wrote it
    save_file(load_file(path), path, metadata=texts)
    eh.load_model(path)


def test_digests_see_values_names_types_shapes_and_places_but_no_memory_layout() -> None:
    images = torch.arange(48.0).reshape(2, 2, 3, 4)
    assert tensors_digest({"a": images}) == tensors_digest({"a": images.to(memory_format=torch.channels_last)})
    assert tree_digest([images.mT]) == tree_digest([images.mT.contiguous()])
    kinds = (torch.bfloat16, torch.float8_e4m3fn, torch.float16, torch.int64, torch.bool, torch.complex64)
    tensors = [torch.zeros(shape, dtype=kind) for kind in kinds for shape in ((), (0,), (0, 3), (1,), (2, 2))]
    others = [1, 1.0, True, "1", b"1", None, (), [], {}, [1], (1,), [[1]], [1, None], {"1": 1}, {1: "1"}, 2**5000, -1]
    others += [float("nan"), -0.0, 0.0, {"a": {"b": 1}}, {"a": {}, "b": 1}, ["a", "b"], ["ab"], tuple(range(625))]
    others += ["str 1", torch.float32, {"b": 2, "a": 1}, {"a": 1, "b": 2}, "\ud800"]
    digests = [tree_digest(value) for value in (*tensors, *others)]
    assert len(set(digests)) == len(digests)
    assert tree_digest(OrderedDict(a=1)) == tree_digest({"a": 1})
    with pytest.raises(TypeError, match="it holds a set"):
        tree_digest({"a": {1}})
    laughs: list = []
    for _ in range(40):
        laughs = [laughs, laughs]
    with pytest.raises(ValueError, match="more than 1048576 values"):
        tree_digest(laughs)
    deep: list = []
    for _ in range(10**5):
        deep = [deep]
    tree_digest(deep)


def test_the_state_before_the_last_is_kept_and_used_where_the_last_is_damaged(tmp_path) -> None:
    with pytest.raises(NoStateError, match="no training state, so nothing to resume from"):
        load_latest_state(tmp_path)
    folder = folder_with(tmp_path, 1)
    assert sorted(os.listdir(folder / "checkpoints")) == ["last.state.pt"]
    folder_with(tmp_path, 2, 3)
    last, previous = (folder / "checkpoints" / name for name in ("last.state.pt", "previous.state.pt"))
    assert sorted(os.listdir(folder / "checkpoints")) == [last.name, previous.name]
    state, note = load_latest_state(folder)
    assert (step_of(state), note) == (3, None)
    assert "sha256" not in state
    assert step_of(load_state(previous)) == 2
    whole = last.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"PK\3\4" + b"\0" * 500):
        last.write_bytes(damaged)
        state, note = load_latest_state(folder)
        assert step_of(state) == 2
        assert note
        assert str(last) in note
        assert note.endswith("; going on from previous.state.pt of step 2")
    last.unlink()
    assert step_of(load_latest_state(folder)[0]) == 2
    last.write_bytes(whole[:-50])
    previous.write_bytes(whole[:-60])
    with pytest.raises(
        CheckpointError, match=r"last\.state\.pt: cannot be read.*; .*previous\.state\.pt: cannot be read"
    ):
        load_latest_state(folder)
    last.write_bytes(whole)
    torch.save(state_of(4), last)  # without a checksum, as earlier versions wrote it
    assert step_of(load_latest_state(folder)[0]) == 4


def test_a_flipped_bit_never_gives_another_state(tmp_path) -> None:
    last = folder_with(tmp_path, 7) / "checkpoints" / "last.state.pt"
    whole, draw, refused = last.read_bytes(), random.Random(0), 0
    values = whole.index(state_of(7)["parts"]["model"]["w"].numpy().tobytes())
    for position in (*range(values, values + 200, 10), *(draw.randrange(len(whole)) for _ in range(150))):
        last.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << draw.randrange(8))]) + whole[position + 1 :])
        try:
            assert tree_digest(load_state(last)) == tree_digest(state_of(7))  # a bit of padding, or of a time
        except CheckpointError:
            refused += 1
    assert refused >= 20


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("operation", ["fsync", "link", "replace"])
def test_a_failing_operation_at_any_time_leaves_a_usable_state(
    operation: str, damaged: bool, links: bool, tmp_path, monkeypatch
) -> None:
    """Also while the last state is damaged: then the one before it must not be given up for it."""
    for fatal in range(1, 4):
        folder = folder_with(tmp_path, 1, 2)
        if damaged:
            (folder / "checkpoints" / "last.state.pt").write_bytes(b"gone")
        with monkeypatch.context() as patch:
            if not links:
                patch.setattr(os, "link", failing(os.link, 1, 2, 3))
            patch.setattr(os, operation, failing(getattr(os, operation), fatal))
            try:
                folder_with(tmp_path, 3)
                kept = 3
            except CheckpointError as error:
                assert "cannot be written (No space left on device)" in str(error)  # noqa: PT017
                kept = 1 if damaged else 2
        assert step_of(load_latest_state(folder)[0]) in (kept, 3)
        assert not list((folder / "checkpoints").glob(".*"))


def failing(work, *at_calls: int):
    """A function that fails at some of its calls, as on a full disk."""
    calls: list[int] = []

    def run(*given):
        calls.append(1)
        if len(calls) in at_calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        return work(*given)

    return run


def test_files_reach_the_disk_before_their_names_do(tmp_path, monkeypatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: done.append(Path(os.readlink(f"/proc/self/fd/{number}")).name))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"to {Path(b).name}"), replace(a, b)))
    path = tmp_path / "a.txt"
    for text in ("1", "2"):
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text), keep_as=tmp_path / "b.txt")
    hidden = f".a.txt.{os.getpid()}.tmp"
    assert done == [hidden, "to a.txt", tmp_path.name, hidden, "to a.txt", "to b.txt", tmp_path.name]
    assert (path.read_text(), (tmp_path / "b.txt").read_text()) == ("2", "1")


def test_only_temporary_files_of_ours_are_removed_and_only_with_the_lock(tmp_path) -> None:
    ours = [".last.state.pt.4711.tmp", ".config.yaml.1.tmp"]
    others = [".notes.tmp", "last.state.pt.4711.tmp", ".a.12x.tmp", ".hidden", "config.yaml"]
    folder = folder_with(tmp_path, 1)
    for where in (folder, folder / "checkpoints"):
        for name in (*ours, *others):
            (where / name).write_text("x")
    remove_leftovers(tmp_path / "missing")
    with locked(folder):
        pass
    assert sorted(os.listdir(folder)) == sorted([*others, "checkpoints"])
    assert sorted(os.listdir(folder / "checkpoints")) == sorted([*others, "last.state.pt"])


def test_what_is_appended_is_whole_or_not_there(tmp_path) -> None:
    class Full:
        def __init__(self, file) -> None:
            self.file, self.room, self.fileno = file, 3, file.fileno

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = self.file.write(data[: self.room])
            self.room -= written
            return written

    path = tmp_path / "m.jsonl"
    with path.open("ab", buffering=0) as file:
        append(path, file, b"row 1\n")
        with pytest.raises(CheckpointError, match=r"m\.jsonl: cannot be written \(No space left on device\)"):
            append(path, Full(file), b"row 2\n")
        assert path.read_bytes() == b"row 1\n"
        append(path, file, b"row 3\n")
    assert path.read_bytes() == b"row 1\nrow 3\n"


def test_a_start_that_was_killed_before_its_recipe_is_begun_again(tmp_path) -> None:
    folder = open_folder(tmp_path / "run")
    (folder / ".lock").touch()
    (folder / ".config.yaml.99.tmp").write_text("na")
    check_unused(folder)
    assert open_folder(folder) == folder
    for name in ("config.yaml", "checkpoints/last.state.pt", "notes.tmp"):
        (folder / name).touch()
        with pytest.raises(CheckpointError, match="exists and is not an empty directory"):
            open_folder(folder)
        (folder / name).unlink()
    check_unused(folder)


class Clock(datetime):
    at = datetime(2026, 3, 1, 12)

    @classmethod
    def now(cls, tz=None):
        return cls.at


def test_names_never_go_backwards(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(records, "datetime", Clock)
    (tmp_path / "mine").mkdir()
    (tmp_path / "99999999-1").mkdir()
    made = []
    for hours in (0, 0, 5, -3, -3, *[-400] * 9, 6):
        Clock.at = datetime(2026, 3, 1, 12) + timedelta(hours=hours)
        made.append(fresh_folder(tmp_path).name)
    assert made[:5] == [
        "20260301-120000",
        "20260301-120000-2",
        "20260301-170000",
        "20260301-170000-2",
        "20260301-170000-3",
    ]
    assert made[-2:] == ["20260301-170000-12", "20260301-180000"]
    assert sorted(made, key=name_order) == made


def test_the_newest_run_by_times_that_can_be_true_and_by_name_else(tmp_path, monkeypatch) -> None:
    now = time.time()
    names = ["20260101-000000", "20260102-000000", "20260102-000000-2", "20260102-000000-10"]
    a, b, c, d = (tmp_path / "digits" / name for name in names)
    other, mine = tmp_path / "jem" / names[0], tmp_path / "mine"
    day = datetime(2026, 1, 3).timestamp()
    monkeypatch.setattr(order.time, "time", lambda: day + 30 * 86400)
    past, future = day - 9999 * 86400, day + 9999 * 86400
    cases = [
        ({a: day + 3, b: day + 2, c: day + 1}, a),  # gone on with after the others were made
        ({a: day, b: day + 1, c: past}, c),  # the clock was set back before c, which was made after b
        ({a: day, b: future, c: past}, c),
        ({a: day, b: day + 1, d: past, c: past}, d),
        ({a: day, b: future, other: day + 5}, other),  # nothing is known of b but that it came after a
        ({a: future, other: day}, other),
        ({a: past, other: day}, other),
        ({mine: future, other: day}, other),
        ({mine: day + 1, other: day}, mine),
        ({a: future, mine: future + 1}, a),
        ({mine: past, tmp_path / "old": past - 1}, mine),
        ({tmp_path / "99999999-999999": day, other: day - 1}, tmp_path / "99999999-999999"),
    ]
    for times, wanted in cases:
        for ordered in (times, dict(reversed(times.items()))):
            assert last_written(ordered) == wanted, times
    monkeypatch.undo()
    for run, written in ((a, now - 50), (other, now - 60), (mine, now + 86400)):
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "last.safetensors").touch()
        os.utime(run / "checkpoints" / "last.safetensors", (written, written))
    assert newest_run(tmp_path) == a


def test_a_lock_is_of_the_file_that_is_there(tmp_path, monkeypatch) -> None:
    """Between opening and locking, the former owner may remove the file, and a third one lock another."""
    real, removed = records.fcntl.flock, []

    def flock(file, how):
        if not removed:
            removed.append((tmp_path / ".lock").unlink())
        real(file, how)

    monkeypatch.setattr(records.fcntl, "flock", flock)
    with locked(tmp_path):
        monkeypatch.undo()
        assert (tmp_path / ".lock").exists()
        with pytest.raises(CheckpointError, match="another process is training there"), locked(tmp_path):
            pass
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), OSError(errno.ENOSYS, "none")])
def test_a_file_system_without_locks_can_be_trained_on(error: OSError, tmp_path, monkeypatch) -> None:
    def flock(file, how):
        raise error

    monkeypatch.setattr(records.fcntl, "flock", flock)
    (tmp_path / ".config.yaml.1.tmp").touch()
    with locked(tmp_path):
        assert (tmp_path / ".config.yaml.1.tmp").exists()  # it may be another process's
    monkeypatch.setattr(error, "errno", errno.EACCES)
    refused = PermissionError(errno.EACCES, "as some network file systems say of a lock that is held")
    monkeypatch.setattr(records.fcntl, "flock", lambda *_: (_ for _ in ()).throw(refused))
    with pytest.raises(CheckpointError, match="another process is training there"), locked(tmp_path):
        pass


def test_the_newest_unfinished_run_is_found(tmp_path) -> None:
    assert find_resumable(tmp_path, "digits") is None
    runs = [tmp_path / "digits" / name for name in ("20260101-000000", "20260101-000000-2", "20260101-000000-10", "x")]
    for run in runs:
        run.mkdir(parents=True)
    assert find_resumable(tmp_path, "digits") is None
    for run in runs:
        (run / "config.yaml").touch()
    (runs[0] / "env.json").write_text('{"started": "then"}')
    (runs[1] / "env.json").write_text("{")
    (runs[2] / "env.json").write_text('{"started": "then"}')
    assert find_resumable(tmp_path, "digits") == runs[2]
    assert find_resumable(tmp_path, "other") is None
    mark_finished(runs[2])
    assert json.loads((runs[2] / "env.json").read_text()).keys() == {"started", "finished"}
    assert not is_resumable(runs[2])
    assert find_resumable(tmp_path, "digits") == runs[1]
    with locked(runs[1]):
        assert find_resumable(tmp_path, "digits") == runs[0]
    (runs[1] / ".lock").touch()  # of a process that was killed
    assert find_resumable(tmp_path, "digits") == runs[1]


def test_a_full_disk_ends_the_log_with_one_error_and_no_half_row(tmp_path) -> None:
    log = RunLog(tmp_path, 5, 0, 0, False)
    log.record("train", 1, 0, {"loss": 1.0})
    whole = log.jsonl
    with open("/dev/full", "ab", buffering=0) as log.jsonl:
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written \(No space left on device\)"):
            log.record("train", 2, 0, {"loss": 2.0})
        with pytest.raises(ZeroDivisionError), log:
            raise ZeroDivisionError  # which the reader must hear of, rather than of the rows that cannot be flushed
    assert [row["step"] for row in log.rows] == [1]
    whole.close()
    for part, name in (("text", "train.log"), ("board", "events")):
        log = RunLog(tmp_path, 5, 0, 1, False)
        owner, attribute = (log, "text") if part == "text" else (log.board, "file")
        getattr(owner, attribute).close()
        with open("/dev/full", "ab", buffering=0) as file:
            setattr(owner, attribute, file)
            write = partial(log.say, "a line") if part == "text" else partial(log.record, "train", 2, 0, {"loss": 2.0})
            with pytest.raises(CheckpointError, match=rf"{name}.*cannot be written \(No space left on device\)"):
                write()
        log.close()
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written \(Is a directory\)"):
        RunLog(tmp_path, 5, 0, 0, False)


def test_a_rollback_that_was_recorded_and_not_saved_is_recorded_once(tmp_path) -> None:
    with RunLog(tmp_path, 5, 0, 0, False) as log:
        log.record("train", 2, 0, {"loss": 1.0})
        log.record("train", 4, 0, {"loss": 1.0})
        log.rewind(0, 2)
        log.record("rollback", 2, 0, {"rollbacks": 1, "diverged_at": 5})
    with RunLog(tmp_path, 5, 0, 2, False) as log:
        log.record("rollback", 2, 0, {"rollbacks": 1, "diverged_at": 5})
        log.record("rollback", 2, 0, {"rollbacks": 2, "diverged_at": 3})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["split"], row.get("rollbacks")) for row in rows] == [("train", None), ("rollback", 1), ("rollback", 2)]


def test_tensorboard_reads_the_events_and_forgets_steps_that_were_taken_again(tmp_path, monkeypatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    clock = iter(range(10**9, 10**9 + 100))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    for purge, steps in ((None, (1, 2, 3)), (2, (2, 3, 4))):
        board = Board(tmp_path, purge)
        for step in steps:
            board.add("train", {"loss": step + (purge or 0) / 100, "lr": float("nan")}, step)
        board.close()
    monkeypatch.undo()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["train/loss", "train/lr"]
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    assert found == pytest.approx({1: 1.0, 2: 2.02, 3: 3.02, 4: 4.02})
    with pytest.raises(CheckpointError, match=r"events.*cannot be written \(Not a directory\)"):
        Board(next(tmp_path.iterdir()) / "tb")


def test_an_evaluation_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append(Path(os.readlink(f"/proc/self/fd/{number}")).name))
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: (flushed.append("renamed"), rename(self, to)))
    with replaced(tmp_path / "a") as fresh:
        (fresh / "results.json").write_text("{}")
        (fresh / "figures").mkdir()
        (fresh / "figures" / "x.svg").write_text("x")
    assert (sorted(flushed[:2]), flushed[2:]) == (["results.json", "x.svg"], ["renamed"])


def test_an_evaluation_that_was_killed_while_it_was_written_is_not_compared(tmp_path) -> None:
    for name in ("20260101-000000", ".20260102-000000.abcd.new"):
        (tmp_path / "eval" / name).mkdir(parents=True)
        (tmp_path / "eval" / name / "results.json").write_text("{}")
    os.utime(tmp_path / "eval" / "20260101-000000" / "results.json", (0, 0))
    assert compare_runs._find(tmp_path).parent.name == "20260101-000000"


def test_temporary_files_are_in_the_folder_of_the_file_so_that_renaming_is_one_step(tmp_path) -> None:
    path = tmp_path / "a" / "last.state.pt"
    assert atomic.temporary_name(path).parent == path.parent
