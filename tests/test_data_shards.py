"""Shards in the WebDataset convention: what webdataset reads of them, and what is refused."""

from __future__ import annotations

import gc
import gzip
import io
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_data_streaming import encoded, orders

import ebmhybrid.data.shards
from ebmhybrid.data import ImageSet, StreamedSet, load_set, load_splits
from ebmhybrid.data.shard_index import kept_index
from ebmhybrid.data.shards import find_shards, scan
from ebmhybrid.errors import DataError

SHAPE = (3, 16, 16)


def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sample(key: str, label: int, seed: int = 0) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", encoded(seed)), (f"{key}.cls", str(label).encode())]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Three shards of 23 samples by webdataset's own writer, with members that are neither picture nor class."""
    from webdataset import TarWriter

    root = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        with TarWriter(str(root / f"part-{shard:03}.tar")) as writer:
            for i in range(23):
                form, number = ("jpg", "png", "webp")[i % 3], 23 * shard + i
                content = encoded(number, {"jpg": "jpeg"}.get(form, form), (8 + i % 5, 20))
                row = {"__key__": f"n{number:04}", form: content, "cls": str(number % 4).encode()}
                writer.write(row | {"json": b'{"a": 1}', "caption.txt": b"text"})
    return root


def load(shards: Path, folder: Path, pattern: str = "part-{000..002}.tar", **options):
    return load_set(f"shards:{shards / pattern}", data_dir=folder, shape=options.pop("shape", SHAPE), **options)


# --- what is read -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files open
def test_samples_are_those_that_webdataset_reads(shards, tmp_path):
    from PIL import Image
    from webdataset import WebDataset

    names = [str(shards / f"part-{shard:03}.tar") for shard in range(3)]
    images, labels = [], []
    for row in WebDataset(names, shardshuffle=False, empty_check=False):
        [content] = [row[form] for form in ("jpg", "png", "webp") if form in row]
        picture = Image.open(io.BytesIO(content)).convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
        images.append(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1))
        labels.append(int(row["cls"]))
    gc.collect()
    found = load(shards, tmp_path)
    assert isinstance(found, ImageSet)
    assert found.classes == ("0", "1", "2", "3")
    assert found.labels.tolist() == labels
    assert torch.equal(found.images, torch.stack(images))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_has_every_sample_once_in_the_order_asked_for(shards, tmp_path, workers):
    whole = load(shards, tmp_path)
    lazy = load(shards, tmp_path, stream=True, workers=workers)
    assert isinstance(lazy, StreamedSet)
    for start in (0, 3):
        for (images, labels), (same, their) in zip(
            lazy.fetch(orders(69)[start:]), whole.fetch(orders(69)[start:]), strict=True
        ):
            assert torch.equal(images, same)
            assert torch.equal(labels, their)
    assert lazy.pictures.names[[0, 68]].tolist() == [b"n0000.jpg", b"n0068.png"]


def test_patterns_and_folders_name_the_same_shards(shards, tmp_path):
    names = [shards / f"part-{shard:03}.tar" for shard in range(3)]
    (shards / "notes.txt").write_text("no shard")
    assert find_shards(str(shards)) == find_shards(f"{shards}/part-00{{0,1,2}}.tar") == names
    assert find_shards(f"{shards}/part-{{002..000}}.tar") == names[::-1]
    backwards = load(shards, tmp_path, "part-{002..000}.tar")
    assert torch.equal(backwards.labels[:23], load(shards, tmp_path, "part-002.tar").labels)
    some = load_set(f"shards:{shards}:1,3", data_dir=tmp_path, shape=(1, 8, 8))
    assert (some.shape, some.classes, set(some.labels.tolist())) == ((1, 8, 8), ("1", "3"), {0, 1})


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("part-{000..004}.tar", r"there is no file .*part-003\.tar \(2 of 5 are missing\)"),
        ("{part-000,part-000}.tar", "names a file twice"),
        ("part-{000..", "Unbalanced braces"),
        ("none", "there is no file .*none"),
        ("", "there is no .tar file in"),
    ],
)
def test_shards_that_are_not_there_are_named(shards, tmp_path, pattern, message):
    folder = tmp_path if not pattern else shards
    with pytest.raises(DataError, match=f"shards:.*{message}"):
        load(folder, tmp_path, pattern)


