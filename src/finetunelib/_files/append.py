"""Appending to a file that only this process writes."""

from __future__ import annotations

import os
from pathlib import Path

from finetunelib._files.disk import not_written


def append(file: Path, content: bytes, *, size: int) -> bool:
    """Append to a file and flush it to disk, if it still has the size that it is known to have.

    Args:
        file: The file.
        content: What is appended, in one call of the system: a process that is killed leaves all of
            it or nothing.
        size: The size of the file before.

    Returns:
        Whether it was appended. If not, the file is missing or somebody else wrote to it.

    Raises:
        PathNotWritableError: If the content cannot be written. The file is as before.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise not_written(file, error) from error
    try:
        if os.fstat(descriptor).st_size != size:
            return False
        written = 0
        try:
            while written < len(content):
                written += os.write(descriptor, content[written:])
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, size)
            raise not_written(file, error) from error
    finally:
        os.close(descriptor)
    return True
