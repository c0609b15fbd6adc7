"""Files without the frozen tensors: which tensors are left out, and the digests in their place."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from finetunelib.errors import CorruptFileError
from finetunelib.finetuning._freezing.fingerprint import frozen_tensors

#: The keys in a file's metadata: the tensors that are left out, and whether a checkpoint wrote it.
_LEFT_OUT, _CHECKPOINT = "finetunelib.left_out", "finetunelib.checkpoint"

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a file contains of a tensor that it leaves out."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    digest: str


@dataclass(frozen=True, slots=True)
class LeftOutPart:
    """The tensors that a file leaves out.

    Attributes:
        tensors: The tensors by name.
        checkpoint: Whether the file is that of a checkpoint, and not of `save_weights`.
    """

    tensors: Mapping[str, LeftOut]
    checkpoint: bool = False

    def to_metadata(self) -> dict[str, str]:
        """Return the part as metadata of a safetensors file."""
        content = {
            name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), tensor.digest]
            for name, tensor in self.tensors.items()
        }
        metadata = {_LEFT_OUT: json.dumps(content, separators=(",", ":"))}
        return metadata | ({_CHECKPOINT: "yes"} if self.checkpoint else {})


def read_left_out(path: Path) -> LeftOutPart | None:
    """Return what a safetensors file leaves out, or `None` if it says nothing about it.

    Args:
        path: The file, whose header was checked.

    Raises:
        CorruptFileError: If its list of tensors is damaged.
    """
    # Imported here because the package should stay fast to import.
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if _LEFT_OUT not in metadata:
        return None
    try:
        content = json.loads(metadata[_LEFT_OUT])
        tensors = {name: _entry(fields) for name, fields in content.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(
            f"`{path}` has a damaged list of the tensors that it leaves out: {error}. Copy it "
            "again."
        ) from error
    return LeftOutPart(tensors, _CHECKPOINT in metadata)


def _entry(fields: object) -> LeftOut:
    """Return the entry of one tensor.

    Raises:
        ValueError: If a field is missing or has another type.
    """
    if isinstance(fields, list) and len(fields) == 3:
        name, shape, digest = fields
        dtype = getattr(torch, name, None) if isinstance(name, str) else None
        sizes = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        known = isinstance(digest, str) and _DIGEST.fullmatch(digest)
        if isinstance(dtype, torch.dtype) and sizes and known:
            return LeftOut(tuple(shape), dtype, digest)
    raise ValueError("an entry must be a dtype, a shape and a digest")


def frozen_ids(model: nn.Module) -> set[int]:
    """Return the ids of the frozen tensors of a model: training leaves them unchanged."""
    return {id(tensor) for tensor in frozen_tensors(model, meta=True).values()}


def groups_left_out(
    state: Mapping[str, Tensor], tied: Sequence[Sequence[str]], frozen: Collection[int]
) -> list[Sequence[str]]:
    """Return the groups of names of tensors that a file without frozen tensors leaves out.

    A frozen tensor is kept if a tensor that is not frozen shares its memory.

    Args:
        state: The tensors of a model by name.
        tied: Their names, grouped by tensor.
        frozen: The ids of the frozen ones.
    """
    candidates, kept = [], set()
    for group in tied:
        if all(id(state[name]) in frozen for name in group):
            candidates.append(group)
        else:
            kept |= {_memory(state[name]) for name in group}
    return [group for group in candidates if _memory(state[group[0]]) not in kept]


def _memory(tensor: Tensor) -> object:
    """Return what two tensors have in common if they share memory."""
    if tensor.is_meta or is_traceable_wrapper_subclass(tensor):
        return id(tensor)
    if tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    try:
        return tensor.device, tensor.untyped_storage().data_ptr()
    except RuntimeError:  # A subclass without memory of its own.
        return id(tensor)
