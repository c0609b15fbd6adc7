"""The command line: `python -m finetunelib view FILE` and `python -m finetunelib summary FILE`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

from finetunelib import __version__
from finetunelib._escapes import escaped
from finetunelib.errors import FinetuneLibError

#: The exit code after an error, as argparse uses it, and after Ctrl-C.
_ERROR, _INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code of the process.

    Args:
        arguments: The words after `python -m finetunelib`. `None` takes those of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        _print_any_character(stream)
    chosen = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = chosen.run
    try:
        run(chosen)
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, ended. Python would print an error at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (FinetuneLibError, OSError) as error:
        sys.stderr.write(_error_line(str(error)))
        return _ERROR
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print an error and end the process."""
        self.exit(_ERROR, _error_line(f"{message} (see `{self.prog} --help`)"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m finetunelib",
        description="View a model file in Netron, or list its tensors.",
    )
    parser.add_argument("--version", action="version", version=f"finetunelib {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    view = commands.add_parser(
        "view",
        help="show a model file in Netron until Ctrl-C",
        description="Show a model file in Netron, served on this machine, until Ctrl-C. Prints "
        "the address of the page.",
    )
    view.add_argument("file", metavar="FILE", help="a file that Netron supports, such as .onnx")
    view.add_argument("--no-browser", action="store_true", help="print the address only")
    view.add_argument(
        "--port", type=int, default=0, help="the port to listen on (default: any free port)"
    )
    view.set_defaults(run=_view)
    summary = commands.add_parser(
        "summary",
        help="list the tensors of a model or weights file",
        description="List the tensors of a file with their shapes, dtypes and sizes. Runs no code "
        "in the file.",
    )
    summary.add_argument(
        "file",
        metavar="FILE",
        help="an ONNX file, a weights file (.safetensors, .pt, .pth, .bin, .ckpt), the index of a "
        "sharded one, or their folder",
    )
    summary.add_argument(
        "--key", help="the state dict in a file of torch.save that contains several"
    )
    summary.set_defaults(run=_summary)
    return parser


def _view(chosen: argparse.Namespace) -> None:
    from finetunelib import visualize

    browser = False if chosen.no_browser else None
    with visualize(chosen.file, browser=browser, port=chosen.port, block=False) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        sys.stderr.write("Ctrl-C closes the viewer.\n")
        server.wait()


def _summary(chosen: argparse.Namespace) -> None:
    from finetunelib.visualization._summary.files import summary_of_file

    sys.stdout.write(f"{summary_of_file(chosen.file, key=chosen.key)}\n")
    sys.stdout.flush()


def _error_line(message: str) -> str:
    return f"finetunelib: error: {escaped(' '.join(message.splitlines()))}\n"


def _print_any_character(stream: TextIO | None) -> None:
    """Print characters that the encoding of a stream lacks as their escapes."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
