"""A limit on the memory that files of `torch.save`, which are pickles, can request."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path


def check_bounded(file: Path) -> None:
    """Raise if reading a file of `torch.save` would need more memory than the file has bytes.

    Raises:
        ValueError: If it would.
        zipfile.BadZipFile: If the file is not a zip archive.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > file.stat().st_size:
            raise ValueError(f"it claims to contain {unpacked:,} bytes, more than its size.")
        pickles = [archive.read(entry) for entry in entries if entry.filename.endswith(".pkl")]
    for content in pickles:
        for code, name, _ in pickletools.genops(content):
            # PyTorch allows these calls, whose size is a number that is not checked.
            if code.name == "GLOBAL" and re.search(r" (bytearray|\w*Tensor)$", str(name)):
                raise ValueError(f"it creates a {name} whose size is not checked.")
