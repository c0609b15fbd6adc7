"""Freezing and unfreezing parts of a model, and asking what is frozen."""

from __future__ import annotations

from torch import nn

from finetunelib._arguments import check_model
from finetunelib._public import public
from finetunelib._wrappers import unwrapped
from finetunelib.errors import InvalidArgumentError
from finetunelib.finetuning._freezing.apply import change, held_in_eval_mode
from finetunelib.finetuning._freezing.fingerprint import fingerprint
from finetunelib.finetuning._freezing.selection import (
    Parts,
    Selection,
    select,
    select_last,
    whole,
)


@public("finetunelib.finetuning")
def freeze(
    model: nn.Module,
    parts: Parts | None = None,
    *,
    except_: Parts | None = None,
    except_last: int | None = None,
) -> dict[str, str]:
    """Freeze a model or parts of it: parameters and buffers stay bit for bit, in any loop.

    Parameters of a frozen module need no gradient and lose the one that they have. The module,
    all of its submodules, and every module around it are held in eval mode also after
    `model.train()`: BatchNorm uses its running statistics, and dropout is off, functional dropout
    in a forward of their own included. Copies and pickles of the model are frozen as well; a
    state dict is not.

    A part is named by

    - a module of the model, or a slice of one of its containers (`model.layers[:6]`);
    - a dotted name, such as `"layer4"`;
    - a pattern over the dotted names of modules and parameters, in which `*` stands for any
      characters, dots included, `?` for one, and `[12]` for one of these: `"layer[12].*"`,
      `"*bn?"`.

    A parameter that is named by itself (`"*.bias"`) only loses its gradient; the mode of its
    module is left as it is.

    Args:
        model: The model, also wrapped by `torch.compile` or DataParallel: names are those inside.
            It is changed in place.
        parts: What is frozen; `None` is everything.
        except_: What of it is not frozen, but trainable afterwards, also where it was frozen
            before.
        except_last: In place of `parts` and `except_`: everything is frozen but the head and this
            number of blocks before it, in the order in which the model registers them. 0 is the
            head alone. A block is a child of the model; containers and children with more than
            half of the parameters are split into their own children, so that a ResNet has
            `layer4.1`, `layer4.0`, `layer3.1`, ... before its head.

    Returns:
        The digest of every tensor that is frozen now, by name, as `fingerprint` computes it.

    Raises:
        InvalidArgumentError: A name or pattern matches nothing, a module is not the model's,
            nothing is left to freeze, or the arguments do not go together.
        InvalidTypeError: `model` is no module, or an argument is of another kind.
        FreezeError: The head is not found (for `except_last`); a tensor would be frozen under one
            name and trainable under another; or a module cannot be frozen: a BatchNorm without
            running statistics, a lazy module without values, a ScriptModule. Nothing is changed.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import freeze, is_frozen
        >>> model = build_mlp(4, [8, 8], 3)
        >>> _ = freeze(model, except_last=1)
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['backbone.3.weight', 'backbone.3.bias', 'head.weight', 'head.bias']
        >>> is_frozen(model, "backbone.1")
        True
    """
    inner = unwrapped(check_model(model))
    if except_last is not None and (parts is not None or except_ is not None):
        raise InvalidArgumentError(
            "`except_last` counts over the whole model and goes with neither `parts` nor "
            f"`except_`, but was given as {except_last!r} beside them. Pass one of them."
        )
    frozen = whole(inner) if parts is None else select(inner, parts)
    freed = Selection()
    if except_last is not None:
        freed = select_last(inner, except_last, "except_last")
    elif except_ is not None:
        freed = select(inner, except_, "except_")
    left = frozen.modules - freed.modules
    # A module around others is nothing by itself: "*" names all but the root.
    if not any(not list(module.children()) for module in left) and (
        frozen.parameter_names(inner) <= freed.parameter_names(inner)
    ):
        raise InvalidArgumentError(
            "Everything that was to be frozen is excepted too, so nothing is left to freeze. "
            "Name less in `except_`."
        )
    change(inner, frozen, freed)
    return fingerprint(model)


@public("finetunelib.finetuning")
def unfreeze(model: nn.Module, parts: Parts | None = None, *, last: int | None = None) -> None:
    """Make a model or parts of it trainable: the reverse of `freeze`.

    All parameters of the parts need gradients again (those that cannot, such as whole numbers,
    do not). Their modules are no longer held in eval mode and are in train mode; call
    `model.eval()` before the model is applied. The modules around them are let go when nothing in
    them is frozen any more.

    Args:
        model: The model. It is changed in place.
        parts: What is made trainable, named as for `freeze`; `None` is everything.
        last: In place of `parts`: the head and this number of blocks before it, counted as for
            `freeze`. What was trainable before stays so.

    Raises:
        InvalidArgumentError: A name or pattern matches nothing, a module is not the model's, or
            both `parts` and `last` are given.
        InvalidTypeError: `model` is no module, or an argument is of another kind.
        FreezeError: The head is not found (for `last`), or a tensor would be frozen under one
            name and trainable under another. Nothing is changed.

    Example:
        >>> from finetunelib import build_mlp
        >>> from finetunelib.finetuning import freeze, is_frozen, unfreeze
        >>> model = build_mlp(4, [8, 8], 3)
        >>> _ = freeze(model)
        >>> unfreeze(model, last=1)
        >>> is_frozen(model, "backbone.1"), is_frozen(model, "backbone.3")
        (True, False)
    """
    inner = unwrapped(check_model(model))
    if last is not None and parts is not None:
        raise InvalidArgumentError(
            f"`last` counts over the whole model and does not go with `parts`, but both were "
            f"given ({last!r}). Pass one of them."
        )
    if last is not None:
        freed = select_last(inner, last, "last")
    else:
        freed = whole(inner) if parts is None else select(inner, parts)
    change(inner, Selection(), freed)


@public("finetunelib.finetuning")
def is_frozen(model: nn.Module, part: Parts | None = None) -> bool:
    """Return whether a model, or a part of it, is frozen entirely.

    It is where no parameter needs a gradient and every module is held in eval mode by `freeze`,
    modules without parameters included, since dropout is one. So a model whose parameters merely
    have `requires_grad=False` is not frozen: its BatchNorm would move. Neither is a module that is
    held only because something in it is frozen. The mode at hand, `module.training`, is not asked.

    Args:
        model: The model.
        part: What is asked about, named as for `freeze`; of several parts, all. `None` is the
            whole model. A parameter that is named by itself is frozen when it needs no gradient.

    Raises:
        InvalidArgumentError: A name or pattern matches nothing, or a module is not the model's.
        InvalidTypeError: `model` is no module, or `part` of another kind.

    Example:
        >>> from finetunelib import build_mlp, freeze_and_replace_head
        >>> from finetunelib.finetuning import is_frozen
        >>> model = freeze_and_replace_head(build_mlp(4, [8], 3), num_classes=5)
        >>> is_frozen(model), is_frozen(model, "backbone"), is_frozen(model, "head")
        (False, True, False)
    """
    inner = unwrapped(check_model(model))
    asked = whole(inner) if part is None else select(inner, part, "part")
    names = asked.parameter_names(inner)
    return all(map(held_in_eval_mode, asked.modules)) and not any(
        parameter.requires_grad and name in names
        for name, parameter in inner.named_parameters(remove_duplicate=False)
    )
