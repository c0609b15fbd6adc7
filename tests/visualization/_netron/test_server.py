"""The server behind the page: what it gives, what it keeps, and how it ends."""

from __future__ import annotations

import contextlib
import gc
import html.parser
import logging
import os
import re
import signal
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest

from finetunelib.errors import FinetuneLibError, ServerError
from finetunelib.visualization import NetronServer
from finetunelib.visualization._netron import page
from finetunelib.visualization._netron.temporary_folder import temporary_folder
from support_http import connected, raw, request

_CONTENT = bytes(range(256)) * 5
_SECRET = b"what lies beside the model"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file to be shown, beside one that is not."""
    (tmp_path / "secret.onnx").write_bytes(_SECRET)
    path = tmp_path / "model.onnx"
    path.write_bytes(_CONTENT)
    return path


@pytest.fixture
def server(file: Path) -> Iterator[NetronServer]:
    """A server of `file` on a free port."""
    with NetronServer(file, host="127.0.0.1", port=0) as server:
        yield server


def _port(server: NetronServer) -> int:
    return int(server.url.rpartition(":")[2])


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("netron ")}


def _assert_unreachable(url: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        request(url)


@pytest.mark.parametrize("path", ["/", "/index.html", "/?q=1"])
def test_the_page_is_at_the_root(server: NetronServer, path: str) -> None:
    """The address of the server is that of the page, for the one file."""
    answer = request(server.url, path)
    assert answer.status == 200
    assert answer.headers.get_content_type() == "text/html"
    assert b'<meta name="file" content="/data/model.onnx">' in answer.body


def test_the_file_is_served_as_it_is(server: NetronServer) -> None:
    """The page's address of the file gives its bytes, whatever is asked after a question mark."""
    answer = request(server.url, "/data/model.onnx?cb=1")
    assert (answer.status, answer.body) == (200, _CONTENT)
    assert answer.headers["Content-Length"] == str(len(_CONTENT))


def test_everything_that_the_page_refers_to_is_served(server: NetronServer) -> None:
    """Scripts, styles and icons of the page are there, under their types."""
    html = request(server.url).body.decode()
    names = re.findall(r'(?:src|href)="([\w-]+\.\w+)"', html)
    assert any(name.endswith(".js") for name in names)
    for name in names:
        answer = request(server.url, f"/{name}")
        assert answer.status == 200
        assert answer.headers.get_content_type() == page.MIME_TYPES[Path(name).suffix]
        own = name == page.SCRIPT_NAME
        assert answer.body == (page.SCRIPT if own else page.asset(name).read_bytes())


@pytest.mark.parametrize("path", ["/", "/data/model.onnx", "/view.js"])
def test_a_head_request_is_answered_without_the_content(server: NetronServer, path: str) -> None:
    """Status and headers are those of a GET, and nothing follows."""
    full, head = request(server.url, path), request(server.url, path, method="HEAD")
    assert head.status == 200
    assert head.body == b""
    for name in ("Content-Type", "Content-Length", "Content-Security-Policy"):
        assert head.headers[name] == full.headers[name]


def test_a_head_request_for_nothing_is_not_found(server: NetronServer) -> None:
    """A HEAD request says what a GET would."""
    assert request(server.url, "/data/secret.onnx", method="HEAD").status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/data/secret.onnx",
        "/secret.onnx",
        "/model.onnx",
        "/data/",
        "/data",
        "/data/../secret.onnx",
        "/data/%2e%2e/secret.onnx",
        "/data/..%2fsecret.onnx",
        "/data/model.onnx/../secret.onnx",
        "/data/./model.onnx",
        "/data//model.onnx",
        "/data/%252e%252e/secret.onnx",
        "/data/%252e%252e%252fsecret.onnx",
        "/data/..\\secret.onnx",
        "/data/%c0%ae%c0%ae/secret.onnx",
        "//data/../secret.onnx",
        "file:///data/secret.onnx",
        "/../data/secret.onnx",
        "/..%5csecret.onnx",
        "/data/model.onnx%00",
        "/../../../../../../etc/passwd",
        "/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    ],
)
def test_nothing_else_is_served(server: NetronServer, path: str) -> None:
    """Neither files beside the model nor paths that lead out of the folder are found."""
    answer = request(server.url, path)
    assert answer.status == 404
    assert _SECRET not in answer.body
    assert b"root:" not in answer.body


