"""Replacing a model's head, and freezing the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

from finetunelib._preserve import evaluating, random_state_preserved
from finetunelib.errors import (
    HeadError,
    HeadNotFoundError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.finetuning._find_head import (
    HEAD_LAYERS,
    Head,
    HeadLayer,
    describe_head,
    find_head,
)
from finetunelib.finetuning._freezing import freeze_all_but
from finetunelib.models._example_input import run_on_example

#: A module that becomes the head as it is, or a function from its input's width to one.
NewHead: TypeAlias = nn.Module | Callable[[int], nn.Module]


def freeze_and_replace_head(
    model: nn.Module,
    num_classes: int | None = None,
    *,
    head: NewHead | None = None,
    at: str | None = None,
    example_input: Tensor | None = None,
) -> nn.Module:
    """Give a model a new head and freeze everything else.

    The frozen part stays bit for bit, parameters and buffers, in any training loop: its
    parameters need no gradient, and each of its modules is held in eval mode also after
    `model.train()`, so that BatchNorm uses its running statistics and dropout is off. A dropout
    in front of the head is off too; `head=nn.Sequential(nn.Dropout(0.2), nn.Linear(...))` brings
    one back.

    Args:
        model: The model. It is changed in place.
        num_classes: The number of outputs of the new head, at least 2. The new layer is of the
            old one's kind, dtype and device (with a convolution's kernel, stride and padding),
            and is initialised by PyTorch from the global random state.
        head: In place of `num_classes`: a module that becomes the head as it is, or a function
            from the width of the head's input to a module.
        at: The dotted name of the head in the model, where it cannot be found or should be
            another, such as `"classifier.6"`.
        example_input: A batch that the model takes, for the dry run that finds the head and
            checks the new one. `None` guesses it from the first layer.

    Returns:
        The model itself, or the new head where the model itself is its head.

    Raises:
        InvalidArgumentError: Not exactly one of `num_classes` and `head`, or fewer than 2 classes.
        InvalidTypeError: `head` is neither a module nor makes one.
        HeadNotFoundError: No head was found, or there is none at `at`.
        AmbiguousHeadError: Several layers may be the head.
        InvalidInputError: The model does not run on `example_input`.
        HeadError: The model does not run with the new head; it has its old one back.
        FreezeError: The model cannot be frozen as it is.

    Example:
        >>> from finetunelib import build_mlp, freeze_and_replace_head
        >>> model = freeze_and_replace_head(build_mlp(784, [500], 10), num_classes=5)
        >>> model.head
        Linear(in_features=500, out_features=5, bias=True)
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['head.weight', 'head.bias']
    """
    _check_request(num_classes, head)
    found = find_head(model, example_input) if at is None else _head_at(model, at)
    new = _new_head(found, num_classes, head)
    inputs = _working_input(model, example_input)
    if found.name == "":
        _check_runs(new, inputs, found)
        return new
    names = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if module is found.module
    ]
    _put(model, names, new)
    try:
        _check_runs(model, inputs, found)
        freeze_all_but(model, new)
    except BaseException:
        _put(model, names, found.module)
        raise
    return model


def _check_request(num_classes: int | None, head: NewHead | None) -> None:
    if (num_classes is None) == (head is None):
        given = "neither" if head is None else "both"
        raise InvalidArgumentError(
            f"Pass either `num_classes` or `head`, but {given} was given. `num_classes` makes a "
            "layer like the old one; `head` is a module, or a function from a width to a module."
        )
    if num_classes is not None and (
        isinstance(num_classes, bool) or not hasattr(num_classes, "__index__")
    ):
        raise InvalidTypeError(
            f"`num_classes` must be a whole number, but is {num_classes!r} "
            f"({type(num_classes).__name__})."
        )
    if num_classes is not None and num_classes < 2:
        raise InvalidArgumentError(
            f"`num_classes` must be at least 2, but is {num_classes}. "
            "For a single output pass `head=lambda features: nn.Linear(features, 1)`."
        )
    if head is not None and not callable(head):
        raise InvalidTypeError(
            "`head` must be a module, or a function from a width to a module, but is "
            f"{head!r} ({type(head).__name__})."
        )


def _head_at(model: nn.Module, name: str) -> Head:
    modules = dict(model.named_modules())
    if name not in modules or name == "":
        layers = [key for key, part in modules.items() if isinstance(part, HEAD_LAYERS)]
        raise HeadNotFoundError(
            f"The model has no module `{name}`. Its last layers are "
            f"{', '.join(f'`{key}`' for key in layers[-5:]) or 'none'}."
        )
    module = modules[name]
    if any(isinstance(layer, HEAD_LAYERS) for layer in module.modules()):
        return describe_head(name, module, "name")
    return Head(name, module, 0, 0, "name")


def _new_head(old: Head, num_classes: int | None, head: NewHead | None) -> nn.Module:
    if isinstance(head, nn.Module):
        return head
    if old.in_features == 0:
        describe_head(old.name, old.module, "name")  # Raises: its width is unknown.
    if head is not None:
        made = head(old.in_features)
        if not isinstance(made, nn.Module):
            raise InvalidTypeError(
                f"`head` must return a module, but returned {made!r} ({type(made).__name__})."
            )
        reference = next(old.module.parameters())
        return made.to(device=reference.device, dtype=reference.dtype)
    assert num_classes is not None  # noqa: S101 - checked at the door
    layers = [layer for layer in old.module.modules() if isinstance(layer, HEAD_LAYERS)]
    return _layer_like(layers[-1], old.in_features, num_classes)


def _layer_like(layer: HeadLayer, in_features: int, out_features: int) -> nn.Module:
    """Return a new layer of the same kind, dtype and device for other numbers of features."""
    bias = layer.bias is not None
    weight = layer.weight
    if isinstance(layer, nn.Linear):
        return nn.Linear(
            in_features, out_features, bias=bias, device=weight.device, dtype=weight.dtype
        )
    convolution: nn.Module = type(layer)(
        in_features,
        out_features,
        layer.kernel_size,  # type: ignore[arg-type]  # each kind gets its own tuple back
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        bias=bias,
        padding_mode=layer.padding_mode,
        device=weight.device,
        dtype=weight.dtype,
    )
    return convolution


def _put(model: nn.Module, names: list[str], module: nn.Module) -> None:
    """Set a module under each name that its place has in the model."""
    for name in names:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, module)


def _working_input(model: nn.Module, example_input: Tensor | None) -> Tensor | None:
    """Return inputs that the model takes as it is, or None where no guess fits."""
    try:
        with evaluating(model), random_state_preserved():
            inputs, _ = run_on_example(model, example_input)
    except InvalidInputError:
        if example_input is not None:
            raise
        return None
    return inputs


def _check_runs(model: nn.Module, inputs: Tensor | None, old: Head) -> None:
    """Raise when the model does not run with its new head, where it ran with the old one."""
    if inputs is None:
        return
    with evaluating(model), random_state_preserved():
        try:
            run_on_example(model, inputs)
        except InvalidInputError as error:
            where = f"at `{old.name}`" if old.name else "in its place"
            raise HeadError(
                f"The model does not run with the new head {where}: {error.__cause__}. "
                f"The head's input has {old.in_features} features."
            ) from error
