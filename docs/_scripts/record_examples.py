"""Run the example scripts and save their output for the documentation.

    python docs/_scripts/record_examples.py                # all of them; takes minutes
    python docs/_scripts/record_examples.py custom_head    # one

MNIST is read from $FINETUNELIB_DATA. The progress on stderr is not saved.
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
    """Run an example in an empty folder, and save its output with shortened temporary paths."""
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
    """Record the examples named on the command line, or all of them."""
    OUTPUTS.mkdir(exist_ok=True)
    for example in sys.argv[1:] or EXAMPLES:
        sys.stdout.write(f"{record(example)}\n")


if __name__ == "__main__":
    main()