def test_an_absolute_path_is_not_served(server: NetronServer, file: Path) -> None:
    """A full path on the disk leads nowhere, under `/data/` or not."""
    secret = file.with_name("secret.onnx")
    assert request(server.url, str(secret)).status == 404
    assert request(server.url, f"/data/{secret}").status == 404


@pytest.mark.parametrize("name", ["server.py", "__init__.py", "__pycache__", "x/../server.py"])
def test_the_viewers_own_sources_are_not_served(server: NetronServer, name: str) -> None:
    """The package's Python files are no assets."""
    assert request(server.url, f"/{name}").status == 404


def test_other_methods_are_refused(server: NetronServer) -> None:
    """The server takes nothing."""
    assert request(server.url, method="POST").status == 501


@pytest.mark.parametrize("path", ["/", "/data/model.onnx"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.0.2.7", "", "[", "@"]
)
def test_a_foreign_host_is_refused(server: NetronServer, host: str, path: str) -> None:
    """A page of another site that resolves its name to this machine gets neither page nor file."""
    answer = request(server.url, path, host=host)
    assert answer.status == 421
    assert _CONTENT not in answer.body
    assert b"model.onnx" not in answer.body


def test_a_request_without_a_host_is_refused(server: NetronServer) -> None:
    """A browser always says which host it means."""
    assert b" 421 " in raw(server.url, b"GET / HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost:1", "127.0.0.1", "[::1]:80"])
def test_the_names_of_this_machine_are_accepted(server: NetronServer, host: str) -> None:
    """A user may write `localhost`, and a tunnel may have another port."""
    assert request(server.url, host=host).status == 200


def test_the_server_listens_on_localhost_by_name(file: Path) -> None:
    """The name of the loopback address is an address to listen on."""
    with NetronServer(file, host="localhost", port=0) as server:
        assert server.url.startswith("http://localhost:")
        assert request(server.url, "/data/model.onnx").body == _CONTENT


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_the_server_listens_on_the_loopback_of_ipv6(file: Path) -> None:
    """The other loopback address works, in brackets as browsers want it."""
    with NetronServer(file, host="::1", port=0) as server:
        assert server.url.startswith("http://[::1]:")
        assert request(server.url, "/data/model.onnx").body == _CONTENT
        assert request(server.url, host="evil.example").status == 421


def test_a_server_for_the_network_has_an_address_that_opens_here(file: Path) -> None:
    """Every address of a machine is none that a browser can open; loopback is one of them."""
    with NetronServer(file, host="0.0.0.0", port=0) as server:
        assert server.url == f"http://127.0.0.1:{_port(server)}"
        assert request(server.url, "/data/model.onnx").body == _CONTENT


def test_a_server_for_the_network_is_found_under_its_addresses(file: Path) -> None:
    """Whoever asks for an address in numbers means this server: a number cannot be lent."""
    with NetronServer(file, host="0.0.0.0", port=0) as server:
        assert request(server.url, host="192.0.2.7:80").status == 200
        assert request(server.url, host=socket.gethostname()).status == 200


def test_a_server_for_the_network_refuses_a_foreign_host(file: Path) -> None:
    """A name that another site made lead here gives nothing, on whatever address."""
    with NetronServer(file, host="0.0.0.0", port=0) as server:
        answer = request(server.url, "/data/model.onnx", host="evil.example")
    assert answer.status == 421
    assert _CONTENT not in answer.body


def _secret(server: NetronServer) -> str:
    return server._server.secret


@pytest.mark.parametrize("host", ["hub.example.org", "127.0.0.1"])
def test_the_page_is_under_its_secret_for_a_proxy(server: NetronServer, host: str) -> None:
    """A notebook's proxy comes under its own name, and shows by the secret that it was sent."""
    page = request(server.url, f"/{_secret(server)}/", host=host)
    assert b'<meta name="file" content="/data/model.onnx">' in page.body
    file = request(server.url, f"/{_secret(server)}/data/model.onnx?cb=1", host=host)
    assert (file.status, file.body) == (200, _CONTENT)
    assert request(server.url, f"/{_secret(server)}/view.js", host=host).status == 200


@pytest.mark.parametrize("path", ["/data/secret.onnx", "/../secret.onnx", "/%2e%2e/secret.onnx"])
def test_nothing_else_is_under_the_secret(server: NetronServer, path: str) -> None:
    """Who knows the secret gets what others get at the root."""
    assert request(server.url, f"/{_secret(server)}{path}").status == 404


def test_the_secret_is_one_of_many(server: NetronServer, file: Path) -> None:
    """No two servers share it, a wrong one is none, and it is too long to be guessed."""
    with NetronServer(file, host="127.0.0.1", port=0) as other:
        assert len(_secret(other)) >= 20
        assert request(server.url, f"/{_secret(other)}/", host="hub.example").status == 421
        assert request(server.url, f"/{_secret(other)}/").status == 404


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Security-Policy", page.CONTENT_SECURITY_POLICY),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
        ("Referrer-Policy", "no-referrer"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/data/model.onnx", "/view.js"])
def test_every_answer_is_confined(server: NetronServer, path: str, name: str, value: str) -> None:
    """Page, file and assets all carry the headers that keep a browser from going elsewhere."""
    assert request(server.url, path).headers[name] == value


@pytest.mark.parametrize("path", ["/", "/data/model.onnx", "/view.js"])
def test_no_cookie_is_set(server: NetronServer, path: str) -> None:
    """A cookie of one port would be sent to every other program on this machine."""
    assert request(server.url, path).headers["Set-Cookie"] is None


def test_the_page_runs_the_librarys_script_before_its_own(server: NetronServer) -> None:
    """The answer to the page's question about statistics is there before it is asked."""
    html = request(server.url).body.decode()
    assert 0 < html.index(f'src="{page.SCRIPT_NAME}"') < html.index('src="index.js"')


def test_two_servers_show_their_own_files(tmp_path: Path, server: NetronServer) -> None:
    """Servers side by side have ports, pages and contents of their own."""
    path = tmp_path / "other.onnx"
    path.write_bytes(b"another model")
    with NetronServer(path, host="127.0.0.1", port=0) as other:
        assert other.url != server.url
        assert b"/data/other.onnx" in request(other.url).body
        assert b"/data/model.onnx" in request(server.url).body
        assert request(other.url, "/data/other.onnx").body == b"another model"
        assert request(server.url, "/data/model.onnx").body == _CONTENT
        assert request(server.url, "/data/other.onnx").status == 404


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        ("with space.onnx", "with%20space.onnx"),
        ("müller.onnx", "m%C3%BCller.onnx"),
        ("\"double\" 'single'.onnx", "%22double%22%20%27single%27.onnx"),
        ("<b>&amp;.onnx", "%3Cb%3E%26amp%3B.onnx"),
        ("100%25.onnx", "100%2525.onnx"),
        ("a#b?c.onnx", "a%23b%3Fc.onnx"),
    ],
)
def test_a_file_of_any_name_is_served(tmp_path: Path, name: str, quoted: str) -> None:
    """The address in the page is quoted, and is answered with the file."""
    (tmp_path / name).write_bytes(_CONTENT)
    with NetronServer(tmp_path / name, host="127.0.0.1", port=0) as server:
        assert f'content="/data/{quoted}"'.encode() in request(server.url).body
        assert request(server.url, f"/data/{quoted}").body == _CONTENT


