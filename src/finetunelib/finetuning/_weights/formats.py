"""The two kinds of weights files: safetensors, and what torch.save writes.

Both are opened without running any code in them and without reading the tensors' values; these
come one by one, when a tensor is asked for.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetunelib._messages import listed
from finetunelib.errors import CorruptFileError
from finetunelib.finetuning._weights.pickles import check_bounded

#: Keys under which training scripts keep a state dict inside a larger file. An average of the
#: weights ("ema") is not among them: where a file holds both, none of them is the one that is
#: meant.
_NESTED_UNDER = ("state_dict", "model_state_dict", "model", "module", "net")

_PICKLED = (".pth", ".pt", ".bin")

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
    """One tensor of a file: what it is, and how to get its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    #: Returns the values, on the CPU. They may share memory with other tensors of the file.
    read: Callable[[], Tensor]
    #: Whether `read` returns memory that nothing else uses.
    is_own: bool


def read_file(path: Path, *, mapped: bool) -> dict[str, FileTensor]:
    """Return the tensors of a weights file by name, in the file's order.

    Args:
        path: A file that exists.
        mapped: Whether tensors of a file of torch.save are looked up in the file when they are
            needed, and not read into memory at once.

    Raises:
        CorruptFileError: The file is damaged, of another kind, or holds more than weights.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in _PICKLED:
        return _read_pickled(path, mapped=mapped)
    raise CorruptFileError(
        f"`{path}` is of no known kind. Weights files end in .safetensors, {', '.join(_PICKLED)}; "
        "sharded ones have an index that ends in .safetensors.index.json."
    )


def read_safetensors(path: Path) -> dict[str, FileTensor]:
    """Return the tensors of a safetensors file, whose header and size have been checked.

    Raises:
        CorruptFileError: The file is damaged, or of another kind.
    """
    from safetensors import SafetensorError, safe_open  # Here: importing the package stays cheap.

    try:
        # It checks that sizes and places of all tensors agree with the length of the file.
        with safe_open(path, "pt"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFileError(
            f"`{path}` is no whole safetensors file: {error}. Copy or download it again."
        ) from error
    header.pop("__metadata__", None)
    return {name: _entry(path, name, 8 + length, header[name]) for name in header}


def _entry(path: Path, name: str, start: int, fields: Mapping[str, Any]) -> FileTensor:
    dtype = _DTYPES.get(fields["dtype"])
    if dtype is None:
        raise CorruptFileError(
            f"`{path}` holds `{name}` as {fields['dtype']}, which cannot be loaded. "
            f"Save it as one of {', '.join(_DTYPES)}."
        )
    shape = tuple(fields["shape"])
    place = start + fields["data_offsets"][0]
    return FileTensor(shape, dtype, partial(_read_values, path, place, shape, dtype), is_own=True)


def _read_values(path: Path, place: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Read one tensor into memory of its own.

    A mapping of the file, as safetensors makes it, would change or end the program when the file
    is written over later, and its pages count as memory beside the model.
    """
    tensor = torch.empty(math.prod(shape), dtype=dtype)
    rest = memoryview(tensor.view(torch.uint8).numpy().data)
    try:
        with path.open("rb") as file:
            file.seek(place)
            while rest and (count := file.readinto(rest)):
                rest = rest[count:]
    except OSError as error:
        raise CorruptFileError(f"`{path}` cannot be read: {error}.") from error
    if rest:
        raise CorruptFileError(f"`{path}` has become shorter while it was read.")
    return tensor.reshape(shape)


def _read_pickled(path: Path, *, mapped: bool) -> dict[str, FileTensor]:
    mapped = mapped and zipfile.is_zipfile(path)  # Files of an old torch cannot be mapped.
    try:
        if zipfile.is_zipfile(path):
            check_bounded(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"`{found[1]}`" if found else "something else, or is damaged"
        raise CorruptFileError(
            f"`{path}` holds more than weights: {what}. Loading that could run code, so nothing of "
            "it was loaded. Where the file comes from, and you trust it, save the weights alone: "
            "`torch.save(model.state_dict(), path)`, or `save_weights(model, path)`."
        ) from error
    # A damaged file makes torch's reader fail in any way; what it raises is about the file.
    except Exception as error:
        raise CorruptFileError(
            f"`{path}` cannot be read as a file of torch.save: {error}. Copy or download it again."
        ) from error
    state = _state_in(path, content)
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


def _state_in(path: Path, content: object) -> dict[str, Tensor]:
    """Return the state dict that a file of torch.save holds, at its top or under a usual key."""
    for key in _NESTED_UNDER:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise CorruptFileError(
            f"`{path}` holds {_kind(content)}, but a state dict (name to tensor) is needed, at its "
            f"top or under one of the keys {', '.join(_NESTED_UNDER)}. Save `model.state_dict()`."
        )
    for name, tensor in content.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else "sparse"
            raise CorruptFileError(
                f"`{path}` holds `{name}` as a {kind} tensor, which cannot be loaded. "
                "Save it as a dense tensor with values."
            )
    return {name: tensor.detach() for name, tensor in content.items()}


def _kind(content: object) -> str:
    if not isinstance(content, dict):
        return f"an object of type {type(content).__name__}"
    odd = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    found = f", where `{odd}` is of type {type(content[odd]).__name__}" if odd is not None else ""
    return f"a dict with the keys {listed([str(key) for key in content])}{found}"
