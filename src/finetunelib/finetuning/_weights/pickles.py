"""What files of torch.save may ask for: they are pickles, which `weights_only=True` alone reads."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path


def check_bounded(file: Path) -> None:
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
