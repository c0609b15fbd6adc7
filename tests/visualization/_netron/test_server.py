"""The server of the page: what it serves, what it rejects, and how it is closed."""

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
_SECRET = b"a file next to the model"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file to show, next to one that must not be served."""
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
    """The address of the server is that of the page."""
    answer = request(server.url, path)
    assert answer.status == 200
    assert answer.headers.get_content_type() == "text/html"
    assert b'<meta name="file" content="/data/model.onnx">' in answer.body


def test_the_file_is_served_unchanged(server: NetronServer) -> None:
    """The file is at the address in the page; a query string is ignored."""
    answer = request(server.url, "/data/model.onnx?cb=1")
    assert (answer.status, answer.body) == (200, _CONTENT)
    assert answer.headers["Content-Length"] == str(len(_CONTENT))


def test_all_assets_of_the_page_are_served(server: NetronServer) -> None:
    """Scripts, styles and icons are served with their MIME types."""
    html = request(server.url).body.decode()
    names = re.findall(r'(?:src|href)="([\w-]+\.\w+)"', html)
    assert any(name.endswith(".js") for name in names)
    for name in names:
        answer = request(server.url, f"/{name}")
        assert answer.status == 200
        assert answer.headers.get_content_type() == page.MIME_TYPES[Path(name).suffix]
        is_ours = name == page.SCRIPT_NAME
        assert answer.body == (page.SCRIPT if is_ours else page.asset(name).read_bytes())


@pytest.mark.parametrize("path", ["/", "/data/model.onnx", "/view.js"])
def test_a_head_request_has_no_body(server: NetronServer, path: str) -> None:
    """Status and headers are those of a GET request."""
    full, head = request(server.url, path), request(server.url, path, method="HEAD")
    assert head.status == 200
    assert head.body == b""
    for name in ("Content-Type", "Content-Length", "Content-Security-Policy"):
        assert head.headers[name] == full.headers[name]


def test_a_head_request_for_another_file_is_not_found(server: NetronServer) -> None:
    """The status of a HEAD request is that of a GET request."""
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
    """Neither files next to the model nor paths outside of its folder are served."""
    answer = request(server.url, path)
    assert answer.status == 404
    assert _SECRET not in answer.body
    assert b"root:" not in answer.body


def test_an_absolute_path_is_not_served(server: NetronServer, file: Path) -> None:
    """An absolute path is not found, with or without `/data/`."""
    secret = file.with_name("secret.onnx")
    assert request(server.url, str(secret)).status == 404
    assert request(server.url, f"/data/{secret}").status == 404


@pytest.mark.parametrize("name", ["server.py", "__init__.py", "__pycache__", "x/../server.py"])
def test_python_files_of_netron_are_not_served(server: NetronServer, name: str) -> None:
    """The Python files of the package are not assets."""
    assert request(server.url, f"/{name}").status == 404


def test_other_methods_are_rejected(server: NetronServer) -> None:
    """The server accepts no uploads."""
    assert request(server.url, method="POST").status == 501


@pytest.mark.parametrize("path", ["/", "/data/model.onnx"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.0.2.7", "", "[", "@"]
)
def test_a_foreign_host_is_rejected(server: NetronServer, host: str, path: str) -> None:
    """A site that points its name to this machine gets neither the page nor the file."""
    answer = request(server.url, path, host=host)
    assert answer.status == 421
    assert _CONTENT not in answer.body
    assert b"model.onnx" not in answer.body


def test_a_request_without_a_host_is_rejected(server: NetronServer) -> None:
    """Browsers always send a Host header."""
    assert b" 421 " in raw(server.url, b"GET / HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost:1", "127.0.0.1", "[::1]:80"])
def test_the_names_of_this_machine_are_accepted(server: NetronServer, host: str) -> None:
    """A user may open `localhost`, or a tunnel on another port."""
    assert request(server.url, host=host).status == 200


def test_the_server_listens_on_localhost_by_name(file: Path) -> None:
    """`localhost` is accepted as `host`."""
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
    """The URL of an IPv6 address contains brackets."""
    with NetronServer(file, host="::1", port=0) as server:
        assert server.url.startswith("http://[::1]:")
        assert request(server.url, "/data/model.onnx").body == _CONTENT
        assert request(server.url, host="evil.example").status == 421


def test_a_server_on_all_interfaces_has_a_loopback_url(file: Path) -> None:
    """A browser cannot open 0.0.0.0, so the URL contains the loopback address."""
    with NetronServer(file, host="0.0.0.0", port=0) as server:
        assert server.url == f"http://127.0.0.1:{_port(server)}"
        assert request(server.url, "/data/model.onnx").body == _CONTENT


def test_a_server_on_the_network_accepts_its_addresses(file: Path) -> None:
    """Numeric addresses and the host name are accepted."""
    with NetronServer(file, host="0.0.0.0", port=0) as server:
        assert request(server.url, host="192.0.2.7:80").status == 200
        assert request(server.url, host=socket.gethostname()).status == 200


def test_a_server_on_the_network_rejects_a_foreign_host(file: Path) -> None:
    """A foreign name is rejected on the network too."""
    with NetronServer(file, host="0.0.0.0", port=0) as server:
        answer = request(server.url, "/data/model.onnx", host="evil.example")
    assert answer.status == 421
    assert _CONTENT not in answer.body


def _secret(server: NetronServer) -> str:
    return server._server.secret


@pytest.mark.parametrize("host", ["hub.example.org", "127.0.0.1"])
def test_the_page_is_under_its_secret_for_a_proxy(server: NetronServer, host: str) -> None:
    """Requests of a proxy have a foreign host name, but their path starts with the secret."""
    page = request(server.url, f"/{_secret(server)}/", host=host)
    assert b'<meta name="file" content="/data/model.onnx">' in page.body
    file = request(server.url, f"/{_secret(server)}/data/model.onnx?cb=1", host=host)
    assert (file.status, file.body) == (200, _CONTENT)
    assert request(server.url, f"/{_secret(server)}/view.js", host=host).status == 200


@pytest.mark.parametrize("path", ["/data/secret.onnx", "/../secret.onnx", "/%2e%2e/secret.onnx"])
def test_nothing_else_is_under_the_secret(server: NetronServer, path: str) -> None:
    """The secret gives access to the page and the file only."""
    assert request(server.url, f"/{_secret(server)}{path}").status == 404


def test_the_secret_is_unique(server: NetronServer, file: Path) -> None:
    """Each server has its own secret, which is too long to guess."""
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
def test_every_answer_has_security_headers(
    server: NetronServer, path: str, name: str, value: str
) -> None:
    """The page, the file and the assets all have the headers."""
    assert request(server.url, path).headers[name] == value


@pytest.mark.parametrize("path", ["/", "/data/model.onnx", "/view.js"])
def test_no_cookie_is_set(server: NetronServer, path: str) -> None:
    """Browsers would send a cookie to all other ports of this machine."""
    assert request(server.url, path).headers["Set-Cookie"] is None


def test_the_page_runs_the_librarys_script_before_its_own(server: NetronServer) -> None:
    """The script that answers the consent question comes before the page's scripts."""
    html = request(server.url).body.decode()
    assert 0 < html.index(f'src="{page.SCRIPT_NAME}"') < html.index('src="index.js"')


