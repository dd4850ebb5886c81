"""Sets whose pictures stay in files: the same batches as in memory, in bounded memory, whatever the pictures do."""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.util
import os
import pickle
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import make_folder, make_npz, pixels, save_picture
from PIL import Image

import ebmhybrid.data.streamed
from ebmhybrid.data import ImageSet, StreamedSet, load_set, load_splits
from ebmhybrid.data.pictures import Decoder, decoded
from ebmhybrid.data.sets import adapt
from ebmhybrid.errors import DataError
from ebmhybrid.recipe import load_recipe
from ebmhybrid.training.build import load_data

SHAPE = (3, 16, 16)
CLASSES = ("ant", "bee", "cat")


def encoded(seed: int, form: str = "png", size: tuple[int, int] = (12, 9)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed, *size, 3)).save(file, form)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Random pictures of several sizes and forms, 23 a class."""
    root = tmp_path_factory.mktemp("streaming")
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for i in range(23):
            form = ("png", "jpeg", "webp")[i % 3]
            (root / name / f"{i:02}.{form}").write_bytes(encoded(100 * label + i, form, (8 + i % 5, 20)))
    return root


def streamed(folder: Path, workers: int = 0, **options) -> StreamedSet:
    found = load_set(f"folder:{folder}", shape=options.pop("shape", SHAPE), stream=True, workers=workers, **options)
    assert isinstance(found, StreamedSet)
    return found


def assert_same(got, want) -> None:
    for (images, labels), (other_images, other_labels) in zip(got, want, strict=True):
        assert torch.equal(images, other_images)
        assert images.stride() == other_images.stride()  # another layout would be summed in another order
        assert torch.equal(labels, other_labels)


def orders(n: int) -> list[torch.Tensor]:
    return list(torch.randperm(n, generator=torch.Generator().manual_seed(3)).split(10))


# --- the same as in memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("shape", [SHAPE, (1, 16, 16)])
def test_batches_are_those_of_the_set_in_memory(folder, workers, shape):
    whole = load_set(f"folder:{folder}", shape=shape, stream=False)
    lazy = streamed(folder, workers, shape=shape)
    assert isinstance(whole, ImageSet)
    assert (lazy.name, len(lazy), lazy.shape, lazy.classes) == (whole.name, 69, shape, CLASSES)
    assert torch.equal(lazy.labels, whole.labels)
    assert_same(lazy.fetch(orders(69)), whole.fetch(orders(69)))
    assert lazy.skipped == whole.skipped == 0
    assert lazy.findings == ()


def test_a_resumed_pass_goes_on_at_any_batch(folder):
    lazy = streamed(folder, workers=2)
    whole = list(lazy.fetch(orders(69)))
    for start in (1, 5, 6, 7):
        assert_same(lazy.fetch(orders(69)[start:]), whole[start:])


def test_subsets_are_those_of_the_set_in_memory(folder):
    whole, lazy = load_set(f"folder:{folder}", shape=SHAPE), streamed(folder)
    for of in (
        lambda s: s.select([68, 0, 0, 5], "four"),
        lambda s: s.take(7),
        lambda s: s.keep_classes("0,2"),
        lambda s: s.keep_classes("1-2").select([3, 30]).take(1),
        lambda s: s.adapt(1, 8).adapt(3, 20),
        lambda s: s.to("cpu").noted("a", "b"),
    ):
        some, other = of(lazy), of(whole)
        assert (some.name, some.classes, some.shape) == (other.name, other.classes, other.shape)
        assert some.notes[2:] == other.notes[1:]  # the streamed one has a note that it is
        assert_same(some, other)
        assert torch.equal(some.in_memory().images, other.images)


def test_adaptation_of_a_batch_does_not_depend_on_its_size():
    images = torch.from_numpy(pixels(0, 64, 3, 20, 20))
    for form in ((1, 20), (1, 9), (3, 31)):
        parts = [adapt(some, *form) for size in (1, 7, 32) for some in images.split(size)]
        assert torch.equal(torch.cat(parts), adapt(images, *form).repeat(3, 1, 1, 1))


def test_iteration_is_in_order_with_the_last_batch(folder):
    batches = list(streamed(folder, workers=2, shape=(3, 8, 8)))
    assert [len(labels) for _, labels in batches] == [69]
    lazy = streamed(folder)
    lazy = StreamedSet(lazy.name, lazy.pictures, lazy.rows, lazy.labels, lazy.classes, lazy.size, batch_size=30)
    assert [len(labels) for _, labels in lazy] == [30, 30, 9]
    assert torch.equal(torch.cat([labels for _, labels in lazy]), lazy.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_random_state_is_used(folder, workers):
    lazy = streamed(folder, workers)
    before = torch.get_rng_state(), random.getstate(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    list(lazy.fetch(orders(69)))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (random.getstate(), pickle.dumps(np.random.get_state())) == before[1:]  # noqa: NPY002


def test_small_sets_are_kept_in_memory_and_large_ones_streamed(folder, monkeypatch):
    needed = 69 * 3 * 16 * 16
    for bound, kind in ((needed, ImageSet), (needed - 1, StreamedSet)):
        monkeypatch.setattr(ebmhybrid.data.streamed, "STREAM_ABOVE", bound)
        assert type(load_set(f"folder:{folder}", shape=SHAPE)) is kind
    assert isinstance(load_set(f"folder:{folder}", shape=SHAPE, stream=False), ImageSet)


def test_whole_tensors_are_refused_and_the_setting_named(folder):
    with pytest.raises(DataError, match=r"needed at once.*data\.stream=false"):
        streamed(folder).images  # noqa: B018
    with pytest.raises(DataError, match=r"data\.stream=false"):
        load_set(f"interp:folder:{folder}", shape=SHAPE, stream=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": np.arange(0)}, "there must be at least one picture"),
        ({"labels": torch.zeros(3)}, r"labels must be int64 of shape \(69,\), got torch.float32 \(3,\)"),
        ({"classes": ("a", "b")}, r"labels must lie in 0\.\.1, got 0\.\.2"),
        ({"batch_size": 0}, "batch_size must be at least 1 and workers 0, got 0 and 2"),
        ({"workers": -1}, "got 256 and -1"),
    ],
)
def test_what_makes_no_set_is_refused(folder, changes, message):
    lazy = streamed(folder)
    arguments = {"pictures": lazy.pictures, "rows": lazy.rows, "labels": lazy.labels, "classes": CLASSES, "size": 8}
    with pytest.raises(DataError, match=message):
        StreamedSet("set", **arguments | changes)
    with pytest.raises(DataError, match=r"indices must lie in 0\.\.68, got 69\.\.69"):
        lazy.select([69])
    with pytest.raises(DataError, match="limit must be at least 1"):
        lazy.take(0)


# --- memory -----------------------------------------------------------------------------------------------------


class Same:
    """So many times one picture, in the place of files."""

    def __init__(self, n: int, content: bytes) -> None:
        self.content = content
        self.names, self.sizes = np.full(n, b"a"), np.full(n, len(content))

    def open(self, row: int) -> io.BytesIO:
        return io.BytesIO(self.content)

    def place(self, row: int) -> str:
        return str(row)


def test_memory_does_not_grow_with_the_number_of_pictures():
    """numpy's allocations are traced: all decoded pixels but those of the one batch in use would be seen."""
    peaks = {}
    for n in (300, 3000):
        lazy = StreamedSet(
            "same", Same(n, encoded(0)), np.arange(n), torch.zeros(n, dtype=torch.int64), ("a",), 64, workers=0
        )
        tracemalloc.start()
        seen = sum(len(labels) for _, labels in lazy.fetch(torch.arange(n).split(20)))
        peaks[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen == n
    batch = 20 * 3 * 64 * 64
    assert batch < peaks[300]
    assert peaks[3000] < peaks[300] + batch / 2
    assert peaks[3000] < 3000 * 3 * 64 * 64 / 10


def test_workers_decode_no_more_than_a_few_batches_ahead(tmp_path):
    """A consumer that stops to think is not overrun: 2 workers have 2 batches each on the way, and one is in use."""

    class Noting(Same):
        def open(self, row: int) -> io.BytesIO:
            (tmp_path / str(row)).touch()
            return super().open(row)

    n = 60
    chunks = [np.array([i]) for i in range(n)]
    passing = decoded(Decoder(Noting(n, encoded(0)), np.arange(n), 8), chunks, 2, "noting")
    next(passing)
    for _ in range(100):
        time.sleep(0.02)
        if len(list(tmp_path.iterdir())) >= 5:
            break
    time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) <= 6
    passing.close()


