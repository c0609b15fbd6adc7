"""Run the commands and the code of the Start page, as a new user would.

    python tests/docs/follow_start.py                              # docs/start/quickstart.md
    python tests/docs/follow_start.py docs/start/quickstart.zh-CN.md

Everything runs in a copy of the checkout in a temporary folder, without an existing environment.
The exit code is 0 only if every command and every block of code succeeded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support_pages import ROOT, blocks_of

PAGE = "docs/start/quickstart.md"

#: The interpreter of the environment that the page creates.
PYTHON = ".venv/bin/python"

#: Names that are not copied: at the top of the checkout, and in any folder.
LEFT_OUT = {".git", ".venv", ".venv-wheel", "build", "dist", "runs", "data"}
LEFT_OUT_ANYWHERE = {"__pycache__", "_build"}


def commands_of(text: str) -> list[str]:
    """Return the commands in the console blocks of a page, without prompts and output."""
    lines = [
        line
        for block in blocks_of(text)
        if block.language == "console"
        for line in block.text.splitlines()
    ]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def code_of(text: str) -> str:
    """Return the Python code of a page as one program."""
    return "\n".join(
        block.text for block in blocks_of(text) if block.language == "python" and not block.reason
    )


def follow(page: str, folder: Path) -> None:
    """Follow a page in a folder.

    Raises:
        CalledProcessError: If a command or the code fails.
    """
    text = (folder / page).read_text(encoding="utf-8")
    commands, code = commands_of(text), code_of(text)
    if not commands or not code:
        sys.exit(f"{page} has no commands or no code to follow.")
    # Use no other library path, and open no browser.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    environment["CI"] = "true"
    for command in commands:
        _say(f"$ {command}")
        subprocess.run(command, shell=True, cwd=folder, env=environment, check=True)
    program = folder / "pasted.py"
    program.write_text(code, encoding="utf-8")
    _say(f"$ {PYTHON} {program.name}   # the page's {len(code.splitlines())} lines")
    python = str(folder / PYTHON)
    subprocess.run([python, program.name], cwd=folder, env=environment, check=True)
    made = sorted(file.name for file in folder.glob("model.*"))
    if "model.onnx" not in made:
        sys.exit(f"Expected the page to write model.onnx, got {made}.")


def main() -> None:
    """Follow the given page, or the Start page."""
    page = sys.argv[1] if len(sys.argv) > 1 else PAGE
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="start-") as temporary:
        folder = Path(temporary) / "finetunelib"
        shutil.copytree(ROOT, folder, ignore=_left_out)
        try:
            follow(page, folder)
        except subprocess.CalledProcessError as error:
            sys.exit(f"Following {page} failed: {error}")
    _say(f"{page} works as written ({time.perf_counter() - started:.0f} s).")


def _left_out(folder: str, names: list[str]) -> set[str]:
    """Return the names in a folder that are not copied."""
    top = LEFT_OUT if Path(folder) == ROOT else set()
    return (top | LEFT_OUT_ANYWHERE).intersection(names)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
