"""What a checkpoint is written from, and copies of it that training does not change."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from finetunelib.training._checkpointing.freezing import without_copies
from finetunelib.training._checkpointing.safe_state import plain
from finetunelib.training._history import History


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint contains. Its tensors are those of the run, or copies of them.

    Attributes:
        weights: The tensors of the model's state, each under its first name, without the frozen
            ones that the run has not trained.
        metadata: What the file of weights contains in place of those.
        state: The states of everything else, in types that can be read back safely.
        history: The rows of the epochs so far.
        about: The content of the manifest besides versions and digests.
    """

    weights: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    state: Mapping[str, Any]
    history: History
    about: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        state: Mapping[str, Any],
        history: History,
        about: Mapping[str, Any],
        frozen: Mapping[int, str] = MappingProxyType({}),
    ) -> Content:
        """Return the content of a checkpoint of a model.

        Args:
            model: The model.
            state: The states of everything else.
            history: The rows so far.
            about: The content of the manifest.
            frozen: The digests of the frozen tensors that the run has not trained, by id.

        Raises:
            CheckpointError: If the state contains an object that could not be read back safely.
            InvalidArgumentError: If the model's state contains something without values.
        """
        # Slow to import.
        from finetunelib.finetuning._weights.save import left_out_part, tensors_to_write

        safe = plain(state)
        tensors, left_out = tensors_to_write(model, frozen)
        if not left_out:
            return cls(tensors, {}, safe, history, about)
        digests = {name: frozen[id(tensor)] for name, tensor in left_out.items()}
        metadata = left_out_part(left_out, digests, checkpoint=True).to_metadata()
        return cls(tensors, metadata, without_copies(safe, left_out), history, about)


class Staging:
    """Memory on the CPU that checkpoints are copied into, one after the other.

    The memory is used again for the next copy: new memory costs several times as much as copying.
    """

    def __init__(self) -> None:
        self._buffers: dict[Hashable, Tensor] = {}

    def copy(self, content: Content) -> Content:
        """Return a copy of the content. It is valid until the next call."""
        buffers, self._buffers = self._buffers, {}
        copies = _Copies(buffers)
        with torch.no_grad():
            copied = Content(
                copies.of(content.weights, ("weights",)),
                dict(content.metadata),
                copies.of(content.state, ("state",)),
                History(content.history.rows),
                dict(content.about),
            )
        self._buffers = copies.used
        return copied


class _Copies:
    """Copies nested values into tensors that exist, or into new ones.

    Args:
        buffers: The tensors that may be overwritten, by where their values were.
    """

    def __init__(self, buffers: Mapping[Hashable, Tensor]) -> None:
        self.used: dict[Hashable, Tensor] = {}
        self._buffers = buffers
        self._copied: dict[int, Tensor] = {}

    def of(self, value: Any, place: tuple[Hashable, ...]) -> Any:
        """Return a copy of a value in `plain` types. A tensor that occurs twice is copied once."""
        if isinstance(value, Tensor):
            if id(value) not in self._copied:
                self._copied[id(value)] = self._tensor(value, place)
            return self._copied[id(value)]
        if isinstance(value, Mapping):
            copied = {key: self.of(part, (*place, key)) for key, part in value.items()}
            return copied if type(value) is dict else type(value)(copied)  # type: ignore[call-arg]
        if isinstance(value, list | tuple):
            return type(value)(self.of(part, (*place, i)) for i, part in enumerate(value))
        return value

    def _tensor(self, value: Tensor, place: tuple[Hashable, ...]) -> Tensor:
        values = value.detach()
        if type(values) is not Tensor or values.layout is not torch.strided or values.is_quantized:
            return values.clone().cpu()
        buffer = self._buffers.get(place)
        if buffer is None or _form(buffer) != _form(values):
            buffer = torch.empty_like(values, device="cpu")
        self.used[place] = buffer
        return buffer.copy_(values).requires_grad_(value.requires_grad)


def _form(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.stride()
