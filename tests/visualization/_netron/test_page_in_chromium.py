"""The page in a real browser: the graph is drawn without requests to other hosts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper
from torch import nn

from finetunelib import build_mlp, freeze_and_replace_head, visualize
from finetunelib.visualization._netron.temporary_onnx import leave_large_weights_out
from support_chromium import Chromium, Page, chromium, find_chromium
from support_http import answering, request
from support_models import samples
from support_onnx import write_mlp

pytestmark = pytest.mark.slow

TIMES = "\N{MULTIPLICATION SIGN}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    """A headless Chromium. Without one, the tests are skipped, but fail in CI."""
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
    """The page of an MLP after its graph was drawn."""
    with visualize(build_mlp(784, [500], 10, seed=0), browser=False) as server:
        return browser.graph(server.url)


def _outside(page: Page) -> list[str]:
    """Return the requests to other hosts than the loopback address."""
    urls = [urlsplit(url) for url in page.requests]
    return [
        url.geturl()
        for url in urls
        if url.scheme not in ("data", "blob") and url.hostname != "127.0.0.1"
    ]


def test_the_graph_of_a_module_is_drawn(shown: Page) -> None:
    """The page shows the nodes of an MLP, without a consent question."""
    assert shown.nodes == ["inputs", "Gemm", "Relu", "Gemm", "output"]


def test_every_edge_shows_its_shape(shown: Page) -> None:
    """The tensors between the layers are labelled with their shapes."""
    assert shown.edges == [f"batch{TIMES}{features}" for features in (784, 500, 500, 10)]


def test_the_page_has_the_name_of_the_model(shown: Page) -> None:
    """The title of the tab is the name of the file."""
    assert shown.title == "MLP.onnx"


def test_no_request_leaves_this_machine(shown: Page) -> None:
    """The page sends requests only to its own server."""
    assert any(urlsplit(url).path == "/data/MLP.onnx" for url in shown.requests)
    assert _outside(shown) == []


def test_the_page_is_drawn_within_five_seconds(shown: Page) -> None:
    """The time to draw the graph is short without a network. Chromium takes most of it."""
    assert shown.seconds < 5.0


def test_the_requests_of_workers_are_recorded(shown: Page) -> None:
    """The record includes the requests of the worker that computes the layout."""
    assert any(urlsplit(url).path == "/dagre.js" for url in shown.requests)


def test_a_request_to_the_outside_would_be_seen(browser: Chromium) -> None:
    """The record that other tests rely on includes requests to other hosts."""
    page = b'<img src="http://outside.invalid/picture.png">'
    with answering(lambda path, host: (200, "text/html", page)) as port:
        seen = browser.plain(f"http://127.0.0.1:{port}/")
    assert _outside(seen) == ["http://outside.invalid/picture.png"]


def test_the_page_cannot_send_requests_to_another_server(
    browser: Chromium, annotated: Path
) -> None:
    """Scripts in the page cannot reach other servers, even on this machine."""
    requested: list[str] = []

    def answer(path: str, host: str) -> tuple[int, str, bytes]:
        requested.append(path)
        return 200, "text/plain", b""

    with answering(answer) as port, visualize(annotated, browser=False) as server:
        address = f"http://127.0.0.1:{port}/"
        script = f'fetch("{address}", {{mode: "no-cors"}}).then(() => "sent", () => "refused")'
        assert browser.value(server.url, script) == "refused"
        assert requested == []
        request(address)  # A request from outside of the page is recorded.
    assert requested == ["/"]


def test_the_page_keeps_no_cookie(browser: Chromium, annotated: Path) -> None:
    """The page reads its consent cookie, but the browser stores no cookie."""
    with visualize(annotated, browser=False) as server:
        assert browser.value(server.url, "document.cookie") == "consent=1"
        assert browser.value(server.url, "cookieStore.getAll().then((all) => all.length)") == 0


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with metadata on its first layer, and shapes on all edges."""
    path = tmp_path_factory.mktemp("annotated") / "annotated.onnx"
    model = onnx.load(write_mlp(path, nn.Linear(784, 500), nn.Linear(500, 10)))
    for name in ("hidden", "active"):
        shape = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 500])
        model.graph.value_info.append(shape)
    origin = {
        "module": "backbone.0",
        "class": "torch.nn.modules.linear.Linear",
        "parameters": "392,500",
        "state": "frozen",
    }
    for key, value in origin.items():
        model.graph.node[0].metadata_props.add(key=key, value=value)
    onnx.save(model, path)
    return path


