"""Finding a model's head: the layer that computes the outputs."""

from __future__ import annotations

import torch
from torch import nn

from finetunelib._arguments import check_model, uninitialized
from finetunelib._forward.dry_run import DryRun, dry_run
from finetunelib._forward.guess import OutputKindError
from finetunelib._forward.inputs import ModelInputs
from finetunelib._messages import quoted
from finetunelib._public import public
from finetunelib._wrappers import own_name, unwrapped
from finetunelib.errors import AmbiguousHeadError, HeadNotFoundError, InvalidInputError
from finetunelib.finetuning._heads.by_name import head_by_names
from finetunelib.finetuning._heads.candidates import advice, head_by_data
from finetunelib.finetuning._heads.head import HEAD_LAYERS, Head


@public("finetunelib.finetuning")
def find_head(model: nn.Module, example_input: ModelInputs | None = None) -> Head:
    """Find the layer that computes a model's outputs.

    A dry run is followed backwards from the outputs, through the autograd graph, to the first
    Linear or convolution on every path. If that is a single layer, if it is used once, and if its
    width is that of the outputs, it is the head. A layer that is followed by an activation other
    than softmax or sigmoid is not: it is a hidden layer of a model whose head was removed.

    The run uses meta tensors, which have shapes but no data, so nothing is computed and a model on
    the meta device can be searched too. A model that needs data is run on real tensors; a small
    one may be. If the model does not run and there is no `example_input`, its `get_classifier()`
    decides, or else its names, provided that no other layer has the same width. `Head.found_by`
    tells which rule was used.

    The model is not changed: modes, gradients, buffers, hooks and other attributes stay the same,
    and so does the random state. The model's hooks run. In a model that is wrapped by
    `torch.compile` or `DataParallel`, the head has the name that it has in the wrapped module.

    Args:
        model: Any module whose output is a tensor, or has one in `.logits`.
        example_input: A batch that the model accepts: a tensor, a tuple of tensors (passed by
            position), or a mapping of tensors (passed by name), such as `{"input_ids": ids}`.
            `None` guesses from the first layer: `(2, in_features)` for a Linear; for a
            convolution, two images of the size that the model states, or of 224, 32, 28, 64 or
            299 pixels, whichever works first; for an Embedding, integers of shape (2, 8).

    Returns:
        The head.

    Raises:
        AmbiguousHeadError: If several layers compute the outputs, if the layer is used more than
            once, or if it shares its weight with another.
        HeadNotFoundError: If no layer computes the outputs, or an activation follows it, or the
            model does not run on `example_input`.
        InvalidTypeError: If `example_input` has another type.

    Example:
        >>> from torch import nn
        >>> from finetunelib.finetuning import find_head
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3),
        ...     nn.AdaptiveAvgPool2d(1),
        ...     nn.Flatten(),
        ...     nn.Linear(8, 4),
        ...     nn.Softmax(1),
        ... )
        >>> find_head(model).name
        '3'
    """
    head, _ = locate_head(model, example_input)
    return head


def locate_head(model: nn.Module, example_input: ModelInputs | None) -> tuple[Head, DryRun | None]:
    """Find a model's head, and return it with the dry run that it was found in, if the model runs.

    Raises:
        AmbiguousHeadError: See `find_head`.
        HeadNotFoundError: See `find_head`.
    """
    user_model = unwrapped(check_model(model))
    _check_not_scripted(user_model)
    _check_not_quantized(user_model)
    _check_not_lazy(user_model)
    try:
        run = dry_run(user_model, example_input)
    except InvalidInputError as error:
        if example_input is not None:
            raise HeadNotFoundError(f"{error} Or name the head with `at=`.") from error
        try:
            return head_by_names(user_model, str(error)), None
        except (HeadNotFoundError, AmbiguousHeadError) as refusal:
            raise refusal from error
    try:
        return head_by_data(user_model, run), run
    except OutputKindError as error:
        raise HeadNotFoundError(
            f"The model runs, but {error}, so it may have several heads or none. "
            f"{advice(user_model)}"
        ) from error


def _check_not_scripted(model: nn.Module) -> None:
    scripted = [
        (own_name(name), str(getattr(part, "original_name", "")))
        for name, part in model.named_modules()
        if isinstance(part, torch.jit.ScriptModule)
    ]
    if scripted:
        kinds = {layer.__name__ for layer in HEAD_LAYERS}
        last = quoted([name for name, kind in scripted if kind in kinds][-5:]) or "none"
        raise HeadNotFoundError(
            "The model is scripted (torch.jit), and parts of a compiled program cannot be "
            "replaced. Pass the model that was given to `torch.jit.script` or `torch.jit.trace`; "
            f"its last layers are {last}."
        )


def _check_not_quantized(model: nn.Module) -> None:
    packed = [
        own_name(name)
        for name, part in model.named_modules()
        if not name.endswith("_packed_params")
        and (hasattr(part, "_weight_bias") or hasattr(part, "_packed_params"))
    ]
    if packed:
        raise HeadNotFoundError(
            f"The model is quantized: {quoted(packed[-6:])} have no gradients, so they can be "
            "neither searched nor trained. Replace the head before quantizing the model."
        )


def _check_not_lazy(model: nn.Module) -> None:
    lazy = uninitialized(model)
    if lazy is not None:
        raise HeadNotFoundError(lazy)