def test_the_package_webdataset_is_asked_for(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    with pytest.raises(DataError, match=r"needs the package webdataset: pip install 'ebmhybrid\[shards\]'"):
        load(shards, tmp_path)


def test_keys_end_at_the_first_dot_and_may_have_folders(tmp_path):
    members = [*sample("a/b.c/x", 2), ("a/y.PNG", encoded(1)), ("a/y.seg.png", encoded(2)), ("a/y.CLS", b" 7\n")]
    members += [("readme.txt", b"text"), ("nodot", b"text"), ("__index__.cls", b"text"), ("__index__/z.png", b"text")]
    found = list(scan(write(tmp_path / "s.tar", members)))
    assert [(row[0], row[3]) for row in found] == [(b"a/b.c/x.png", 2), (b"a/y.PNG", 7)]


def test_names_of_members_are_no_paths(tmp_path):
    outside = tmp_path / "outside.png"
    keys = ["../outside", str(tmp_path / "outside"), "new\nline", "\udcff"]
    found = load_set(
        f"shards:{write(tmp_path / 'in' / 's.tar', [m for i, key in enumerate(keys) for m in sample(key, i)])}",
        data_dir=tmp_path / "data",
    )
    assert len(found) == 4
    assert not outside.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "in"]


def test_splits_of_shards(shards, tmp_path):
    options = {"data_dir": tmp_path, "shape": SHAPE, "stream": True}
    own = load_splits(f"shards:{shards}", **options)
    assert [len(part) for part in (own.train, own.validation, own.test)] == [48, 7, 14]
    apart = load_splits(f"shards:{shards}/part-{{000..001}}.tar", test=f"shards:{shards}/part-002.tar", **options)
    assert [len(part) for part in (apart.train, apart.validation, apart.test)] == [41, 5, 23]
    with pytest.raises(DataError, match="23 of its 23 images are also in"):
        load_splits(f"shards:{shards}", test=f"shards:{shards}/part-002.tar", **options)


# --- what is refused --------------------------------------------------------------------------------------------

