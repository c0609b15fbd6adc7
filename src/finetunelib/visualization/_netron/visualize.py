"""`visualize`: opens a model or a file in Netron, served on this machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from finetunelib._forward.inputs import ModelInputs
from finetunelib._progress import choose_progress
from finetunelib._public import public
from finetunelib._typing import StrPath
from finetunelib.errors import InvalidArgumentError, InvalidTypeError
from finetunelib.visualization._netron.browser import (
    browser_available,
    open_page,
)
from finetunelib.visualization._netron.formats import check_viewable
from finetunelib.visualization._netron.presentation import choose_presentation
from finetunelib.visualization._netron.remote import PORT
from finetunelib.visualization._netron.temporary_folder import remove_abandoned, temporary_folder

if TYPE_CHECKING:
    from finetunelib.visualization._netron.server import NetronServer


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
    """Open a model or a model file in Netron, in a browser or a notebook.

    Netron's page is served on this machine, for this machine only. It works offline, contacts no
    other host and sends no statistics. A module is first exported to a temporary ONNX file, which
    shows the shapes of all tensors. If its weights exceed 64 MB, the largest are left out of the
    file; their shapes are still shown. Any number of models can be open at the same time.

    Args:
        model_or_path: A module, or a file that Netron supports (`.onnx`, `.pt2`, `.pth`,
            `.safetensors` and others).
        example_input: The inputs of the module, as for `export_onnx`. `None` guesses them from the
            first layer. Not used for a file.
        browser: Whether to open a browser. `None` opens one if available, but not in CI, without a
            display, over ssh, or in a notebook.
        host: The address to listen on. Any address except loopback makes the model accessible from
            the network.
        port: The port to listen on. 0 selects a free one.
        block: Whether to return only when the viewer is closed (Ctrl-C). `None` blocks in a script
            on a terminal that opened a browser, because its end would close the viewer.
        proxy: The address of a notebook server's proxy, such as `"/proxy/{port}/"`. `None` uses
            jupyter-server-proxy under JupyterHub, and otherwise no proxy.

    Returns:
        The running viewer. `.url` is its address; `.close()` or a `with` block closes it. As the
        last line of a notebook cell, it shows the page. Over ssh, its text and a line on stderr
        contain the `ssh -L` command that makes the page available on your own machine.

    Raises:
        FileMissingError: If the file does not exist.
        UnsupportedFileError: If Netron does not support this kind of file.
        CorruptFileError: If the file is empty or damaged.
        InvalidInputError: If the module does not accept `example_input`, or none could be guessed.
        ExportError: If the module cannot be exported.
        InvalidTypeError: If `model_or_path` is neither a module nor a path, or `example_input` or
            the output of the module contains no tensors.
        InvalidArgumentError: If `host` is empty, `port` is not in 0 to 65535, or `proxy` does not
            contain `{port}`.
        ServerError: If the port is in use, `host` is not an address of this machine, or the
            installed Netron is too old.

    Example:
        >>> import urllib.request
        >>> from finetunelib import build_mlp, visualize
        >>> with visualize(build_mlp(784, [500], 10), browser=False) as server:
        ...     page = urllib.request.urlopen(server.url).read().decode()
        >>> '<meta name="file" content="/data/MLP.onnx">' in page
        True
    """
    # Imported here because the package should stay fast to import.
    from finetunelib.visualization._netron.server import NetronServer

    _check_arguments(host, port, proxy)
    remove_abandoned()
    with contextlib.ExitStack() as cleanup:
        file = _prepare_file(model_or_path, example_input, cleanup)
        server = NetronServer(file, host=host, port=port, proxy=proxy, owned=cleanup)
    opened = (browser_available() if browser is None else browser) and open_page(server.url)
    presentation = choose_presentation(opened=opened, browser=browser, block=block)
    if presentation.prints_address:
        hint = "; Ctrl-C closes it" if presentation.blocks else ""
        choose_progress(enabled=True).finish(f"{server}{hint}")
    if presentation.blocks:
        server.wait()
    return server


def _prepare_file(
    model_or_path: object, example_input: ModelInputs | None, cleanup: contextlib.ExitStack
) -> Path:
    """Return the file to show. That of a module is removed by `cleanup`.

    Raises:
        InvalidTypeError: If `model_or_path` is neither a module nor a path.
    """
    if isinstance(model_or_path, nn.Module):
        from finetunelib.visualization._netron.temporary_onnx import write_temporary_onnx

        folder = cleanup.enter_context(temporary_folder())
        file = folder / f"{type(model_or_path).__name__}.onnx"
        write_temporary_onnx(model_or_path, example_input, file)
        return file
    if isinstance(model_or_path, str | os.PathLike):
        return check_viewable(model_or_path)
    raise InvalidTypeError(
        "`model_or_path` must be a torch.nn.Module or the path of a file, got an object of type "
        f"{type(model_or_path).__name__}."
    )


def _check_arguments(host: str, port: int, proxy: str | None) -> None:
    if not host:
        # Python would listen on all addresses of the machine.
        raise InvalidArgumentError(
            "`host` must be an address to listen on, got an empty string. Leave it out for this "
            'machine only, or pass "0.0.0.0" for the whole network.'
        )
    if not 0 <= port <= 65535:
        raise InvalidArgumentError(f"`port` must be in 0 to 65535, got {port}.")
    if proxy is not None and PORT not in proxy:
        raise InvalidArgumentError(
            f'`proxy` must contain {PORT} in place of the port, as in "/proxy/{PORT}/", got '
            f'"{proxy}".'
        )