def test_a_file_that_was_deleted_is_not_found(server: NetronServer, file: Path) -> None:
    """A file that goes away while it is shown is missing, and the page stays."""
    file.unlink()
    assert request(server.url, "/data/model.onnx").status == 404
    assert request(server.url).status == 200


def test_a_file_that_was_written_again_is_served_anew(server: NetronServer, file: Path) -> None:
    """A reload of the page shows the file as it is now."""
    file.write_bytes(b"a newer model")
    assert request(server.url, "/data/model.onnx").body == b"a newer model"


def test_a_free_port_is_in_the_address(server: NetronServer) -> None:
    """Port 0 gives a real one, which the address holds."""
    assert 0 < _port(server) < 65536
    assert request(server.url).status == 200


def test_a_port_is_free_after_a_close(file: Path) -> None:
    """The next server can listen where the last one did."""
    with NetronServer(file, host="127.0.0.1", port=0) as first:
        port = _port(first)
    with NetronServer(file, host="127.0.0.1", port=port) as second:
        assert _port(second) == port
        assert request(second.url).status == 200


def test_a_busy_port_is_an_error_that_names_it(server: NetronServer, file: Path) -> None:
    """A port that is taken is an OSError of this library, and its owner goes on."""
    with pytest.raises(ServerError) as caught:
        NetronServer(file, host="127.0.0.1", port=_port(server))
    assert f"127.0.0.1:{_port(server)}" in str(caught.value)
    assert isinstance(caught.value, FinetuneLibError)
    assert isinstance(caught.value, OSError)
    assert request(server.url).status == 200