GOOD = sample("good", 1)
REFUSED = {
    "no class": ([*GOOD, ("x.png", b"")], "member 'x.png' has no class number KEY.cls beside it"),
    "no picture": ([("x.cls", b"1"), *GOOD], r"member 'x.cls' has no picture KEY.jpg \(jpeg, png, webp\) beside it"),
    "apart": ([GOOD[0], *sample("y", 0), GOOD[1]], "member 'good.png' has no class number"),
    "two pictures": ([("x.jpg", b""), ("x.png", b""), ("x.cls", b"1")], "member 'x.png' is the second picture"),
    "two classes": ([*GOOD, ("good.cls", b"1")], "member 'good.cls' is the second class number"),
    "text": ([("x.png", b""), ("x.cls", b"dog")], r"member 'x.cls' must hold a class number in 0..100000, got 'dog'"),
    "negative": ([("x.png", b""), ("x.cls", b"-1")], "got '-1'"),
    "too large": ([("x.png", b""), ("x.cls", b"100001")], "got '100001'"),
    "long": ([("x.png", b""), ("x.cls", b"1" * 33)], "must hold a class number"),
    "pickle": ([("x.png", b""), ("x.cls", b"\x80\x04N.")], "must hold a class number"),
    "empty class": ([("x.png", b""), ("x.cls", b"")], "must hold a class number in 0..100000, got ''"),
    "long name": ([(f"{'x' * 2000}.png", b""), (f"{'x' * 2000}.cls", b"1")], "has a name of 2004 characters"),
    "nothing": ([("x.txt", b"1")], "holds no samples"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_samples_that_are_not_whole_are_named(tmp_path, kind):
    members, message = REFUSED[kind]
    shard = write(tmp_path / "s.tar", members)
    with pytest.raises(DataError, match=message) as caught:
        load_set(f"shards:{shard}", data_dir=tmp_path)
    assert "s.tar" in str(caught.value)


def test_a_truncated_shard_is_refused_wherever_it_ends(tmp_path):
    whole = write(tmp_path / "whole.tar", GOOD + sample("z", 0)).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # of the last member; zeros follow
    cut = tmp_path / "cut.tar"
    for length in [*range(0, end + 1, 256), 1, end - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar: is damaged, truncated or no plain \.tar"):
            list(scan(cut))
    cut.write_bytes(whole[: end + 512])
    assert len(list(scan(cut))) == 2


@pytest.mark.parametrize("content", [b"", b"no tar" * 200, gzip.compress(b"x" * 2000), b"\xff" * 1024])
def test_what_is_no_tar_file_is_refused(tmp_path, content):
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"s\.tar: is damaged, truncated or no plain \.tar"):
        load_set(f"shards:{tmp_path}/s.tar", data_dir=tmp_path)


def _forged(shard: Path, size: bytes) -> Path:
    """The shard with another size in its first header, and the header's checksum made to fit."""
    raw = bytearray(shard.read_bytes())
    raw[124:136] = size
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    shard.write_bytes(raw)
    return shard


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\0" * 5 + b"\x01" + b"\0" * 5, b"\xff" * 10 + b"\0\0"])
def test_a_forged_size_is_refused_before_anything_is_read(tmp_path, size):
    """8 GiB, 2^40 and -65536 bytes: the last one led earlier versions of tarfile round and round."""
    with pytest.raises(DataError, match=r"s\.tar: (member 'good.png' has \d+ bytes|is damaged)"):
        list(scan(_forged(write(tmp_path / "s.tar", GOOD), size)))


def test_flipped_bits_give_an_error_or_samples(tmp_path):
    whole = write(tmp_path / "s.tar", GOOD + sample("z", 0)).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(0, len(whole.rstrip(b"\0")), 150):
        raw = bytearray(whole)
        raw[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "s.tar").write_bytes(raw)
        try:
            rows = list(scan(tmp_path / "s.tar"))
        except DataError:
            refused += 1
        else:
            assert all(offset >= 0 and offset + size <= len(raw) for _, offset, size, _ in rows)
    assert 10 < refused < 150


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_cannot_be_decoded_is_skipped_and_named(tmp_path, stream):
    members = [*GOOD, ("bad.jpg", b"no picture"), ("bad.cls", b"0")]
    name = f"shards:{write(tmp_path / 's.tar', members)}"
    found = load_set(name, data_dir=tmp_path, shape=SHAPE, stream=stream)
    _, labels = next(iter(found))
    assert labels.tolist() == ([1, 1] if stream else [1])
    note = found.findings[0] if stream else found.notes[-1]
    assert note.startswith("1 of 2 pictures cannot be decoded")
    assert "s.tar: member 'bad.jpg': cannot be decoded as a picture" in note
    with pytest.raises(DataError, match=r"member 'bad\.jpg': cannot be decoded"):
        list(load_set(name, data_dir=tmp_path, shape=SHAPE, stream=stream, strict=True))


# --- the index --------------------------------------------------------------------------------------------------


def scans(monkeypatch) -> list[Path]:
    seen: list[Path] = []
    monkeypatch.setattr(ebmhybrid.data.shards, "scan", lambda shard: seen.append(shard) or scan(shard))
    return seen


def test_unchanged_shards_are_scanned_once(shards, tmp_path, monkeypatch):
    seen = scans(monkeypatch)
    first = load(shards, tmp_path / "data")
    assert len(seen) == 3
    again = load(shards, tmp_path / "data")
    assert len(seen) == 3
    assert again.digest() == first.digest()
    assert [path.suffix for path in (tmp_path / "data").iterdir()] == [".npz"]
    load(shards, tmp_path / "data", "part-000.tar")  # another set of shards has an index of its own
    assert len(seen) == 4


def test_shards_that_changed_are_scanned_again(tmp_path, monkeypatch):
    seen = scans(monkeypatch)
    shard = write(tmp_path / "s.tar", sample("a", 0) + sample("b", 1))
    assert load_set(f"shards:{shard}", data_dir=tmp_path).labels.tolist() == [0, 1]
    stat = shard.stat()
    write(shard, sample("a", 1) + sample("b", 0))
    assert shard.stat().st_size == stat.st_size
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert load_set(f"shards:{shard}", data_dir=tmp_path).labels.tolist() == [1, 0]
    write(shard, sample("a", 1) + sample("b", 0) + [m for i in range(20) for m in sample(f"c{i}", 2)])
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert len(load_set(f"shards:{shard}", data_dir=tmp_path)) == 22
    assert len(seen) == 3


def test_a_damaged_or_forged_index_is_made_again(shards, tmp_path, monkeypatch):
    names = find_shards(str(shards))
    load(shards, tmp_path)
    [file] = tmp_path.iterdir()
    good = file.read_bytes()
    with np.load(file) as kept:
        columns = dict(kept)
    forged = {
        "far offset": {"offsets": columns["offsets"] + 2**40},
        "negative": {"sizes": -columns["sizes"]},
        "no such shard": {"shards": columns["shards"] + 1},
        "objects": {"names": columns["names"].astype(object)},
        "floats": {"labels": columns["labels"].astype(float)},
        "short": {"labels": columns["labels"][1:]},
        "empty": {name: column[:0] for name, column in columns.items() if name != "state"},
        "another column": {"more": columns["labels"]},
    }
    for changes in forged.values():
        np.savez(file, **columns | changes)
        assert kept_index(tmp_path, names) is None
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(good), 60):
        file.write_bytes(good[:place])
        assert kept_index(tmp_path, names) is None
    np.savez(file, **columns)
    assert kept_index(tmp_path, names) is not None
    file.write_bytes(b"")
    seen = scans(monkeypatch)
    assert len(load(shards, tmp_path)) == 69
    assert len(seen) == 3
    assert kept_index(tmp_path, names) is not None


def test_a_folder_that_cannot_be_written_costs_the_index_alone(shards, tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert len(load(shards, tmp_path / "file" / "data")) == 69
