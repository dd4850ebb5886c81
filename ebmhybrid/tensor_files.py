"""Tensors in files of strangers: nothing in them is executed, and what they announce is checked before it is allocated.

A file of torch is a pickle beside raw bytes. `weights_only=True` keeps the pickle from running anything, but not from
asking for memory: a storage of 2^40 numbers, an expanded view that has one. No honest file announces more than it has.
Before 2.10 torch also believed what a pickle says of a storage's length, and wrote where it says (GHSA-63cw-57p8-fm3p);
here both are refused before torch reads the file.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import torch
from torch import Tensor

_HEADS = 4  # pickles before a legacy file's bytes: magic number, version, system, content
# Bytes of a number in a storage of a kind; of the other kinds, one.
_WIDTHS = {
    "ComplexDouble": 16,
    **dict.fromkeys(("ComplexFloat", "Double", "Long"), 8),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("BFloat16", "Half", "Short"), 2),
}


def load_tensors(file: IO[bytes]) -> Any:
    """What `torch.save` wrote to a file that is open for reading, on the CPU, without executing anything in it.

    Raises:
        ValueError: the file announces more numbers than it holds, or holds a tensor that is not dense.
        Exception: whatever else torch raises for a file that is damaged, or none of its own.

    >>> file = io.BytesIO()
    >>> torch.save({"a": torch.ones(2)}, file)
    >>> load_tensors(file)
    {'a': tensor([1., 1.])}
    >>> file = io.BytesIO()
    >>> torch.save({"a": torch.ones(1).expand(99, 99)}, file)
    >>> load_tensors(file)
    Traceback (most recent call last):
    ValueError: a tensor of shape (99, 99) is announced, and 4 bytes are there for it
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    check_announced(file, size)
    file.seek(0)
    content = torch.load(file, map_location="cpu", weights_only=True)
    for tensor in _tensors(content):
        check_dense(tensor)
    return content


def check_announced(file: IO[bytes], size: int) -> None:
    """An error where the pickles of a torch file of `size` bytes announce more than so many bytes.

    Raises:
        ValueError: they do, or cannot be read.
    """
    zipped = file.read(4) == b"PK\3\4"
    source, held = _zipped(file) if zipped else _legacy(file)
    for _ in range(1 if zipped else _HEADS):
        reader = _Announced(source, size)
        reader.load()
        for key, announced in reader.storages.items():
            if zipped and announced > held.get(key, -1):
                raise ValueError(f"a storage of {announced} bytes is announced, {held.get(key, 0)} are there for it")
        if (total := sum(reader.storages.values())) > size:
            raise ValueError(f"tensors of {total} bytes are announced, the file has {size}")


def check_dense(tensor: Tensor) -> None:
    """An error unless a tensor's numbers are in memory, each of them, so that a copy is no larger than its file.

    Raises:
        ValueError: a sparse, quantised or meta tensor, or an expanded one.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
        raise ValueError(f"a tensor that is not dense ({tensor.layout}, {tensor.device}, {tensor.dtype})")
    held = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > held:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is announced, and {held} bytes are there for it")


def _tensors(content: Any) -> Iterator[Tensor]:
    """The tensors in nested mappings, lists and tuples; what is shared is looked at once."""
    seen, left = set(), [content]
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (Mapping, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, Mapping) else value


def _zipped(file: IO[bytes]) -> tuple[IO[bytes], dict[str, int]]:
    """The pickle of a torch file, and how many bytes it holds of each storage."""
    with zipfile.ZipFile(file) as packed:
        members = packed.infolist()
        pickles = [member for member in members if member.filename.endswith("/data.pkl")]
        if len({member.filename.lower() for member in members}) < len(members) or len(pickles) != 1:
            raise ValueError("a torch file has one data.pkl and no name twice")
        if pickles[0].compress_type != zipfile.ZIP_STORED:
            raise ValueError("a torch file's data.pkl is not compressed")
        start = pickles[0].filename.removesuffix(".pkl") + "/"
        held = {member.filename.removeprefix(start): member.file_size for member in members}
        return io.BytesIO(packed.read(pickles[0])), held


def _legacy(file: IO[bytes]) -> tuple[IO[bytes], dict[str, int]]:
    """A file from before torch 1.6, that begins with pickles one after another; torch itself counts its storages."""
    file.seek(0)
    return io.BytesIO(file.read()), {}


class _Inert:
    """Stands for whatever a pickle names or makes: it takes everything and does nothing."""

    module, name = "", ""
    limit = 0

    def __new__(cls, *given: Any, **named: Any) -> _Inert:
        numbers = [number for number in _flat(given) if isinstance(number, int)]
        if any(number > cls.limit for number in numbers):
            raise ValueError(f"{cls.name} of {max(numbers)} is announced, the file has {cls.limit} bytes")
        if numbers and (cls.name == "bytearray" or cls.name.endswith("Tensor")):
            raise ValueError(f"{cls.name} is made by its size, which no saved state is")
        return super().__new__(cls)

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __call__(self, *given: Any, **named: Any) -> _Inert:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.module.startswith("torch"):  # torch before 2.10 would write into a tensor's memory
            raise ValueError(f"values are set in a {self.name}, which is no dictionary")

    def __setstate__(self, state: Any) -> None:
        pass

    append = extend = add = __setstate__


class _Announced(pickle._Unpickler):  # the one in Python: that in C allocates what a pickle says before it reads
    """Reads a pickle with every class an inert one, and notes the bytes of each storage that it announces."""

    def __init__(self, source: IO[bytes], limit: int) -> None:
        super().__init__(source)
        self.limit = limit
        self.storages: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Inert,), {"module": module, "name": name, "limit": self.limit})

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) >= 5 and isinstance(pid[4], int):
            kind = getattr(pid[1], "name", "").removesuffix("Storage")
            announced = pid[4] * _WIDTHS.get(kind, 1)
            self.storages[str(pid[2])] = max(announced, self.storages.get(str(pid[2]), 0))
        return self.find_class("torch", "storage")()


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple):
            yield from _flat(value)
        else:
            yield value