def test_two_servers_show_their_own_files(tmp_path: Path, server: NetronServer) -> None:
    """Two servers have different ports, pages and contents."""
    path = tmp_path / "other.onnx"
    path.write_bytes(b"a second model")
    with NetronServer(path, host="127.0.0.1", port=0) as other:
        assert other.url != server.url
        assert b"/data/other.onnx" in request(other.url).body
        assert b"/data/model.onnx" in request(server.url).body
        assert request(other.url, "/data/other.onnx").body == b"a second model"
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
    """Special characters are quoted in the address of the file."""
    (tmp_path / name).write_bytes(_CONTENT)
    with NetronServer(tmp_path / name, host="127.0.0.1", port=0) as server:
        assert f'content="/data/{quoted}"'.encode() in request(server.url).body
        assert request(server.url, f"/data/{quoted}").body == _CONTENT


def test_a_file_that_was_deleted_is_not_found(server: NetronServer, file: Path) -> None:
    """If the file is deleted while the viewer is open, the page is still served."""
    file.unlink()
    assert request(server.url, "/data/model.onnx").status == 404
    assert request(server.url).status == 200


def test_a_changed_file_is_served(server: NetronServer, file: Path) -> None:
    """Reloading the page shows the current content of the file."""
    file.write_bytes(b"a newer model")
    assert request(server.url, "/data/model.onnx").body == b"a newer model"


