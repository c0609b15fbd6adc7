"""`NetronServer`: a running viewer, its address, and its display in notebooks."""

from __future__ import annotations

import atexit
import contextlib
import html
import os
import threading
from pathlib import Path
from typing import Self

from finetunelib._escapes import one_line
from finetunelib._public import public
from finetunelib.errors import ServerError
from finetunelib.visualization._netron import page
from finetunelib.visualization._netron.http import PageServer
from finetunelib.visualization._netron.remote import proxied_address, ssh_command

#: Addresses that listen on all interfaces, and the addresses to open instead.
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked up, not bound


@public("finetunelib.visualization")
class NetronServer:
    """A running viewer of one model, as returned by `finetunelib.visualize`.

    Any number of viewers can run at the same time. A viewer runs until `close` is called, its
    `with` block ends, or the program ends. As the last line of a notebook cell, it shows the page.

    Attributes:
        url: The address of the page, including the port.
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
        except (
            OSError,
            OverflowError,
            ValueError,
            TypeError,
        ) as error:  # TypeError: `host` contains a NUL.
            raise ServerError(
                f"The viewer cannot listen on {host}:{port}: "
                f"{getattr(error, 'strerror', None) or error}. "
                "Leave out `port` to use any free port."
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
        # A bound method keeps this object and its temporary file alive if the caller drops it.
        self._thread = threading.Thread(target=self._serve, name=f"netron {self.url}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Stop the server, free its port and remove temporary files. Further calls do nothing."""
        if os.getpid() != self._process:
            return  # A forked child owns neither the thread nor the files.
        with self._closing:  # A concurrent `close` returns only after cleanup has finished.
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
            # With a timeout, because Ctrl-C does not interrupt an unlimited wait on Windows.
            while not self._closed.wait(0.2):
                pass
        except KeyboardInterrupt:
            self.close()

    def _serve(self) -> None:
        # `close` waits for at most this interval.
        self._server.serve_forever(poll_interval=0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed.is_set():
            return f"NetronServer({one_line(self.file.name)}, closed)"
        command = ssh_command(self._address, self._port)
        tunnel = f", from your own machine: {command}" if command else ""
        return f"NetronServer({one_line(self.file.name)}, {self.url}{tunnel})"

    def _repr_html_(self) -> str:
        """Return a frame that shows the page.

        Its address is that of the proxy, if the user named one or the kernel runs under
        JupyterHub. Otherwise the browser must be on this machine, or use a tunnel.
        """
        name = html.escape(one_line(self.file.name))
        if self._closed.is_set():
            return f"<p>The viewer of {name} is closed.</p>"
        source, hint = self.url, ""
        proxied = proxied_address(self._proxy, self._port)
        command = ssh_command(self._address, self._port)
        if proxied is not None:
            source = f"{proxied}{self._server.secret}/"
            hint = " If the frame is empty, install jupyter-server-proxy on the notebook server."
        elif command is not None:
            hint = f" From your own machine: <code>{html.escape(command)}</code>"
        address = html.escape(source)
        return (
            f'<iframe src="{address}" title="Netron: {name}" width="100%" height="600" '
            'style="border: 1px solid #8888"></iframe>\n'
            f'<p>Netron shows {name} at <a href="{address}" target="_blank">{address}</a>.'
            f"{hint}</p>"
        )
