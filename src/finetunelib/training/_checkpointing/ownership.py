"""Whose a folder of checkpoints is: one run writes into it, in one process at a time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from finetunelib._files.disk import not_written
from finetunelib._files.locks import FolderLock
from finetunelib.errors import CheckpointError
from finetunelib.training._checkpointing.manifest import read_manifest


def lock_checkpoints(folder: Path) -> FolderLock:
    """Create a folder if it does not exist, and lock it for one run.

    Raises:
        CheckpointError: If another process, or another run in this one, has locked it.
        PathNotWritableError: If it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(folder, error) from error
    try:
        return FolderLock(folder)
    except BlockingIOError as error:
        raise CheckpointError(
            f"`{folder}` is in use: another process, or another `fit` in this one, writes its "
            "checkpoints there. Wait until it has ended, or pass another folder."
        ) from error


def run_of(checkpoint: Path) -> str | None:
    """Return the id of the run that wrote a checkpoint, or `None` if an early version did.

    Raises:
        CheckpointError: If its manifest is missing or damaged.
    """
    run: str | None = read_manifest(checkpoint).get("run")
    return run


def check_own(folder: Path, checkpoints: Iterable[Path], run: str | None) -> None:
    """Raise if a folder has a checkpoint of another run, which this run would delete.

    Args:
        folder: The folder.
        checkpoints: The checkpoints in it that a run may delete, oldest first.
        run: The id of this run.

    Raises:
        CheckpointError: If it has one.
    """
    others = [path for path in checkpoints if is_other(path, run)]
    if others:
        raise CheckpointError(
            f"`{folder}` has checkpoints of another run, such as `{others[-1].name}`, which this "
            f"run would delete. Continue that run with `resume_from={str(folder)!r}`, pass "
            "another folder, or delete them."
        )


def is_other(checkpoint: Path, run: str | None) -> bool:
    """Return whether a checkpoint was written by another run. A damaged one was not."""
    try:
        return run_of(checkpoint) != run
    except CheckpointError:
        return False