def test_a_free_port_is_in_the_address(server: NetronServer) -> None:
    """With port 0, the URL contains the port that was selected."""
    assert 0 < _port(server) < 65536
    assert request(server.url).status == 200


def test_a_port_is_free_after_a_close(file: Path) -> None:
    """Another server can listen on the port of a closed one."""
    with NetronServer(file, host="127.0.0.1", port=0) as first:
        port = _port(first)
    with NetronServer(file, host="127.0.0.1", port=port) as second:
        assert _port(second) == port
        assert request(second.url).status == 200


def test_a_busy_port_is_an_error_that_names_it(server: NetronServer, file: Path) -> None:
    """A port in use raises `ServerError`, and the other server is not affected."""
    with pytest.raises(ServerError) as caught:
        NetronServer(file, host="127.0.0.1", port=_port(server))
    assert f"127.0.0.1:{_port(server)}" in str(caught.value)
    assert isinstance(caught.value, FinetuneLibError)
    assert isinstance(caught.value, OSError)
    assert request(server.url).status == 200


def test_an_address_of_another_machine_is_an_error_that_names_it(file: Path) -> None:
    """An address that does not belong to this machine raises `ServerError`."""
    with pytest.raises(ServerError) as caught:
        NetronServer(file, host="203.0.113.1", port=0)
    assert "203.0.113.1" in str(caught.value)


@pytest.mark.parametrize("host", ["no..name", "a" * 70, "nul\0"], ids=["name", "long", "nul"])
def test_an_invalid_host_is_an_error_that_names_it(file: Path, host: str) -> None:
    """Whatever Python raises for an invalid host becomes a `ServerError`."""
    with pytest.raises(ServerError) as caught:
        NetronServer(file, host=host, port=0)
    assert host.replace("\0", r"\x00") in str(caught.value)  # Control characters are escaped.


def test_an_impossible_port_is_an_error_that_names_it(file: Path) -> None:
    """A port above 65535 raises `ServerError`."""
    with pytest.raises(ServerError) as caught:
        NetronServer(file, host="127.0.0.1", port=70_000)
    assert "70000" in str(caught.value)


def test_a_server_that_cannot_start_leaves_no_thread(server: NetronServer, file: Path) -> None:
    """An error leaves no thread running."""
    before = _threads()
    with pytest.raises(ServerError):
        NetronServer(file, host="127.0.0.1", port=_port(server))
    assert _threads() == before


def test_close_ends_port_and_thread(file: Path) -> None:
    """After `close`, the port is free and the thread has ended."""
    server = NetronServer(file, host="127.0.0.1", port=0)
    name = f"netron {server.url}"
    assert name in _threads()
    server.close()
    _assert_unreachable(server.url)
    assert name not in _threads()


def test_closing_again_does_nothing(server: NetronServer) -> None:
    """A second `close` does not raise."""
    server.close()
    server.close()
    _assert_unreachable(server.url)


def test_a_with_block_closes_at_its_end(file: Path) -> None:
    """The server is closed at the end of the block, even after an exception."""
    server = NetronServer(file, host="127.0.0.1", port=0)

    def fail() -> None:
        with server:
            assert request(server.url).status == 200
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    _assert_unreachable(server.url)


def _resources() -> tuple[set[str], int]:
    """Return the names of server threads, and the number of open descriptors."""
    gc.collect()  # Otherwise, garbage of other tests may close descriptors later.
    folder = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    return _threads(), sum(1 for _ in folder.iterdir())


