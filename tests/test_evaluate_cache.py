"""Predictions from disk equal predictions computed; what has changed is never taken for the same; damage is absence."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ebmhybrid.data import ImageSet
from ebmhybrid.errors import EbmhybridError
from ebmhybrid.evaluate import cache as module
from ebmhybrid.evaluate import predict
from ebmhybrid.evaluate.cache import PredictionCache
from ebmhybrid.evaluate.predictions import Predictions


class Net(torch.nn.Module):
    """A linear classifier that counts the batches it is called on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(12, 3)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.head(images.to(self.head.weight.dtype).flatten(1))


def _set(seed: int = 0, n: int = 30) -> ImageSet:
    images = torch.randint(256, (n, 3, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return ImageSet("tiny", images, torch.arange(n) % 3, ("a", "b", "c"), ("made up",), batch_size=8)


def _same(found: Predictions, expected: Predictions) -> None:
    assert np.array_equal(found.logits, expected.logits)
    assert found.logits.dtype == np.float64
    assert np.array_equal(found.labels, expected.labels)
    assert found.labels.dtype == np.int64
    assert (found.name, found.notes, found.digest) == (expected.name, expected.notes, expected.digest)
    assert found.image_shape == expected.image_shape
    assert (found.features is None) == (expected.features is None)
    if found.features is not None and expected.features is not None:
        assert np.array_equal(found.features, expected.features)
        assert found.features.dtype == expected.features.dtype


@pytest.mark.parametrize("options", [{}, {"features": True}, {"limit": 7}, {"name": "other"}, {"labelled": True}])
def test_the_second_time_nothing_is_computed_and_all_is_the_same(tmp_path: Path, options: dict[str, object]) -> None:
    net, data = Net(), _set()
    expected = predict(net, data, **options)  # type: ignore[arg-type]
    first = PredictionCache(tmp_path / "new" / "folder", "w").predict(net, data, **options)  # type: ignore[arg-type]
    calls = net.calls
    again = PredictionCache(tmp_path / "new" / "folder", "w").predict(net, data, **options)  # type: ignore[arg-type]
    assert net.calls == calls
    _same(first, expected)
    _same(again, expected)
    assert [path.suffix for path in (tmp_path / "new" / "folder").iterdir()] == [".npz"]


def test_half_precision_is_still_said_the_second_time(tmp_path: Path) -> None:
    net, cache = Net().bfloat16(), PredictionCache(tmp_path, "w")
    first, again = cache.predict(net, _set()), cache.predict(net, _set())
    assert again.notes == ("made up", "logits came in half precision")
    _same(again, first)
    assert net.calls == 4


def _other_pixel(data: ImageSet) -> ImageSet:
    images = data.images.clone()
    images[3, 0, 1, 1] ^= 1
    return replace(data, images=images)


@pytest.mark.parametrize(
    "change",
    [
        _other_pixel,
        lambda data: replace(data, labels=data.labels.flip(0)),
        lambda data: data.noted("resized"),
        lambda data: data.select(range(29)),
    ],
    ids=["pixel", "label", "note", "fewer"],
)
def test_another_set_is_computed_anew(tmp_path: Path, change: Callable[[ImageSet], ImageSet]) -> None:
    net, cache, data = Net(), PredictionCache(tmp_path, "w"), _set()
    cache.predict(net, data)
    before = net.calls
    _same(cache.predict(net, change(data)), predict(net, change(data)))
    assert net.calls == before + 2 * 4  # four batches each


def test_other_weights_precision_limit_or_features_are_computed_anew(tmp_path: Path) -> None:
    net, data = Net(), _set()
    wide = Net().double()
    wide.load_state_dict(net.state_dict())
    cases: list[tuple[str, torch.nn.Module, dict[str, object]]] = [
        ("w", net, {}),
        ("w2", net, {}),
        ("w", wide, {}),
        ("w", net, {"limit": 20}),
        ("w", net, {"limit": 10}),
        ("w", net, {"features": True}),
    ]
    for weights, model, options in cases:
        found = PredictionCache(tmp_path, weights).predict(model, data, **options)  # type: ignore[arg-type]
        _same(found, predict(model, data, **options))  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == len(cases)


def test_other_versions_and_devices_are_computed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, cache, data = Net(), PredictionCache(tmp_path, "w"), _set()
    cache.predict(net, data)
    cache.predict(net, data, "cpu")  # where the model lies: the same file
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(module, "version", lambda package: "0.0.0")
    cache.predict(net, data)
    monkeypatch.setattr(module, "CACHE_VERSION", module.CACHE_VERSION + 1)
    cache.predict(net, data)
    monkeypatch.setattr(torch, "__version__", "0.0")
    cache.predict(net, data)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    cache.predict(net, data)
    assert len(list(tmp_path.iterdir())) == 5
    monkeypatch.setattr(module, "predict", lambda *args, **options: predict(net, data))
    for device in ("cpu", "cuda", "cuda:1"):
        cache.predict(net, data, device)
    assert len(list(tmp_path.iterdir())) == 6


class Plain:
    """A set of someone else's: batches, a digest, a shape."""

    name, digest = "plain", "d"

    def __init__(self, shape: tuple[int, int, int] = (3, 2, 2)) -> None:
        self.shape = shape

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(_set())


def test_a_limit_of_a_set_that_cannot_take_counts(tmp_path: Path) -> None:
    net, cache = Net(), PredictionCache(tmp_path, "w")
    assert [len(cache.predict(net, Plain(), limit=limit)) for limit in (5, 9, 5)] == [5, 9, 5]


def test_a_shape_counts_where_the_digest_does_not_tell_it(tmp_path: Path) -> None:
    cache = PredictionCache(tmp_path, "w")
    for shape in ((3, 2, 2), (3, 4, 4), (3, 2, 2)):
        cache.predict(Net(), Plain(shape))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_set_without_a_digest_is_computed_each_time(tmp_path: Path) -> None:
    net, cache, batches = Net(), PredictionCache(tmp_path, "w"), list(_set())
    for _ in range(2):
        _same(cache.predict(net, batches), predict(net, batches))
    assert net.calls == 4 * 4
    assert not list(tmp_path.iterdir())


def test_the_name_is_the_callers(tmp_path: Path) -> None:
    net, cache = Net(), PredictionCache(tmp_path, "w")
    assert cache.predict(net, _set(), name="one").name == "one"
    assert cache.predict(net, _set(), name="two").name == "two"
    assert cache.predict(net, _set()).name == "tiny"
    assert net.calls == 4


def test_labels_are_checked_the_second_time_too(tmp_path: Path) -> None:
    net, cache = Net(), PredictionCache(tmp_path, "w")
    strange = replace(_set(), labels=torch.full((30,), 3), classes=("a", "b", "c", "d"))
    cache.predict(net, strange)
    with pytest.raises(ValueError, match=r"set 'tiny': labels must lie in \[0, 3\), got 3"):
        cache.predict(net, strange, labelled=True)


def _halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    at = raw.index(b"logits.npy") + 200  # within the array's values
    raw[at] ^= 1
    path.write_bytes(raw)


def _other(**arrays: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with np.load(path) as content:
            whole = dict(content)
        np.savez(path, **{name: array for name, array in (whole | arrays).items() if array is not None})

    return write


def _with(value: float) -> np.ndarray:
    logits = np.zeros((30, 3))
    logits[29, 2] = value
    return logits


def _cut(n: int) -> Callable[[Path], None]:
    """All arrays of n images, of which the set has 30."""
    return _other(logits=np.zeros((n, 3)), labels=np.zeros(n, np.int64), features=np.zeros((n, 12), np.float32))


def _no_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("logits", "labels", "features", "notes", "image_shape"):
            archive.writestr(name, b"text")


def _a_folder(path: Path) -> None:
    """What follows it in the folder's name, here `.npy`, is no array either."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("logits.npy/", b"")


@pytest.mark.parametrize(
    "damage",
    [
        _halved,
        _flipped,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no archive at all"),
        lambda path: np.save(path.open("wb"), np.zeros(3)),
        _other(logits=None),
        _other(notes=None),
        _other(notes=np.array("{")),
        _other(logits=np.zeros((30, 3), np.float32)),
        _other(logits=np.zeros(30)),
        _other(labels=np.zeros(30)),
        _other(labels=np.zeros(29, np.int64)),
        _other(features=np.zeros((29, 12), np.float32)),
        _other(features=None),
        _other(logits=np.array([{}], dtype=object)),
        _other(logits=np.zeros((30, 3, 1))),
        _other(logits=np.zeros((30, 0))),
        _other(logits=np.zeros((30, 3), ">f8")),
        _other(logits=_with(np.nan)),
        _other(logits=_with(-np.inf)),
        _other(labels=np.zeros((30, 1), np.int64)),
        _other(labels=np.zeros((), np.int64)),
        _other(labels=np.zeros(30, np.int32)),
        _cut(0),
        _cut(2),
        _cut(31),
        _other(features=np.zeros(30, np.float32)),
        _other(features=np.zeros((30, 0), np.float32)),
        _other(features=np.zeros((30, 12), np.int64)),
        _other(features=np.full((30, 12), "x")),
        _other(features=np.full((30, 12), np.nan, np.float32)),
        _other(notes=np.array("5")),
        _other(notes=np.array('"text"')),
        _other(notes=np.array("[1, {}]")),
        _other(notes=np.array('{"made up": 1}')),
        _other(notes=np.zeros(3)),
        _other(image_shape=np.array("null")),
        _other(image_shape=np.array("[]")),
        _other(image_shape=np.array('"abc"')),
        _other(image_shape=np.array("[3, 2, 2.0]")),
        _other(image_shape=np.array("[3, 2, true]")),
        _other(image_shape=np.array("[3, 2, 0]")),
        _other(image_shape=np.array("[3, 2, 2, 1]")),
        _other(image_shape=np.array("[" * 100_000)),
        _no_arrays,
        _a_folder,
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_damaged_file_is_computed_anew_and_mended(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    net, cache, data = Net(), PredictionCache(tmp_path, "w"), _set()
    expected = cache.predict(net, data, features=True)
    (file,) = tmp_path.iterdir()
    damage(file)
    before = net.calls
    _same(cache.predict(net, data, features=True), expected)
    assert net.calls == before + 4
    _same(cache.predict(net, data, features=True), expected)
    assert net.calls == before + 4
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_written_is_no_less_than_what_is_read(tmp_path: Path) -> None:
    """The harness of the damages: an archive written again as it was is not computed anew."""
    net, cache, data = Net(), PredictionCache(tmp_path, "w"), _set()
    cache.predict(net, data, features=True)
    (file,) = tmp_path.iterdir()
    _other()(file)
    before = net.calls
    cache.predict(net, data, features=True)
    assert net.calls == before


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_of_no_class_in_a_file_are_damage_where_labels_are_needed(tmp_path: Path, label: int) -> None:
    net, cache, data = Net(), PredictionCache(tmp_path, "w"), _set()
    expected = cache.predict(net, data)
    (file,) = tmp_path.iterdir()
    labels = expected.labels.copy()
    labels[7] = label
    _other(labels=labels)(file)
    before = net.calls
    _same(cache.predict(net, data, labelled=True), expected)
    assert net.calls == before + 4
    _same(cache.predict(net, data), expected)
    assert net.calls == before + 4


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("n", [4, 6])
def test_a_file_of_another_count_than_the_limit_is_damage(tmp_path: Path, n: int, plain: bool) -> None:
    net, cache, data = Net(), PredictionCache(tmp_path, "w"), Plain() if plain else _set()
    expected = cache.predict(net, data, limit=5)
    assert len(expected) == 5
    (file,) = tmp_path.iterdir()
    _other(logits=np.zeros((n, 3)), labels=np.zeros(n, np.int64))(file)
    if plain and n < 5:  # such a set may have fewer: it does not tell how many it has
        assert len(cache.predict(net, data, limit=5)) == n
    else:
        _same(cache.predict(net, data, limit=5), expected)


def test_a_limit_above_the_sets_own_size_is_no_damage(tmp_path: Path) -> None:
    net, cache = Net(), PredictionCache(tmp_path, "w")
    for _ in range(2):
        assert len(cache.predict(net, _set(), limit=99)) == 30
    assert net.calls == 4


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_nothing_in_a_file_is_ever_run(tmp_path: Path) -> None:
    net, cache = Net(), PredictionCache(tmp_path / "cache", "w")
    expected = cache.predict(net, _set())
    (file,) = (tmp_path / "cache").iterdir()
    _other(logits=np.array([Hostile(tmp_path / "made")], dtype=object))(file)
    _same(cache.predict(net, _set()), expected)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("step", ["savez", "replace"])
def test_a_full_disk_costs_nothing_but_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(path: object, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np if step == "savez" else os, step, full)
    net, cache = Net(), PredictionCache(tmp_path, "w")
    _same(cache.predict(net, _set()), predict(net, _set()))
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: Path, target: Path) -> None:
        assert Path(source).is_file()
        assert not Path(target).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PredictionCache(tmp_path, "w").predict(Net(), _set())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EbmhybridError, match=r"cannot keep predictions in .*file/cache: Not a directory"):
        PredictionCache(tmp_path / "file" / "cache", "w")
    with pytest.raises(EbmhybridError, match=r"cannot keep predictions in .*file: File exists"):
        PredictionCache(tmp_path / "file", "w")


def test_a_hit_shows_no_progress(tmp_path: Path) -> None:
    shown: list[str] = []

    def progress(batches, text):  # type: ignore[no-untyped-def]
        shown.append(text)
        return batches

    cache = PredictionCache(tmp_path, "w")
    for _ in range(2):
        cache.predict(Net(), _set(), None, progress)
    assert shown == ["tiny"]
