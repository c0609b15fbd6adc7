"""Check that a wheel contains the package and nothing else: python check_wheel.py WHEEL."""

from __future__ import annotations

import sys
import zipfile


def main(wheel: str) -> int:
    """Return 0 if every file of the wheel belongs to the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        description = archive.read(metadata).decode()
    folder = metadata.partition("/")[0]
    foreign = [name for name in names if not name.startswith(("finetunelib/", f"{folder}/"))]
    modules = {f"finetunelib/{name}" for name in ("__init__.py", "__main__.py", "py.typed")}
    wanted = {*modules, f"{folder}/licenses/LICENSE"}
    missing = wanted.difference(names)
    for problem in (f"foreign: {foreign}" if foreign else "", f"missing: {missing or ''}"):
        if problem and not problem.endswith(": "):
            sys.stderr.write(f"{wheel}: {problem}\n")
    if "License-Expression: MIT" not in description:
        sys.stderr.write(f"{wheel}: the license is not in the metadata\n")
        return 1
    return 1 if foreign or missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
