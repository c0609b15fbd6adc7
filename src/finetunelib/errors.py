"""The exceptions of finetunelib, all derived from `FinetuneLibError`.

    FinetuneLibError
    ├── InvalidArgumentError      (ValueError)         a value is invalid
    ├── InvalidTypeError          (TypeError)          a value has an unsupported type
    ├── DataError                 (ValueError)
    │   ├── EmptyDataError                             there are no samples
    │   ├── InvalidInputError                          the model does not accept these inputs
    │   └── InvalidTargetError                         the loss does not accept these targets
    ├── HeadError
    │   ├── HeadNotFoundError     (LookupError)        no head was found
    │   └── AmbiguousHeadError    (LookupError)        several layers may be the head
    ├── FreezeError               (ValueError)         these modules cannot be frozen
    ├── WeightsError
    │   ├── FileMissingError      (FileNotFoundError)  no such file
    │   ├── CorruptFileError      (ValueError)         the file is damaged or of another type
    │   └── WeightsMismatchError  (ValueError)         the weights are those of another model
    ├── CheckpointError           (ValueError)         a checkpoint cannot be saved or loaded
    ├── NonFiniteError            (FloatingPointError) the loss is nan or infinite
    ├── PathNotWritableError      (OSError)            the path cannot be written to
    ├── ExportError               (RuntimeError)       the model cannot be exported
    │   └── ExportMismatchError                        its outputs differ from the model's
    ├── UnsupportedFileError      (ValueError)         the viewer cannot show this type of file
    ├── ServerError               (OSError)            the viewer cannot be started
    └── MissingDependencyError    (ImportError)        an optional package is not installed

Each also derives from the builtin in parentheses, so code that handles the builtin catches it.
`TrainingInterrupted` is not part of the tree: `except Exception` does not catch it.
`DiagnosisWarning` is the category of the warnings about a training run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetunelib._escapes import escaped

__all__ = [
    "AmbiguousHeadError",
    "CheckpointError",
    "CorruptFileError",
    "DataError",
    "DiagnosisWarning",
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
    "NonFiniteError",
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
    """Base class of every exception that this library raises on purpose.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.errors import FinetuneLibError
        >>> try:
        ...     build_mlp(784, [0], 10)
        ... except FinetuneLibError as error:
        ...     print(type(error).__name__)
        InvalidArgumentError
    """

    def __str__(self) -> str:
        """Return the message. Control characters, such as in names from files, are escaped."""
        return escaped(super().__str__())


class InvalidArgumentError(FinetuneLibError, ValueError):
    """An argument has an invalid value, such as `epochs=0`."""


class InvalidTypeError(FinetuneLibError, TypeError):
    """An argument has an unsupported type, such as a string instead of data."""


class DataError(FinetuneLibError, ValueError):
    """The data does not fit the model or the loss, or is inconsistent."""


class EmptyDataError(DataError):
    """The data contains no samples."""


class InvalidInputError(DataError):
    """The model does not accept these inputs, for example because of their dtype or shape."""


class InvalidTargetError(DataError):
    """The loss does not accept these targets because of their dtype, shape or values."""


class HeadError(FinetuneLibError):
    """The model's head cannot be found or replaced."""


class HeadNotFoundError(HeadError, LookupError):
    """No head was found, or no layer has the given name."""


class AmbiguousHeadError(HeadError, LookupError):
    """Several layers may be the head, so one of them must be named."""


class FreezeError(FinetuneLibError, ValueError):
    """These modules cannot be frozen, for example a BatchNorm without running statistics."""


class WeightsError(FinetuneLibError):
    """A weights file cannot be loaded or saved."""


class FileMissingError(WeightsError, FileNotFoundError):
    """There is no file at the given path."""


class CorruptFileError(WeightsError, ValueError):
    """A file is damaged, or its content does not match its name."""


class WeightsMismatchError(WeightsError, ValueError):
    """A weights file does not fit the model: names or shapes differ, or values overflow.

    Attributes:
        rename: The suggested renaming, from the file's names to the model's, to pass as
            `load_weights(model, file, rename=error.rename)`; empty if there is none.
        report: The `finetunelib.finetuning.LoadReport` of what would fit, or `None`.
    """

    def __init__(
        self, message: str, *, rename: Mapping[str, str] | None = None, report: Any = None
    ) -> None:
        super().__init__(message)
        self.rename: dict[str, str] = dict(rename or {})
        self.report: Any = report  # Any: the class is defined in a layer above this one.


class CheckpointError(FinetuneLibError, ValueError):
    """A checkpoint is damaged, belongs to another run, or could not be resumed exactly."""


class NonFiniteError(FinetuneLibError, FloatingPointError):
    """The loss, or the norm of the gradients, is nan or infinite in training.

    Attributes:
        epoch: The number of the epoch, from 1.
        steps: The numbers of the first and the last step that may be affected. On a CPU both are
            the step that was stopped before its update.
        module: The dotted name of the first module whose output is not finite, or `None` if it is
            unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        epoch: int = 0,
        steps: tuple[int, int] = (0, 0),
        module: str | None = None,
    ) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.steps = steps
        self.module = module


class PathNotWritableError(FinetuneLibError, OSError):
    """The given path cannot be written to."""


class ExportError(FinetuneLibError, RuntimeError):
    """The model cannot be exported to ONNX."""


class ExportMismatchError(ExportError):
    """The outputs of the exported file differ from those of the model.

    Attributes:
        node: The name of the first node whose output differs from the model's, or `None` if it was
            not found or is an input.
        module: The dotted names of the modules that the node comes from, separated by commas:
            `(the model)` for the model itself, `postprocessing` for the softmax.
    """

    def __init__(self, message: str, *, node: str | None = None, module: str | None = None) -> None:
        super().__init__(message)
        self.node = node
        self.module = module


class UnsupportedFileError(FinetuneLibError, ValueError):
    """The viewer cannot show this type of file."""


class ServerError(FinetuneLibError, OSError):
    """The viewer cannot be started, for example because the port is in use."""


class MissingDependencyError(FinetuneLibError, ImportError):
    """An optional package is not installed; the message contains the command to install it."""


class TrainingInterrupted(KeyboardInterrupt, SystemExit):
    """Training was stopped by Ctrl-C or SIGTERM, after the step in progress.

    If a script does not catch it, its exit code is the one that a shell expects: 130 or 143.

    Attributes:
        history: The `finetunelib.training.History` so far.
        code: The exit code of the process: 128 plus the signal's number.
    """

    def __init__(self, message: str, *, history: Any, signal_number: int) -> None:
        super().__init__(message)
        self.history: Any = history  # Any: `History` is defined in a package above.
        self.code: str | int | None = 128 + signal_number  # The type is SystemExit's.


class DiagnosisWarning(UserWarning):
    """A finding about a training run, such as a softmax before cross-entropy.

    `fit` issues it once for each Trainer. `Trainer(ignore=[code])` silences a finding, and
    `warnings.simplefilter("error", DiagnosisWarning)` makes all of them errors.

    Example:
        >>> import warnings
        >>> from finetunelib.errors import DiagnosisWarning
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", DiagnosisWarning)  # Silences all of them.
    """
