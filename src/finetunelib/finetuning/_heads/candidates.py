"""The layers that may be a model's head according to a dry run, and why they may not be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from finetunelib._forward.dry_run import DryRun
from finetunelib._messages import quoted
from finetunelib._wrappers import last_layers, own_modules, own_name
from finetunelib.errors import AmbiguousHeadError, HeadNotFoundError
from finetunelib.finetuning._heads.graph import HeadGraph
from finetunelib.finetuning._heads.head import HEAD_LAYERS, Head, describe_head
from finetunelib.finetuning._heads.headless import check_not_detector, check_not_headless
from finetunelib.finetuning._heads.weights import LayerWeight, weights_of_layers

#: How many layers a message lists: a model without a head has as many as blocks.
_LISTED = 6


@dataclass(frozen=True, slots=True)
class HeadCandidates:
    """What the outputs of a dry run come from.

    Attributes:
        model: The unwrapped model.
        groups: For each operation that comes first on a path back from the outputs, the names of
            the layers it may belong to. A group has several names if layers share a weight.
        bare_parameter: The name of a parameter that is used like a weight but belongs to no
            Linear or convolution, and comes before any layer; or `None`.
        weights: The weights of the model's layers, by parameter name.
        graph: The autograd graph of the run.
    """

    model: nn.Module
    groups: list[tuple[str, ...]]
    bare_parameter: str | None
    weights: Mapping[str, LayerWeight]
    graph: HeadGraph


def head_by_data(model: nn.Module, run: DryRun) -> Head:
    """Return the one layer that the outputs of a run come from.

    Raises:
        AmbiguousHeadError: If several layers compute the outputs, or one is used more than once.
        HeadNotFoundError: If no layer computes the outputs.
    """
    check_not_detector(model, run.output)
    candidates = _candidates(model, run)
    _check_no_bare_parameter(candidates)
    _check_single(candidates)
    head = _describe(candidates)
    _check_weight_not_shared(candidates, head)
    _check_used_once(candidates, head)
    _check_width(candidates, head)
    check_not_headless(model, head, _weights_of(candidates, head), candidates.graph)
    return head


def advice(model: nn.Module) -> str:
    """Return what to do if no head was found, with the names to choose from."""
    last = last_layers(own_modules(model), HEAD_LAYERS)
    return (
        f"Name the layer to replace with `at=`; the last ones are {last}."
        if last
        else "The model has no Linear or convolution; add one as its last layer."
    )


def _candidates(model: nn.Module, run: DryRun) -> HeadCandidates:
    graph = HeadGraph(run)
    weights = weights_of_layers(model)
    first = graph.first_products(weights)
    groups = [_layers_of(names, weights) for names in first.parameters]
    return HeadCandidates(model, list(dict.fromkeys(groups)), first.bare, weights, graph)


def _layers_of(names: list[str], weights: Mapping[str, LayerWeight]) -> tuple[str, ...]:
    """Return the layers that an operation on some parameters may belong to.

    If layers share the weight, the bias tells which of them it is.
    """
    layers = [layer for name in names if name in weights for layer in weights[name].layers]
    with_bias = [layer for layer in layers if f"{layer}.bias" in map(own_name, names)]
    return tuple(dict.fromkeys(with_bias or layers))


def _describe(candidates: HeadCandidates) -> Head:
    name = candidates.groups[0][0]
    return describe_head(name, own_modules(candidates.model)[name], "following the data")


def _check_no_bare_parameter(candidates: HeadCandidates) -> None:
    if candidates.bare_parameter is not None:
        raise HeadNotFoundError(
            f"The outputs are computed with the parameter `{own_name(candidates.bare_parameter)}`, "
            "which is not the weight of a Linear or convolution. Use a module in its place, or "
            f"name another layer. {advice(candidates.model)}"
        )


def _check_single(candidates: HeadCandidates) -> None:
    groups = candidates.groups
    if not groups:
        raise HeadNotFoundError(
            "The outputs do not come from a Linear or convolution, so no head was found. "
            f"{advice(candidates.model)}"
        )
    if len(groups) > 1:
        names = quoted([layers[0] for layers in groups[:_LISTED]])
        more = f" and {len(groups) - _LISTED} more" if len(groups) > _LISTED else ""
        raise AmbiguousHeadError(
            f"The outputs come from {len(groups)} layers: {names}{more}. Name the one to replace "
            "with `at=`. If the model has no head, pass one with `head=` and its place with `at=`."
        )


def _weights_of(candidates: HeadCandidates, head: Head) -> list[str]:
    """Return the names of the parameters that the head's weight is, or is computed from."""
    return [key for key, weight in candidates.weights.items() if head.name in weight.layers]


def _check_weight_not_shared(candidates: HeadCandidates, head: Head) -> None:
    modules = own_modules(candidates.model)
    own_weights = _weights_of(candidates, head)
    for key in own_weights:
        places = candidates.weights[key].places(modules)
        if len({owner for owner, _ in places}) < 2:
            continue
        sharing = " and ".join(f"`{owner}` (`{name}`)" for owner, name in places)
        choices = " or ".join(f"`at={layer!r}`" for layer in candidates.groups[0])
        raise AmbiguousHeadError(
            f"The outputs are computed with a weight that {sharing} share. It is used "
            f"{candidates.graph.uses(own_weights)} times in a forward pass. To give the outputs a "
            f"weight of their own, pass {choices}."
        )


def _check_used_once(candidates: HeadCandidates, head: Head) -> None:
    uses = candidates.graph.uses(_weights_of(candidates, head))
    if uses > 1:
        raise AmbiguousHeadError(
            f"The layer that computes the outputs, `{head.name}`, is used {uses} times in a "
            f"forward pass, so it is more than a head. {advice(candidates.model)}"
        )


def _check_width(candidates: HeadCandidates, head: Head) -> None:
    shape = candidates.graph.shape
    if head.out_features not in (shape[1], shape[-1]):
        raise HeadNotFoundError(
            f"The last layer, `{head.name}`, has {head.out_features} output features, but the "
            f"outputs have the shape {shape}. {advice(candidates.model)}"
        )
