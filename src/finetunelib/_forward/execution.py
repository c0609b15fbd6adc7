"""The order in which a forward pass uses the parameters of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from finetunelib._forward.dry_run import buffer_twins, dry_run
from finetunelib._forward.inputs import ModelInputs
from finetunelib._forward.run import ANY_ERROR, run_once
from finetunelib._forward.uses import values_used


def parameter_order(model: nn.Module, example_input: ModelInputs | None) -> dict[str, int]:
    """Return the position of the first use of each parameter in a forward pass, by its name.

    The model is not changed. The passes use meta tensors if the model runs on them.

    Args:
        model: An unwrapped model.
        example_input: A batch that the model accepts, or `None` to guess.

    Returns:
        The positions, counted from 0. A parameter that no operation uses is absent.

    Raises:
        InvalidInputError: If the model does not run. The cause is the exception of its forward.
        InvalidTypeError: If `example_input` is of another type.
    """
    run = dry_run(model, example_input)
    inputs = run.example
    if run.on_meta:
        inputs = inputs.map(lambda tensor: torch.empty_like(tensor, device="meta"))
    recorder = _FirstUses(_names_by_id(model, run.twins))
    with recorder:
        run_once(
            model,
            inputs,
            stand_ins=run.twins | buffer_twins(model, on_meta=run.on_meta),
            errors=ANY_ERROR,
        )
    return recorder.positions


class _FirstUses(TorchFunctionMode):
    """Records the order in which tensors are first used, under the names of their ids."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.positions: dict[str, int] = {}
        self._names = names

    def __torch_function__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # Any: the arguments and the result of any operation
        kwargs = kwargs or {}
        for value in values_used(func, args, kwargs):
            name = self._names.get(id(value))
            if name is not None:
                self.positions.setdefault(name, len(self.positions))
        return func(*args, **kwargs)


def _names_by_id(model: nn.Module, twins: Mapping[str, Tensor]) -> dict[int, str]:
    """Return the names of the parameters, by the ids of their twins and of themselves.

    Recurrent layers keep a list of their weights, in which the twins do not replace them.
    """
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    return own | {id(twin): name for name, twin in twins.items()}
