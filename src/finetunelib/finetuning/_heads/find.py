"""Finding a model's head: the layer that makes the outputs, by following the data back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from finetunelib._arguments import check_model, uninitialized
from finetunelib._forward.dry_run import DryRun, dry_run
from finetunelib._forward.guess import OutputKindError
from finetunelib._forward.inputs import ModelInputs
from finetunelib._messages import quoted
from finetunelib._public import public
from finetunelib._wrappers import last_layers, own_modules, own_name, unwrapped
from finetunelib.errors import AmbiguousHeadError, HeadNotFoundError, InvalidInputError
from finetunelib.finetuning._heads.by_name import head_by_names
from finetunelib.finetuning._heads.graph import HeadGraph
from finetunelib.finetuning._heads.head import HEAD_LAYERS, Head, describe_head

#: A weight, or what a weight is computed from: `weight_g`, `parametrizations.weight.original0`.
_WEIGHT = re.compile(r"(?:(?P<layer>.*)\.)?(?:parametrizations\.weight\..*|weight(?:_\w+)?)")

#: How many layers a message lists: a model without a head has as many as blocks.
_LISTED = 6


@public("finetunelib.finetuning")
def find_head(model: nn.Module, example_input: ModelInputs | None = None) -> Head:
    """Find the layer that makes a model's outputs.

    A dry run is followed backwards from the outputs, through the autograd graph, to the first
    Linear or convolution on every path. If that is one layer, if it is used once, and if its
    width is that of the outputs, it is the head. The run is on meta tensors, which have shapes
    and no data, so that it computes nothing and a model on the meta device has a head too. A
    model that needs data is run on real tensors, and a small one may be. One that does not run,
    and that no `example_input` is given for, is asked for its `get_classifier()`; then its names
    decide, where no other layer is as wide. `Head.found_by` tells which it was.

    The model is not changed: neither its modes, gradients, buffers, hooks and other attributes
    nor the random state. Hooks of the user's run. What `torch.compile` or `DataParallel` wraps is
    found under its name in the user's own module.

    Args:
        model: Any module whose output is a tensor, or has one in `.logits`.
        example_input: A batch that the model takes: a tensor, a tuple of tensors by position, or
            a mapping of tensors by name, such as `{"input_ids": ids}`. `None` guesses from the
            first layer: `(2, in_features)` for a Linear; two images of the size that the model
            names, or of 224, 32, 28, 64 or 299 pixels, whichever works first, for a convolution;
            whole numbers of shape (2, 8) for an Embedding.

    Returns:
        The head.

    Raises:
        AmbiguousHeadError: Several layers make the outputs, or one makes them more than once, or
            it shares its weight with another.
        HeadNotFoundError: No layer does, or the model does not run on `example_input`.
        InvalidTypeError: `example_input` is of another kind.

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
    """Find a model's head, and return the dry run that showed it, if the model runs.

    Raises:
        AmbiguousHeadError: As for `find_head`.
        HeadNotFoundError: As for `find_head`.
    """
    own = unwrapped(check_model(model))
    _check_has_layers_to_find(own)
    try:
        run = dry_run(own, example_input)
    except InvalidInputError as error:
        if isinstance(error.__cause__, OutputKindError):
            raise HeadNotFoundError(
                f"The model runs, but {error.__cause__}, so it may have several heads or none. "
                f"{_advice(own)}"
            ) from error
        if example_input is not None:
            raise HeadNotFoundError(f"{error} Or name the head with `at=`.") from error
        try:
            return head_by_names(own, str(error)), None
        except (HeadNotFoundError, AmbiguousHeadError) as refusal:
            raise refusal from error
    return _head_by_data(own, run), run


def _head_by_data(model: nn.Module, run: DryRun) -> Head:
    """Return the one layer that the outputs of a run come from."""
    graph = HeadGraph(run)
    weights = _weights_of_layers(model)
    first = graph.first_products(weights)
    if first.raw is not None:
        raise HeadNotFoundError(
            f"The outputs are made with the parameter `{own_name(first.raw)}`, which is not the "
            "weight of a Linear or convolution. Put a module in its place to have it replaced, "
            f"or name another layer. {_advice(model)}"
        )
    hits = list(dict.fromkeys(_layers_of(names, weights) for names in first.parameters))
    if not hits:
        raise HeadNotFoundError(
            "The outputs come from no Linear or convolution, so no head was found. "
            f"{_advice(model)}"
        )
    if len(hits) > 1:
        first_hits = [layers[0] for layers in hits[:_LISTED]]
        more = f" and {len(hits) - _LISTED} more" if len(hits) > _LISTED else ""
        raise AmbiguousHeadError(
            f"The outputs come from {len(hits)} layers: {quoted(first_hits)}{more}. Name the one "
            "to replace with `at=`; where the model has no head, pass one with `head=`, and its "
            "place with `at=`."
        )
    name = hits[0][0]
    own = {key for key, weight in weights.items() if name in weight.layers}
    _check_used_once(hits[0], own, weights, graph.uses(own), model)
    head = describe_head(name, own_modules(model)[name], "following the data")
    if head.out_features not in (graph.shape[1], graph.shape[-1]):
        raise HeadNotFoundError(
            f"The last layer, `{name}`, makes {head.out_features} features, but the outputs have "
            f"the shape {graph.shape}. {_advice(model)}"
        )
    return head


