"""The effect of rounding on a model's outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from finetunelib._forward.inputs import Inputs
from finetunelib._forward.outputs import flat_outputs
from finetunelib._preserve import evaluating, random_state_preserved
from finetunelib.export._batches.arrays import Array, to_array

#: A relative change of weights and inputs, about 16 times the rounding of a float32.
_CHANGE = 1e-6

#: How many changed copies are run.
_COPIES = 4


def outputs_after_rounding(model: nn.Module, batch: Inputs) -> list[list[Array]]:
    """Return the outputs of a model for a batch, after changes of weights and inputs.

    The changes are as small as the differences between two engines. Whatever they change in an
    output is rounding: the winner of a tie, or a value that is what remains of a cancellation.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    with evaluating(model), random_state_preserved():
        for _ in range(_COPIES):
            state = {
                name: _changed(tensor, generator)
                for name, tensor in (*model.named_parameters(), *model.named_buffers())
            }
            inputs = batch.map(lambda tensor: _changed(tensor, generator))
            output = functional_call(model, state, inputs.args, inputs.kwargs)
            found.append([to_array(tensor) for tensor in flat_outputs(output)])
    return found


def _changed(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach().clone()
    size = max(_CHANGE, torch.finfo(tensor.dtype).eps)
    noise = torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
    return tensor.detach() * (1 + size * noise)
