"""Replacing a model's head."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from torch import nn

from finetunelib._arguments import check_model
from finetunelib._forward.dry_run import DryRun, dry_run
from finetunelib._forward.inputs import ModelInputs
from finetunelib._public import public
from finetunelib._wrappers import last_layers, name_inside_wrappers, own_modules, unwrapped
from finetunelib.errors import HeadError, HeadNotFoundError, InvalidInputError
from finetunelib.finetuning._digests import remember_initial
from finetunelib.finetuning._heads.auxiliary import remove_auxiliary_heads, warn_of_removed
from finetunelib.finetuning._heads.class_counts import class_count, update_class_counts
from finetunelib.finetuning._heads.find import locate_head
from finetunelib.finetuning._heads.head import HEAD_LAYERS, Head, describe_head, layers_of
from finetunelib.finetuning._heads.headless import check_class_count_matches
from finetunelib.finetuning._heads.new_head import new_head
from finetunelib.finetuning._heads.request import HeadRequest, NewHead, check_request
from finetunelib.finetuning._heads.trial import try_new_head


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

    PyTorch initializes the new layer from the global random state, and nothing else here draws
    from it: `torch.manual_seed(0)` before the call gives the same head each time. If a module
    around the head, or its `config`, stores the old number of classes as `num_classes` or
    `num_labels` (or `vocab_size`, for a CTC model), it is updated. The label names and the
    `problem_type` of a transformers config are reset.

    Args:
        model: The model. It is changed in place.
        num_classes: The number of outputs of the new head, at least 1. The new layer has the
            kind, dtype and device of the old one (and a convolution's kernel, stride and padding),
            but not its weight_norm or another parametrization.
        head: Instead of `num_classes`: a module that becomes the head, unchanged, or a function
            from the number of the head's input features to a module.
        at: The dotted name of the part to replace, such as `"classifier.6"`, if the head cannot be
            found or another part should be replaced.
        example_input: A batch that the model accepts, for the dry run that finds the head and
            checks the new one: a tensor, a tuple of tensors (passed by position), or a mapping of
            tensors (passed by name). `None` guesses it from the first layer.

    Returns:
        The model itself, or the new head if the model itself is its head.

    Raises:
        InvalidArgumentError: If not exactly one of `num_classes` and `head` is given, or
            `num_classes` is less than 1.
        InvalidTypeError: If `head` neither is nor returns a module, or `example_input` has another
            type.
        HeadNotFoundError: If no head was found, or there is no module at `at`, or the last layer
            is a hidden layer, because an activation follows it.
        AmbiguousHeadError: If several layers may be the head.
        InvalidInputError: If the model does not run on `example_input`.
        HeadError: If the model does not run with the new head, or its output has another
            structure, or the old head is a subclass whose forward differs from a plain layer's.
            The old head is restored.

    Warns:
        UserWarning: If auxiliary heads (GoogLeNet, Inception, DeepLab) were removed. The message
            names them.

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


def replace_and_finish(
    model: nn.Module, request: HeadRequest, finish: Callable[[nn.Module, nn.Module], None]
) -> nn.Module:
    """Replace the head and call `finish` with the model and the new head; undo all on failure."""
    user_model = unwrapped(check_model(model))
    check_request(user_model, request)
    _check_not_distributed(model)
    old, before = _locate(model, request)
    new = new_head(old, request)
    if old.module is user_model:
        if user_model is not model:
            raise HeadError(
                f"The model is a {type(user_model).__name__} in a wrapper "
                f"({type(model).__name__}), and is its own head. Replace the head of the bare "
                "layer, and wrap the new one."
            )
        if before is not None:
            try_new_head(new, new, old, before, request)
        return new
    with contextlib.ExitStack() as undo:
        removed, restore = remove_auxiliary_heads(user_model, old.name, old.out_features)
        undo.callback(restore)
        if removed and before is not None:  # The output may have fewer parts without them.
            before = dry_run(user_model, before.example)
        slots = _slots(user_model, old.module)
        undo.callback(_set_module, slots, old.module)
        _set_module(slots, new)
        count = class_count(new)
        if count is not None:
            undo.callback(update_class_counts(user_model, old.name, old.out_features, count))
        if before is not None:
            trial = try_new_head(user_model, new, old, before, request)
            width = trial.new_width() if count is None else None
            if width is not None:
                undo.callback(update_class_counts(user_model, old.name, old.out_features, width))
        finish(user_model, new)
        if request.num_classes is not None:
            remember_initial(new)
        warn_of_removed(removed, old.out_features)
        undo.pop_all()
    return model


def _locate(model: nn.Module, request: HeadRequest) -> tuple[Head, DryRun | None]:
    """Return the head to replace, and a dry run of the unchanged model, if it runs."""
    if request.at is None:
        return locate_head(model, request.example_input)
    user_model = unwrapped(model)
    head = _head_at(user_model, name_inside_wrappers(request.at, model))
    try:
        run = dry_run(user_model, request.example_input)
    except InvalidInputError:
        if request.example_input is not None:
            raise
        run = None
    check_class_count_matches(user_model, head, run)
    return head, run


def _head_at(model: nn.Module, name: str) -> Head:
    modules = own_modules(model)
    # A module with two names is listed under one, and may be given by the other.
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


def _slots(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return each place of a module in a model, as its parent and its name there."""
    return [
        (parent, name)
        for parent in model.modules()
        for name, child in parent._modules.items()  # noqa: SLF001 - named_children skips duplicates
        if child is module
    ]


def _set_module(slots: list[tuple[nn.Module, str]], module: nn.Module) -> None:
    for parent, name in slots:
        setattr(parent, name, module)


def _check_not_distributed(model: nn.Module) -> None:
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise HeadError(
            "The model is wrapped in DistributedDataParallel, which ignores parameters added "
            "after wrapping. Replace the head first, then wrap the model."
        )
