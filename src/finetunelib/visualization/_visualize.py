"""`visualize`: a model or a file, shown in Netron's page on this machine."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from torch import nn

from finetunelib._preserve import evaluating, random_state_preserved
from finetunelib._typing import StrPath
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.export._export import export_onnx
from finetunelib.export._inputs import ModelInputs
from finetunelib.models._example_input import run_on_example
from finetunelib.visualization._browser import browser_available, open_page, runs_as_script
from finetunelib.visualization._formats import check_viewable
from finetunelib.visualization._server import NetronServer


def visualize(
    model_or_path: nn.Module | StrPath,
    example_input: ModelInputs | None = None,
    *,
    browser: bool | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    block: bool | None = None,
) -> NetronServer:
    """Show a model in Netron, in the browser.

    Netron's page is served from this machine, to this machine alone, and asks no other host for
    anything: it works offline, and nothing is reported. A module is exported to a temporary ONNX
    file first, so that every edge shows its shape.

    Args:
        model_or_path: A module, or a file that Netron opens (`.onnx`, `.pt2`, `.pth`,
            `.safetensors` and others).
        example_input: What the module takes, as for `export_onnx`. `None` guesses it from the
            first layer. Not used for a file.
        browser: Whether to open a browser. `None` opens one where there is one: not in CI, not
            without a display, not over ssh.
        host: The address to listen on. Any but a loopback address shows the model to the network.
        port: The port to listen on; 0 takes a free one.
        block: Whether to return only when the viewer is closed (Ctrl-C). `None` blocks in a
            script on a terminal that opened a browser, where the page would end with the script.

    Returns:
        The running viewer, with its address in `.url`; `.close()` or a `with` block ends it.

    Raises:
        FileMissingError: There is no such file.
        UnsupportedFileError: Netron does not know this kind of file.
        CorruptFileError: The file is empty or damaged.
        InvalidInputError: The module cannot take `example_input`, or none could be guessed.
        ExportError: The module cannot be exported.
        InvalidTypeError: `model_or_path` is neither a module nor a path.
        InvalidArgumentError: `port` is outside 0 to 65535.
        ServerError: The port is taken, or the installed Netron too old.

    Example:
        >>> import urllib.request
        >>> from finetunelib import build_mlp, visualize
        >>> with visualize(build_mlp(784, [500], 10), browser=False) as server:
        ...     page = urllib.request.urlopen(server.url).read().decode()
        >>> '<meta name="file" content="/data/MLP.onnx">' in page
        True
    """
    if not 0 <= port <= 65535:
        raise InvalidArgumentError(f"`port` must be in 0 to 65535, but is {port}.")
    with contextlib.ExitStack() as cleanup:
        if isinstance(model_or_path, nn.Module):
            folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="finetunelib-"))
            file = _export(model_or_path, example_input, Path(folder))
        elif isinstance(model_or_path, str | Path) or hasattr(model_or_path, "__fspath__"):
            file = check_viewable(model_or_path)
        else:
            raise InvalidTypeError(
                "`model_or_path` must be a torch.nn.Module or the path of a file, but is of type "
                f"{type(model_or_path).__name__}."
            )
        server = NetronServer(file, host=host, port=port)
        server.own(cleanup.pop_all())
    opened = (browser_available() if browser is None else browser) and open_page(server.url)
    if (opened and runs_as_script()) if block is None else block:
        server.wait()
    return server


def _export(model: nn.Module, example_input: ModelInputs | None, folder: Path) -> Path:
    if example_input is None:
        with evaluating(model), random_state_preserved():
            example_input, _ = run_on_example(model, None)
    file = folder / f"{type(model).__name__}.onnx"
    export_onnx(model, file, example_input, verify=False)
    return file
