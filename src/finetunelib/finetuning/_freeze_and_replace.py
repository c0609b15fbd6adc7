"""Replacing the head of a model and freezing everything else."""

from __future__ import annotations

from functools import partial
from typing import TypeVar, cast

from torch import nn

from finetunelib._forward.inputs import ModelInputs
from finetunelib._public import public
from finetunelib.finetuning._heads.request import HeadRequest, NewHead

#: The class of the model, which the function returns.
Model = TypeVar("Model", bound=nn.Module)


@public("finetunelib")
def freeze_and_replace_head(
    model: Model,
    num_classes: int | None = None,
    *,
    head: NewHead | None = None,
    at: str | None = None,
    example_input: ModelInputs | None = None,
) -> Model:
    """Give a model a new head and freeze everything else.

    The frozen part stays the same bit for bit, parameters and buffers, in any training loop: its
    parameters need no gradient, and each of its modules is held in eval mode even after
    `model.train()`. BatchNorm uses its running statistics, and dropout is off. That includes a
    dropout in front of the head; `head=nn.Sequential(nn.Dropout(0.2), nn.Linear(...))` adds one
    that is active in training. A second call gives the model another head.

    PyTorch initializes the new layer from the global random state: `torch.manual_seed(0)` before
    the call gives the same head each time. Attributes of the model that store the old number of
    classes (`num_classes`, `config.num_labels`) are updated.

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
        FreezeError: If the model cannot be frozen.

    Warns:
        UserWarning: If auxiliary heads (GoogLeNet, Inception, DeepLab) were removed, which the
            message names; if the modules around the head are not held in eval mode, because the
            model returns something else in train mode (a detector with `at`); if peft adapters
            stay trainable; or if frozen tensors have their initial values, because the file of
            `load_weights` did not contain them.

    Example:
        >>> from finetunelib import build_mlp, freeze_and_replace_head
        >>> model = freeze_and_replace_head(build_mlp(784, [500], 10), num_classes=5)
        >>> model.head
        Linear(in_features=500, out_features=5, bias=True)
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['head.weight', 'head.bias']
    """
    # Imported here because the package should stay fast to import.
    from finetunelib.finetuning._heads.replace import replace_and_finish

    finish = partial(_freeze_rest, is_named=at is not None)
    request = HeadRequest(num_classes, head, at, example_input)
    # Another class is returned only if the model is its own head and `head` is of another one.
    return cast("Model", replace_and_finish(model, request, finish))


def _freeze_rest(model: nn.Module, head: nn.Module, *, is_named: bool) -> None:
    from finetunelib.finetuning._freezing.around_head import freeze_around_head

    freeze_around_head(model, head, is_named=is_named)
    for parameter in head.parameters():  # Also of a head that was passed frozen.
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
