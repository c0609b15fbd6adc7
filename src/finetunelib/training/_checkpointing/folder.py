"""Checkpoints on disk: one folder each, checked completely before any of it is used."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetunelib._files.atomic import (
    atomic_folder,
    previous_folder,
    remove_folder,
    sweep_unfinished,
)
from finetunelib._files.disk import cause_of_failed_write, not_written
from finetunelib._files.paths import as_path, check_folder_writable, is_folder
from finetunelib._messages import first_line
from finetunelib._typing import StrPath
from finetunelib.errors import (
    CheckpointError,
    FileMissingError,
    PathNotWritableError,
    WeightsError,
)
from finetunelib.training._checkpointing.content import Content
from finetunelib.training._checkpointing.manifest import (
    FILES,
    FORMAT,
    HISTORY,
    MANIFEST,
    STATE,
    WEIGHTS,
    check_digest,
    check_size,
    read_manifest,
    write_manifest,
)
from finetunelib.training._history import History, as_json


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files are intact.

    Attributes:
        path: The folder.
        manifest: The counters, versions, and digests of the files.
    """

    path: Path
    manifest: Mapping[str, Any]
    _state: dict[str, Any] | CheckpointError

    @property
    def state(self) -> dict[str, Any]:
        """The state of everything except the weights, by name.

        Raises:
            CheckpointError: If the state cannot be read without running code.
        """
        if isinstance(self._state, CheckpointError):
            raise self._state
        return self._state

    @property
    def history(self) -> History:
        """The rows of the epochs before the checkpoint.

        Raises:
            CheckpointError: If the file is not a history.
        """
        file = self.path / HISTORY
        try:
            return History.from_json(file)
        except WeightsError as error:
            raise CheckpointError(
                f"`{file}` cannot be read: {error} Use another checkpoint."
            ) from error


def write_checkpoint(path: StrPath, content: Content) -> Path:
    """Write a checkpoint atomically, and return its folder.

    Args:
        path: The folder. An existing checkpoint there is replaced.
        content: What it contains. `epoch`, `step` and `batch` are required in `about`.

    Raises:
        PathNotWritableError: If nothing can be written to `path`. An existing checkpoint is left
            unchanged.
    """
    target = check_folder_writable(path)
    if any((target / name).exists() for name in FILES) and not _is_checkpoint(target):
        raise PathNotWritableError(
            f"`{target}` contains files that do not belong to a checkpoint and would be lost. "
            "Pass another path."
        )
    from finetunelib.finetuning._weights.save import write_tensors  # Slow to import.

    created = max([time.time_ns(), *(_created(other) + 1 for other in _folders(target.parent))])
    with atomic_folder(target, names=FILES) as folder:
        write_tensors(
            content.weights, folder / WEIGHTS, place=target / WEIGHTS, metadata=content.metadata
        )
        _save(content.state, folder / STATE)
        (folder / HISTORY).write_bytes(as_json(content.history))
        write_manifest(folder, {"created_ns": created, **content.about})
    return target


def open_checkpoint(path: StrPath) -> Checkpoint:
    """Return the checkpoint in a folder, after checking every byte of it.

    Raises:
        FileMissingError: If there is no checkpoint.
        CheckpointError: If the checkpoint is damaged, incomplete, or has an unknown format.
    """
    folder = as_path(path)
    if not is_folder(folder):
        raise FileMissingError(
            f"There is no checkpoint at `{folder}`. Pass the folder that contains {MANIFEST}."
        )
    manifest = read_manifest(folder)
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"`{folder}` is a checkpoint of format {manifest['format']}, but this version of "
            f"finetunelib reads format {FORMAT}. Use version {manifest.get('finetunelib')}, which "
            "wrote it."
        )
    files = {folder / name: manifest["files"][name] for name in (WEIGHTS, STATE, HISTORY)}
    for file, expected in files.items():
        check_size(file, expected)
    # The state is read while other threads compute the digests, which takes as long.
    with ThreadPoolExecutor(len(files)) as pool:
        digests = [pool.submit(check_digest, file, files[file]) for file in files]
        state = _state_or_error(folder / STATE)
        try:
            for digest in digests:
                digest.result()
        except CheckpointError:
            # The error refers to this frame, and would keep the tensors in memory while the next
            # checkpoint is read.
            del state
            raise
    return Checkpoint(folder, manifest, state)


