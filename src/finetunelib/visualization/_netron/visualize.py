"""`visualize`: a model or a file, shown in Netron's page on this machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

from torch import nn

from finetunelib._forward.inputs import ModelInputs
from finetunelib._progress import choose_progress, in_notebook
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.visualization._netron.browser import (
    browser_available,
    open_page,
    runs_as_script,
)
from finetunelib.visualization._netron.formats import check_viewable
from finetunelib.visualization._netron.remote import PORT, over_ssh
from finetunelib.visualization._netron.server import NetronServer
from finetunelib.visualization._netron.temporary_folder import remove_abandoned, temporary_folder
from finetunelib.visualization._netron.temporary_onnx import write_temporary_onnx


@public("finetunelib")
def visualize(
    model_or_path: nn.Module | StrPath,
    example_input: ModelInputs | None = None,
    *,
    browser: bool | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    block: bool | None = None,
    proxy: str | None = None,
) -> NetronServer:
    """Show a model in Netron, in the browser or in a notebook.

    Netron's page is served from this machine, to this machine alone, and asks no other host for
    anything: it works offline, and nothing is reported. A module is exported to a temporary ONNX
    file first, so that every edge shows its shape; of weights beyond 64 MB, the largest are left
    out of that file, which keeps their shapes. Any number of models can be shown at once.

    Args:
        model_or_path: A module, or a file that Netron opens (`.onnx`, `.pt2`, `.pth`,
            `.safetensors` and others).
        example_input: What the module takes, as for `export_onnx`. `None` guesses it from the
            first layer. Not used for a file.
        browser: Whether to open a browser. `None` opens one where there is one: not in CI, not
            without a display, not over ssh, not in a notebook.
        host: The address to listen on. Any but a loopback address shows the model to the network.
        port: The port to listen on; 0 takes a free one.
        block: Whether to return only when the viewer is closed (Ctrl-C). `None` blocks in a
            script on a terminal that opened a browser, where the page would end with the script.
        proxy: Where a notebook's server shows local ports, such as `"/proxy/{port}/"`. `None`
            knows that of jupyter-server-proxy under JupyterHub.

    Returns:
        The running viewer, with its address in `.url`; `.close()` or a `with` block ends it. As
        the last line of a notebook's cell it shows the page. Over ssh, its text and a line on
        stderr hold the `ssh -L` command that brings the page to your own machine.

    Raises:
        FileMissingError: There is no such file.
        UnsupportedFileError: Netron does not know this kind of file.
        CorruptFileError: The file is empty or damaged.
        InvalidInputError: The module cannot take `example_input`, or none could be guessed.
        ExportError: The module cannot be exported.
        InvalidTypeError: `model_or_path` is neither a module nor a path, or `example_input` or
            what the module returns holds no tensors.
        InvalidArgumentError: `host` is empty, `port` is outside 0 to 65535, or `proxy` does not
            hold `{port}`.
        ServerError: The port is taken, `host` is no address of this machine, or the installed
            Netron is too old.

    Example:
        >>> import urllib.request
        >>> from finetunelib import build_mlp, visualize
        >>> with visualize(build_mlp(784, [500], 10), browser=False) as server:
        ...     page = urllib.request.urlopen(server.url).read().decode()
        >>> '<meta name="file" content="/data/MLP.onnx">' in page
        True
    """
    _check_arguments(host, port, proxy)
    remove_abandoned()
    with contextlib.ExitStack() as cleanup:
        if isinstance(model_or_path, nn.Module):
            folder = cleanup.enter_context(temporary_folder())
            file = folder / f"{type(model_or_path).__name__}.onnx"
            write_temporary_onnx(model_or_path, example_input, file)
        elif isinstance(model_or_path, str | Path) or hasattr(model_or_path, "__fspath__"):
            file = check_viewable(model_or_path)
        else:
            raise InvalidTypeError(
                "`model_or_path` must be a torch.nn.Module or the path of a file, but is of type "
                f"{type(model_or_path).__name__}."
            )
        server = NetronServer(file, host=host, port=port, proxy=proxy, owned=cleanup)
    opened = (browser_available() if browser is None else browser) and open_page(server.url)
    blocks = (opened and runs_as_script()) if block is None else block
    # Where nobody was led to the page, one has to be told where it is: before a wait that would
    # show nothing, and over ssh. A notebook shows the server itself.
    if not opened and not in_notebook() and (blocks or (browser is None and over_ssh())):
        choose_progress(enabled=True).finish(f"{server}{'; Ctrl-C closes it' if blocks else ''}")
    if blocks:
        server.wait()
    return server


def _check_arguments(host: str, port: int, proxy: str | None) -> None:
    if not host:
        # Python would take it for every address of the machine.
        raise InvalidArgumentError(
            "`host` must be an address to listen on, but is empty. Leave it out for this machine "
            'alone, or pass "0.0.0.0" for the whole network.'
        )
    if not 0 <= port <= 65535:
        raise InvalidArgumentError(f"`port` must be in 0 to 65535, but is {port}.")
    if proxy is not None and PORT not in proxy:
        raise InvalidArgumentError(
            f'`proxy` must hold {PORT} where the port belongs, as in "/proxy/{PORT}/", but is '
            f'"{proxy}".'
        )
