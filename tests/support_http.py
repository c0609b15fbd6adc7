"""Requests to a server on loopback, byte for byte as they are given."""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from email.message import Message
from urllib.parse import urlsplit


@dataclass
class Answer:
    """What a server answered."""

    status: int
    headers: Message
    body: bytes


def request(url: str, path: str = "/", *, method: str = "GET", host: str | None = None) -> Answer:
    """Send one request to the server of `url`, for `path` as it stands, under any Host header."""
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
    """Send bytes to the server of `url`, and return all that it answers."""
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