@dataclass(frozen=True, slots=True)
class _Weight:
    """The layers that a parameter is the weight of, and all names that it has."""

    layers: list[str]
    names: list[str]


def _weights_of_layers(model: nn.Module) -> dict[str, _Weight]:
    """Return the parameters that are weights of layers, or go into them, by their first names."""
    names = {module: name for name, module in own_modules(model).items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    aliases: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name)
    found: dict[str, _Weight] = {}
    for same in aliases.values():
        layers: dict[str, None] = {}
        for name in same:
            layer = modules.get(_owner_of(name)) if _WEIGHT.fullmatch(name) else None
            if isinstance(layer, HEAD_LAYERS):
                layers[names[layer]] = None
        if layers:
            found[same[0]] = _Weight(list(layers), list(dict.fromkeys(map(own_name, same))))
    return found


def _owner_of(parameter: str) -> str:
    """Return the name of the module that a parameter belongs to, through its parametrizations."""
    match = _WEIGHT.fullmatch(parameter)
    return (match["layer"] or "") if match else parameter.rpartition(".")[0]


def _layers_of(names: list[str], weights: Mapping[str, _Weight]) -> tuple[str, ...]:
    """Return the layer that an operation may belong to; of several that share a weight, all.

    A bias tells which of these it is.
    """
    layers = [layer for name in names if name in weights for layer in weights[name].layers]
    with_bias = [layer for layer in layers if f"{layer}.bias" in map(own_name, names)]
    return tuple(dict.fromkeys(with_bias or layers))


def _check_used_once(
    layers: tuple[str, ...],
    own: set[str],
    weights: Mapping[str, _Weight],
    uses: int,
    model: nn.Module,
) -> None:
    """Raise when a head's weight has another place or another use in the model."""
    modules = own_modules(model)
    for key in own:
        # A module of two names has one in the list; the other is no other place.
        aliases = [alias for alias in weights[key].names if _owner_of(alias) in modules]
        if len({_owner_of(alias) for alias in aliases}) < 2:
            continue
        places = " and ".join(f"`{_owner_of(alias)}` (`{alias}`)" for alias in aliases)
        choices = " or ".join(f"`at={layer!r}`" for layer in layers)
        raise AmbiguousHeadError(
            f"The outputs are made with a weight that {places} share, and that is used {uses} "
            f"times in a forward pass. To give the outputs a weight of their own pass {choices}."
        )
    if uses > 1:
        raise AmbiguousHeadError(
            f"The layer that makes the outputs, `{layers[0]}`, is used {uses} times in a forward "
            f"pass, so it is more than a head. {_advice(model)}"
        )


def _check_has_layers_to_find(model: nn.Module) -> None:
    """Raise when a model's layers are not there to be found, or not yet."""
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
            "replaced. Pass the model as it was before `torch.jit.script` or `torch.jit.trace`; "
            f"its last layers are {last}."
        )
    packed = [
        own_name(name)
        for name, part in model.named_modules()
        if not name.endswith("_packed_params")
        and (hasattr(part, "_weight_bias") or hasattr(part, "_packed_params"))
    ]
    if packed:
        raise HeadNotFoundError(
            f"The model is quantized: {quoted(packed[-_LISTED:])} can be neither followed by "
            "gradients nor trained. Replace the head before the model is quantized."
        )
    lazy = uninitialized(model)
    if lazy is not None:
        raise HeadNotFoundError(lazy)


def _advice(model: nn.Module) -> str:
    """Return what to do about a head that was not found, with the names to choose from."""
    last = last_layers(own_modules(model), HEAD_LAYERS)
    return (
        f"Name the layer to replace with `at=`; the last ones are {last}."
        if last
        else "The model has no Linear and no convolution; add one as its last layer."
    )