def test_fifty_servers_release_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After fifty servers, there are no more threads, ports, descriptors or files than before."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = _resources()
    urls = []
    for _ in range(50):
        with contextlib.ExitStack() as owned:
            path = owned.enter_context(temporary_folder()) / "model.onnx"
            path.write_bytes(_CONTENT)
            server = NetronServer(path, host="127.0.0.1", port=0, owned=owned)
        with server:
            urls.append(server.url)
            assert request(server.url, "/data/model.onnx").body == _CONTENT
    assert _resources() == before
    assert list(tmp_path.iterdir()) == []
    for url in urls:
        _assert_unreachable(url)


def test_close_ends_idle_connections(file: Path) -> None:
    """Browsers open idle connections; `close` ends them and their threads."""
    before = _resources()
    server = NetronServer(file, host="127.0.0.1", port=0)
    with connected(server.url) as idle, connected(server.url) as half:
        half.sendall(b"GET / HTTP/1.1\r\nHost: loc")
        request(server.url)  # Connections are accepted in order.
        server.close()
        assert idle.recv(1) == b""
        assert half.recv(1) == b""
    assert _resources() == before


def test_close_ends_stalled_downloads(file: Path) -> None:
    """`close` does not wait for a browser that has stopped reading."""
    file.write_bytes(bytes(50_000_000))
    before = _resources()
    server = NetronServer(file, host="127.0.0.1", port=0)
    with connected(server.url) as stalled:
        stalled.sendall(b"GET /data/model.onnx HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert stalled.recv(1) == b"H"
        server.close()
    assert _resources() == before


def test_close_frees_a_port_shared_with_a_child_process(file: Path) -> None:
    """A forked worker shares the socket, on which browsers would otherwise wait forever."""
    server = NetronServer(file, host="127.0.0.1", port=0)
    with server._server.socket.dup():
        server.close()
        _assert_unreachable(server.url)


def test_a_forked_child_does_not_close_the_server(
    server: NetronServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cleanup of a forked child does not affect the viewer of its parent."""
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        server.close()
    assert request(server.url).status == 200


def test_threads_may_open_and_close_servers_at_once(tmp_path: Path) -> None:
    """Each of eight threads gets the page and content of its own file."""
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
    """Both calls return after the server was closed."""
    server = NetronServer(file, host="127.0.0.1", port=0)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(server.close) for _ in range(2)]:
            done.result(timeout=20)
            _assert_unreachable(server.url)


def test_repr_contains_file_and_url(server: NetronServer) -> None:
    """The repr is one line with the file and URL, or says that the server is closed."""
    assert "model.onnx" in repr(server)
    assert server.url in repr(server)
    assert "\n" not in repr(server)
    server.close()
    assert "closed" in repr(server)


def test_repr_over_ssh_contains_command(
    server: NetronServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repr contains the command for the user's own machine only in an ssh session."""
    command = f"-L {_port(server)}:127.0.0.1:{_port(server)}"
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert command not in repr(server)
    monkeypatch.setenv("SSH_CONNECTION", "198.51.100.5 50000 192.0.2.7 22")
    assert command in repr(server)


class _Frame(html.parser.HTMLParser):
    """Collects the elements of a notebook's HTML."""

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
    """An environment without ssh and JupyterHub."""
    for name in ("SSH_CONNECTION", "JUPYTERHUB_SERVICE_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.usefixtures("notebook")
def test_a_notebook_shows_the_page_in_a_frame(server: NetronServer) -> None:
    """Without a proxy, the frame contains the viewer's address."""
    assert _Frame(server._repr_html_()).source == server.url


def test_a_notebook_of_jupyterhub_shows_the_page_through_its_proxy(
    notebook: pytest.MonkeyPatch, server: NetronServer
) -> None:
    """Under JupyterHub, the frame contains the prefix of the user's server."""
    notebook.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/alice/")
    source = _Frame(server._repr_html_()).source
    assert source == f"/user/alice/proxy/{_port(server)}/{_secret(server)}/"
    path = source.removeprefix(f"/user/alice/proxy/{_port(server)}")  # As a proxy does.
    assert request(server.url, path, host="hub.example.org").status == 200
    assert "jupyter-server-proxy" in server._repr_html_()


def test_a_notebook_shows_the_page_through_the_users_proxy(
    notebook: pytest.MonkeyPatch, file: Path
) -> None:
    """The `proxy` argument has precedence over the environment."""
    notebook.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/alice/")
    with NetronServer(file, host="127.0.0.1", port=0, proxy="/base/proxy/{port}") as server:
        source = _Frame(server._repr_html_()).source
        assert source == f"/base/proxy/{_port(server)}/{_secret(server)}/"


def test_a_notebook_over_ssh_shows_the_command(
    notebook: pytest.MonkeyPatch, server: NetronServer
) -> None:
    """The command is shown below the frame."""
    notebook.setenv("SSH_CONNECTION", "198.51.100.5 50000 192.0.2.7 22")
    assert f"-L {_port(server)}:127.0.0.1:{_port(server)}" in server._repr_html_()


def test_a_notebook_says_that_a_viewer_is_closed(server: NetronServer) -> None:
    """After `close`, there is a sentence instead of the frame."""
    server.close()
    assert "iframe" not in _Frame(server._repr_html_()).tags
    assert "closed" in server._repr_html_()
    assert "model.onnx" in server._repr_html_()


@pytest.mark.usefixtures("notebook")
def test_file_name_is_escaped_in_a_notebook(tmp_path: Path) -> None:
    """Markup in the name of a file is shown as text."""
    path = tmp_path / '"><script>alert(1)<script>.onnx'
    path.write_bytes(_CONTENT)
    with NetronServer(path, host="127.0.0.1", port=0) as server:
        assert _Frame(server._repr_html_()).tags == ["iframe", "p", "a"]


def test_waiting_ends_when_another_thread_closes(server: NetronServer) -> None:
    """`wait` returns when another thread closes the server."""
    waiting = threading.Thread(target=server.wait)
    waiting.start()
    assert waiting.is_alive()
    server.close()
    waiting.join(timeout=20)
    assert not waiting.is_alive()


def test_waiting_for_a_closed_server_returns(server: NetronServer) -> None:
    """`wait` returns at once if the server is closed."""
    server.close()
    server.wait()
    assert "closed" in repr(server)


def test_ctrl_c_ends_waiting_and_closes(server: NetronServer) -> None:
    """Ctrl-C during `wait` closes the server and is not an error."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        # Interrupt only inside of `wait`, because an interrupt elsewhere would end the test.
        while frame is not None:
            if frame.f_code is NetronServer.wait.__code__:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise KeyboardInterrupt
            frame = frame.f_back

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        server.wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    _assert_unreachable(server.url)


def test_a_server_without_references_continues(file: Path) -> None:
    """The page is served even if the caller drops the server object."""
    url = NetronServer(file, host="127.0.0.1", port=0).url
    gc.collect()
    try:
        assert request(url, "/data/model.onnx").body == _CONTENT
    finally:
        for candidate in gc.get_objects():
            # By its exact type, because `isinstance` triggers warnings of some objects.
            if type(candidate) is NetronServer and candidate.url == url:
                candidate.close()
    _assert_unreachable(url)


def test_nothing_is_printed(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither valid nor invalid requests print anything."""
    with NetronServer(file, host="127.0.0.1", port=0) as server:
        request(server.url)
        request(server.url, "/missing")
        request(server.url, host="[")
        raw(server.url, b"not a request\r\n\r\n")
        assert b" 404 " in raw(server.url, b"GET http://[/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with connected(server.url) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: loc")
            # Close with a reset, like a browser that is killed.
            reset = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        request(server.url)
        for thread in threading.enumerate():
            if thread.name.startswith("netron request"):
                thread.join(timeout=20)
    assert capfd.readouterr() == ("", "")


def test_the_root_logger_is_unchanged(file: Path) -> None:
    """Unlike Netron's own server, the viewer does not configure logging."""
    before = (logging.root.level, list(logging.root.handlers))
    with NetronServer(file, host="127.0.0.1", port=0) as server:
        request(server.url)
    assert (logging.root.level, list(logging.root.handlers)) == before
