"""Running a model once, and the errors of a model that does not take its inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib._messages import first_line
from finetunelib._preserve import evaluating, random_state_preserved, untouched
from finetunelib.errors import FinetuneLibError, InvalidInputError

#: The exceptions that mean: the model does not take this input. Any other one passes unchanged.
INPUT_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    AssertionError,
)

#: For runs without data, and for those that show how far a model gets: any reason to fail.
ANY_ERROR: tuple[type[Exception], ...] = (Exception,)


def run_once(
    model: nn.Module,
    inputs: Inputs,
    *,
    explain: Callable[[Exception], str] = first_line,
    stand_ins: Mapping[str, Tensor] | None = None,
    gradients: bool = False,
    errors: tuple[type[Exception], ...] = INPUT_ERRORS,
) -> object:
    """Return the output of a model in eval mode, and restore modes and random states.

    Args:
        model: The model.
        inputs: The arguments of its forward.
        explain: Creates the message for an exception of the forward.
        stand_ins: Tensors to use in place of parameters and buffers, by name. With them the
            attributes and hooks of the modules are restored too, warnings are silenced, and
            compiled code runs uncompiled.
        gradients: Whether to record the autograd graph.
        errors: The exceptions that mean that the model does not take the inputs.

    Raises:
        InvalidInputError: If the forward raises one of `errors`, which is the cause.
        FinetuneLibError: If the forward raises another error of this library.
    """
    explained: tuple[type[Exception], ...] = (InvalidInputError, *errors)
    grad = torch.enable_grad() if gradients else torch.no_grad()
    surroundings = random_state_preserved() if stand_ins is None else _isolated(model)
    with surroundings, evaluating(model), grad:
        try:
            if stand_ins is None:
                return inputs.call(model)
            return torch.func.functional_call(model, dict(stand_ins), inputs.args, inputs.kwargs)
        except torch.OutOfMemoryError:
            raise  # A RuntimeError, but not about the inputs.
        except explained as error:
            if isinstance(error, FinetuneLibError) and not isinstance(error, InvalidInputError):
                raise  # It is not about the inputs.
            raise InvalidInputError(explain(error)) from error


@contextlib.contextmanager
def _isolated(model: nn.Module) -> Iterator[None]:
    with untouched(model), torch.inference_mode(mode=False):
        yield


def raised_by_forward(error: FinetuneLibError) -> Exception:
    """Return the exception that the forward itself raised in `run_once`."""
    return error.__cause__ if isinstance(error.__cause__, Exception) else error


def run_model(model: nn.Module, inputs: Inputs, name: str) -> object:
    """Return the output of a model in eval mode, and restore modes and random states.

    Args:
        model: The model.
        inputs: The arguments of its forward.
        name: The argument that the user passed the inputs as, for the message.

    Raises:
        InvalidInputError: If the model does not take the inputs.
    """
    shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in inputs.tensors)
    return run_once(
        model,
        inputs,
        explain=lambda error: f"The model cannot take `{name}` ({shapes}): {first_line(error)}",
    )
