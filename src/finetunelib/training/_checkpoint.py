"""Checkpoints on disk: one folder each, checked whole before a byte of it is used.

What a checkpoint means for a training is decided elsewhere; here are only files.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickletools
import platform
import re
import stat
import sys
import time
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetunelib._files import flush, former_folder, remove_folder, sweep_unfinished, whole_folder
from finetunelib._typing import StrPath
from finetunelib.errors import (
    CheckpointError,
    FileMissingError,
    PathNotWritableError,
    WeightsError,
)
from finetunelib.finetuning._weights import write_weights
from finetunelib.training._history import History, as_json

FORMAT = 1
WEIGHTS, STATE, HISTORY, MANIFEST = "model.safetensors", "state.pt", "history.json", "manifest.json"
#: Everything that a checkpoint's folder holds.
FILES = (WEIGHTS, STATE, HISTORY, MANIFEST)

#: How far the training was, which a manifest says.
_COUNTERS = ("epoch", "step", "batch")

#: A manifest is a page of text; a longer file is none, and is not read.
_MANIFEST_BYTES = 1 << 20

#: What may stand in a state: what `torch.load(weights_only=True)` gives back as it was. Of classes
#: derived from these it refuses to read even a number.
_PLAIN = (type(None), bool, int, float, str, bytes)
_MAPPINGS = (dict, OrderedDict, Counter)
_SEQUENCES = (list, tuple, torch.Size)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found whole.

    Attributes:
        path: Its folder.
        manifest: What it says of itself: counters, versions, and the digests of its files.
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def state(self) -> dict[str, Any]:
        """The state of everything but the weights, by name.

        Raises:
            CheckpointError: It cannot be read without running code.
        """
        file = self.path / STATE
        try:
            _check_bounded(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
        # A file that is not torch's makes its reader fail in any way.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise CheckpointError(
                f"`{file}` is not the state of a training, or holds objects that could run code: "
                f"{reason} Use another checkpoint."
            ) from error
        if not isinstance(state, dict):
            raise CheckpointError(
                f"`{file}` is not the state of a training: it holds a {type(state).__name__} "
                "instead of a dict. Use another checkpoint."
            )
        return state

    @property
    def history(self) -> History:
        """The epochs that it had seen.

        Raises:
            CheckpointError: It is no history.
        """
        file = self.path / HISTORY
        try:
            return History.from_json(file)
        except (WeightsError, RecursionError) as error:
            raise CheckpointError(f"`{file}` is no history: {error}. Use another one.") from error


def write_checkpoint(
    path: StrPath,
    model: nn.Module,
    state: Mapping[str, Any],
    history: History,
    about: Mapping[str, Any],
) -> Path:
    """Write a checkpoint, whole or not at all, and return its folder.

    Args:
        path: The folder. A former checkpoint there is replaced.
        model: The model with the weights to keep.
        state: What else decides how the training goes on.
        history: The epochs so far.
        about: What the manifest should say besides versions and digests; `epoch`, `step` and
            `batch` are needed.

    Raises:
        CheckpointError: The state holds an object that could not be read back safely.
        PathNotWritableError: Nothing can be written there; what was there before is unchanged.
    """
    content = plain(state)
    target = Path(path)
    if any((target / name).exists() for name in FILES) and not _is_one(target):
        raise PathNotWritableError(
            f"`{target}` holds files that are not of a checkpoint and would be lost. "
            "Pass another path."
        )
    created = max([time.time_ns(), *(_created(other) + 1 for other in _folders(target.parent))])
    with whole_folder(target, names=FILES) as folder:
        write_weights(model, folder / WEIGHTS)
        _save(content, folder / STATE)
        (folder / HISTORY).write_bytes(as_json(history))
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "created_ns": created,
            **environment(),
            **about,
            "files": _settled(folder),
        }
        manifest["digest"] = _digest(manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return target


def open_checkpoint(path: StrPath) -> Checkpoint:
    """Return the checkpoint in a folder after every byte of it was checked.

    Raises:
        FileMissingError: There is no checkpoint.
        CheckpointError: It is damaged, incomplete, or of a later format; the message says how.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileMissingError(
            f"There is no checkpoint at `{folder}`. Pass the folder that holds {MANIFEST}."
        )
    manifest = _manifest(folder)
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"`{folder}` is a checkpoint of format {manifest['format']}, and this version of "
            f"finetunelib reads format {FORMAT}. Use the version that wrote it, "
            f"{manifest.get('finetunelib')}."
        )
    for name in (WEIGHTS, STATE, HISTORY):
        _check_file(folder / name, manifest["files"][name])
    return Checkpoint(folder, manifest)


