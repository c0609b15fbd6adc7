"""Checks the Host header of requests, which protects against DNS rebinding.

A malicious site can point its own domain name to this machine, and make a browser request it. The
Host header then contains that name. This attack is not possible with a numeric address.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse
from collections.abc import Callable


def accepted_by(host: str, bound: str) -> Callable[[str | None], bool]:
    """Return a function that returns whether a server accepts a Host header.

    Args:
        host: The host as the user wrote it.
        bound: The address that the server listens on.
    """
    own_names = {host.lower()}
    on_loopback = _is_loopback(bound)
    if not on_loopback:
        # A server on the network is also reached by its machine's names. Other aliases cannot be
        # distinguished from foreign names; users can open the numeric address instead.
        machine = socket.gethostname().lower()
        own_names |= {machine, machine.partition(".")[0], f"{machine.partition('.')[0]}.local"}

    def accepts(header: str | None) -> bool:
        name = _name_in(header)
        if name in own_names or _is_loopback(name):
            return True
        return not on_loopback and _is_address(name)

    return accepts


def _name_in(header: str | None) -> str:
    try:
        return urllib.parse.urlsplit(f"//{header or ''}").hostname or ""
    except ValueError:
        return ""  # Not a host, such as an open bracket.


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)
