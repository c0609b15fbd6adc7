"""The last layer of a language model: finding it, and running the model without its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from finetunelib._forward.batch import outputs_of
from finetunelib._forward.inputs import Inputs
from finetunelib.errors import InvalidArgumentError


def first_row(arguments: Inputs, rows: int) -> Inputs:
    """Return the arguments for the first of several rows."""

    def cut(value: Any) -> Any:
        batched = isinstance(value, Tensor) and value.dim() and len(value) == rows
        return value[:1] if batched else value

    return arguments.map(cut)


def head_of(model: nn.Module, run: Callable[[], object]) -> tuple[str | None, Tensor]:
    """Return the name of the linear layer whose output is the logits, or `None`, and the logits.

    The output must be the very tensor that the model returns: nothing is done to the logits after
    it, such as scaling or a soft cap.

    Args:
        model: The model.
        run: Runs the model once.
    """
    calls: dict[str, list[object]] = {}
    handles: list[RemovableHandle] = []

    def remember(name: str) -> Callable[[nn.Module, tuple[Any, ...], object], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], output: object) -> None:
            calls.setdefault(name, []).append(output if len(args) == 1 else None)

        return hook

    try:
        for name, module in model.named_modules():
            if name and isinstance(module, nn.Linear):
                handles.append(module.register_forward_hook(remember(name)))
        logits = outputs_of(run())
    finally:
        for handle in handles:
            handle.remove()
    found = [name for name, outputs in calls.items() if len(outputs) == 1 and outputs[0] is logits]
    return (found[0] if found else None), logits


def hidden_states(model: nn.Module, head: nn.Module, arguments: Inputs) -> Tensor:
    """Run a model, and return the inputs of its head, of which only one token is computed.

    Args:
        model: The model.
        head: The module whose output is the logits.
        arguments: The arguments of the model.

    Returns:
        The hidden states `(batch, tokens, width)`, with their graph.

    Raises:
        InvalidArgumentError: If the logits are not the output of the head.
    """
    inputs: list[Tensor] = []
    outputs: list[object] = []

    def shorten(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs.append(args[0])
        return (args[0][..., :1, :],)

    def remember(_: nn.Module, __: tuple[Any, ...], output: object) -> None:
        outputs.append(output)

    # Before hooks of the user's, which get the chunks too; after them for what they return.
    handles = (
        head.register_forward_pre_hook(shorten, prepend=True),
        head.register_forward_hook(remember),
    )
    try:
        logits = outputs_of(arguments.call(model))
    finally:
        for handle in handles:
            handle.remove()
    if len(outputs) != 1 or outputs[0] is not logits:
        raise InvalidArgumentError(
            f"{type(model).__name__} does not return the output of the layer that made its logits "
            "before, so they cannot be computed in chunks. Leave out `chunk_size`."
        )
    return inputs[0]


def is_compiled(model: nn.Module) -> bool:
    """Return whether a model is the result of `torch.compile`."""
    return hasattr(model, "_orig_mod")


def submodule(model: nn.Module, name: str | None) -> nn.Module | None:
    """Return a module of a model by name, or `None` if the model is compiled or lacks it."""
    if name is None or is_compiled(model):
        return None
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
