"""Replacing a model's head, alone or with the rest frozen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from finetunelib._arguments import check_model
from finetunelib._forward.dry_run import DryRun, dry_run, real_run
from finetunelib._forward.guess import OutputKindError
from finetunelib._forward.inputs import Inputs, ModelInputs
from finetunelib._public import public
from finetunelib._wrappers import last_layers, name_inside_wrappers, own_modules, unwrapped
from finetunelib.errors import (
    HeadError,
    HeadNotFoundError,
    InvalidArgumentError,
    InvalidInputError,
    InvalidTypeError,
)
from finetunelib.finetuning._heads.class_counts import (
    class_count,
    remove_auxiliary_heads,
    update_class_counts,
)
from finetunelib.finetuning._heads.find import locate_head
from finetunelib.finetuning._heads.head import (
    HEAD_LAYERS,
    Head,
    HeadLayer,
    describe_head,
    layers_of,
)

#: A module that becomes the head as it is, or a function from its input's width to one.
NewHead: TypeAlias = nn.Module | Callable[[int], nn.Module]


@public("finetunelib.finetuning")
def replace_head(
    model: nn.Module,
    num_classes: int | None = None,
    *,
    head: NewHead | None = None,
    at: str | None = None,
    example_input: ModelInputs | None = None,
) -> nn.Module:
    """Give a model a new head, and leave everything else as trainable as it is.

    `finetunelib.freeze_and_replace_head` does the same and freezes the rest.

    The new layer is drawn by PyTorch from the global random state, and nothing else here draws
    from it: `torch.manual_seed(0)` before the call makes the same head each time. Where a module
    around the head, or its `config`, repeats the old number of classes as `num_classes` or
    `num_labels`, the new one is written there.

    Args:
        model: The model. It is changed in place.
        num_classes: The number of outputs of the new head, at least 2. The new layer is of the
            old one's kind, dtype and device (with a convolution's kernel, stride and padding). A
            weight_norm or another parametrization of the old head is not repeated.
        head: In place of `num_classes`: a module that becomes the head as it is, or a function
            from the width of the head's input to a module.
        at: The dotted name of the head in the model, where it cannot be found or should be
            another, such as `"classifier.6"`.
        example_input: A batch that the model takes, for the dry run that finds the head and
            checks the new one: a tensor, a tuple of tensors by position, or a mapping of tensors
            by name. `None` guesses it from the first layer.

    Returns:
        The model itself, or the new head where the model itself is its head.

    Raises:
        InvalidArgumentError: Not exactly one of `num_classes` and `head`, or fewer than 2 classes.
        InvalidTypeError: `head` is neither a module nor makes one, or `example_input` is of another
            kind.
        HeadNotFoundError: No head was found, or there is none at `at`.
        AmbiguousHeadError: Several layers may be the head.
        InvalidInputError: The model does not run on `example_input`.
        HeadError: The model does not run with the new head; it has its old one back.

    Warns:
        UserWarning: The model trained with auxiliary heads (GoogLeNet, Inception). They are
            removed, and named.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import replace_head
        >>> model = replace_head(build_mlp(784, [500], 10), num_classes=5)
        >>> model.head
        Linear(in_features=500, out_features=5, bias=True)
        >>> all(parameter.requires_grad for parameter in model.parameters())
        True
    """
    return replace_and_finish(
        model, HeadRequest(num_classes, head, at, example_input), lambda *_: None
    )


@dataclass(frozen=True, slots=True)
class HeadRequest:
    """What the user asked for."""

    num_classes: int | None
    head: NewHead | None
    at: str | None
    example_input: ModelInputs | None


def replace_and_finish(
    model: nn.Module, request: HeadRequest, finish: Callable[[nn.Module, nn.Module], None]
) -> nn.Module:
    """Replace the head, and finish with the model and its new head; undo all after a failure."""
    own = unwrapped(check_model(model))
    _check_request(request.num_classes, request.head)
    _check_place(own, request)
    _check_not_distributed(model)
    old, run = _locate(model, request)
    new = _new_head(old, request.num_classes, request.head)
    if old.module is own:
        if own is not model:
            raise HeadError(
                f"The model is a {type(own).__name__} in a wrapper ({type(model).__name__}), and "
                "is its own head. Replace the head of the bare layer, and wrap the new one."
            )
        _check_runs(new, new, run, old, request)
        return new
    with contextlib.ExitStack() as undo:
        undo.callback(_put, _places(own, old.module), old.module)
        _put(_places(own, old.module), new)
        undo.callback(remove_auxiliary_heads(own, old.name, old.out_features))
        count = class_count(new)
        if count is not None:
            undo.callback(update_class_counts(own, old.name, old.out_features, count))
        after = _check_runs(own, new, run, old, request)
        if count is None and run is not None and after is not None:
            made = _width_in_place_of(old, run, after)
            undo.callback(update_class_counts(own, old.name, old.out_features, made))
        finish(own, new)
        undo.pop_all()
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
    if isinstance(head, type):
        raise InvalidTypeError(
            f"`head` is the class {head.__name__}. Pass a module, or a function from a width to "
            f"one: `head=lambda features: {head.__name__}(features, 10)`."
        )
    if head is not None and not callable(head):
        raise InvalidTypeError(
            "`head` must be a module, or a function from a width to a module, but is "
            f"{head!r} ({type(head).__name__})."
        )


def _check_place(model: nn.Module, request: HeadRequest) -> None:
    if request.at is not None and not isinstance(request.at, str):
        raise InvalidTypeError(
            "`at` must be the dotted name of a module, such as 'classifier.6', but is of type "
            f"{type(request.at).__name__}."
        )
    if isinstance(request.head, nn.Module) and model in request.head.modules():
        raise HeadError(
            "`head` holds the model itself, which cannot be a part of its own head. Pass the new "
            "last layers alone."
        )


def _locate(model: nn.Module, request: HeadRequest) -> tuple[Head, DryRun | None]:
    """Return the head to replace, and a run of the model as it is, if it runs."""
    if request.at is None:
        return locate_head(model, request.example_input)
    own = unwrapped(model)
    head = _head_at(own, name_inside_wrappers(request.at, model))
    try:
        return head, dry_run(own, request.example_input)
    except InvalidInputError as error:
        # A model of several outputs runs; which of its heads is meant, `at` has said.
        returns_other = isinstance(error.__cause__, OutputKindError)
        if request.example_input is not None and not returns_other:
            raise
        return head, None


def _head_at(model: nn.Module, name: str) -> Head:
    modules = own_modules(model)
    # A module of two names has one in the list, and may be given by the other.
    aliases = dict(model.named_modules(remove_duplicate=False))
    module = modules.get(name, aliases.get(name))
    if module is None or name == "":
        raise HeadNotFoundError(
            f"The model has no module `{name}`. Its last layers are "
            f"{last_layers(modules, HEAD_LAYERS) or 'none'}."
        )
    if layers_of(module):
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
    return _layer_like(layers_of(old.module)[-1], old.in_features, num_classes)


def _layer_like(layer: HeadLayer, in_features: int, out_features: int) -> nn.Module:
    """Return a new layer of the same kind, dtype and device for other numbers of features."""
    bias = layer.bias is not None
    weight = layer.weight
    if isinstance(layer, nn.Linear):
        return nn.Linear(
            in_features, out_features, bias=bias, device=weight.device, dtype=weight.dtype
        )
    # The plain kind: a parametrized class, or one of a library's own, takes other arguments.
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    kind: type[nn.Module] = next(kind for kind in kinds if isinstance(layer, kind))
    geometry: dict[str, Any] = {  # Any: tuples of each kind's own length.
        name: getattr(layer, name)
        for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    return kind(
        in_features, out_features, bias=bias, device=weight.device, dtype=weight.dtype, **geometry
    )


def _places(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return each place that a module has in a model, as its parent and its name there."""
    return [
        (parent, name)
        for parent in model.modules()
        for name, child in parent._modules.items()  # noqa: SLF001 - named_children drops doubles
        if child is module
    ]


