"""The handle of a running viewer: its address, how it is shown in a notebook, and its end."""

from __future__ import annotations

import atexit
import contextlib
import html
import os
import threading
from pathlib import Path
from typing import Self

from finetunelib._public import public
from finetunelib.errors import ServerError
from finetunelib.visualization._netron import page
from finetunelib.visualization._netron.http import PageServer
from finetunelib.visualization._netron.remote import proxied_address, ssh_command

#: Addresses that mean every address of a machine, and can be listened on but not opened.
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked up, not bound


@public("finetunelib.visualization")
class NetronServer:
    """A model that is being shown: the address of the viewer, and the switch that turns it off.

    Made by `finetunelib.visualize`. Any number of them run side by side, each with its own model.
    Used in a `with` block it closes itself; otherwise it ends with the program. As the last line
    of a notebook's cell it shows the viewer.

    Attributes:
        url: The address of the viewer's page, with the port that was taken.
        file: The file that is shown.

    Example:
        >>> from finetunelib import build_mlp, visualize
        >>> with visualize(build_mlp(4, [8], 3), browser=False) as server:
        ...     server.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(
        self,
        file: Path,
        *,
        host: str,
        port: int,
        proxy: str | None = None,
        owned: contextlib.ExitStack | None = None,
    ) -> None:
        self.file = file
        html = page.render(file.name)
        try:
            self._server = PageServer(host, port, file, html)
        except (OSError, OverflowError, ValueError, TypeError) as error:  # TypeError: a NUL in it.
            raise ServerError(
                f"The viewer cannot listen on {host}:{port}: "
                f"{getattr(error, 'strerror', None) or error}. "
                "Leave `port` out to take any free one."
            ) from error
        shown = _EVERY_ADDRESS.get(host, host)
        self._address = f"[{shown}]" if ":" in shown else shown
        self._port = int(self._server.server_address[1])
        self.url: str = f"http://{self._address}:{self._port}"
        self._proxy = proxy
        self._owned = owned.pop_all() if owned else contextlib.ExitStack()
        self._process = os.getpid()
        self._closing = threading.RLock()
        self._closed = threading.Event()
        # A method of this object, so that the thread keeps it and its temporary file alive: many
        # a caller drops the handle and goes on to look at the page.
        self._thread = threading.Thread(target=self._serve, name=f"netron {self.url}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Stop serving, free the port and remove temporary files. Closing again does nothing."""
        if os.getpid() != self._process:
            return  # A forked child has the handle, but neither the thread nor the files.
        with self._closing:  # Who closes second returns when all is gone.
            if self._closed.is_set():
                return
            self._server.end()
            self._thread.join()
            self._owned.close()
            self._closed.set()
            atexit.unregister(self.close)

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
        if self._closed.is_set():
            return f"NetronServer({self.file.name}, closed)"
        command = ssh_command(self._address, self._port)
        from_afar = f", from your own machine: {command}" if command else ""
        return f"NetronServer({self.file.name}, {self.url}{from_afar})"

    def _repr_html_(self) -> str:
        """Return the viewer in a frame, at the address under which a notebook's browser finds it.

        A kernel cannot see the browser. It knows of a proxy when it was told of one, or runs under
        JupyterHub; else the browser is taken to be on this machine, or behind a tunnel.
        """
        name = html.escape(self.file.name)
        if self._closed.is_set():
            return f"<p>The viewer of {name} is closed.</p>"
        source, hint = self.url, ""
        proxied = proxied_address(self._proxy, self._port)
        command = ssh_command(self._address, self._port)
        if proxied is not None:
            source = f"{proxied}{self._server.secret}/"
            hint = " An empty frame means that the server lacks jupyter-server-proxy."
        elif command is not None:
            hint = f" From your own machine: <code>{html.escape(command)}</code>"
        address = html.escape(source)
        return (
            f'<iframe src="{address}" title="Netron: {name}" width="100%" height="600" '
            'style="border: 1px solid #8888"></iframe>\n'
            f'<p>Netron shows {name} at <a href="{address}" target="_blank">{address}</a>.'
            f"{hint}</p>"
        )