def test_an_address_of_another_machine_is_an_error_that_names_it(file: Path) -> None:
    """An address that is not this machine's (one reserved for documents) cannot be served."""
    with pytest.raises(ServerError) as caught:
        NetronServer(file, host="203.0.113.1", port=0)
    assert "203.0.113.1" in str(caught.value)


@pytest.mark.parametrize("host", ["no..name", "a" * 70, "nul\0"], ids=["name", "long", "nul"])
def test_a_host_that_is_none_is_an_error_that_names_it(file: Path, host: str) -> None:
    """What cannot be a host is the library's own error, however Python fails on it."""
    with pytest.raises(ServerError) as caught:
        NetronServer(file, host=host, port=0)
    assert host in str(caught.value)


def test_an_impossible_port_is_an_error_that_names_it(file: Path) -> None:
    """A port above 65535 is the library's own error also here."""
    with pytest.raises(ServerError) as caught:
        NetronServer(file, host="127.0.0.1", port=70_000)
    assert "70000" in str(caught.value)


def test_a_server_that_cannot_start_leaves_no_thread(server: NetronServer, file: Path) -> None:
    """After an error there is no more than before."""
    before = _threads()
    with pytest.raises(ServerError):
        NetronServer(file, host="127.0.0.1", port=_port(server))
    assert _threads() == before


def test_a_closed_server_is_gone(file: Path) -> None:
    """Neither its port nor its thread is left."""
    server = NetronServer(file, host="127.0.0.1", port=0)
    name = f"netron {server.url}"
    assert name in _threads()
    server.close()
    _assert_unreachable(server.url)
    assert name not in _threads()


def test_closing_again_does_nothing(server: NetronServer) -> None:
    """A second close is no error, and brings nothing back."""
    server.close()
    server.close()
    _assert_unreachable(server.url)


def test_a_with_block_closes_at_its_end(file: Path) -> None:
    """The server is there inside the block and gone behind it, also after an error."""
    server = NetronServer(file, host="127.0.0.1", port=0)

    def fail() -> None:
        with server:
            assert request(server.url).status == 200
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    _assert_unreachable(server.url)


def _held() -> tuple[set[str], int]:
    """Return the names of the threads that serve, and how many descriptors are open."""
    gc.collect()  # What other tests left behind is not to go in between.
    folder = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    return _threads(), sum(1 for _ in folder.iterdir())


def test_fifty_servers_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty that were opened, asked and closed leave no thread, port, descriptor or file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = _held()
    urls = []
    for _ in range(50):
        with contextlib.ExitStack() as owned:
            path = owned.enter_context(temporary_folder()) / "model.onnx"
            path.write_bytes(_CONTENT)
            server = NetronServer(path, host="127.0.0.1", port=0, owned=owned)
        with server:
            urls.append(server.url)
            assert request(server.url, "/data/model.onnx").body == _CONTENT
    assert _held() == before
    assert list(tmp_path.iterdir()) == []
    for url in urls:
        _assert_unreachable(url)


