"""Which parameters of a model are the weights of layers that can be heads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from finetunelib._wrappers import own_modules, own_name
from finetunelib.finetuning._heads.head import HEAD_LAYERS

#: A weight, or what a weight is computed from: `weight_g`, `parametrizations.weight.original0`.
_WEIGHT = re.compile(r"(?:(?P<layer>.*)\.)?(?:parametrizations\.weight\..*|weight(?:_\w+)?)")


@dataclass(frozen=True, slots=True)
class LayerWeight:
    """A parameter that is the weight of one or more layers, or that one is computed from.

    Attributes:
        layers: The names of the layers; several if they share the parameter.
        names: All names of the parameter in the model.
    """

    layers: list[str]
    names: list[str]

    def places(self, modules: Mapping[str, nn.Module]) -> list[tuple[str, str]]:
        """Return each module that the parameter is in, and the parameter's name there.

        Args:
            modules: The modules of the model, each under its first name, so a module that is
                registered twice counts once.
        """
        owners = [(owner_of(name), name) for name in self.names]
        return [(owner, name) for owner, name in owners if owner in modules]


def weights_of_layers(model: nn.Module) -> dict[str, LayerWeight]:
    """Return the parameters that belong to the weights of layers, by their first names."""
    layer_names = {module: name for name, module in own_modules(model).items()}
    modules = dict(model.named_modules(remove_duplicate=False))
    aliases: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(parameter, []).append(name)
    found: dict[str, LayerWeight] = {}
    for names in aliases.values():
        owners = [modules.get(owner_of(name)) for name in names if _WEIGHT.fullmatch(name)]
        layers = [layer_names[owner] for owner in owners if isinstance(owner, HEAD_LAYERS)]
        if layers:
            unique = list(dict.fromkeys(map(own_name, names)))
            found[names[0]] = LayerWeight(list(dict.fromkeys(layers)), unique)
    return found


def owner_of(parameter: str) -> str:
    """Return the name of the module that a parameter belongs to, skipping parametrizations."""
    match = _WEIGHT.fullmatch(parameter)
    return (match["layer"] or "") if match else parameter.rpartition(".")[0]
