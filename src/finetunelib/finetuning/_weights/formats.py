"""The two formats of weights files: safetensors, and files of `torch.save`.

Opening a file runs no code in it. The values of a tensor are read when they are needed.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetunelib.errors import CorruptFileError, InvalidArgumentError
from finetunelib.finetuning._pickles.archives import is_archive
from finetunelib.finetuning._pickles.bounds import check_bounded
from finetunelib.finetuning._weights.nested import find_state_dict

#: Endings of files of `torch.save`.
PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".pt.tar")

#: The longest header of a safetensors file in bytes. Parsed, it takes about ten times as much.
_LONGEST_HEADER = 32 * 2**20

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    #: Reads the values, on the CPU. They may share memory with other tensors of the file.
    read: Callable[[], Tensor]
    #: Whether `read` returns a tensor with memory of its own.
    is_own: bool
    #: Reads the values into a contiguous tensor on the CPU of the same shape and dtype, if that is
    #: possible without a copy.
    read_into: Callable[[Tensor], None] | None = None


def read_file(path: Path, *, mapped: bool, key: str | None = None) -> dict[str, FileTensor]:
    """Return the tensors of a weights file by name, in the file's order.

    Args:
        path: An existing file.
        mapped: Whether a file of `torch.save` is memory-mapped instead of read at once.
        key: The dotted key of the state dict in a file of `torch.save`.

    Raises:
        CorruptFileError: If the file is damaged, has an unknown format, or contains more than
            weights.
        InvalidArgumentError: If `key` is not in the file, or is needed.
    """
    if path.suffix == ".safetensors":
        if key is not None:
            raise InvalidArgumentError(
                f"`key` is for files of `torch.save`, got {key!r} for `{path}`. Leave it out."
            )
        return read_safetensors(path)
    if path.name.endswith(PICKLED):
        return _read_pickled(path, mapped=mapped, key=key)
    raise CorruptFileError(
        f"`{path}` has an unknown format. Weights files end in .safetensors, {', '.join(PICKLED)}; "
        "the index of a sharded file ends in .safetensors.index.json or .bin.index.json."
    )


def read_safetensors(path: Path) -> dict[str, FileTensor]:
    """Return the tensors of a safetensors file by name, after checking its header and size.

    Raises:
        CorruptFileError: If the file is damaged or has another format.
    """
    # Imported here because the package should stay fast to import.
    from safetensors import SafetensorError, safe_open

    try:
        check_header(path)
        # This checks that the sizes and offsets of all tensors agree with the file's size.
        with safe_open(path, "pt"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFileError(
            f"`{path}` is not a complete safetensors file: {error}. Copy or download it again."
        ) from error
    header.pop("__metadata__", None)
    return {name: _entry(path, name, 8 + length, header[name]) for name in header}


def check_header(path: Path) -> None:
    """Raise if a safetensors file claims a header that is too long to be read.

    Raises:
        ValueError: If it does.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"its header has {length:,} bytes, more than {_LONGEST_HEADER:,}")


def _entry(path: Path, name: str, start: int, fields: Mapping[str, Any]) -> FileTensor:
    dtype = _DTYPES.get(fields["dtype"])
    if dtype is None:
        raise CorruptFileError(
            f"`{path}` contains `{name}` as {fields['dtype']}, which cannot be loaded. "
            f"Save it as one of {', '.join(_DTYPES)}."
        )
    shape = tuple(fields["shape"])
    place = start + fields["data_offsets"][0]
    return FileTensor(
        shape,
        dtype,
        partial(_read_values, path, place, shape, dtype),
        is_own=True,
        read_into=partial(_read_into, path, place),
    )


def _read_values(path: Path, place: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Read one tensor into memory of its own.

    A memory-mapped tensor, as safetensors returns it, would change or crash the program if the file
    is overwritten later.
    """
    tensor = torch.empty(math.prod(shape), dtype=dtype)
    _read_into(path, place, tensor)
    return tensor.reshape(shape)


def _read_into(path: Path, place: int, tensor: Tensor) -> None:
    """Read the values of a contiguous tensor on the CPU."""
    rest = memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
    try:
        with path.open("rb") as file:
            file.seek(place)
            while rest and (count := file.readinto(rest)):
                rest = rest[count:]
    except OSError as error:
        raise CorruptFileError(f"`{path}` cannot be read: {error}.") from error
    if rest:
        raise CorruptFileError(f"`{path}` became shorter while it was read.")


def _read_pickled(path: Path, *, mapped: bool, key: str | None) -> dict[str, FileTensor]:
    try:
        check_bounded(path)
        mapped = mapped and is_archive(path)  # Legacy files cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"`{found[1]}`" if found else "unknown objects, or it is damaged"
        raise CorruptFileError(
            f"`{path}` contains more than weights: {what}. Loading that could run code, so nothing "
            "was loaded. Save the weights alone, in the program that wrote the file: "
            "`torch.save(model.state_dict(), path)` or `save_weights(model, path)`."
        ) from error
    # A damaged file can raise any exception.
    except Exception as error:
        raise CorruptFileError(
            f"`{path}` cannot be read as a file of `torch.save`: {error}. Copy or download it "
            "again."
        ) from error
    state = find_state_dict(path, content, key)
    storages = [tensor.untyped_storage() for tensor in state.values()]
    uses: dict[int, int] = {}
    for storage in storages:
        uses[storage.data_ptr()] = uses.get(storage.data_ptr(), 0) + 1
    return {
        name: FileTensor(
            tuple(tensor.shape),
            tensor.dtype,
            partial(_given, tensor),
            is_own=not mapped
            and uses[storage.data_ptr()] == 1
            and storage.nbytes() == tensor.nbytes
            and tensor.is_contiguous(),
        )
        for (name, tensor), storage in zip(state.items(), storages, strict=True)
    }


def _given(tensor: Tensor) -> Tensor:
    return tensor
