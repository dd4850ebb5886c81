"""Files as somebody would make them who wants to run code, or to exhaust the memory, of whoever opens them."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_files import idx_bytes, pixels
from PIL import Image

HUGE = 2**40


class Asks:
    """Is unpickled as the call of a function."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.call = function, given

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payload(proof: Path) -> Asks:
    """Makes a folder when it is unpickled by anything that runs what a pickle asks for."""
    return Asks(os.mkdir, str(proof))


def npy(array: np.ndarray, **header: Any) -> bytes:
    """A .npy file with a header of its own: `shape` and `descr` as given."""
    file = io.BytesIO()
    right = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, right | header)
    return file.getvalue() + array.tobytes()


def npz(packed: bool = False, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def huge_npz() -> bytes:
    """Arrays by the names of every reader, of which one announces 2^40 numbers."""
    x, y = pixels(0, 2, 4, 4), np.zeros(2, int)
    huge = npy(np.zeros((2, 3)), shape=(HUGE, 3))
    return npz(x=npy(x, shape=(HUGE, 4, 4)), y=npy(y), logits=huge, labels=npy(y))


def safetensors(header: dict[str, Any], length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(16)


def huge_safetensors() -> bytes:
    return safetensors({"w": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}})


def saved(content: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def rewritten(content: bytes, member: str, old: bytes, new: bytes, last: bool = False) -> bytes:
    """A zip archive with bytes of one member replaced."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(file, "w") as after:
        for info in before.infolist():
            data = before.read(info)
            if info.filename.endswith(member):
                assert old in data
                data = data.removesuffix(old) + new if last else data.replace(old, new)
            after.writestr(info.filename, data)
    return file.getvalue()


LONG = b"\x8a\x06" + HUGE.to_bytes(6, "little")  # 2^40 as a pickle writes it


def huge_torch_files() -> dict[str, bytes]:
    """Files of torch that `weights_only=True` loads, or would if there were the memory."""
    legacy = saved({"a": torch.arange(4.0)}, zipped=False)
    assert b"K\x04Nt" in legacy
    return {
        "expanded": saved({"a": torch.zeros(1).expand(HUGE)}),
        "storage": rewritten(saved({"a": torch.arange(4.0)}), "data.pkl", b"K\x04t", LONG + b"t"),
        "legacy storage": legacy.replace(b"K\x04Nt", LONG + b"Nt"),
        "longer storage": rewritten(
            saved({"a": torch.arange(4.0)}), "data.pkl", b"K\x04tq\x07QK\0K\x04\x85", b"K\x08tq\x07QK\0K\x08\x85"
        ),
        "set in a tensor": rewritten(saved(torch.arange(4.0)), "data.pkl", b".", b"K\0K\1s.", last=True),
        "bytearray": saved({"a": Asks(bytearray, HUGE)}),
        "tensor by size": saved({"a": Asks(torch.Tensor, HUGE)}),
        "sparse": saved({"a": torch.sparse_coo_tensor([[0]], [1.0], (HUGE,), check_invariants=False)}),
        "meta": saved({"a": torch.empty(HUGE, device="meta")}),
    }


def huge_pickles() -> dict[str, bytes]:
    """Pickles of arrays that announce what is not there."""
    rebuild = np.empty(0).__reduce__()[0]
    end = b"."
    return {
        "array": pickle.dumps({"data": Asks(rebuild, np.ndarray, (HUGE,), b"b")}),
        "class": pickle.dumps({"data": Asks(np.ndarray, (HUGE,))}),
        "bytes": b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + end,
        "memo": b"\x80\x02}r\xff\xff\xff\x7f" + end,
        "frame": b"\x80\x04\x95" + struct.pack("<Q", HUGE) + end,
    }


def huge_idx() -> bytes:
    whole = idx_bytes(pixels(0, 2, 28, 28))
    return whole[:4] + struct.pack(">I", 2**31) + whole[8:]


def huge_mat() -> bytes:
    """A compressed part that says it unpacks to 4 GiB."""
    part = zlib.compress(struct.pack("<II", 14, 2**32 - 8) + bytes(64))
    return b"MATLAB 5.0".ljust(124) + b"\0\1IM" + struct.pack("<II", 15, len(part)) + part


def huge_picture(side: int) -> bytes:
    """A PNG of a few bytes whose header says side x side."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "png")
    content = file.getvalue()
    head = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
    return content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]


def zeros(size: int) -> bytes:
    return gzip.compress(bytes(size))


def laughs() -> str:
    """YAML that fits on a screen and stands for 10^9 values."""
    lines = ["a: &a [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(lines)
