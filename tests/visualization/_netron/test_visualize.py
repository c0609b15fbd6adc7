"""`visualize`: the page and file it serves, when a browser opens, and cleanup."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import types
import webbrowser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import torch
from torch import nn

from finetunelib import build_mlp, visualize
from finetunelib.errors import (
    CorruptFileError,
    ExportError,
    FileMissingError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTypeError,
    ServerError,
    UnsupportedFileError,
)
from finetunelib.visualization import NetronServer
from finetunelib.visualization._netron import page
from finetunelib.visualization._netron.temporary_folder import PREFIX
from support_http import request
from support_models import Branching, Difference, samples, seeded
from support_onnx import write_mlp
from support_untouched import changed_since, snapshot


class Shown(NamedTuple):
    """The viewer of a module, its ONNX file, and what changed in the module."""

    server: NetronServer
    file: onnx.ModelProto
    changed: list[str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small ONNX file."""
    return write_mlp(tmp_path / "mlp.onnx", nn.Linear(4, 8), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def shown() -> Iterator[Shown]:
    """A module with mixed modes, shown without an example input."""
    model = build_mlp(4, [8], 3, normalization=nn.BatchNorm1d, dropout=0.5, seed=0)
    model.head.eval()
    model.head.weight.requires_grad_(False)
    before = snapshot(model)
    with visualize(model, browser=False) as server:
        content = request(server.url, "/data/MLP.onnx").body
        yield Shown(server, onnx.load_from_string(content), changed_since(before, model))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses opened in a browser, which always succeeds."""
    addresses: list[str] = []

    def open_(url: str, new: int = 0) -> bool:
        addresses.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", open_)
    return addresses


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Linux machine with a display and a browser, outside of CI and ssh."""
    for name in ("CI", "SSH_CONNECTION", "JUPYTERHUB_SERVICE_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("browser"))
    return monkeypatch


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of servers whose `wait` was called, which returns at once."""
    addresses: list[str] = []
    monkeypatch.setattr(NetronServer, "wait", lambda server: addresses.append(server.url))
    return addresses


def _left_in(folder: Path) -> list[str]:
    """Return the names in a folder, except PyTorch's cache for temporary files."""
    names = [entry.name for entry in folder.iterdir()]
    return [name for name in names if not name.startswith("torchinductor")]


class _Terminal:
    """A standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_file_of_a_module_is_named_after_its_class(shown: Shown) -> None:
    """The page of a module contains the address of an ONNX file named after its class."""
    assert b'<meta name="file" content="/data/MLP.onnx">' in request(shown.server.url).body
    assert shown.server.file.name == "MLP.onnx"


def test_default_host_is_loopback(shown: Shown) -> None:
    """By default, the server listens on the loopback address and a free port."""
    host, _, port = shown.server.url.removeprefix("http://").partition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


def test_file_contains_layers_and_shapes_of_the_module(shown: Shown) -> None:
    """The file contains the operators and the shape of the input."""
    operators = [node.op_type for node in shown.file.graph.node]
    assert operators.count("Gemm") == 2
    assert "Relu" in operators
    (value,) = shown.file.graph.input
    assert [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim] == [
        "batch",
        4,
    ]


def test_module_is_unchanged(shown: Shown) -> None:
    """Modes, weights, buffers, random states and logging do not change."""
    assert shown.changed == []


@pytest.mark.slow
def test_module_with_several_inputs_needs_an_example() -> None:
    """The example may have any form that `export_onnx` accepts."""
    with visualize(Difference(), (samples(2, 4), samples(2, 4)), browser=False) as server:
        graph = onnx.load_from_string(request(server.url, "/data/Difference.onnx").body).graph
    assert [value.name for value in graph.input] == ["left", "right"]


@pytest.mark.slow
def test_several_viewers_have_their_own_files(file: Path) -> None:
    """A viewer of a module and one of a file serve only their own files."""
    with (
        visualize(nn.Linear(4, 3), browser=False) as first,
        visualize(file, browser=False) as second,
    ):
        assert b"/data/Linear.onnx" in request(first.url).body
        assert b"/data/mlp.onnx" in request(second.url).body
        assert request(second.url, "/data/mlp.onnx").body == file.read_bytes()
        assert request(first.url, "/data/mlp.onnx").status == 404
        assert request(first.url, "/data/Linear.onnx").status == 200


@pytest.mark.parametrize("form", [str, Path], ids=["text", "path"])
def test_file_is_served_unchanged(file: Path, form: type) -> None:
    """The page contains the address of the file, whose bytes are served."""
    with visualize(form(file), browser=False) as server:
        assert b'<meta name="file" content="/data/mlp.onnx">' in request(server.url).body
        assert request(server.url, "/data/mlp.onnx").body == file.read_bytes()


def test_file_is_not_copied(file: Path, temporary: Path) -> None:
    """A file is served without a temporary copy, and not deleted."""
    with visualize(file, browser=False):
        assert _left_in(temporary) == []
    assert file.is_file()


def test_port_argument_is_used(file: Path) -> None:
    """The server listens on the given port."""
    with visualize(file, browser=False) as first:
        port = int(first.url.rpartition(":")[2])
    with visualize(file, browser=False, port=port) as second:
        assert second.url == f"http://127.0.0.1:{port}"


def test_empty_host_is_rejected(file: Path) -> None:
    """With an empty host, Python would listen on all interfaces."""
    with pytest.raises(InvalidArgumentError) as caught:
        visualize(file, browser=False, host="")
    assert "`host`" in str(caught.value)
    assert "0.0.0.0" in str(caught.value)


@pytest.mark.parametrize("proxy", ["", "/proxy/8080/", "/proxy/{}/"])
def test_proxy_without_port_is_rejected(file: Path, proxy: str) -> None:
    """The message contains the value and the missing placeholder."""
    with pytest.raises(InvalidArgumentError) as caught:
        visualize(file, browser=False, proxy=proxy)
    assert f'"{proxy}"' in str(caught.value)
    assert "{port}" in str(caught.value)


def test_notebook_uses_the_proxy(file: Path) -> None:
    """The frame in a notebook has the proxy's address, with the port filled in."""
    with visualize(file, browser=False, proxy="/base/proxy/{port}/") as server:
        port = server.url.rpartition(":")[2]
        assert f'<iframe src="/base/proxy/{port}/' in server._repr_html_()


def test_host_of_another_machine_is_an_error(file: Path) -> None:
    """The message contains an address that does not belong to this machine."""
    with pytest.raises(ServerError) as caught:
        visualize(file, browser=False, host="203.0.113.1")
    assert "203.0.113.1" in str(caught.value)


def test_old_netron_is_an_error(
    file: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    """The message contains the build date and the update command, and no browser opens."""
    text = page.asset("index.html").read_text(encoding="utf-8")
    old = re.sub(r'(<meta name="date" content=")\d{4}', r"\g<1>2020", text)
    (file.parent / "index.html").write_text(old, encoding="utf-8")
    monkeypatch.setattr(page, "asset", lambda name: file.parent / name)
    with pytest.raises(ServerError) as caught:
        visualize(file, browser=True, block=False)
    assert "2020-" in str(caught.value)
    assert "pip install --upgrade netron" in str(caught.value)
    assert opened == []


@pytest.mark.parametrize("port", [-1, 65_536, 100_000])
def test_invalid_port_is_rejected(file: Path, port: int) -> None:
    """The message contains a port that is not in 0 to 65535."""
    with pytest.raises(InvalidArgumentError) as caught:
        visualize(file, browser=False, port=port)
    assert str(port) in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, ["mlp.onnx"], b"mlp.onnx", nn.Linear])
def test_other_types_are_rejected(value: object) -> None:
    """The message contains the type of the argument."""
    with pytest.raises(InvalidTypeError) as caught:
        visualize(value, browser=False)  # type: ignore[arg-type]
    assert type(value).__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("missing.onnx", None, FileMissingError),
        ("empty.onnx", b"", CorruptFileError),
        ("corrupt.onnx", b"no model", CorruptFileError),
        ("corrupt.safetensors", b"no weights", CorruptFileError),
        ("notes.txt", b"text", UnsupportedFileError),
    ],
)
def test_invalid_file_is_rejected(
    tmp_path: Path, name: str, content: bytes | None, error: type[Exception]
) -> None:
    """The file is checked before the page opens, and the message contains its name."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as caught:
        visualize(path, browser=False)
    assert name in str(caught.value)


def test_module_that_cannot_be_guessed_is_an_error(temporary: Path) -> None:
    """The message suggests `example_input`, and no temporary file is left."""
    with pytest.raises(InvalidInputError) as caught:
        visualize(nn.ReLU(), browser=False)
    assert "`example_input=`" in str(caught.value)
    assert _left_in(temporary) == []


def test_example_of_wrong_shape_is_an_error(temporary: Path) -> None:
    """The message contains the shape that the module does not accept."""
    with pytest.raises(InvalidInputError) as caught:
        visualize(nn.Linear(4, 3), samples(2, 5), browser=False)
    assert "(2, 5)" in str(caught.value)
    assert _left_in(temporary) == []


def test_failed_export_leaves_no_folder(temporary: Path) -> None:
    """The temporary folder is removed if the export fails."""
    with pytest.raises(ExportError):
        visualize(seeded(Branching), samples(2, 4), browser=False)
    assert _left_in(temporary) == []


def test_close_removes_the_temporary_folder(temporary: Path) -> None:
    """The file of a module exists until its viewer is closed."""
    server = visualize(nn.Linear(4, 3), browser=False)
    assert temporary in server.file.parents
    assert server.file.is_file()
    server.close()
    assert _left_in(temporary) == []


@pytest.mark.slow
def test_failed_start_removes_the_temporary_folder(file: Path, temporary: Path) -> None:
    """The message contains the port in use, and no temporary file is left."""
    with visualize(file, browser=False) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(ServerError) as caught:
            visualize(nn.Linear(4, 3), browser=False, port=port)
    assert str(port) in str(caught.value)
    assert _left_in(temporary) == []


_PROGRAM = """
import sys, tempfile, urllib.request
tempfile.tempdir = sys.argv[1]
from torch import nn
from finetunelib import visualize