def test_the_sidebar_shows_the_metadata_of_a_layer(browser: Chromium, annotated: Path) -> None:
    """A click on a node shows its module, class, parameters and state."""
    with visualize(annotated, browser=False) as server:
        page = browser.node(server.url, "Gemm")
    assert page.sidebar[-4:] == [
        ("module", "backbone.0"),
        ("class", "torch.nn.modules.linear.Linear"),
        ("parameters", "392,500"),
        ("state", "frozen"),
    ]
    names = [value.removeprefix("+").strip() for _, value in page.sidebar]
    assert "name: first.weight" in names
    assert "name: hidden" in names
    assert _outside(page) == []


def test_the_sidebar_of_a_layer_without_metadata_has_none(
    browser: Chromium, annotated: Path
) -> None:
    """The sidebar shows the metadata of the node that was clicked."""
    with visualize(annotated, browser=False) as server:
        sidebar = dict(browser.node(server.url, "Relu").sidebar)
    assert sidebar["type"].endswith("Relu")
    assert "state" not in sidebar


def test_the_sidebar_shows_the_metadata_of_an_export(browser: Chromium) -> None:
    """For a fine-tuned model, the sidebar shows the class, parameters, state and output shape."""
    model = freeze_and_replace_head(build_mlp(784, [500], 10, seed=0), num_classes=5)
    with visualize(model, samples(2, 784), browser=False) as server:
        sidebar = dict(browser.node(server.url, "Gemm").sidebar)
    assert (sidebar["class"], sidebar["state"]) == ("Linear", "frozen")
    assert sidebar["parameters"].startswith("backbone.1.weight [500, 784], backbone.1.bias")
    assert sidebar["output"] == "batch x 500"


def test_the_page_is_drawn_in_a_notebook(browser: Chromium, annotated: Path) -> None:
    """The frame belongs to another site, for which browsers store no cookies."""
    with visualize(annotated, browser=False) as server:
        body = f"<!doctype html><html><body>{server._repr_html_()}</body></html>".encode()
        with answering(lambda path, host: (200, "text/html", body)) as port:
            page = browser.framed(f"http://localhost:{port}/lab")
    assert page.nodes == ["inputs", "Gemm", "Relu", "Gemm", "output"]
    assert [url for url in _outside(page) if urlsplit(url).hostname != "localhost"] == []


def test_the_page_is_drawn_through_a_proxy(browser: Chromium, annotated: Path) -> None:
    """All addresses in the page are relative, so it works below a proxy's prefix."""
    with visualize(annotated, browser=False, proxy="/user/alice/proxy/{port}/") as server:
        prefix = f"/user/alice/proxy/{server.url.rpartition(':')[2]}"

        def forward(path: str, host: str) -> tuple[int, str, bytes]:
            if not path.startswith(prefix):
                return 404, "text/plain", b""
            answer = request(server.url, path.removeprefix(prefix), host="hub.example.org")
            return answer.status, answer.headers.get_content_type(), answer.body

        source = server._repr_html_().partition('src="')[2].partition('"')[0]
        with answering(forward) as port:
            page = browser.graph(f"http://127.0.0.1:{port}{source}")
    assert page.nodes == ["inputs", "Gemm", "Relu", "Gemm", "output"]
    assert {urlsplit(url).port for url in page.requests} == {port}


def test_weights_that_are_left_out_have_shapes(browser: Chromium, annotated: Path) -> None:
    """The page shows their shapes, and does not request their values."""
    model = onnx_ir.load(annotated)
    leave_large_weights_out(model, 0)
    path = annotated.with_name("left_out.onnx")
    path.write_bytes(onnx_ir.serde.serialize_model(model).SerializeToString())
    with visualize(path, browser=False) as server:
        page = browser.node(server.url, "Gemm")
    assert any(weight.startswith("float32[500,784]") for weight in page.weights)
    assert [urlsplit(url).path for url in page.requests if "/data/" in url] == [
        "/data/left_out.onnx"
    ]


def test_two_models_are_drawn_side_by_side(browser: Chromium, tmp_path: Path) -> None:
    """Each viewer draws its own model, regardless of the order in which they were opened."""
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
    """Special characters in a name are shown literally."""
    path = tmp_path / name
    write_mlp(path, nn.Linear(4, 8), nn.Linear(8, 3))
    with visualize(path, browser=False) as server:
        page = browser.graph(server.url)
    assert "Relu" in page.nodes
    assert page.title == name
    assert _outside(page) == []
