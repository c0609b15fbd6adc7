"""`python -m finetunelib`: what it prints, and its errors of one line."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import finetunelib
from finetunelib.__main__ import main
from finetunelib.finetuning import save_weights
from finetunelib.visualization import NetronServer


def model() -> nn.Sequential:
    """Return a model with 15 values in two tensors, one of them of bfloat16."""
    layer = nn.Linear(4, 3)
    layer.bias = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    return nn.Sequential(layer)


def rows(text: str) -> list[list[str]]:
    """Return the cells of the rows of a table: the lines between its two rules."""
    lines = text.splitlines()
    first, last = (number for number, line in enumerate(lines) if set(line) == {"-"})
    return [line.split() for line in lines[first + 1 : last]]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that fails, and return its only line."""
    try:
        code: object = main(arguments)
    except SystemExit as ended:  # argparse
        code = ended.code
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith("finetunelib: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_summary_lists_the_tensors_of_a_weights_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names, shapes, dtypes, numbers of values and sizes, with totals, for both formats."""
    torch.save({"model": model().state_dict(), "epoch": 3}, tmp_path / "a.pt")
    save_weights(model(), tmp_path / "folder" / "a.safetensors")
    expected = [["0.bias", "3", "bfloat16", "3", "6", "B"], ["0.weight", "3x4", "float32", "12"]]
    for name in ("a.pt", "folder/a.safetensors", "folder"):
        assert main(["summary", str(tmp_path / name)]) == 0
        text = capsys.readouterr().out
        table = sorted(rows(text))
        assert [table[0], table[1][:4]] == expected
        assert text.endswith("\n2 tensors, 15 values, 54 B.\n")


def test_summary_of_one_of_several_state_dicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--key` chooses it; without it, the error names the keys."""
    path = str(tmp_path / "a.pt")
    torch.save({"left": {"a": torch.zeros(2)}, "right": {"b": torch.zeros(())}}, path)
    assert main(["summary", path, "--key", "right"]) == 0
    assert rows(capsys.readouterr().out) == [["b", "scalar", "float32", "1", "4", "B"]]
    assert "`left`, `right`" in error_of(capsys, "summary", path)


def test_summary_runs_no_code_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickled module is refused, because loading it could run code."""
    path = str(tmp_path / "a.pt")
    torch.save(model(), path)
    assert "could run code" in error_of(capsys, "summary", path)


def test_missing_damaged_and_unknown_files_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names the file, with control characters escaped, also in the words of argparse."""
    hostile = tmp_path / "a\x1b[2J\n.onnx"
    hostile.write_bytes(b"not a model")
    for command in ("summary", "view"):
        assert "a\\x1b[2J .onnx" in error_of(capsys, command, str(hostile))
        assert "`missing.onnx`" in error_of(capsys, command, "missing.onnx")
        assert "`missing.pt`" in error_of(capsys, command, "missing.pt")
        assert "\\x1b[2J" in error_of(capsys, command, "a", "\x1b[2J")
    for name in ("empty.onnx", "empty.safetensors", "empty.h5"):
        (tmp_path / name).touch()
        assert name in error_of(capsys, "summary", str(tmp_path / name))
    assert "99999" in error_of(capsys, "view", str(hostile), "--port", "99999")
    assert "--port" in error_of(capsys, "view", str(hostile), "--port", "x")
    assert "COMMAND" in error_of(capsys)


def test_view_serves_the_file_until_it_is_closed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only line on stdout is the address of the page, and the port is free afterwards."""
    path = save_weights(model(), tmp_path / "a.safetensors")
    pages = []

    def fetch(server: NetronServer) -> None:
        with urllib.request.urlopen(server.url, timeout=10) as page:
            pages.append((server.url, page.read().decode()))

    monkeypatch.setattr(NetronServer, "wait", fetch)
    assert main(["view", "--no-browser", str(path)]) == 0
    ((url, page),) = pages
    assert capsys.readouterr().out == f"{url}\n"
    assert "/data/a.safetensors" in page
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=10)


def test_version_and_help_are_fast(capsys: pytest.CaptureFixture[str]) -> None:
    """They work in a process that has no PyTorch, and end with code 0."""
    program = (
        "import sys; sys.modules['torch'] = None; import runpy; "
        "sys.argv = ['finetunelib', '--version']; "
        "runpy.run_module('finetunelib', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"finetunelib {finetunelib.__version__}\n")
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert {"view", "summary"} <= set(capsys.readouterr().out.split())


def test_summary_in_a_pipe_that_ends_early(tmp_path: Path) -> None:
    """A reader such as `head` ends the command without an error, in any encoding.

    An ONNX file needs no PyTorch, whose import would take most of the time.
    """
    path = tmp_path / "\u65e5.onnx"
    tensors = [TensorProto(name=f"\u65e5{number}", data_type=1) for number in range(5000)]
    node = helper.make_node("Identity", ["a"], ["b"])
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [], tensors)), path)
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "finetunelib", "summary", str(path)],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert b"\\u65e5.onnx" in process.stdout.readline()
        process.stdout.close()
        imported = process.stderr.read().decode().splitlines()
        assert process.wait(timeout=60) == 0
    assert all(line.startswith("import time:") for line in imported)
    assert not any(line.endswith(" torch") for line in imported)