def url():
    return visualize(nn.Linear(4, 3), block=False).url

address = url()
page = urllib.request.urlopen(address + "/data/Linear.onnx").read()
sys.exit(0 if page else 1)
"""


@pytest.mark.slow
def test_end_of_program_closes_the_viewer_silently(tmp_path: Path, temporary: Path) -> None:
    """A viewer without references works until the program ends, and leaves no files or messages."""
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(temporary)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CI": "true"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert _left_in(temporary) == []


def test_next_viewer_removes_folders_of_killed_processes(file: Path, temporary: Path) -> None:
    """`visualize` removes temporary folders whose process has ended."""
    folder = temporary / f"{PREFIX}killed"
    folder.mkdir()
    (folder / "Linear.onnx").touch()
    with visualize(file, browser=False):
        assert _left_in(temporary) == []


@pytest.mark.slow
def test_threads_may_visualize_at_once(temporary: Path) -> None:
    """Each thread gets its own page, even for a shared module, which is not changed."""
    shared = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train()

    def show(model: nn.Module) -> int:
        with visualize(model, browser=False) as server:
            content = request(server.url, f"/data/{type(model).__name__}.onnx").body
            graph = onnx.load_from_string(content).graph
            return int(graph.output[0].type.tensor_type.shape.dim[1].dim_value)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(show, [shared, nn.Linear(4, 5), shared])) == [3, 5, 3]
    assert all(module.training for module in shared.modules())
    assert _left_in(temporary) == []


@pytest.fixture
def ssh(desktop: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An ssh session outside of a notebook."""
    desktop.setenv("SSH_CONNECTION", "198.51.100.5 50000 192.0.2.7 22")
    return desktop


