"""Netron's page as served: private, for one file, and rejected if it would not work."""

from __future__ import annotations

import datetime as dt
import html.parser
import re
import urllib.parse
from pathlib import Path

import pytest

from finetunelib.errors import ServerError
from finetunelib.visualization._netron import page

#: Names that need escaping in HTML or URLs, or are not ASCII.
NAMES = [
    "plain.onnx",
    "with space.onnx",
    "müller & söhne.onnx",
    "模型.onnx",
    "\"quoted\" and 'single'.onnx",
    "<script>alert(1)</script>.onnx",
    '"><img src=x>.onnx',
    "100%25.onnx",
    "a#b?c=d&e.onnx",
    "a+b;c.onnx",
    "&quot;&lt;.onnx",
]


class _Metas(html.parser.HTMLParser):
    """Collects the meta elements of a page, and the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.metas: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        if tag == "meta" and "name" in values:
            self.metas.append((values["name"] or "", values.get("content") or ""))


def _installed() -> str:
    return page.asset("index.html").read_text(encoding="utf-8")


def _built() -> dt.datetime:
    found = re.search(r'<meta name="date" content="([^"]+)">', _installed())
    assert found is not None
    return dt.datetime.fromisoformat(found[1]).replace(tzinfo=dt.UTC)


def _page_of(name: str) -> _Metas:
    return _Metas(page.render(name, _built()).decode())


@pytest.mark.parametrize("name", NAMES)
def test_page_contains_address_of_file(name: str) -> None:
    """The address in the page, as a browser decodes it, ends with the file's name."""
    (address,) = [content for key, content in _page_of(name).metas if key == "file"]
    assert urllib.parse.unquote(urllib.parse.urlsplit(address).path) == f"/data/{name}"
    assert not urllib.parse.urlsplit(address).query
    assert not urllib.parse.urlsplit(address).fragment


@pytest.mark.parametrize("name", NAMES)
def test_page_shows_name_of_file(name: str) -> None:
    """The model name shown by the page is the file's name."""
    assert ("identifier", name) in _page_of(name).metas


@pytest.mark.parametrize("name", NAMES)
def test_name_is_escaped(name: str) -> None:
    """Brackets and quotes in a name add no elements to the page."""
    assert _page_of(name).tags == _page_of("plain.onnx").tags


def test_page_has_version_that_sends_no_statistics() -> None:
    """The page contains one version, 0.0.0."""
    versions = [content for key, content in _page_of("model.onnx").metas if key == "version"]
    assert versions == ["0.0.0"]


def test_rest_of_page_is_unchanged() -> None:
    """All other lines are those of the installed package."""
    served = set(page.render("model.onnx", _built()).decode().splitlines())
    missing = [line for line in _installed().splitlines() if line not in served]
    assert len(missing) == 1
    assert 'name="version"' in missing[0]


@pytest.mark.parametrize("days", [0, 179])
def test_recent_page_is_accepted(days: int) -> None:
    """The page works for 180 days after its build."""
    assert page.render("model.onnx", _built() + dt.timedelta(days=days))


def test_old_page_is_rejected() -> None:
    """After 180 days, the error contains the build date and the command that updates Netron."""
    with pytest.raises(ServerError) as caught:
        page.render("model.onnx", _built() + dt.timedelta(days=181))
    assert f"{_built():%Y-%m-%d}" in str(caught.value)
    assert "pip install --upgrade netron" in str(caught.value)


@pytest.mark.parametrize("name", ["version", "date"])
def test_unknown_page_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A page without the lines to replace could not be made private."""
    text = re.sub(rf'<meta name="{name}"[^>]*>', "", _installed())
    (tmp_path / "index.html").write_text(text, encoding="utf-8")
    now = _built()
    monkeypatch.setattr(page, "asset", lambda asset: tmp_path / asset)
    with pytest.raises(ServerError) as caught:
        page.render("model.onnx", now)
    assert "pip install --upgrade netron" in str(caught.value)


def test_python_files_are_not_assets() -> None:
    """The assets include scripts, styles and data, but no Python files."""
    names = page.asset_names()
    assert {"index.js", "view.js", "onnx.js", "onnx-metadata.json", "grapher.css"} <= names
    assert not any(name.endswith((".py", ".pyc")) for name in names)


def test_every_asset_has_a_mime_type() -> None:
    """Browsers run a script only if its MIME type is that of JavaScript."""
    suffixes = {Path(name).suffix for name in page.asset_names()}
    assert suffixes <= set(page.MIME_TYPES)
    assert page.MIME_TYPES[".js"] == "text/javascript"


@pytest.mark.parametrize("directive", ["default-src", "script-src", "connect-src"])
def test_policy_allows_no_other_host(directive: str) -> None:
    """Scripts and requests are limited to the server of the page."""
    directives = [part.split() for part in page.CONTENT_SECURITY_POLICY.split(";")]
    (sources,) = [part[1:] for part in directives if part[0] == directive]
    assert "'self'" in sources
    assert set(sources) <= {"'self'", "data:", "blob:"}
