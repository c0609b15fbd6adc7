"""The page in a real browser: the graph is drawn, and nobody outside is asked for anything."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from torch import nn

from finetunelib import build_mlp, visualize
from support_chromium import Chromium, Page, chromium, find_chromium
from support_onnx import write_mlp

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    """A headless Chromium; without one the tests are skipped, and in CI they fail."""
    path = find_chromium()
    if path is None:
        message = "no Chromium or Chrome is installed"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with chromium(path) as browser:
        yield browser


@pytest.fixture(scope="module")
def shown(browser: Chromium) -> Page:
    """The page of an MLP, once its graph is drawn."""
    with visualize(build_mlp(784, [500], 10, seed=0), browser=False) as server:
        return browser.graph(server.url)


def _outside(page: Page) -> list[str]:
    """Return the requests to anybody but the loopback address."""
    urls = [urlsplit(url) for url in page.requests]
    return [
        url.geturl()
        for url in urls
        if url.scheme not in ("data", "blob") and url.hostname != "127.0.0.1"
    ]


def test_the_graph_of_a_module_is_drawn(shown: Page) -> None:
    """The nodes of an MLP stand in the page, without a question and without a spinner."""
    assert shown.nodes == ["inputs", "Gemm", "Relu", "Gemm", "output"]


def test_every_edge_shows_its_shape(shown: Page) -> None:
    """The tensors between the layers are labelled with the batch and their features."""
    times = "\N{MULTIPLICATION SIGN}"
    assert shown.edges == [f"batch{times}{features}" for features in (784, 500, 500, 10)]


def test_the_page_has_the_name_of_the_model(shown: Page) -> None:
    """The title of the tab is the file's name."""
    assert shown.title == "MLP.onnx"


def test_no_request_leaves_this_machine(shown: Page) -> None:
    """Everything that the page asks for it asks of its own server."""
    assert any(urlsplit(url).path == "/data/MLP.onnx" for url in shown.requests)
    assert _outside(shown) == []


def test_a_request_to_the_outside_would_be_seen(browser: Chromium) -> None:
    """The record that the test above rests on holds the requests of a page that does ask."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b'<img src="http://outside.invalid/picture.png">')

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        page = browser.plain(f"http://127.0.0.1:{server.server_port}/")
        server.shutdown()
        thread.join()
    assert _outside(page) == ["http://outside.invalid/picture.png"]


def test_two_models_are_drawn_side_by_side(browser: Chromium, tmp_path: Path) -> None:
    """Each viewer draws its own model, whichever was opened last."""
    first, second = nn.Linear(4, 8), nn.Linear(8, 3)
    with_relu = write_mlp(tmp_path / "relu.onnx", first, second)
    without = write_mlp(tmp_path / "identity.onnx", first, second, relu=False)
    with visualize(with_relu, browser=False) as one, visualize(without, browser=False) as two:
        assert "Identity" in browser.graph(two.url).nodes
        assert "Relu" in browser.graph(one.url).nodes


@pytest.mark.parametrize(
    "name", ["müller & söhne.onnx", "\"quoted\" 'name'.onnx", "<b>bold#100%?.onnx"]
)
def test_a_file_of_any_name_is_drawn(browser: Chromium, tmp_path: Path, name: str) -> None:
    """A name that is no plain word reaches the page as it is, and harms nothing."""
    path = tmp_path / name
    write_mlp(path, nn.Linear(4, 8), nn.Linear(8, 3))
    with visualize(path, browser=False) as server:
        page = browser.graph(server.url)
    assert "Relu" in page.nodes
    assert page.title == name
    assert _outside(page) == []
