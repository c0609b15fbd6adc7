"""The HTTP server of a viewer. It serves Netron's page, its assets and one file, nothing else."""

from __future__ import annotations

import contextlib
import http.server
import os
import secrets
import shutil
import socket
import socketserver
import threading
import urllib.parse
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO, cast

from finetunelib.visualization._netron import page
from finetunelib.visualization._netron.hosts import accepted_by


class PageServer(socketserver.ThreadingTCPServer):
    """Serves one file in Netron's page.

    Not an `http.server.HTTPServer`, which looks up its own host name; that can take seconds.

    Attributes:
        secret: A path prefix for clients that use another name than this machine's, such as a
            notebook's proxy. Only clients that received it can know it.
    """

    allow_reuse_address = True

    def __init__(self, host: str, port: int, file: Path, page: bytes) -> None:
        self.file = file
        self.page = page
        self.secret = secrets.token_urlsafe(16)
        self._running: dict[threading.Thread, socket.socket] = {}
        self._lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        self.accepts = accepted_by(host, str(self.server_address[0]))

    def process_request(self, request: object, client_address: object) -> None:
        """Answer a request in a thread that `end` can stop."""
        connection = cast("socket.socket", request)
        thread = threading.Thread(
            target=self._process,
            args=(connection, client_address),
            name=f"netron request {self.server_address[1]}",
            daemon=True,
        )
        with self._lock:
            self._running[thread] = connection
        thread.start()

    def _process(self, request: socket.socket, client_address: object) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._running.pop(threading.current_thread(), None)

    def end(self) -> None:
        """Stop listening, and close all connections, including idle ones."""
        self.shutdown()
        with contextlib.suppress(OSError):
            # A forked child, such as a DataLoader worker, shares the socket, which would keep
            # listening if it were only closed here.
            self.socket.shutdown(socket.SHUT_RDWR)
        self.server_close()
        with self._lock:
            running = list(self._running.items())
        for _, request in running:
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
        for thread, _ in running:
            thread.join()

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: browsers may close a connection at any time."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: PageServer  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version = "finetunelib"
    sys_version = ""
    #: Seconds after which an idle connection is closed.
    timeout = 60

    def do_GET(self) -> None:
        """Answer with the page, one of its assets, or the file."""
        with contextlib.suppress(ConnectionError):  # The browser closed the connection.
            self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer like GET, without the body."""
        with contextlib.suppress(ConnectionError):
            self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self._requested_path()
        if path is None:
            self.send_error(
                HTTPStatus.MISDIRECTED_REQUEST,
                "This viewer does not accept this host name",
                "Open its numeric address, such as http://127.0.0.1 with its port.",
            )
            return
        if path in ("/", "/index.html"):
            self._send_headers("text/html; charset=utf-8", len(self.server.page))
            if body:
                self.wfile.write(self.server.page)
        elif path == f"/{page.SCRIPT_NAME}":
            self._send_headers("text/javascript", len(page.SCRIPT))
            if body:
                self.wfile.write(page.SCRIPT)
        elif path == f"/data/{self.server.file.name}":
            self._send_file(self.server.file, "application/octet-stream", body)
        elif path.removeprefix("/") in page.asset_names():
            file = page.asset(path.removeprefix("/"))
            self._send_file(file, page.MIME_TYPES[file.suffix], body)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _requested_path(self) -> str | None:
        """Return the path of the request, or `None` if its host name is not accepted."""
        try:
            path = urllib.parse.unquote(
                urllib.parse.urlsplit(self.path).path, errors="surrogateescape"
            )
        except ValueError:
            path = ""  # Not an address, such as an open bracket.
        prefix = f"/{self.server.secret}"
        if path.startswith(f"{prefix}/"):
            return path.removeprefix(prefix)
        return path if self.server.accepts(self.headers.get("Host")) else None

    def _send_file(self, file: Path, content_type: str, body: bool) -> None:
        with _opened(file) as stream:
            if stream is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self._send_headers(content_type, os.fstat(stream.fileno()).st_size)
            if body:
                shutil.copyfileobj(stream, self.wfile)

    def _send_headers(self, content_type: str, length: int) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Security-Policy", page.CONTENT_SECURITY_POLICY)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Print nothing: the server runs in the background of a user's program."""


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[IO[bytes] | None]:
    try:
        stream = file.open("rb")
    except OSError:
        yield None  # The file was deleted while the viewer was open.
        return
    with stream:
        yield stream
