"""A headless Chromium, driven through its DevTools protocol over a pipe, without any package.

`--dump-dom` and `--screenshot` do not wait for the worker that computes the layout of the graph.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    # No host name can be resolved.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)

#: Chromium reads from file descriptor 3 and writes to 4; Popen passes others.
_ON_3_AND_4 = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execvp(sys.argv[3], sys.argv[3:])"
)

#: Resolves when Netron's spinner is gone and the nodes are shown.
_SHOWN = """new Promise((resolve) => {
    const look = () => {
        const nodes = [...document.querySelectorAll("#nodes .node")];
        const shown = nodes.length && nodes.every((node) => getComputedStyle(node).opacity === "1");
        if (shown && !document.body.classList.contains("spinner"))
            resolve({
                nodes: nodes.map((node) => [...node.querySelectorAll(".node-item text")]
                    .map((text) => text.textContent).join(" ")).filter(Boolean),
                weights: [...document.querySelectorAll("#nodes .node-argument text")]
                    .map((text) => text.textContent),
                edges: [...document.querySelectorAll("#edge-labels text")]
                    .map((text) => text.textContent),
                title: document.title,
            });
        else
            setTimeout(look, 20);
    };
    look();
})"""

#: Finds the middle of the first node that shows a text.
_MIDDLE = """(() => {
    const texts = [...document.querySelectorAll("#nodes .node-item text")];
    const box = texts.find((text) => text.textContent === TEXT).getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
})()"""

#: Resolves with the names and values in Netron's sidebar, when it is drawn and no longer moves.
_SIDEBAR = """new Promise((resolve) => {
    let before = null;
    const look = () => {
        const sidebar = document.querySelector("#sidebar");
        const items = [...document.querySelectorAll("#sidebar .sidebar-item")];
        const left = sidebar ? sidebar.getBoundingClientRect().left : null;
        if (items.length && left === before)
            resolve(items.map((item) => [
                item.querySelector("input").value,
                item.querySelector(".sidebar-item-value-list").innerText.trim(),
            ]));
        else {
            before = left;
            setTimeout(look, 100);
        }
    };
    look();
})"""

_LOADED = """new Promise((resolve) => document.readyState === "complete"
    ? resolve(true) : addEventListener("load", () => resolve(true)))"""


def find_chromium() -> str | None:
    """Return the path of an installed Chromium or Chrome, or None."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """The content and the requests of a page."""

    requests: list[str]
    nodes: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    edges: list[str] = field(default_factory=list)
    title: str = ""
    picture: bytes = b""
    sidebar: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0


class Chromium:
    """A running browser with one connection, used from one thread."""

    def __init__(
        self, process: subprocess.Popen[bytes], write: int, read: int, size: tuple[int, int]
    ) -> None:
        self._process = process
        self._size = size
        self._writer = os.fdopen(write, "wb", buffering=0)
        self._reader = os.fdopen(read, "rb")
        self._number = 0
        self._events: list[dict[str, Any]] = []
        self._opened = 0.0

    def graph(self, url: str) -> Page:
        """Open Netron's page, wait until its graph is drawn, and take a screenshot."""
        with self._tab(url) as session:
            return self._drawn(session, session)

    def node(self, url: str, text: str) -> Page:
        """Open Netron's page and click on the first node that shows `text`."""
        with self._tab(url) as session:
            self._evaluate(session, _SHOWN)
            x, y = self._evaluate(session, _MIDDLE.replace("TEXT", json.dumps(text)))
            for kind in ("mousePressed", "mouseReleased"):
                click = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
                self._call("Input.dispatchMouseEvent", session, **click)
            sidebar = [(name, value) for name, value in self._evaluate(session, _SIDEBAR)]
            page = self._drawn(session, session)
            page.sidebar = sidebar
            return page

    def framed(self, url: str) -> Page:
        """Open a page of another site with Netron's page in a frame, and wait for its graph."""
        with self._tab(url) as session:
            self._evaluate(session, _LOADED)
            (frame,) = [
                event["params"]["sessionId"]
                for event in self._events
                if event["method"] == "Target.attachedToTarget"
                and event["params"]["targetInfo"]["type"] == "iframe"
            ]
            return self._drawn(frame, session)

    def _drawn(self, session: str, screen: str) -> Page:
        shown = self._evaluate(session, _SHOWN)
        picture = self._call("Page.captureScreenshot", screen, format="png")["data"]
        return Page(
            self._requests(),
            **shown,
            picture=base64.b64decode(picture),
            seconds=time.perf_counter() - self._opened,
        )

    def plain(self, url: str) -> Page:
        """Open any page and wait until it has loaded, failed requests included."""
        with self._tab(url) as session:
            self._evaluate(session, _LOADED)
            return Page(self._requests())

    def loaded(self, url: str, expression: str) -> tuple[Any, list[str]]:
        """Open any page, evaluate JavaScript in it, and return the value and all requests."""
        with self._tab(url) as session:
            self._evaluate(session, _LOADED)
            return self._evaluate(session, expression), self._requests()

    def value(self, url: str, expression: str) -> Any:
        """Open Netron's page, wait until its graph is drawn, and evaluate JavaScript in it."""
        with self._tab(url) as session:
            self._evaluate(session, _SHOWN)
            return self._evaluate(session, expression)

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(OSError, EOFError):
            self._call("Browser.close")
        self._writer.close()
        self._reader.close()

    @contextlib.contextmanager
    def _tab(self, url: str) -> Iterator[str]:
        watchdog = threading.Timer(60.0, self._process.kill)
        watchdog.start()
        try:
            self._events.clear()
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
            session = attached["sessionId"]
            self._watch(session)
            self._call("Page.enable", session)
            # The size of the window would include its title bar.
            width, height = self._size
            screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
            self._call("Emulation.setDeviceMetricsOverride", session, **screen)
            self._call("Emulation.setScrollbarsHidden", session, hidden=True)
            self._opened = time.perf_counter()
            self._call("Page.navigate", session, url=url)
            yield session
            self._call("Target.closeTarget", targetId=target)
        finally:
            watchdog.cancel()
            watchdog.join()

    def _watch(self, session: str) -> None:
        """Record the requests of a page, and all requests of its frames and workers."""
        self._send("Network.enable", session)
        attach = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}
        self._send("Target.setAutoAttach", session, **attach)
        self._send("Runtime.runIfWaitingForDebugger", session)

    def _evaluate(self, session: str, expression: str) -> Any:
        answer = self._call(
            "Runtime.evaluate",
            session,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        return answer["result"]["value"]

    def _requests(self) -> list[str]:
        sent = [e for e in self._events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def _call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        number = self._send(method, session, **params)
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            if "method" in answer:
                self._events.append(answer)
                self._notice(answer)

    def _notice(self, event: dict[str, Any]) -> None:
        """Watch a frame or a worker that a page has started."""
        attached = event["method"] == "Target.attachedToTarget"
        if attached and event["params"]["targetInfo"]["type"] != "page":
            self._watch(event["params"]["sessionId"])

    def _send(self, method: str, session: str | None = None, **params: Any) -> int:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        self._writer.write(json.dumps(message).encode() + b"\0")
        return self._number

    def _receive(self) -> dict[str, Any]:
        parts = []
        while (byte := self._reader.read(1)) != b"\0":
            if not byte:
                raise EOFError(f"Chromium ended (status {self._process.poll()})")
            parts.append(byte)
        message: dict[str, Any] = json.loads(b"".join(parts))
        return message


@contextlib.contextmanager
def chromium(path: str, *, width: int = 1200, height: int = 1000) -> Iterator[Chromium]:
    """Run a browser with a temporary profile.

    It is killed after a minute on one page, or ten in all, so tests cannot hang.

    Args:
        path: The browser.
        width: The width of its pages in pixels.
        height: Their height.
    """
    child_read, write = os.pipe()
    read, child_write = os.pipe()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "stderr.txt")
        command = [path, *_FLAGS, f"--user-data-dir={folder}"]
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-c", _ON_3_AND_4, str(child_read), str(child_write), *command],
                pass_fds=(child_read, child_write),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        os.close(child_read)
        os.close(child_write)
        watchdog = threading.Timer(600.0, process.kill)
        watchdog.start()
        browser = Chromium(process, write, read, (width, height))
        try:
            yield browser
        finally:
            browser.close()
            process.wait()
            watchdog.cancel()
            watchdog.join()
