"""The names of a graph's inputs and outputs, and whether its classes are as many as the labels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib.errors import InvalidArgumentError, InvalidTypeError


def input_names_of(model: nn.Module, inputs: Inputs, names: Sequence[str] | None) -> list[str]:
    """Return the user's names, or those of `forward`'s arguments.

    Raises:
        InvalidArgumentError: There are not as many as inputs, or one twice.
        InvalidTypeError: They are no list of texts.
    """
    count = len(inputs.tensors)
    if names is not None:
        return _checked(names, count, "input_names", "inputs")
    arguments = list(inspect.signature(model.forward).parameters.values())
    positional = [a.name for a in arguments if a.kind is not inspect.Parameter.VAR_POSITIONAL]
    if len(positional) < len(inputs.args):
        positional = ["input", *(f"input_{i}" for i in range(1, len(inputs.args)))]
    return [*positional[: len(inputs.args)], *inputs.kwargs]


def output_names_of(
    outputs: Sequence[tuple[str, Tensor]], names: Sequence[str] | None, *, softmax: bool
) -> list[str]:
    """Return the user's names, or those that the model's output has, or numbers.

    Raises:
        InvalidArgumentError: There are not as many as outputs, or one twice.
        InvalidTypeError: They are no list of texts.
    """
    if names is not None:
        return _checked(names, len(outputs), "output_names", "outputs")
    if softmax:
        return ["probabilities"]
    own = [name for name, _ in outputs]
    if all(own) and len(set(own)) == len(own) and not any(name.isdigit() for name in own):
        return own
    return [f"output_{i}" for i in range(len(outputs))] if len(outputs) > 1 else ["output"]


def check_classes(
    outputs: Sequence[tuple[str, Tensor]], labels: Sequence[str] | None, *, softmax: bool
) -> None:
    """Check that an output of classes is there for labels or a softmax.

    Raises:
        InvalidArgumentError: There is none, or it has another number of classes than labels.
    """
    for asked, what in ((labels is not None, "labels"), (softmax, "softmax")):
        shapes = [tuple(tensor.shape) for _, tensor in outputs]
        if asked and not (len(shapes) == 1 and len(shapes[0]) == 2):
            raise InvalidArgumentError(
                f"`{what}` takes a model with one output `(batch, classes)`, but the outputs have "
                f"the shapes {', '.join(map(str, shapes))}."
            )
    if labels is not None and len(labels) != outputs[0][1].shape[1]:
        raise InvalidArgumentError(
            f"`labels` holds {len(labels)} names, but the model has {outputs[0][1].shape[1]} "
            "classes. Pass one name a class, in the order of the output."
        )


def _checked(names: Sequence[str], count: int, argument: str, what: str) -> list[str]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InvalidTypeError(f"`{argument}` must be a list of texts, but is {names!r}.")
    if len(names) != count:
        raise InvalidArgumentError(
            f"`{argument}` holds {len(names)} names, but the model has {count} {what}."
        )
    if len(set(names)) != count:
        raise InvalidArgumentError(f"`{argument}` must hold each name once, but is {list(names)}.")
    return list(names)
