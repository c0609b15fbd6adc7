"""Flushing files to disk, and explaining why one could not be written."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

from finetunelib.errors import PathNotWritableError

#: The errors of a full disk, or of a quota or limit that has the same effect.
_FULL = {errno.ENOSPC, errno.EDQUOT}


def read_at_most(file: Path, largest: int) -> bytes:
    """Return the content of a file whose size is limited.

    Raises:
        ValueError: If it has more than `largest` bytes.
        OSError: If it cannot be read.
    """
    with file.open("rb") as stream:
        content = stream.read(min(largest, file.stat().st_size) + 1)
    if len(content) > largest:
        raise ValueError(f"it has more than {largest:,} bytes")
    return content


def ordinary_file(file: Path) -> None:
    """Give a file the permissions of a new file, if its writer made it private."""
    file.chmod(0o666 & ~_umask())


def not_written(target: Path, error: OSError) -> PathNotWritableError:
    """Return the error for a file that could not be written."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        reason = f"the disk is full ({reason}). Free some space, or pass another path"
    return PathNotWritableError(
        f"`{target}` could not be written: {reason}. The previous file, if any, is unchanged."
    )


def cause_of_failed_write(file: Path, error: Exception) -> OSError:
    """Return why a writer that does not say so has failed, by writing to the same folder.

    Args:
        file: The file that was not written.
        error: What the writer raised.
    """
    probe = file.with_name(f".{secrets.token_hex(4)}.probe")
    try:
        probe.write_bytes(bytes(2**20))
    except OSError as cause:
        return cause
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return OSError(str(error))


def flush(file: Path) -> None:
    """Flush the content of a file to disk."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk, if the system supports it."""
    # The files are already flushed. Windows cannot open a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    # Linux says it. Elsewhere it is only known by changing it for a moment, in all threads.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Umask":
                return int(value, 8)
    mask = os.umask(0)
    os.umask(mask)
    return mask