def newest_checkpoint(path: StrPath) -> Checkpoint | None:
    """Return the checkpoint at a path, or the newest whole one in it; None where there is none.

    Damaged ones are passed over with a warning that says what is wrong with them.

    Raises:
        CheckpointError: There are checkpoints, and none is whole.
    """
    folder = Path(path)
    folder = former_folder(folder) or folder
    if folder.is_file():
        raise CheckpointError(
            f"`{folder}` is a file, and a checkpoint is a folder. Pass `{folder.parent}`."
        )
    # One that does not say its age may be the newest.
    candidates = _folders(folder)
    failures: list[str] = []
    if _is_one(folder):
        try:
            return open_checkpoint(folder)
        except CheckpointError as error:
            # A foreign file of such a name must not hide the checkpoints below it.
            if not candidates:
                raise
            failures.append(str(error))
    for candidate in sorted(candidates, key=lambda c: _created(c) or math.inf, reverse=True):
        try:
            checkpoint = open_checkpoint(candidate)
        except CheckpointError as error:
            failures.append(str(error))
            continue
        for failure in failures:
            warnings.warn(
                f"A checkpoint was passed over. {failure} `{candidate}` is used.", stacklevel=2
            )
        return checkpoint
    if failures:
        raise CheckpointError(f"`{folder}` holds no whole checkpoint. " + " ".join(failures))
    return None


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the folders of checkpoints in a folder, the oldest first."""
    return sorted(_folders(folder), key=_created)


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint: the files that `write_checkpoint` wrote, and nothing else."""
    remove_folder(folder, names=FILES)


def sweep(folder: Path) -> None:
    """Delete what a process that was killed left in a folder of checkpoints."""
    sweep_unfinished(folder, names=FILES)


def environment() -> dict[str, Any]:
    """Return what the bits of a training depend on besides its state."""
    # By its module, since this floor imports nothing from the one at the top.
    version: str = sys.modules[__name__.partition(".")[0]].__version__
    return {
        "finetunelib": version,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def plain(value: Any, where: str = "state") -> Any:
    """Return a state as it can be read back without running code.

    Raises:
        CheckpointError: It holds something else; the message names the place.
    """
    kind = type(value)
    if kind in _PLAIN or isinstance(value, Tensor):
        return value
    if kind in _MAPPINGS or isinstance(value, MappingProxyType):
        content = {plain(k, where): plain(v, f"{where}[{k!r}]") for k, v in value.items()}
        return kind(content) if kind in _MAPPINGS else content
    if kind in _SEQUENCES:
        return kind(plain(part, f"{where}[{position}]") for position, part in enumerate(value))
    if isinstance(value, np.generic):  # Such as a learning rate from `linspace`.
        return plain(value.item(), where)
    raise CheckpointError(
        f"{where} is of type {kind.__name__}, which a checkpoint does not hold, since reading it "
        "back could run code. Keep numbers, strings, tensors, lists and dicts in `state_dict`."
    )


def _settled(folder: Path) -> dict[str, dict[str, Any]]:
    """Let the files reach the disk, and return their sizes and digests."""

    def settle(name: str) -> dict[str, Any]:
        flush(folder / name)
        return {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}

    names = (WEIGHTS, STATE, HISTORY)
    # The disk and the digests are waited for together.
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(settle, names), strict=True))


def _save(state: dict[str, Any], file: Path) -> None:
    try:
        torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as the latter.
        raise PathNotWritableError(f"`{file}` could not be written: {error}") from error


def _is_one(folder: Path) -> bool:
    """Return whether a folder is meant to be a checkpoint; others hold weights or histories too."""
    return any((folder / name).exists() for name in (MANIFEST, STATE))


