"""A model or a file in the viewer: what is shown, when a browser opens, and what stays behind."""

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
    """A module in the viewer, the file that it became, and what the showing changed."""

    server: NetronServer
    file: onnx.ModelProto
    changed: list[str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small ONNX file."""
    return write_mlp(tmp_path / "mlp.onnx", nn.Linear(4, 8), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def shown() -> Iterator[Shown]:
    """A module with a mixture of modes, shown without an example."""
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
    """The addresses that a browser is asked to open, with a browser that works."""
    addresses: list[str] = []

    def open_(url: str, new: int = 0) -> bool:
        addresses.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", open_)
    return addresses


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Linux machine with a display and a browser, and nothing that speaks against it."""
    for name in ("CI", "SSH_CONNECTION", "JUPYTERHUB_SERVICE_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("browser"))
    return monkeypatch


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the servers that were waited for, without the waiting."""
    addresses: list[str] = []
    monkeypatch.setattr(NetronServer, "wait", lambda server: addresses.append(server.url))
    return addresses


def _left_in(folder: Path) -> list[str]:
    """Return what lies in a folder, but for the cache that PyTorch keeps among temporary files."""
    names = [entry.name for entry in folder.iterdir()]
    return [name for name in names if not name.startswith("torchinductor")]


class _Terminal:
    """A standard input that somebody types on."""

    def isatty(self) -> bool:
        return True


def test_a_module_is_shown_as_an_onnx_file_of_its_name(shown: Shown) -> None:
    """The page of a module points to a file that is named after its class."""
    assert b'<meta name="file" content="/data/MLP.onnx">' in request(shown.server.url).body
    assert shown.server.file.name == "MLP.onnx"


def test_the_viewer_is_on_this_machine_alone(shown: Shown) -> None:
    """Unless asked otherwise the server listens on the loopback address, on a free port."""
    host, _, port = shown.server.url.removeprefix("http://").partition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


def test_the_file_holds_the_layers_and_shapes_of_the_module(shown: Shown) -> None:
    """Operators and sizes are there, so that the viewer draws nodes and labels edges."""
    operators = [node.op_type for node in shown.file.graph.node]
    assert operators.count("Gemm") == 2
    assert "Relu" in operators
    (value,) = shown.file.graph.input
    assert [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim] == [
        "batch",
        4,
    ]


def test_the_module_is_left_as_it_was(shown: Shown) -> None:
    """Modes, weights, buffers and random states are the same, and so is logging."""
    assert shown.changed == []


@pytest.mark.slow
def test_a_module_of_several_inputs_is_shown_with_an_example() -> None:
    """The example is what the module takes, in the forms of an export."""
    with visualize(Difference(), (samples(2, 4), samples(2, 4)), browser=False) as server:
        graph = onnx.load_from_string(request(server.url, "/data/Difference.onnx").body).graph
    assert [value.name for value in graph.input] == ["left", "right"]


@pytest.mark.slow
def test_a_module_and_a_file_are_shown_side_by_side(file: Path) -> None:
    """Each viewer has its own content, also when the first was made of a module."""
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
def test_a_file_is_shown_as_it_is(file: Path, form: type) -> None:
    """The page of a file points to it, and the file's bytes are served."""
    with visualize(form(file), browser=False) as server:
        assert b'<meta name="file" content="/data/mlp.onnx">' in request(server.url).body
        assert request(server.url, "/data/mlp.onnx").body == file.read_bytes()


def test_a_file_needs_no_temporary_one(file: Path, temporary: Path) -> None:
    """A file is served from where it lies, and stays there."""
    with visualize(file, browser=False):
        assert _left_in(temporary) == []
    assert file.is_file()


def test_a_port_that_was_given_is_taken(file: Path) -> None:
    """The port is the one that was asked for."""
    with visualize(file, browser=False) as first:
        port = int(first.url.rpartition(":")[2])
    with visualize(file, browser=False, port=port) as second:
        assert second.url == f"http://127.0.0.1:{port}"


def test_an_empty_host_is_an_error(file: Path) -> None:
    """Python would listen on every address of the machine, which nobody asked for."""
    with pytest.raises(InvalidArgumentError) as caught:
        visualize(file, browser=False, host="")
    assert "`host`" in str(caught.value)
    assert "0.0.0.0" in str(caught.value)


@pytest.mark.parametrize("proxy", ["", "/proxy/8080/", "/proxy/{}/"])
def test_a_proxy_without_a_port_is_an_error(file: Path, proxy: str) -> None:
    """The value is named, with what is missing in it."""
    with pytest.raises(InvalidArgumentError) as caught:
        visualize(file, browser=False, proxy=proxy)
    assert f'"{proxy}"' in str(caught.value)
    assert "{port}" in str(caught.value)


def test_a_proxy_is_where_a_notebook_finds_the_page(file: Path) -> None:
    """The address that the user gives is that of the frame, with the port in it."""
    with visualize(file, browser=False, proxy="/base/proxy/{port}/") as server:
        port = server.url.rpartition(":")[2]
        assert f'<iframe src="/base/proxy/{port}/' in server._repr_html_()


def test_a_host_of_another_machine_is_an_error(file: Path) -> None:
    """An address that is not this machine's (one reserved for documents) is named."""
    with pytest.raises(ServerError) as caught:
        visualize(file, browser=False, host="203.0.113.1")
    assert "203.0.113.1" in str(caught.value)


def test_a_viewer_that_is_too_old_is_an_error(
    file: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    """Before a page opens that would refuse to work, the command is named that updates it."""
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
def test_an_impossible_port_is_an_error(file: Path, port: int) -> None:
    """A port outside 0 to 65535 is named."""
    with pytest.raises(InvalidArgumentError) as caught:
        visualize(file, browser=False, port=port)
    assert str(port) in str(caught.value)


@pytest.mark.parametrize("thing", [None, 3, ["mlp.onnx"], b"mlp.onnx", nn.Linear])
def test_something_else_than_a_module_or_a_path_is_an_error(thing: object) -> None:
    """The type is named."""
    with pytest.raises(InvalidTypeError) as caught:
        visualize(thing, browser=False)  # type: ignore[arg-type]
    assert type(thing).__name__ in str(caught.value)


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
def test_a_file_that_cannot_be_shown_is_an_error(
    tmp_path: Path, name: str, content: bytes | None, error: type[Exception]
) -> None:
    """The file is checked before a page opens that could only say so, and is named."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error) as caught:
        visualize(path, browser=False)
    assert name in str(caught.value)


def test_a_module_that_takes_no_guessed_input_is_an_error(temporary: Path) -> None:
    """A module without a layer to guess from needs an example, which the message names."""
    with pytest.raises(InvalidInputError) as caught:
        visualize(nn.ReLU(), browser=False)
    assert "`example_input=`" in str(caught.value)
    assert _left_in(temporary) == []


def test_an_example_of_a_wrong_shape_is_an_error(temporary: Path) -> None:
    """The shape that the module cannot take is named."""
    with pytest.raises(InvalidInputError) as caught:
        visualize(nn.Linear(4, 3), samples(2, 5), browser=False)
    assert "(2, 5)" in str(caught.value)
    assert _left_in(temporary) == []


def test_a_module_that_cannot_be_exported_leaves_no_folder(temporary: Path) -> None:
    """The exporter's failure is the error, and its temporary folder is gone."""
    with pytest.raises(ExportError):
        visualize(seeded(Branching), samples(2, 4), browser=False)
    assert _left_in(temporary) == []


def test_a_temporary_folder_is_gone_after_a_close(temporary: Path) -> None:
    """The file of a module lives as long as its viewer."""
    server = visualize(nn.Linear(4, 3), browser=False)
    assert temporary in server.file.parents
    assert server.file.is_file()
    server.close()
    assert _left_in(temporary) == []


@pytest.mark.slow
def test_a_temporary_folder_is_gone_when_the_server_cannot_start(
    file: Path, temporary: Path
) -> None:
    """A busy port is named, and leaves nothing behind."""
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
def test_a_program_that_ends_takes_its_viewer_along_in_silence(
    tmp_path: Path, temporary: Path
) -> None:
    """A viewer that nobody holds serves to the program's end, and leaves no file and no message."""
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


def test_the_next_viewer_removes_what_a_killed_process_left(file: Path, temporary: Path) -> None:
    """A folder that no process holds any more is gone when anything is shown."""
    folder = temporary / f"{PREFIX}killed"
    folder.mkdir()
    (folder / "Linear.onnx").touch()
    with visualize(file, browser=False):
        assert _left_in(temporary) == []


@pytest.mark.slow
def test_threads_show_modules_at_once(temporary: Path) -> None:
    """Each gets its own page and content, also of one module, of which nothing is changed or left.

    The exporter's state, like that of warnings and stderr, is the process's.
    """
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
    """A session of ssh, without a notebook."""
    desktop.setenv("SSH_CONNECTION", "198.51.100.5 50000 192.0.2.7 22")
    return desktop


@pytest.mark.usefixtures("ssh")
def test_a_session_of_ssh_is_told_how_to_reach_the_page(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr has the address and the command for the user's own machine."""
    with visualize(file) as server:
        port = server.url.rpartition(":")[2]
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert server.url in err
    assert f"ssh -N -L {port}:127.0.0.1:{port}" in err
    assert "192.0.2.7" in err


@pytest.mark.usefixtures("ssh")
def test_a_session_of_ssh_is_told_nothing_that_it_did_not_want(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`browser=False` is for programs, which have the address and the command in the server."""
    with visualize(file, browser=False) as server:
        assert "ssh -N -L" in repr(server)
    assert capsys.readouterr() == ("", "")


class ZMQInteractiveShell:
    """What a notebook's kernel runs in, by its name."""


def test_a_notebook_over_ssh_is_told_in_its_cell(
    ssh: pytest.MonkeyPatch, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A notebook shows the server itself, and the command under it."""
    ssh.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=ZMQInteractiveShell))
    with visualize(file) as server:
        assert "ssh -N -L" in server._repr_html_()
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("waited")
def test_a_program_that_waits_says_for_what(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no browser opened, the address stands on stderr before the wait, and how to end it."""
    with visualize(file, browser=False, block=True) as server:
        err = capsys.readouterr().err
    assert server.url in err
    assert "Ctrl-C" in err


@pytest.mark.usefixtures("desktop", "opened", "waited")
def test_a_browser_that_opened_says_enough(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a page that is seen no address is needed."""
    with visualize(file, block=True):
        assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("desktop")
def test_a_browser_opens_where_there_is_one(file: Path, opened: list[str]) -> None:
    """On a desktop the page is opened once, at the viewer's address."""
    with visualize(file, block=False) as server:
        assert opened == [server.url]


@pytest.mark.parametrize("obstacle", ["CI", "SSH_CONNECTION", "no DISPLAY", "no browser"])
def test_no_browser_opens_or_blocks_where_there_is_none(
    desktop: pytest.MonkeyPatch,
    file: Path,
    opened: list[str],
    waited: list[str],
    obstacle: str,
) -> None:
    """In CI, over ssh and without a display the server runs and the program goes on."""

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
def test_no_browser_opens_when_none_is_wanted(
    file: Path, opened: list[str], waited: list[str]
) -> None:
    """`browser=False` opens nothing, and waits for nothing."""
    with visualize(file, browser=False):
        assert opened == []
        assert waited == []


def test_a_browser_opens_when_one_is_wanted(
    desktop: pytest.MonkeyPatch, file: Path, opened: list[str]
) -> None:
    """`browser=True` opens one also where none is expected."""
    desktop.setenv("SSH_CONNECTION", "1")
    with visualize(file, browser=True, block=False) as server:
        assert opened == [server.url]


@pytest.mark.usefixtures("desktop", "opened")
@pytest.mark.parametrize("script", [True, False])
def test_a_script_waits_for_its_browser(
    monkeypatch: pytest.MonkeyPatch, file: Path, waited: list[str], script: bool
) -> None:
    """On a terminal a script waits, since it would take the page along; a notebook goes on."""
    monkeypatch.setattr(sys, "stdin", _Terminal() if script else None)
    with visualize(file) as server:
        assert waited == ([server.url] if script else [])


def test_a_script_does_not_wait_for_a_browser_that_did_not_open(
    desktop: pytest.MonkeyPatch, file: Path, waited: list[str]
) -> None:
    """Where the browser refuses, nobody looks at the page."""
    desktop.setattr(sys, "stdin", _Terminal())
    desktop.setattr(webbrowser, "open", lambda url, new=0: False)
    with visualize(file):
        assert waited == []


@pytest.mark.usefixtures("desktop", "opened")
@pytest.mark.parametrize("block", [True, False])
def test_a_user_decides_whether_to_wait(
    monkeypatch: pytest.MonkeyPatch, file: Path, waited: list[str], block: bool
) -> None:
    """`block` counts more than what the program looks like."""
    monkeypatch.setattr(sys, "stdin", None if block else _Terminal())
    with visualize(file, block=block) as server:
        assert waited == ([server.url] if block else [])


def test_a_program_may_wait_without_a_browser(file: Path, waited: list[str]) -> None:
    """`block=True` waits also where no browser opens, for one that comes over the network."""
    with visualize(file, browser=False, block=True) as server:
        assert waited == [server.url]


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: nn.Conv2d(3, 4, 3), id="images"),
        pytest.param(lambda: nn.Linear(4, 3).double(), id="double precision"),
    ],
)
def test_an_input_is_guessed_from_the_first_layer(make: Callable[[], nn.Module]) -> None:
    """Without an example the kind and precision of the first layer decide."""
    with visualize(seeded(make), browser=False) as server:
        graph = onnx.load(server.file).graph
    weight = next(seeded(make).parameters())
    kind = onnx.TensorProto.DOUBLE if weight.dtype == torch.float64 else onnx.TensorProto.FLOAT
    tensor = graph.input[0].type.tensor_type
    assert tensor.elem_type == kind
    assert tensor.shape.dim[1].dim_value == weight.shape[1]
