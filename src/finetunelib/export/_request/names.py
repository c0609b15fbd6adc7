"""The names of a graph's inputs and outputs, and the check of its labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from finetunelib.errors import InvalidArgumentError, InvalidTypeError


def input_names_of(own: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """Return the names that the user passed, or those of the arguments.

    Raises:
        InvalidArgumentError: If the number of names is not that of the inputs, or a name repeats.
        InvalidTypeError: If `names` is not a list of strings.
    """
    if names is not None:
        return _checked(names, len(own), "input_names", "inputs")
    return _distinct(own, ())


def output_names_of(
    outputs: Sequence[tuple[str, Tensor]],
    names: Sequence[str] | None,
    inputs: Sequence[str],
    *,
    softmax: bool,
) -> list[str]:
    """Return the names that the user passed, or those in the model's output, or numbers.

    Raises:
        InvalidArgumentError: If the number of names is not that of the outputs, or a name repeats.
        InvalidTypeError: If `names` is not a list of strings.
    """
    if names is not None:
        return _checked(names, len(outputs), "output_names", "outputs")
    if softmax:
        return _distinct(["probabilities"], inputs)
    own = [name for name, _ in outputs]
    if all(own) and len(set(own)) == len(own) and not any(name.isdigit() for name in own):
        return _distinct(own, inputs)
    default = [f"output_{i}" for i in range(len(outputs))] if len(outputs) > 1 else ["output"]
    return _distinct(default, inputs)


def check_classes(
    outputs: Sequence[tuple[str, Tensor]], labels: Sequence[str] | None, *, softmax: bool
) -> None:
    """Check that labels and a softmax have an output of classes to apply to.

    Raises:
        InvalidArgumentError: If there is no such output, or it has a different number of classes.
    """
    for asked, what in ((labels is not None, "labels"), (softmax, "softmax")):
        shapes = [tuple(tensor.shape) for _, tensor in outputs]
        if asked and not (len(shapes) == 1 and len(shapes[0]) == 2):
            raise InvalidArgumentError(
                f"`{what}` needs a model with one output of shape (batch, classes), got outputs of "
                f"shape {', '.join(map(str, shapes))}."
            )
    if labels is not None and len(labels) != outputs[0][1].shape[1]:
        raise InvalidArgumentError(
            f"`labels` has {len(labels)} names, but the model has {outputs[0][1].shape[1]} "
            "classes. Pass one name for each class, in the order of the output."
        )


def _distinct(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Return the names, with a suffix for each that is taken or repeated."""
    found: list[str] = []
    for name in names:
        number, free = 1, name
        while free in taken or free in found:
            free, number = f"{name}_{number}", number + 1
        found.append(free)
    return found


def _checked(names: Sequence[str], count: int, argument: str, what: str) -> list[str]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InvalidTypeError(f"`{argument}` must be a list of strings, got {names!r}.")
    if len(names) != count:
        raise InvalidArgumentError(
            f"`{argument}` has {len(names)} names, but the model has {count} {what}."
        )
    if len(set(names)) != count:
        raise InvalidArgumentError(f"`{argument}` must contain each name once, got {list(names)}.")
    return list(names)
