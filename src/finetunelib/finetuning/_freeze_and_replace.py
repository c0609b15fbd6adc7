"""A new head on a frozen model."""

from __future__ import annotations

from torch import nn

from finetunelib._forward.inputs import ModelInputs
from finetunelib._public import public
from finetunelib.finetuning._freezing.apply import freeze_all_but
from finetunelib.finetuning._heads.replace import HeadRequest, NewHead, replace_and_finish


@public("finetunelib")
def freeze_and_replace_head(
    model: nn.Module,
    num_classes: int | None = None,
    *,
    head: NewHead | None = None,
    at: str | None = None,
    example_input: ModelInputs | None = None,
) -> nn.Module:
    """Give a model a new head and freeze everything else.

    The frozen part stays bit for bit, parameters and buffers, in any training loop: its
    parameters need no gradient, and each of its modules is held in eval mode also after
    `model.train()`, so that BatchNorm uses its running statistics and dropout is off. A dropout
    in front of the head is off too; `head=nn.Sequential(nn.Dropout(0.2), nn.Linear(...))` brings
    one back. A second call gives the model another head.

    Args:
        model: The model. It is changed in place.
        num_classes: The number of outputs of the new head, at least 2. The new layer is of the
            old one's kind, dtype and device (with a convolution's kernel, stride and padding),
            and is initialised by PyTorch from the global random state: `torch.manual_seed(0)`
            before the call makes the same head each time. Attributes of the model that repeat the
            old number (`num_classes`, `config.num_labels`) are updated.
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
        FreezeError: The model cannot be frozen as it is.

    Warns:
        UserWarning: The model trained with auxiliary heads (GoogLeNet, Inception). They are
            removed, and named.

    Example:
        >>> from finetunelib import build_mlp, freeze_and_replace_head
        >>> model = freeze_and_replace_head(build_mlp(784, [500], 10), num_classes=5)
        >>> model.head
        Linear(in_features=500, out_features=5, bias=True)
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['head.weight', 'head.bias']
    """
    return replace_and_finish(
        model, HeadRequest(num_classes, head, at, example_input), freeze_all_but
    )
