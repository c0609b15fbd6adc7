"""What a checkpoint says of itself: versions, counters, and the digests of its files."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import stat
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from finetunelib._files import flush
from finetunelib.errors import CheckpointError

FORMAT = 1
WEIGHTS, STATE, HISTORY, MANIFEST = "model.safetensors", "state.pt", "history.json", "manifest.json"
#: Everything that a checkpoint's folder holds.
FILES = (WEIGHTS, STATE, HISTORY, MANIFEST)

#: How far the training was, which a manifest says.
_COUNTERS = ("epoch", "step", "batch")

#: A manifest is a page of text; a longer file is none, and is not read.
_MANIFEST_BYTES = 1 << 20


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


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Describe the files of a folder in its manifest, when they have reached the disk."""
    manifest = {"format": FORMAT, **environment(), **about, "files": _settled(folder)}
    manifest["digest"] = _digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
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


def check_file(file: Path, expected: Mapping[str, Any]) -> None:
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


def _settled(folder: Path) -> dict[str, dict[str, Any]]:
    """Let the files reach the disk, and return their sizes and digests."""

    def settle(name: str) -> dict[str, Any]:
        flush(folder / name)
        return {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}

    names = (WEIGHTS, STATE, HISTORY)
    # The disk and the digests are waited for together.
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(settle, names), strict=True))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest but for the digest itself."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