def _folders(parent: Path) -> list[Path]:
    """Return the checkpoints in a folder, whole or not; unfinished ones are left out."""
    if not parent.is_dir():
        return []
    found = []
    for entry in parent.iterdir():
        hidden = entry.name.startswith(".")
        target = parent / entry.name[1:].rpartition("-")[0]
        if (not hidden or former_folder(target) == entry) and _is_one(entry):
            found.append(entry)
    return found


def _created(folder: Path) -> int:
    try:
        return int(_manifest(folder)["created_ns"])
    except CheckpointError:
        return 0


def _manifest(folder: Path) -> dict[str, Any]:
    """Return a manifest that is what was once written.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    file = folder / MANIFEST
    try:
        if _size(file) > _MANIFEST_BYTES:
            raise CheckpointError(f"`{file}` is too long to be a manifest. Use another checkpoint.")
        manifest = json.loads(file.read_bytes())
        whole = manifest["digest"] == _digest(manifest) and _well_formed(manifest)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"`{folder}` has no {MANIFEST}, so it is no whole checkpoint. Use another one."
        ) from error
    # Whatever a file holds makes one of these: wrong JSON, wrong kinds, or endless nesting.
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"`{file}` is damaged: {error!r}. Use another checkpoint.") from error
    if not whole:
        raise CheckpointError(
            f"`{file}` is damaged: it does not agree with its own digest. Use another checkpoint."
        )
    result: dict[str, Any] = manifest
    return result


def _well_formed(manifest: Mapping[str, Any]) -> bool:
    if not all(isinstance(manifest[name], int) for name in ("format", "created_ns")):
        return False
    if manifest["format"] != FORMAT:  # Who opens it says so; what else it holds is unknown.
        return True
    files = manifest["files"]
    return all(isinstance(manifest[name], int) and manifest[name] >= 0 for name in _COUNTERS) and (
        all(
            isinstance(files[name]["bytes"], int)
            and re.fullmatch("[0-9a-f]{64}", files[name]["sha256"]) is not None
            for name in (WEIGHTS, STATE, HISTORY)
        )
    )


def _check_file(file: Path, expected: Mapping[str, Any]) -> None:
    """Raise when a file is not the one that the manifest describes.

    Raises:
        CheckpointError: It is missing, of another size, or has other bytes.
    """
    try:
        size = _size(file)
        if size != expected["bytes"]:
            raise CheckpointError(
                f"`{file}` is damaged: it has {size:,} bytes instead of {expected['bytes']:,}. "
                "Use another checkpoint."
            )
        if _sha256(file) != expected["sha256"]:
            raise CheckpointError(
                f"`{file}` is damaged: its bytes are not those that were written (sha256). "
                "Use another checkpoint."
            )
    except FileNotFoundError as error:
        raise CheckpointError(f"`{file}` is missing. Use another checkpoint.") from error
    except OSError as error:
        raise CheckpointError(
            f"`{file}` cannot be read: {error.strerror or error}. Use another checkpoint."
        ) from error


def _size(file: Path) -> int:
    """Return the size of an ordinary file; a pipe or a device could be read forever.

    Raises:
        CheckpointError: It is something else.
        OSError: There is none.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"`{file}` is no ordinary file. Use another checkpoint.")
    return status.st_size


def _check_bounded(file: Path) -> None:
    """Raise when reading a file of torch.save would fill more memory than the file has bytes.

    Raises:
        ValueError: It would.
        zipfile.BadZipFile: It is not torch's.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > file.stat().st_size:
            raise ValueError(f"it claims {unpacked:,} bytes, which are more than it has.")
        pickles = [archive.read(entry) for entry in entries if entry.filename.endswith(".pkl")]
    for content in pickles:
        for code, name, _ in pickletools.genops(content):
            # torch lets a file call these, with a size that is only a number.
            if code.name == "GLOBAL" and re.search(r" (bytearray|\w*Tensor)$", str(name)):
                raise ValueError(f"it makes an object of {name}, whose size is not checked.")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest but for the digest itself."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
