"""Run the example scripts and keep what they print, for the pages that show it.

    python docs/_scripts/record_examples.py                # all of them, minutes
    python docs/_scripts/record_examples.py custom_head    # one

MNIST is taken from $FINETUNELIB_DATA. The lines of single epochs, which go to stderr, are not kept.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUTPUTS = ROOT / "docs" / "_outputs"
EXAMPLES = ("custom_head", "torchvision_finetune")


def record(example: str) -> Path:
    """Run one example in an empty folder, and write its output; temporary paths are shortened."""
    environment = os.environ | {"CI": "true"}
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(  # noqa: S603 - a script of this repository
            [sys.executable, str(ROOT / "examples" / f"{example}.py")],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    printed = re.sub(r"\S*/tmp\w{8}\b", "/tmp/images", result.stdout)  # noqa: S108 - for readers
    file = OUTPUTS / f"{example}.txt"
    file.write_text(f"$ python examples/{example}.py\n{printed}", encoding="utf-8")
    return file


def main() -> None:
    """Record the examples that are named, or all."""
    OUTPUTS.mkdir(exist_ok=True)
    for example in sys.argv[1:] or EXAMPLES:
        sys.stdout.write(f"{record(example)}\n")


if __name__ == "__main__":
    main()
