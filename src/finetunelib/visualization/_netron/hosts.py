"""Under which names a server answers: the check of the Host header.

A page of another site can make a browser ask a name of its own that leads to this machine (DNS
rebinding); the header then holds that name. An address in numbers cannot be lent like this.
"""

from __future__ import annotations

import ipaddress
import socket
import urllib.parse
from collections.abc import Callable


def accepted_by(host: str, bound: str) -> Callable[[str | None], bool]:
    """Return the check for a server.

    Args:
        host: The host as the user wrote it.
        bound: The address that the server listens on.
    """
    own = {host.lower()}
    on_loopback = _is_loopback(bound)
    if not on_loopback:
        # A server for the network is known by its machine's names too; other aliases cannot be
        # told from a foreign name, and the address in numbers stands in for them.
        machine = socket.gethostname().lower()
        own |= {machine, machine.partition(".")[0], f"{machine.partition('.')[0]}.local"}

    def accepts(header: str | None) -> bool:
        name = _name_in(header)
        if name in own or _is_loopback(name):
            return True
        return not on_loopback and _is_address(name)

    return accepts


def _name_in(header: str | None) -> str:
    try:
        return urllib.parse.urlsplit(f"//{header or ''}").hostname or ""
    except ValueError:
        return ""  # No name at all, such as an open bracket.


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)
