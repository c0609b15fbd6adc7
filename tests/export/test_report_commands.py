"""The commands of a report work when pasted into a shell."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from finetunelib import export_onnx
from finetunelib.export import ExportReport
from support_models import Difference, linear, samples


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which `python` is this interpreter and no browser opens."""
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    # The link does not find the packages of this interpreter by itself.
    return {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), "CI": "true"}


def command(report: ExportReport, title: str) -> str:
    """Return a command from the end of a printed report."""
    (line,) = [line for line in str(report).splitlines()[-2:] if line.startswith(title)]
    return line.removeprefix(title).strip()


def run(text: str, folder: Path) -> str:
    """Run a command in a shell, and return what it prints."""
    done = subprocess.run(
        text,
        shell=True,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_commands_that_run_and_list_the_file(tmp_path: Path) -> None:
    """They print the outputs and the tensors, also for an odd path and for several inputs."""
    path = tmp_path / "a folder" / "it's\n50% $HOME.onnx"
    inputs = (samples(2, 4), samples(2, 4).double().float())
    report = export_onnx(Difference(), path, inputs)
    assert "\n50" not in str(report)
    assert run(report.run_command, tmp_path / "bin").startswith("[array([[0., 0., 0., 0.],")
    assert "1 tensor, 1 value, 4 B." in run(command(report, "Summary:"), tmp_path / "bin2")


@pytest.mark.slow
def test_command_that_shows_the_file(tmp_path: Path) -> None:
    """It prints the address of the viewer and serves the file until Ctrl-C."""
    report = export_onnx(linear(), tmp_path / "m.onnx", torch.ones(2, 4), verify=False)
    process = subprocess.Popen(
        shlex.split(command(report, "View:")),
        env=environment(tmp_path / "bin"),
        stdout=subprocess.PIPE,
        text=True,
        # If the tests run in the background, their child processes ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=60) as page:
            assert "/data/m.onnx" in page.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
