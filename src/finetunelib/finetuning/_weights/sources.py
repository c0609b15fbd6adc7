"""Where weights come from: a file, a folder of shards with its index, torchvision's weights.

What a user gives becomes one `WeightsFile`. The formats themselves are in `_weights_formats`.
"""

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

from finetunelib._files import check_readable
from finetunelib._messages import listed
from finetunelib._typing import StrPath
from finetunelib.errors import CorruptFileError, FileMissingError, InvalidTypeError
from finetunelib.finetuning._weights.formats import FileTensor, read_file, read_safetensors

_INDEX = ".safetensors.index.json"

_PURPOSE = "weights file"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """The tensors of a file, or of all shards of an index."""

    path: Path
    tensors: Mapping[str, FileTensor]

    @property
    def is_in_order(self) -> bool:
        """Whether the names come in the order of the model's layers.

        torch.save keeps a state dict's order; safetensors sorts.
        """
        return self.path.suffix not in {".safetensors", ".json"}


def open_weights(file: StrPath | Enum, *, mapped: bool) -> WeightsFile:
    """Open whatever holds weights, without reading their values.

    Args:
        file: A path of a file, of an index, or of a folder; or a member of a torchvision enum.
        mapped: Whether files of torch.save stay on the disk until a tensor is needed.

    Raises:
        FileMissingError: There is nothing, a shard is missing, or a download failed.
        CorruptFileError: A file is damaged, of another kind, or holds more than weights.
        InvalidTypeError: `file` is neither a path nor weights of torchvision.
    """
    if isinstance(file, str | os.PathLike):
        path = _file_in(Path(file)) if _is_folder(Path(file)) else Path(file)
    else:
        path = _file_of_torchvision(file)
    path = check_readable(path, purpose=_PURPOSE)
    if path.name.endswith(_INDEX):
        return WeightsFile(path, _read_shards(path))
    return WeightsFile(path, read_file(path, mapped=mapped))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False  # Too long a name, or a NUL in it: the check of files says so.


def _file_in(folder: Path) -> Path:
    """Return the index of a folder, or else its only safetensors file."""
    for ending in (_INDEX, ".safetensors"):
        found = sorted(folder.glob(f"*{ending}"))
        if len(found) == 1:
            return found[0]
        if found:
            names = listed([path.name for path in found])
            raise FileMissingError(
                f"The folder `{folder}` holds several files that end in {ending}: {names}. "
                "Pass the path of one of them."
            )
    raise FileMissingError(
        f"The folder `{folder}` holds no weights: neither an index that ends in {_INDEX} nor a "
        ".safetensors file. Pass the path of a file."
    )


def _read_shards(index: Path) -> dict[str, FileTensor]:
    """Return the tensors of an index by name, each from the shard that the index tells."""
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise FileMissingError(
            f"{len(missing)} of {len(shards)} shards of `{index}` are missing in "
            f"`{index.parent}`: {listed(missing)}. Copy or download them to this folder."
        )
    contents = {shard: read_safetensors(index.parent / shard) for shard in shards}
    absent = [name for name, shard in weight_map.items() if name not in contents[shard]]
    if absent:
        raise CorruptFileError(
            f"`{index}` and its shards do not belong together: it promises "
            f"{listed([f'`{name}` in {weight_map[name]}' for name in absent])}, which is not "
            "there. Copy or download all of them again."
        )
    return {name: contents[shard][name] for name, shard in weight_map.items()}


def _weight_map(index: Path) -> dict[str, str]:
    """Return the map from names to shards that an index holds.

    Raises:
        CorruptFileError: The file is no index, or a shard lies outside the index's folder.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"`{index}` is no whole JSON file: {error}.") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise CorruptFileError(
            f"`{index}` is no index of safetensors: it needs a `weight_map` from the names of "
            "tensors to the names of files."
        )
    outside = sorted({shard for shard in weight_map.values() if _leaves_its_folder(shard)})
    if outside:
        raise CorruptFileError(
            f"`{index}` names shards outside its own folder, which are not read: "
            f"{listed(outside)}. Shards lie beside their index."
        )
    return weight_map


def _leaves_its_folder(shard: str) -> bool:
    paths = (PurePosixPath(shard), PureWindowsPath(shard))
    return (
        not shard.endswith(".safetensors")
        or "\0" in shard
        or any(path.anchor or ".." in path.parts for path in paths)
    )


def _file_of_torchvision(weights: object) -> Path:
    """Return the file of a member of torchvision's enums, fetched if it is not there yet.

    Raises:
        InvalidTypeError: `weights` is no such member.
        FileMissingError: The file is not on the disk and cannot be fetched.
    """
    url = getattr(weights, "url", None)
    if not isinstance(url, str):
        hint = ""
        if isinstance(weights, type) and issubclass(weights, Enum):
            hint = f" Pass a member of the enum, such as `{weights.__name__}.DEFAULT`."
        raise InvalidTypeError(
            "`file` must be a path or a member of torchvision's weights enums, but is "
            f"{weights!r}.{hint}"
        )
    name = PurePosixPath(urlparse(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    digits = re.search(r"-([a-f0-9]{8,})\.", name)  # torch's custom: the file's own sha256.
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(path), hash_prefix=digits[1] if digits else None, progress=False
        )
    # A broken connection shows as an error of any kind, and a wrong digest as a RuntimeError.
    except Exception as error:
        raise FileMissingError(
            f"The weights {weights!r} are not on the disk and could not be fetched: {error}. "
            f"Download {url} and put it at `{path}`."
        ) from error
    return path
