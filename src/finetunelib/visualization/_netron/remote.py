"""The address of the viewer for a browser on another machine: ssh tunnels and proxies."""

from __future__ import annotations

import getpass
import os
import shlex

#: The placeholder for the port in the address of a proxy.
PORT = "{port}"


def over_ssh() -> bool:
    """Return whether this program was started in an ssh session."""
    return bool(os.environ.get("SSH_CONNECTION"))


def ssh_command(address: str, port: int) -> str | None:
    """Return the command that forwards a port to the machine that an ssh session came from.

    Args:
        address: The address of the viewer on this machine, with brackets if it is IPv6.
        port: The port.

    Returns:
        The command, with this machine's address in the session, or `None` outside of ssh.
    """
    # sshd sets this to the addresses and ports of the client and of the server.
    words = os.environ.get("SSH_CONNECTION", "").split()
    if len(words) != 4:
        return None
    server, server_port = words[2:]
    options = [] if server_port == "22" else ["-p", server_port]
    try:
        destination = f"{getpass.getuser()}@{server}"
    except (KeyError, OSError, ImportError):  # Containers may run as a user without a name.
        destination = server
    tunnel = f"{port}:{address}:{port}"
    return shlex.join(["ssh", "-N", *options, "-L", tunnel, destination])


def proxied_address(proxy: str | None, port: int) -> str | None:
    """Return the address of a port behind a notebook's proxy, with a trailing slash.

    Args:
        proxy: The user's proxy address, which contains `{port}`. `None` uses that of
            jupyter-server-proxy if JupyterHub has set its prefix, or else there is no proxy.
        port: The port.
    """
    if proxy is None:
        prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX")
        if not prefix:
            return None
        proxy = f"{prefix.rstrip('/')}/proxy/{PORT}/"
    return f"{proxy.replace(PORT, str(port)).rstrip('/')}/"
