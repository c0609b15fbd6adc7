"""Raw requests to a server on loopback, and small servers."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from urllib.parse import urlsplit


@dataclass
class Answer:
    """The response of a server."""

    status: int
    headers: Message
    body: bytes


def request(url: str, path: str = "/", *, method: str = "GET", host: str | None = None) -> Answer:
    """Send one request to the server of `url` for an unescaped `path`, with any Host header."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", address.netloc if host is None else host)
        connection.endheaders()
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def raw(url: str, content: bytes) -> bytes:
    """Send bytes to the server of `url`, and return the whole response."""
    with connected(url) as connection:
        connection.sendall(content)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def connected(url: str) -> socket.socket:
    """Return an open connection to the server of `url`."""
    address = urlsplit(url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=20)


@contextlib.contextmanager
def answering(answer: Callable[[str, str], tuple[int, str, bytes]]) -> Iterator[int]:
    """Run a server on loopback, and yield its port.

    Args:
        answer: Takes the path and the Host header of a request, and returns a status, a content
            type and a body.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content_type, body = answer(self.path, self.headers["Host"] or "")
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
