"""How a browser on another machine finds the viewer: through ssh, or a notebook's proxy."""

from __future__ import annotations

import getpass
import os
import shlex

#: What stands for the port in the address of a proxy.
PORT = "{port}"


def over_ssh() -> bool:
    """Return whether this program was started in an ssh session."""
    return bool(os.environ.get("SSH_CONNECTION"))


def ssh_command(address: str, port: int) -> str | None:
    """Return the command that brings a port to the machine that an ssh session came from.

    Args:
        address: The address that the viewer can be opened at on this machine, IPv6 in brackets.
        port: The port.

    Returns:
        The command, with the server's address as the session knows it, or `None` outside of ssh.
    """
    # The addresses and ports of the client and of the server, as sshd knows them.
    words = os.environ.get("SSH_CONNECTION", "").split()
    if len(words) != 4:
        return None
    server, server_port = words[2:]
    options = [] if server_port == "22" else ["-p", server_port]
    try:
        destination = f"{getpass.getuser()}@{server}"
    except (KeyError, OSError, ImportError):  # A container may run as a user without a name.
        destination = server
    tunnel = f"{port}:{address}:{port}"
    return shlex.join(["ssh", "-N", *options, "-L", tunnel, destination])


def proxied_address(proxy: str | None, port: int) -> str | None:
    """Return where a notebook's proxy shows a port of this machine, with a slash at the end.

    Args:
        proxy: The proxy's address as the user gave it, with `{port}` in it. `None` takes that of
            jupyter-server-proxy under JupyterHub, which names its own prefix to every kernel.
        port: The port.
    """
    if proxy is None:
        prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
        if not prefix:
            return None
        proxy = f"{prefix.rstrip('/')}/proxy/{PORT}/"
    return f"{proxy.replace(PORT, str(port)).rstrip('/')}/"