def _put(places: list[tuple[nn.Module, str]], module: nn.Module) -> None:
    """Set a module at places."""
    for parent, name in places:
        setattr(parent, name, module)


def _check_runs(
    model: nn.Module, new: nn.Module, run: DryRun | None, old: Head, request: HeadRequest
) -> DryRun | None:
    """Raise when the model does not run with its new head, where it ran with the old one."""
    if run is None:
        return None
    taken: list[tuple[Tensor, ...]] = []
    handle = new.register_forward_pre_hook(lambda _, args: taken.append(args))
    try:
        after = dry_run(model, run.example)
        reference = next(old.module.parameters(), None)
        if request.head is not None and after.on_meta and taken and reference is not None:
            _run_alone(new, taken[-1], reference.device)
    except InvalidInputError as error:
        where = f"at `{old.name}`" if old.name else "in its place"
        raise HeadError(
            f"The model does not run with the new head {where}: {error.__cause__}. "
            f"The head's input has {old.in_features} features."
        ) from error
    finally:
        handle.remove()
    if request.at is None and request.num_classes is not None:
        _check_width(run, after, old, request.num_classes)
    return after


def _run_alone(head: nn.Module, taken: tuple[Tensor, ...], device: torch.device) -> None:
    """Run a new head on real tensors: a run on meta tensors notices no wrong dtype or device."""
    if device.type == "meta":
        return
    try:
        real_run(head, Inputs(taken, {}), device)
    except InvalidInputError as error:
        if not isinstance(error.__cause__, OutputKindError):  # The model made a batch of it.
            raise


def _check_width(before: DryRun, after: DryRun, old: Head, num_classes: int) -> None:
    """Raise when the new number of classes is not seen in the outputs."""
    shape, new_shape = tuple(before.outputs.shape), tuple(after.outputs.shape)
    axes = [axis for axis, size in enumerate(shape) if size == old.out_features]
    if new_shape not in [(*shape[:axis], num_classes, *shape[axis + 1 :]) for axis in axes]:
        raise HeadError(
            f"With a new head of {num_classes} features at `{old.name}` the outputs have the "
            f"shape {new_shape}, and had {shape} before. The model keeps its number of classes "
            "elsewhere too; set it there first."
        )


def _width_in_place_of(old: Head, before: DryRun, after: DryRun) -> int:
    """Return the size that stands in the new outputs where the old head's width stood."""
    shape = before.outputs.shape
    axis = 1 if shape[1] == old.out_features or after.outputs.dim() != len(shape) else -1
    return after.outputs.shape[axis]


def _check_not_distributed(model: nn.Module) -> None:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise HeadError(
            "The model is wrapped in DistributedDataParallel, which takes up no parameters later "
            "on. Replace the head first, and wrap the model then."
        )
