"""Netron's page and assets from the installed package, changed to be private and work offline."""

from __future__ import annotations

import datetime as dt
import functools
import html
import importlib.resources
import re
import urllib.parse
from pathlib import Path

from finetunelib._escapes import one_line
from finetunelib.errors import ServerError

#: Netron's page refuses to work if it is older than this.
_LIFETIME = dt.timedelta(days=180)

#: Keeps the page from sending requests to other hosts.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-src 'none'; form-action 'none'; base-uri 'none'"
)

#: Without a consent cookie, the page asks ipinfo.io for the reader's location and waits for consent
#: to statistics, which are disabled here. A real cookie does not work: browsers block it in a
#: notebook's frame, and share it with all ports of this machine.
SCRIPT_NAME = "finetunelib.js"
SCRIPT = b"""\
Object.defineProperty(Document.prototype, "cookie", { get: () => "consent=1", set: () => {} });
"""

MIME_TYPES = {
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}


def render(file_name: str, now: dt.datetime | None = None) -> bytes:
    """Return Netron's page for the file at `/data/<file_name>`.

    Args:
        file_name: The name of the file.
        now: The time in UTC. `None` is the current time.

    Raises:
        ServerError: If the installed Netron is too old to open its page, or unknown to this
            library.
    """
    text = asset("index.html").read_text(encoding="utf-8")
    version = re.search(r'<meta name="version" content="[^"]*">', text)
    built = re.search(r'<meta name="date" content="(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)">', text)
    if version is None or built is None:
        raise ServerError(
            "This version of Netron is not supported, because its page cannot be made private. "
            "Install another version: pip install --upgrade netron finetunelib"
        )
    date = dt.datetime.fromisoformat(built[1]).replace(tzinfo=dt.UTC)
    if (now or dt.datetime.now(dt.UTC)) - date > _LIFETIME:
        raise ServerError(
            f"The installed Netron was built on {date:%Y-%m-%d}, and its page refuses to work "
            "after 180 days. Update it: pip install --upgrade netron"
        )
    # Names of files need not be UTF-8; the server decodes their bytes in the same way.
    quoted = html.escape(urllib.parse.quote(file_name, errors="surrogateescape"))
    # Netron sends no statistics if its version is 0.0.0.
    metas = [
        '<meta name="type" content="Python">',
        '<meta name="version" content="0.0.0">',
        f'<meta name="file" content="/data/{quoted}">',
        f'<meta name="identifier" content="{html.escape(one_line(file_name))}">',
    ]
    # Before the page's own scripts, which follow its meta elements.
    script = f'<script type="text/javascript" src="{SCRIPT_NAME}"></script>'
    text = text.replace(version[0], "\n".join([*metas, script]))
    return text.encode("utf-8")


@functools.cache
def asset(name: str) -> Path:
    """Return a file of the Netron package, without importing the package."""
    return Path(str(importlib.resources.files("netron"))) / name


@functools.cache
def asset_names() -> frozenset[str]:
    """Return the names of the assets that the page may request."""
    folder = asset("index.html").parent
    return frozenset(file.name for file in folder.iterdir() if file.suffix in MIME_TYPES)
