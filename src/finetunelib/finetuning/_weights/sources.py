"""The sources of weights: a file, a sharded file with its index, a folder, a torchvision enum."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import urlparse

import torch

from finetunelib._files.disk import read_at_most
from finetunelib._files.paths import as_path, check_readable, is_folder, is_true
from finetunelib._messages import listed
from finetunelib._typing import StrPath
from finetunelib.errors import (
    CorruptFileError,
    FileMissingError,
    InvalidArgumentError,
    InvalidTypeError,
)
from finetunelib.finetuning._weights.formats import PICKLED, FileTensor, read_file
from finetunelib.finetuning._weights.partial import LeftOut, LeftOutPart, read_left_out

#: Endings of the index of a sharded file, and of its shards.
_INDEXES = {".safetensors.index.json": ".safetensors", ".bin.index.json": ".bin"}

#: Files that training programs write next to the weights.
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")

_PURPOSE = "weights file"

#: The largest index in bytes, enough for a hundred thousand tensors. Parsed, it takes more.
_LARGEST_INDEX = 16 * 2**20


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """The tensors of a file, or of all shards of an index.

    Attributes:
        path: The file.
        tensors: The tensors with values.
        left_out: The tensors of which the file contains only digests, or `None` if it was saved
            without leaving any out.
    """

    path: Path
    tensors: Mapping[str, FileTensor]
    left_out: LeftOutPart | None = None

    @property
    def entries(self) -> dict[str, FileTensor | LeftOut]:
        """Everything that the file names, with and without values."""
        return {**self.tensors, **(self.left_out.tensors if self.left_out else {})}

    @property
    def is_in_order(self) -> bool:
        """Whether the names are in the order of the model's layers.

        `torch.save` keeps the order of a state dict; safetensors sorts the names.
        """
        return self.path.suffix not in {".safetensors", ".json"}


def open_weights(file: StrPath | Enum, *, mapped: bool, key: str | None) -> WeightsFile:
    """Open a source of weights without reading their values.

    Args:
        file: The path of a file, an index or a folder; or a member of a torchvision enum.
        mapped: Whether files of `torch.save` are memory-mapped instead of read at once.
        key: The dotted key of the state dict in a file of `torch.save`.

    Raises:
        FileMissingError: If the file or a shard does not exist, or a download failed.
        CorruptFileError: If a file is damaged, has an unknown format, or contains more than
            weights.
        InvalidArgumentError: If `key` is not in the file, or is needed.
        InvalidTypeError: If `file` is neither a path nor a member of a torchvision enum.
    """
    if isinstance(file, str | os.PathLike):
        path = as_path(file)
        path = _file_in(path) if is_folder(path) else path
    else:
        path = _file_of_torchvision(file)
    path = check_readable(path, purpose=_PURPOSE)
    if not path.name.endswith(tuple(_INDEXES)):
        tensors = read_file(path, mapped=mapped, key=key)
        return WeightsFile(
            path, tensors, read_left_out(path) if path.suffix == ".safetensors" else None
        )
    if key is not None:
        raise InvalidArgumentError(
            f"`key` is for single files of `torch.save`, got {key!r} for `{path}`. Leave it out."
        )
    return WeightsFile(path, _read_shards(path, mapped=mapped))


def _file_in(folder: Path) -> Path:
    """Return the file of a folder that contains the weights.

    Raises:
        FileMissingError: If there is none, or there are several.
    """
    files = sorted(path for path in folder.iterdir() if not path.name.startswith(_NOT_WEIGHTS))
    for endings in (
        (".safetensors.index.json",),
        (".safetensors",),
        (".bin.index.json",),
        ("pytorch_model.bin",),
        PICKLED,
    ):
        found = [path for path in files if path.name.endswith(endings)]
        if len(found) == 1:
            return found[0]
        if found:
            names = listed([path.name for path in found])
            raise FileMissingError(
                f"The folder `{folder}` contains several weights files: {names}. Pass the path of "
                "one of them."
            )
    raise FileMissingError(
        f"The folder `{folder}` contains no weights: no file ends in .safetensors or "
        f"{', '.join(PICKLED)}. Pass the path of a file."
    )


def _read_shards(index: Path, *, mapped: bool) -> dict[str, FileTensor]:
    """Return the tensors of an index by name, each from the shard that the index lists.

    Raises:
        FileMissingError: If a shard does not exist.
        CorruptFileError: If the index or a shard is damaged, or they do not match.
    """
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not is_true((index.parent / shard).is_file)]
    if missing:
        raise FileMissingError(
            f"{len(missing)} of {len(shards)} shards of `{index}` are missing in "
            f"`{index.parent}`: {listed(missing)}. Copy or download them to this folder."
        )
    contents = {shard: read_file(index.parent / shard, mapped=mapped) for shard in shards}
    absent = [name for name, shard in weight_map.items() if name not in contents[shard]]
    if absent:
        raise CorruptFileError(
            f"`{index}` does not match its shards: "
            f"{listed([f'`{name}` in {weight_map[name]}' for name in absent])} is listed but "
            "missing. Copy or download all of the files again."
        )
    return {name: contents[shard][name] for name, shard in weight_map.items()}


def _weight_map(index: Path) -> dict[str, str]:
    """Return the map from tensors to shards in an index.

    Raises:
        CorruptFileError: If the file is not an index, or a shard is outside the index's folder.
    """
    try:
        content = json.loads(read_at_most(index, _LARGEST_INDEX))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"`{index}` is not a complete JSON file: {error}.") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CorruptFileError(
            f"`{index}` is not an index of shards: it needs a `weight_map` from the names of "
            "tensors to the names of files."
        )
    ending = next(shard for name, shard in _INDEXES.items() if index.name.endswith(name))
    outside = {shard for shard in weight_map.values() if _leaves_its_folder(shard, ending)}
    if outside:
        raise CorruptFileError(
            f"`{index}` lists shards that are not {ending} files in its own folder, which are not "
            f"read: {listed(sorted(outside))}."
        )
    return weight_map


def _leaves_its_folder(shard: str, ending: str) -> bool:
    paths = (PurePosixPath(shard), PureWindowsPath(shard))
    return (
        not shard.endswith(ending)
        or "\0" in shard
        or any(path.anchor or ".." in path.parts for path in paths)
    )


def _file_of_torchvision(weights: object) -> Path:
    """Return the file of a member of a torchvision weights enum, downloaded if necessary.

    Raises:
        InvalidTypeError: If `weights` is not such a member.
        FileMissingError: If the file is not on the disk and cannot be downloaded.
    """
    url = getattr(weights, "url", None)
    if not isinstance(url, str):
        hint = ""
        if isinstance(weights, type) and issubclass(weights, Enum):
            hint = f" Pass a member of the enum, such as `{weights.__name__}.DEFAULT`."
        raise InvalidTypeError(
            "`file` must be a path or a member of a torchvision weights enum, got "
            f"{weights!r}.{hint}"
        )
    name = PurePosixPath(urlparse(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    digits = re.search(r"-([a-f0-9]{8,})\.", name)  # The start of the file's sha256.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=digits[1] if digits else None, progress=False
        )
    # A broken connection can raise any exception.
    except Exception as error:
        raise FileMissingError(
            f"The weights {weights!r} are not on the disk and could not be downloaded: "
            f"{error}. Download {url} and save it as `{path}`."
        ) from error
    return path