@pytest.mark.usefixtures("ssh")
def test_ssh_session_gets_a_line_on_stderr(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line contains the address and the command for the user's own machine."""
    with visualize(file) as server:
        port = server.url.rpartition(":")[2]
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert server.url in err
    assert f"ssh -N -L {port}:127.0.0.1:{port}" in err
    assert "192.0.2.7" in err


@pytest.mark.usefixtures("ssh")
def test_ssh_session_gets_no_line_without_browser(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `browser=False`, nothing is printed; the server's repr contains the command."""
    with visualize(file, browser=False) as server:
        assert "ssh -N -L" in repr(server)
    assert capsys.readouterr() == ("", "")


class ZMQInteractiveShell:
    """The class name of IPython's shell in a notebook kernel."""


def test_notebook_over_ssh_shows_the_command_in_its_cell(
    ssh: pytest.MonkeyPatch, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a notebook, nothing is printed; the HTML contains the command."""
    ssh.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=ZMQInteractiveShell))
    with visualize(file) as server:
        assert "ssh -N -L" in server._repr_html_()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("waited")
def test_address_is_printed_before_waiting(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If no browser was opened, a line on stderr contains the address and mentions Ctrl-C."""
    with visualize(file, browser=False, block=True) as server:
        err = capsys.readouterr().err
    assert server.url in err
    assert "Ctrl-C" in err


@pytest.mark.usefixtures("desktop", "opened", "waited")
def test_nothing_is_printed_if_a_browser_opened(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The address is not printed if a browser shows the page."""
    with visualize(file, block=True):
        assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("desktop")
def test_browser_opens_if_available(file: Path, opened: list[str]) -> None:
    """On a desktop, the page is opened once, at the viewer's address."""
    with visualize(file, block=False) as server:
        assert opened == [server.url]


@pytest.mark.parametrize("obstacle", ["CI", "SSH_CONNECTION", "no DISPLAY", "no browser"])
def test_unavailable_browser_is_not_opened(
    desktop: pytest.MonkeyPatch,
    file: Path,
    opened: list[str],
    waited: list[str],
    obstacle: str,
) -> None:
    """In CI, over ssh and without a display or browser, the server runs without blocking."""

    def get() -> webbrowser.BaseBrowser:
        raise webbrowser.Error("could not locate runnable browser")

    desktop.setattr(sys, "stdin", _Terminal())
    if obstacle == "no DISPLAY":
        desktop.delenv("DISPLAY")
        desktop.delenv("WAYLAND_DISPLAY", raising=False)
    elif obstacle == "no browser":
        desktop.setattr(webbrowser, "get", get)
    else:
        desktop.setenv(obstacle, "1")
    with visualize(file) as server:
        assert request(server.url).status == 200
    assert opened == []
    assert waited == []


@pytest.mark.usefixtures("desktop")
def test_browser_false_opens_no_browser(file: Path, opened: list[str], waited: list[str]) -> None:
    """`browser=False` neither opens a browser nor blocks."""
    with visualize(file, browser=False):
        assert opened == []
        assert waited == []


def test_browser_true_always_opens_a_browser(
    desktop: pytest.MonkeyPatch, file: Path, opened: list[str]
) -> None:
    """`browser=True` opens a browser even over ssh."""
    desktop.setenv("SSH_CONNECTION", "1")
    with visualize(file, browser=True, block=False) as server:
        assert opened == [server.url]


@pytest.mark.usefixtures("desktop", "opened")
@pytest.mark.parametrize("script", [True, False])
def test_script_waits_if_a_browser_opened(
    monkeypatch: pytest.MonkeyPatch, file: Path, waited: list[str], script: bool
) -> None:
    """A script on a terminal waits, because its end would close the viewer; others do not."""
    monkeypatch.setattr(sys, "stdin", _Terminal() if script else None)
    with visualize(file) as server:
        assert waited == ([server.url] if script else [])


def test_script_does_not_wait_if_no_browser_opened(
    desktop: pytest.MonkeyPatch, file: Path, waited: list[str]
) -> None:
    """A script does not wait if opening the browser failed."""
    desktop.setattr(sys, "stdin", _Terminal())
    desktop.setattr(webbrowser, "open", lambda url, new=0: False)
    with visualize(file):
        assert waited == []


@pytest.mark.usefixtures("desktop", "opened")
@pytest.mark.parametrize("block", [True, False])
def test_block_argument_has_precedence(
    monkeypatch: pytest.MonkeyPatch, file: Path, waited: list[str], block: bool
) -> None:
    """`block` decides, whether or not the program is a script."""
    monkeypatch.setattr(sys, "stdin", None if block else _Terminal())
    with visualize(file, block=block) as server:
        assert waited == ([server.url] if block else [])


def test_block_true_waits_without_a_browser(file: Path, waited: list[str]) -> None:
    """`block=True` waits even if no browser was opened here."""
    with visualize(file, browser=False, block=True) as server:
        assert waited == [server.url]


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: nn.Conv2d(3, 4, 3), id="images"),
        pytest.param(lambda: nn.Linear(4, 3).double(), id="double precision"),
    ],
)
def test_input_is_guessed_from_the_first_layer(build: Callable[[], nn.Module]) -> None:
    """Without an example, the input matches the kind and dtype of the first layer."""
    with visualize(seeded(build), browser=False) as server:
        graph = onnx.load(server.file).graph
    weight = next(seeded(build).parameters())
    kind = onnx.TensorProto.DOUBLE if weight.dtype == torch.float64 else onnx.TensorProto.FLOAT
    tensor = graph.input[0].type.tensor_type
    assert tensor.elem_type == kind
    assert tensor.shape.dim[1].dim_value == weight.shape[1]