def test_a_connection_on_which_nothing_is_asked_is_ended(file: Path) -> None:
    """Browsers connect ahead; a close does not wait for them, nor leave their threads."""
    before = _held()
    server = NetronServer(file, host="127.0.0.1", port=0)
    with connected(server.url) as idle, connected(server.url) as half:
        half.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        request(server.url)  # Connections are taken in order, so that both are by now.
        server.close()
        assert idle.recv(1) == b""
        assert half.recv(1) == b""
    assert _held() == before


def test_a_download_that_nobody_reads_is_ended(file: Path) -> None:
    """A close does not wait for a browser that has stopped reading."""
    file.write_bytes(bytes(50_000_000))
    before = _held()
    server = NetronServer(file, host="127.0.0.1", port=0)
    with connected(server.url) as stalled:
        stalled.sendall(b"GET /data/model.onnx HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stalled.recv(1) == b"H"
        server.close()
    assert _held() == before


def test_a_socket_that_a_child_process_shares_does_not_keep_the_port(file: Path) -> None:
    """A worker that was forked meanwhile has the socket too, and would let browsers hang."""
    server = NetronServer(file, host="127.0.0.1", port=0)
    with server._server.socket.dup():
        server.close()
        _assert_unreachable(server.url)


def test_another_process_does_not_close_it(
    server: NetronServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked child that ends and cleans up leaves the viewer and its files to its parent."""
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        server.close()
    assert request(server.url).status == 200


def test_two_threads_may_open_and_close_at_once(tmp_path: Path) -> None:
    """Each of eight threads gets the page and the content of its own file."""
    start = threading.Barrier(8)

    def show(number: int) -> tuple[bytes, bytes]:
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(b"%d" % number)
        start.wait(timeout=20)
        with NetronServer(path, host="127.0.0.1", port=0) as server:
            return request(server.url).body, request(server.url, f"/data/{number}.onnx").body

    with ThreadPoolExecutor(8) as pool:
        for number, (page, content) in enumerate(pool.map(show, range(8))):
            assert b'content="/data/%d.onnx"' % number in page
            assert content == b"%d" % number


def test_two_threads_may_close_the_same_server(file: Path) -> None:
    """Both return when it is gone."""
    server = NetronServer(file, host="127.0.0.1", port=0)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(server.close) for _ in range(2)]:
            done.result(timeout=20)
            _assert_unreachable(server.url)


def test_a_server_says_what_it_shows_and_where(server: NetronServer) -> None:
    """Its text holds the file and the address, and that it is closed when it is."""
    assert "model.onnx" in repr(server)
    assert server.url in repr(server)
    server.close()
    assert "closed" in repr(server)


def test_a_server_over_ssh_says_how_to_reach_it(
    server: NetronServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text holds the command for the user's own machine, and elsewhere it does not."""
    command = f"-L {_port(server)}:127.0.0.1:{_port(server)}"
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert command not in repr(server)
    monkeypatch.setenv("SSH_CONNECTION", "198.51.100.5 50000 192.0.2.7 22")
    assert command in repr(server)


class _Frame(html.parser.HTMLParser):
    """Collects the elements of a notebook's view."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.source = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "iframe":
            self.source = dict(attrs)["src"] or ""


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine of which nothing is known."""
    for name in ("SSH_CONNECTION", "JUPYTERHUB_SERVICE_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.usefixtures("notebook")
def test_a_notebook_shows_the_page_in_a_frame(server: NetronServer) -> None:
    """On one's own machine the frame holds the viewer's address."""
    assert _Frame(server._repr_html_()).source == server.url


def test_a_notebook_of_jupyterhub_shows_the_page_through_its_proxy(
    notebook: pytest.MonkeyPatch, server: NetronServer
) -> None:
    """The browser is elsewhere, and finds the viewer under the prefix of the user's server."""
    notebook.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/alice/")
    source = _Frame(server._repr_html_()).source
    assert source == f"/user/alice/proxy/{_port(server)}/{_secret(server)}/"
    path = source.removeprefix(f"/user/alice/proxy/{_port(server)}")  # As the proxy does.
    assert request(server.url, path, host="hub.example.org").status == 200
    assert "jupyter-server-proxy" in server._repr_html_()


def test_a_notebook_shows_the_page_through_the_proxy_that_was_named(
    notebook: pytest.MonkeyPatch, file: Path
) -> None:
    """What the user says counts more than what the environment does."""
    notebook.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/alice/")
    with NetronServer(file, host="127.0.0.1", port=0, proxy="/base/proxy/{port}") as server:
        source = _Frame(server._repr_html_()).source
        assert source == f"/base/proxy/{_port(server)}/{_secret(server)}/"


def test_a_notebook_over_ssh_holds_the_command(
    notebook: pytest.MonkeyPatch, server: NetronServer
) -> None:
    """Under the frame stands what brings the port to the user's machine."""
    notebook.setenv("SSH_CONNECTION", "198.51.100.5 50000 192.0.2.7 22")
    assert f"-L {_port(server)}:127.0.0.1:{_port(server)}" in server._repr_html_()


def test_a_notebook_says_that_a_viewer_is_closed(server: NetronServer) -> None:
    """A cell that is run after the close shows no empty frame."""
    server.close()
    assert "iframe" not in _Frame(server._repr_html_()).tags
    assert "closed" in server._repr_html_()
    assert "model.onnx" in server._repr_html_()


@pytest.mark.usefixtures("notebook")
def test_a_name_adds_nothing_to_a_notebook(tmp_path: Path) -> None:
    """A file's name is text there, whatever it holds."""
    path = tmp_path / '"><script>alert(1)<script>.onnx'
    path.write_bytes(_CONTENT)
    with NetronServer(path, host="127.0.0.1", port=0) as server:
        assert _Frame(server._repr_html_()).tags == ["iframe", "p", "a"]


def test_waiting_ends_when_another_thread_closes(server: NetronServer) -> None:
    """A program that waits goes on when the server is closed from elsewhere."""
    waiting = threading.Thread(target=server.wait)
    waiting.start()
    assert waiting.is_alive()
    server.close()
    waiting.join(timeout=20)
    assert not waiting.is_alive()


def test_waiting_for_a_closed_server_returns(server: NetronServer) -> None:
    """There is nothing to wait for."""
    server.close()
    server.wait()
    assert "closed" in repr(server)


def test_an_interrupt_ends_the_waiting_and_closes(server: NetronServer) -> None:
    """Ctrl-C while waiting is the user's way to close, and no error."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        # Only where it is looked for: anywhere else it would end the test.
        while frame is not None:
            if frame.f_code is NetronServer.wait.__code__:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise KeyboardInterrupt
            frame = frame.f_back

    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        server.wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    _assert_unreachable(server.url)


def test_a_server_that_nobody_holds_goes_on(file: Path) -> None:
    """A caller may drop the handle and go on to look at the page."""
    url = NetronServer(file, host="127.0.0.1", port=0).url
    gc.collect()
    try:
        assert request(url, "/data/model.onnx").body == _CONTENT
    finally:
        for thing in gc.get_objects():
            # By its exact type: some modules hold objects that warn when they are asked.
            if type(thing) is NetronServer and thing.url == url:
                thing.close()
    _assert_unreachable(url)


def test_nothing_is_printed(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Requests, good and bad, leave the terminal of the user's program alone."""
    with NetronServer(file, host="127.0.0.1", port=0) as server:
        request(server.url)
        request(server.url, "/missing")
        request(server.url, host="[")
        raw(server.url, b"no request at all\r\n\r\n")
        assert b" 404 " in raw(server.url, b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with connected(server.url) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: loc")
            # Closed with a reset, as by a browser that is killed.
            reset = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        request(server.url)
        for thread in threading.enumerate():
            if thread.name.startswith("netron request"):
                thread.join(timeout=20)
    assert capfd.readouterr() == ("", "")


def test_the_root_logger_is_left_alone(file: Path) -> None:
    """Netron's own server would configure logging for the whole program."""
    before = (logging.root.level, list(logging.root.handlers))
    with NetronServer(file, host="127.0.0.1", port=0) as server:
        request(server.url)
    assert (logging.root.level, list(logging.root.handlers)) == before
