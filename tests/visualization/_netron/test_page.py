"""Netron's page as it is served: private, for one file, and refused when it would not work."""

from __future__ import annotations

import datetime as dt
import html.parser
import re
import urllib.parse
from pathlib import Path

import pytest

from finetunelib.errors import ServerError
from finetunelib.visualization._netron import page

#: Names that would break out of HTML, out of a URL, or that are more than ASCII.
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
def test_the_page_points_to_its_file(name: str) -> None:
    """The address in the page, read as a browser does, is that of the file's name."""
    (address,) = [content for key, content in _page_of(name).metas if key == "file"]
    assert urllib.parse.unquote(urllib.parse.urlsplit(address).path) == f"/data/{name}"
    assert not urllib.parse.urlsplit(address).query
    assert not urllib.parse.urlsplit(address).fragment


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_entitled_with_the_name(name: str) -> None:
    """What the page shows as the model's name is the name as it is."""
    assert ("identifier", name) in _page_of(name).metas


@pytest.mark.parametrize("name", NAMES)
def test_a_name_adds_no_element_to_the_page(name: str) -> None:
    """A name with angle brackets and quotes is text and not code."""
    assert _page_of(name).tags == _page_of("plain.onnx").tags


def test_the_page_says_the_version_that_reports_nothing() -> None:
    """Of the version there is one mention, and it is the one of builds that send no statistics."""
    versions = [content for key, content in _page_of("model.onnx").metas if key == "version"]
    assert versions == ["0.0.0"]


def test_the_rest_of_the_page_is_netrons_own() -> None:
    """Everything but the version's line is what the installed package holds."""
    served = set(page.render("model.onnx", _built()).decode().splitlines())
    missing = [line for line in _installed().splitlines() if line not in served]
    assert len(missing) == 1
    assert 'name="version"' in missing[0]


@pytest.mark.parametrize("days", [0, 179])
def test_a_page_of_the_last_months_is_shown(days: int) -> None:
    """Within 180 days of its build the page works."""
    assert page.render("model.onnx", _built() + dt.timedelta(days=days))


def test_an_old_page_is_refused_with_the_command_that_updates_it() -> None:
    """After 180 days the page would refuse to work, so the error says its date and what to do."""
    with pytest.raises(ServerError) as caught:
        page.render("model.onnx", _built() + dt.timedelta(days=181))
    assert f"{_built():%Y-%m-%d}" in str(caught.value)
    assert "pip install --upgrade netron" in str(caught.value)


@pytest.mark.parametrize("name", ["version", "date"])
def test_a_page_that_changed_is_refused_with_the_command_that_updates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A page without the lines that are replaced would not be private, so it is not shown."""
    text = re.sub(rf'<meta name="{name}"[^>]*>', "", _installed())
    (tmp_path / "index.html").write_text(text, encoding="utf-8")
    now = _built()
    monkeypatch.setattr(page, "asset", lambda asset: tmp_path / asset)
    with pytest.raises(ServerError) as caught:
        page.render("model.onnx", now)
    assert "pip install --upgrade netron" in str(caught.value)


def test_no_source_of_the_package_is_an_asset() -> None:
    """Only what a page needs may be asked for."""
    names = page.asset_names()
    assert {"index.js", "view.js", "onnx.js", "onnx-metadata.json", "grapher.css"} <= names
    assert not any(name.endswith((".py", ".pyc")) for name in names)


def test_every_asset_has_a_mime_type() -> None:
    """A browser runs a script only under its own type."""
    suffixes = {Path(name).suffix for name in page.asset_names()}
    assert suffixes <= set(page.MIME_TYPES)
    assert page.MIME_TYPES[".js"] == "text/javascript"


@pytest.mark.parametrize("directive", ["default-src", "script-src", "connect-src"])
def test_the_policy_names_no_other_host(directive: str) -> None:
    """Scripts and requests of the page are confined to the server that it came from."""
    directives = [part.split() for part in page.CONTENT_SECURITY_POLICY.split(";")]
    (sources,) = [part[1:] for part in directives if part[0] == directive]
    assert "'self'" in sources
    assert set(sources) <= {"'self'", "data:", "blob:"}
