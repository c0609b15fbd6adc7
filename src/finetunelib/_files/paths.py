"""Checks of the paths that a user passed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from finetunelib.errors import (
    FileMissingError,
    InvalidArgumentError,
    InvalidTypeError,
    PathNotWritableError,
)

if TYPE_CHECKING:  # Metadata is read without PyTorch.
    from finetunelib._typing import StrPath


def as_path(path: StrPath) -> Path:
    """Return a path that a user passed, with `~` expanded to the home folder.

    Raises:
        InvalidTypeError: If it is neither a string nor an `os.PathLike` of one.
        InvalidArgumentError: If it starts with `~` and there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except TypeError as error:
        raise InvalidTypeError(
            f"A path must be a string or an os.PathLike, got {path!r} ({type(path).__name__})."
        ) from error
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"`{path}` starts with `~`, but there is no such home folder. Pass another path, or "
            f"`./{path}` for a folder of this name."
        ) from error


def is_folder(path: Path) -> bool:
    """Return whether there is a folder at a path, which may be invalid."""
    return is_true(path.is_dir)


def check_readable(path: StrPath, *, purpose: str) -> Path:
    """Return `path` as a `Path`, if there is a file to read.

    Args:
        path: The path that a user passed.
        purpose: A noun for the file in the message, such as `"weights file"`.

    Raises:
        FileMissingError: If there is no file at `path`, or it is a folder.
    """
    file = as_path(path)
    if is_folder(file):
        raise FileMissingError(f"The {purpose} `{file}` is a folder. Pass the path of a file.")
    if not is_true(file.is_file):
        raise FileMissingError(
            f"There is no {purpose} at `{file}` (in the folder `{file.absolute().parent}`). "
            "Check the path and the working directory."
        )
    return file


def check_writable(path: StrPath) -> Path:
    """Return `path` as a `Path`, if a file can be created there.

    Missing parent folders are allowed. They are created when the file is written.

    Raises:
        PathNotWritableError: If `path` is a folder, or its nearest existing parent is read-only or
            a file.
    """
    file = as_path(path)
    if _is_folder_or_invalid(file):
        raise PathNotWritableError(
            f"`{file}` is a folder. Pass the path of a file, such as `{file / 'model'}`."
        )
    folder = file.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise PathNotWritableError(
            f"Cannot write to `{file}`, because `{folder}` is a file and not a folder. "
            "Pass another path."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PathNotWritableError(
            f"Cannot write to `{file}`, because the folder `{folder}` is read-only for this user. "
            "Pass another path, or change the permissions of the folder."
        )
    return file


def check_folder_writable(path: StrPath) -> Path:
    """Return `path` as a `Path`, or raise if no folder of files can be written there.

    The folder may exist, or be created later.

    Raises:
        PathNotWritableError: If `path` is a file, or the nearest existing folder is read-only.
    """
    folder = as_path(path)
    check_writable(folder / "file")
    return folder


def _is_folder_or_invalid(file: Path) -> bool:
    """Return whether there is a folder at a path.

    Raises:
        PathNotWritableError: If no file can have this path.
    """
    try:
        return stat.S_ISDIR(file.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    # The name is too long, contains a NUL or cannot be encoded, or links form a loop.
    except (OSError, ValueError) as error:
        raise PathNotWritableError(
            f"`{file}` cannot be written: {getattr(error, 'strerror', None) or error}. "
            "Pass another path."
        ) from error


def behind_links(path: Path) -> Path:
    """Return the path that a symbolic link leads to, or the path itself."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def is_true(condition: Callable[[], bool]) -> bool:
    """Return a condition about a path, or `False` if the path is invalid."""
    try:
        return condition()
    except (OSError, ValueError):
        return False  # The name is too long, or contains a NUL.
