"""The manifest of a checkpoint: versions, counters, and the digests of its files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from finetunelib._arguments import LARGEST_IN_FILES, is_count
from finetunelib._files.disk import flush
from finetunelib.errors import CheckpointError

FORMAT = 1
WEIGHTS, STATE, HISTORY, MANIFEST = "model.safetensors", "state.pt", "history.json", "manifest.json"
#: The files of a checkpoint.
FILES = (WEIGHTS, STATE, HISTORY, MANIFEST)

#: The counters in a manifest.
_COUNTERS = ("epoch", "step", "batch")

#: The largest size of a manifest. Larger files are not read.
_MANIFEST_BYTES = 1 << 20


def environment() -> dict[str, Any]:
    """Return the versions and settings that the bits of a run depend on besides its state."""
    # Read from the loaded module, because this layer does not import the top-level package.
    version: str = sys.modules[__name__.partition(".")[0]].__version__
    return {
        "finetunelib": version,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Flush the files of a folder to the disk, and write a manifest with their digests."""
    manifest = {"format": FORMAT, **environment(), **about, "files": _flushed(folder)}
    manifest["digest"] = _digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest in a folder.

    Raises:
        CheckpointError: If the manifest is missing or damaged.
    """
    file = folder / MANIFEST
    try:
        if _size(file) > _MANIFEST_BYTES:
            raise CheckpointError(f"`{file}` is too long to be a manifest. Use another checkpoint.")
        manifest = json.loads(file.read_bytes())
        intact = manifest["digest"] == _digest(manifest) and _well_formed(manifest)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"`{folder}` is not a complete checkpoint: {MANIFEST} is missing. Use another one."
        ) from error
    # Invalid JSON, wrong types, missing keys, or endless nesting.
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"`{file}` is damaged: {error!r}. Use another checkpoint.") from error
    if not intact:
        raise CheckpointError(
            f"`{file}` is damaged: it does not match its own digest. Use another checkpoint."
        )
    result: dict[str, Any] = manifest
    return result


def _well_formed(manifest: Mapping[str, Any]) -> bool:
    if not all(_is_count(manifest[name]) for name in ("format", "created_ns")):
        return False
    if manifest["format"] != FORMAT:  # `open_checkpoint` reports an unknown format.
        return True
    files = manifest["files"]
    lr, run = manifest.get("lr"), manifest.get("run")
    if manifest.get("rows", "steps") != "steps":
        return False
    return (
        all(_is_count(manifest[name]) for name in _COUNTERS)
        and (lr is None or (isinstance(lr, int | float) and abs(lr) < LARGEST_IN_FILES))
        and (run is None or re.fullmatch("[0-9a-f]{32}", run) is not None)
        and all(
            _is_count(files[name]["bytes"])
            and re.fullmatch("[0-9a-f]{64}", files[name]["sha256"]) is not None
            for name in (WEIGHTS, STATE, HISTORY)
        )
    )


def _is_count(value: object) -> bool:
    return is_count(value) and value <= LARGEST_IN_FILES


def check_size(file: Path, expected: Mapping[str, Any]) -> None:
    """Raise if a file does not have the size that the manifest describes.

    Raises:
        CheckpointError: If it is missing, not a regular file, or of another size.
    """
    with _readable(file):
        size = _size(file)
        if size != expected["bytes"]:
            raise CheckpointError(
                f"`{file}` is damaged: it has {size:,} bytes instead of {expected['bytes']:,}. "
                "Use another checkpoint."
            )


def check_digest(file: Path, expected: Mapping[str, Any]) -> None:
    """Raise if a file does not have the bytes that the manifest describes.

    Raises:
        CheckpointError: If its digest differs, or it cannot be read.
    """
    with _readable(file):
        if _sha256(file) != expected["sha256"]:
            raise CheckpointError(
                f"`{file}` is damaged: its bytes are not those that were written (sha256). "
                "Use another checkpoint."
            )


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Run a block that reads a file.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"`{file}` is missing. Use another checkpoint.") from error
    except OSError as error:
        raise CheckpointError(
            f"`{file}` cannot be read: {error.strerror or error}. Use another checkpoint."
        ) from error


def _size(file: Path) -> int:
    """Return the size of a regular file. A pipe or a device could be read forever.

    Raises:
        CheckpointError: If it is not a regular file.
        OSError: If there is no such file.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"`{file}` is not a regular file. Use another checkpoint.")
    return status.st_size


def _flushed(folder: Path) -> dict[str, dict[str, Any]]:
    """Flush the files to the disk, and return their sizes and digests."""

    def flushed(name: str) -> dict[str, Any]:
        flush(folder / name)
        return {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}

    names = (WEIGHTS, STATE, HISTORY)
    # In parallel: flushing waits for the disk, and hashing for the processor.
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(flushed, names), strict=True))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest without its key `digest`."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
