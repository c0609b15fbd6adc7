"""Checkpoints on disk: one folder each, checked whole before a byte of it is used.

What a checkpoint means for a training is decided elsewhere; here are only files.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetunelib._files import atomic_folder, previous_folder, remove_folder, sweep_unfinished
from finetunelib._messages import first_line
from finetunelib._typing import StrPath
from finetunelib.errors import (
    CheckpointError,
    FileMissingError,
    PathNotWritableError,
    WeightsError,
)
from finetunelib.finetuning._weights.pickles import check_bounded
from finetunelib.training._checkpointing.manifest import (
    FILES,
    FORMAT,
    HISTORY,
    MANIFEST,
    STATE,
    WEIGHTS,
    check_file,
    read_manifest,
    write_manifest,
)
from finetunelib.training._checkpointing.safe_state import plain
from finetunelib.training._history import History, as_json


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
            check_bounded(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
        # A file that is not torch's makes its reader fail in any way.
        except Exception as error:
            raise CheckpointError(
                f"`{file}` is not the state of a training, or holds objects that could run code: "
                f"{first_line(error)} Use another checkpoint."
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
        except WeightsError as error:
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
    if any((target / name).exists() for name in FILES) and not _is_checkpoint(target):
        raise PathNotWritableError(
            f"`{target}` holds files that are not of a checkpoint and would be lost. "
            "Pass another path."
        )
    from finetunelib.finetuning._weights.save import write_weights

    created = max([time.time_ns(), *(_created(other) + 1 for other in _folders(target.parent))])
    with atomic_folder(target, names=FILES) as folder:
        write_weights(model, folder / WEIGHTS, place=target / WEIGHTS)
        _save(content, folder / STATE)
        (folder / HISTORY).write_bytes(as_json(history))
        write_manifest(folder, {"created_ns": created, **about})
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
    manifest = read_manifest(folder)
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"`{folder}` is a checkpoint of format {manifest['format']}, and this version of "
            f"finetunelib reads format {FORMAT}. Use the version that wrote it, "
            f"{manifest.get('finetunelib')}."
        )
    for name in (WEIGHTS, STATE, HISTORY):
        check_file(folder / name, manifest["files"][name])
    return Checkpoint(folder, manifest)


def newest_checkpoint(path: StrPath) -> Checkpoint | None:
    """Return the checkpoint at a path, or the newest whole one in it; None where there is none.

    Damaged ones are passed over with a warning that says what is wrong with them.

    Raises:
        CheckpointError: There are checkpoints, and none is whole.
    """
    folder = Path(path)
    folder = previous_folder(folder) or folder
    if folder.is_file():
        raise CheckpointError(
            f"`{folder}` is a file, and a checkpoint is a folder. Pass `{folder.parent}`."
        )
    # One that does not say its age may be the newest.
    candidates = _folders(folder)
    failures: list[str] = []
    if _is_checkpoint(folder):
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
    """Clean up what a process that was killed left in a folder of checkpoints."""
    sweep_unfinished(folder, names=FILES)


def _save(state: dict[str, Any], file: Path) -> None:
    try:
        torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as the latter.
        raise PathNotWritableError(f"`{file}` could not be written: {error}") from error


def _is_checkpoint(folder: Path) -> bool:
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
        if (not hidden or previous_folder(target) == entry) and _is_checkpoint(entry):
            found.append(entry)
    return found


def _created(folder: Path) -> int:
    try:
        return int(read_manifest(folder)["created_ns"])
    except CheckpointError:
        return 0
