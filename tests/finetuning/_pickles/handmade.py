"""Pickles written instruction by instruction, in files like those of torch.save."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

START, EMPTY_DICT, SET, STOP = b"\x80\x02", b"}", b"s", b"."

#: What torch.save writes before the content of a legacy file.
LEGACY_START = b"".join(
    pickle.dumps(part, 2)
    for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
)


def text(value: str) -> bytes:
    """Return the instruction for a string."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """Return the instruction for an integer of up to eight bytes."""
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(*values: int) -> bytes:
    """Return the instructions for a tuple of integers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def name(dotted: str) -> bytes:
    """Return the instruction for a class or function."""
    module, _, attribute = dotted.rpartition(".")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def call(dotted: str, *arguments: bytes) -> bytes:
    """Return the instructions for a call."""
    return name(dotted) + b"(" + b"".join(arguments) + b"tR"


def storage(key: str, elements: int, kind: str = "torch.FloatStorage") -> bytes:
    """Return the instructions for a storage, as in archives."""
    return b"(" + text("storage") + name(kind) + text(key) + text("cpu") + number(elements) + b"tQ"


def legacy_storage(key: str, elements: int) -> bytes:
    """Return the instructions for a storage, as in legacy files."""
    tag = text("storage") + name("torch.FloatStorage") + text(key) + text("cpu")
    return b"(" + tag + number(elements) + b"NtQ"


def tensor(stored: bytes, offset: int, size: bytes, stride: bytes) -> bytes:
    """Return the instructions for a tensor in a storage."""
    hooks = call("collections.OrderedDict")
    rebuild = "torch._utils._rebuild_tensor_v2"
    return call(rebuild, stored, number(offset), size, stride, b"\x89", hooks)


def state(value: bytes) -> bytes:
    """Return a pickle of a dict with one entry, whose value these instructions create."""
    return START + EMPTY_DICT + text("weight") + value + SET + STOP


def write_archive(
    path: Path, content: bytes, storages: Mapping[str, bytes] | None = None, *, folder: str = "a"
) -> Path:
    """Write a pickle and storages as torch.save does, with any names."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", content)
        archive.writestr(f"{folder}/byteorder", "little")
        for key, data in (storages or {}).items():
            archive.writestr(f"{folder}/data/{key}", data)
        archive.writestr(f"{folder}/version", "3\n")
    return path


def write_legacy(path: Path, content: bytes, keys: bytes = b"]", data: bytes = b"") -> Path:
    """Write a pickle as torch.save did before it wrote archives."""
    path.write_bytes(LEGACY_START + content + START + keys + STOP + data)
    return path