# --- pictures that cannot be decoded ----------------------------------------------------------------------------


def naive(good: list[bool], chunk: list[int]) -> list[int]:
    """Which picture stands at each place of a chunk, by the rule as it is written in the documentation."""
    shown = []
    for place in range(len(chunk)):
        behind = chunk[place:] + chunk[:place]
        candidates = [position for position in behind if good[position]]
        if not candidates:
            n = len(good)
            candidates = [(chunk[-1] + step) % n for step in range(1, n + 1) if good[(chunk[-1] + step) % n]]
        shown.append(candidates[0])
    return shown


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_replaced_by_the_next_good_one_and_counted(tmp_path, workers):
    save_in = tmp_path / "a"
    good = [i not in (0, 3, 4, 5, 9, 10, 11) for i in range(12)]
    for i, fine in enumerate(good):
        save_picture(save_in / f"{i:02}.png", (20 * i, 0, 0))
        if not fine:
            (save_in / f"{i:02}.png").write_bytes(b"no picture" * (i + 1))
    lazy = streamed(tmp_path, workers, shape=(3, 4, 4))
    chunks = [[0, 1, 2], [3, 4, 5], [6, 5, 8], [9, 10, 11], [7, 3], [11]]
    got = [(images[:, 0, 0, 0] * 255).round().int() // 20 for images, _ in lazy.fetch(map(torch.tensor, chunks))]
    assert [some.tolist() for some in got] == [naive(good, chunk) for chunk in chunks]
    assert lazy.skipped == 7
    assert lazy.findings[0].startswith("7 of 12 pictures cannot be decoded and were replaced by others, the first is ")
    assert "a/00.png: cannot be decoded as a picture" in lazy.findings[0]
    assert lazy.select([0, 1, 11]).skipped == 2  # what is known of the whole is known of its parts
    list(lazy)
    assert lazy.skipped == 7  # a second pass counts none twice


def test_labels_go_with_the_pictures_that_stand_in(tmp_path):
    make_folder(tmp_path, ("ant", "bee"), n=2)
    (tmp_path / "ant" / "1.png").write_bytes(b"")
    (tmp_path / "bee" / "1.png").write_bytes(b"")
    images, labels = next(streamed(tmp_path).fetch([torch.tensor([1, 2, 3, 0])]))
    assert labels.tolist() == [1, 1, 0, 0]
    assert [int(x) for x in (images[:, 0, 0, 0] * 255).round()] == [50, 50, 0, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_names_the_file(folder, tmp_path, workers):
    shutil.copytree(folder, tmp_path / "set")
    bad = tmp_path / "set" / "bee" / "03.png"
    bad.write_bytes(bad.read_bytes()[:60])
    lazy = streamed(tmp_path / "set", workers, strict=True)
    with pytest.raises(DataError, match=r"bee/03\.png: cannot be decoded as a picture") as caught:
        list(lazy.fetch(orders(69)))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"bee/03\.png: cannot be decoded"):
        load_set(f"folder:{tmp_path / 'set'}", shape=SHAPE, strict=True)


def test_a_set_without_a_good_picture_is_an_error(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"text")
    with pytest.raises(DataError, match=r"none of its 3 pictures can be decoded, the first is .*a/1\.png: cannot"):
        load_set(f"folder:{tmp_path}")
    with pytest.raises(DataError, match=r"none of 3 pictures one after the other can be decoded, the first is .*a/2"):
        list(streamed(tmp_path).fetch([torch.tensor([1])]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_gone_is_an_error_and_no_bad_picture(folder, tmp_path, workers):
    shutil.copytree(folder, tmp_path / "set")
    lazy = streamed(tmp_path / "set", workers)
    (tmp_path / "set" / "cat" / "22.jpeg").unlink()
    with pytest.raises(DataError, match=r"cat/22\.jpeg: cannot be read \(No such file or directory\)"):
        list(lazy.fetch(orders(69)))


# --- processes --------------------------------------------------------------------------------------------------


def test_workers_outlive_the_signals_of_a_terminal_and_a_scheduler(folder):
    lazy, got = streamed(folder, workers=2), []
    for batch in lazy.fetch(orders(69)):
        got.append(batch)
        if len(got) == 1:
            children = multiprocessing.active_children()
            assert len(children) == 2
            for name in ("-INT", "-TERM"):
                subprocess.run(["kill", name, *(str(child.pid) for child in children)], check=True)
    assert_same(got, streamed(folder).fetch(orders(69)))


def test_a_worker_that_dies_is_an_error_of_one_line(folder):
    passing = streamed(folder, workers=2).fetch([index for _ in range(30) for index in orders(69)])
    next(passing)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a process that decodes died: .*; data\.workers=0") as caught:
        list(passing)
    assert "\n" not in str(caught.value)


def test_a_pass_that_is_broken_off_leaves_no_process(folder):
    for _ in streamed(folder, workers=2).fetch(orders(69)):
        break
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("end", ["1 / 0", "os.kill(os.getpid(), 9)"])
def test_a_program_that_ends_in_the_middle_of_a_pass_takes_the_workers_along(folder, end):
    """A variable keeps the pass, whose workers must heed the interpreter's SIGTERM; SIGKILL leaves them to themselves.

    The program is a fork of this one, and a pipe that only it and its workers hold tells that all have ended.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            passing = streamed(folder, workers=2).fetch(orders(69))
            for _ in passing:
                exec(end)
        finally:
            multiprocessing.util._exit_function()  # what the interpreter calls when it ends
            os._exit(1)
    os.close(writer)
    ended, _, _ = select.select([reader], [], [], 4)  # torch's own workers look for their parent every 5 s
    os.close(reader)
    if not ended:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert ended
    assert status == (9 if "kill" in end else 1 << 8)


def test_one_batch_needs_no_process(folder, monkeypatch):
    monkeypatch.setattr("os.fork", lambda: pytest.fail("a process was forked"))
    assert len(list(streamed(folder, workers=2).fetch([torch.arange(69)]))) == 1
    assert len(load_set(f"folder:{folder}", shape=SHAPE, workers=2)) == 69


def test_workers_can_be_forked_beside_threads(folder):
    """A library that holds a lock in another thread at the fork would stop the worker for good."""
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        torch.randn(500, 500, generator=torch.Generator().manual_seed(0)).square().sum()
        for shape in (SHAPE, (1, 8, 8)):
            assert_same(
                streamed(folder, 2, shape=shape).fetch(orders(69)), streamed(folder, shape=shape).fetch(orders(69))
            )
    finally:
        torch.set_num_threads(threads)


def test_what_workers_get_can_be_sent_to_a_new_process(folder):
    """Where processes are spawned rather than forked, the decoder goes through a pipe."""
    lazy = streamed(folder)
    decoder = Decoder(lazy.pictures, lazy.rows, lazy.size)
    here, there = decoder[np.arange(5)], pickle.loads(pickle.dumps(decoder))[np.arange(5)]
    assert np.array_equal(here.pixels, there.pixels)


# --- folders ----------------------------------------------------------------------------------------------------


def test_a_thousand_classes_are_listed_in_the_order_of_their_names(tmp_path):
    content = encoded(0)
    names = [f"n{i * 7919 % 1000:08}" for i in range(1000)]
    for name in names:
        (tmp_path / name).mkdir()
        for i in (1, 0):
            (tmp_path / name / f"{i}.JPEG").write_bytes(content)
    started = time.monotonic()
    lazy = streamed(tmp_path)
    assert time.monotonic() - started < 5
    assert lazy.classes == tuple(sorted(names))
    assert lazy.labels.tolist() == [label for label in range(1000) for _ in range(2)]
    assert lazy.pictures.names[:3].tolist() == [b"n00000000/0.JPEG", b"n00000000/1.JPEG", b"n00000001/0.JPEG"]


def test_what_is_no_picture_file_is_passed_over(tmp_path):
    make_folder(tmp_path, n=1)
    (tmp_path / "cat" / "folder.png").mkdir()
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    os.mkfifo(tmp_path / "cat" / "pipe.png")  # opening it would wait for ever
    (tmp_path / "cat" / "link.png").symlink_to("0.png")
    assert streamed(tmp_path).pictures.names.tolist() == [b"cat/0.png", b"cat/link.png", b"dog/0.png"]
    (tmp_path / "dog" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read \(No such file or directory\)"):
        streamed(tmp_path)


def test_names_that_are_not_utf_8_are_read(tmp_path):
    (tmp_path / "a").mkdir()
    Path(os.fsdecode(bytes(tmp_path) + b"/a/\xff\xe9.png")).write_bytes(encoded(0))
    (tmp_path / "a" / "日本.png").write_bytes(b"bad")
    lazy = streamed(tmp_path)
    assert len(list(lazy)) == 1
    assert lazy.skipped == 1
    assert "日本.png" in lazy.findings[0]


def test_the_digest_is_of_names_sizes_and_labels(folder, tmp_path):
    digest = streamed(folder).digest()
    shutil.copytree(folder, tmp_path / "set")
    moved = streamed(tmp_path / "set")
    assert moved.digest() == digest == moved.select(range(69)).digest()
    others = [
        moved.take(68),
        moved.select([1, 0, *range(2, 69)]),
        moved.adapt(1, 16),
        streamed(folder, shape=(3, 8, 8)),
        load_set(f"folder:{folder}:0-1", shape=SHAPE, stream=True),
    ]
    (tmp_path / "set" / "ant" / "00.png").rename(tmp_path / "set" / "ant" / "0.png")
    others.append(streamed(tmp_path / "set"))
    (tmp_path / "set" / "ant" / "0.png").rename(tmp_path / "set" / "ant" / "00.png")
    (tmp_path / "set" / "cat" / "22.jpeg").write_bytes(b"")
    others.append(streamed(tmp_path / "set"))
    assert len({digest, *(other.digest() for other in others)}) == 1 + len(others)
    assert moved.notes[-1] == "read from files batch by batch; its sha256 is of names, file sizes and labels"


# --- splits and recipes -----------------------------------------------------------------------------------------


def test_splits_are_those_of_the_set_in_memory(folder):
    lazy = load_splits(f"folder:{folder}", shape=SHAPE, stream=True, seed=3)
    whole = load_splits(f"folder:{folder}", shape=SHAPE, seed=3)
    for part in ("train", "validation", "test"):
        some, other = getattr(lazy, part), getattr(whole, part)
        assert isinstance(some, StreamedSet)
        assert some.notes[-1] == other.notes[-1]
        assert_same(some, other)
    record = lazy.record()
    assert record["train"]["sha256"] == lazy.train.digest()
    assert record["train"]["shape"] == [3, 16, 16]


def test_a_test_folder_of_training_pictures_is_refused(folder, tmp_path):
    for i, name in enumerate(CLASSES):
        (tmp_path / "other" / name).mkdir(parents=True)
        for j in range(3):
            (tmp_path / "other" / name / f"{j}.png").write_bytes(encoded(1000 + 10 * i + j, size=(8, 20)))
    found = load_splits(f"folder:{folder}", test=f"folder:{tmp_path}/other", shape=SHAPE, stream=True)
    assert isinstance(found.test, StreamedSet)
    assert len(found.test) == 9
    shutil.copy(folder / "ant" / "00.png", tmp_path / "other" / "bee" / "copy.png")
    with pytest.raises(DataError, match="1 of its 10 images are also in folder:"):
        load_splits(f"folder:{folder}", test=f"folder:{tmp_path}/other", shape=SHAPE, stream=True)
    make_npz(tmp_path / "x.npz", shape=(16, 16, 3), classes=3)
    mixed = load_splits(f"folder:{folder}", test=f"npz:{tmp_path}/x.npz", shape=SHAPE, stream=True)
    assert mixed.test.notes[-1] == f"not compared with the images of folder:{folder}"


def test_recipes_choose_how_pictures_are_read(folder, tmp_path):
    keys = [f"data.train=folder:{folder}", "data.image_size=16", "data.stream=true", "data.workers=0"]
    splits = load_data(load_recipe("smoke", keys), str(tmp_path), download=False)
    assert isinstance(splits.train, StreamedSet)
    assert (splits.train.workers, splits.train.strict, splits.train.shape) == (0, False, SHAPE)
    assert load_data(load_recipe("smoke", keys), str(tmp_path), False, strict=True).train.strict
    in_memory = load_data(load_recipe("smoke", [*keys[:2], "data.stream=false"]), str(tmp_path), download=False)
    assert isinstance(in_memory.train, ImageSet)
    with pytest.raises(ValueError, match=r"stream: is for folder:PATH and shards:PATTERN, not for digits"):
        load_recipe("smoke", ["data.train=digits", "data.stream=true"])
    with pytest.raises(ValueError, match=r"data\.workers"):
        load_recipe("smoke", ["data.workers=-1"])
    with pytest.raises(DataError, match="workers must be at least 0"):
        load_set(f"folder:{folder}", workers=-1)


def test_a_worker_that_starts_after_its_parent_was_killed_ends(tmp_path):
    """By then it is another process's child, and must not take that one for its parent."""
    code = (
        "import os, sys, time\n"
        "from ebmhybrid.data.pictures import _heed_parent\n"
        "_heed_parent(int(sys.argv[1]), 0)\n"
        "time.sleep(30)\n"
        "os._exit(3)"
    )
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = subprocess.run([sys.executable, "-c", code, str(gone.pid)], timeout=60)
    assert done.returncode == 0