def _state_or_error(file: Path) -> dict[str, Any] | CheckpointError:
    """Return the state in a file, or why it cannot be used."""
    try:
        from finetunelib.finetuning._pickles.bounds import check_bounded  # Slow to import.

        check_bounded(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as cause:  # noqa: BLE001 - `torch.load` can fail in any way on other files
        error = CheckpointError(
            f"`{file}` is not the state of a training run, or contains objects that could run "
            f"code: {first_line(cause)} Use another checkpoint."
        )
        error.__cause__ = cause
        return error
    if not isinstance(state, dict):
        return CheckpointError(
            f"`{file}` must contain the state of a training run, a dict, got "
            f"{type(state).__name__}. Use another checkpoint."
        )
    return state


def newest_checkpoint(path: StrPath) -> Checkpoint | None:
    """Return the checkpoint at a path, or the newest intact one in it, or `None` if there is none.

    Damaged checkpoints are skipped with a warning that says what is wrong with them.

    Raises:
        CheckpointError: If there are checkpoints, but none is intact.
    """
    folder = as_path(path)
    _check_possible(folder)
    folder = previous_folder(folder) or folder
    if folder.is_file():
        raise CheckpointError(
            f"`{folder}` is a file, but a checkpoint is a folder. Pass `{folder.parent}`."
        )
    inside = _newest_first(folder)
    if not _is_checkpoint(folder):
        return _first_intact(folder, inside)
    # The folder may also contain checkpoints and an unrelated file named manifest.json.
    return _first_intact(folder, [folder, *inside]) if inside else open_checkpoint(folder)


def _newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder. One without a readable date comes first."""
    return sorted(_folders(folder), key=lambda c: _created(c) or math.inf, reverse=True)


def _first_intact(folder: Path, candidates: Sequence[Path]) -> Checkpoint | None:
    """Return the first intact checkpoint, and warn about those that were skipped.

    Raises:
        CheckpointError: If there are candidates, but none is intact.
    """
    failures: list[str] = []
    for candidate in candidates:
        try:
            checkpoint = open_checkpoint(candidate)
        except CheckpointError as error:
            failures.append(str(error))
            continue
        for failure in failures:
            warnings.warn(
                f"A checkpoint was skipped. {failure} `{candidate}` is used.", stacklevel=2
            )
        return checkpoint
    if failures:
        raise CheckpointError(f"`{folder}` contains no intact checkpoint. " + " ".join(failures))
    return None


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the folders of the checkpoints in a folder, oldest first."""
    return sorted(_folders(folder), key=_created)


def remove_checkpoint(folder: Path) -> None:
    """Delete the files of a checkpoint, and its folder if it is empty then."""
    remove_folder(folder, names=FILES)


def sweep(folder: Path) -> None:
    """Delete unfinished checkpoints that a killed process left in a folder."""
    sweep_unfinished(folder, names=FILES)


def _save(state: Mapping[str, Any], file: Path) -> None:
    try:
        torch.save(state, file)
    except OSError as error:
        raise not_written(file, error) from error
    except RuntimeError as error:  # `torch.save` does not say why it could not write.
        raise not_written(file, cause_of_failed_write(file, error)) from error


def _check_possible(folder: Path) -> None:
    """Check that a folder could have this path.

    Raises:
        CheckpointError: If the path is too long, for example.
    """
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"`{folder}` cannot be read: {getattr(error, 'strerror', None) or error}. Pass the "
            "folder of a checkpoint."
        ) from error


def _is_checkpoint(folder: Path) -> bool:
    """Return whether a folder has a file that only checkpoints have."""
    return any((folder / name).exists() for name in (MANIFEST, STATE))


def _folders(parent: Path) -> list[Path]:
    """Return the checkpoints in a folder, including damaged ones but no unfinished ones."""
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
