"""A small HTTP server that shows one model in Netron's page, and its handle."""

from __future__ import annotations

import contextlib
import http.server
import shutil
import socket
import socketserver
import threading
import urllib.parse
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO, Self

from finetunelib.errors import ServerError
from finetunelib.visualization import _page

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class NetronServer:
    """A model that is being shown: the address of the viewer, and the switch that turns it off.

    Made by `finetunelib.visualize`. Any number of them run side by side, each with its own model.
    Used in a `with` block it closes itself; otherwise it ends with the program.

    Attributes:
        url: The address of the viewer's page, with the port that was taken.
        file: The file that is shown.

    Example:
        >>> from finetunelib import build_mlp, visualize
        >>> with visualize(build_mlp(4, [8], 3), browser=False) as server:
        ...     server.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(self, file: Path, *, host: str, port: int) -> None:
        self.file = file
        self._owned = contextlib.ExitStack()
        page = _page.page(file.name)
        try:
            self._server = _Server((host, port), file, page)
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"The viewer cannot listen on {host}:{port}: "
                f"{getattr(error, 'strerror', None) or error}. "
                "Leave `port` out to take any free one."
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.url: str = f"http://{shown}:{self._server.server_address[1]}"
        self._closed = threading.Event()
        # A method of this object, so that the thread keeps it and its temporary file alive: many
        # a caller drops the handle and goes on to look at the page.
        self._thread = threading.Thread(target=self._serve, name=f"netron {self.url}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving, free the port and remove temporary files. Closing again does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._owned.close()

    def own(self, resources: contextlib.ExitStack) -> None:
        """Close these too when the server closes, such as the folder of a temporary file."""
        self._owned = resources

    def wait(self) -> None:
        """Block until the server is closed, or until Ctrl-C, which closes it."""
        try:
            # With a timeout, so that Ctrl-C is noticed on every system.
            while not self._closed.wait(0.2):
                pass
        except KeyboardInterrupt:
            self.close()

    def _serve(self) -> None:
        # The interval is how long a close has to wait.
        self._server.serve_forever(poll_interval=0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else self.url
        return f"NetronServer({self.file.name}, {state})"


class _Server(socketserver.ThreadingTCPServer):
    """Not `http.server.HTTPServer`: that one looks its own name up, which can take seconds."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], file: Path, page: bytes) -> None:
        self.file = file
        self.page = page
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def accepts(self, host: str | None) -> bool:
        """Return whether a request's Host header names this machine.

        A page of another site can make a browser ask a name of its own that leads to loopback;
        the header gives it away.
        """
        bound = str(self.server_address[0])
        if bound not in _LOOPBACK:
            return True
        try:
            name = urllib.parse.urlsplit(f"//{host or ''}").hostname
        except ValueError:
            return False  # No name at all, such as an open bracket.
        return name in _LOOPBACK

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing, as in `_Handler.log_message`: a browser may go away in mid-sentence."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """Answer with the page, one of its assets, or the one file; with nothing else."""
        with contextlib.suppress(ConnectionError):  # The browser went away.
            self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer like GET, without the content."""
        with contextlib.suppress(ConnectionError):
            self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        if not self.server.accepts(self.headers.get("Host")):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "This viewer serves localhost only")
            return
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        name = path.removeprefix("/")
        if path in ("/", "/index.html"):
            self._send_headers("text/html; charset=utf-8", len(self.server.page))
            if body:
                self.wfile.write(self.server.page)
        elif path == f"/data/{self.server.file.name}":
            self._send_file(self.server.file, "application/octet-stream", body)
        elif name in _page.asset_names():
            file = _page.asset(name)
            self._send_file(file, _page.MIME_TYPES[file.suffix], body)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send_file(self, file: Path, content_type: str, body: bool) -> None:
        with _opened(file) as stream:
            if stream is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self._send_headers(content_type, file.stat().st_size)
            if body:
                shutil.copyfileobj(stream, self.wfile)

    def _send_headers(self, content_type: str, length: int) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Security-Policy", _page.CONTENT_SECURITY_POLICY)
        self.send_header("Set-Cookie", _page.COOKIE)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing: the server runs behind a user's own program."""


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[IO[bytes] | None]:
    try:
        stream = file.open("rb")
    except OSError:
        yield None  # The file was removed while it was shown.
        return
    with stream:
        yield stream
