"""What a model returns: its tensors in the order in which they are exported, and their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from finetunelib._forward.inputs import Inputs
from finetunelib._preserve import evaluating, random_state_preserved
from finetunelib.errors import FinetuneLibError, InvalidInputError, InvalidTypeError


def run_model(model: nn.Module, inputs: Inputs, name: str) -> object:
    """Return what a model computes in eval mode; its modes and the random state are put back.

    Raises:
        InvalidInputError: The model cannot take these inputs, which the user knows as `name`.
    """
    try:
        with evaluating(model), random_state_preserved():
            return inputs.call(model)
    except FinetuneLibError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in inputs.tensors)
        reason = str(error).strip().partition("\n")[0]
        raise InvalidInputError(f"The model cannot take `{name}` ({shapes}): {reason}") from error


def flat_outputs(output: object) -> list[Tensor]:
    """Return the tensors of a model's output in the order in which they are exported.

    Raises:
        InvalidTypeError: The output holds something else than tensors.
    """
    return [tensor for _, tensor in named_outputs(output)]


def named_outputs(output: object) -> list[tuple[str, Tensor]]:
    """Return the tensors of a model's output with the names that the model gives them, or `""`.

    Raises:
        InvalidTypeError: The output holds something else than tensors.
    """
    if isinstance(output, Tensor):
        return [("", output)]
    parts = _parts(output)
    if not parts:
        raise InvalidTypeError(
            f"The model must return tensors to be exported, but returned {type(output).__name__}."
        )
    return [
        ("_".join(filter(None, (name, inner))), tensor)
        for name, part in parts
        for inner, tensor in named_outputs(part)
    ]


def tensors_in(output: object) -> Iterator[Tensor]:
    """Yield the tensors in a module's output, whatever else is in it."""
    if isinstance(output, Tensor):
        yield output
    for _, part in _parts(output):
        yield from tensors_in(part)


def _parts(output: object) -> list[tuple[str, object]]:
    if isinstance(output, Mapping):  # transformers' outputs are mappings too.
        return [(str(name), part) for name, part in output.items()]
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", [""] * len(output))
        return list(zip(names, output, strict=True))
    return []
