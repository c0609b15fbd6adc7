"""The exceptions of finetunelib, all of them under `FinetuneLibError`.

    FinetuneLibError
    ├── InvalidArgumentError      (ValueError)         a value makes no sense
    ├── InvalidTypeError          (TypeError)          a value is of an unsupported kind
    ├── DataError                 (ValueError)
    │   ├── EmptyDataError                             there is nothing to train on or to evaluate
    │   ├── InvalidInputError                          the model cannot take these inputs
    │   └── InvalidTargetError                         the loss cannot take these targets
    ├── HeadError
    │   ├── HeadNotFoundError     (LookupError)        no layer is the model's head
    │   └── AmbiguousHeadError    (LookupError)        more than one layer may be it
    ├── FreezeError               (ValueError)         these modules cannot be frozen as they are
    ├── WeightsError
    │   ├── FileMissingError      (FileNotFoundError)  no such file
    │   ├── CorruptFileError      (ValueError)         the file is not what its name says
    │   └── WeightsMismatchError  (ValueError)         the file holds the weights of another model
    ├── CheckpointError           (ValueError)         a checkpoint cannot be written or used
    ├── CallbackError             (RuntimeError)       a callback of a training raised
    ├── PathNotWritableError      (OSError)            nothing can be written there
    ├── ExportError               (RuntimeError)       the model cannot be exported
    │   └── ExportMismatchError                        the exported file computes something else
    ├── UnsupportedFileError      (ValueError)         the viewer does not know this kind of file
    ├── ServerError               (OSError)            the viewer cannot be served
    └── MissingDependencyError    (ImportError)        an optional package is not installed

Each derives from the builtin in brackets too, so that code written for the builtin catches it.
`TrainingInterrupted` alone stands outside of the tree, so that `except Exception` lets it pass.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AmbiguousHeadError",
    "CallbackError",
    "CheckpointError",
    "CorruptFileError",
    "DataError",
    "EmptyDataError",
    "ExportError",
    "ExportMismatchError",
    "FileMissingError",
    "FinetuneLibError",
    "FreezeError",
    "HeadError",
    "HeadNotFoundError",
    "InvalidArgumentError",
    "InvalidInputError",
    "InvalidTargetError",
    "InvalidTypeError",
    "MissingDependencyError",
    "PathNotWritableError",
    "ServerError",
    "TrainingInterrupted",
    "UnsupportedFileError",
    "WeightsError",
    "WeightsMismatchError",
]


def __dir__() -> list[str]:
    return __all__


class FinetuneLibError(Exception):
    """Base of every exception that this library raises on purpose.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.errors import FinetuneLibError
        >>> try:
        ...     build_mlp(784, [0], 10)
        ... except FinetuneLibError as error:
        ...     print(type(error).__name__)
        InvalidArgumentError
    """


class InvalidArgumentError(FinetuneLibError, ValueError):
    """An argument has a value that makes no sense, such as `epochs=0`."""


class InvalidTypeError(FinetuneLibError, TypeError):
    """An argument is of a kind that is not supported, such as a string where data belongs."""


class DataError(FinetuneLibError, ValueError):
    """The data does not fit the model, the loss, or itself."""


class EmptyDataError(DataError):
    """The data holds no sample."""


class InvalidInputError(DataError):
    """The model cannot take these inputs: their dtype or shape is wrong for it."""


class InvalidTargetError(DataError):
    """The loss cannot take these targets: their dtype, shape or values are wrong for it."""


class HeadError(FinetuneLibError):
    """The model's head cannot be found or replaced."""


class HeadNotFoundError(HeadError, LookupError):
    """No layer is the head of the model, or none has the name that was given."""


class AmbiguousHeadError(HeadError, LookupError):
    """More than one layer may be the head of the model, so that one has to be named."""


class FreezeError(FinetuneLibError, ValueError):
    """The modules cannot be frozen as they are, for example a BatchNorm without statistics."""


class WeightsError(FinetuneLibError):
    """A weights file cannot be used."""


class FileMissingError(WeightsError, FileNotFoundError):
    """There is no file at the path that was given."""


class CorruptFileError(WeightsError, ValueError):
    """A file is damaged, or is not of the kind that its name says."""


class WeightsMismatchError(WeightsError, ValueError):
    """A weights file does not fit the model: names or shapes differ."""


class CheckpointError(FinetuneLibError, ValueError):
    """A checkpoint is damaged, or does not belong to this training, or could not be exact."""


class CallbackError(FinetuneLibError, RuntimeError):
    """A callback of a training raised; the message names it, and the cause is chained."""


class PathNotWritableError(FinetuneLibError, OSError):
    """Nothing can be written at the path that was given."""


class ExportError(FinetuneLibError, RuntimeError):
    """The model cannot be exported to ONNX."""


class ExportMismatchError(ExportError):
    """The exported file computes something else than the model.

    Attributes:
        node: The name of the first node of the file that departs from the model; `None` where that
            is an input, or was not found.
        module: The dotted names of the modules whose work that node does, separated by commas;
            `(the model)` for the model itself, `postprocessing` for the softmax.
    """

    def __init__(self, message: str, *, node: str | None = None, module: str | None = None) -> None:
        super().__init__(message)
        self.node = node
        self.module = module


class UnsupportedFileError(FinetuneLibError, ValueError):
    """The viewer does not know this kind of file."""


class ServerError(FinetuneLibError, OSError):
    """The viewer cannot be served, for example because the port is taken."""


class MissingDependencyError(FinetuneLibError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


class TrainingInterrupted(KeyboardInterrupt, SystemExit):
    """A training was ended by Ctrl-C or SIGTERM, after the step in progress.

    A script that lets it through ends with the code that a shell expects: 130 or 143.

    Attributes:
        history: The `finetunelib.training.History` so far.
        code: The exit code of the process: 128 and the signal's number.
    """

    def __init__(self, message: str, *, history: Any, signal_number: int) -> None:
        super().__init__(message)
        self.history: Any = history  # Any: the history lives on a floor above this one.
        self.code: str | int | None = 128 + signal_number  # The type is SystemExit's.
